"""A generator by the name of its family; `generators.core.generator` says what a family is."""

from collections.abc import Collection
from typing import cast

import torch

from data.doors import find, offered
from generators.core.checkpoint import Checkpoint, open_checkpoint
from generators.core.generator import PARTS, Generator, as_dtype, check_parts

# The only place of generators/core that names families: name -> module with `load`, imported when it is used.
FAMILIES = {"wan": "generators.families.wan"}


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

    family: a key of FAMILIES, or the dotted path of a user's module, such as my_lab.generators.ltx.
    path: a local diffusers folder or a hub id; revision: a hub id's commit, tag or branch.
    dtype: float32 or bfloat16, of transformer and text encoder; the VAE is always float32.
    parts: the modules to load, of transformer, text_encoder and vae; training needs ("transformer",) alone.
    Reads safetensors only, never a pickle. Raises ValueError naming the argument that is wrong.
    """
    load = find(family, FAMILIES, "generator.family", "load")
    check_parts(parts)
    return cast(Generator, load(str(path), revision, as_dtype(dtype), torch.device(device), max_prompt_tokens, parts))


def examine_generator(
    family: str,
    path: str,
    revision: str | None,
    max_prompt_tokens: int,
    num_frames: int,
    height: int,
    width: int,
) -> Checkpoint | None:
    """The checkpoint, where the family can read it and make such clips, judged by its small files alone.

    None for a family of a user's own that has no `examine`. Raises ValueError that begins with the argument that is
    wrong, NotReachedError where nothing is known of a hub id.
    """
    find(family, FAMILIES, "generator.family", "load")
    examine = offered(family, FAMILIES, "examine")
    if examine is None:
        return None
    checkpoint = open_checkpoint(str(path), revision)
    examine(checkpoint, num_frames, height, width, max_prompt_tokens)
    return checkpoint
