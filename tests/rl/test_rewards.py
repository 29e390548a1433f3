"""Claims about what becomes of a label."""

import math
import random

import pytest

from data.records import Label
from rl.rewards import (
    effective_size,
    effective_sizes,
    exponential_weights,
    group_advantages,
    prompt_weights,
    reward_of,
    shape_reward,
    weighting,
)


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


# Weights over a prompt's clips


def test_exponential_weights_by_hand():
    """exp(0) = 1 and exp(1) = e, times 2 clips over their sum. At tau 1/2 the reward 1 counts e^2."""
    e = math.e
    assert exponential_weights([0.0, 1.0], 1.0) == pytest.approx([2 / (1 + e), 2 * e / (1 + e)])
    assert exponential_weights([0.0, 1.0], 0.5) == pytest.approx([2 / (1 + e * e), 2 * e * e / (1 + e * e)])


def test_group_advantages_by_hand():
    """1, 3, 5: mean 3, variance (4 + 0 + 4) / 3 = 8/3, so the last lies 2 / sqrt(8/3) = 1.2247 spreads above."""
    assert group_advantages([1.0, 3.0, 5.0]) == pytest.approx([-1.224745, 0.0, 1.224745], abs=1e-5)


def weights(rewards, shaping="exponential", **changes):
    return prompt_weights(rewards, shaping, **{"scale": 1.0, "shift": 0.0, "temperature": 1.0} | changes)


def test_weights_over_a_prompt_have_mean_one_and_the_order_of_the_rewards():
    draw = random.Random(1)
    for shaping in ("exponential", "group"):
        for count in (1, 2, 7, 48):
            rewards = [draw.gauss(5, 3) for _ in range(count)]
            found = weights(rewards, shaping, temperature=draw.uniform(0.3, 4))
            assert sum(found) / count == pytest.approx(1), (shaping, rewards)
            order = sorted(range(count), key=rewards.__getitem__)
            assert order == sorted(range(count), key=found.__getitem__), (shaping, rewards)


def test_a_shift_of_all_rewards_changes_no_weight_and_their_unit_is_tau_s():
    rewards = [0.0, 0.5, 2.0, 2.0]
    for shaping in ("exponential", "group"):
        assert weights([r + 1000 for r in rewards], shaping) == pytest.approx(weights(rewards, shaping)), shaping
    assert weights([10 * r for r in rewards], temperature=10) == pytest.approx(weights(rewards))


def test_tau_of_group_carries_over_between_metrics():
    """The weights of scores in [0, 1] are those of the same scores in hundreds; exponential's are not."""
    scores = [0.1, 0.4, 0.6, 0.9]
    hundreds = [100 * score for score in scores]
    assert weights(hundreds, "group") == pytest.approx(weights(scores, "group"), rel=1e-4)
    assert weights(hundreds) != pytest.approx(weights(scores), rel=0.5)


def test_a_prompt_without_spread_gives_weight_one():
    for shaping in ("exponential", "group"):
        for rewards in ([0.1] * 3, [0.0], [1e9] * 5):  # the mean of three 0.1 is not 0.1 in floats
            assert weights(rewards, shaping, temperature=1e-3) == [1.0] * len(rewards), (shaping, rewards)
        assert weights([], shaping) == []


def test_extreme_rewards_and_temperatures_stay_finite():
    assert weights([-1e6, 0.0, 1e6]) == [0.0, 0.0, 3.0]
    assert weights([1.0, 2.0, 2.0], temperature=1e-320) == [0.0, 1.5, 1.5]
    assert weights([0.0, 1.0], temperature=1e12) == pytest.approx([1.0, 1.0])


def test_linear_weights_are_those_of_each_clip_alone():
    assert weights([0.0, 1.0], "linear", scale=0.5, shift=0.25, temperature=7.0) == [0.25, 0.75]


def test_what_a_shaping_does_not_read_changes_no_weight_and_stands_in_no_manifest():
    for shaping in ("exponential", "group"):
        assert weights([0.0, 1.0], shaping, scale=5.0, shift=3.0) == weights([0.0, 1.0], shaping)
        facts = weighting(shaping, scale=5.0, shift=3.0, temperature=2.0)
        assert facts == {"shaping": shaping, "temperature": 2.0}
    assert weighting("linear", scale=5.0, shift=3.0, temperature=2.0) == {"scale": 5.0, "shift": 3.0}


def test_wrong_values_of_a_shaping_are_refused():
    for arguments, message in (
        (([1.0], "expo"), "shaping 'expo' is unknown; known: linear, exponential, group"),
        (([1.0, math.nan], "exponential"), "reward nan is not finite"),
        (([1.0, math.inf], "group"), "is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            weights(*arguments)
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be > 0"):
            weights([1.0], temperature=tau)


# What a table of weights amounts to


def test_effective_sizes_by_hand():
    """p: (1 + 3)^2 / (1 + 9) = 1.6; q: 2; both: 6^2 / 12 = 3. A prompt of zeros counts 0 in the mean."""
    ids, of_clips = list("ppqqr"), [1.0, 3.0, 1.0, 1.0, 0.0]
    found = effective_sizes(ids, of_clips)
    assert found == {"above_0": 4, "effective": pytest.approx(3), "effective_per_prompt": pytest.approx(3.6 / 3)}
    assert effective_sizes([], []) == {"above_0": 0, "effective": 0.0, "effective_per_prompt": 0.0}


def test_the_effective_size_is_the_number_of_clips_where_their_weights_are_equal_and_never_above_it():
    draw = random.Random(2)
    for count in (1, 3, 50):
        assert effective_size([draw.choice((1e-200, 0.3, 1e200))] * count) == pytest.approx(count)
        assert 1 <= effective_size([draw.expovariate(1) for _ in range(count)]) <= count + 1e-9
