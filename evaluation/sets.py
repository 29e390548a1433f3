"""Evaluation sets: the clips of every policy and each judge's labels, as arrays."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data.labels import VERDICTS, LabelSet, open_labels, read_samples
from data.records import Label, Sample
from evaluation.questions import Answers, read_answers

SCORES = ("score", "p_accept", "label")  # columns of a label table, the most informative first


@dataclass(frozen=True)
class EvaluationSet:
    """One policy's evaluation clips and each judge's labels, in one order for all policies."""

    folder: Path  # of the clip set
    samples: tuple[Sample, ...]
    labels: dict[str, tuple[Label, ...]]  # judge -> one label a sample, in the same order
    agreement: dict[str, Any] = field(default_factory=dict)  # judge -> agreement of its votes, if several
    answers: dict[str, Answers] = field(default_factory=dict)  # of judges that ask several questions


def load_set(folder: Path, judges: Sequence[str]) -> EvaluationSet:
    """runs/eval/<policy>, ordered by prompt and seed.

    A source of several measures, such as kind `metrics`, stands as a judge for each: <judge>/<measure>.
    Raises StoreError for a half-written folder, ValueError for one that is missing and where a label table is not of
    these clips.
    """
    _check_made(folder / "samples", f"{folder.name} has no evaluation clips", f"eval-generate@{folder.name}")
    clips = folder / "samples"
    samples = tuple(sorted(read_samples(clips), key=lambda sample: (sample.prompt_id, sample.seed)))
    labels: dict[str, tuple[Label, ...]] = {}
    agreement: dict[str, Any] = {}
    answers: dict[str, Answers] = {}
    for judge in judges:
        labelled = _labels(folder, judge, samples)
        measures = labelled.facts.get("measures", ())
        if len(measures) > 1:
            labels |= {f"{judge}/{name}": rows for name, rows in _measured(labelled.folder, measures, samples).items()}
        else:
            labels[judge] = tuple(labelled.labels)
        if found := labelled.facts.get("agreement"):
            agreement[judge] = found
        if of_judge := read_answers(labelled.folder, samples):
            answers[judge] = of_judge
    return EvaluationSet(clips, samples, labels, agreement, answers)


def _labels(policy: Path, judge: str, samples: Sequence[Sample]) -> LabelSet:
    folder = policy / "labels" / judge
    _check_made(folder, f"{policy.name}'s clips have no labels by {judge}", f"eval-label@{policy.name}-{judge}")
    return open_labels(folder, policy / "samples", samples)


def _measured(folder: Path, measures: Sequence[str], samples: Sequence[Sample]) -> dict[str, tuple[Label, ...]]:
    """For each measure of a source a label of its score alone, for each sample in order."""
    columns = ["sample_id", "question", "score", "error"]
    rows = pq.read_table(folder / VERDICTS, columns=columns).to_pylist()
    found = {(row["question"], row["sample_id"]): row for row in rows}
    return {
        measure: tuple(_scored(found[measure, sample.sample_id], folder.name) for sample in samples)
        for measure in measures
    }


def _scored(row: Mapping[str, Any], source: str) -> Label:
    null = row["score"] is None
    return Label(row["sample_id"], source, None, None, row["score"], votes=1, nulls=int(null), reason=row["error"])


def _check_made(folder: Path, missing: str, stage: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there: {missing}; `dvc repro {shlex.quote(stage)}` makes them")


def accepted(labels: Iterable[Label]) -> np.ndarray:
    """(N,) float: 1 accepted, 0 rejected, nan unlabelled."""
    return _column(labels, "label")


def scores(sets: Mapping[str, EvaluationSet], judge: str) -> dict[str, np.ndarray]:
    """By policy (N,) float, the values that rank clips by a judge: the higher the better, nan where it gave none.

    The score where the judge measures, otherwise the probability of acceptance, otherwise the label as 1 or 0. It is
    one column for all clips of all policies, because the columns' values do not compare.
    """
    for name in SCORES:
        found = {policy: _column(one.labels[judge], name) for policy, one in sets.items()}
        if not all(np.isnan(values).all() for values in found.values()):
            return found
    return found


def _column(labels: Iterable[Label], name: str) -> np.ndarray:
    values = (getattr(label, name) for label in labels)
    return np.array([np.nan if value is None else float(value) for value in values])


def check_paired(sets: Mapping[str, EvaluationSet]) -> None:
    """Raises ValueError naming the first policy and clip that differs from the others' in prompt, seed or size."""
    first, *others = sets
    for other in others:
        if len(sets[first].samples) != len(sets[other].samples):
            raise ValueError(
                f"{other} has {len(sets[other].samples)} evaluation clips, {first} has {len(sets[first].samples)}: "
                "not paired; run eval-generate for both with the same evaluate section"
            )
        for one, two in zip(sets[first].samples, sets[other].samples, strict=True):
            if _made_from(one) != _made_from(two):
                raise ValueError(
                    f"{other}'s clip {two.sample_id} was made from {_in_words(two)}, {first}'s {one.sample_id} "
                    f"from {_in_words(one)}: not paired; run eval-generate for both with the same evaluate section"
                )


def _made_from(sample: Sample) -> tuple[Any, ...]:
    return (
        sample.prompt_id,
        sample.prompt,
        sample.seed,
        sample.num_frames,
        sample.height,
        sample.width,
        sample.fps,
    )


def _in_words(sample: Sample) -> str:
    return (
        f"prompt {sample.prompt_id} ({sample.prompt}), seed {sample.seed}, "
        f"{sample.num_frames} frames of {sample.height}x{sample.width}, {sample.fps} fps"
    )
