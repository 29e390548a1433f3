"""What accept rates do not show: pass@k, diversity, motion, reasons, wins, and how the summary puts them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.manifest import write_manifest
from data.records import ClipDrift, ClipMotion, Label, PromptSpread, Sample
from evaluation.effects.diversity import mean_distance, similarity, spread_of, spreads, vendi_score
from evaluation.effects.figures import Figures
from evaluation.effects.pass_at import by_prompt, pass_at, within
from evaluation.effects.reasons import MOST, OTHERS, count_reasons
from evaluation.effects.rows import Effects, read_effects, write_effects
from evaluation.effects.seeds import difference_by_seed, estimate_by_seed
from evaluation.effects.summary import effects_of, effects_over_seeds
from evaluation.effects.wins import wins
from evaluation.intervals import difference_by_prompt, estimate
from evaluation.sets import EvaluationSet
from report.effects import drifts, effects_table, reason_tables
from report.table import OPEN, WORSE
from tests.support.training import write_clip_set

NAN = float("nan")

# pass@k


def test_pass_at_k_is_the_part_of_the_sets_of_k_clips_that_hold_an_accepted_one():
    # Of 4 clips one is accepted. Of the 6 pairs 3 hold it; of the 4 triples 3 do; the only set of four does.
    assert [pass_at(4, 1, k) for k in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert pass_at(4, 0, 4) == 0.0
    for wrong in ((4, 1, 5), (4, 1, 0), (4, 5, 1)):
        with pytest.raises(ValueError, match="k from 1 to the clips"):
            pass_at(*wrong)


def test_pass_at_1_is_the_rate_and_more_clips_never_do_worse():
    for accepted in range(17):
        found = [pass_at(16, accepted, k) for k in range(1, 17)]
        assert found[0] == pytest.approx(accepted / 16)
        assert found == sorted(found)


def test_an_unlabelled_clip_is_left_out_of_its_prompts_clips():
    accepted = np.array([1, 0, NAN, 0, 0, NAN, NAN, NAN])
    prompts = np.array([0, 0, 0, 0, 1, 1, 2, 2])

    # prompt 0: one of three; prompt 1: pass@2 of one clip is pass@1; prompt 2: nothing is known
    np.testing.assert_allclose(by_prompt(accepted, prompts, 2), [2 / 3, 0.0, NAN])


def test_a_k_above_the_clips_of_a_prompt_is_all_of_them():
    assert within((1, 4, 16, 32), 16) == [1, 4, 16]
    assert within((16, 1), 2) == [1, 2]


# Diversity


def test_the_vendi_score_counts_the_clips_that_differ():
    equal, apart = np.ones((4, 4)), np.eye(4)
    in_pairs = np.kron(np.eye(2), np.ones((2, 2)))

    assert [vendi_score(one) for one in (equal, in_pairs, apart)] == pytest.approx([1, 2, 4])
    assert [mean_distance(one) for one in (equal, in_pairs, apart)] == pytest.approx([0, 2 / 3, 1])
    # two clips of cosine 0.6: eigenvalues 0.8 and 0.2 of K / 2
    assert vendi_score(np.array([[1, 0.6], [0.6, 1]])) == pytest.approx(np.exp(-0.8 * np.log(0.8) - 0.2 * np.log(0.2)))


def test_clips_that_differ_half_as_much_are_more_similar():
    clips = np.array([[1.0], [-1.0]])  # as far from their mean as the base's: (1, 1) and (-1, 1) are orthogonal
    assert spread_of(clips) == 1.0
    assert similarity(clips, 1.0)[0, 1] == pytest.approx(0.0)
    # (0.5, 1) and (-0.5, 1): (1 - 0.25) / (1 + 0.25)
    assert similarity(clips / 2, 1.0)[0, 1] == pytest.approx(0.6)


def test_what_all_clips_share_does_not_change_their_diversity():
    clips = np.random.default_rng(0).normal(size=(8, 50))

    np.testing.assert_allclose(similarity(clips + 100.0, 7.0), similarity(clips, 7.0), atol=1e-9)
    scores = [vendi_score(similarity(clips * size, spread_of(clips))) for size in (0.0, 0.25, 0.5, 1.0)]
    assert scores == sorted(scores) and scores[0] == pytest.approx(1.0)


def test_diversity_is_of_each_prompt_and_unknown_where_nothing_can_be_compared(tmp_path):
    base = write_clip_set(tmp_path / "base", prompts=2, clips=4)
    single = write_clip_set(tmp_path / "single", prompts=2, clips=1)
    still = write_clip_set(tmp_path / "still", prompts=2, clips=4)

    of_base = spreads(base, base)
    assert [(row.prompt_id, row.clips) for row in of_base] == [("p0", 4), ("p1", 4)]
    assert all(2 < row.vendi < 4 and 0.4 < row.distance < 0.8 for row in of_base)
    assert [(row.clips, row.vendi, row.distance) for row in spreads(single, base)] == [(1, None, None)] * 2
    assert [row.vendi for row in spreads(still, single)] == [None, None]  # the base's clips do not differ
    other = write_clip_set(tmp_path / "other", prefix="q")
    with pytest.raises(ValueError, match="no clip of prompt q0"):
        spreads(other, base)


# Reasons, wins


def rejected(reason: str | None, label: bool | None = False) -> Label:
    return Label("x", "judge", label, None, None, 1, 0, reason)


def test_reasons_are_counted_by_policy_without_their_numbers():
    labels = {
        "base": [rejected("moves 3 units, 15 would do"), rejected("moves -4.5 units, 15 would do"), rejected(None)],
        "rwr1": [rejected("vanishes"), rejected("happened as described", True), rejected("no reply", None)],
    }

    assert count_reasons(labels) == {
        "base": {"moves # units, # would do": 2, "no reply": 0, "vanishes": 0},
        "rwr1": {"moves # units, # would do": 0, "no reply": 1, "vanishes": 1},
    }
    assert count_reasons({"base": [rejected(None)]}) == {}


def test_rare_reasons_are_counted_together():
    names = [chr(ord("a") + place) for place in range(MOST + 2)]
    found = count_reasons({"base": [rejected(name) for name in names for _ in range(2)], "rwr1": [rejected("z")]})

    assert len(found["base"]) == MOST + 1
    assert (found["base"][OTHERS], found["rwr1"][OTHERS]) == (4, 1)


def test_wins_count_prompts_and_clips_that_turned():
    # prompt 0: 1 and 1 accepted, one turned either way; prompt 1: one gained; prompt 2: one lost, one not known
    prompts = np.array([0, 0, 1, 1, 2, 2])
    base, own = np.array([1, 0, 0, 0, 1, NAN]), np.array([0, 1, 1, 0, 0, 1])

    found = wins(own, base, prompts)

    assert found["prompts"] == {"rose": 1, "fell": 1, "equal": 1}
    assert found["clips"] == {"gained": 2, "lost": 2, "both": 5}
    swapped = wins(base, own, prompts)
    assert (swapped["prompts"]["rose"], swapped["clips"]["gained"]) == (1, 2)


# The summary, with planted policies: 12 prompts of 16 clips

PROMPTS, CLIPS = 12, 16
SAMPLES = tuple(
    Sample(f"p{p:02d}-{i:02d}", f"p{p:02d}", "a cup", "c", ("train", "test")[p % 2], "any", i, 9, 8.0, 32, 32, "x")
    for p in range(PROMPTS)
    for i in range(CLIPS)
)


def planted(accepts, motion=lambda p, i: 8.0 + i // 2 % 3, vendi=6.0, drift=0.0) -> tuple[EvaluationSet, Effects]:
    """A policy by what holds of clip i of prompt p."""
    places = [(p, i) for p in range(PROMPTS) for i in range(CLIPS)]
    labels = tuple(
        Label(one.sample_id, "judge", accepts(*place), None, None, 1, 0, "why 1")
        for one, place in zip(SAMPLES, places, strict=True)
    )
    effects = Effects(
        [ClipMotion(one.sample_id, motion(*place)) for one, place in zip(SAMPLES, places, strict=True)],
        [PromptSpread(f"p{p:02d}", CLIPS, vendi + p % 3 / 10, vendi / 20) for p in range(PROMPTS)],
        [ClipDrift(one.sample_id, t, drift) for one in SAMPLES[::CLIPS] for t in (0.25, 0.75)],
    )
    return EvaluationSet(Path("unread"), SAMPLES, {"judge": labels}), effects


PLANTED = {
    "base": planted(lambda p, i: i % 2 == 0),
    # long on two clips a prompt: the same clips again and again, all right in half of the prompts
    "collapsed": planted(lambda p, i: p % 2 == 0, vendi=1.5),
    # rewarded for stillness: nothing moves, and what is accepted least of all
    "still": planted(lambda p, i: i % 2 == 0, motion=lambda p, i: 0.4),
    # far from the base without gain
    "drifted": planted(lambda p, i: i % 2 == 0, drift=0.3),
}


@pytest.fixture(scope="module")
def summary() -> dict:
    sets = {name: one for name, (one, _) in PLANTED.items()}
    measured = {name: effects for name, (_, effects) in PLANTED.items()}
    found = effects_of(Figures(sets, measured, ["judge"], (1, 4, 16)), 200, 1)
    accept = {"judge": {"all": {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 192}}}
    return {"policies": {name: {"accept": accept, "effects": effects} for name, effects in found.items()}}


def marked(summary: dict, policy: str) -> set[str]:
    (row,) = [row for row in effects_table(summary).rows if row.name == policy]
    return {column for column, cell in row.cells.items() if cell.verdict == WORSE}


def test_a_policy_that_repeats_two_clips_loses_diversity_and_pass_at_k_and_keeps_its_rate(summary):
    effects = summary["policies"]["collapsed"]["effects"]

    at = {k: found["all"]["rate"] for k, found in effects["pass_at"]["judge"].items()}
    assert at == {"1": 0.5, "4": 0.5, "16": 0.5}
    assert summary["policies"]["base"]["effects"]["pass_at"]["judge"]["16"]["all"]["rate"] == 1.0
    assert effects["minus_base"]["pass_at"]["judge"]["16"]["all"]["high"] < 0
    assert effects["minus_base"]["vendi"]["all"]["diff"] == pytest.approx(-4.5)
    assert effects["wins"]["judge"]["all"]["prompts"] == {"rose": 6, "fell": 6, "equal": 0}
    assert marked(summary, "collapsed") == {"pass@4, %", "pass@16, %", "Vendi score", "distance"}


def test_a_policy_that_learnt_stillness_loses_motion_and_nothing_else(summary):
    assert marked(summary, "still") == {"motion", "motion if accepted"}
    assert summary["policies"]["still"]["effects"]["motion"]["judge"]["all"] == {
        "mean": pytest.approx(0.4), "low": pytest.approx(0.4), "high": pytest.approx(0.4), "n": 96
    }  # fmt: skip


def test_a_policy_that_drifted_is_far_from_the_base_by_its_predictions_alone(summary):
    effects = summary["policies"]["drifted"]["effects"]

    assert drifts(summary) == pytest.approx({"base": 0, "collapsed": 0, "still": 0, "drifted": 0.3})
    assert effects["drift"]["test"]["n"] == 6  # a clip of each of six prompts
    assert effects["drift_by_t"] == [{"t": 0.25, "mean": pytest.approx(0.3)}, {"t": 0.75, "mean": pytest.approx(0.3)}]
    assert marked(summary, "drifted") == set()


def test_the_base_has_no_difference_and_no_mark(summary):
    effects = summary["policies"]["base"]["effects"]

    assert not {"minus_base", "wins"} & effects.keys()
    (row, *_) = effects_table(summary).rows
    assert {cell.verdict for cell in row.cells.values()} == {None}
    (_, other, *_) = effects_table(summary).rows
    assert other.cells["motion"].verdict == OPEN and other.cells["motion"].text.endswith("(+0.00)")


def test_reasons_stand_beside_each_other_by_policy(summary):
    (table,) = reason_tables(summary)

    assert (table.columns, [row.name for row in table.rows]) == (list(PLANTED), ["why #"])
    assert table.rows[0].cells["collapsed"].text == "96"


def test_a_summary_of_an_older_run_has_no_such_table():
    assert effects_table({"policies": {"base": {"accept": {}}}}) is None


def test_without_a_judge_that_labels_and_without_drift_the_rest_is_there():
    one, effects = PLANTED["base"]
    figures = Figures({"base": replace(one, labels={})}, {"base": effects._replace(drift=[])}, [], (1,))
    found = effects_of(figures, 50, 1)["base"]

    assert (found.get("pass_at", {}), found["drift"], found["drift_by_t"]) == ({}, {}, [])
    (row,) = effects_table({"policies": {"base": {"accept": {}, "effects": found}}}).rows
    assert list(row.cells) == ["Vendi score", "distance", "motion"]


# Several training seeds


def by_hand(accepts, motion, vendi, drift) -> tuple[EvaluationSet, Effects]:
    """A policy of two prompts with two clips each."""
    samples = tuple(
        Sample(f"{p}{i}", p, "a cup", "c", "train", "any", i, 9, 8.0, 32, 32, "x") for p in "ab" for i in range(2)
    )
    labels = tuple(
        Label(one.sample_id, "judge", label, None, None, 1, 0, "why 1")
        for one, label in zip(samples, accepts, strict=True)
    )
    effects = Effects(
        [ClipMotion(one.sample_id, moves) for one, moves in zip(samples, motion, strict=True)],
        [PromptSpread(p, 2, one, one / 10) for p, one in zip("ab", vendi, strict=True)],
        [ClipDrift(name, t, drift) for name in ("a0", "b0") for t in (0.25, 0.75)],
    )
    return EvaluationSet(Path("unread"), samples, {"judge": labels}), effects


BY_HAND = {
    "base": by_hand((True, False, False, False), (5.0, 4.0, 4.0, 4.0), (2.0, 2.0), 0.0),
    "rwr1": by_hand((True, True, False, False), (2.0, 4.0, 8.0, 8.0), (1.0, 1.5), 0.1),
    "rwr1-s2": by_hand((True, True, True, False), (6.0, 6.0, 9.0, 9.0), (1.5, 2.0), 0.3),
}


def over_two_seeds(policies: dict) -> tuple[dict, dict]:
    figures = Figures(
        {name: one for name, (one, _) in policies.items()}, {name: one for name, (_, one) in policies.items()},
        ["judge"], (1, 2),
    )  # fmt: skip
    effects = effects_of(figures, 50, 1)
    return effects, effects_over_seeds(figures, effects, {"rwr1": {1: "rwr1", 2: "rwr1-s2"}}, 50, 1)["rwr1"]


def test_two_seeds_of_two_prompts_by_hand():
    _, found = over_two_seeds(BY_HAND)
    apart = pytest.approx(0.25 / 2**0.5)  # the standard deviation of two numbers that are 0.25 apart

    # pass@1: prompts 1 and 0 under seed 1, 1 and 1/2 under seed 2; base 1/2 and 0. Two prompts have no interval.
    assert found["pass_at"]["judge"]["1"]["all"] == {
        "rate": 0.625, "low": None, "high": None, "n": 4, "between_seeds": apart, "of_seeds": [0.5, 0.75]
    }  # fmt: skip
    gaps = found["minus_base"]
    assert gaps["pass_at"]["judge"]["1"]["all"] == {
        "diff": 0.375, "low": None, "high": None, "between_seeds": apart, "of_seeds": [0.25, 0.5]
    }  # fmt: skip
    assert found["pass_at"]["judge"]["2"]["all"]["of_seeds"] == [0.5, 1.0]
    assert (found["vendi"]["all"]["mean"], found["motion"]["all"]["all"]["mean"]) == (1.5, 6.5)
    # Motion of accepted clips: (2 + 4) / 2 and (6 + 6 + 9) / 3. Base has one, in prompt a, so b is compared in no seed:
    # 3 - 5 and 6 - 5.
    assert found["motion"]["judge"]["all"]["of_seeds"] == [3.0, 7.0] and found["motion"]["judge"]["all"]["mean"] == 5.0
    assert gaps["motion"]["judge"]["all"]["of_seeds"] == [-2.0, 1.0] and gaps["motion"]["judge"]["all"]["diff"] == -0.5
    assert found["drift"]["train"]["mean"] == pytest.approx(0.2)
    assert found["drift_by_t"] == [{"t": 0.25, "mean": pytest.approx(0.2)}, {"t": 0.75, "mean": pytest.approx(0.2)}]
    # Seed 1 gains a clip of prompt a, seed 2 one of each prompt; two and one clips are rejected.
    wins_of_both = found["wins"]["judge"]["all"]
    assert wins_of_both["prompts"] == {"rose": 1.5, "fell": 0.0, "equal": 0.5}
    assert wins_of_both["clips"] == {"gained": 1.5, "lost": 0.0, "both": 4.0}
    assert found["reasons"] == {"judge": {"why #": 1.5}}


def test_each_mean_over_seeds_is_that_of_the_seeds_own_figures():
    policies = {
        "base": PLANTED["base"],
        "rwr1": planted(lambda p, i: i <= p, motion=lambda p, i: 1.0 + p + i, vendi=2.0, drift=0.1),
        "rwr1-s2": planted(
            lambda p, i: i % 3 == 0 or i < p // 2, motion=lambda p, i: 9.0 - i / 2, vendi=5.0, drift=0.2
        ),
    }
    effects, found = over_two_seeds(policies)
    singles = [effects["rwr1"], effects["rwr1-s2"]]

    def compare(tree: dict, of_seeds: list[dict], path: tuple = ()) -> int:
        if "between_seeds" not in tree:
            return sum(compare(tree[key], [one[key] for one in of_seeds], (*path, key)) for key in tree)
        called = next(iter(tree))
        first, second = (one[called] for one in of_seeds)
        assert tree["of_seeds"] == [first, second], path
        assert tree[called] == pytest.approx((first + second) / 2), path
        assert tree["low"] < tree[called] < tree["high"], path
        assert tree["between_seeds"] == pytest.approx(abs(first - second) / 2**0.5), path
        return 1

    estimates = {key: found[key] for key in ("pass_at", "vendi", "distance", "motion", "drift", "minus_base")}
    assert compare(estimates, singles) == 3 * (2 + 2 + 2 + 1) + 3 * (2 + 2 + 2)  # three splits


def test_an_interval_of_seeds_that_count_clips_of_their_own_by_hand():
    # Seed 1 counts a clip of each prompt, 1, 2, 3; seed 2 one of the first two, 1 and 3. Both means are 2, so nothing
    # is added for the seeds. A prompt adds 1, 2, 3 to the first, and 2 + 1.5 (x - 2) = 0.5, 3.5 to the second, whose
    # third prompt adds its mean, 2. Averages 0.75, 2.75, 2.5: variance 2.375 / 2, over 3 prompts 0.3958; t of 2 degrees
    # of freedom is 4.303, so half the interval is 4.303 * 0.6292 = 2.707.
    values, nothing = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, NAN]]), np.zeros((1, 3))

    for found in (
        estimate_by_seed(values, np.arange(3), 50, 1), difference_by_seed(values, nothing, np.arange(3), 50, 1)
    ):  # fmt: skip
        assert found == (2.0, pytest.approx(2 - 2.707, abs=0.001), pytest.approx(2 + 2.707, abs=0.001), 5)
    moved = estimate_by_seed(values + [[0.0], [4.0]], np.arange(3), 50, 1)
    assert moved.mean == 4.0 and moved.low < 0 and moved.high > 8


def test_one_seed_that_counts_clips_of_its_own_has_the_interval_over_prompts():
    rng, prompts = np.random.default_rng(0), np.repeat(np.arange(30), 4)
    own, other = (np.where(rng.random(120) < 0.6, rng.normal(size=120), NAN) for _ in range(2))

    assert estimate_by_seed(own[None], prompts, 50, 1) == estimate(own, prompts, 50, 1)
    assert difference_by_seed(own[None], other[None], prompts, 50, 1) == difference_by_prompt(
        own, other, prompts, 50, 1
    )


def test_a_seed_that_counts_no_clip_is_left_out():
    values = np.array([[1.0, 2.0, 3.0], [NAN, NAN, NAN]])

    assert estimate_by_seed(values, np.arange(3), 50, 1) == estimate(values[0], np.arange(3), 50, 1)
    for nothing in (
        estimate_by_seed(values[[1, 1]], np.arange(3), 50, 1),
        difference_by_seed(values[[1, 1]], values[:1], np.arange(3), 50, 1),
    ):
        assert nothing == (None, None, None, 0)


# On disk


def test_the_effects_of_other_clips_is_refused(tmp_path):
    clips = write_clip_set(tmp_path / "rwr1/samples")
    effects = Effects([ClipMotion(one.sample_id, 1.0) for one in clips.samples], [], [])
    folder = tmp_path / "rwr1/effects"
    with pytest.raises(ValueError, match="dvc repro effects@rwr1"):
        read_effects(folder, clips.folder, clips.samples)

    write_effects(folder, effects, clip_set=clips.fingerprint())
    backwards = clips.samples[::-1]
    assert [row.sample_id for row in read_effects(folder, clips.folder, backwards).motion] == [
        one.sample_id for one in backwards
    ]
    write_manifest(clips.folder, "clip_set", policy="changed")
    with pytest.raises(ValueError, match="was measured on other clips"):
        read_effects(folder, clips.folder, clips.samples)
