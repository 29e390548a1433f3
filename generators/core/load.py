"""What makes videos: one interface over diffusers pipelines, one file a family."""

from collections.abc import Callable, Collection

import torch

from generators.core.generator import PARTS, Generator, as_dtype, check_parts


def _wan(*args, **kwargs) -> Generator:
    from generators.families.wan import load_wan

    return load_wan(*args, **kwargs)


FAMILIES: dict[str, Callable[..., Generator]] = {"wan": _wan}  # each imports its pipeline only when asked


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
    if family not in FAMILIES:
        raise ValueError(f"generator family: found {family!r}; known are {', '.join(FAMILIES)}")
    check_parts(parts)
    return FAMILIES[family](str(path), revision, as_dtype(dtype), torch.device(device), max_prompt_tokens, parts)
