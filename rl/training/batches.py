"""The random choices of a training step: its rows, noise, timesteps and dropped captions.

Every draw is a function of (seed, step, place in the batch) alone. A resumed run needs no generator state, and the
number of processes or micro-batches changes nothing that is drawn.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.store import ClipSet
from generators.core.conditions import Conditions, stacked
from generators.core.process import standard_normal
from rl.training.timesteps import Timesteps

MOST_DRAWS = 10_000  # of a t that is trained


class Draws(NamedTuple):
    """The random part of a batch of rows, on the CPU."""

    t: Tensor  # (B,) in (0, 1)
    noise: Tensor  # (B, C, F, h, w)
    dropped: Tensor  # (B,) bool, whether the row is trained with the empty caption
    part: Tensor  # (B,) which of the clip's parts is predicted


class ClipTensors(NamedTuple):
    """The tensors of a batch of clips, on the CPU."""

    latents: Tensor  # (B, C, F, h, w) float32, clean
    conditions: Conditions  # (B, …) each


def rows_of_step(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Indices of the rows of one step: pass after pass over all `count` rows, each in a fresh order."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [_order_of_pass(seed, place // count, count)[place % count] for place in places]


@lru_cache(maxsize=2)
def _order_of_pass(seed: int, number: int, count: int) -> list[int]:
    order: list[int] = generator_at(seed, "order", number).permutation(count).tolist()
    return order


def draw(
    seed: int,
    step: int,
    places: Sequence[int],
    shape: Sequence[int],
    timesteps: Timesteps,
    caption_dropout: float,
    trains: Callable[[Tensor], bool] = lambda t: True,
    parts: int = 1,
) -> Draws:
    """Timestep, noise, caption dropout and part of the rows at these places of a step's batch, a generator each.

    shape: (C, F, h, w) of a clip's latents; caption_dropout: probability of the empty caption.
    trains: whether a t (1,) is trained: others are drawn again. parts: of a clip, all equally probable.
    Raises ValueError where no t is trained.
    """
    t, noise, dropped, part = [], [], [], []
    for place in places:
        random = generator_at(seed, "draw", step, place)
        t.append(_trained(trains, timesteps, random))
        dropped.append(bool(random.random() < caption_dropout))
        noise.append(standard_normal(random, shape))
        part.append(int(random.integers(parts)))
    return Draws(torch.cat(t), torch.stack(noise), torch.tensor(dropped), torch.tensor(part))


def _trained(trains: Callable[[Tensor], bool], timesteps: Timesteps, random: np.random.Generator) -> Tensor:
    """(1,) the first draw that is trained."""
    for _ in range(MOST_DRAWS):
        t = timesteps(random, 1)
        if trains(t):
            return t
    raise ValueError(f"timesteps: {MOST_DRAWS} draws of {timesteps} gave no t of a denoiser that is trained")


def generator_at(*key: int | str) -> np.random.Generator:
    """Generator seeded by all bits of a hash of the key, so that other keys give unrelated streams."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


class ClipReader:
    """Latents and conditions of clips by sample_id, from the clip set that holds them.

    Nothing is encoded: shards only, so training loads neither the VAE nor an encoder.
    """

    def __init__(self, clip_sets: Sequence[ClipSet], dropped_caption: str = "empty") -> None:
        """A reader of all clips of these sets.

        dropped_caption: what replaces a dropped caption: "empty", or "negative", the prompt that guidance led
        away from when the clips were sampled.
        Raises ValueError where two sets share a sample_id, where latents or conditions differ in shape, without a clip,
        and for negative captions of a set that was sampled without a negative prompt.
        """
        if dropped_caption == "negative" and (without := [c.folder for c in clip_sets if c.negative is None]):
            raise ValueError(f"dropped_caption is negative, but {without[0]} was sampled without a negative prompt")
        self._dropped_caption = dropped_caption
        self._home: dict[str, tuple[ClipSet, str]] = {}
        for clip_set in clip_sets:
            for sample in clip_set.samples:
                if sample.sample_id in self._home:
                    raise ValueError(f"sample {sample.sample_id} stands in two of the {len(clip_sets)} clip sets")
                self._home[sample.sample_id] = (clip_set, sample.prompt_id)
        if not self._home:
            raise ValueError(f"no clip in the {len(clip_sets)} clip sets given to train on")
        shapes = {str(c.folder): tuple(c.latents([c.samples[0].sample_id]).shape[1:]) for c in clip_sets if c.samples}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"clip sets whose latents differ in shape cannot be trained on together: {shapes}")
        self.latent_shape = next(iter(shapes.values()))  # (C, F, h, w)
        layouts = {str(c.folder): _layout(c) for c in clip_sets if c.samples}
        if any(layout != next(iter(layouts.values())) for layout in layouts.values()):
            raise ValueError(f"clip sets whose conditions differ in shape cannot be trained on together: {layouts}")

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._home

    def read(self, sample_ids: Sequence[str], dropped: Tensor) -> ClipTensors:
        """The clips in this order; `dropped` (B,) says which have the empty or the negative caption."""
        latents, conditions = [], []
        for sample_id, drop in zip(sample_ids, dropped.tolist(), strict=True):
            clip_set, prompt_id = self._home[sample_id]
            latents.append(clip_set.latents([sample_id]))
            row = {name: tensor[0] for name, tensor in clip_set.conditions([prompt_id]).items()}
            conditions.append(row | self._caption_of(clip_set) if drop else row)
        return ClipTensors(torch.cat(latents), stacked(conditions))

    def _caption_of(self, clip_set: ClipSet) -> dict[str, Tensor]:
        dropped = clip_set.negative if self._dropped_caption == "negative" else clip_set.empty
        assert dropped is not None  # the constructor looked
        return dropped


def _layout(clip_set: ClipSet) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the conditions of a prompt, the same for all prompts of a set."""
    conditions = clip_set.conditions([clip_set.samples[0].prompt_id])
    return {name: tuple(tensor.shape[1:]) for name, tensor in sorted(conditions.items())}
