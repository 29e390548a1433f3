import numpy as np
import pytest

from evaluation.choices import choice_figures, score_figures, tie_threshold

NAN = float("nan")


def test_accuracy_without_ties_leaves_out_peoples_ties_and_counts_a_judges_tie_as_wrong():
    """A, A, B, tie, B by people; margins 0.8, -0.1, -0.3, 0.5, 0: of 4 decided pairs 2 are right."""
    people, margin = np.array([1, 1, -1, 0, -1]), np.array([0.8, -0.1, -0.3, 0.5, 0.0])
    found = choice_figures(people, margin, np.arange(5), draws=200, seed=0)
    assert found["accuracy_without_ties"] == 0.5
    assert (found["pairs"], found["judged"], found["people_tie"], found["judge_tie"]) == (5, 5, 1, 1)
    assert found["low"] <= 0.5 <= found["high"]


def test_the_tie_threshold_is_the_one_that_agrees_with_people_most():
    """|margins| 0.1 (people: tie), 0.2 (A, right), 0.3 (tie), 0.9 (B, right).

    Threshold 0: 2 of 4 right. 0.1: 3. 0.2: the first tie is right, the second pair is now a tie: 2. 0.3: 3. 0.9: 2.
    """
    found = tie_threshold(np.array([0, 1, 0, -1]), np.array([0.1, 0.2, -0.3, -0.9]))
    assert found == (pytest.approx(0.1), 0.75)


def test_accuracy_with_ties_is_that_of_the_example_in_videoaligns_code():
    """calc_accuracy.py of VideoAlign: scores of A and B of nine pairs, and 6 of 9.

    Margins .8 .1 -.4 .3 -.3 -.1 .3 -.1 -.1, people 1 -1 0 1 -1 0 1 -1 0. With ties up to .1 the sixth and the ninth are
    ties for both, .8, .3, -.3 and .3 are right, and .1, -.4 and the eighth are wrong: 6 of 9. With none 5 are right.
    """
    people = np.array([1, -1, 0, 1, -1, 0, 1, -1, 0])
    a, b = np.array([9, -7, 1, 8, -6, 2, 7, -5, 3]), np.array([1, -8, 5, 5, -3, 3, 4, -4, 4])
    found = tie_threshold(people, (a - b) / 10)
    assert found.accuracy == pytest.approx(6 / 9)


def test_without_ties_of_people_the_best_threshold_is_none():
    rng = np.random.default_rng(0)
    people, margin = rng.choice([-1, 1], 200), rng.normal(size=200)
    assert tie_threshold(people, margin) == (0.0, pytest.approx((np.sign(margin) == people).mean()))


def test_the_threshold_is_at_least_as_good_as_any_other():
    rng = np.random.default_rng(1)
    people, margin = rng.choice([-1, 0, 1], 60), np.round(rng.normal(size=60), 1)
    best = tie_threshold(people, margin)
    for threshold in np.linspace(0, 3, 61):
        said = np.where(np.abs(margin) <= threshold + 1e-9, 0, np.sign(margin))
        assert (said == people).mean() <= best.accuracy + 1e-12


def test_swapping_the_clips_of_every_pair_changes_no_figure():
    rng = np.random.default_rng(2)
    people, margin = rng.choice([-1, 0, 1], 50), rng.normal(size=50)
    prompts = np.arange(50) // 5
    assert choice_figures(people, margin, prompts, 100, 0) == choice_figures(-people, -margin, prompts, 100, 0)


def test_a_pair_with_an_unknown_clip_is_in_no_figure_but_the_count():
    one = choice_figures(np.array([1, -1, 0]), np.array([0.5, NAN, 0.0]), np.arange(3), 100, 0)
    two = choice_figures(np.array([1, 0]), np.array([0.5, 0.0]), np.arange(2), 100, 0)
    assert one["pairs"] == 3 and one["judged"] == 2
    assert {k: v for k, v in one.items() if k not in ("pairs", "low", "high")} == {
        k: v for k, v in two.items() if k not in ("pairs", "low", "high")
    }


def test_without_a_judged_pair_every_figure_is_null():
    found = choice_figures(np.array([1]), np.array([NAN]), np.array([0]), 100, 0)
    assert found["judged"] == 0
    assert {found[key] for key in ("accuracy_without_ties", "low", "high", "accuracy_with_ties")} == {None}


def test_rank_correlations_of_an_example():
    """People 1 2 3 4, judge 10 30 20 40: one of six pairs is turned.

    Kendall (5 - 1) / 6; Spearman 1 - 6 (0 + 1 + 1 + 0) / (4 * 15).
    """
    found = score_figures(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]), np.zeros(4))
    assert found["kendall"] == pytest.approx(4 / 6)
    assert found["spearman"] == pytest.approx(0.8)
    assert found["per_prompt"] == {"prompts": 1, "spearman": pytest.approx(0.8), "kendall": pytest.approx(4 / 6)}


def test_per_prompt_correlations_are_means_over_the_prompts_that_can_be_ranked():
    """Prompt 0 is ranked right (1), prompt 1 wrong (-1), prompt 2 all alike by people, prompt 3 all alike by the judge,
    prompt 4 has one clip."""
    prompts = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4])
    people = np.array([1.0, 2, 1, 2, 3, 3, 1, 2, 5])
    judge = np.array([1.0, 2, 2, 1, 1, 2, 4, 4, 9])
    found = score_figures(people, judge, prompts)
    assert found["prompts"] == 3
    assert found["per_prompt"] == {"prompts": 2, "spearman": pytest.approx(0), "kendall": pytest.approx(0)}


def test_what_cannot_be_ranked_is_null_and_unknown_clips_are_left_out():
    found = score_figures(np.array([1.0, 2, 3]), np.array([1.0, NAN, NAN]), np.zeros(3))
    assert (found["clips"], found["judged"], found["spearman"], found["kendall"]) == (3, 1, None, None)
    assert found["per_prompt"]["spearman"] is None
