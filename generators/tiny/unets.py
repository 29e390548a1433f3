"""Tiny pipelines of U-Nets: AnimateDiff, PIA, and UNet3DConditionModel."""

from typing import Any

from generators.tiny.parts import WIDTH, made, t5_config, word_tokenizer

LATENT_CHANNELS = 4
MAX_TOKENS = 16  # CLIP's positions, to which every prompt is padded
T5_TOKENS = 64  # of the paper whose layout unet3d-pixels has (configs/presets/paper.yaml)
DOWN, UP = ("CrossAttnDownBlock", "DownBlock"), ("UpBlock", "CrossAttnUpBlock")


def animatediff(image: bool) -> Any:
    """AnimateDiff, or with `image` PIA, which takes a first frame."""
    from diffusers import AnimateDiffPipeline, PIAPipeline

    pipeline = PIAPipeline if image else AnimateDiffPipeline
    return pipeline(
        unet=_motion_unet(LATENT_CHANNELS * 2 + 1 if image else LATENT_CHANNELS),
        motion_adapter=None,  # its modules are in the unet
        vae=_vae(),
        scheduler=_scheduler(),
        **_clip(),
    )


def _motion_unet(in_channels: int) -> Any:
    from diffusers import UNetMotionModel

    config = {
        "in_channels": in_channels, "out_channels": LATENT_CHANNELS, "block_out_channels": (8, 8),
        "layers_per_block": 1, "cross_attention_dim": WIDTH, "num_attention_heads": 2, "norm_num_groups": 2,
        "down_block_types": tuple(f"{name}Motion" for name in DOWN),
        "up_block_types": tuple(f"{name}Motion" for name in UP),
        "motion_num_attention_heads": 2, "motion_max_seq_length": 32, "sample_size": 16,
    }  # fmt: skip
    return made(1, lambda: UNetMotionModel(**config))


def _vae() -> Any:
    from diffusers import AutoencoderKL

    config = {
        "block_out_channels": (8, 8, 8), "latent_channels": LATENT_CHANNELS, "norm_num_groups": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "scaling_factor": 0.7,
    }  # fmt: skip
    return made(4, lambda: AutoencoderKL(**config))


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def _clip() -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = word_tokenizer(MAX_TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=WIDTH, max_position_embeddings=MAX_TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return {"tokenizer": tokenizer, "text_encoder": made(5, lambda: CLIPTextModel(config))}


def unet3d(image: bool, pixels: bool = False) -> Any:
    """ModelScope's layout; with `image` its denoiser takes a first frame, with `pixels` it has T5 and no VAE."""
    from diffusers import TextToVideoSDPipeline

    channels = 3 if pixels else LATENT_CHANNELS
    return TextToVideoSDPipeline(
        unet=_unet3d(channels * 2 if image else channels, channels),
        vae=None if pixels else _vae(),
        scheduler=_scheduler(),
        **(_t5() if pixels else _clip()),
    )


def _unet3d(in_channels: int, out_channels: int) -> Any:
    from diffusers import UNet3DConditionModel

    config = {
        "in_channels": in_channels, "out_channels": out_channels, "block_out_channels": (4, 8), "layers_per_block": 1,
        "cross_attention_dim": WIDTH, "attention_head_dim": 4, "norm_num_groups": 2, "sample_size": 8,
        "down_block_types": tuple(f"{name}3D" for name in DOWN), "up_block_types": tuple(f"{name}3D" for name in UP),
    }  # fmt: skip
    return made(1, lambda: UNet3DConditionModel(**config))


def _t5() -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel

    tokenizer = word_tokenizer(T5_TOKENS)
    return {
        "tokenizer": tokenizer,
        "text_encoder": made(5, lambda: T5EncoderModel(T5Config(**t5_config(tokenizer)))),
    }
