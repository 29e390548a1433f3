"""Tiny pipelines of Wan 2.1 and 2.2. Each function gives a pipeline; wan2.1-i2v alone has an image encoder."""

from typing import Any

from generators.tiny.parts import WIDTH, made, t5_config, word_tokenizer

LATENT_CHANNELS = 4
TI2V_CHANNELS = 8
MAX_TOKENS = 512  # of the published models, and what wan2.1-i2v needs (`generators.tiny.variants`)
VAE = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}


def wan21_t2v() -> Any:
    """Text to video with one transformer."""
    from diffusers import WanPipeline

    return WanPipeline(transformer=_transformer(1, LATENT_CHANNELS), vae=_vae(), **_text(), **_scheduler(3.0))


def wan21_i2v() -> Any:
    """Image to video: the image's latents and a mask as channels, its CLIP embedding beside the text."""
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    layers = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(hidden_size=WIDTH, image_size=32, patch_size=16, **layers)
    return WanImageToVideoPipeline(
        transformer=_transformer(1, LATENT_CHANNELS, **_beside_image(), image_dim=WIDTH, added_kv_proj_dim=24),
        image_encoder=made(3, lambda: CLIPVisionModel(config)),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        vae=_vae(),
        **_text(),
        **_scheduler(3.0),
    )


def wan22_t2v() -> Any:
    """Text to video with a transformer for high noise and one for low."""
    from diffusers import WanPipeline

    two = {"transformer": _transformer(1, LATENT_CHANNELS), "transformer_2": _transformer(2, LATENT_CHANNELS)}
    return WanPipeline(boundary_ratio=0.875, **two, vae=_vae(), **_text(), **_scheduler(3.0))


def wan22_i2v() -> Any:
    """Image to video with two transformers: the image's latents and a mask as channels."""
    from diffusers import WanImageToVideoPipeline

    high, low = (_transformer(seed, LATENT_CHANNELS, **_beside_image()) for seed in (1, 2))
    two = {"transformer": high, "transformer_2": low}
    return WanImageToVideoPipeline(boundary_ratio=0.9, **two, vae=_vae(), **_text(), **_scheduler(3.0))


def wan22_ti2v() -> Any:
    """Text to video, and image to video where the first latent frame is the image; the VAE of Wan 2.2.

    WanImageToVideoPipeline loads the same folder.
    """
    from diffusers import AutoencoderKLWan, WanPipeline

    def vae() -> Any:
        return AutoencoderKLWan(
            **VAE,
            decoder_base_dim=8,
            z_dim=TI2V_CHANNELS,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            latents_mean=[0.1, -0.2, 0.3, 0.0, -0.1, 0.2, -0.3, 0.4],
            latents_std=[1.5, 0.5, 2.0, 1.0, 0.8, 1.2, 0.6, 1.4],
            scale_factor_temporal=4,
            scale_factor_spatial=16,
        )

    transformer = _transformer(1, TI2V_CHANNELS)
    return WanPipeline(transformer=transformer, expand_timesteps=True, vae=made(4, vae), **_text(), **_scheduler(5.0))


def _transformer(seed: int, channels: int, **changes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": channels,
        "out_channels": channels, "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    return made(seed, lambda: WanTransformer3DModel(**config | changes))


def _beside_image() -> dict[str, int]:
    """Channels of noisy latents, image latents and a mask, which has 4 as the VAE makes 1 frame of 4."""
    return {"in_channels": 2 * LATENT_CHANNELS + 4}


def _vae() -> Any:
    from diffusers import AutoencoderKLWan

    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}
    return made(4, lambda: AutoencoderKLWan(**VAE, z_dim=LATENT_CHANNELS, **statistics))


def _text() -> dict[str, Any]:
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = word_tokenizer(MAX_TOKENS)
    encoder = made(5, lambda: UMT5EncoderModel(UMT5Config(**t5_config(tokenizer))))
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def _scheduler(shift: float) -> dict[str, Any]:
    from diffusers import UniPCMultistepScheduler

    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return {"scheduler": UniPCMultistepScheduler(**config)}
