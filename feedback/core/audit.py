"""Judges known-answer clips with a source: once for the labels, then again to measure how stable the labels are."""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.labels import read_verdicts
from data.records import Label, Sample, Verdict
from data.store import ClipSet
from data.video import sample_frames
from feedback.core.agreement import vote_agreement
from feedback.core.label import label_clip_set, requests_for
from feedback.core.rubric import combine
from feedback.core.source import UNRATED, LabelError, Source, raters_of, rubrics_of, votes_of


class Judgements(NamedTuple):
    """Clips and a source's labels of them, in the same order; verdicts ordered by clip, question and vote."""

    samples: list[Sample]
    labels: list[Label]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Asking:
    """How clips are judged. Each set of answers becomes a label folder `out/<what>`; resume state is in `work`."""

    work: Path
    out: Path
    batch_size: int
    votes: int  # votes per label, for a source that samples its answer
    max_failed: float

    def judge(self, clip_set: ClipSet, source: Source, what: str, votes: int = 1) -> Judgements:
        """Labels from `self.votes` votes, as in stage `label`; at least `votes` votes if the source samples.

        Raises the errors of label_clip_set, such as ValueError for a source that answers about no clip.
        """
        requested = 1 if source.repeatable else max(self.votes, votes)
        counted = votes_of(source, 1 if source.repeatable else self.votes)
        work, out = self.work / what, self.out / what
        label_clip_set(clip_set, source, work, out, self.batch_size, requested, self.max_failed)
        verdicts = read_verdicts(out)
        of_clip: dict[str, list[Verdict]] = {sample.sample_id: [] for sample in clip_set.samples}
        for row in verdicts:
            if row.vote < counted:
                of_clip[row.sample_id].append(row)
        labels = [combine(of_clip[sample.sample_id], source.rubric.of(sample.prompt)) for sample in clip_set.samples]
        return Judgements(clip_set.samples, labels, verdicts)


def vote_stability(judged: Judgements, source: Source) -> dict[str, Any] | str:
    """Agreement of the labels that each single vote makes (feedback.core.agreement), or why it is unknown."""
    if source.repeatable:
        return f"{source.name} answers the same however often it is asked"
    if all(row.vote == 0 for row in judged.verdicts):
        return "one vote was asked for: audit.votes is 1"
    return asdict(vote_agreement(judged.verdicts, rubrics_of(source, judged.samples)).label)


def with_other_frames(source: Source, whole_clips: bool, samples: Sequence[Sample], frames: int | None) -> Source | str:
    """A copy of the source that sees `frames` frames of each clip, or the reason why that is impossible.

    whole_clips: whether the source is sent whole clips. The rubric's texts stay the same, even if they name a number of
        frames.
    """
    current = source.rubric.frames
    if frames is None:
        return "audit.frames is null"
    if raters_of(source):
        return f"{source.name} are people, who are shown the clip"
    if whole_clips:
        return f"{source.name} is sent whole clips"
    if current is None:
        return f"{source.name} chooses no frames: the rubric {source.rubric.name} shows all"
    if all(sample_frames(one.num_frames, current) == sample_frames(one.num_frames, frames) for one in samples):
        return f"{frames} frames of these clips are those that the rubric shows already"
    other: Any = copy.copy(source)
    other.rubric = replace(source.rubric, frames=frames)
    changed: Source = other
    return changed


def frame_stability(before: Judgements, after: Judgements) -> dict[str, Any]:
    """n: number of clips labelled both times; changed: fraction of them whose label differs, None if n is 0."""
    pairs = [(one.label, two.label) for one, two in zip(before.labels, after.labels, strict=True)]
    known = [one != two for one, two in pairs if one is not None and two is not None]
    return {"changed": sum(known) / len(known) if known else None, "n": len(known)}


def rated(people: Source, clip_set: ClipSet) -> list[Label]:
    """The labels of the clips of a set that every rater of a `human` source, or under `leave_out` one, has rated."""
    labels = []
    for request in requests_for(clip_set, 1):
        with contextlib.suppress(LabelError):  # not rated yet
            for rows in people.judge([request]):
                if not all((row.error or "").startswith(UNRATED) for row in rows):
                    labels.append(combine(rows, people.rubric.of(request.sample.prompt)))
    return labels
