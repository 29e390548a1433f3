"""The audit of a judge: its figures on known-answer clips, worked by hand, and the stage that computes them."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

import stages.audit
import stages.label
from commands.rate.server import Ratings, gather
from data.first_frames import read_png
from data.known import FULFILLED, SWAPPED, first_clips, reference_clips
from data.manifest import read_manifest, write_manifest
from data.prompts import load_prompts
from data.records import Label, Sample, Verdict
from data.store import ClipSet, ClipSetWriter, encode_clips
from data.video import read_video, write_video
from evaluation.accuracy import (
    against_generated,
    against_truth,
    auc,
    best_threshold,
    calibration,
    suggested_threshold,
)
from evaluation.agreement import cohen_of_labels
from feedback.core.audit import Asking, frame_stability, vote_stability, with_other_frames
from feedback.core.label import warn_of_audit
from feedback.core.rubric import Question, Rubric, load_rubric
from feedback.core.source import Request, decoded, verdict, without_answer
from pipeline.check import check_params
from tabletop.captions import parse
from tabletop.judge import PhysicsSource
from tabletop.known import known_clips
from tabletop.physics import check
from tabletop.render import render
from tabletop.scenes import make_scene
from tests.support.conditions import blank_conditions
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[3]
PROMPTS = load_prompts(ROOT / "configs/prompt_sets/tabletop.csv")
PEOPLE = ROOT / "feedback/rubrics/people.yaml"


def clip(name: str, category: str = "falling", prompt: str = "") -> Sample:
    prompt = prompt or name
    return Sample(name, prompt, f"the {prompt}", category, "train", "any", 0, 9, 8.0, 32, 32, f"videos/{name}.mp4")


def label(sample: Sample, answer: bool | None, p: float | None = None) -> Label:
    return Label(sample.sample_id, "judge", answer, p, None, 1, int(answer is None), "its own words")


# Figures


def test_auc_is_the_fraction_of_pairs_in_order_with_ties_as_half():
    # .9 beats .5 and .1; .5 ties with .5 and beats .1: (1 + 1 + 1/2 + 1) / 4.
    p, truth = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])

    assert auc(p, truth) == 0.875
    assert auc(p, ~truth) == 0.125
    assert auc(p, np.ones(4, bool)) is None


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    # Bin 0: p .02 and .08, one of them true: |.05 - .5| = .45. Bin 9: p .9 and 1, both true: |.95 - 1| = .05.
    # Two clips each: (2 * .45 + 2 * .05) / 4 = .25.
    found = calibration(np.array([0.02, 0.9, 0.08, 1.0]), np.array([True, True, False, True]))

    assert found["ece"] == pytest.approx(0.25)
    assert found["bins"] == [
        {"low": 0.0, "high": 0.1, "mean_p": pytest.approx(0.05), "accepted_by_truth": 0.5, "n": 2},
        {"low": 0.9, "high": 1.0, "mean_p": pytest.approx(0.95), "accepted_by_truth": 1.0, "n": 2},
    ]


def test_the_best_threshold_separates_true_from_false_and_stays_at_a_half_if_that_does():
    truth = np.array([False, False, True, True])

    assert best_threshold(np.array([0.1, 0.2, 0.3, 0.4]), truth) == pytest.approx(0.25)
    assert best_threshold(np.array([0.1, 0.3, 0.6, 0.9]), truth) == 0.5
    assert best_threshold(np.array([0.1, 0.2, 0.3, 0.4]), np.ones(4, bool)) == 0.5


def test_youdens_j_does_not_depend_on_the_number_of_true_clips():
    # Above .25: 2 of 2 true and 1 of 2 false, J = 1/2. Above .5: 1 of 2 and 0 of 2, J = 1/2, and nearer to a half.
    # Accuracy would prefer .25 where the true clips count nine times: 19 of 20 right, against 11 of 20.
    p, truth = np.array([0.3, 0.6, 0.2, 0.4]), np.array([True, True, False, False])

    assert best_threshold(p, truth) == 0.5
    for many in ([1, 1, 9, 9], [9, 9, 1, 1]):
        assert best_threshold(np.repeat(p, many), np.repeat(truth, many)) == 0.5


def test_the_suggested_threshold_is_evaluated_on_other_prompts():
    # Fitted to all four, .25 would be right on each. But a is judged by the threshold of b, (.2 + .4) / 2 = .3, which
    # rejects a's true clip of .3; b by that of a, (.1 + .3) / 2 = .2, which accepts .4 and not .2: 3 of 4 are right. At
    # .5 all are rejected: 2 of 4.
    found = suggested_threshold(
        np.array([0.3, 0.1, 0.4, 0.2]), np.array([True, False, True, False]), np.array(["a", "a", "b", "b"]), seed=0
    )

    assert found == {"current": 0.5, "suggested": pytest.approx(0.25), "accuracy_now": 0.5, "accuracy_then": 0.75}
    assert suggested_threshold(np.array([0.3]), np.array([True]), np.array(["a"]), seed=0) is None


def test_kappa_is_agreement_beyond_chance_on_clips_that_both_labelled():
    # TTFF and TFFF: 3/4 the same; by chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2; (3/4 - 1/2) / (1/2) = 1/2.
    clips = [clip(name) for name in "abcdef"]
    one = [label(c, answer) for c, answer in zip(clips, [True, True, False, False, None, True], strict=True)]
    two = [label(c, answer) for c, answer in zip(clips[:5], [True, False, False, False, True], strict=True)]

    assert cohen_of_labels(one, two) == {"kappa": 0.5, "agree": 0.75, "n": 4}
    assert cohen_of_labels(one[:2], one[:2]) == {"kappa": None, "agree": 1.0, "n": 2}
    assert cohen_of_labels(one, []) == {"kappa": None, "agree": None, "n": 0}


def test_a_judge_against_the_truth():
    # Falling: right accept, false accept, unlabelled. Folding: false reject, right reject.
    clips = [clip("a"), clip("b"), clip("c"), clip("d", "folding"), clip("e", "folding")]
    made = dict(zip("abcde", [FULFILLED, "vanish", FULFILLED, FULFILLED, SWAPPED], strict=True))
    answers = [(True, 0.9), (True, 0.6), (None, None), (False, 0.4), (False, 0.2)]
    labels = [label(c, *answer) for c, answer in zip(clips, answers, strict=True)]

    found = against_truth(clips, labels, made, FULFILLED, draws=200, seed=0)

    assert (found["clips"], found["labelled"], found["accuracy"]) == (5, 4, 0.5)
    assert found["low"] < 0.5 < found["high"]
    assert found["auc"] == 0.75  # .9 beats .6 and .2, .4 beats only .2
    assert (found["false_accepts"], found["false_rejects"]) == (1, 1)
    assert (found["false_accept_rate"], found["false_reject_rate"]) == (0.5, 0.5)  # b of b, e; d of a, d
    assert found["categories"] == {
        "falling": {"clips": 3, "labelled": 2, "accuracy": 0.5, "false_accept_rate": 1.0, "false_reject_rate": 0.0},
        "folding": {"clips": 2, "labelled": 2, "accuracy": 0.5, "false_accept_rate": 0.0, "false_reject_rate": 1.0},
    }
    assert found["made"][FULFILLED] == {"clips": 3, "labelled": 2, "accepted": 1}
    assert found["made"]["vanish"] == {"clips": 1, "labelled": 1, "accepted": 1}
    assert sum(one["n"] for one in found["calibration"]["bins"]) == 4
    json.dumps(found, allow_nan=False)


def test_a_judge_without_probabilities_has_no_calibration_and_no_threshold():
    clips = [clip("a"), clip("b")]
    labels = [label(clips[0], True, 1.0), label(clips[1], True, 1.0)]

    found = against_truth(clips, labels, {"a": FULFILLED, "b": SWAPPED}, FULFILLED, draws=10, seed=0)

    assert (found["calibration"], found["threshold"], found["auc"]) == (None, None, 0.5)


def test_a_judge_that_labels_nothing_cannot_be_audited():
    one = clip("a")
    with pytest.raises(ValueError, match=r"none of 1 known-answer clips got a label \(its own words\)"):
        against_truth([one], [label(one, None)], {"a": FULFILLED}, FULFILLED, draws=10, seed=0)


def test_a_judge_against_generated_clips_of_the_same_prompt():
    # a: .9 beats .5, ties with .9. b: .4 loses to .6; the other clip is unknown. (1 + 1/2 + 0) / 3 = 1/2.
    # Over all prompts: .9 beats .5, ties, beats .6; .4 loses three times: 2.5 of 6.
    references = [clip("ra", "falling", "a"), clip("rb", "folding", "b")]
    generated = [clip(name, category, name[0]) for name, category in
                 (("a1", "falling"), ("a2", "falling"), ("b1", "folding"), ("b2", "folding"))]  # fmt: skip
    real = [label(references[0], True, 0.9), label(references[1], False, 0.4)]
    answers = [(True, 0.5), (True, 0.9), (True, 0.6), (None, None)]
    other = [label(c, *answer) for c, answer in zip(generated, answers, strict=True)]

    found = against_generated(references, real, generated, other, draws=100, seed=0)

    assert (found["clips"], found["labelled"], found["accuracy"]) == (6, 5, 0.5)
    assert found["auc"] == pytest.approx(2.5 / 6)
    assert (found["false_accepts"], found["false_rejects"]) == (None, 1)
    assert found["references"] == {"accepted": 0.5, "generated_accepted": 1.0, "pairs": 3, "ties": 1}
    assert found["categories"]["falling"] == {
        "clips": 3, "labelled": 3, "accuracy": 0.75, "false_accept_rate": None, "false_reject_rate": 0.0,
    }  # fmt: skip


def test_pairs_without_p_accept_of_both_clips_cannot_be_audited():
    one, two = clip("ra", prompt="a"), clip("a1", prompt="a")
    with pytest.raises(ValueError, match="no p_accept of both clips of any of 1 pairs"):
        against_generated([one], [label(one, True, 0.9)], [two], [label(two, None)], draws=10, seed=0)


# Known-answer clips


def test_half_of_the_rendered_clips_are_fulfilled_and_physics_agrees(tmp_path):
    known = known_clips(tmp_path, PROMPTS, 200, seed=1, fps=8.0)
    samples, made = known.clip_set.samples, known.made

    assert Counter(sample.category for sample in samples) == dict.fromkeys({p.category for p in PROMPTS}, 40)
    assert (Counter(made.values())[FULFILLED], Counter(made.values())[SWAPPED]) == (100, 50)
    right = [
        check(known.clip_set.frames(s), s.prompt).ok == (made[s.sample_id] == FULFILLED) for s in samples
    ]  # fmt: skip
    assert np.mean(right) >= 0.97
    assert {sample.prompt for sample in samples} <= {prompt.prompt for prompt in PROMPTS}


def test_a_rendered_clip_depends_only_on_seed_and_number(tmp_path):
    few = known_clips(tmp_path / "few", PROMPTS, 10, seed=1, fps=8.0)
    many = known_clips(tmp_path / "many", PROMPTS, 20, seed=1, fps=8.0)
    other = known_clips(tmp_path / "other", PROMPTS, 10, seed=2, fps=8.0)

    assert few.clip_set.samples == many.clip_set.samples[:10]
    bytes_of = [[one.clip_set.video(s).read_bytes() for s in one.clip_set.samples[:10]] for one in (few, many, other)]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]
    again = known_clips(tmp_path / "few", PROMPTS, 10, seed=1, fps=8.0)  # a resumed run finds them finished
    assert again.clip_set.fingerprint() == few.clip_set.fingerprint()


def with_reference(folder: Path, number: int, frames: np.ndarray, fps: float = 12.0):
    write_video(folder / f"{number}.mp4", frames, fps)
    return replace(PROMPTS[number], reference=str(folder / f"{number}.mp4"))


def test_reference_clips_keep_their_size_length_and_rate(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 33, 40, 3)).astype(np.uint8)
    prompts = [with_reference(tmp_path, 0, frames), with_reference(tmp_path, 1, frames[:3], 8.0), PROMPTS[2]]

    known = reference_clips(tmp_path / "set", prompts)

    first, second = known.clip_set.samples
    assert (first.prompt_id, first.num_frames, first.height, first.width, first.fps) == (
        PROMPTS[0].prompt_id, 5, 32, 40, 12.0
    )  # fmt: skip
    assert (second.num_frames, second.fps) == (3, 8.0)
    pixels = read_video(tmp_path / "0.mp4")[:, :32]
    assert np.abs(known.clip_set.frames(first).astype(int) - pixels).max() <= 1


def test_a_reference_clip_has_the_image_of_its_prompt_as_first_frame_where_all_have_one(tmp_path):
    frames = np.zeros((3, 33, 40, 3), np.uint8)
    Image.new("RGB", (20, 16), (200, 0, 0)).save(tmp_path / "red.png")
    prompts = [replace(with_reference(tmp_path, n, frames), image=str(tmp_path / "red.png")) for n in range(2)]

    known = reference_clips(tmp_path / "set", prompts)
    first = known.clip_set.first_frame(PROMPTS[1].prompt_id)
    assert first is not None and (read_png(first) == (200, 0, 0)).all() and read_png(first).shape == (32, 40, 3)
    again = reference_clips(tmp_path / "set", prompts)  # a resumed run finds them finished
    assert again.clip_set.fingerprint() == known.clip_set.fingerprint()

    without = reference_clips(tmp_path / "other", [prompts[0], replace(prompts[1], image=None)])
    assert without.clip_set.first_frame(PROMPTS[0].prompt_id) is None


def test_a_corrupt_reference_is_named(tmp_path):
    prompt = with_reference(tmp_path, 0, np.zeros((3, 32, 32, 3), np.uint8))
    Path(prompt.reference).write_bytes(b"no video")

    with pytest.raises(ValueError, match=r"0\.mp4: not a readable video"):
        reference_clips(tmp_path / "set", [prompt])
    with pytest.raises(ValueError, match="none of 1 prompts has a reference clip"):
        reference_clips(tmp_path / "none", PROMPTS[:1])


def test_the_first_clips_of_each_prompt_are_taken_and_a_prompt_without_clips_is_an_error(tmp_path):
    clips = known_clips(tmp_path, PROMPTS[:1], 4, seed=0, fps=8.0).clip_set

    assert first_clips(clips, [PROMPTS[0].prompt_id], 2).samples == clips.samples[:2]
    with pytest.raises(ValueError, match="no clip of the prompts absent"):
        first_clips(clips, ["absent"], 2)


# Stability


class Wavering:
    """Accepts a clip if it sees eight frames, except in the second vote on every other clip."""

    name, model = "wavering", "wavering"
    model_version: str | None = "1"
    repeatable = False

    def __init__(self) -> None:
        self.rubric = Rubric("it", 8, "all", "{prompt}", (Question("it", "It?", "yes", "no", True, True),))

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        for request, frames in decoded(requests, 4):
            if isinstance(frames, str):
                yield without_answer(self, request, frames)
                continue
            seen, odd = range(self.rubric.frames or 9), request.sample.seed % 2
            yield [
                verdict(self, request.sample, vote, self.rubric.questions[0], seen,
                        answer=len(seen) == 8 and not (vote == 1 and odd))
                for vote in range(request.votes)
            ]  # fmt: skip

    def status(self) -> dict:
        return {}


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> ClipSet:
    return known_clips(tmp_path_factory.mktemp("known") / "four", PROMPTS, 4, seed=0, fps=8.0).clip_set


def test_labels_use_the_votes_of_stage_label_even_if_more_votes_are_compared(four, tmp_path):
    asking = Asking(tmp_path / "work", tmp_path / "out", 2, votes=1, max_failed=0.0)

    judged = asking.judge(four, Wavering(), "labels", votes=2)

    assert [one.label for one in judged.labels] == [True] * 4  # from the first vote; two votes would tie on two clips
    # Votes of two clips agree, of two they do not: 1/2. Yes on average (1 + 1/2) / 2 = 3/4, by chance 9/16 + 1/16,
    # which is 5/8; (1/2 - 5/8) / (3/8) = -1/3.
    found = vote_stability(judged, Wavering())
    assert found == {"clips": 4, "not_unanimous": 2, "observed": 0.5, "kappa": pytest.approx(-1 / 3)}


def test_vote_stability_is_unknown_for_one_vote_and_for_a_repeatable_judge(four, tmp_path):
    asking = Asking(tmp_path / "work", tmp_path / "out", 2, votes=1, max_failed=0.0)
    once = asking.judge(four, Wavering(), "once")
    physics = asking.judge(four, PhysicsSource("physics"), "physics", votes=3)

    assert vote_stability(once, Wavering()) == "one vote was asked for: audit.votes is 1"
    assert vote_stability(physics, PhysicsSource("physics")) == "physics answers the same however often it is asked"


def test_another_number_of_frames_changes_the_labels_of_a_judge_that_counts_frames(four, tmp_path):
    asking, source = Asking(tmp_path / "work", tmp_path / "out", 2, votes=1, max_failed=0.0), Wavering()
    before = asking.judge(four, source, "labels")

    other = with_other_frames(source, False, four.samples, 6)
    after = asking.judge(four, other, "other")

    assert frame_stability(before, after) == {"changed": 1.0, "n": 4}
    assert source.rubric.frames == 8
    assert {row.rubric_hash for row in after.verdicts} != {row.rubric_hash for row in before.verdicts}


FIXED_FRAMES = (
    (Wavering(), False, None, "audit.frames is null"),
    (Wavering(), False, 8, "8 frames of these clips are those that the rubric shows already"),
    (Wavering(), True, 6, "wavering is sent whole clips"),
    (PhysicsSource("physics"), False, 6, "physics chooses no frames: the rubric physics shows all"),
)


def test_if_frames_cannot_be_chosen_the_reason_is_given(four):
    for source, whole_clips, frames, reason in FIXED_FRAMES:
        assert with_other_frames(source, whole_clips, four.samples, frames) == reason


# The stage

AUDIT = {
    "sources": ["physics"], "set": "tabletop", "clips": 20, "votes": 3, "frames": 6, "human": None,
    "draws": 100, "seed": 1,
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Runs stage `audit` in a temporary folder with its own params."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDBACK_LEDGER", str(tmp_path / "ledger.sqlite"))
    for name in ("configs", "data", "feedback", "models", "tabletop"):
        Path(name).symlink_to(ROOT / name)

    def run(source: str = "physics", prompts: str = "configs/prompt_sets/tabletop.csv", **changes):
        params = default_params()
        params["audit"] = AUDIT | changes
        params["prompts"]["path"] = prompts
        Path("params.yaml").write_text(yaml.safe_dump(params))
        options = ["--source", source, "--out", f"runs/audit/{source}", "--metrics", f"metrics/audit/{source}.json"]
        done = CliRunner().invoke(stages.audit.main, [*options, "--base", "runs/policies/base", "--device", "cpu"])
        found = Path(f"runs/audit/{source}/audit.json")
        return done, json.loads(found.read_text()) if done.exit_code == 0 else None

    return run


def test_the_stage_publishes_clips_labels_and_figures(project):
    done, found = project()

    assert done.exit_code == 0, done.output
    assert (found["clips"], found["labelled"]) == (20, 20)
    assert found["accuracy"] >= 0.95
    assert (found["votes"], found["frames"], found["human"], found["calibration"]) == (None, None, None, None)
    assert found["notes"]["human"] == "audit.human is null"
    assert json.loads(Path("metrics/audit/physics.json").read_text()) == found
    facts = read_manifest(Path("runs/audit/physics"), "audit", verify=True)["facts"]
    assert (facts["source"], facts["clips"], facts["accuracy"]) == ("physics", 20, found["accuracy"])
    rows = [json.loads(line) for line in Path("runs/audit/physics/known.jsonl").read_text().splitlines()]
    right = [(row["made"] == FULFILLED) == row["label"] for row in rows]
    assert sum(right) / 20 == found["accuracy"]
    assert len(ClipSet.open(Path("runs/audit/physics/samples")).samples) == 20


def test_the_shipped_judge_is_soft_and_better_than_chance(project):
    done, found = project("judge", sources=["judge"], clips=60)

    assert done.exit_code == 0, done.output
    assert found["auc"] > 0.75
    assert 0 < found["calibration"]["ece"] < 0.3
    assert sum(one["n"] for one in found["calibration"]["bins"]) == 60
    assert 0 < found["threshold"]["suggested"] < 1
    assert found["frames"]["n"] == 60 and found["frames"]["frames"] == 6
    assert "votes" in found["notes"] and "frames" not in found["notes"]


def test_an_unknown_source_and_prompts_without_a_known_answer_are_errors(project):
    done, _ = project("oracle")
    assert done.exit_code == 1 and "feedback.sources.oracle is missing" in done.output

    done, _ = project(prompts="configs/prompt_sets/furuta.csv")
    assert done.exit_code == 1
    assert "160 of 160 prompts are none of its captions, such as 'digging key out of sand'" in done.output
    assert "a column reference in the prompt set and audit.set" in done.output

    done, _ = project(prompts="configs/prompt_sets/furuta.csv", set="runs/r1/samples")
    assert done.exit_code == 1
    assert "none of 160 prompts has a reference clip" in done.output


def rendered(prompt: str, seed: int, botch: str | None = None) -> np.ndarray:
    return render(make_scene(parse(prompt), np.random.default_rng(seed), botch))


@pytest.fixture
def beside_references(project) -> ClipSet:
    """prompts.csv with a rendered reference for two prompts, and two base clips of each: one wrong, one right."""
    rows = ["prompt_id,prompt,category,split,image,reference"]
    samples, frames = [], []
    for prompt in PROMPTS[:2]:
        write_video(Path(f"{prompt.prompt_id}.mp4"), rendered(prompt.prompt, 0), 8.0)
        rows.append(f"{prompt.prompt_id},{prompt.prompt},{prompt.category},train,,{prompt.prompt_id}.mp4")
        for number, botch in enumerate(("static", None)):
            name = f"r1-{prompt.prompt_id}-{number}"
            facts = (prompt.prompt_id, prompt.prompt, prompt.category, "train", "base")
            samples.append(Sample(name, *facts, number, 9, 8.0, 32, 32, f"videos/{name}.mp4"))
            frames.append(rendered(prompt.prompt, 7, botch))
    Path("prompts.csv").write_text("\n".join(rows))
    writer = ClipSetWriter(Path("runs/r1/samples"))
    writer.add_batch(0, samples, encode_clips(samples, np.stack(frames)), torch.zeros(4, 1))
    writer.finish(blank_conditions(prompt.prompt_id for prompt in PROMPTS[:2]), {"policy": "base"})
    return ClipSet.open(Path("runs/r1/samples"))


def test_references_beat_botched_clips_and_tie_with_right_ones(project, beside_references):
    done, found = project(prompts="prompts.csv", set="runs/r1/samples", clips=6)

    assert done.exit_code == 0, done.output
    # Physics gives 1 or 0: each reference beats the static clip and ties with the other one, (1 + 1/2) / 2.
    assert (found["clips"], found["labelled"], found["accuracy"]) == (6, 6, 0.75)
    assert found["references"] == {"accepted": 1.0, "generated_accepted": 0.5, "pairs": 4, "ties": 2}
    assert "runs/r1/samples" in found["truth"]


def test_a_corrupt_generated_clip_is_left_out_and_another_policys_clips_are_refused(project, beside_references):
    first = beside_references.video(beside_references.samples[0])
    size = first.stat().st_size
    first.write_bytes(b"x" * size)
    done, found = project(prompts="prompts.csv", set="runs/r1/samples", clips=6)

    assert done.exit_code == 0, done.output
    assert (found["clips"], found["labelled"], found["references"]["pairs"]) == (6, 5, 3)

    facts = beside_references.manifest["facts"] | {"policy": "rwr1"}
    write_manifest(beside_references.folder, "clip_set", **facts)
    done, _ = project(prompts="prompts.csv", set="runs/r1/samples", clips=6)
    assert done.exit_code == 1 and "is of the policy rwr1; wanted are clips of base" in done.output


def test_agreement_with_people_is_on_the_clips_that_they_rated(project, beside_references):
    human = {"set": "runs/r1/samples", "source": "people"}
    done, found = project(human=human)
    assert done.exit_code == 0, done.output
    assert found["human"] is None
    assert "vfrl rate --set runs/r1/samples --source people" in found["notes"]["human"]

    items = gather([Path("runs/r1/samples")], load_rubric(PEOPLE), "me", None, 0)
    ratings = Ratings(items, Path("ledger.sqlite"))
    for item in items:  # one botched clip is rejected, the other accepted; one right clip is rated
        key, name = item.rateable.key, item.sample.sample_id
        if name != f"r1-{PROMPTS[1].prompt_id}-1":
            ratings.rate(key, "r" if name == f"r1-{PROMPTS[0].prompt_id}-0" else "a", None)
    done, found = project(human=human)

    # Physics F, T, F and the person F, T, T: 2/3 the same; by chance 1/3 * 2/3 + 2/3 * 1/3 = 4/9; (6 - 4) / (9 - 4).
    assert done.exit_code == 0, done.output
    assert found["human"] == {"kappa": pytest.approx(0.4), "agree": pytest.approx(2 / 3), "n": 3}


WRONG_PARAMS = (
    ({"sources": ["oracle"]}, "audit.sources: 'oracle' is unknown"),
    ({"human": {"set": "x", "source": "oracle"}}, "audit.human.source: 'oracle' is unknown"),
    ({"human": {"set": "x", "source": "physics"}}, "audit.human.source is physics, of kind physics"),
    ({"set": "runs/r1/samples"}, "has a reference clip to compare its clips with"),
)


def test_check_finds_wrong_params_of_an_audit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data", "feedback", "models", "tabletop"):
        Path(name).symlink_to(ROOT / name)
    for changes, problem in WRONG_PARAMS:
        params = default_params()
        params["audit"] |= changes
        Path("params.yaml").write_text(yaml.safe_dump(params))

        with pytest.raises(Exception) as error:
            check_params()

        assert problem in str(getattr(error.value, "message", error.value))


# The warning in `label`

JUDGE = {"source": "judge", "block": "b1", "model": "m", "model_version": "v1", "rubric_hash": "r1"}


def audited(folder: Path, accuracy: float = 0.613, **changes: str) -> Path:
    folder.mkdir(parents=True)
    write_manifest(folder, "audit", accuracy=accuracy, clips=240, **(JUDGE | changes))
    return folder


def test_the_warning_of_a_low_accuracy_has_the_figure_and_the_parameter(tmp_path, caplog):
    warn_of_audit(audited(tmp_path / "judge"), JUDGE, 0.7)

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "accuracy 61.3 % in its audit of 240 clips" in record.message
    assert "label.min_audited_accuracy: 0.7" in record.message


def test_no_audit_and_a_sufficient_accuracy_log_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    warn_of_audit(tmp_path / "none", JUDGE, 0.7)
    warn_of_audit(audited(tmp_path / "judge", accuracy=0.7), JUDGE, 0.7)

    assert caplog.records == []


def test_an_audit_of_another_rubric_or_version_gives_an_info_line_and_no_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    warn_of_audit(audited(tmp_path / "judge", rubric_hash="r0", model_version="v0"), JUDGE, 0.7)

    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "it is of another model_version and rubric_hash" in record.message


def test_stage_label_warns_if_its_source_has_a_low_accuracy(project, beside_references, caplog):
    done, found = project(prompts="prompts.csv", set="runs/r1/samples", clips=6)
    assert done.exit_code == 0, done.output
    assert found["accuracy"] == 0.75
    params = yaml.safe_load(Path("params.yaml").read_text())
    options = ["--set", "runs/r1/samples", "--source", "physics", "--out", "labels", "--metrics", "m.json"]
    for least, warned in ((None, False), (0.7, False), (0.8, True)):
        params["label"]["min_audited_accuracy"] = least
        Path("params.yaml").write_text(yaml.safe_dump(params))
        caplog.clear()

        done = CliRunner().invoke(stages.label.main, options)

        assert done.exit_code == 0, done.output
        warnings = [one.message for one in caplog.records if one.levelno > logging.INFO]
        assert any("min_audited_accuracy" in message for message in warnings) == warned, least
