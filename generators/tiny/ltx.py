"""Tiny pipelines of LTX-Video: 0.9, 0.9.1 with its timestep-conditioned VAE, and 0.9.7's LTXConditionPipeline."""

from typing import Any, Literal

from generators.tiny.parts import WIDTH, made, t5_config, word_tokenizer

Release = Literal["0.9", "0.9.1", "0.9.7"]
CHANNELS = 8
VAES: dict[Release, dict[str, Any]] = {
    "0.9": {
        "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5, "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
    },
    "0.9.1": {  # layers of its decoder add noise
        "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8, 16), "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 3, "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True), "decoder_inject_noise": (True, True, False),
        "upsample_residual": (True, True), "upsample_factor": (2, 2), "timestep_conditioning": True,
    },
    "0.9.7": {
        "block_out_channels": (8, 8, 8, 8), "down_block_types": ("LTXVideo095DownBlock3D",) * 3,
        "decoder_block_out_channels": (8, 16), "layers_per_block": (1,) * 4, "decoder_layers_per_block": (1,) * 3,
        "spatio_temporal_scaling": (True, True, True), "decoder_spatio_temporal_scaling": (True, True),
        "decoder_inject_noise": (False,) * 3, "downsample_type": ("spatial", "temporal", "spatiotemporal"),
        "upsample_residual": (True, True), "upsample_factor": (2, 2), "timestep_conditioning": True,
        "spatial_compression_ratio": 4, "temporal_compression_ratio": 4,
    },
}  # fmt: skip


def ltx(release: Release) -> Any:
    """One frame in four of a clip's and one pixel in four along each side is a latent one."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXConditionPipeline,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    transformer = {
        "in_channels": CHANNELS, "out_channels": CHANNELS, "num_attention_heads": 2, "attention_head_dim": 16,
        "cross_attention_dim": 32, "num_layers": 2, "caption_channels": WIDTH,
    }  # fmt: skip

    def scaled_vae() -> Any:
        module = AutoencoderKLLTXVideo(
            latent_channels=CHANNELS, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
            **VAES[release],
        )  # fmt: skip
        module.latents_mean.normal_(std=0.2)
        module.latents_std.uniform_(0.5, 1.5)
        return module

    shifts = {
        "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
        "max_image_seq_len": 4096, "shift_terminal": 0.1,
    }  # fmt: skip
    tokenizer = word_tokenizer(16)
    return (LTXConditionPipeline if release == "0.9.7" else LTXPipeline)(
        transformer=made(1, lambda: LTXVideoTransformer3DModel(**transformer)),
        vae=made(4, scaled_vae),
        text_encoder=made(5, lambda: T5EncoderModel(T5Config(**t5_config(tokenizer)))),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(**({} if release == "0.9.7" else shifts)),
    )
