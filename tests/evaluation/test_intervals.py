"""Means over clips, and their intervals over many and over few prompts."""

import numpy as np
import pytest

from evaluation.intervals import difference_by_clip, difference_by_prompt, estimate

NAN = float("nan")


# Many prompts: the bootstrap


def test_clips_of_one_prompt_do_not_narrow_the_interval():
    prompts = np.array([f"p{i}" for i in range(20)])
    accepted = np.array([1.0, 0.0] * 10)

    once = estimate(accepted, prompts, draws=4000, seed=0)
    repeated = estimate(np.repeat(accepted, 50), np.repeat(prompts, 50), draws=4000, seed=0)

    assert repeated[:3] == pytest.approx(once[:3])
    assert (once.n, repeated.n) == (20, 1000)


def test_the_interval_of_independent_clips_is_the_binomial_one():
    # 400 prompts, a clip each, 30 % accepted: standard error sqrt(.3 * .7 / 400) = .0229, 1.96 of them .045.
    accepted = np.array([1.0] * 120 + [0.0] * 280)
    found = estimate(accepted, np.arange(400), draws=5000, seed=0)

    assert found.low == pytest.approx(0.3 - 0.045, abs=0.006)
    assert found.high == pytest.approx(0.3 + 0.045, abs=0.006)


def test_what_is_not_known_is_left_out_and_not_counted_as_rejected():
    found = estimate(np.array([1.0, NAN, 0.0, 1.0]), np.array(["a", "a", "b", "c"]), draws=100, seed=0)

    assert found.mean == pytest.approx(2 / 3)
    assert found.n == 3


def test_nothing_known_has_no_rate():
    assert estimate(np.array([NAN, NAN]), np.array(["a", "b"]), draws=100, seed=0) == (None, None, None, 0)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values, prompts = np.random.default_rng(0).random(100), np.repeat(np.arange(20), 5)

    assert estimate(values, prompts, 300, seed=1) == estimate(values, prompts, 300, seed=1)
    assert estimate(values, prompts, 300, seed=1)[:3] != estimate(values, prompts, 300, seed=2)[:3]


def test_a_difference_by_prompt_counts_other_clips_on_either_side():
    # Prompt a: 1 of 1 against 1 of 2, prompt b: 1 of 2 against 0 of 2, so the means are 2/3 and 1/4.
    prompts = np.array(["a", "a", "b", "b"])
    found = difference_by_prompt(
        np.array([NAN, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]), prompts, draws=500, seed=0
    )

    assert found.mean == pytest.approx(2 / 3 - 1 / 4)
    assert found.n == 3
    assert (found.low, found.high) == (None, None)


def test_a_steady_gain_in_every_prompt_is_certain_however_much_prompts_differ():
    prompts = np.repeat(np.arange(20), 4)
    others = (np.arange(80) % 4 < prompts % 4).astype(float)  # 0 to 3 of 4
    best = np.where(np.arange(80) % 4 == 0, others.reshape(20, 4).mean(axis=1).repeat(4) + 0.25, NAN)

    found = difference_by_prompt(best, others, prompts, draws=500, seed=0)

    assert found[:3] == pytest.approx((0.25, 0.25, 0.25))
    assert found.n == 20


def test_a_prompt_that_one_side_knows_nothing_of_is_left_out_of_both():
    prompts = np.array(["easy", "easy", "hard", "hard"])
    known_to_one = np.array([1.0, 1.0, NAN, NAN]), np.array([1.0, 0.0, 0.0, 0.0])

    found = difference_by_prompt(*known_to_one, prompts, draws=100, seed=0)

    assert found == (0.5, None, None, 2)  # with the hard prompt on one side alone it would be 1 - 1/4
    assert difference_by_prompt(*known_to_one, np.arange(4), draws=100, seed=0) == (0.5, None, None, 2)
    assert difference_by_prompt(np.full(4, NAN), np.ones(4), prompts, 100, 0) == (None, None, None, 0)


def test_pairing_by_clip_and_by_prompt_agree_where_all_is_known():
    rng = np.random.default_rng(0)
    for count in (12, 20):  # below and from MANY on
        for values, others in (rng.random((2, 60)), rng.integers(0, 2, (2, 60)).astype(float)):
            prompts = np.arange(60) % count
            by_clip = difference_by_clip(values, others, prompts, draws=300, seed=1)

            by_prompt = difference_by_prompt(values, others, prompts, draws=300, seed=1)
            assert by_prompt == pytest.approx(by_clip), count


# Few prompts: the t interval


def test_four_prompts_by_hand():
    # Rates 0, 1/4, 1/2, 1/4, and the two that are added, 1/4 and 3/4: mean 1/3. Squares of the residuals, in 144ths:
    # 16 + 1 + 4 + 1 + 1 + 25 = 48, so variance 48/144/5 = 1/15, of the mean 1/90. The 97.5 % quantile of t at 4 degrees
    # of freedom is 2.776.
    answers = [0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1]
    found = estimate(np.array(answers, float), np.repeat(np.arange(4), 4), draws=10, seed=0)

    half = 2.776 * (1 / 90) ** 0.5
    low, high = pytest.approx(1 / 3 - half, abs=1e-4), pytest.approx(1 / 3 + half, abs=1e-4)
    assert found == (0.25, low, high, 16)


def test_scores_of_few_prompts_have_the_plain_t_interval():
    # Prompt means 1, 2, 6: mean 3, variance 7, of the mean 7/3; the quantile of t at 2 degrees of freedom is 4.303.
    found = estimate(np.array([0.7, 1.3, 2.0, 2.0, 5.0, 7.0]), np.repeat(np.arange(3), 2), draws=10, seed=0)

    half = 4.303 * (7 / 3) ** 0.5
    assert found[:3] == (pytest.approx(3), pytest.approx(3 - half, abs=1e-3), pytest.approx(3 + half, abs=1e-3))


def test_one_prompt_or_two_have_no_interval_and_three_have():
    for count in (1, 2):
        values, prompts = np.ones(8 * count), np.repeat(np.arange(count), 8)
        for found in (
            estimate(values, prompts, 100, 0),
            difference_by_clip(values, 0 * values, prompts, 100, 0),
            difference_by_prompt(values, 0 * values, prompts, 100, 0),
        ):
            assert found == (1.0, None, None, 8 * count)
    assert None not in estimate(np.ones(3), np.arange(3), 100, 0)


def test_a_prompt_without_a_known_clip_is_not_counted():
    assert estimate(np.array([1.0, 0.0, NAN]), np.arange(3), 100, 0) == (0.5, None, None, 2)


def test_the_interval_holds_the_mean_and_stays_within_what_can_be():
    rng = np.random.default_rng(1)
    for count in (3, 4, 8, 19):
        for _ in range(50):
            prompts = rng.permutation(np.arange(16 * count) % count)[: 12 * count]  # not equally many of each
            values, others = (rng.random((2, 12 * count)) < rng.choice([0, 0.02, 0.5, 0.98, 1], (2, 1))).astype(float)
            rate = estimate(values, prompts, 10, 0)
            assert 0 <= rate.low <= rate.mean <= rate.high <= 1, rate
            for difference in (difference_by_clip, difference_by_prompt):
                gap = difference(values, others, prompts, 10, 0)
                assert -1 <= gap.low <= gap.mean <= gap.high <= 1, gap


def test_few_prompts_that_agree_by_chance_are_not_certain():
    prompts = np.repeat(np.arange(4), 16)
    rate = estimate(np.zeros(64), prompts, draws=100, seed=0)
    gap = difference_by_clip(np.ones(64), np.ones(64), prompts, draws=100, seed=0)

    assert rate.low == 0 and 0.2 < rate.high < 0.6
    assert gap.low == -gap.high and 0.05 < gap.high < 0.2


def test_the_interval_of_a_difference_mirrors():
    values, others = np.random.default_rng(2).integers(0, 2, (2, 80)).astype(float)
    prompts = np.arange(80) % 5

    one, two = difference_by_clip(values, others, prompts, 10, 0), difference_by_clip(others, values, prompts, 10, 0)
    assert (one.mean, one.low, one.high) == pytest.approx((-two.mean, -two.high, -two.low))


CLIPS, TIMES = 16, 1000
LEAST = 0.93 - 0.015  # two standard errors of a share of TIMES below the 93 % that is claimed


def beta_prompts(rng: np.random.Generator, rate: float, correlation: float, count: int) -> np.ndarray:
    """(TIMES, count) rates of prompts whose clips correlate."""
    both = (1 - correlation) / correlation
    return rng.beta(rate * both, (1 - rate) * both, (TIMES, count))


@pytest.mark.parametrize("correlation", [0.05, 0.25, 0.7])
@pytest.mark.parametrize("count", [4, 7, 12, 19])
def test_a_rate_of_few_prompts_is_covered(count: int, correlation: float):
    rng, prompts = np.random.default_rng(3), np.repeat(np.arange(count), CLIPS)
    for rate in (0.1, 0.3, 0.5, 0.8):
        drawn = rng.random((TIMES, count, CLIPS)) < beta_prompts(rng, rate, correlation, count)[..., None]
        found = [estimate(one.ravel().astype(float), prompts, 10, 0) for one in drawn]
        covered = sum(one.low <= rate <= one.high for one in found) / TIMES
        assert covered >= LEAST, f"a rate of {rate}: {covered:.1%}"


@pytest.mark.parametrize("gain", [0.0, 0.15])
@pytest.mark.parametrize("count", [4, 7, 12, 19])
def test_a_difference_of_few_prompts_is_covered(count: int, gain: float):
    rng, prompts = np.random.default_rng(4), np.repeat(np.arange(count), CLIPS)

    def rates(of: int) -> tuple[np.ndarray, np.ndarray]:
        base = beta_prompts(rng, 0.4, 0.2, of)
        return base, np.clip(base + gain + 0.1 * rng.standard_normal(base.shape), 0, 1)

    many, many_gained = rates(400)
    truth = float((many_gained - many).mean())
    base, gained = rates(count)
    noise, own = rng.random((2, TIMES, count, CLIPS))
    noise_of_gained = np.where(rng.random(noise.shape) < 0.6, noise, own)  # which both share in part
    policies, bases = noise_of_gained < gained[..., None], noise < base[..., None]
    found = [
        difference_by_clip(one.ravel().astype(float), two.ravel().astype(float), prompts, 10, 0)
        for one, two in zip(policies, bases, strict=True)
    ]

    covered = sum(one.low <= truth <= one.high for one in found) / TIMES
    assert covered >= LEAST, f"{covered:.1%}"
