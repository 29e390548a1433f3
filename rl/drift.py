"""How far a policy's predictions have moved from the base's: on the base's own clips, without gradient.

What an online run penalises at the steps that it differentiates (rl.online.guards.velocity_distance), measured for
every policy on the same latents, times and noise. Of two steps with one variance s² the KL divergence is the squared
distance of their means over 2 s², which is this distance times a weight of the time; here no time has a weight.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cluster.devices import sent
from cluster.pool import Pool, Unit
from data.records import ClipDrift, Sample
from data.store import ClipSet
from generators.core.conditions import Conditions, given_frames
from generators.core.generator import Generator
from generators.core.process import standard_normal
from rl.objectives import per_sample_error
from rl.training.batches import generator_at

logger = logging.getLogger(__name__)

Load = Callable[[Collection[str]], Generator]  # PARTS -> the generator with those of its parts and a policy's weights


class Probe(NamedTuple):
    """Clips at one time, whose prediction is asked for."""

    sample_ids: tuple[str, ...]
    latents: Tensor  # (B, C, F, h, w) clean, on the CPU
    conditions: Conditions  # (B, …) each
    place: int  # of the time among the times
    t: float  # in (0, 1)
    seed: int


class Predictor:
    """Predicts probes by one policy."""

    def __init__(self, load: Load) -> None:
        self.generator = load(("denoiser",))

    @torch.no_grad()
    def work(self, probe: Probe) -> Tensor:
        """(B, C, F', h, w) float32 on the CPU: the prediction at that time, without guidance and given frames.

        A clip's noise, and the part of it that is predicted, depend on (seed, sample_id, place of the time) alone.
        """
        generator, device = self.generator, self.generator.device
        draws = [generator_at(probe.seed, "drift", name, probe.place) for name in probe.sample_ids]
        noise = torch.stack([standard_normal(one, probe.latents.shape[1:]) for one in draws])
        part = torch.tensor([int(one.integers(generator.num_parts)) for one in draws])
        whole = {name: sent(tensor, device) for name, tensor in probe.conditions.items()}
        clean, conditions = generator.view(sent(probe.latents, device), whole, part)
        noise, _ = generator.view(sent(noise, device), whole, part)
        t = torch.full((len(probe.sample_ids),), probe.t)
        noised = generator.process.noised(clean, noise, sent(t, device))
        prediction = generator.predict(noised, t, conditions)
        return prediction[:, :, given_frames(conditions) :].cpu()


def drift(
    base: Load, policy: Load, clip_set: ClipSet, samples: Sequence[Sample], times: int, batch_size: int, seed: int,
    pool: Pool,
) -> list[ClipDrift]:  # fmt: skip
    """Mean over elements of (policy - base)², for each clip and time.

    clip_set: the base's, with these samples. times: how many, in the middle of so many equal parts of (0, 1).
    batch_size: clips a forward. Both have the base's conditions. The base predicts everything first,
    so that one generator is loaded at a time; its predictions stay in memory, as many floats as the latents of the
    samples times `times`.
    """
    probes = list(_probes(clip_set, samples, times, batch_size, seed))
    units = [
        Unit(n, f"predictions of {probe.sample_ids[0]} at t {probe.t:.2f}", probe) for n, probe in enumerate(probes)
    ]
    predicted: dict[int, Tensor] = {}
    rows: dict[int, list[ClipDrift]] = {}
    with tqdm(total=2 * len(samples) * times, unit="clip", desc="drift") as progress:
        for load in (base, policy):
            with contextlib.closing(pool.run(partial(Predictor, load), units)) as results:
                for number, prediction in results:
                    if load is base:
                        predicted[number] = prediction
                    else:
                        squared = per_sample_error(prediction, predicted.pop(number)).tolist()
                        ids = probes[number].sample_ids
                        rows[number] = [
                            ClipDrift(i, probes[number].t, one) for i, one in zip(ids, squared, strict=True)
                        ]
                    progress.update(len(prediction))
    pool.release()
    return [row for number in sorted(rows) for row in rows[number]]


def middles(times: int) -> list[float]:
    """The middles of so many equal parts of (0, 1): 0.125, 0.375, 0.625, 0.875 for 4."""
    return [(place + 0.5) / times for place in range(times)]


def _probes(clip_set: ClipSet, samples: Sequence[Sample], times: int, batch_size: int, seed: int) -> list[Probe]:
    found = []
    for at in range(0, len(samples), batch_size):
        own = samples[at : at + batch_size]
        ids = tuple(sample.sample_id for sample in own)
        latents, conditions = clip_set.latents(ids).float(), clip_set.conditions([sample.prompt_id for sample in own])
        found += [Probe(ids, latents, conditions, place, t, seed) for place, t in enumerate(middles(times))]
    return found
