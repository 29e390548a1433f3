"""Which of a prompt's clips count."""

import numpy as np
import pytest

from evaluation.selection import at_first_place, take_best_of, take_top_k

NAN = float("nan")
THREE_EACH = np.array(["a", "b", "a", "b", "a", "b"])


def places(taken: np.ndarray) -> list[int]:
    return np.flatnonzero(taken).tolist()


def test_the_top_k_are_each_prompts_own_best():
    scores = np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7])

    assert places(take_top_k(scores, THREE_EACH, 2)) == [1, 2, 3, 4]
    assert places(take_top_k(scores, THREE_EACH, 3)) == [0, 1, 2, 3, 4, 5]


def test_between_equal_scores_the_earlier_clip_is_taken():
    assert places(take_top_k(np.zeros(6), THREE_EACH, 1)) == [0, 1]
    assert places(take_best_of(np.array([0.5, 0.5, 0.1, 0.1]), np.zeros(4), 2)) == [0, 2]


def test_a_clip_without_a_score_is_never_among_the_top():
    scores = np.array([NAN, -3.0, 0.3, NAN, NAN, -4.0])

    assert places(take_top_k(scores, THREE_EACH, 2)) == [1, 2, 5]


def test_a_prompt_of_fewer_than_k_clips_has_no_top_k():
    with pytest.raises(ValueError, match="prompt b has 1 clips, too few for the top 2"):
        take_top_k(np.zeros(3), np.array(["a", "a", "b"]), 2)


def test_the_best_of_n_is_the_best_of_each_n_consecutive_clips_of_a_prompt():
    prompts = np.array(["a"] * 4 + ["b"] * 4)
    scores = np.array([0.9, 0.8, 0.1, 0.2, 0.0, 0.1, 0.9, 0.3])

    assert places(take_best_of(scores, prompts, 2)) == [0, 3, 5, 6]
    assert places(take_best_of(scores, prompts, 4)) == [0, 6]


def test_groups_do_not_reach_over_prompts_that_lie_between_each_other():
    assert places(take_best_of(np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]), THREE_EACH, 3)) == [0, 3]


def test_clips_that_fill_no_group_count_for_none():
    # The fifth clip is the best of all, but nothing was sampled beside it.
    assert places(take_best_of(np.array([0.1, 0.2, 0.4, 0.3, 0.9]), np.zeros(5), 2)) == [1, 2]


def test_a_clip_without_a_score_is_chosen_only_where_no_other_has_one():
    assert places(take_best_of(np.array([NAN, -9.0, NAN, NAN]), np.zeros(4), 2)) == [1, 2]


def test_what_is_chosen_of_the_same_n_seeds_stands_at_one_place():
    prompts, values = np.array(["b", "a", "b", "a", "b"]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    for scores in ([0.1, 0.1, 0.9, 0.9, 0.9], [0.9, 0.9, 0.1, 0.1, 0.9]):  # the 3rd clip of b is left over
        taken = take_best_of(np.array(scores), prompts, 2)
        b, a = (2.0, 3.0) if scores[0] < 0.5 else (0.0, 1.0)
        np.testing.assert_array_equal(at_first_place(values, taken, prompts, 2), [b, a, NAN, NAN, NAN])


def test_a_prompt_of_fewer_than_n_clips_has_no_best_of_n():
    with pytest.raises(ValueError, match="prompt b has 1 clips, too few for the best of 2"):
        take_best_of(np.zeros(3), np.array(["a", "a", "b"]), 2)


def test_any_scores_give_one_clip_a_group_that_none_of_its_group_beats():
    for n in (2, 4, 8):
        scores, prompts = np.random.default_rng(n).random(64), np.repeat(np.arange(4), 16)

        taken = take_best_of(scores, prompts, n).reshape(4, 16 // n, n)

        assert (taken.sum(axis=2) == 1).all(), n
        assert (scores.reshape(taken.shape)[taken] == scores.reshape(taken.shape).max(axis=2).ravel()).all(), n
