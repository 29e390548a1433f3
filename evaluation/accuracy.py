"""A judge's accuracy: its labels on clips whose right verdict is known. Pure functions of labels.

true, false     of a clip whose right verdict is accept, reject
p               a judge's p_accept, in [0, 1]; a judge is soft where any p lies strictly between
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.preferences import FIRST, SECOND, TIE, tally
from data.records import Label, Preference, Sample
from evaluation.intervals import estimate

BINS = 10  # of equal width, of the reliability plot
FOLDS = 5  # of the prompts, in the threshold's cross-validation
HALF = 0.5  # above it an answer is accept


class LabelArrays(NamedTuple):
    """A judge's labels of clips (N,), in their order."""

    accepted: np.ndarray  # 1 accepted, 0 rejected, nan unlabelled
    p: np.ndarray  # p_accept, nan where not known


def as_arrays(samples: Sequence[Sample], labels: Sequence[Label]) -> LabelArrays:
    """A judge's labels as arrays. Raises KeyError for a sample without a label."""
    of = {label.sample_id: label for label in labels}
    rows = [of[sample.sample_id] for sample in samples]
    return LabelArrays(
        np.array([np.nan if row.label is None else float(row.label) for row in rows]),
        np.array([np.nan if row.p_accept is None else row.p_accept for row in rows]),
    )


def against_truth(
    samples: Sequence[Sample], labels: Sequence[Label], made: Mapping[str, str], acceptable: str, draws: int, seed: int
) -> dict[str, Any]:
    """The figures of a judge on clips that should be accepted or rejected, each by its own truth.

    made: sample_id -> what a clip is; those that are `acceptable` should be accepted, all others rejected.
    draws, seed: of the bootstrap over prompts, and of the threshold's folds. low and high are null below three prompts.

        clips, labelled                  all other figures are of the labelled clips
        accuracy, low, high              part of the labels that are right
        auc                              of p, see `auc`
        false_accepts, false_rejects     clips
        categories.<category>            clips, labelled, accuracy, false_accept_rate (of the clips to reject) and
                                         false_reject_rate (of those to accept); null where there are none
        made.<what>                      clips, labelled, accepted
        calibration, threshold           see there; null for a judge that is not soft

    Raises ValueError where no clip has a label.
    """
    judged = as_arrays(samples, labels)
    known = ~np.isnan(judged.accepted)
    if not known.any():
        why = next((label.reason for label in labels if label.reason), "without a reason")
        raise ValueError(f"none of {len(samples)} known-answer clips got a label ({why}): there is nothing to audit")
    truth = np.array([made[sample.sample_id] == acceptable for sample in samples])
    prompts = np.array([sample.prompt_id for sample in samples])
    right = np.where(known, judged.accepted == truth, np.nan)
    accuracy = estimate(right, prompts, draws, seed)
    probable = ~np.isnan(judged.p)
    p, of_p = judged.p[probable], truth[probable]
    return {
        "clips": len(samples),
        "labelled": int(known.sum()),
        "accuracy": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "auc": auc(p, of_p),
        "false_accepts": int((judged.accepted[~truth] == 1).sum()),
        "false_rejects": int((judged.accepted[truth] == 0).sum()),
        "categories": {
            category: _of_category(judged.accepted[chosen], truth[chosen])
            for category, chosen in _groups([sample.category for sample in samples])
        },
        "made": {
            what: {
                "clips": int(chosen.sum()),
                "labelled": int(known[chosen].sum()),
                "accepted": int((judged.accepted[chosen] == 1).sum()),
            }
            for what, chosen in _groups([made[sample.sample_id] for sample in samples])
        },
        "calibration": calibration(p, of_p) if soft(p) else None,
        "threshold": suggested_threshold(p, of_p, prompts[probable], seed) if soft(p) else None,
    }


def against_generated(
    references: Sequence[Sample],
    of_references: Sequence[Label],
    generated: Sequence[Sample],
    of_generated: Sequence[Label],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of a judge on real clips, each beside generated clips of its prompt: Furuta et al., §3.3.

    "With the a priori that the true video is always preferable, we prepare pairs of the true and generated video";
    90.3 % there. A pair counts 1 where the reference has the higher p_accept, 1/2 where both have the same; the paper
    does not say how it compared clips that are judged one by one. A generated clip may well be good, so there are no
    false accepts, no calibration and no threshold.

        accuracy, low, high              mean over the pairs, interval over prompts
        auc                              of p of any reference against any generated clip
        false_rejects                    references that were rejected
        references                       accepted: their accept rate; generated_accepted: that of the others; pairs;
                                         ties: pairs with the same p

    The other keys as in `against_truth`. Raises ValueError where no pair is known.
    """
    real, other = as_arrays(references, of_references), as_arrays(generated, of_generated)
    of_prompt = {sample.prompt_id: p for sample, p in zip(references, real.p, strict=True)}
    gap = np.array([of_prompt[sample.prompt_id] for sample in generated]) - other.p
    if np.isnan(gap).all():
        raise ValueError(f"no p_accept of both clips of any of {len(generated)} pairs: there is nothing to audit")
    won = np.where(np.isnan(gap), np.nan, (np.sign(gap) + 1) / 2)
    accuracy = estimate(won, np.array([sample.prompt_id for sample in generated]), draws, seed)
    both = np.concatenate([real.p, other.p])
    is_real = np.arange(len(both)) < len(references)
    of_pair = np.array([sample.category for sample in generated])
    known = ~np.isnan(both)
    return {
        "clips": len(both),
        "labelled": _known(real.accepted) + _known(other.accepted),
        "accuracy": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "auc": auc(both[known], is_real[known]),
        "false_accepts": None,
        "false_rejects": int((real.accepted == 0).sum()),
        "categories": {
            category: {
                "clips": int(chosen.sum() + (of_pair == category).sum()),
                "labelled": _known(real.accepted[chosen]) + _known(other.accepted[of_pair == category]),
                "accuracy": _mean(won[of_pair == category]),
                "false_accept_rate": None,
                "false_reject_rate": _mean(1 - real.accepted[chosen]),
            }
            for category, chosen in _groups([sample.category for sample in references])
        },
        "references": {
            "accepted": _mean(real.accepted),
            "generated_accepted": _mean(other.accepted),
            "pairs": accuracy.n,
            "ties": int((gap == 0).sum()),
        },
        "calibration": None,
        "threshold": None,
    }


def against_pairs(better: Sequence[Sample], preferences: Sequence[Preference], draws: int, seed: int) -> dict[str, Any]:
    """The figures of a judge that compares two clips at once, on pairs whose better clip is known.

    better: of each pair the better clip, which its preference, in the same order, names first.

        clips, labelled                  pairs, and those of them that have a preference or are a tie
        accuracy, low, high              mean over the pairs, a tie counts half; interval over prompts
        decided, decided_accuracy        pairs that are no tie, and the part of them that is right
        pairs                            the counts, with the position bias: data.preferences.Tally
        categories.<category>            clips, labelled, accuracy

    The other keys of `against_truth` are null. Raises ValueError where no pair is answered.
    """
    worth = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}
    right = np.array([np.nan if row.preferred is None else worth[row.preferred] for row in preferences])
    if np.isnan(right).all():
        raise ValueError(f"none of {len(preferences)} pairs was answered: there is nothing to audit")
    accuracy = estimate(right, np.array([sample.prompt_id for sample in better]), draws, seed)
    counts = tally(preferences)
    decided = counts.first + counts.second
    return {
        "clips": len(preferences),
        "labelled": _known(right),
        "accuracy": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "auc": None,
        "false_accepts": None,
        "false_rejects": None,
        "decided": decided,
        "decided_accuracy": counts.first / decided if decided else None,
        "pairs": counts.facts(),
        "categories": {
            category: {
                "clips": int(chosen.sum()),
                "labelled": _known(right[chosen]),
                "accuracy": _mean(right[chosen]),
                "false_accept_rate": None,
                "false_reject_rate": None,
            }
            for category, chosen in _groups([sample.category for sample in better])
        },
        "calibration": None,
        "threshold": None,
    }


def soft(p: np.ndarray) -> bool:
    """Whether a judge gives probabilities, not yes and no alone."""
    return bool(((p > 0) & (p < 1)).any())


def auc(p: np.ndarray, truth: np.ndarray) -> float | None:
    """Probability that a true clip has a higher p than a false one, ties counting half; None without both.

    p: (N,) without nan. truth: (N,) bool. The Mann-Whitney statistic over the number of pairs.
    """
    true, false = p[truth], np.sort(p[~truth])
    if not len(true) or not len(false):
        return None
    below, up_to = np.searchsorted(false, true, "left"), np.searchsorted(false, true, "right")
    return float((below + up_to).mean() / (2 * len(false)))


def calibration(p: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Calibration of p: the bins that hold clips, each with its mean p and the part of its clips that is true.

    ece: mean over the clips of |mean p - part that is true| of their bin, in [0, 1] (Naeini et al. 2015).
    bins: low, high (its bounds; the upper one is the next bin's, but for 1), mean_p, accepted_by_truth, n.
    """
    index = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "mean_p": float(p[index == number].mean()),
            "accepted_by_truth": float(truth[index == number].mean()),
            "n": int((index == number).sum()),
        }
        for number in np.unique(index).tolist()
    ]
    return {"ece": sum(one["n"] * abs(one["mean_p"] - one["accepted_by_truth"]) for one in bins) / len(p), "bins": bins}


def best_threshold(p: np.ndarray, truth: np.ndarray) -> float:
    """The threshold, accepting p above it, of the highest Youden's J: true accept rate minus false accept rate.

    J, unlike accuracy, does not depend on how many of the clips are true. Thresholds lie half-way between neighbours
    among the p, or at 0.5; of equally good ones the nearest to 0.5. 0.5 where the clips are all true or all false.
    """
    if truth.all() or not truth.any():
        return HALF
    values = np.unique(p)
    candidates = np.array([HALF, *(values[1:] + values[:-1]) / 2])
    true, false = np.sort(p[truth]), np.sort(p[~truth])
    above = 1 - np.searchsorted(true, candidates, "right") / len(true)
    j = above - (1 - np.searchsorted(false, candidates, "right") / len(false))
    best = candidates[j >= j.max() - 1e-12]
    return float(best[np.abs(best - HALF).argmin()])


def suggested_threshold(p: np.ndarray, truth: np.ndarray, prompts: np.ndarray, seed: int) -> dict[str, float] | None:
    """The accuracy that another threshold than 0.5 on p would give; None with fewer than two prompts.

    suggested: `best_threshold` of all clips. accuracy_now: at 0.5. accuracy_then: cross-validated, so that it is
    unbiased: the prompts are dealt into FOLDS parts, and each is judged by the threshold that is best on the others.
    """
    names, index = np.unique(prompts, return_inverse=True)
    if len(names) < 2:
        return None
    folds = min(FOLDS, len(names))
    fold = (np.random.default_rng(seed).permutation(len(names)) % folds)[index]
    threshold = np.empty(len(p))
    for number in range(folds):
        threshold[fold == number] = best_threshold(p[fold != number], truth[fold != number])
    return {
        "current": HALF,
        "suggested": best_threshold(p, truth),
        "accuracy_now": float(((p > HALF) == truth).mean()),
        "accuracy_then": float(((p > threshold) == truth).mean()),
    }


def _of_category(accepted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    wrong = np.where(np.isnan(accepted), np.nan, accepted != truth)
    return {
        "clips": len(truth),
        "labelled": _known(accepted),
        "accuracy": _mean(1 - wrong),
        "false_accept_rate": _mean(wrong[~truth]),
        "false_reject_rate": _mean(wrong[truth]),
    }


def _groups(names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Each name with (N,) bool, where it stands; in the order of the names."""
    return [(str(name), np.array(names) == name) for name in sorted(set(names))]


def _known(values: np.ndarray) -> int:
    return int((~np.isnan(values)).sum())


def _mean(values: np.ndarray) -> float | None:
    """Mean of the known values; None where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
