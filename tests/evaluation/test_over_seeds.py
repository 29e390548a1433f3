"""Policies of several training seeds in the summary: means of seeds, pairing by seed, what metrics and plots show."""

import pytest

from evaluation.accept import plot_rows, summarise
from evaluation.metrics import DETAIL, OVER_SEEDS, metrics
from evaluation.over_seeds import share_training
from evaluation.selection import BestOf
from tests.evaluation.test_accept import clip, evaluated, scored

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


@pytest.fixture(scope="module")
def chosen():
    """As `summary`, with the best of two of base and of rwr1."""
    sets = {name: accepting(count) for name, count in ACCEPTED.items()}
    best_of = BestOf("judge", 2, ("base", "rwr1"))
    return summarise(sets, STARTS, {}, draws=200, seed=1, best_of=best_of, by_seed=BY_SEED, chains=CHAINS)


BEST = "rwr1 best of 2 by judge"


def test_the_best_of_n_of_a_policy_of_several_seeds_is_one_row_over_them(chosen, summary):
    # Under seed 1 the first clip of each prompt is accepted, and in every other one the second: of the clips 1 and 2
    # one is, of 3 and 4 none: 1/2. Under seed 2 one clip more: 1/2 in 12 prompts and 1 in 12: 3/4. Base has 3/8, rwr1
    # 3/8 and 5/8. The seeds' rates are a quarter apart: sqrt(2 (1/8)^2) = 0.1768.
    found = chosen["replicates"][BEST]
    rate, gap, of_start = (found[key]["judge"]["all"] for key in ("accept", "minus_base", "minus_start"))

    assert (found["policies"], found["seeds"], found["start"]) == ([BEST, "rwr1-s2 best of 2 by judge"], [1, 2], "rwr1")
    assert (rate["rate"], rate["n"], rate["of_seeds"]) == (0.625, 2 * len(SAMPLES) // 2, [0.5, 0.75])
    assert rate["between_seeds"] == pytest.approx(0.1768, abs=1e-4)
    assert gap["diff"] == pytest.approx(0.25) and gap["of_seeds"] == pytest.approx([0.125, 0.375])
    assert gap["low"] < 0 < gap["high"]
    assert of_start["of_seeds"] == pytest.approx([0.125, 0.125])  # seed by seed, so that they do not differ
    assert of_start["between_seeds"] == pytest.approx(0) and of_start["low"] > 0
    assert found["minus"]["rwr1"]["judge"]["all"] == of_start  # rwr1 is also a policy of these seeds
    assert found["categories"]["falling"]["minus_base"] == found["minus_base"]
    for name, one in summary["replicates"].items():
        assert chosen["replicates"][name] == one, name
    assert set(chosen["replicates"]) - set(summary["replicates"]) == {BEST} and chosen["best"] == summary["best"]
    for seed, name in enumerate(found["policies"]):
        single = chosen["policies"][name]
        assert single["minus_base"]["judge"]["all"]["diff"] == pytest.approx(gap["of_seeds"][seed])
        assert single["minus_start"]["judge"]["all"]["diff"] == pytest.approx(of_start["of_seeds"][seed])


def test_seeds_that_choose_other_clips_count_as_much_as_those_that_choose_the_same():
    # Of each prompt's two clips both seeds choose one: of a another one, of b and c the same. Accepted: both of a, none
    # of b and c: 1/3. A mean over all clips that were chosen would be 2 of 4.
    samples = [clip(prompt, seed) for prompt in "abc" for seed in range(2)]
    physics = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    choices = {"base": [0.9, 0.1], "rwr1": [0.9, 0.1], "rwr1-s2": [0.1, 0.9]}  # of a
    sets = {
        name: scored({"judge": [*of_a, 0.9, 0.1, 0.9, 0.1], "physics": physics}, samples)
        for name, of_a in choices.items()
    }
    by_seed, best_of = {"rwr1": BY_SEED["rwr1"]}, BestOf("judge", 2, ("rwr1",))
    found = summarise(sets, STARTS, {}, draws=50, seed=1, best_of=best_of, by_seed=by_seed, chains=CHAINS)

    assert found["replicates"][BEST]["accept"]["physics"]["all"]["rate"] == pytest.approx(1 / 3)
    assert list(found["policies"]) == [*sets, BEST, "rwr1-s2 best of 2 by judge"]


def test_metrics_have_what_was_chosen_in_detail_alone_and_a_plot_has_one_point_for_all_seeds(chosen, summary):
    found = metrics(chosen)
    detail = found.pop(DETAIL)

    assert found.keys() == metrics(summary).keys() - {DETAIL}
    assert detail[OVER_SEEDS]["accept"]["judge"][BEST]["all"][3:] == [50.0, 75.0]
    assert [row["policy"] for row in plot_rows(chosen) if "best" in row["policy"]] == ["base best of 2 by judge", BEST]


def test_one_seed_leaves_no_trace():
    sets = {name: accepting(ACCEPTED[name]) for name in ("base", "rwr1")}
    found = summarise(sets, STARTS, {}, draws=50, seed=1)

    assert "replicates" not in found and OVER_SEEDS not in metrics(found)[DETAIL]
    assert set(metrics(found)) == {"base", "rwr1", "Δrwr1", DETAIL}
