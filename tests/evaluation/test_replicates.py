"""Means over training seeds, and their intervals over seeds and prompts."""

import numpy as np
import pytest

from evaluation.intervals import difference_by_clip, difference_by_prompt, estimate
from evaluation.replicates import (
    between_seeds,
    difference_by_prompt_over_seeds,
    difference_over_seeds,
    estimate_over_seeds,
    gaps_of_seeds,
)

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


def test_sides_that_count_different_clips_are_compared_by_prompt_by_hand():
    # One value for two clips of a prompt. Means over the seeds 4, 6, 11, of the other side 1, 2, 3: gaps 3, 4, 8, whose
    # mean is 5 and variance (4 + 1 + 9) / 2 = 7. Seed means 6 and 8: variance 2. So the interval is that of the first
    # example, but about 5. Each seed differs from the other side's mean, 2, by 4 and 6.
    prompts = np.repeat(np.arange(3), 2)
    values = np.array([[3.0, NAN, 5.0, NAN, 10.0, NAN], [5.0, NAN, 7.0, NAN, 12.0, NAN]])
    other = np.array([[0.5, 1.5, 2.0, 2.0, 2.0, 4.0]])
    found = difference_by_prompt_over_seeds(values, other, prompts, *HOW)

    half = 3.193 * (10 / 3) ** 0.5
    assert found == (pytest.approx(5), pytest.approx(5 - half, abs=0.01), pytest.approx(5 + half, abs=0.01), 6)
    assert gaps_of_seeds(values, other, prompts)[:, 0] == pytest.approx([4, 6])


def test_by_prompt_and_by_clip_are_one_where_both_sides_know_all_clips():
    prompts, drawn = np.repeat(np.arange(30), 4), np.random.default_rng(0).integers(0, 2, (2, 3, 120)).astype(float)
    for paired in (False, True):
        by_prompt, by_clip = (
            how(*drawn, prompts, *HOW, paired=paired)
            for how in (difference_by_prompt_over_seeds, difference_over_seeds)
        )
        assert by_prompt == pytest.approx(by_clip), paired


def test_by_prompt_of_one_seed_each_is_the_difference_of_one_training_run():
    prompts, values = np.repeat(np.arange(30), 4), np.random.default_rng(0).integers(0, 2, (2, 120)).astype(float)
    values[0, ::2] = NAN

    found = difference_by_prompt_over_seeds(values[:1], values[1:], prompts, *HOW)
    assert found == difference_by_prompt(*values, prompts, *HOW)


def test_a_prompt_that_one_side_does_not_know_is_in_no_difference():
    prompts = np.repeat(np.arange(4), 2)
    values = np.array([[1.0, 1, 0, 0, 1, 0, 1, 1], [1.0, 1, 1, 0, 1, 0, 1, 1]])
    others = np.array([[0.0, NAN, 0, 0, 0, NAN, NAN, NAN]])
    found = difference_by_prompt_over_seeds(values, others, prompts, *HOW)

    assert found.mean == pytest.approx((1 + 0.25 + 0.5) / 3) and found.n == 12
    nothing = difference_by_prompt_over_seeds(values, np.full((1, 8), NAN), prompts, *HOW)
    assert nothing == (None, None, None, 0)


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
