"""The accept rate of each checkpoint of a policy under judges, and which of them to keep."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.labels import open_labels, read_samples
from data.records import Sample
from evaluation.intervals import estimate
from evaluation.sets import accepted

LAST, BEST = "last", "best"
RULES = f"{LAST}, {BEST}, or best-of-last-N such as best-of-last-5"
RATE = ("rate", "low", "high", "n")


def candidates_of(rule: str, count: int) -> int:
    """How many of the last `count` checkpoints a rule chooses from. Raises ValueError for a rule that is unknown."""
    if rule in (LAST, BEST):
        return 1 if rule == LAST else count
    if found := re.fullmatch(r"best-of-last-([1-9]\d*)", rule):
        return min(int(found[1]), count)
    raise ValueError(f"keep is {rule!r}; known are {RULES}")


class CheckpointOutcomes(NamedTuple):
    """The clips of all checkpoints, and the judges' labels or scores."""

    clips: list[Sample]
    values: dict[str, np.ndarray]  # judge -> (N,) 1 accepted, 0 rejected; of a metric its score; nan where it is null
    measured: list[str]  # the judges that are metrics: they gave scores and no label


def read_outcomes(samples: Path, labels: Path, judges: Sequence[str]) -> CheckpointOutcomes:
    """The clips of a set with each judge's labels, or a metric's scores.

    labels: folder with one folder a judge. Raises StoreError for a half-written folder, ValueError where labels are
    not of these clips.
    """
    clips = read_samples(samples)
    values, measured = {}, []
    for judge in judges:
        in_order = open_labels(labels / judge, samples, clips).labels
        values[judge] = accepted(in_order)
        if np.isnan(values[judge]).all() and any(label.score is not None for label in in_order):
            values[judge] = np.array([np.nan if label.score is None else label.score for label in in_order])
            measured.append(judge)
    return CheckpointOutcomes(clips, values, measured)


def curve(
    samples: Sequence[Sample],
    outcomes: Mapping[str, np.ndarray],
    steps: Mapping[str, int],
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Accept rates after each step, in the order of `steps`, with 95 % intervals over prompts, null below three.

    outcomes: judge -> (N,) as `read_outcomes` gives them; of a metric, a rate is its mean score.
    steps: Sample.policy -> optimizer steps.
    Each point has `step`, the first judge's rate, low, high and n, and the same again under the name of each other.
    Raises ValueError where the clips are not of exactly these policies.
    """
    policies = np.array([sample.policy for sample in samples])
    prompts = np.array([sample.prompt_id for sample in samples])
    if (made_by := {sample.policy for sample in samples}) != set(steps):
        raise ValueError(
            f"the clips are by {sorted(made_by)}, the checkpoints are {sorted(steps)}: run generate-select again"
        )
    first, *others = outcomes

    def rates(judge: str, policy: str) -> dict[str, Any]:
        chosen = policies == policy
        return dict(zip(RATE, estimate(outcomes[judge][chosen], prompts[chosen], draws, seed), strict=True))

    return [
        {"step": step, **rates(first, policy), **{judge: rates(judge, policy) for judge in others}}
        for policy, step in steps.items()
    ]


def keep(points: Sequence[Mapping[str, Any]], rule: str) -> int:
    """The step to keep by a rule, of points in the order of their steps.

    last: the last, whatever its rate. best: that with the highest rate; best-of-last-N: the same among the last N, of
    which App. A of Furuta et al. takes 5. Among equal ones the earliest, which has moved least from its start. A point
    without a rate, where the judge labelled no clip, is left out. Raises ValueError where that is all of them.
    """
    among = points[-candidates_of(rule, len(points)) :]
    if rule == LAST:
        return int(among[-1]["step"])
    best = max(among, key=lambda point: -math.inf if point["rate"] is None else point["rate"])  # the first of equals
    if best["rate"] is None:
        raise ValueError(f"the judge labelled no clip of steps {[point['step'] for point in among]}; nothing to keep")
    return int(best["step"])


def plot_rows(points: Sequence[Mapping[str, Any]], judges: Sequence[str]) -> list[dict[str, Any]]:
    """The points for `dvc plots` and the report: a row for each step and judge, the judge that selects first.

    A row has step, judge, rate, low, high and n.
    """
    return [
        {"step": point["step"], "judge": judge, **{key: found[key] for key in RATE}}
        for point in points
        for judge in judges
        for found in (point if judge == judges[0] else point[judge],)
    ]


def in_words(points: Sequence[Mapping[str, Any]], measured: bool) -> str:
    """The first judge's rate after each step, or of a metric its mean score, for the log."""
    how = ".4g" if measured else ".1%"
    rates = ("none labelled" if point["rate"] is None else f"{point['rate']:{how}}" for point in points)
    return ", ".join(f"{point['step']} {rate}" for point, rate in zip(points, rates, strict=True))
