import itertools
import random
import re
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data.records import Verdict
from feedback.core.rubric import Question, Rubric, RubricByPrompt, Rule, combine, load_rubric
from tests.support.first_frames import TOLD, shows_first_frame

RUBRICS = sorted(Path("feedback/rubrics").glob("*.yaml"))


def question(name: str = "accept", wanted: bool = True, required: bool = True) -> Question:
    return Question(name, "Accept or Reject", "Accept", "Reject", wanted, required)


def rubric(*questions: Question, rule: str = "all") -> Rubric:
    return Rubric("test", 8, rule, "judge {prompt}", questions or (question(),))


def vote_of(answer: bool | None, p_yes: float | None = None, vote: int = 0, name: str = "accept", **fields) -> Verdict:
    error = "refused" if answer is None else None
    facts = {"score": None, "reason": None, "raw": None, "tokens": None, "cost": None, "error": error} | fields
    return Verdict(
        "clip", "judge", name, vote, answer, p_yes, model="m", model_version="1", rubric_hash="h", frames=[0], **facts
    )


def test_a_single_vote_is_the_label_and_its_probability_is_p_accept():
    label = combine([vote_of(True, 0.8, reason="it falls")], rubric())
    assert (label.label, label.p_accept, label.votes, label.nulls, label.reason) == (True, 0.8, 1, 0, "it falls")


def test_the_majority_of_votes_decides_and_p_accept_is_their_mean():
    # 0.9, 0.6 and 0.3 affirm twice and deny once; their mean is 1.8 / 3.
    label = combine([vote_of(True, 0.9), vote_of(True, 0.6, vote=1), vote_of(False, 0.3, vote=2)], rubric())
    assert label.label is True
    assert label.p_accept == pytest.approx(0.6)


def test_an_answer_without_probability_counts_as_one_or_zero():
    label = combine([vote_of(True), vote_of(False, vote=1), vote_of(True, vote=2)], rubric())
    assert label.p_accept == pytest.approx(2 / 3)


def test_tied_votes_leave_the_label_null_with_its_reason():
    label = combine([vote_of(True, 0.9), vote_of(False, 0.3, vote=1)], rubric())
    assert label.label is None
    assert label.p_accept == pytest.approx(0.6)
    assert "tied" in label.reason


def test_a_failed_vote_is_counted_and_is_neither_a_reject_nor_half_a_tie():
    label = combine([vote_of(True, 0.9), vote_of(None, vote=1)], rubric())
    assert (label.label, label.p_accept, label.votes, label.nulls) == (True, 0.9, 2, 1)


def test_without_any_answer_all_values_are_null_and_the_reason_is_given():
    label = combine([vote_of(None), vote_of(None, vote=1)], rubric())
    assert (label.label, label.p_accept, label.score, label.votes, label.nulls) == (None, None, None, 2, 2)
    assert "refused" in label.reason


def test_all_required_questions_must_get_their_wanted_answer():
    sheet = rubric(question("done"), question("glitch", wanted=False))
    clean = combine([vote_of(True, 0.8, name="done"), vote_of(False, 0.1, name="glitch")], sheet)
    flawed = combine([vote_of(True, 0.8, name="done"), vote_of(True, 0.7, name="glitch", reason="it melts")], sheet)
    # p_accept: 0.8 * (1 - 0.1) and 0.8 * (1 - 0.7)
    assert (clean.label, clean.p_accept) == (True, pytest.approx(0.72))
    assert (flawed.label, flawed.p_accept, flawed.reason) == (False, pytest.approx(0.24), "it melts")


def test_null_in_a_required_question_leaves_the_label_null_even_if_another_one_failed():
    sheet = rubric(question("done"), question("glitch", wanted=False))
    label = combine([vote_of(False, 0.2, name="done"), vote_of(None, name="glitch")], sheet)
    assert (label.label, label.p_accept, label.nulls) == (None, None, 1)


def test_a_question_that_is_not_required_does_not_affect_the_label():
    sheet = rubric(question("done"), question("pretty", required=False))
    label = combine([vote_of(True, 0.8, name="done"), vote_of(None, name="pretty")], sheet)
    assert (label.label, label.p_accept, label.nulls) == (True, 0.8, 0)


def three(rule: str) -> Rubric:
    """The wanted answers are yes on done and no on glitch and blur."""
    return rubric(question("done"), question("glitch", wanted=False), question("blur", wanted=False), rule=rule)


def answers(done: float | None, glitch: float | None, blur: float | None) -> list[Verdict]:
    """A vote on each question by the probability of yes."""
    given = {"done": done, "glitch": glitch, "blur": blur}
    return [vote_of(None if p is None else p > 0.5, p, name=name) for name, p in given.items()]


@pytest.mark.parametrize(
    ("given", "label", "p_accept"),
    [
        # Chances of the wanted answers: 0.9, 1 - 0.2 and 1 - 0.9; two of three as wanted; mean (0.9 + 0.8 + 0.1) / 3.
        (answers(0.9, 0.2, 0.9), True, 0.6),
        # 0.3, 0.2 and 0.7: one of three; mean 1.2 / 3.
        (answers(0.3, 0.8, 0.3), False, 0.4),
        # 0.6, 0.6 and 0: two of three as wanted, though the mean is 0.4.
        (answers(0.6, 0.4, 1.0), True, 0.4),
        # 0.9 and 0.8, of two that answered.
        (answers(0.9, 0.2, None), True, 0.85),
        # 0.9 and 0.3: one for, one against.
        (answers(0.9, 0.7, None), None, 0.6),
        # One of three is fewer than half.
        (answers(0.9, None, None), None, None),
        (answers(None, None, None), None, None),
    ],
)
def test_rule_majority_follows_more_than_half_of_the_answered_questions(given, label, p_accept):
    found = combine(given, three("majority"))
    assert (found.label, found.p_accept) == (label, p_accept if p_accept is None else pytest.approx(p_accept))


@pytest.mark.parametrize(
    ("given", "label", "p_accept"),
    [
        (answers(0.9, 0.2, 0.9), True, 0.6),  # as above
        (answers(0.6, 0.4, 1.0), False, 0.4),  # two of three as wanted, and still a reject
        (answers(0.9, 0.7, None), True, 0.6),
        (answers(0.75, 0.75, None), None, 0.5),  # 0.75 and 1 - 0.75
        (answers(0.9, None, None), None, None),
    ],
)
def test_rule_mean_accepts_if_the_mean_probability_of_the_wanted_answers_is_above_a_half(given, label, p_accept):
    found = combine(given, three("mean"))
    assert (found.label, found.p_accept) == (label, p_accept if p_accept is None else pytest.approx(p_accept))


@pytest.mark.parametrize("rule", ["majority", "mean"])
def test_half_of_the_questions_answered_is_enough_and_a_null_is_not_a_vote_against(rule):
    found = combine(
        [vote_of(True, 0.9, name="done"), vote_of(None, name="sharp")],
        rubric(question("done"), question("sharp"), rule=rule),
    )
    assert (found.label, found.p_accept, found.nulls) == (True, 0.9, 1)


@pytest.mark.parametrize("rule", ["majority", "mean"])
def test_a_question_whose_votes_tie_has_a_chance_but_no_answer(rule):
    # done: one yes at 0.9, one no at 0.3, so chance 0.6 and no answer; sharp: chance 0.2. Mean 0.4.
    given = [
        vote_of(True, 0.9, name="done"),
        vote_of(False, 0.3, vote=1, name="done"),
        *(vote_of(False, 0.2, vote=v, name="sharp") for v in (0, 1)),
    ]
    found = combine(given, rubric(question("done"), question("sharp"), rule=rule))
    assert (found.label, found.p_accept) == (False, pytest.approx(0.4))


REASONS = (
    (
        "majority",
        answers(0.9, 0.7, None),
        "1 for and 1 against, of 3 required questions; blur: no answer (refused)",
    ),
    (
        "majority",
        answers(0.9, None, None),
        "1 for and 0 against, of 3 required questions; glitch: no answer (refused)",
    ),
    ("mean", answers(0.75, 0.75, None), "1 for and 1 against, of 3 required questions; blur: no answer (refused)"),
    ("all", answers(0.9, 0.2, None), "blur: no answer (refused)"),
)


def test_the_reason_of_a_missing_label_gives_the_tally_and_the_missing_answers():
    for rule, given, reason in REASONS:
        assert combine(given, three(rule)).reason.startswith(reason), rule


@pytest.mark.parametrize("rule", typing.get_args(Rule))
def test_the_order_of_verdicts_has_no_effect(rule):
    rng = random.Random(0)
    for _ in range(50):
        rows = []
        for name, vote in itertools.product(("done", "glitch", "blur"), range(3)):
            answer = rng.choice((True, False, None))
            p_yes = None if answer is None else rng.random()
            rows.append(vote_of(answer, p_yes, vote, name, reason=f"{name} {vote}", score=rng.random()))
        label = combine(rows, three(rule))
        assert combine(rng.sample(rows, len(rows)), three(rule)) == label


@pytest.mark.parametrize("rule", typing.get_args(Rule))
def test_with_one_question_and_one_vote_all_rules_give_the_same_label(rule):
    for answer, p_yes in ((True, 0.8), (False, 0.1), (None, None)):
        label = combine([vote_of(answer, p_yes)], rubric(rule=rule))
        assert (label.label, label.p_accept) == (answer, p_yes)


def test_scores_are_averaged_over_votes():
    assert combine([vote_of(True, score=1.0), vote_of(True, score=2.0, vote=1)], rubric()).score == 1.5


def test_a_missing_verdict_is_an_error_and_not_a_null():
    with pytest.raises(ValueError, match="clip.*glitch"):
        combine([vote_of(True, name="done")], rubric(question("done"), question("glitch", wanted=False)))


def test_the_shipped_rubrics_load_and_send_the_prompt():
    assert RUBRICS
    for path in RUBRICS:
        sheet = load_rubric(path)
        assert sheet.frames in (8, None), path  # None: people see the whole clip
        assert all("pushing a {cup}" in sheet.text(one, "pushing a {cup}") for one in sheet.questions), path


def test_aspects_wants_alignment_and_no_defect():
    sheet = load_rubric(Path("feedback/rubrics/aspects.yaml"))
    wanted = {(one.name.split("_")[0], one.wanted) for one in sheet.questions}
    assert wanted == {("alignment", True), ("physics", False), ("quality", False)}
    assert {one.name.split("_")[0] for one in sheet.questions if one.required} == {"alignment", "physics", "quality"}
    assert {(one.affirmative, one.negative) for one in sheet.questions} == {("Yes", "No")}


def test_review_requires_one_word_about_four_points():
    sheet = load_rubric(Path("feedback/rubrics/review.yaml"))
    (only,) = sheet.questions
    text = sheet.text(only, "pushing a cup")
    assert (only.affirmative, only.negative, only.wanted) == ("Accept", "Reject", True)
    words = ("Coherence:", "Physics:", "Completion:", "Inconsistencies:", "single word")
    assert all(word in text for word in words)


def test_rubrics_for_whole_clips_and_for_frames_name_no_number_of_frames():
    for name in ("review", "aspects"):
        sheet = load_rubric(Path(f"feedback/rubrics/{name}.yaml"))
        # A judge that is sent the mp4 samples another number of frames than `frames`.
        assert "some of its frames" in sheet.instructions, name
        assert not any(re.search(r"eight|8", sheet.text(one, "")) for one in sheet.questions), name


def test_the_hash_covers_what_is_sent_and_not_the_combining_rule():
    sent = rubric(question())
    assert rubric(question(wanted=False)).hash == sent.hash
    assert rubric(question(), rule="mean").hash == sent.hash
    assert Rubric("renamed", 8, "all", "judge {prompt}", (question(),)).hash == sent.hash
    assert Rubric("test", 4, "all", "judge {prompt}", (question(),)).hash != sent.hash
    assert Rubric("test", 8, "all", "Judge {prompt}", (question(),)).hash != sent.hash


def test_a_rubric_that_shows_the_first_frame_says_so_first_and_is_another_one(tmp_path):
    plain = load_rubric(Path("tabletop/rubric.yaml"))
    shown = load_rubric(shows_first_frame(Path("tabletop/rubric.yaml"), tmp_path / "shown.yaml"))
    (question,) = plain.questions

    assert (shown.first_frame, plain.first_frame) == (TOLD, None)
    assert shown.text(question, "a ball") == f"{TOLD}\n\n{plain.text(question, 'a ball')}"
    told = replace(plain, instructions=f"{TOLD}\n\n{plain.instructions}")  # the same words, and no picture
    assert told.text(question, "") == shown.text(question, "")
    assert len({plain.hash, shown.hash, told.hash}) == 3


def test_the_hash_of_a_rubric_without_a_first_frame_is_as_it_was():
    """Of version 0.1, so that no answer is asked for again."""
    files = {"tabletop/rubric.yaml": "3ee84f419dcf", "feedback/rubrics/preference.yaml": "d763678fd6c9"}
    assert {file: load_rubric(Path(file)).hash for file in files} == files


def test_questions_of_each_prompts_own_are_asked_with_the_first_frame_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("questions.csv").write_text("prompt,name,question,wanted\na ball rolls,object,is there a ball,Yes\n")
    own = "name: own\nframes: 8\nrule: all\ninstructions: ''\nquestions: questions.csv\n"
    for name, text in {"plain": own, "shown": f"first_frame: {TOLD}\n{own}"}.items():
        Path(name).write_text(text)
    plain, shown = load_rubric(Path("plain")), load_rubric(Path("shown"))

    assert shown.first_frame == shown.of("a ball rolls").first_frame == TOLD
    assert shown.hash != plain.hash and shown.of("a ball rolls").hash != plain.of("a ball rolls").hash


def edited(tmp_path: Path, **changes) -> Path:
    block = yaml.safe_load(Path("tabletop/rubric.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in block.items() if value != "leave out"}))
    return path


ACCEPT = yaml.safe_load(Path("tabletop/rubric.yaml").read_text())["questions"][0]


def test_a_wrong_key_is_named_with_its_file(tmp_path):
    wrong = [
        ({"temperature": 1}, "temperature .* is unknown; known keys are .*frames, rule"),
        ({"rule": "leave out"}, "rule is missing"),
        ({"rule": "most"}, "rule is 'most'"),
        ({"frames": "8"}, "frames is '8'"),
        ({"frames": True}, "frames is True"),
        ({"questions": []}, "questions: none is required"),
        ({"questions": [ACCEPT, ACCEPT]}, "questions: two have the same name"),
        ({"questions": [{"name": "accept"}]}, r"questions\[0\].ask is missing"),
        ({"questions": [ACCEPT | {"affirmative": True}]}, r"questions\[0\].affirmative: .*put Yes and No in quotes"),
        ({"questions": [ACCEPT | {"affirmative": "“Yes”"}]}, r"questions\[0\].affirmative: '“Yes”' has quotes"),
        ({"questions": [ACCEPT | {"negative": '"No"'}]}, r"questions\[0\].negative: '\"No\"' has quotes"),
        (
            {"questions": [ACCEPT | {"affirmative": "Yes", "negative": "yes, not"}]},
            ".* begins with the same word as its",
        ),
        ({"questions": [ACCEPT | {"wanted": "perhaps"}]}, r"questions\[0\].wanted is 'perhaps'"),
        ({"questions": [ACCEPT | {"negative": 7}]}, r"questions\[0\].negative is 7, expected a valid string"),
        (
            {"questions": [ACCEPT | {"negative": "accept"}]},
            r"questions\[0\].negative is 'accept', which begins with the same word",
        ),
        ({"questions": [ACCEPT | {"ask": " "}]}, r"questions\[0\].ask: ' ' is empty"),
        ({"questions": [ACCEPT | {"wanted": None}]}, r"questions\[0\].wanted is null"),
        ({"instructions": "judge the video"}, r"questions\[0\].ask: neither"),
    ]
    for changes, problem in wrong:
        with pytest.raises(ValueError, match=f"mine.yaml: {problem}"):
            load_rubric(edited(tmp_path, **changes))


def test_wanted_may_be_written_with_quotes_as_the_answers_are(tmp_path):
    for written, wanted in (("yes", True), ("No", False), (True, True), ("false", False)):
        sheet = load_rubric(edited(tmp_path, questions=[ACCEPT | {"wanted": written, "required": "yes"}]))
        assert (sheet.questions[0].wanted, sheet.questions[0].required) == (wanted, True), written


# Questions of each prompt's own

SHEET = """
name: own
frames: 8
rule: {rule}
instructions: "Look at the video."
questions: questions.csv
"""
CSV = """prompt,name,question,wanted,other,required
a ball falls,object,is there a ball,Yes,,
a ball falls,jump,does anything jump,No,,
a cup,object,is there a cup,Yes,,
a cup,colour,which colour has it,Red,Blue,
a cup,blur,is it blurred,No,,no
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the rubric and its questions into the working folder, and reads them."""
    monkeypatch.chdir(tmp_path)

    def load(rule: str = "all", csv: str = CSV, sheet: str = SHEET) -> RubricByPrompt:
        Path("own.yaml").write_text(sheet.replace("{rule}", rule))
        Path("questions.csv").write_text(csv)
        return load_rubric(Path("own.yaml"))

    return load


def test_each_prompt_has_its_own_questions_with_their_words(own):
    sheet = own()
    ball, cup = sheet.of("a ball falls"), sheet.of("a cup")
    assert [one.name for one in ball.questions] == ["object", "jump"]
    assert [(one.affirmative, one.negative, one.wanted, one.required) for one in cup.questions] == [
        ("Yes", "No", True, True), ("Red", "Blue", True, True), ("Yes", "No", False, False),
    ]  # fmt: skip
    assert cup.text(cup.questions[1], "a cup") == "Look at the video.\n\nwhich colour has it"
    assert own(sheet=SHEET.replace("Look at the video.", "")).of("a cup").text(cup.questions[1], "") == (
        "which colour has it"
    )
    assert not hasattr(sheet, "questions")


def test_every_rule_combines_as_many_answers_as_a_prompt_has_questions(own):
    # The ball's chances are 0.9 and 1 - 0.2; the cup's 0.9, 0.6 and, not required, 1 - 0.7.
    ball = [vote_of(True, 0.9, name="object"), vote_of(False, 0.2, name="jump")]
    cup = [vote_of(True, 0.9, name="object"), vote_of(True, 0.6, name="colour"), vote_of(True, 0.7, name="blur")]
    for rule, of_ball, of_cup in (
        ("all", 0.9 * 0.8, 0.9 * 0.6),
        ("product", 0.9 * 0.8, 0.9 * 0.6),
        ("mean", (0.9 + 0.8) / 2, (0.9 + 0.6) / 2),
        ("majority", (0.9 + 0.8) / 2, (0.9 + 0.6) / 2),
    ):
        sheet = own(rule)
        for prompt, rows, chance in (("a ball falls", ball, of_ball), ("a cup", cup, of_cup)):
            label = combine(rows, sheet.of(prompt))
            assert (label.label, label.p_accept) == (True, pytest.approx(chance)), (rule, prompt)
    assert combine([vote_of(True, 0.9, name="object"), vote_of(True, 0.8, name="jump")], ball_of(own())).label is False


def ball_of(sheet: RubricByPrompt) -> Rubric:
    return sheet.of("a ball falls")


def test_a_prompts_hash_is_of_its_own_questions_and_the_whole_hash_of_all(own):
    before = own()
    after = own(csv=CSV.replace("is there a cup", "do you see a cup"))
    assert ball_of(after).hash == ball_of(before).hash
    assert after.of("a cup").hash != before.of("a cup").hash and after.hash != before.hash
    header, *rows = CSV.splitlines()
    assert own(csv="\n".join([header, *rows[2:], *rows[:2]])).hash == before.hash  # prompts in another order
    assert own("mean").hash == before.hash != own(sheet=SHEET.replace("8", "4")).hash


def test_prompts_without_a_question_are_counted_and_named(own):
    sheet = own()
    sheet.check_prompts(["a cup", "a ball falls"])
    with pytest.raises(ValueError, match=r"questions.csv has no question about 2 of 3 prompts, .* 'A ball falls' \("):
        sheet.check_prompts(["a cup", "A ball falls", "a dog", "A ball falls"])
    with pytest.raises(ValueError, match="no question about 1 of 1 prompts, the first of them 'a dog'"):
        sheet.of("a dog")


def test_a_wrong_rubric_of_own_questions_names_its_file_and_key(own):
    for sheet, csv, said in (
        (SHEET + "compares: true", CSV, "own.yaml: compares: true, but two clips are compared by one list"),
        (SHEET.replace("questions.csv", "others.csv"), CSV, "own.yaml: questions: others.csv: not read"),
        (SHEET.replace("rule", "role"), CSV, "own.yaml: rule is missing; known keys are"),
        (SHEET.replace("questions.csv", '""'), CSV, "own.yaml: questions: '' is empty"),
        (SHEET, CSV.replace("Red,Blue", "Red,"), "own.yaml: questions: questions.csv, row 5"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            own(csv=csv, sheet=sheet)
