"""Pictures of a policy while it is trained: clips of the same prompts and noise each time."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster import devices
from data.records import Sample
from data.store import ClipSet
from data.video import is_writable, save_sheet, small_frames
from generators.core.conditions import stacked
from generators.core.generator import Generator, NonFiniteClipError
from generators.core.rollout import Sampling
from rl.training.config import PreviewConfig

logger = logging.getLogger(__name__)


class _Clip(NamedTuple):
    """A clip that is drawn: its row, and the set that says what the generator is told."""

    sample: Sample
    clip_set: ClipSet

    @property
    def caption(self) -> str:
        return self.sample.prompt if is_writable(self.sample.prompt) else self.sample.prompt_id


class Previews:
    """Contact sheets of the policy of the moment, a clip for each of some prompts.

    A prompt's clip is its first one in the clip sets, on the same noise, so the first sheet shows what is trained on.
    Under torchrun each process samples the clips of its own prompts. No draw of the training's is used up.
    """

    def __init__(
        self, generator: Generator, clip_sets: Sequence[ClipSet], config: PreviewConfig, sampling: Sampling
    ) -> None:
        """generator: with the parts SAMPLING. sampling: as the clips of the sets were sampled."""
        self.every = config.every
        self._generator, self._sampling = generator, sampling
        first: dict[str, _Clip] = {}
        for clip_set in clip_sets:
            for sample in clip_set.samples:
                first.setdefault(sample.prompt_id, _Clip(sample, clip_set))
        clips, count = list(first.values()), min(config.prompts, len(first))
        self._clips = [clips[place * len(clips) // count] for place in range(count)]  # evenly spread

    def draw(self, path: Path | None) -> None:
        """Sample the clips and write their sheet; on every process, of which one has a path."""
        mine = self._clips[devices.rank() :: devices.world_size()]
        size = self._sampling.batch_size
        drawn = dict(row for at in range(0, len(mine), size) for row in self._sampled(mine[at : at + size]))
        of_all = {name: frames for own in devices.gather_over_ranks(drawn) for name, frames in own.items()}
        rows = [(one.caption, of_all[one.sample.sample_id]) for one in self._clips if one.sample.sample_id in of_all]
        if path and rows:
            save_sheet(rows, path)

    def _sampled(self, clips: Sequence[_Clip]) -> list[tuple[str, np.ndarray]]:
        """sample_id and small frames of each clip; one that is infinite or NaN is left out, with a warning."""
        generator, how, clip_set = self._generator, self._sampling, clips[0].clip_set
        told = [{n: t[0] for n, t in one.clip_set.conditions([one.sample.prompt_id]).items()} for one in clips]
        latents = generator.sample(
            stacked(told),
            clip_set.empty if clip_set.negative is None else clip_set.negative,
            generator.draw_noise([one.sample.seed for one in clips], generator.latent_shape),
            how.steps,
            how.guidance,
            how.solver,
        )
        found = []
        for one, own in zip(clips, latents.split(1), strict=True):  # a clip at a time: decoding is what takes memory
            try:
                found.append((one.sample.sample_id, small_frames(generator.decode(own)[0].numpy())))
            except NonFiniteClipError as error:
                logger.warning("preview of %s is left out: its %s are infinite or NaN", one.caption, error.what)
        return found
