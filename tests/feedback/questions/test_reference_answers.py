"""The judge's answers about the real clip of a caption, and the prompts and explanations that they leave."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.prompts import Prompt
from data.video import write_video
from feedback.core.rubric import Question, load_rubric
from feedback.differentiable.asks import Ask, asks_of_rubric
from feedback.differentiable.targets import find_target
from feedback.judges.qwen import Options, load
from feedback.judges.vlm import VlmReply, build_inputs
from feedback.questions.references import MOST_WORDS, RealClip, RealClips, asking, explanation_of, reference_answers
from tabletop.captions import parse
from tabletop.render import render
from tabletop.scenes import make_scene
from tests.support.judges import FAMILIES

OBJECTS = Ask("alignment_objects", "alignment", "Is there a cup?", "Yes", "No", None, False, "w")
MOTION = Ask("physics_motion", "physics", "Does it leap?", "No", "Yes", None, True, "drf")
CLIP = RealClip(np.zeros((2, 4, 4, 3), np.uint8), 8.0)
REPLIES = {
    "Is there a cup?": VlmReply(True, "Yes. A cup stands there.", None),
    "Does it leap?": VlmReply(True, "No, it stands still.", None),
}


def says(others: dict[str, VlmReply] | None = None):
    """A judge whose answer depends on the question alone: REPLIES, or `others`."""
    others = others or {}
    return lambda ask, clip: (REPLIES | others)[ask.text]


def test_each_question_gets_what_the_judge_says_of_the_real_clip():
    found = reference_answers({"p1": (OBJECTS, MOTION)}, {"p1": CLIP}, says(), explanation="short")

    assert found.asks == {
        "p1": (replace(OBJECTS, explanation=". A cup stands there."), replace(MOTION, explanation=", it stands still."))
    }
    assert found.dropped == {}


def test_without_explanations_the_questions_stay_and_prompts_are_judged_all_the_same():
    denied = says({"Does it leap?": VlmReply(False, "Yes, it does.", None)})
    kept = reference_answers({"p1": (OBJECTS, MOTION)}, {"p1": CLIP}, says(), explanation=None)

    assert kept.asks == {"p1": (OBJECTS, MOTION)}
    with pytest.raises(ValueError, match="no prompt of 1 is left to train on: p1: physics_motion"):
        reference_answers({"p1": (OBJECTS, MOTION)}, {"p1": CLIP}, denied, explanation=None)


def test_a_prompt_stays_only_if_every_reference_is_affirmed(caplog):
    leaping = RealClip(np.ones((2, 4, 4, 3), np.uint8), 8.0)

    def ask_vlm(ask: Ask, clip: RealClip) -> VlmReply:
        if ask is MOTION and clip is leaping:
            return VlmReply(False, "Yes. It leaps twice.", None)
        return REPLIES[ask.text]

    with caplog.at_level(logging.WARNING):
        found = reference_answers(
            {"p1": (OBJECTS, MOTION), "p2": (OBJECTS, MOTION)},
            {"p1": leaping, "p2": CLIP},
            ask_vlm,
            explanation="short",
        )

    assert list(found.asks) == ["p2"]
    why = "physics_motion: the judge's answer about the real clip is 'Yes. It leaps twice.', wanted is No"
    assert found.dropped == {"p1": why}
    assert f"1 of 2 prompts are left out: p1: {why}" in caplog.text


def test_an_answer_that_cannot_be_read_is_no_affirmation():
    unsure = says({"Is there a cup?": VlmReply(None, "Perhaps.", "unreadable: Yes or No has a probability of 0.01")})
    found = reference_answers(
        {"p1": (OBJECTS,), "p2": (MOTION,)}, {"p1": CLIP, "p2": CLIP}, unsure, explanation="short"
    )

    assert found.dropped == {"p1": "alignment_objects: unreadable: Yes or No has a probability of 0.01"}
    assert list(found.asks) == ["p2"]


def test_without_a_real_clip_alignment_alone_is_asked_and_the_log_says_so(caplog):
    asks = {"p1": (OBJECTS, MOTION), "p2": (OBJECTS, MOTION), "p3": (MOTION,)}
    with caplog.at_level(logging.WARNING):
        found = reference_answers(asks, {"p2": CLIP}, says(), explanation="short")

    assert found.asks["p1"] == (OBJECTS,)
    assert [ask.name for ask in found.asks["p2"]] == ["alignment_objects", "physics_motion"]
    assert found.dropped == {"p3": "it has no real clip, and all its questions compare with one"}
    assert "2 of 3 prompts have no real clip: their questions are those without comparison" in caplog.text


LONG = " ".join(f"w{n}" for n in range(1, 61))  # 60 words


def test_a_short_explanation_is_what_follows_the_answer_in_at_most_50_words():
    for words, wanted, explanation in (
        ("Yes", "Yes", None),
        ("Yes.", "Yes", None),
        ("yes, it falls.", "Yes", ", it falls."),
        ("Reject because nothing moves", "Reject", "because nothing moves"),
        ("Nothing leaps.", "No", None),  # does not begin with the word No
        ("It is so. Yes.", "Yes", None),
        (f"No, {LONG}", "No", ", " + " ".join(f"w{n}" for n in range(1, 51))),
        (f"No. One two. Three. {LONG}", "No", ". One two. Three."),  # whole sentences among the first 50 words
    ):
        assert explanation_of(words, wanted, MOST_WORDS["short"]) == explanation, words


def test_a_long_explanation_is_all_that_follows_the_answer():
    says_much = says({"Is there a cup?": VlmReply(True, f"Yes. A cup. {LONG}", None)})
    (ask,) = reference_answers({"p1": (OBJECTS,)}, {"p1": CLIP}, says_much, explanation="long").asks["p1"]

    assert ask.explanation == f". A cup. {LONG}"


# Clips


def prompt(prompt_id: str, text: str, reference: Path | None = None) -> Prompt:
    return Prompt(prompt_id, text, "c", "train", None, str(reference) if reference else None)


def test_real_clips_are_read_at_their_own_rate_and_evenly_spaced(tmp_path):
    frames = np.repeat(np.arange(0, 250, 25, dtype=np.uint8), 16 * 16 * 3).reshape(10, 16, 16, 3)
    write_video(tmp_path / "real.mp4", frames, fps=20.0)
    clips = RealClips([prompt("p1", "a"), prompt("p2", "b", tmp_path / "real.mp4")], 4)

    # Of frames 0 … 9, the four at 0, 3, 6, 9; three frames at 20 a second apart, so 20 / 3 a second.
    assert list(clips) == ["p2"] and "p1" not in clips
    assert np.abs(clips["p2"].frames.astype(int) - frames[[0, 3, 6, 9]]).max() <= 1
    assert clips["p2"].fps == pytest.approx(20 / 3)
    with pytest.raises(ValueError, match=r"real\.mp4: 10 frames, expected at least 11"):
        RealClips([prompt("p2", "b", tmp_path / "real.mp4")], 11)["p2"]


# Judges of the real classes


def options(path: Path, **more) -> Options:
    given = {"path": str(path), "revision": None, "rubric": "tabletop/rubric.yaml", "batch_size": 1}
    return Options(**given | {"dtype": "float32", "min_answer_mass": 0.0} | more)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_real_clip_stands_in_both_places_where_a_question_compares(tmp_path, monkeypatch, family):
    judge = load("judge", options(FAMILIES[family](tmp_path), max_new_tokens=3), "cpu")
    clip = RealClip(np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8), 8.0)
    ask = Ask("q", "physics", "judge the video", "Accept", "Reject", None, False, "w")
    counts: list[int] = []

    def counting(processor, clips, *others):
        counts.append(len(clips))
        return build_inputs(processor, clips, *others)

    monkeypatch.setattr("feedback.judges.vlm.build_inputs", counting)
    replies = [asking(judge)(one, clip) for one in (ask, replace(ask, with_reference=True))]

    assert counts == [1, 2]
    assert all(isinstance(one.answer, bool) and one.error is None for one in replies)


def test_the_judge_says_the_same_as_when_it_labels(tmp_path):
    judge = load("judge", options(FAMILIES["qwen2.5"](tmp_path)), "cpu")
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8)
    text = "judge the red ball"
    one = Question("q", text, "Accept", "Reject", True, True)
    other = replace(one, affirmative="Reject", negative="Accept")

    assert judge.say(one, [frames], 8.0).answer is (not judge.say(other, [frames], 8.0).answer)
    assert judge.say(replace(one, ask="judge the cup"), [frames], 8.0).error == (
        "the prompt holds words outside the judge's vocabulary: ['cup']"
    )


def test_answer_and_explanation_are_forced_in_the_judges_own_words(tmp_path):
    judge = load("judge", options(FAMILIES["qwen2.5"](tmp_path)), "cpu")
    judge.processor.tokenizer.add_tokens(["because", "falls", ","])
    ask = Ask("q", "alignment", "judge the video", "Accept", "Reject", None, False, "w")
    for words in ("Accept because the red ball falls", "Accept , the red ball falls", "Accept"):
        reply = VlmReply(True, words, None)
        found = reference_answers({"p1": [ask]}, {"p1": CLIP}, lambda *_, reply=reply: reply, explanation="short")
        target = find_target(judge.processor, found.asks["p1"][0], whole=True)
        assert judge.processor.tokenizer.convert_ids_to_tokens(target.tokens) == words.split()


def rendered(text: str, seed: int, botch: str | None = None) -> RealClip:
    frames = render(make_scene(parse(text), np.random.default_rng(seed), botch))
    return RealClip(frames[[0, 1, 2, 3, 5, 6, 7, 8]], 8.0)


def test_the_shipped_judge_keeps_prompts_of_fulfilled_clips_and_gives_its_reasons():
    judge = load("judge", options(Path("models/tabletop/judge"), max_new_tokens=8), "cpu")
    rubric = load_rubric(Path("tabletop/rubric.yaml"))
    texts = {"p1": "lifting red ball up", "p2": "pushing blue cube from left to right"}
    asks = {prompt_id: asks_of_rubric(rubric, text) for prompt_id, text in texts.items()}
    clips = {"p1": rendered(texts["p1"], 0), "p2": rendered(texts["p2"], 0, "static")}

    found = reference_answers(asks, clips, asking(judge), explanation="short")
    against = {"p2": [replace(ask, wanted="Reject", other="Accept") for ask in asks["p2"]]}
    (rejected,) = reference_answers(against, clips, asking(judge), explanation="short").asks["p2"]

    assert found.asks == {"p1": asks["p1"]}  # of a clip that it accepts, it says nothing more
    assert found.dropped["p2"].startswith("accept: the judge's answer about the real clip is 'Reject because")
    assert rejected.explanation is not None and rejected.explanation.startswith("because ")
