"""Accept rates, and differences between policies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.manifest import write_manifest
from data.records import Asked, Label, Sample, Verdict, write_rows
from evaluation.accept import as_json, plot_rows, summarise
from evaluation.metrics import headline, metrics
from evaluation.questions import read_answers
from evaluation.selection import BestOf, TopK
from evaluation.sets import EvaluationSet, load_set, scores

NAN = float("nan")


def clip(prompt: str, seed: int, split: str = "train", category: str = "falling") -> Sample:
    name = f"{prompt}-{seed}"
    return Sample(
        name, prompt, f"the {prompt}", category, split, "any", seed, 9, 8.0, 32, 32, f"videos/{name}.mp4"
    )  # fmt: skip


def label(sample: Sample, answer: bool | None, judge: str = "judge") -> Label:
    return Label(sample.sample_id, judge, answer, None, None, 1, int(answer is None), "its own words")


def scored(values: dict[str, list[float | None]], samples: list[Sample], column: str = "p_accept") -> EvaluationSet:
    """Judges that tell a probability or a score; a clip is accepted from a half on."""
    labels = {
        judge: tuple(
            replace(label(sample, None if value is None else value >= 0.5, judge), **{column: value})
            for sample, value in zip(samples, of_judge, strict=True)
        )
        for judge, of_judge in values.items()
    }
    return EvaluationSet(Path("unread"), tuple(samples), labels)


def evaluated(answers: list[bool | None], samples: list[Sample]) -> EvaluationSet:
    labels = tuple(label(sample, answer) for sample, answer in zip(samples, answers, strict=True))
    return EvaluationSet(Path("unread"), tuple(samples), {"judge": labels})


def summary_of(sets, starts=None, draws=200, **selections):
    return summarise(sets, starts or {}, {}, draws=draws, seed=1, **selections)


# The summary


def test_the_summary_has_rates_by_judge_and_split():
    samples = [clip("a", 1), clip("a", 2), clip("b", 1, "test"), clip("b", 2, "test")]
    summary = summary_of({"base": evaluated([True, False, True, True], samples)})

    splits = summary["policies"]["base"]["accept"]["judge"]
    assert {split: (found["rate"], found["n"]) for split, found in splits.items()} == {
        "train": (0.5, 2),
        "test": (1.0, 2),
        "all": (0.75, 4),
    }
    assert set(splits["all"]) == {"rate", "low", "high", "n"}


def test_unlabelled_clips_are_counted_beside_the_rate():
    samples = [clip("a", 1), clip("b", 1), clip("c", 1)]
    policy = summary_of({"base": evaluated([True, None, None], samples)})["policies"]["base"]

    assert policy["accept"]["judge"]["all"]["rate"] == 1.0
    assert policy["accept"]["judge"]["all"]["n"] == 1
    assert policy["unlabelled"]["judge"]["all"] == 2


def test_the_difference_is_paired_clip_by_clip():
    # Both policies accept half. Clip by clip, rwr1 wins two, loses none and ties two where base is known.
    samples = [clip(prompt, 1) for prompt in "abcdef"]
    base = evaluated([False, False, True, False, None, True], samples)
    rwr1 = evaluated([True, True, True, False, False, None], samples)

    difference = summary_of({"base": base, "rwr1": rwr1})["policies"]["rwr1"]["minus_base"]["judge"]["all"]

    assert difference["diff"] == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert set(difference) == {"diff", "low", "high"}


def test_pairing_makes_a_steady_gain_certain():
    # A gain of exactly one clip in each prompt has no spread over prompts, however much the prompts differ.
    samples = [clip(f"p{i}", seed) for i in range(20) for seed in range(4)]
    base = evaluated([seed < i % 4 for i in range(20) for seed in range(4)], samples)
    better = evaluated([seed < i % 4 + 1 for i in range(20) for seed in range(4)], samples)

    difference = summary_of({"base": base, "better": better})["policies"]["better"]["minus_base"]["judge"]["all"]

    assert tuple(difference.values()) == pytest.approx((0.25, 0.25, 0.25))


def test_a_policy_against_itself_differs_by_nothing():
    samples = [clip(f"p{i}", 1) for i in range(20)]
    one = evaluated([True, False] * 10, samples)

    difference = summary_of({"base": one, "copy": one})["policies"]["copy"]["minus_base"]["judge"]["all"]

    assert tuple(difference.values()) == (0.0, 0.0, 0.0)


def test_a_round_is_compared_with_the_policy_that_it_started_from():
    samples = [clip("a", 1), clip("b", 1)]
    sets = {
        "base": evaluated([False, False], samples),
        "rwr1": evaluated([True, False], samples),
        "rwr2": evaluated([True, True], samples),
    }

    policies = summary_of(sets, {"rwr1": "base", "rwr2": "rwr1"})["policies"]

    assert policies["rwr2"]["minus_base"]["judge"]["all"]["diff"] == 1.0
    assert policies["rwr2"]["minus_start"]["judge"]["all"]["diff"] == 0.5
    assert "minus_base" not in policies["base"]
    assert "minus_start" not in policies["base"]


def test_a_start_that_is_not_evaluated_gives_no_difference_to_it():
    samples = [clip("a", 1)]
    sets = {"base": evaluated([False], samples), "rwr2": evaluated([True], samples)}

    assert "minus_start" not in summary_of(sets, {"rwr2": "rwr1"})["policies"]["rwr2"]


def test_the_best_of_the_trained_has_the_interval_of_its_difference_to_the_second():
    # Of each prompt's 4 clips base has 1 accepted, a 2, b 3 and c 2: b leads a, the first of the equal ones.
    samples = [clip(f"p{i}", seed) for i in range(20) for seed in range(4)]
    accepted = {"base": 1, "a": 2, "b": 3, "c": 2, "extended": 4}  # the last is not trained
    sets = {
        name: evaluated([seed < count for _ in range(20) for seed in range(4)], samples)
        for name, count in accepted.items()
    }

    assert summary_of(sets, {"a": "base", "b": "base", "c": "a"})["best"] == {
        "judge": {"policy": "b", "over": "a", "diff": 0.25, "low": 0.25, "high": 0.25}
    }
    assert summary_of(sets, {"a": "base"})["best"] == {}


def test_categories_have_rates_and_differences_of_their_own():
    samples = [clip("a", 1, category="falling"), clip("b", 1, category="bouncing"), clip("c", 1, "test", "bouncing")]
    sets = {"base": evaluated([True, False, True], samples), "rwr1": evaluated([True, True, True], samples)}

    categories = summary_of(sets)["policies"]["rwr1"]["categories"]

    assert categories["falling"]["accept"]["judge"].keys() == {"train", "all"}
    assert categories["bouncing"]["minus_base"]["judge"]["all"]["diff"] == 0.5


def test_clips_of_another_seed_prompt_or_size_are_not_paired():
    for other, message in (
        (clip("a", 2), r"rwr1's clip a-2 was made from .*seed 2.*base's a-1 from .*seed 1"),
        (clip("b", 1), r"prompt b"),
        (replace(clip("a", 1), num_frames=17), "17 frames"),
        (replace(clip("a", 1), width=64), "32x64"),
    ):
        sets = {"base": evaluated([True], [clip("a", 1)]), "rwr1": evaluated([True], [other])}

        with pytest.raises(ValueError, match=message):
            summary_of(sets)


def test_sets_of_another_size_are_not_paired():
    sets = {"base": evaluated([True], [clip("a", 1)]), "rwr1": evaluated([True] * 2, [clip("a", 1), clip("a", 2)])}

    with pytest.raises(ValueError, match="rwr1 has 2 evaluation clips, base has 1"):
        summary_of(sets)


def test_rounds_tell_how_they_were_labelled():
    one = evaluated([True], [clip("a", 1)])
    counts = {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1, "unreadable": 1}

    summary = summarise({"base": one}, {}, {"r1": counts}, draws=10, seed=1)

    assert summary["rounds"] == {"r1": {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1}}


AGREEMENT = {"label": {"clips": 2, "not_unanimous": 1, "observed": 0.5, "kappa": -0.25}}


def test_the_summary_has_the_agreement_of_several_votes():
    one = evaluated([True], [clip("a", 1)])
    counts = {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1}
    several = {"r1": counts | {"agreement": AGREEMENT}, "r2": counts | {"agreement": None}}
    judged = {"base": one, "rwr1": replace(one, agreement={"judge": AGREEMENT})}

    summary = summarise(judged, {}, several, draws=10, seed=1)

    assert summary["rounds"] == {"r1": several["r1"], "r2": counts}
    assert summary["policies"]["rwr1"]["agreement"] == {"judge": AGREEMENT}
    assert "agreement" not in summary["policies"]["base"]


# Scores


def test_scores_have_means_and_paired_differences():
    samples = [clip("a", 1), clip("a", 2), clip("b", 1, "test", "bouncing")]
    sets = {"base": scored({"judge": [0.1, 0.3, 0.8]}, samples), "rwr1": scored({"judge": [0.4, None, 0.9]}, samples)}

    rwr1 = summary_of(sets)["policies"]["rwr1"]

    assert rwr1["scores"]["judge"]["all"]["mean"] == pytest.approx((0.4 + 0.9) / 2)
    assert rwr1["scores"]["judge"]["all"]["n"] == 2
    assert rwr1["score_minus_base"]["judge"]["all"]["diff"] == pytest.approx((0.3 + 0.1) / 2)
    assert rwr1["score_minus_base"]["judge"]["train"]["diff"] == pytest.approx(0.3)
    assert rwr1["categories"]["bouncing"]["scores"]["judge"]["test"]["mean"] == pytest.approx(0.9)


def test_a_judge_of_labels_alone_has_no_scores_beside_its_accept_rate():
    samples = [clip("a", 1), clip("b", 1)]
    certain = scored({"physics": [0.0, 1.0]}, samples)  # probabilities, but the label says all of them

    policies = [summary_of({"base": one})["policies"]["base"] for one in (evaluated([True, False], samples), certain)]

    assert [policy["scores"] for policy in policies] == [{}, {}]


def test_a_metric_has_scores_and_no_accept_rate_and_nobody_is_warned():
    samples = [clip("a", 1), clip("b", 1)]
    scores = zip(samples, (1.0, 0.0), strict=True)
    labels = tuple(Label(one.sample_id, "flow", None, None, score, 1, 0, None) for one, score in scores)
    base = EvaluationSet(Path("unread"), tuple(samples), evaluated([True, False], samples).labels | {"flow": labels})

    summary = summary_of({"base": base})
    policy = summary["policies"]["base"]

    assert list(policy["accept"]) == list(policy["unlabelled"]) == ["judge"]
    assert policy["scores"]["flow"]["all"]["mean"] == 0.5  # 0 and 1 too, for there is no label that says it
    assert summary["warnings"] == []
    assert headline(summary) == {"base": 50.0}


def test_a_source_of_several_measures_is_a_judge_for_each(tmp_path):
    samples = [clip("a", 1), clip("b", 1)]
    folder = write_set(tmp_path, samples, [label(one, None, "all") for one in samples], measures=["still", "flow"])
    rows = [
        Verdict(one.sample_id, "all", question, 0, None, None, score, None, None, "m", "1", "h", [0], None, None, error)
        for one, flow in zip(samples, (2.5, None), strict=True)
        for question, score, error in (("flow", flow, None if flow else "one frame"), ("still", 0.5, None))
    ]
    write_rows(folder / "labels" / "judge" / "verdicts.parquet", rows, Verdict)

    found = load_set(folder, ["judge"]).labels

    assert {name: [one.score for one in of] for name, of in found.items()} == {
        "judge/still": [0.5, 0.5],
        "judge/flow": [2.5, None],
    }
    assert found["judge/flow"][1].reason == "one frame"


def test_clips_are_ranked_by_one_column_for_all_policies():
    samples = [clip("a", 1), clip("b", 1)]
    measured = scored({"judge": [3.5, None]}, samples, "score")
    likely = scored({"judge": [0.2, 0.9]}, samples)

    by_score = scores({"base": likely, "rwr1": measured}, "judge")  # base has no score, and 0.9 is none
    by_chance = scores({"base": likely}, "judge")
    by_label = scores({"base": evaluated([True, None], samples)}, "judge")

    np.testing.assert_equal(by_score, {"base": [NAN, NAN], "rwr1": [3.5, NAN]})
    np.testing.assert_equal(by_chance, {"base": [0.2, 0.9]})
    np.testing.assert_equal(by_label, {"base": [1.0, NAN]})


# The best k of a prompt


def two_judges() -> dict[str, EvaluationSet]:
    """Two prompts of three clips; what judge ranks first, physics rejects in prompt b."""
    samples = [clip(prompt, seed) for prompt in "ab" for seed in (1, 2, 3)]
    base = {"judge": [0.9, 0.2, 0.6, 0.1, 0.8, 0.3], "physics": [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]}
    rwr1 = {"judge": [0.9, 0.9, 0.9, 0.7, 0.8, 0.9], "physics": [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]}
    return {"base": scored(base, samples), "rwr1": scored(rwr1, samples)}


def test_the_best_k_are_ranked_by_the_judge_that_is_reported():
    base = summary_of(two_judges(), top_k=TopK(2, None))["policies"]["base"]

    # judge: a has 0.9 and 0.6, b 0.8 and 0.3, three of four from a half on. physics: a has 1 and 1, b 1 and 0.
    assert base["top_k"]["judge"]["all"]["rate"] == 0.75
    assert base["top_k"]["physics"]["all"]["rate"] == 0.75
    assert base["top_k"]["judge"]["all"]["n"] == 4
    assert base["top_k_scores"]["judge"]["all"]["mean"] == pytest.approx((0.9 + 0.6 + 0.8 + 0.3) / 4)


def test_the_best_k_may_be_ranked_by_another_judge_than_the_one_that_is_reported():
    summary = summary_of(two_judges(), top_k=TopK(2, "judge"))
    base, rwr1 = summary["policies"]["base"], summary["policies"]["rwr1"]

    # judge takes a's first and third, b's second and third: physics accepts the two of a.
    assert base["top_k"]["physics"]["all"]["rate"] == 0.5
    # of rwr1 it takes a's first two, tied, and b's last two
    assert rwr1["top_k_minus_base"]["physics"]["all"] == {"diff": 0.0, "low": None, "high": None}
    assert summary["top_k"] == {"k": 2, "by": "judge"}


def test_without_top_k_there_is_none():
    summary = summary_of(two_judges())

    assert summary["top_k"] is None
    assert not [key for key in summary["policies"]["rwr1"] if key.startswith("top_k")]


# The best of n as a baseline


def best_of_two(sets, judge="judge", **more):
    return summary_of(sets, best_of=BestOf(judge, 2), **more)["policies"][f"base best of 2 by {judge}"]


def test_the_best_of_n_is_a_policy_at_n_times_the_cost():
    samples = [clip(prompt, seed) for prompt in "ab" for seed in range(4)]
    judge = [0.9, 0.1, 0.2, 0.7, 0.4, 0.3, 0.6, 0.8]  # takes a's 1st and 4th, b's 1st and 4th
    physics = [1.0, 0.0, 1.0, 0.0, None, 1.0, 0.0, 1.0]  # of those: accepted, rejected, unlabelled, accepted
    row = best_of_two({"base": scored({"judge": judge, "physics": physics}, samples)})

    assert row["accept"]["judge"]["all"]["rate"] == 0.75
    assert row["accept"]["physics"]["all"]["rate"] == pytest.approx(2 / 3)
    assert row["unlabelled"]["physics"] == {"train": 1, "all": 1}
    assert row["scores"]["judge"]["all"]["mean"] == pytest.approx((0.9 + 0.7 + 0.4 + 0.8) / 4)
    # base: physics accepts 4 of 7
    assert row["minus_base"]["physics"]["all"]["diff"] == pytest.approx(2 / 3 - 4 / 7)
    assert row["baseline"] == {
        "kind": "best_of", "of": "base", "judge": "judge", "n": 2, "samples_per_clip": 2, "clips": 4, "not_ranked": 0
    }  # fmt: skip
    assert row["start"] is None


def test_the_best_of_n_is_paired_with_the_base_by_prompt():
    # In every prompt base has one more accepted clip of four to gain: a half of the groups' choices against a quarter.
    samples = [clip(f"p{i}", seed) for i in range(20) for seed in range(4)]
    base = scored({"judge": [0.9 if seed == i % 4 else 0.1 for i in range(20) for seed in range(4)]}, samples)

    assert best_of_two({"base": base})["minus_base"]["judge"]["all"] == {"diff": 0.25, "low": 0.25, "high": 0.25}


def test_the_best_of_n_of_a_trained_policy_is_compared_with_base_and_with_the_policy():
    samples = [clip(prompt, seed) for prompt in "ab" for seed in range(4)]
    judge = [0.9, 0.1, 0.2, 0.7, 0.4, 0.3, 0.6, 0.8]  # takes a's 1st and 4th, b's 1st and 4th
    physics = [1.0, 0.0, 1.0, 0.0, None, 1.0, 0.0, 1.0]  # 4 of 7; of those that are taken 2 of 3
    base = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]  # 3 of 8; the judge takes the 1st and 3rd of each prompt: 1 of 4
    sets = {
        "base": scored({"judge": [0.5] * 8, "physics": base}, samples),
        "rwr1": scored({"judge": judge, "physics": physics}, samples),
    }
    summary = summary_of(sets, {"rwr1": "base"}, best_of=BestOf("judge", 2, ("base", "rwr1")))
    row = summary["policies"]["rwr1 best of 2 by judge"]

    assert list(summary["policies"]) == ["base", "rwr1", "base best of 2 by judge", "rwr1 best of 2 by judge"]
    assert (row["start"], row["baseline"]["of"], row["baseline"]["clips"]) == ("rwr1", "rwr1", 4)
    assert row["accept"]["physics"]["all"]["rate"] == pytest.approx(2 / 3)
    assert row["minus_base"]["physics"]["all"]["diff"] == pytest.approx(2 / 3 - 3 / 8)
    assert row["minus_start"]["physics"]["all"]["diff"] == pytest.approx(2 / 3 - 4 / 7)
    of_base = summary["policies"]["base best of 2 by judge"]
    assert of_base["accept"]["physics"]["all"]["rate"] == 0.25 and "minus_start" not in of_base


def test_rows_of_a_best_of_n_change_no_other_row_and_not_which_policy_is_the_best():
    sets = two_judges() | {"rwr2": two_judges()["rwr1"]}
    starts = {"rwr1": "base", "rwr2": "rwr1"}
    without, of_base = summary_of(sets, starts), summary_of(sets, starts, best_of=BestOf("judge", 3))
    found = summary_of(sets, starts, best_of=BestOf("judge", 3, ("rwr2", "base")))

    assert found["best"] == of_base["best"] == without["best"] != {}
    assert found["policies"]["base best of 3 by judge"] == of_base["policies"]["base best of 3 by judge"]
    assert {name: found["policies"][name] for name in sets} == without["policies"]


def test_a_baseline_stands_beside_policies_that_are_none():
    summary = summary_of(two_judges(), {"rwr1": "base"}, top_k=TopK(2, None), best_of=BestOf("judge", 2))
    row = summary["policies"]["base best of 2 by judge"]

    assert list(summary["policies"]) == ["base", "rwr1", "base best of 2 by judge"]
    assert summary["policies"]["base"]["baseline"] is None
    assert summary["policies"]["rwr1"]["baseline"] is None
    assert row["categories"].keys() == {"falling"}
    assert "top_k" not in row  # the best 2 of a clip that was chosen already compare with no policy's best 2 of 3
    assert summary["agreement"]["policies"]["judge|physics"]["n"] == 2  # not a third, of the same clips


# Agreement of judges; its numbers are tested beside evaluation.agreement


def test_the_summary_has_the_agreement_of_judges():
    agreement = summary_of(two_judges())["agreement"]

    # The same label on 4 of base's six clips and on 4 of rwr1's.
    assert agreement["clips"]["judge|physics"]["agree"] == pytest.approx(8 / 12)
    assert agreement["policies"]["judge|physics"] == {"pearson": None, "p_value": None, "n": 2}
    assert agreement["prompts"]["judge|physics"]["n"] == 2  # prompts, however many policies


def test_one_judge_agrees_with_nobody():
    one = evaluated([True], [clip("a", 1)])

    assert summary_of({"base": one})["agreement"] == {"clips": {}, "policies": {}, "prompts": {}}


# Warnings


def test_a_judge_that_left_much_unlabelled_is_warned_of_with_the_bounds_of_its_rate():
    samples = [clip("a", seed) for seed in range(20)]
    sets = {
        "base": evaluated([None] + [True] * 19, samples),  # 5 %, no more
        "rwr1": evaluated([None] * 4 + [True] * 6 + [False] * 10, samples),
    }

    assert summary_of(sets)["warnings"] == [
        "judge left 4 of rwr1's 20 clips unlabelled, 20.0 %. Its accept rate is over the other 16; over all of them it "
        "would lie between 30.0 % and 50.0 %"
    ]


def test_a_judge_that_labelled_nothing_is_warned_of():
    (warning,) = summary_of({"base": evaluated([None, None], [clip("a", 1), clip("b", 1)])})["warnings"]

    assert "2 of base's 2 clips" in warning
    assert warning.endswith("between 0.0 % and 100.0 %")


def test_a_start_that_is_not_evaluated_is_warned_of():
    samples = [clip("a", 1)]
    sets = {"base": evaluated([False], samples), "rwr2": evaluated([True], samples)}

    assert summary_of(sets, {"rwr2": "rwr1", "dpo7": "rwr1"})["warnings"] == [
        "rwr2 was trained from rwr1, which is not in evaluate.policies: no difference to it"
    ]


# What DVC shows


def test_the_metrics_are_the_rates_of_the_first_judge_in_per_cent_and_the_differences_to_base():
    samples = [clip("a", 1), clip("a", 2), clip("a", 3)]
    both = {"base": scored({"judge": [0.9, 0.1, 0.2], "physics": [0.0, 1.0, 1.0]}, samples)}
    both["rwr1"] = scored({"judge": [0.9, 0.8, 0.2], "physics": [0.0, 1.0, 1.0]}, samples)

    found = headline(summary_of(both, best_of=BestOf("judge", 3)))

    assert found == {"base": 33.33, "rwr1": 66.67, "Δrwr1": 33.33}


def test_the_metrics_have_the_table_of_each_judge_and_of_baselines_as_lists_which_dvc_leaves_out():
    # One prompt: a rate, and no interval.
    samples = [clip("a", 1), clip("a", 2), clip("a", 3)]
    both = {"base": scored({"judge": [0.9, 0.1, 0.2], "physics": [0.0, 1.0, 1.0]}, samples)}
    both["rwr1"] = scored({"judge": [0.9, 0.8, 0.2], "physics": [0.0, 1.0, 1.0]}, samples)
    rounds = {"r1": {"samples": 4, "accepted": 1, "rejected": 2, "unlabelled": 1}}

    summary = summarise(both, {"rwr1": "base"}, rounds, draws=20, seed=1, best_of=BestOf("judge", 3))
    detail = metrics(summary)["in detail"]

    third, two_thirds = [33.3, None, None], [66.7, None, None]
    assert detail["accept"]["physics"]["base"] == {"train": two_thirds, "all": two_thirds}
    assert detail["accept"]["judge"]["base best of 3 by judge"]["all"] == [100.0, None, None]
    assert detail["minus_base"]["judge"]["rwr1"]["all"] == detail["minus_start"]["judge"]["rwr1"]["all"] == third
    assert "rwr1" in detail["minus_base"]["physics"] and "base" not in detail["minus_base"]["physics"]
    assert detail["rounds"] == {"r1": [1, 2, 1]} and "scores" not in detail


def test_the_metrics_are_scores_where_no_judge_labels():
    samples = [clip("a", 1), clip("b", 1)]

    def by_flow(*values: float) -> EvaluationSet:
        labels = [Label(s.sample_id, "flow", None, None, x, 1, 0, None) for s, x in zip(samples, values, strict=True)]
        return EvaluationSet(Path("unread"), tuple(samples), {"flow": tuple(labels)})

    found = metrics(summary_of({"base": by_flow(1.0, 0.5), "rwr1": by_flow(2.0, 0.5)}))

    detail = found.pop("in detail")
    assert found == {"base": 0.75, "rwr1": 1.25, "Δrwr1": 0.5}
    assert detail["scores"]["flow"]["base"]["all"] == [0.75, None, None]  # of two prompts
    assert detail["score_minus_base"]["flow"]["rwr1"]["all"] == [0.5, None, None]
    assert "accept" not in detail and "minus_base" not in detail


def test_a_plot_has_a_row_for_each_policy_and_judge_that_labelled_any():
    samples = [clip("a", 1), clip("b", 1)]
    summary = summary_of({"base": scored({"judge": [0.9, 0.1], "people": [None, None]}, samples)})

    assert plot_rows(summary) == [{"policy": "base", "judge": "judge", "rate": 0.5, "low": None, "high": None, "n": 2}]


def test_equal_inputs_give_equal_bytes():
    one, two = (
        as_json(summary_of(two_judges(), {"rwr1": "base"}, top_k=TopK(2, "judge"), best_of=BestOf("judge", 3)))
        for _ in range(2)
    )

    assert one == two


# From disk


def write_set(folder: Path, samples: list[Sample], labels: list[Label], **facts) -> Path:
    write_rows(folder / "samples" / "metadata.parquet", samples, Sample)
    write_manifest(folder / "samples", "clip_set")
    write_rows(folder / "labels" / "judge" / "labels.parquet", labels, Label)
    write_manifest(folder / "labels" / "judge", "labels", **facts)
    return folder


def test_a_set_is_read_in_one_order_whatever_order_it_was_written_in(tmp_path):
    samples = [clip("b", 1), clip("a", 2), clip("a", 1)]
    labels = [label(samples[1], True), label(samples[0], False), label(samples[2], None)]

    found = load_set(write_set(tmp_path, samples, labels), ["judge"])

    assert [sample.sample_id for sample in found.samples] == ["a-1", "a-2", "b-1"]
    assert [one.label for one in found.labels["judge"]] == [None, True, False]


@pytest.mark.parametrize(("agreement", "found"), [(AGREEMENT, {"judge": AGREEMENT}), (None, {})])
def test_a_set_has_the_agreement_of_judges_with_several_votes(tmp_path, agreement, found):
    sample = clip("a", 1)
    folder = write_set(tmp_path, [sample], [label(sample, True)], agreement=agreement)

    assert load_set(folder, ["judge"]).agreement == found


def test_a_policy_without_evaluation_clips_is_named_with_the_stage_that_makes_them(tmp_path):
    with pytest.raises(ValueError, match=r"rwr7/samples is not there: rwr7 has no .* `dvc repro eval-generate@rwr7`"):
        load_set(tmp_path / "rwr7", ["judge"])


def test_a_judge_without_labels_is_named_with_the_stage_that_makes_them(tmp_path):
    folder = write_set(tmp_path / "rwr7", [clip("a", 1)], [label(clip("a", 1), True)])

    with pytest.raises(ValueError, match=r"labels/gpt is not there: .* `dvc repro eval-label@rwr7-gpt`"):
        load_set(folder, ["judge", "gpt"])


# Questions


def asked_of(
    folder: Path, samples: list[Sample], answers: dict[str, list[bool | None]], wanted: dict[str, bool]
) -> None:
    """Verdicts of one or more questions, each with a row for each clip that was asked it; None: no answer."""
    rows = [
        verdict_of(sample, question, answer)
        for question, of_question in answers.items()
        for sample, answer in zip(samples, of_question, strict=False)
    ]
    write_rows(folder / "verdicts.parquet", rows, Verdict)
    asked = {(row.sample_id[0], row.question) for row in rows}
    write_rows(
        folder / "questions.parquet",
        [Asked(f"the {prompt}", name, "?", "Yes", "No", wanted[name], True) for prompt, name in sorted(asked)],
        Asked,
    )
    write_manifest(folder, "labels")


def verdict_of(sample: Sample, question: str, answer: bool | None) -> Verdict:
    error = "refused" if answer is None else None
    return Verdict(
        sample.sample_id, "judge", question, 0, answer, None, None, None, None, "m", "1", "h", [0], None, None, error
    )


def test_the_rates_of_questions_are_over_the_clips_that_were_asked_them(tmp_path):
    # Prompt a's two clips are asked about shape and jump, where No is wanted; b's two about shape alone.
    samples = [clip("a", 0), clip("a", 1), clip("b", 0, "test"), clip("b", 1, "test")]
    wanted = {"shape": True, "jump": False}
    asked_of(tmp_path / "base", samples, {"shape": [True, False, False, None], "jump": [True, True]}, wanted)
    asked_of(tmp_path / "rwr1", samples, {"shape": [True, True, False, True], "jump": [False, True]}, wanted)
    sets = {
        name: replace(evaluated([True] * 4, samples), answers={"judge": read_answers(tmp_path / name, samples)})
        for name in ("base", "rwr1")
    }
    policies = summary_of(sets, starts={"rwr1": "base"})["policies"]

    shape, jump = (policies["base"]["questions"]["judge"][name] for name in ("shape", "jump"))
    assert (shape["all"]["rate"], shape["all"]["n"]) == (pytest.approx(1 / 3), 3)  # b's second has no answer
    assert (shape["train"]["rate"], shape["test"]["rate"], shape["test"]["n"]) == (0.5, 0.0, 1)
    assert jump["all"] == {"rate": 0.0, "low": None, "high": None, "n": 2} and jump["test"]["n"] == 0
    gap = policies["rwr1"]["questions_minus_base"]["judge"]
    assert gap["shape"]["all"]["diff"] == pytest.approx(1 / 3)  # of the three clips known to both, one more
    assert (gap["jump"]["all"]["diff"], gap["jump"]["test"]["diff"]) == (0.5, None)
    assert policies["rwr1"]["questions_minus_start"]["judge"] == gap
    assert "questions_minus_base" not in policies["base"]


def test_several_votes_count_as_their_majority_and_a_tie_as_unknown(tmp_path):
    samples = [clip("a", 0), clip("b", 0)]
    votes = {"a-0": [True, True, False], "b-0": [True, False]}
    rows = [
        replace(verdict_of(sample, question, answer), vote=vote)
        for sample in samples
        for question in ("shape", "jump")
        for vote, answer in enumerate(votes[sample.sample_id])
    ]
    write_rows(tmp_path / "verdicts.parquet", rows, Verdict)
    asked = [Asked(f"the {p}", q, "?", "Yes", "No", q == "shape", True) for p in "ab" for q in ("shape", "jump")]
    write_rows(tmp_path / "questions.parquet", asked, Asked)
    write_manifest(tmp_path, "labels")

    found = read_answers(tmp_path, samples)
    assert {name: values.tolist() for name, values in found.items()} == {
        "shape": [1.0, pytest.approx(NAN, nan_ok=True)],
        "jump": [0.0, pytest.approx(NAN, nan_ok=True)],
    }


def test_a_judge_of_one_question_has_no_rates_of_questions():
    samples = [clip("a", 0)]
    assert "questions" not in summary_of({"base": evaluated([True], samples)})["policies"]["base"]
