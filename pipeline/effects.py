"""What stage `effects` puts together: motion and diversity of a policy's clips, and how far it is from the base."""

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.configs import DriftConfig

if TYPE_CHECKING:  # torch takes seconds to import
    from cluster.pool import Pool
    from data.records import ClipDrift, ClipMotion, Sample
    from data.store import ClipSet
    from evaluation.effects.rows import Effects
    from feedback.metrics.flow import Motion
    from rl.drift import Load

logger = logging.getLogger(__name__)

TOGETHER = 32  # clips of a unit of work; one of them is in memory at a time


class _FlowMeter:
    """Measures the motion of some of a set's clips."""

    def __init__(self, clip_set: "ClipSet", flow: "Motion") -> None:
        self.clip_set, self.flow = clip_set, flow

    def work(self, samples: "Sequence[Sample]") -> list[float]:
        """A number for each clip; nan for a clip of one frame."""
        return [value for sample in samples for value in self.flow.score([self.clip_set.frames(sample)], [])]


def measure_motion(clip_set: "ClipSet", flow: "Motion") -> "list[ClipMotion]":
    """How much moves in each clip, in the order of the set; null for a clip of one frame. On every core."""
    from tqdm import tqdm

    from cluster.devices import fit_threads
    from cluster.forks import Forks
    from cluster.pool import Unit
    from data.records import ClipMotion

    fit_threads(())  # a fork a core
    samples = clip_set.samples
    units = [
        Unit(at, f"motion of clips from {samples[at].sample_id}", samples[at : at + TOGETHER])
        for at in range(0, len(samples), TOGETHER)
    ]
    values: dict[int, list[float]] = {}
    with (
        tqdm(total=len(samples), unit="clip", desc="motion") as progress,
        closing(Forks().run(partial(_FlowMeter, clip_set, flow), units)) as results,
    ):
        for at, found in results:
            values[at] = found
            progress.update(len(found))
    in_order = [value for at in sorted(values) for value in values[at]]
    return [
        ClipMotion(sample.sample_id, None if isnan(value) else value)
        for sample, value in zip(samples, in_order, strict=True)
    ]


def measure_drift(
    base: "Load",
    policy: "Load",
    changed: bool,
    clips: "ClipSet",
    config: DriftConfig | None,
    batch_size: int,
    pool: "Pool",
) -> "list[ClipDrift]":
    """The policy's drift on the base's first clips of each prompt; none where config is None.

    changed: whether the policy has weights of its own. One without, such as base, is 0 everywhere, and loads no
    generator. batch_size: clips a forward.
    """
    if config is None:
        return []
    from data.records import ClipDrift
    from rl.drift import drift, middles

    chosen = first_clips(clips.samples, config.clips)
    if not changed:
        return [ClipDrift(sample.sample_id, t, 0.0) for sample in chosen for t in middles(config.times)]
    return drift(base, policy, clips, chosen, config.times, batch_size, config.seed, pool)


def first_clips(samples: "Sequence[Sample]", count: int) -> "list[Sample]":
    """The first `count` clips of each prompt, in the order of the set."""
    seen: dict[str, int] = {}
    found = []
    for sample in samples:
        seen[sample.prompt_id] = seen.get(sample.prompt_id, 0) + 1
        if seen[sample.prompt_id] <= count:
            found.append(sample)
    return found


def figures(effects: "Effects") -> dict[str, Any]:
    """The means of a policy, for its file in metrics/; null where nothing is known."""
    means: dict[str, list[float | None]] = {
        "motion": [row.motion for row in effects.motion],
        "vendi": [row.vendi for row in effects.spread],
        "distance": [row.distance for row in effects.spread],
        "drift": [*(row.squared for row in effects.drift)],
    }
    known = {name: [value for value in values if value is not None] for name, values in means.items()}
    return {name: fmean(values) if values else None for name, values in known.items()}


def has_weights(policy: Path) -> bool:
    """Whether a policy's folder has weights of a denoiser; base and its extensions have none."""
    return any(any(policy.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors"))
