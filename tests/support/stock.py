"""Stock diffusers pipelines over the tiny models: what they sample, decode and ask their denoisers."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generators.tiny.variants import Variant

PROMPT = "lifting red ball up"
STEPS, GUIDANCE = 4, 2.0


def load_stock(folder: Path, image: bool = False) -> Any:
    """The folder's own pipeline, or of a Wan text-to-video folder with `image` the one that takes a first frame."""
    from diffusers import DiffusionPipeline, WanImageToVideoPipeline, WanPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    if image and isinstance(pipeline, WanPipeline):
        pipeline = WanImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def first_frame(seed: int = 0, height: int = 32, width: int = 32) -> Image.Image:
    """An image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def run_stock(pipeline: Any, variant: Variant, image: Image.Image | None = None, **changes: Any) -> Any:
    """What the pipeline makes of one prompt: (1, F, H, W, 3) frames in [0, 1], or latents if output_type says so."""
    arguments = {
        "prompt": PROMPT, "num_frames": variant.num_frames, "height": variant.height, "width": variant.width,
        "num_inference_steps": 2, "guidance_scale": GUIDANCE, "max_sequence_length": variant.max_prompt_tokens,
        "generator": torch.Generator().manual_seed(0), "output_type": "np",
    }  # fmt: skip
    if image is not None:
        arguments["image"] = image
    arguments |= changes
    if is_hunyuan_video(pipeline):  # its guidance_scale is what the denoiser is told
        arguments |= {"true_cfg_scale": arguments["guidance_scale"], "negative_prompt": "", "guidance_scale": 6.0}
        arguments["num_frames"] += hidden_frames(pipeline)
    return pipeline(**arguments).frames


def stock_latents(
    pipeline: Any, variant: Variant, noise: Tensor, image: Image.Image | None = None, **changes: Any
) -> Tensor:
    """(1, C, F, h, w) latents that the pipeline makes of this noise; CogVideoX by DDIM, which draws no noise."""
    cogvideox = frames_first(pipeline)
    if cogvideox:
        from diffusers import CogVideoXDDIMScheduler

        pipeline.scheduler = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
    settings = {
        "latents": noise.transpose(1, 2) if cogvideox else noise.clone(),
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    if hidden_frames(pipeline):  # it gives the latents without their first frame, so the last step's are taken
        steps: list[Tensor] = []
        settings["callback_on_step_end"] = lambda _, step, timestep, told: steps.append(told["latents"]) or told
        run_stock(pipeline, variant, image, **settings | changes)
        return steps[-1]
    latents: Tensor = run_stock(pipeline, variant, image, **settings | changes)
    return latents.transpose(1, 2) if cogvideox else latents


def stock_decode(pipeline: Any, latents: Tensor, num_frames: int) -> Tensor:
    """(1, num_frames, H, W, 3) pixels of (1, C, F, h, w) latents as the pipeline decodes them, not clamped.

    Black is 0 and white 1. Keeps the graph.
    """
    config = pipeline.vae.config
    if is_hunyuan_video(pipeline):
        decoded = pipeline.vae.decode(latents / config.scaling_factor).sample[:, :, hidden_frames(pipeline) :]
    elif frames_first(pipeline):
        shown = (num_frames - 1) // config.temporal_compression_ratio + 1  # CogVideoX 1.5 pads in front
        decoded = pipeline.vae.decode(latents[:, :, -shown:] / config.scaling_factor).sample
    else:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        decoded = pipeline.vae.decode(latents * std + mean).sample
    pixels: Tensor = decoded.permute(0, 2, 3, 4, 1) / 2 + 0.5
    return pixels


def frames_first(pipeline: Any) -> bool:
    """Whether its transformer takes latents as (B, F, C, h, w)."""
    return "CogVideoX" in type(pipeline).__name__


def is_hunyuan_video(pipeline: Any) -> bool:
    """Whether it is of HunyuanVideo."""
    return "HunyuanVideo" in type(pipeline).__name__


def hidden_frames(pipeline: Any) -> int:
    """Frames that it makes and does not show: 4 of HunyuanVideo's pipeline with 33 channels."""
    concat = is_hunyuan_video(pipeline) and pipeline.transformer.config.image_condition_type == "latent_concat"
    return 4 if concat else 0


@contextmanager
def asked(denoiser: Any) -> Iterator[list[dict[str, Any]]]:
    """What the denoiser is called with in the block, call by call, by argument name."""
    calls: list[dict[str, Any]] = []
    hook = denoiser.register_forward_pre_hook(
        lambda module, arguments, named: calls.append(dict(named)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()
