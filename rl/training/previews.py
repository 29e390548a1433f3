"""Pictures of a policy while it is trained: clips of the same prompts and noise each time."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster import devices
from data.records import Sample
from data.store import ClipSet
from data.video import prompt_caption, save_sheet, small_frames
from generators.core.generator import Generator, NonFiniteClipError
from rl.training.config import PreviewConfig

logger = logging.getLogger(__name__)


class _PreviewClip(NamedTuple):
    """A clip that is drawn: its row, and the clip set that has its conditions."""

    sample: Sample
    clip_set: ClipSet

    @property
    def caption(self) -> str:
        return prompt_caption(self.sample)


class Previews:
    """Contact sheets of the policy of the moment, a clip for each of some prompts.

    A prompt's clip is its first one in the clip sets, on the same noise, so the first sheet shows what is trained on.
    Under torchrun each process samples the clips of its own prompts, as many as the others: one may be sampled twice,
    because processes that share shards of the weights must run alike. No draw of the training's is used up.
    """

    def __init__(self, generator: Generator, clip_sets: Sequence[ClipSet], config: PreviewConfig) -> None:
        """generator: with the parts SAMPLING."""
        self.every = config.every
        self._generator, self._config = generator, config
        first: dict[str, _PreviewClip] = {}
        for clip_set in clip_sets:
            for sample in clip_set.samples:
                first.setdefault(sample.prompt_id, _PreviewClip(sample, clip_set))
        clips, count = list(first.values()), min(config.prompts, len(first))
        self._clips = [clips[place * len(clips) // count] for place in range(count)]  # evenly spread

    def draw(self, path: Path | None) -> None:
        """Sample the clips and write their sheet; on every process, of which one has a path."""
        mine = [self._clips[place] for place in devices.even_slice_of_rank(len(self._clips))]
        drawn = dict(row for one in mine for row in self._sampled(one))
        of_all = {name: frames for own in devices.gather_over_ranks(drawn) for name, frames in own.items()}
        rows = [(one.caption, of_all[one.sample.sample_id]) for one in self._clips if one.sample.sample_id in of_all]
        if path and rows:
            save_sheet(rows, path)

    def _sampled(self, clip: _PreviewClip) -> Iterator[tuple[str, np.ndarray]]:
        """sample_id and small frames of a clip; none where it is infinite or NaN, with a warning."""
        generator, how, sample, clip_set = self._generator, self._config, *clip
        latents = generator.sample(
            clip_set.conditions([sample.prompt_id]),
            clip_set.empty if clip_set.negative is None else clip_set.negative,
            generator.draw_noise([sample.seed], generator.latent_shape),
            how.steps,
            how.guidance,
            how.solver,
        )
        try:
            yield sample.sample_id, small_frames(generator.decode(latents)[0].numpy())
        except NonFiniteClipError as error:
            logger.warning("preview of %s is left out: its %s are infinite or NaN", clip.caption, error.what)
