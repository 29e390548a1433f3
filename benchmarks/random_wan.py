"""Wan generators of the real classes with random weights, in memory."""

from typing import Any

import torch

from generators.core.checkpoint import in_memory
from generators.core.size import VideoSize
from generators.families.wan import WanGenerator


def random_wan(
    transformer: Any,
    vae: Any,
    text_encoder: Any,
    size: VideoSize,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> WanGenerator:
    """A frozen generator of these modules, without a tokenizer. tokens: max_prompt_tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    modules = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
    checkpoint = in_memory("WanPipeline", {**modules, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
    frozen = {name: module.to(device).eval().requires_grad_(False) for name, module in modules.items()}
    return WanGenerator(checkpoint, size, tokens, frozen, dtype, device)
