"""Which of a prompt's clips count: its best k, or the best of every N, by one judge's scores.

Scores are (N,), the higher the better and nan where the judge gave none; prompts (N,) say which prompt each clip is of.
Between equal scores the earlier clip comes first: clips are in the order of their seeds, which is unrelated to quality
and the same for all policies.
"""

from typing import Annotated

import numpy as np
from annotated_types import Ge, MinLen
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count


@dataclass(frozen=True, config=STRICT)
class TopK:
    """Section `evaluate.top_k`."""

    k: Count  # clips of each prompt
    by: str | None  # the judge whose scores rank them; None: the judge that is reported


@dataclass(frozen=True, config=STRICT)
class BestOf:
    """Section `evaluate.best_of`."""

    judge: str  # whose scores choose
    n: Annotated[int, Ge(2)]  # clips that are sampled for each that counts; the best of one clip is that clip
    of: Annotated[tuple[str, ...], MinLen(1)] = ("base",)  # policies of evaluate.policies, a row for each

    def row(self, policy: str) -> str:
        """What its row of a policy's clips is called."""
        return f"{policy} best of {self.n} by {self.judge}"


def take_top_k(scores: np.ndarray, prompts: np.ndarray, k: int) -> np.ndarray:
    """(N,) bool, each prompt's k clips of the highest score.

    A clip without a score is never among them, so a prompt with fewer than k scored clips counts with those.
    Raises ValueError naming a prompt that has fewer than k clips at all: the best of fewer is easier.
    """
    names, index, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    if counts.min() < k:
        raise ValueError(f"prompt {names[counts.argmin()]} has {counts.min()} clips, too few for the top {k}")
    taken: np.ndarray = (_ranks(scores, index) < k) & ~np.isnan(scores)
    return taken


def take_best_of(scores: np.ndarray, prompts: np.ndarray, n: int) -> np.ndarray:
    """(N,) bool, the clip of the highest score in each n consecutive clips of a prompt.

    The clips of an incomplete last group are never taken. Clips without a score come after those
    with one; where none has one the first is taken, because whoever samples n clips uses one of them.
    Raises ValueError naming a prompt that has fewer than n clips.
    """
    names, index, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    if counts.min() < n:
        raise ValueError(f"prompt {names[counts.argmin()]} has {counts.min()} clips, too few for the best of {n}")
    group, whole = _groups_of(index, n)
    best: np.ndarray = (_ranks(scores, group) == 0) & whole
    return best


def at_first_place(values: np.ndarray, taken: np.ndarray, prompts: np.ndarray, n: int) -> np.ndarray:
    """(N,) float, each taken clip's value at the place of the first of its n clips, nan elsewhere.

    taken: as of `take_best_of`. What two policies choose from the same n seeds then stands at one place.
    """
    group, _ = _groups_of(np.unique(prompts, return_inverse=True)[1], n)
    _, first = np.unique(group, return_index=True)
    found = np.full(len(values), np.nan)
    found[first[group[taken]]] = values[taken]
    return found


def _groups_of(index: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int, one number for each n consecutive clips of a prompt, and (N,) bool, whether that group has n."""
    place = _ranks(np.zeros(len(index)), index)
    _, group, counts = np.unique(index * (len(index) + 1) + place // n, return_inverse=True, return_counts=True)
    return group, counts[group] == n


def _ranks(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) int, how many clips of its group come before a clip: 0 is the highest score, the last ones have none."""
    order = np.lexsort((-scores, groups))  # stable, nan last
    found = np.empty(len(scores), int)
    found[order] = np.arange(len(scores)) - np.searchsorted(groups[order], groups[order])
    return found
