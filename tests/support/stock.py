"""Stock diffusers pipelines over the tiny models, and what they are told."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from generators.tiny.variants import Variant

PROMPT = "lifting red ball up"


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
        "num_inference_steps": 2, "guidance_scale": 2.0, "max_sequence_length": variant.max_prompt_tokens,
        "generator": torch.Generator().manual_seed(0), "output_type": "np",
    }  # fmt: skip
    if image is not None:
        arguments["image"] = image
    return pipeline(**arguments | changes).frames
