"""Yes-or-no questions of the tabletop world, and the answers of a clip's pixels."""

import numpy as np

from tabletop.captions import Claim, Thing, all_claims, caption
from tabletop.captions import vocabulary as caption_words
from tabletop.questions import DEFECTS, answers, question_words, questions
from tabletop.render import render
from tabletop.scenes import BOTCHES, make_scene

RED, BLUE = Thing("red", "cube"), Thing("blue", "ball")
PUSH, APART = Claim("push_right", (RED,)), Claim("apart", (RED, BLUE))


def answered(claim: Claim, botch: str | None = None, seed: int = 0, about: Claim | None = None) -> dict[str, str]:
    clip = render(make_scene(claim, np.random.default_rng(seed), botch))
    return {name: answer.answer for name, answer in answers(clip, about or claim).items()}


def test_every_word_of_a_question_and_of_an_answer_is_in_the_vocabulary():
    known = {*question_words(), *caption_words()}
    rng = np.random.default_rng(0)
    for claim in all_claims()[::7]:
        assert {word for question in questions(claim) for word in question.text.split()} <= known
        botch = str(rng.choice(BOTCHES[claim.kind]))
        for answer in answers(render(make_scene(claim, rng, botch)), claim).values():
            assert set(str(answer).split()) <= known


def test_a_claim_has_questions_about_each_of_its_things_its_event_and_every_defect():
    by_name = {question.name: (question.text, question.wanted) for question in questions(APART)}
    assert by_name["object"] == ("is there a red cube", "Yes")
    assert by_name["object_2"] == ("is there a blue ball", "Yes")
    assert by_name["event"] == ("do the red cube and the blue ball move away from each other", "Yes")
    assert {name: by_name[name][1] for name in DEFECTS} == dict.fromkeys(DEFECTS, "No")


def test_a_clip_that_shows_its_caption_gives_every_wanted_answer():
    for claim in (PUSH, APART, Claim("fall", (BLUE,)), Claim("take_out", (RED,))):
        wanted = {question.name: question.wanted for question in questions(claim)}
        found = answered(claim)
        assert found == {name: wanted[name] for name in found}, claim
        assert set(wanted) - set(found) == {"blur"}, claim  # which physics does not measure


def test_a_botched_clip_fails_the_aspect_that_was_botched():
    expected = {
        ("static", "event"): "No", ("reverse", "event"): "No", ("teleport", "jump"): "Yes", ("vanish", "vanish"): "Yes",
        ("wrong_color", "object"): "No", ("wrong_shape", "object"): "No", ("reshape", "reshape"): "Yes",
        ("stray", "stray"): "Yes", ("static", "jump"): "No", ("stray", "event"): "Yes", ("duplicate", "object"): "No",
    }  # fmt: skip
    found = {botch: [answered(PUSH, botch, seed) for seed in range(8)] for botch, _ in expected}
    for (botch, name), answer in expected.items():
        given = [of_clip.get(name) for of_clip in found[botch]]
        assert given.count(answer) >= 7, (botch, name)  # a leap from frame 0 to 1 is now and then an honest step


def test_a_question_about_another_thing_is_answered_no():
    found = answered(PUSH, about=Claim("push_right", (Thing("green", "cone"),)))
    assert found["object"] == found["event"] == "No"


def test_a_defect_that_only_a_followed_thing_could_show_is_left_open_where_it_is_missing():
    assert not {"jump", "reshape", "resize", "form"} & set(answered(PUSH, "empty"))
    assert caption(PUSH) == "pushing red cube from left to right"
