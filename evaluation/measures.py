"""What is averaged over a policy's clips, as arrays in the one order that all policies share."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from data.records import Sample
from evaluation.selection import TopK, take_top_k
from evaluation.sets import EvaluationSet, accepted

ALL = "all"  # the split that holds every clip

Values = dict[str, np.ndarray]  # judge -> (N,) float, nan where not known or not counted
Measured = dict[str, Values]  # by key of MEASURES


class Measure(NamedTuple):
    """What is averaged over clips."""

    key: str
    mean: str  # its mean is called
    minus: str  # prefix of the key of its differences, before the other's name
    selects: bool  # counts other clips under each policy, so that prompts can be paired and clips cannot


MEASURES = (
    Measure("accept", "rate", "minus_", selects=False),
    Measure("scores", "mean", "score_minus_", selects=False),
    Measure("top_k", "rate", "top_k_minus_", selects=True),
    Measure("top_k_scores", "mean", "top_k_score_minus_", selects=True),
)


@dataclass(frozen=True)
class Clips:
    """What all policies' clips have in common."""

    samples: tuple[Sample, ...]

    @cached_property
    def prompt_ids(self) -> np.ndarray:
        """(N,) str."""
        return np.array([sample.prompt_id for sample in self.samples])

    @cached_property
    def prompts(self) -> np.ndarray:
        """(N,) int, a number for each prompt: every interval sorts them, and strings are slow to sort."""
        return np.unique(self.prompt_ids, return_inverse=True)[1]

    @cached_property
    def cells(self) -> dict[str | None, dict[str, np.ndarray]]:
        """(N,) bool by category (None: any) and split, for the splits that have clips of it, and all."""
        categories = np.array([sample.category for sample in self.samples])
        splits = np.array([sample.split for sample in self.samples])
        found: dict[str | None, dict[str, np.ndarray]] = {}
        for category in (None, *map(str, np.unique(categories))):
            inside = np.ones(len(splits), bool) if category is None else categories == category
            found[category] = {str(split): inside & (splits == split) for split in np.unique(splits[inside])}
            found[category][ALL] = inside
        return found


def measure(
    name: str,
    one: EvaluationSet,
    labelling: Collection[str],
    ranked: Mapping[str, Mapping[str, np.ndarray]],
    clips: Clips,
    top_k: TopK | None,
) -> Measured:
    """What is averaged of the policy `name`.

    labelling: the judges that accept and reject; others measure. ranked: judge -> policy -> (N,),
    `evaluation.sets.scores`.
    """
    found: Measured = {
        "accept": {judge: accepted(one.labels[judge]) for judge in labelling},
        "scores": {
            judge: by_policy[name]
            for judge, by_policy in ranked.items()
            if judge not in labelling or _is_graded(by_policy)
        },
    }
    if top_k is not None:
        taken = {judge: take_top_k(ranked[top_k.by or judge][name], clips.prompt_ids, top_k.k) for judge in ranked}
        found["top_k"] = {judge: only(values, taken[judge]) for judge, values in found["accept"].items()}
        found["top_k_scores"] = {judge: only(values, taken[judge]) for judge, values in found["scores"].items()}
    return found


def only(values: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """(N,) float, the values of the clips that are taken, nan for the others."""
    return np.where(taken, values, np.nan)


def _is_graded(by_policy: Mapping[str, np.ndarray]) -> bool:
    """Whether a judge's scores have values besides 0 and 1, whose mean the accept rate is already."""
    known = np.concatenate([values[~np.isnan(values)] for values in by_policy.values()])
    return not np.isin(known, (0, 1)).all()
