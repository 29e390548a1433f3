"""Means over training seeds, and their intervals over seeds and prompts."""

import numpy as np
import pytest

from evaluation.intervals import difference_by_clip, estimate
from evaluation.replicates import between_seeds, difference_over_seeds, estimate_over_seeds

NAN = float("nan")
HOW = (200, 0)  # draws and seed of the bootstrap


def test_three_prompts_and_two_seeds_by_hand():
    # Scores, a clip a prompt. Prompt means over the seeds 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, over 3 prompts
    # 7/3 with 2 degrees of freedom. Seed means 2 and 4: variance 2, over 2 seeds 1 with 1 degree. Sum 10/3, degrees
    # (10/3)² / ((7/3)² / 2 + 1) = 11.111 / 3.722 = 2.985; the 97.5 % quantile of t is 3.182 at 3 and 3.193 at 2.985.
    found = estimate_over_seeds(np.array([[0.0, 1.2, 4.8], [2.0, 2.8, 7.2]]), np.arange(3), *HOW)

    half = 3.193 * (10 / 3) ** 0.5
    assert found == (pytest.approx(3), pytest.approx(3 - half, abs=0.01), pytest.approx(3 + half, abs=0.01), 6)


def test_one_seed_has_the_interval_over_prompts():
    values, prompts = np.random.default_rng(0).integers(0, 2, (2, 120)).astype(float), np.repeat(np.arange(30), 4)

    assert estimate_over_seeds(values[:1], prompts, *HOW) == estimate(values[0], prompts, *HOW)
    assert difference_over_seeds(values[:1], values[1:], prompts, *HOW) == difference_by_clip(*values, prompts, *HOW)


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not():
    prompts = np.repeat(np.arange(30), 4)
    once = (np.random.default_rng(0).random(120) < 0.5).astype(float)
    other = np.where(np.arange(120) % 4 == 0, 1.0, once)

    alike = estimate_over_seeds(np.stack([once, once, once]), prompts, *HOW)
    differing = estimate_over_seeds(np.stack([once, once, other]), prompts, *HOW)

    assert alike.high - alike.low < differing.high - differing.low
    single = estimate(once, prompts, 4000, 0)
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high), abs=0.02)


def test_a_start_and_what_it_became_are_compared_seed_by_seed():
    # Seeds lie 40 points apart, each gains 10: paired, no seed differs from another.
    prompts, levels = np.repeat(np.arange(20), 10), np.array([[2], [4], [6]])
    start = (np.arange(200) % 10 < levels).astype(float)
    later = (np.arange(200) % 10 < levels + 1).astype(float)

    assert difference_over_seeds(later, start, prompts, *HOW, paired=True)[:3] == pytest.approx((0.1, 0.1, 0.1))
    apart = difference_over_seeds(later, start, prompts, *HOW)
    assert apart.mean == pytest.approx(0.1) and apart.low < -0.1 and apart.high > 0.3


def test_paired_seeds_must_be_equally_many():
    with pytest.raises(ValueError, match="3 seeds and 2 of what they were trained from do not pair"):
        difference_over_seeds(np.ones((3, 4)), np.ones((2, 4)), np.arange(4), *HOW, paired=True)


def test_below_three_prompts_there_is_no_interval_however_many_seeds():
    found = estimate_over_seeds(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]), np.array(["a", "b"]), *HOW)

    assert found == (pytest.approx(5 / 6), None, None, 6)


def test_a_clip_that_a_seed_does_not_know_counts_by_the_others():
    values = np.array([[1.0, 0.0, NAN, NAN], [NAN, 1.0, 1.0, NAN]])
    found = estimate_over_seeds(values, np.arange(4), *HOW)

    assert (found.mean, found.n) == (pytest.approx((1 + 0.5 + 1) / 3), 4)
    assert difference_over_seeds(values, np.array([[NAN, 0.0, 0.0, 0.0]]), np.arange(4), *HOW).n == 3


def test_nothing_known_has_no_estimate():
    assert estimate_over_seeds(np.full((2, 3), NAN), np.arange(3), *HOW) == (None, None, None, 0)
    assert between_seeds(np.full((2, 3), NAN)) is None


def test_the_spread_between_seeds_is_that_of_their_means():
    # Means 1/4, 2/4, 3/4: standard deviation 1/4.
    assert between_seeds(np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])) == pytest.approx(0.25)
    assert between_seeds(np.ones((1, 4))) is None


@pytest.mark.parametrize("points", [0, 2, 5])
@pytest.mark.parametrize("prompts", [18, 58])
def test_three_seeds_are_covered(points: int, prompts: int):
    rng = np.random.default_rng(points)
    names, covered = np.repeat(np.arange(prompts), 16), 0
    for _ in range(300):
        rates = 0.5 + 0.2 * rng.standard_normal(prompts) + points / 100 * rng.standard_normal((3, 1))
        answers = (rng.random((3, prompts, 16)) < rates[..., None]).astype(float).reshape(3, -1)
        found = estimate_over_seeds(answers, names, *HOW)
        covered += found.low <= 0.5 <= found.high

    assert covered / 300 >= 0.92, f"{covered / 3:.1f} %"  # standard error 1.3 %
