"""What summary.json has of policies that were trained with several seeds: one row a policy, over seeds and prompts."""

from collections.abc import Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import numpy as np

from evaluation.measures import MEASURES, Clips, Measured, Values
from evaluation.replicates import (
    between_seeds,
    difference_by_prompt_over_seeds,
    difference_over_seeds,
    estimate_over_seeds,
    gaps_of_seeds,
)

Seeds = Mapping[int, str]  # the policies that are one policy trained with several seeds, by seed
Bootstrap = tuple[int, int]  # draws and seed, which an estimate of one seed has
Cells = Mapping[str, np.ndarray]  # by split (N,) bool


def replicates(
    by_seed: Mapping[str, Seeds],
    chains: Mapping[str, Set[str]],
    starts: Mapping[str, str],
    base: str,
    measured: Mapping[str, Measured],
    clips: Clips,
    bootstrap: Bootstrap,
    choosing: Set[str] = frozenset(),
) -> dict[str, Any]:
    """What summary.json holds as `replicates`, by policy.

    by_seed: of each the policies, whose name the first one has. chains: policy -> itself and all that it comes from.
    starts: policy -> the policy that it was trained from. base: name of the untrained one. measured: by policy.
    choosing: of by_seed those that count some of their clips alone, so that all differences to them are by prompt.

        policies, seeds                     names and training seeds, in one order
        start                               of the first
        accept.<judge>.<split>              rate, low, high, n, between_seeds, of_seeds
        minus_base.<judge>.<split>          diff, low, high, between_seeds, of_seeds
        minus_start                         likewise, seed by seed, where every seed's start was evaluated
        scores, score_minus_base, score_minus_start    likewise: mean, or diff
        top_k, top_k_scores                 likewise, without differences: each seed counts other clips
        categories.<category>               all of these again
        minus.<other>.<judge>.<split>       diff, low, high: to each replicated policy that stands before it; where they
        score_minus.<other>                 are paired also between_seeds and of_seeds

    low and high are over seeds and prompts (evaluation.replicates). of_seeds: the mean of each seed; between_seeds:
    their standard deviation. Two policies are paired by seed where one comes from the other, or both from a policy of
    that seed: what that training run did is in both. Otherwise their seeds are independent, equal numbers or not.
    """
    found: dict[str, Any] = {}
    for name, policies in by_seed.items():
        own = [measured[policy] for policy in policies.values()]
        compared = {"base": [measured[base]]}
        begun = [starts.get(policy) for policy in policies.values()]
        if all(start in measured for start in begun):
            from_one = len(set(begun)) == 1
            compared["start"] = [measured[str(start)] for start in (begun[:1] if from_one else begun)]
        found[name] = {
            "policies": list(policies.values()),
            "seeds": list(policies),
            "start": begun[0],
            **_tables(own, compared, clips.cells[None], clips, bootstrap, name in choosing),
            "categories": {
                category: _tables(own, compared, cells, clips, bootstrap, name in choosing)
                for category, cells in clips.cells.items()
                if category is not None
            },
        }
    for earlier, later in combinations(by_seed, 2):
        own, others = ([measured[policy] for policy in by_seed[name].values()] for name in (later, earlier))
        paired = share_training(by_seed[later], by_seed[earlier], chains)
        by_prompt = not choosing.isdisjoint((earlier, later))
        for measure in MEASURES:
            if measure.key in own[0] and not measure.selects:
                between = _gaps(own, others, measure.key, paired, clips.cells[None], clips, bootstrap, by_prompt)
                found[later].setdefault(measure.minus.removesuffix("_"), {})[earlier] = between
    return found


def share_training(one: Seeds, other: Seeds, chains: Mapping[str, Set[str]]) -> bool:
    """Whether training runs of one seed stand behind both: other ones behind each seed, where base is behind all."""
    own, others = ([chains.get(policy, {policy}) for policy in policies.values()] for policies in (one, other))
    everywhere = set.intersection(*map(set, own))
    return any((mine & theirs) - everywhere for mine, theirs in zip(own, others, strict=True))


def _tables(
    own: Sequence[Measured],
    compared: Mapping[str, Sequence[Measured]],
    cells: Cells,
    clips: Clips,
    bootstrap: Bootstrap,
    by_prompt: bool,
) -> dict[str, Any]:
    """Means and differences. compared: `base`, `start` -> what was measured there, of each seed or of one for all."""
    found: dict[str, Any] = {}
    for key, mean, minus, selects in MEASURES:
        if key not in own[0]:
            continue
        found[key] = _means([one[key] for one in own], mean, cells, clips, bootstrap)
        for other, others in compared.items() if not selects else ():
            found[minus + other] = _gaps(own, others, key, len(others) == len(own), cells, clips, bootstrap, by_prompt)
    return found


def _means(own: Sequence[Values], called: str, cells: Cells, clips: Clips, bootstrap: Bootstrap) -> dict[str, Any]:
    def named(values: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
        found = estimate_over_seeds(values, prompts, *bootstrap)
        return {called: found.mean, "low": found.low, "high": found.high, "n": found.n} | _by_seed(values)

    return {
        judge: {
            split: named(np.stack([one[judge][cell] for one in own]), clips.prompts[cell])
            for split, cell in cells.items()
        }
        for judge in own[0]
    }


def _gaps(
    own: Sequence[Measured],
    others: Sequence[Measured],
    key: str,
    paired: bool,
    cells: Cells,
    clips: Clips,
    bootstrap: Bootstrap,
    by_prompt: bool,
) -> dict[str, Any]:
    """Differences by judge and split. paired: seed by seed; else `others` are of one policy, or of other seeds.

    by_prompt: the two sides count different clips.
    """
    difference = difference_by_prompt_over_seeds if by_prompt else difference_over_seeds

    def named(values: np.ndarray, other: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
        found = difference(values, other, prompts, *bootstrap, paired=paired)
        by_seed = {}
        if paired or len(other) == 1:
            by_seed = _by_seed(gaps_of_seeds(values, other, prompts) if by_prompt else values - other)
        return {"diff": found.mean, "low": found.low, "high": found.high} | by_seed

    found: dict[str, Any] = {}
    for judge in own[0][key]:
        found[judge] = {}
        for split, cell in cells.items():
            values, other = (np.stack([one[key][judge][cell] for one in side]) for side in (own, others))
            found[judge][split] = named(values, other, clips.prompts[cell])
    return found


def _by_seed(values: np.ndarray) -> dict[str, Any]:
    """values: (S, N), or (S, 1) a figure of each seed; nan where not known."""
    known = ~np.isnan(values)
    means = [float(row[here].mean()) if here.any() else None for row, here in zip(values, known, strict=True)]
    return {"between_seeds": between_seeds(values), "of_seeds": means}
