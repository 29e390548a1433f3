"""Policies of several training seeds in the summary: means of seeds, pairing by seed, what metrics and plots show."""

import pytest

from evaluation.accept import plot_rows, summarise
from evaluation.metrics import DETAIL, OVER_SEEDS, metrics
from evaluation.over_seeds import share_training
from tests.evaluation.test_accept import clip, evaluated

PROMPTS, CLIPS = 24, 4
SAMPLES = [
    clip(f"p{prompt:02}", seed, "train" if prompt < 12 else "test")
    for prompt in range(PROMPTS)
    for seed in range(CLIPS)
]
BY_SEED = {"rwr1": {1: "rwr1", 2: "rwr1-s2"}, "rwr2": {1: "rwr2", 2: "rwr2-s2"}, "sft1": {1: "sft1", 2: "sft1-s2"}}
STARTS = {"rwr1": "base", "rwr1-s2": "base", "rwr2": "rwr1", "rwr2-s2": "rwr1-s2", "sft1": "base", "sft1-s2": "base"}
CHAINS = {
    "rwr1": {"rwr1", "base"}, "rwr1-s2": {"rwr1-s2", "base"}, "rwr2": {"rwr2", "rwr1", "base"},
    "rwr2-s2": {"rwr2-s2", "rwr1-s2", "base"}, "sft1": {"sft1", "base"}, "sft1-s2": {"sft1-s2", "base"},
}  # fmt: skip
ACCEPTED = {  # of the four clips of every prompt
    "base": 1, "sft1": 1, "sft1-s2": 1, "rwr1": 1, "rwr1-s2": 2, "rwr2": 2, "rwr2-s2": 3,
}  # fmt: skip


def accepting(count: int):
    """A policy whose first clips of every prompt are accepted; one of two prompts has one more, the other one less."""
    answers = [
        seed < count + (prompt % 2 if 0 < count < CLIPS else 0) for prompt in range(PROMPTS) for seed in range(CLIPS)
    ]
    return evaluated(answers, SAMPLES)


@pytest.fixture(scope="module")
def summary():
    sets = {name: accepting(count) for name, count in ACCEPTED.items()}
    return summarise(sets, STARTS, {}, draws=200, seed=1, by_seed=BY_SEED, chains=CHAINS)


def test_a_policy_of_several_seeds_is_their_mean_and_says_what_each_seed_reached(summary):
    # Every other prompt has one clip more: 1.5 of 4 under seed 1, 2.5 of 4 under seed 2. Their mean is 2 of 4; they are
    # a quarter apart, so their standard deviation is sqrt(2 (1/8)^2) = 0.1768.
    found = summary["replicates"]["rwr1"]
    rate = found["accept"]["judge"]["all"]

    assert (found["policies"], found["seeds"], found["start"]) == (["rwr1", "rwr1-s2"], [1, 2], "base")
    assert rate["rate"] == pytest.approx(0.5) and rate["n"] == 2 * len(SAMPLES)
    assert rate["of_seeds"] == pytest.approx([0.375, 0.625])
    assert rate["between_seeds"] == pytest.approx(0.1768, abs=1e-4)
    assert rate["low"] < 0.375 and rate["high"] > 0.625  # two seeds that differ so say little of a third
    single = summary["policies"]["rwr1"]["accept"]["judge"]["all"]
    assert single["rate"] == pytest.approx(0.375)


def test_the_difference_to_base_has_the_spread_between_seeds_in_it(summary):
    gap = summary["replicates"]["rwr1"]["minus_base"]["judge"]["all"]

    assert gap["diff"] == pytest.approx(0.125) and gap["of_seeds"] == pytest.approx([0.0, 0.25])
    assert gap["low"] < 0 < gap["high"]
    assert summary["policies"]["rwr1-s2"]["minus_base"]["judge"]["all"]["low"] > 0  # one run alone looked certain


def test_a_policy_is_compared_with_its_start_seed_by_seed(summary):
    """rwr2 gains a clip a prompt in each seed, however far the seeds are apart."""
    found = summary["replicates"]["rwr2"]

    for gap in (found["minus_start"]["judge"]["all"], found["minus"]["rwr1"]["judge"]["all"]):
        assert gap["of_seeds"] == pytest.approx([0.25, 0.25]) and gap["between_seeds"] == pytest.approx(0)
        assert gap["low"] == pytest.approx(0.25) and gap["high"] == pytest.approx(0.25)
    assert found["accept"]["judge"]["all"]["between_seeds"] > 0.1


def test_seeds_of_unrelated_policies_are_not_paired(summary):
    gap = summary["replicates"]["sft1"]["minus"]["rwr1"]["judge"]["all"]

    assert gap["diff"] == pytest.approx(-0.125) and "of_seeds" not in gap
    assert gap["low"] < 0 < gap["high"]


def test_the_best_policy_is_so_over_all_its_seeds_and_compared_with_the_second_over_all_of_them(summary):
    """Of single runs rwr2-s2 and rwr2 would be the first two, which is one policy."""
    best = summary["best"]["judge"]
    gap = summary["replicates"]["rwr2"]["minus"]["rwr1"]["judge"]["all"]

    assert best == {"policy": "rwr2", "over": "rwr1"} | {key: gap[key] for key in ("diff", "low", "high")}


def test_policies_share_training_where_one_run_of_each_seed_is_behind_both():
    seeds = BY_SEED | {"dpo2": {1: "dpo2", 2: "dpo2-s2"}}
    chains = CHAINS | {"dpo2": {"dpo2", "rwr1", "base"}, "dpo2-s2": {"dpo2-s2", "rwr1-s2", "base"}}

    assert share_training(seeds["rwr2"], seeds["rwr1"], chains) and share_training(seeds["rwr1"], seeds["rwr2"], chains)
    assert share_training(seeds["rwr2"], seeds["dpo2"], chains)  # both from rwr1
    assert not share_training(seeds["rwr1"], seeds["sft1"], chains)  # base alone
    fixed = {name: chain | {"once"} for name, chain in CHAINS.items()}  # a policy of one seed behind all of them
    assert not share_training(seeds["rwr1"], seeds["sft1"], fixed)


def test_a_start_that_was_not_evaluated_leaves_the_difference_to_it_out():
    sets = {name: accepting(ACCEPTED[name]) for name in ("base", "rwr2", "rwr2-s2")}
    by_seed = {"rwr2": BY_SEED["rwr2"]}
    found = summarise(sets, STARTS, {}, draws=50, seed=1, by_seed=by_seed, chains=CHAINS)["replicates"]["rwr2"]

    assert "minus_base" in found and "minus_start" not in found


def test_splits_and_categories_have_the_same_figures(summary):
    found = summary["replicates"]["rwr1"]

    assert set(found["accept"]["judge"]) == {"train", "test", "all"}
    assert found["categories"]["falling"]["accept"] == found["accept"]  # of one category


def test_metrics_have_a_row_over_the_seeds_and_each_seed_s_in_detail(summary):
    found = metrics(summary)
    detail = found.pop(DETAIL)

    assert found["rwr1"] == 37.5 and found["rwr1 of 2 seeds"] == 50.0 and found["Δrwr1 of 2 seeds"] == 12.5
    assert not any("-s2" in name for name in found)
    assert detail["accept"]["judge"]["rwr1-s2"]["all"][0] == 62.5
    rate, low, high, *seeds = detail[OVER_SEEDS]["accept"]["judge"]["rwr1"]["all"]
    assert (rate, seeds) == (50.0, [37.5, 62.5]) and low < rate < high
    assert detail[OVER_SEEDS]["minus"]["judge"]["rwr2"]["rwr1"]["all"] == [25.0, 25.0, 25.0, 25.0, 25.0]


def test_a_plot_has_one_point_for_all_seeds(summary):
    assert [(row["policy"], row["rate"]) for row in plot_rows(summary)] == [
        ("base", 0.375), ("sft1", 0.375), ("rwr1", 0.5), ("rwr2", 0.75),
    ]  # fmt: skip


def test_one_seed_leaves_no_trace():
    sets = {name: accepting(ACCEPTED[name]) for name in ("base", "rwr1")}
    found = summarise(sets, STARTS, {}, draws=50, seed=1)

    assert "replicates" not in found and OVER_SEEDS not in metrics(found)[DETAIL]
    assert set(metrics(found)) == {"base", "rwr1", "Δrwr1", DETAIL}
