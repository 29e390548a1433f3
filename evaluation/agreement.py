"""How far judges agree: clip by clip, over policies and over prompts. People are a judge like others.

Agreement of the votes of one judge is Fleiss' kappa, in feedback.core.agreement.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import pearsonr

from data.records import Label

# policy -> judge -> (N,): of a judge that labels 1 accepted, 0 rejected; of a metric its score; nan where it has none
Outcomes = Mapping[str, Mapping[str, np.ndarray]]
Rates = list[tuple[float, float]]  # of two judges, of the same clips

FEWEST = 3  # a line passes through any two points


def compare_judges(outcomes: Outcomes, labelling: Collection[str], prompts: np.ndarray) -> dict[str, Any]:
    """For each pair of judges, over the clips that both labelled or measured.

        clips.<a|b>       kappa, agree, n       Cohen's kappa, part of the clips with the same label
        policies.<a|b>    pearson, p_value, n   of the policies' accept rates (Furuta et al., Fig. 7 left)
        prompts.<a|b>     pearson, p_value, n   of the prompts' accept rates over all policies' clips (their Table 4)

    For a metric, mean scores take the place of accept rates; pairs with one are not in `clips`.
    labelling: the judges that label. prompts: (N,) which prompt each clip is of. The p-values are for independent
    points, as in the paper. Policies descend from each other, so theirs is smaller than it should be.
    """
    judges = list(next(iter(outcomes.values())))
    pairs = {f"{one}|{other}": _both_known(outcomes, one, other) for one, other in combinations(judges, 2)}
    labelled = [f"{one}|{other}" for one, other in combinations(judges, 2) if {one, other} <= {*labelling}]
    return {
        "clips": {pair: cohen(*map(np.concatenate, zip(*pairs[pair], strict=True))) for pair in labelled},
        "policies": {pair: pearson(list(_rates(found))) for pair, found in pairs.items()},
        "prompts": {
            pair: pearson(list(_rates(_by_prompt(np.concatenate(found, axis=1), np.tile(prompts, len(found))))))
            for pair, found in pairs.items()
        },
    }


def cohen(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Cohen's kappa of two judges, (agree - chance) / (1 - chance), chance being what their accept rates alone give.

    one, other: (N,) 1 accepted, 0 rejected, nan unlabelled; clips that either left unlabelled are left out.
    kappa and agree are None without clips; kappa also where both gave all clips one and the same label.
    """
    known = ~np.isnan(one) & ~np.isnan(other)
    if not known.any():
        return {"kappa": None, "agree": None, "n": 0}
    one, other = one[known], other[known]
    agree, chance = (one == other).mean(), one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean())
    kappa = None if chance == 1 else float((agree - chance) / (1 - chance))
    return {"kappa": kappa, "agree": float(agree), "n": int(known.sum())}


def cohen_of_labels(labels: Sequence[Label], others: Sequence[Label]) -> dict[str, Any]:
    """`cohen` of two judges on the clips that both labelled, matched by sample_id."""
    of = {label.sample_id: label.label for label in others if label.label is not None}
    pairs = [(one.label, of[one.sample_id]) for one in labels if one.label is not None and one.sample_id in of]
    first, second = np.array(pairs, float).reshape(-1, 2).T
    return cohen(first, second)


def pearson(rates: Rates) -> dict[str, Any]:
    """Pearson's correlation, its two-sided p-value; None for fewer than three points and where a side is constant."""
    one, other = np.array(rates).reshape(-1, 2).T
    if len(rates) < FEWEST or not np.ptp(one) or not np.ptp(other):
        return {"pearson": None, "p_value": None, "n": len(rates)}
    found = pearsonr(one, other)
    return {"pearson": float(found.statistic), "p_value": float(found.pvalue), "n": len(rates)}


def _both_known(outcomes: Outcomes, one: str, other: str) -> list[np.ndarray]:
    """For each policy (2, N), two judges' outcomes, nan for both where either is not known."""
    found = [np.stack([policy[one], policy[other]]) for policy in outcomes.values()]
    return [np.where(np.isnan(labels).any(axis=0), np.nan, labels) for labels in found]


def _by_prompt(labels: np.ndarray, prompts: np.ndarray) -> list[np.ndarray]:
    return [labels[:, prompts == prompt] for prompt in np.unique(prompts)]


def _rates(found: list[np.ndarray]) -> Iterator[tuple[float, float]]:
    """The two accept rates of each (2, n) with a known clip."""
    for labels in found:
        if not np.isnan(labels).all():
            one, other = np.nanmean(labels, axis=1)
            yield float(one), float(other)
