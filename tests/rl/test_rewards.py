"""Claims about what becomes of a label."""

import math

import pytest

from data.records import Label
from rl.rewards import reward_of, shape_reward


def label(**columns) -> Label:
    known = {"label": None, "p_accept": None, "score": None} | columns
    return Label("s", "judge", **known, votes=1, nulls=0, reason=None)


def test_a_label_becomes_one_or_zero():
    assert [reward_of(label(label=value), "label") for value in (True, False)] == [1.0, 0.0]


def test_soft_columns_stand_as_they_are():
    for kind, value in (("p_accept", 0.25), ("score", -3.5)):
        assert reward_of(label(**{kind: value}), kind) == value, (kind, value)


def test_null_stays_null_whatever_the_other_columns_say():
    for kind in ("label", "p_accept", "score"):
        others = {"label": True, "p_accept": 0.9, "score": 3.0} | {kind: None}
        assert reward_of(label(**others), kind) is None, kind


def test_an_unknown_column_lists_the_known():
    with pytest.raises(ValueError, match="'reason' is unknown; known: label, p_accept, score"):
        reward_of(label(label=True), "reason")


def test_shaping_by_hand():
    """eta = .5, gamma = .25: an accepted clip weighs .75, a rejected one .25."""
    assert [shape_reward(r, 0.5, 0.25) for r in (1.0, 0.0)] == [0.75, 0.25]


def test_identity_shaping_changes_nothing():
    assert [shape_reward(r, 1.0, 0.0) for r in (0.0, 0.3, 1.0)] == [0.0, 0.3, 1.0]


def test_a_scale_that_is_not_positive_is_refused():
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="scale must be > 0"):
            shape_reward(1.0, scale, 0.0)


def test_a_negative_shift_is_refused():
    for shift in (-0.1, math.nan):
        with pytest.raises(ValueError, match="shift must be >= 0"):
            shape_reward(1.0, 1.0, shift)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"becomes the weight -0\.5; a weight must be >= 0: raise the shift"):
        shape_reward(-1.0, 1.0, 0.5)
