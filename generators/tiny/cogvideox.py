"""Tiny pipelines of CogVideoX 1.0 (2b, 5b) and 1.5, text and image to video."""

from typing import Any, Literal

from generators.tiny.parts import WIDTH, made, t5_config, word_tokenizer

Release = Literal["2b", "5b", "1.5"]

LATENT_CHANNELS = 4
MAX_TOKENS = 16  # of every prompt: padding is part of what the model reads
FRAMES = 9
LATENT_SIZE = 4  # latent pixels along a side, of the one size that positions are learned for
LARGEST_SIZE = 16  # of the largest clips that 1.5 has positions for


def cogvideox(release: Release, image: bool) -> Any:
    """A pipeline that takes text, or with `image` text and a first frame.

    Releases differ in positions (2b: sines; others: rotary, and learned ones in 5b's image to video), in the patch over
    time of 1.5, and in the scheduler.
    """
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline

    pipeline = CogVideoXImageToVideoPipeline if image else CogVideoXPipeline
    return pipeline(
        transformer=_transformer(release, image),
        vae=_vae(image_is_divided=image and release == "5b"),
        scheduler=_scheduler(release),
        **_text(),
    )


def _transformer(release: Release, image: bool) -> Any:
    from diffusers import CogVideoXTransformer3DModel

    size = LARGEST_SIZE if release == "1.5" else LATENT_SIZE
    config = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": LATENT_CHANNELS * (2 if image else 1),
        "out_channels": LATENT_CHANNELS, "time_embed_dim": 8, "text_embed_dim": WIDTH, "num_layers": 2,
        "sample_width": size, "sample_height": size, "sample_frames": FRAMES, "patch_size": 2,
        "temporal_compression_ratio": 4, "max_text_seq_length": MAX_TOKENS,
        "use_rotary_positional_embeddings": release != "2b",
        "use_learned_positional_embeddings": image and release == "5b",
        "patch_size_t": 2 if release == "1.5" else None,
        "patch_bias": release != "1.5",
        "ofs_embed_dim": 8 if image and release == "1.5" else None,
    }  # fmt: skip
    return made(1, lambda: CogVideoXTransformer3DModel(**config))


def _vae(image_is_divided: bool) -> Any:
    """image_is_divided: whether the image's latents are divided by the scaling factor, not multiplied."""
    from diffusers import AutoencoderKLCogVideoX

    config = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4,
        "block_out_channels": (8, 8, 8, 8), "latent_channels": LATENT_CHANNELS, "layers_per_block": 1,
        "norm_num_groups": 2, "temporal_compression_ratio": 4, "sample_height": 32, "sample_width": 32,
        "scaling_factor": 0.7, "invert_scale_latents": image_is_divided,
    }  # fmt: skip
    return made(4, lambda: AutoencoderKLCogVideoX(**config))


def _scheduler(release: Release) -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    config = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0 if release == "2b" else 1.0, "clip_sample": False,
        "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "trailing",
    }  # fmt: skip
    return CogVideoXDDIMScheduler(**config) if release == "2b" else CogVideoXDPMScheduler(**config)


def _text() -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel

    tokenizer = word_tokenizer(MAX_TOKENS)
    encoder = made(5, lambda: T5EncoderModel(T5Config(**t5_config(tokenizer))))
    return {"tokenizer": tokenizer, "text_encoder": encoder}
