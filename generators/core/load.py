"""What makes videos: one interface over diffusers pipelines, one file a family."""

from collections.abc import Collection

import torch

from data.doors import find
from generators.core.generator import PARTS, Generator, as_dtype, check_parts

FAMILIES = {"wan": "generators.families.wan"}  # name -> module with `load`, imported when it is used


def load_generator(
    family: str,
    path: str,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    max_prompt_tokens: int = 512,
    parts: Collection[str] = PARTS,
) -> Generator:
    """A generator ready to sample, its modules frozen and in eval mode.

    path: a local diffusers folder or a hub id; revision: a hub id's commit, tag or branch.
    dtype: float32 or bfloat16, of transformer and text encoder; the VAE is always float32.
    parts: what to load of transformer, text_encoder and vae; training needs ("transformer",) alone.
    Reads safetensors only, never a pickle. Raises ValueError naming the argument that is wrong.
    """
    load = find(family, FAMILIES, "generator.family", "load")
    check_parts(parts)
    return load(str(path), revision, as_dtype(dtype), torch.device(device), max_prompt_tokens, parts)
