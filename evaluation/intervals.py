"""Means over clips with 95 % intervals over prompts.

Clips of one prompt succeed and fail together, so an interval over clips would be too narrow. It says what other prompts
of the same kind might give. From MANY prompts on it is the percentile bootstrap: prompts are drawn with replacement and
bring all their clips along, and given the same prompts every call with the same seed draws the same resamples. That
covers too rarely of fewer prompts (52 % at 2, 81 % at 4, 87 % at 6), so between FEWEST and MANY it is a t interval of
the prompts' contributions (see `t_interval`), and below FEWEST there is none.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = (2.5, 97.5)  # percentiles
FEWEST = 3  # prompts that an interval needs
MANY = 20  # prompts from which on the bootstrap covers
ANSWERS = (0.0, 0.5, 1.0)  # yes, no, and a tie that counts half


class Bounds(NamedTuple):
    """What is known of a mean before any clip is seen."""

    least: float
    largest: float
    added: float  # how far the two prompts that are added to few lie from the middle


RATE, GAP = Bounds(0.0, 1.0, added=1 / 4), Bounds(-1.0, 1.0, added=1 / 8)  # of answers, of differences of answers
SCORE = None  # of all else: no bounds


class Estimate(NamedTuple):
    """A mean and its interval: all three null when nothing was known, low and high below FEWEST prompts."""

    mean: float | None
    low: float | None
    high: float | None
    n: int  # clips that the mean is over


UNKNOWN = Estimate(None, None, None, 0)


class KnownVariance(NamedTuple):
    """A variance of a mean, with the degrees of freedom that it is known with."""

    variance: float
    freedom: float


def estimate(values: np.ndarray, prompts: np.ndarray, draws: int, seed: int) -> Estimate:
    """Mean of the known values, with its interval.

    values: (N,) float, nan where not known: left out, not 0. prompts: (N,) which prompt each clip is of.
    """
    return _estimate(values, prompts, RATE if are_answers(values) else SCORE, draws, seed)


def difference_by_clip(values: np.ndarray, others: np.ndarray, prompts: np.ndarray, draws: int, seed: int) -> Estimate:
    """Mean over the clips known to both of value minus other: of two policies' clips of the same prompts and seeds."""
    bounds = GAP if are_answers(values) and are_answers(others) else SCORE
    return _estimate(values - others, prompts, bounds, draws, seed)


def difference_by_prompt(
    values: np.ndarray, others: np.ndarray, prompts: np.ndarray, draws: int, seed: int
) -> Estimate:
    """Mean of the known values minus mean of the known others, where the two count different clips of the same prompts.

    values, others: (N,) float, nan where not known or not counted. Each resample draws prompts once for both, so what
    makes a prompt easy for both cancels. A prompt of which either side knows nothing is left out of both.
    n counts the clips of `values`.
    """
    sums, counts = totals(values, prompts)
    other_sums, other_counts = totals(others, prompts)
    both = (counts > 0) & (other_counts > 0)
    if not both.any():
        return UNKNOWN
    mean = float((sums * both).sum() / (counts * both).sum() - (other_sums * both).sum() / (other_counts * both).sum())
    clips = int((counts * both).sum())
    if both.sum() < MANY:
        own, other = added_to_mean(sums[both], counts[both]), added_to_mean(other_sums[both], other_counts[both])
        bounds = GAP if are_answers(values) and are_answers(others) else SCORE
        return Estimate(mean, *t_interval(own - other, bounds), clips)
    sums, counts, other_sums, other_counts = sums * both, counts * both, other_sums * both, other_counts * both
    gaps = _drawn_means(sums, counts, draws, seed) - _drawn_means(other_sums, other_counts, draws, seed)
    low, high = np.percentile(gaps[~np.isnan(gaps)], LEVEL)
    return Estimate(mean, float(low), float(high), clips)


def are_answers(values: np.ndarray) -> bool:
    """Whether all known values are yes, no or a tie, so that their mean is a rate."""
    return bool(np.isin(values[~np.isnan(values)], ANSWERS).all())


def contributions(values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """(P,) what each prompt with a known value adds to the mean, which is the mean of them.

    Of prompts with equally many known values their means; else the mean plus the linearised residuals of the ratio of
    sums, as many clips weigh more.
    """
    sums, counts = totals(values, prompts)
    return added_to_mean(sums[counts > 0], counts[counts > 0])


def totals(values: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) float each, by prompt: the sum of the known values, and how many are known."""
    names, index = np.unique(prompts, return_inverse=True)
    known = ~np.isnan(values)
    sums = np.bincount(index, np.where(known, values, 0.0), minlength=len(names))
    return sums, np.bincount(index, known, minlength=len(names))


def added_to_mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(P,) what each prompt adds to the mean of all clips, by `totals`; one without a known value adds the mean."""
    mean = sums.sum() / counts.sum()
    found: np.ndarray = mean + (sums - mean * counts) / counts.mean()
    return found


def t_interval(
    contributions: np.ndarray, bounds: Bounds | None, others: Sequence[KnownVariance] = ()
) -> tuple[float | None, float | None]:
    """Low and high of the t interval of the contributions' mean, within the bounds; null below FEWEST prompts.

    contributions: (P,) see `contributions`. others: further variances of the same mean, of sources that are independent
    of the prompts; the degrees of freedom are then those of Welch and Satterthwaite.

    Few prompts that agree by chance would give an interval that is too narrow. So where there are bounds and fewer than
    MANY prompts, two are added, at equal distances below and above the middle of the bounds, as Agresti and Coull
    (1998) add two successes and two failures to one binomial; the quantile is that of P degrees of freedom. Simulated
    with 16 clips a prompt, at 4 to 19 prompts: a rate of 0.1 to 0.9 of beta-binomial prompts is covered by at least
    93 % where their correlation is at most 0.9, by 92 % at 0.99; a rate of 0.05 by more. A difference is covered by at
    least 91 % where all prompts gain alike or their gains are normal about a mean. Where a fifth of the prompts gain a
    half and the others nothing it is covered by 66 to 94 %: most draws of few prompts miss the gain, and the interval
    lies too near to zero. Without bounds it is the plain t interval.
    """
    found = len(contributions)
    if found < FEWEST:
        return None, None
    freedom = found - 1
    if bounds is not None and found < MANY:
        middle = (bounds.least + bounds.largest) / 2
        contributions = np.array([*contributions, middle - bounds.added, middle + bounds.added])
        freedom = found
    centre, size = float(contributions.mean()), len(contributions)
    parts = [KnownVariance(float(contributions.var(ddof=1)) / size, freedom), *others]
    variance = sum(part.variance for part in parts)
    if variance == 0:
        return centre, centre
    of_all = variance**2 / sum(part.variance**2 / part.freedom for part in parts)
    half = float(stdtrit(of_all, LEVEL[1] / 100)) * variance**0.5
    least, largest = (-np.inf, np.inf) if bounds is None else bounds[:2]
    return max(centre - half, least), min(centre + half, largest)


def _estimate(values: np.ndarray, prompts: np.ndarray, bounds: Bounds | None, draws: int, seed: int) -> Estimate:
    sums, counts = totals(values, prompts)
    if not counts.any():
        return UNKNOWN
    mean, clips = float(sums.sum() / counts.sum()), int(counts.sum())
    if (counts > 0).sum() < MANY:
        return Estimate(mean, *t_interval(contributions(values, prompts), bounds), clips)
    means = _drawn_means(sums, counts, draws, seed)
    low, high = np.percentile(means[~np.isnan(means)], LEVEL)
    return Estimate(mean, float(low), float(high), clips)


def _drawn_means(sums: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws,) means over resampled prompts, nan where a resample knows nothing."""
    drawn = _times_drawn(len(sums), draws, seed)
    totals = drawn @ counts
    means: np.ndarray = np.divide(drawn @ sums, totals, out=np.full(draws, np.nan), where=totals > 0)
    return means


@lru_cache(maxsize=32)  # as many as there are splits and categories of other sizes
def _times_drawn(prompts: int, draws: int, seed: int) -> np.ndarray:
    """(draws, prompts) float, how often each resample drew each prompt."""
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    return drawn.astype(float)
