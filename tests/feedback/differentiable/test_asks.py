"""What a differentiable judge is asked: from a rubric, from the command line, from a file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from feedback.core.rubric import load_rubric
from feedback.differentiable.asks import Ask, asks_of_rubric, parse_ask, read_asks, write_asks

ASK = Ask("physics_motion", "physics", "Does anything leap?", "No", "Yes", ", all is calm.", True, "diffusion-drf")


# Files


def test_a_line_is_a_prompt_and_a_question(tmp_path):
    write_asks(tmp_path / "asks.jsonl", {"p1": [ASK]})

    assert (tmp_path / "asks.jsonl").read_text(encoding="utf-8") == (
        '{"prompt_id": "p1", "name": "physics_motion", "kind": "physics", "text": "Does anything leap?", '
        '"wanted": "No", "other": "Yes", "explanation": ", all is calm.", "with_reference": true, '
        '"author": "diffusion-drf"}\n'
    )


def test_questions_are_read_as_they_were_written_and_again_make_the_same_bytes(tmp_path):
    odd = replace(ASK, name="own", text='a "cup"\n\u2028 é, 杯', explanation=None, with_reference=False)
    asks = {"p2": (ASK, odd), "p1": (odd,)}
    write_asks(tmp_path / "asks.jsonl", asks)
    write_asks(tmp_path / "again.jsonl", read_asks(tmp_path / "asks.jsonl"))

    assert read_asks(tmp_path / "asks.jsonl") == asks
    assert list(read_asks(tmp_path / "asks.jsonl")) == ["p2", "p1"]
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "asks.jsonl").read_bytes()


def test_two_questions_of_one_name_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="p1: two questions have the same name"):
        write_asks(tmp_path / "asks.jsonl", {"p1": [ASK, replace(ASK, text="Again?")]})
    assert not (tmp_path / "asks.jsonl").exists()


def line(**changes) -> str:
    return json.dumps({"prompt_id": "p1", **vars(ASK), **changes}) + "\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (line() + "{'a': 1}\n", r"line 2: not JSON"),
        (line() + "\n" + line(name="b"), r"line 2: not JSON"),
        (line() + "[1]\n", r"line 2: expected an object with the keys prompt_id, name, .*found \[1\]"),
        (line(score=1), r"line 1: expected an object with the keys"),
        (line(prompt_id=""), r"line 1: prompt_id is '', expected a text"),
        (line(name=" "), r"line 1: name is ' ', expected a text"),
        (line(kind="taste"), r"line 1: kind is 'taste', known are \['alignment', 'physics', 'quality'"),
        (line(wanted=True), r"line 1: wanted is True, expected a text"),
        (line(other="no"), r"line 1: other is 'no', the same word as wanted"),
        (line(explanation=""), r"line 1: explanation is '', expected a text or null"),
        (line(with_reference="yes"), r"line 1: with_reference is 'yes', expected true or false"),
        (line() + line(text="Again?"), r"line 2: p1 has a second question 'physics_motion'"),
        ("", r": no questions"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, told):
    (tmp_path / "asks.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"asks.jsonl.*{told}"):
        read_asks(tmp_path / "asks.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl: not readable"):
        read_asks(tmp_path / "none.jsonl")


# Rubrics


def test_a_rubric_asks_its_required_questions_in_its_own_words():
    rubric = load_rubric(Path("tabletop/rubric.yaml"))

    (ask,) = asks_of_rubric(rubric, "folding red cloth")

    assert ask == Ask(
        "accept", "rubric", "judge the video folding red cloth\n\nAccept or Reject", "Accept", "Reject", None, False,
        "tabletop",
    )  # fmt: skip


def test_what_a_rubric_wants_is_the_wanted_word():
    rubric = load_rubric(Path("feedback/rubrics/aspects.yaml"))

    wanted = {ask.name: (ask.wanted, ask.other) for ask in asks_of_rubric(rubric, "a cup falls")}

    assert wanted["alignment_action"] == ("Yes", "No") and wanted["physics_motion"] == ("No", "Yes")
    assert len(wanted) == 9 and "alignment_setting" not in wanted  # the one that is not required


def test_a_rubric_without_a_wanted_answer_says_so(tmp_path):
    block = yaml.safe_load(Path("tabletop/rubric.yaml").read_text())
    del block["questions"][0]["wanted"]
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(block))

    with pytest.raises(ValueError, match=r"rubric\.yaml: questions\[0\]\.wanted is missing"):
        load_rubric(tmp_path / "rubric.yaml")


# The command line


@pytest.mark.parametrize(
    ("given", "text", "wanted", "other"),
    [
        ("does the red ball fall off the table=yes", "does the red ball fall off the table", "Yes", "No"),
        ("Is the cup red? = NO", "Is the cup red?", "No", "Yes"),
        ("does it read 1+1=2=Yes", "does it read 1+1=2", "Yes", "No"),  # the last = counts
        ("judge the video folding red cloth Accept or Reject=accept", None, "Accept", "Reject"),
    ],
)
def test_the_wanted_answer_stands_after_the_last_equals_sign(given, text, wanted, other):
    ask = parse_ask(given, "ask_1", [("Yes", "No"), ("Accept", "Reject")])

    assert (ask.wanted, ask.other, ask.name, ask.kind, ask.author) == (wanted, other, "ask_1", "own", "own")
    assert ask.text == (text or "judge the video folding red cloth Accept or Reject")


def test_a_template_stands_around_the_question():
    ask = parse_ask("is it {red}=no", template="{question}? Yes or No.")

    assert ask.text == "is it {red}? Yes or No."
    with pytest.raises(ValueError, match="the template has no {question} in it: 'Yes or No.'"):
        parse_ask("is it red=no", template="Yes or No.")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("does it fall", "'does it fall' names no wanted answer; write 'question=answer', the answer one of Yes, No"),
        ("does it fall=", "names no wanted answer"),
        ("=yes", "'=yes' holds no question"),
        ("does it fall=maybe", "the wanted answer 'maybe' is unknown; known are Yes, No"),
        ("does it fall=accept", "the wanted answer 'accept' is unknown"),
    ],
)
def test_a_question_without_a_known_wanted_answer_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        parse_ask(given)
