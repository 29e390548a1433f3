"""Means over clips with 95 % bootstrap intervals over prompts.

Prompts are drawn with replacement and bring all their clips along: clips of one prompt succeed and fail together, so an
interval over clips would be too narrow. It says what other prompts of the same kind might give. Given the same
prompts, every call with the same seed draws the same resamples.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

LEVEL = (2.5, 97.5)  # percentiles


class Estimate(NamedTuple):
    """A mean and its interval; all three null when nothing was known."""

    mean: float | None
    low: float | None
    high: float | None
    n: int  # clips that the mean is over


UNKNOWN = Estimate(None, None, None, 0)


def estimate(values: np.ndarray, prompts: np.ndarray, draws: int, seed: int) -> Estimate:
    """Mean of the known values, with the percentile interval of means over resampled prompts.

    values: (N,) float, nan where not known: left out, not 0. prompts: (N,) which prompt each clip is of.
    """
    sums, counts = _totals(values, prompts)
    if not counts.any():
        return UNKNOWN
    means = _drawn_means(sums, counts, draws, seed)
    low, high = np.percentile(means[~np.isnan(means)], LEVEL)
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


def difference_by_clip(values: np.ndarray, others: np.ndarray, prompts: np.ndarray, draws: int, seed: int) -> Estimate:
    """Mean over the clips known to both of value minus other: of two policies' clips of the same prompts and seeds."""
    return estimate(values - others, prompts, draws, seed)


def difference_by_prompt(
    values: np.ndarray, others: np.ndarray, prompts: np.ndarray, draws: int, seed: int
) -> Estimate:
    """Mean of the known values minus mean of the known others, where the two count different clips of the same prompts.

    values, others: (N,) float, nan where not known or not counted. Each resample draws prompts once for both, so what
    makes a prompt easy for both cancels. A prompt of which either side knows nothing is left out of both.
    n counts the clips of `values`.
    """
    sums, counts = _totals(values, prompts)
    other_sums, other_counts = _totals(others, prompts)
    both = (counts > 0) & (other_counts > 0)
    if not both.any():
        return UNKNOWN
    sums, counts, other_sums, other_counts = sums * both, counts * both, other_sums * both, other_counts * both
    gaps = _drawn_means(sums, counts, draws, seed) - _drawn_means(other_sums, other_counts, draws, seed)
    low, high = np.percentile(gaps[~np.isnan(gaps)], LEVEL)
    mean = sums.sum() / counts.sum() - other_sums.sum() / other_counts.sum()
    return Estimate(float(mean), float(low), float(high), int(counts.sum()))


def _totals(values: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) float each, by prompt: the sum of the known values, and how many are known."""
    names, index = np.unique(prompts, return_inverse=True)
    known = ~np.isnan(values)
    sums = np.bincount(index, np.where(known, values, 0.0), minlength=len(names))
    return sums, np.bincount(index, known, minlength=len(names))


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
