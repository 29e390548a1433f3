"""The random choices of a training step: its rows, noise, timesteps and dropped captions.

Every draw is a function of (seed, step, place in the batch) alone. A resumed run needs no generator state, and the
number of processes or micro-batches changes nothing that is drawn.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from data.store import ClipSet
from rl.training.timesteps import Timesteps


class Draws(NamedTuple):
    """The random part of a batch of rows, on the CPU."""

    t: Tensor  # (B,) in (0, 1)
    noise: Tensor  # (B, C, F, h, w)
    dropped: Tensor  # (B,) bool, whether the row is trained with the empty caption


class ClipTensors(NamedTuple):
    """The tensors of a batch of clips, on the CPU."""

    latents: Tensor  # (B, C, F, h, w) float32, clean
    embeddings: Tensor  # (B, L, D) float32
    conditioning: Tensor | None  # (B, c, F, h, w) float32


def rows_of_step(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Indices of the rows of one step: pass after pass over all `count` rows, each in a fresh order."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [_order_of_pass(seed, place // count, count)[place % count] for place in places]


@lru_cache(maxsize=2)
def _order_of_pass(seed: int, number: int, count: int) -> list[int]:
    return torch.randperm(count, generator=generator_at(seed, "order", number)).tolist()


def draw(
    seed: int, step: int, places: Sequence[int], shape: Sequence[int], timesteps: Timesteps, caption_dropout: float
) -> Draws:
    """Timestep, noise and caption dropout of the rows at these places of a step's batch, a generator each.

    shape: (C, F, h, w) of a clip's latents; caption_dropout: probability of the empty caption.
    """
    t, noise, dropped = [], [], []
    for place in places:
        generator = generator_at(seed, "draw", step, place)
        t.append(timesteps(generator, 1))
        dropped.append(torch.rand(1, generator=generator) < caption_dropout)
        noise.append(torch.randn(*shape, generator=generator))
    return Draws(torch.cat(t), torch.stack(noise), torch.cat(dropped))


def generator_at(*key: int | str) -> torch.Generator:
    """CPU generator seeded by a hash of the key, so that neighbouring keys give unrelated streams."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


class ClipReader:
    """Latents and embeddings of clips by sample_id, from the clip set that holds them.

    Nothing is encoded: shards only, so training loads neither the VAE nor the text encoder.
    """

    def __init__(self, clip_sets: Sequence[ClipSet]) -> None:
        """Raises ValueError where two sets share a sample_id, where latents differ in shape, or without a clip."""
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

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._home

    def read(self, sample_ids: Sequence[str], dropped: Tensor) -> ClipTensors:
        """The clips in this order; `dropped` (B,) says which get the empty caption."""
        latents, embeddings, conditioning = [], [], []
        for sample_id, drop in zip(sample_ids, dropped.tolist(), strict=True):
            clip_set, prompt_id = self._home[sample_id]
            latents.append(clip_set.latents([sample_id]))
            embeddings.append(clip_set.empty_embedding[None] if drop else clip_set.embeddings([prompt_id]))
            conditioning.append(clip_set.conditioning([sample_id]))
        known = [tensor for tensor in conditioning if tensor is not None]
        return ClipTensors(torch.cat(latents), torch.cat(embeddings), torch.cat(known) if known else None)
