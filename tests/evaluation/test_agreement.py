"""How far judges agree."""

import numpy as np
import pytest

from evaluation.agreement import cohen, compare_judges, pearson

NAN = float("nan")


def test_kappa_is_agreement_beyond_chance():
    # 50 clips: both accept 20, both reject 15, the first alone accepts 5, the second alone 10. They agree on .7 of
    # them; with accept rates of .5 and .6 chance gives .5 * .6 + .5 * .4 = .5, and kappa is (.7 - .5) / (1 - .5) = .4.
    one = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 15, 5, 10])
    other = np.repeat([1.0, 0.0, 0.0, 1.0], [20, 15, 5, 10])

    assert cohen(one, other) == {"kappa": pytest.approx(0.4), "agree": 0.7, "n": 50}
    assert cohen(other, one) == cohen(one, other)


def test_judges_that_always_differ_and_always_agree_lie_at_the_ends():
    one = np.array([1.0, 0.0, 1.0, 0.0])

    assert cohen(one, one)["kappa"] == 1.0
    assert cohen(one, 1 - one)["kappa"] == -1.0


def test_clips_that_either_left_unlabelled_are_left_out():
    assert cohen(np.array([1.0, NAN, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, NAN])) == {"kappa": 1.0, "agree": 1.0, "n": 2}


def test_kappa_is_unknown_where_there_is_nothing_to_agree_on():
    assert cohen(np.ones(3), np.ones(3)) == {"kappa": None, "agree": 1.0, "n": 3}
    assert cohen(np.array([1.0, NAN]), np.array([NAN, 1.0])) == {"kappa": None, "agree": None, "n": 0}


def test_pearson_of_three_points():
    # (1, 1), (2, 3), (3, 2): covariance 1 over variances 2 and 2, so r = .5. With one degree of freedom t is
    # r / sqrt(1 - r^2) = tan 30 degrees, and Student's t is Cauchy's: p = 2 (1/2 - 30 / 180) = 2/3.
    assert pearson([(1, 1), (2, 3), (3, 2)]) == {
        "pearson": pytest.approx(0.5), "p_value": pytest.approx(2 / 3), "n": 3
    }  # fmt: skip


def test_fewer_than_three_points_or_a_constant_side_have_no_correlation():
    for rates in ([], [(0.1, 0.2), (0.3, 0.4)], [(0.5, 0.1), (0.5, 0.2), (0.5, 0.9)]):
        assert pearson(rates) == {"pearson": None, "p_value": None, "n": len(rates)}, rates


def outcomes(**policies: dict[str, list[float]]) -> dict[str, dict[str, np.ndarray]]:
    return {name: {judge: np.array(labels) for judge, labels in of.items()} for name, of in policies.items()}


PROMPTS = np.array([0, 0, 1, 1])


def test_policies_are_compared_by_rates_of_clips_that_both_know():
    found = compare_judges(
        outcomes(
            base={"judge": [0, 0, 0, 1], "people": [0, 0, NAN, 1]},  # rates 1/3 and 1/3
            rwr1={"judge": [1, 0, 1, 1], "people": [0, 0, 1, NAN]},  # 2/3 and 1/3
            rwr2={"judge": [1, 1, 1, 1], "people": [1, 1, NAN, NAN]},  # 1 and 1, of prompt 0 alone
        ),
        ["judge", "people"],
        PROMPTS,
    )

    # (1/3, 1/3), (2/3, 1/3), (1, 1), in thirds (1, 1), (2, 1), (3, 3): covariance 2 over sqrt(2 * 8/3).
    assert found["policies"]["judge|people"]["pearson"] == pytest.approx(2 / np.sqrt(2 * 8 / 3))
    assert found["policies"]["judge|people"]["n"] == 3
    assert found["clips"]["judge|people"] == {"agree": 7 / 8, "n": 8, "kappa": pytest.approx((7 / 8 - 1 / 2) / (1 / 2))}


def test_a_prompt_is_one_point_over_all_policies():
    """Table 4 of Furuta et al. has n = 160 for its 160 prompts, however many policies there are."""
    found = compare_judges(
        outcomes(
            base={"judge": [0, 0, 1, 1, 0, 0], "people": [0, 1, 1, NAN, 0, 0]},
            rwr1={"judge": [1, 0, 1, 1, 1, 0], "people": [1, 0, 1, 1, 0, 0]},
        ),
        ["judge", "people"],
        np.array([0, 0, 1, 1, 2, 2]),
    )["prompts"]["judge|people"]

    # Prompt 0: 1/4 and 2/4; prompt 1: three known clips, 1 and 1; prompt 2: 1/4 and 0. In quarters (1, 2), (4, 4),
    # (1, 0): means 2 and 2, covariance 0 + 4 + 2 = 6 over sqrt(6 * 8).
    assert found["pearson"] == pytest.approx(6 / np.sqrt(6 * 8)) and found["n"] == 3


def test_every_pair_of_judges_is_compared_once():
    labels = [1.0, 0.0, 1.0, 0.0]
    judges = {"physics": labels, "judge": labels, "people": [NAN] * 4}
    found = compare_judges(outcomes(base=judges), list(judges), PROMPTS)

    pairs = ["physics|judge", "physics|people", "judge|people"]
    assert [list(found[key]) for key in ("clips", "policies", "prompts")] == [pairs] * 3
    assert found["clips"]["physics|people"] == {"kappa": None, "agree": None, "n": 0}
    assert found["prompts"]["physics|people"] == {"pearson": None, "p_value": None, "n": 0}


def test_a_metric_correlates_by_its_mean_scores_and_labels_no_clip():
    found = compare_judges(
        outcomes(
            base={"judge": [0, 0, 0, 1], "flow": [1.0, 2.0, 3.0, 6.0]},  # rate 1/4, mean 3
            rwr1={"judge": [1, 0, 0, 1], "flow": [4.0, 4.0, NAN, 10.0]},  # of the known three 2/3, mean 6
            rwr2={"judge": [1, 1, 1, 1], "flow": [3.0, 3.0, 3.0, 3.0]},  # 1, mean 3
        ),
        ["judge"],
        PROMPTS,
    )
    # (1/4, 3), (2/3, 6), (1, 3), in twelfths (3, 3), (8, 6), (12, 3): means 23/3 and 4, covariance 8*6+15*3-92 = 1.
    assert found["policies"]["judge|flow"]["pearson"] == pytest.approx(1 / np.sqrt((9 + 64 + 144 - 529 / 3) * 6))
    assert found["clips"] == {}
