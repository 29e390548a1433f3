"""What training changed, in one picture: clips that a judge rejects from the base and accepts from a policy."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.video import contact_sheet, is_writable, prompt_caption, read_video, sample_frames
from evaluation.accept import BASE
from evaluation.sets import EvaluationSet, accepted
from report.table import judges

logger = logging.getLogger(__name__)

FRAMES = 5  # of each clip, evenly spaced
Pair = tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]  # a caption and frames, of the base and of a policy
HEIGHT = 96  # pixels of a frame in the picture, about


class Turned(NamedTuple):
    """How the verdicts of one judge differ between the base's clips and a policy's, on the same prompts and noise."""

    policy: str
    judge: str
    clips: int  # with a verdict on both
    gained: int  # rejected of the base, accepted of the policy
    lost: int  # the other way


def write_turned(summary: Mapping[str, Any], sets: Mapping[str, EvaluationSet], path: Path) -> Turned | None:
    """Write a PNG of one such clip a category, base beside the policy that the first judge accepts most.

    summary: of a policy with several seeds, over them (`report.over_seeds`); the clips are the first's.
    The clip is the first by prompt (test prompts first) and seed that can be read. None, and no picture, where no
    verdict was gained.
    """
    judge = judges(summary)[0]
    policies = {name: summary["policies"][name] for name in sets if name != BASE and name in summary["policies"]}
    rates = {name: one["accept"][judge]["all"]["rate"] for name, one in policies.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    if not known:
        return None
    best = max(known, key=lambda name: known[name])
    base, policy = sets[BASE], sets[best]
    change = accepted(policy.labels[judge]) - accepted(base.labels[judge])  # nan where either is unknown
    gained = np.flatnonzero(change == 1)
    if not len(gained):
        return None
    first: dict[str, Pair] = {}
    for place in sorted(gained, key=lambda i: (base.samples[i].split != "test", i)):
        category = base.samples[place].category
        if category not in first:
            try:
                first[category] = _pair(base, policy, best, judge, int(place))
            except ValueError as error:
                logger.warning("%s; another clip of category %s is drawn instead", error, category)
    if not first:
        return None
    rows = [row for _, pair in sorted(first.items()) for row in pair]
    scale = max(1, HEIGHT // rows[0][1].shape[1])
    contact_sheet(rows, columns=2, scale=scale).save(path)
    return Turned(best, judge, int((~np.isnan(change)).sum()), len(gained), int((change == -1).sum()))


def _pair(base: EvaluationSet, policy: EvaluationSet, name: str, judge: str, place: int) -> Pair:
    """Captions and frames of the base's and the policy's clip at a place."""
    sample, reason = base.samples[place], base.labels[judge][place].reason
    rejected = f"{BASE}: rejected by {judge}" + (f", {reason[:80]}" if reason and is_writable(reason[:80]) else "")
    accepted_as = f"{name}: accepted ({prompt_caption(sample)})"
    return (rejected, _frames(base, place)), (accepted_as, _frames(policy, place))


def _frames(one: EvaluationSet, place: int) -> np.ndarray:
    """uint8 (FRAMES, h, w, 3), every k-th pixel where the clip is larger than HEIGHT."""
    frames = read_video(one.folder / one.samples[place].file_name)
    every = max(1, frames.shape[1] // HEIGHT)
    return frames[sample_frames(len(frames), min(FRAMES, len(frames))), ::every, ::every]
