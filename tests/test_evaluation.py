"""Accept rates, their intervals, and differences between policies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.manifest import StoreError, write_manifest
from data.records import Label, Sample, write_rows
from evaluation.accept import EvaluationSet, headline, load_set, summarise
from evaluation.intervals import estimate

NAN = float("nan")


def clip(prompt: str, seed: int, split: str = "train", category: str = "falling") -> Sample:
    name = f"{prompt}-{seed}"
    return Sample(
        name, prompt, f"the {prompt}", category, split, "any", seed, 9, 8.0, 32, 32, f"videos/{name}.mp4"
    )  # fmt: skip


def label(sample: Sample, answer: bool | None, judge: str = "judge") -> Label:
    return Label(sample.sample_id, judge, answer, None, None, 1, int(answer is None), "its own words")


def evaluated(answers: list[bool | None], samples: list[Sample]) -> EvaluationSet:
    labels = tuple(label(sample, answer) for sample, answer in zip(samples, answers, strict=True))
    return EvaluationSet(Path("unread"), tuple(samples), {"judge": labels})


def summary_of(sets, starts=None, draws=200):
    return summarise(sets, starts or {}, {}, draws=draws, seed=1)


# Intervals


def test_two_prompts_that_disagree_leave_everything_open():
    # Prompt a: 4 of 4; prompt b: 0 of 4. Resampling two prompts gives aa, ab, ba or bb with equal chance: a rate of
    # 1, 1/2, 1/2 or 0, so a quarter of the draws lie at either end and the 2.5th and 97.5th percentiles are 0 and 1.
    found = estimate(np.array([1.0] * 4 + [0.0] * 4), np.array(["a"] * 4 + ["b"] * 4), draws=1000, seed=0)

    assert found == (0.5, 0.0, 1.0, 8)


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
    values, prompts = np.random.default_rng(0).random(60), np.repeat(np.arange(12), 5)

    assert estimate(values, prompts, 300, seed=1) == estimate(values, prompts, 300, seed=1)
    assert estimate(values, prompts, 300, seed=1)[:3] != estimate(values, prompts, 300, seed=2)[:3]


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
    samples = [clip(f"p{i}", seed) for i in range(10) for seed in range(4)]
    base = evaluated([seed < i % 4 for i in range(10) for seed in range(4)], samples)
    better = evaluated([seed < i % 4 + 1 for i in range(10) for seed in range(4)], samples)

    difference = summary_of({"base": base, "better": better})["policies"]["better"]["minus_base"]["judge"]["all"]

    assert tuple(difference.values()) == pytest.approx((0.25, 0.25, 0.25))


def test_a_policy_against_itself_differs_by_nothing():
    samples = [clip(f"p{i}", 1) for i in range(8)]
    one = evaluated([True, False] * 4, samples)

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


def test_categories_have_rates_and_differences_of_their_own():
    samples = [clip("a", 1, category="falling"), clip("b", 1, category="bouncing"), clip("c", 1, "test", "bouncing")]
    sets = {"base": evaluated([True, False, True], samples), "rwr1": evaluated([True, True, True], samples)}

    categories = summary_of(sets)["policies"]["rwr1"]["categories"]

    assert categories["falling"]["accept"]["judge"].keys() == {"train", "all"}
    assert categories["bouncing"]["minus_base"]["judge"]["all"]["diff"] == 0.5


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (clip("a", 2), r"rwr1's clip a-2 was made from .*seed 2.*base's a-1 from .*seed 1"),
        (clip("b", 1), r"prompt b"),
        (replace(clip("a", 1), num_frames=17), "17 frames"),
        (replace(clip("a", 1), width=64), "32x64"),
    ],
)
def test_clips_of_another_seed_prompt_or_size_are_not_paired(other, told):
    sets = {"base": evaluated([True], [clip("a", 1)]), "rwr1": evaluated([True], [other])}

    with pytest.raises(ValueError, match=told):
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


def test_the_summary_tells_how_far_votes_agree_where_there_were_several():
    one = evaluated([True], [clip("a", 1)])
    counts = {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1}
    several = {"r1": counts | {"agreement": AGREEMENT}, "r2": counts | {"agreement": None}}
    judged = {"base": one, "rwr1": replace(one, agreement={"judge": AGREEMENT})}

    summary = summarise(judged, {}, several, draws=10, seed=1)

    assert summary["rounds"] == {"r1": several["r1"], "r2": counts}
    assert summary["policies"]["rwr1"]["agreement"] == {"judge": AGREEMENT}
    assert "agreement" not in summary["policies"]["base"]


def test_the_metrics_are_the_rates():
    one = evaluated([True, False], [clip("a", 1), clip("b", 1)])

    assert headline(summary_of({"base": one})) == {"base": {"judge": {"train": 0.5, "all": 0.5}}}


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
def test_a_set_tells_the_agreement_of_judges_with_several_votes(tmp_path, agreement, found):
    sample = clip("a", 1)
    folder = write_set(tmp_path, [sample], [label(sample, True)], agreement=agreement)

    assert load_set(folder, ["judge"]).agreement == found


def test_labels_of_other_clips_are_refused(tmp_path):
    folder = write_set(tmp_path, [clip("a", 1)], [label(clip("z", 1), True)])

    with pytest.raises(ValueError, match="labels/judge: 1 labels are not of the 1 clips"):
        load_set(folder, ["judge"])


def test_half_written_labels_are_refused(tmp_path):
    folder = write_set(tmp_path, [clip("a", 1)], [label(clip("a", 1), True)])
    (folder / "labels" / "judge" / "manifest.json").unlink()

    with pytest.raises(StoreError, match="labels/judge"):
        load_set(folder, ["judge"])
