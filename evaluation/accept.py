"""Accept rates of policies under judges, and how they differ from the base's and from their start's."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.manifest import read_manifest
from data.records import Label, Sample, by_id, read_rows
from evaluation.intervals import Estimate, estimate

logger = logging.getLogger(__name__)

BASE = "base"
ALL = "all"  # the split that holds every clip
ROUND_COUNTS = ("samples", "accepted", "rejected", "unlabelled")

Outcomes = dict[str, np.ndarray]  # judge -> (N,) from `accepted`


@dataclass(frozen=True)
class EvaluationSet:
    """One policy's evaluation clips and what each judge said of them, in one order for all policies."""

    folder: Path  # of the clip set
    samples: tuple[Sample, ...]
    labels: dict[str, tuple[Label, ...]]  # judge -> one label a sample, in the same order
    agreement: dict[str, Any] = field(default_factory=dict)  # judge -> of its votes, where it had more than one


@dataclass(frozen=True)
class Clips:
    """What all policies' clips have in common, as arrays (N,)."""

    prompts: np.ndarray
    splits: np.ndarray
    categories: np.ndarray

    def chosen(self, split: str, category: str | None = None) -> np.ndarray:
        """(N,) bool, the clips of a split (or of all) and a category (or of any)."""
        in_split = np.ones(len(self.splits), bool) if split == ALL else self.splits == split
        return in_split if category is None else in_split & (self.categories == category)


def load_set(folder: Path, judges: Sequence[str]) -> EvaluationSet:
    """runs/eval/<policy>, ordered by prompt and seed.

    Raises StoreError for a half-written folder, ValueError where a label table is not of these clips.
    """
    read_manifest(folder / "samples", "clip_set")
    rows = read_rows(folder / "samples" / "metadata.parquet", Sample)
    samples = tuple(sorted(rows, key=lambda sample: (sample.prompt_id, sample.seed)))
    labels = {judge: _labels(folder / "labels" / judge, samples) for judge in judges}
    facts = {judge: read_manifest(folder / "labels" / judge, "labels")["facts"] for judge in judges}
    agreement = {judge: found for judge in judges if (found := facts[judge].get("agreement"))}
    return EvaluationSet(folder / "samples", samples, labels, agreement)


def _labels(folder: Path, samples: Sequence[Sample]) -> tuple[Label, ...]:
    read_manifest(folder, "labels")
    labels = by_id(read_rows(folder / "labels.parquet", Label))
    if labels.keys() != {sample.sample_id for sample in samples}:
        raise ValueError(f"{folder}: {len(labels)} labels are not of the {len(samples)} clips beside them")
    return tuple(labels[sample.sample_id] for sample in samples)


def accepted(labels: Sequence[Label]) -> np.ndarray:
    """(N,) float: 1 accepted, 0 rejected, nan unlabelled."""
    return np.array([np.nan if label.label is None else float(label.label) for label in labels])


def check_paired(sets: Mapping[str, EvaluationSet]) -> None:
    """Raises ValueError naming the first policy and clip not made as every other policy's: same prompt, seed, size."""
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
                    f"{other}'s clip {two.sample_id} was made from {_made_from(two)}, {first}'s {one.sample_id} from "
                    f"{_made_from(one)}: not paired; run eval-generate for both with the same evaluate section"
                )


def _made_from(sample: Sample) -> tuple:
    return (
        f"prompt {sample.prompt_id} ({sample.prompt})",
        f"seed {sample.seed}",
        f"{sample.num_frames} frames of {sample.height}x{sample.width}, {sample.fps} fps",
    )


def summarise(
    sets: Mapping[str, EvaluationSet],
    starts: Mapping[str, str],
    rounds: Mapping[str, Mapping[str, Any]],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """What summary.json holds; equal inputs give an equal summary.

    sets: by policy, base among them. starts: policy -> the policy it was trained from. rounds: name -> counts.
    draws, seed: of the bootstrap.

        policies.<name>.accept.<judge>.<split>        rate, low, high, n (clips labelled)
        policies.<name>.unlabelled.<judge>.<split>    clips left out of the rate
        policies.<name>.minus_base.<judge>.<split>    diff, low, high: same prompts and seeds, clips known to both
        policies.<name>.minus_start.<judge>.<split>   likewise, to the policy it was trained from
        policies.<name>.categories.<category>         accept, minus_base and minus_start again
        rounds.<name>                                 samples, accepted, rejected, unlabelled

    Only where a clip had more than one vote (feedback.agreement says what is computed):

        policies.<name>.agreement.<judge>             label, answers, questions.<question>, each with clips,
        rounds.<name>.agreement                       not_unanimous, observed, kappa
    """
    check_paired(sets)
    samples = sets[BASE].samples
    clips = Clips(
        prompts=np.array([sample.prompt_id for sample in samples]),
        splits=np.array([sample.split for sample in samples]),
        categories=np.array([sample.category for sample in samples]),
    )
    outcomes = {name: {judge: accepted(labels) for judge, labels in one.labels.items()} for name, one in sets.items()}
    policies = {
        name: _policy(name, outcomes, starts.get(name), clips, draws, seed) | _agreement(one.agreement)
        for name, one in sets.items()
    }
    return {
        "policies": policies,
        "rounds": {
            name: {key: counts[key] for key in ROUND_COUNTS} | _agreement(counts.get("agreement"))
            for name, counts in rounds.items()
        },
        "bootstrap": {"draws": draws, "seed": seed, "prompts": len(np.unique(clips.prompts)), "clips": len(samples)},
    }


def as_json(summary: Mapping[str, Any]) -> str:
    """A summary as it is written to disk."""
    return json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """policy -> judge -> split -> accept rate: what `dvc metrics` compares between runs."""
    return {
        name: {judge: {split: one["rate"] for split, one in found.items()} for judge, found in policy["accept"].items()}
        for name, policy in summary["policies"].items()
    }


def _policy(
    name: str, outcomes: Mapping[str, Outcomes], start: str | None, clips: Clips, draws: int, seed: int
) -> dict[str, Any]:
    own = outcomes[name]
    compared = {"minus_base": BASE} if name != BASE else {}
    if start is not None and start in outcomes:
        compared["minus_start"] = start
    elif start is not None:
        logger.warning("%s was trained from %s, which is not in evaluate.policies: no difference to it", name, start)

    def tables(category: str | None) -> dict[str, Any]:
        rates = {"accept": _rates(own, clips, category, draws, seed)}
        for key, other in compared.items():
            gaps = {judge: own[judge] - outcomes[other][judge] for judge in own}
            rates[key] = _differences(gaps, clips, category, draws, seed)
        return rates

    return {
        "start": start,
        **tables(None),
        "unlabelled": {
            judge: {split: int(np.isnan(values[clips.chosen(split)]).sum()) for split in _splits(clips, None)}
            for judge, values in own.items()
        },
        "categories": {category: tables(category) for category in _unique(clips.categories)},
    }


def _agreement(found: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"agreement": found} if found else {}


def _rates(outcomes: Outcomes, clips: Clips, category: str | None, draws: int, seed: int) -> dict[str, Any]:
    return {
        judge: {
            split: {"rate": found.mean, "low": found.low, "high": found.high, "n": found.n}
            for split, found in _estimates(values, clips, category, draws, seed)
        }
        for judge, values in outcomes.items()
    }


def _differences(gaps: Outcomes, clips: Clips, category: str | None, draws: int, seed: int) -> dict[str, Any]:
    return {
        judge: {
            split: {"diff": found.mean, "low": found.low, "high": found.high}
            for split, found in _estimates(values, clips, category, draws, seed)
        }
        for judge, values in gaps.items()
    }


def _estimates(
    values: np.ndarray, clips: Clips, category: str | None, draws: int, seed: int
) -> Iterator[tuple[str, Estimate]]:
    for split in _splits(clips, category):
        chosen = clips.chosen(split, category)
        yield split, estimate(values[chosen], clips.prompts[chosen], draws, seed)


def _splits(clips: Clips, category: str | None) -> list[str]:
    """The splits that have clips of this category, and all."""
    return [*_unique(clips.splits[clips.chosen(ALL, category)]), ALL]


def _unique(names: np.ndarray) -> list[str]:
    return [str(name) for name in np.unique(names)]
