"""Tiny pipelines of LTX-Video: 0.9 from text and from a first frame, and 0.9.1 with its timestep-conditioned VAE."""

from typing import Any

from generators.tiny.parts import WIDTH, made, t5_config, word_tokenizer

CHANNELS = 8


def ltx(image: bool = False, told_time: bool = False) -> Any:
    """image: it takes a first frame. told_time: its VAE is told a time and adds noise in its layers."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXImageToVideoPipeline,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    vae = {
        "latent_channels": CHANNELS, "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False), "patch_size": 1, "patch_size_t": 1,
        "timestep_conditioning": told_time, "decoder_inject_noise": (told_time,) * 4 + (False,),
        "encoder_causal": True, "decoder_causal": False,
    }  # fmt: skip
    transformer = {
        "in_channels": CHANNELS, "out_channels": CHANNELS, "num_attention_heads": 2, "attention_head_dim": 16,
        "cross_attention_dim": 32, "num_layers": 2, "caption_channels": WIDTH,
    }  # fmt: skip

    def scaled_vae() -> Any:
        module = AutoencoderKLLTXVideo(**vae)
        module.latents_mean.normal_(std=0.2)
        module.latents_std.uniform_(0.5, 1.5)
        return module

    tokenizer = word_tokenizer(16)
    return (LTXImageToVideoPipeline if image else LTXPipeline)(
        transformer=made(1, lambda: LTXVideoTransformer3DModel(**transformer)),
        vae=made(4, scaled_vae),
        text_encoder=made(5, lambda: T5EncoderModel(T5Config(**t5_config(tokenizer)))),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
            max_image_seq_len=4096, shift_terminal=0.1,
        ),
    )  # fmt: skip
