"""How far a judge agrees with what people said: with their choices between two clips, and with their scores.

people    (N,) of pairs: 1 where people prefer clip A, -1 where B, 0 where neither. Of clips: their scores
margin    (N,) of pairs: the judge's number of A minus that of B, 0 where it has no preference; nan where unknown.
          A judge that compares two clips gives 1, -1 and 0
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from evaluation.intervals import estimate


class TieThreshold(NamedTuple):
    """The largest difference of a judge's numbers that counts as no preference, and the accuracy with it."""

    threshold: float
    accuracy: float


def choice_figures(
    people: np.ndarray, margin: np.ndarray, prompts: np.ndarray, draws: int, seed: int
) -> dict[str, Any]:
    """A judge's figures on people's choices. prompts: (N,) which prompt each pair is of. draws, seed: of the bootstrap.

        pairs, judged                     all other figures are of the judged pairs
        people_tie, judge_tie             pairs without a preference
        accuracy_without_ties, low, high  of the pairs of which people prefer one clip, the part of which the judge
                                          prefers the same; a judge's tie counts as wrong. Interval over prompts
        accuracy_with_ties                part of all pairs on which both say the same of A, B and tie, where a margin
                                          of at most tie_threshold is a tie: see `tie_threshold`

    A figure of no pair is null.
    """
    known = ~np.isnan(margin)
    decided = known & (people != 0)
    right = np.where(decided, np.sign(margin) == people, np.nan)
    accuracy = estimate(right, prompts, draws, seed)
    tied = tie_threshold(people[known], margin[known]) if known.any() else None
    return {
        "pairs": len(people),
        "judged": int(known.sum()),
        "people_tie": int((people[known] == 0).sum()),
        "judge_tie": int((margin[known] == 0).sum()),
        "accuracy_without_ties": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "accuracy_with_ties": tied and tied.accuracy,
        "tie_threshold": tied and tied.threshold,
    }


def tie_threshold(people: np.ndarray, margin: np.ndarray) -> TieThreshold:
    """The threshold of the highest accuracy with ties; of equally good ones the smallest.

    margin: (N,) without nan. Tie calibration of Deutsch et al., *Ties Matter* (EMNLP 2023), as VideoAlign's
    calc_accuracy.py uses it: (C + T) / N, with C pairs of the same preference and T pairs that are a tie for both. It
    is chosen on the pairs that it is measured on, so the accuracy is the best that a threshold can give.
    Differs from VideoAlign's code in two points: 0 is a threshold too, where theirs always makes the closest pair a
    tie; and equal margins become ties together, as a threshold makes them, where theirs adds them one by one.
    """
    candidates = np.unique([0.0, *np.abs(margin)])
    sizes, same = np.abs(margin), np.sign(margin) == people
    order = np.argsort(sizes)
    closest = np.searchsorted(sizes[order], candidates, "right")  # how many pairs each threshold makes ties
    both_tie = np.concatenate([[0], np.cumsum(people[order] == 0)])[closest]
    agree = np.concatenate([np.cumsum((same & (people != 0))[order][::-1])[::-1], [0]])[closest]
    accuracy = (both_tie + agree) / len(people)
    best = int(accuracy.argmax())
    return TieThreshold(float(candidates[best]), float(accuracy[best]))


def score_figures(people: np.ndarray, judge: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """A judge's figures on people's scores of clips. judge: (N,) its numbers, nan where unknown.

        clips, judged       all other figures are of the judged clips
        spearman, kendall   rank correlation over all clips: Spearman's rho, Kendall's tau-b
        prompts             with two clips that people score differently
        per_prompt          spearman and kendall, their mean over those of these prompts where the judge's numbers
                            differ too, and `prompts`, how many these are

    A correlation of fewer than two clips, or where all are scored alike, is null.
    """
    known = ~np.isnan(judge)
    people, judge, prompts = people[known], judge[known], prompts[known]
    groups = [(people[prompts == one], judge[prompts == one]) for one in np.unique(prompts)]
    found = [both for both in (_correlations(*group) for group in groups) if both[0] is not None]
    rho, tau = _correlations(people, judge)
    return {
        "clips": len(known),
        "judged": int(known.sum()),
        "spearman": rho,
        "kendall": tau,
        "prompts": sum(len(np.unique(scores)) > 1 for scores, _ in groups),
        "per_prompt": {
            "prompts": len(found),
            "spearman": float(np.mean([one for one, _ in found])) if found else None,
            "kendall": float(np.mean([two for _, two in found])) if found else None,
        },
    }


def _correlations(people: np.ndarray, judge: np.ndarray) -> tuple[float | None, float | None]:
    """Spearman's rho and Kendall's tau-b; None where one of the two does not vary."""
    if len(np.unique(people)) < 2 or len(np.unique(judge)) < 2:
        return None, None
    return float(spearmanr(people, judge).statistic), float(kendalltau(people, judge).statistic)
