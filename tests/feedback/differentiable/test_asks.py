"""The questions to a differentiable judge: from a rubric, from the command line, and as a file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data.config import ConfigError
from feedback.core.rubric import load_rubric
from feedback.differentiable.asks import Ask, asks_of_rubric, parse_ask, read_asks, write_asks
from tests.support.refusals import assert_refused

ASK = Ask("physics_motion", "physics", "Does anything leap?", "No", "Yes", ", all is calm.", True, "diffusion-drf")


# Files


def test_a_line_is_a_prompt_and_a_question(tmp_path):
    write_asks(tmp_path / "asks.jsonl", {"p1": [ASK]})

    assert (tmp_path / "asks.jsonl").read_text(encoding="utf-8") == (
        '{"prompt_id": "p1", "name": "physics_motion", "kind": "physics", "text": "Does anything leap?", '
        '"wanted": "No", "other": "Yes", "explanation": ", all is calm.", "with_reference": true, '
        '"author": "diffusion-drf", "with_first_frame": false}\n'
    )


def test_two_questions_of_one_name_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="p1: two questions have the same name"):
        write_asks(tmp_path / "asks.jsonl", {"p1": [ASK, replace(ASK, text="Again?")]})
    assert not (tmp_path / "asks.jsonl").exists()


def test_a_file_of_equal_questions_has_equal_bytes_and_keeps_every_character(tmp_path):
    odd = replace(ASK, text='a "cup"\n\u2028 é, 杯', explanation=None)
    for name in ("one.jsonl", "two.jsonl"):
        write_asks(tmp_path / name, {"p2": (ASK,), "p1": (odd,)})

    written = (tmp_path / "one.jsonl").read_bytes()
    assert written == (tmp_path / "two.jsonl").read_bytes()
    rows = [json.loads(line) for line in written.decode().removesuffix("\n").split("\n")]
    assert [row["prompt_id"] for row in rows] == ["p2", "p1"] and rows[1]["text"] == odd.text


def test_questions_are_read_as_they_were_written(tmp_path):
    path, asks = tmp_path / "asks.jsonl", {"p2": (ASK, replace(ASK, name="odd", text="a\n\u2028 é")), "p1": (ASK,)}
    assert read_asks(path) == {}
    write_asks(path, asks)
    assert read_asks(path) == asks
    path.write_text(path.read_text().replace('"physics"', '"taste"'))
    with pytest.raises(ConfigError, match=r"asks\.jsonl, line 1"):
        read_asks(path)


def test_a_wrong_field_is_named():
    changes = (
        ({"name": " "}, "name"), ({"kind": "taste"}, "kind"), ({"wanted": True}, "wanted"),
        ({"explanation": ""}, "explanation"),
        ({"with_reference": "yes"}, "with_reference"), ({"other": "no"}, "other is 'no', the same word as wanted"),
    )  # fmt: skip
    assert_refused(lambda change: replace(ASK, **change), changes)


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


def test_the_wanted_answer_stands_after_the_last_equals_sign():
    judge = "judge the video folding red cloth Accept or Reject"
    for given, text, wanted, other in (
        ("does the red ball fall off the table=yes", "does the red ball fall off the table", "Yes", "No"),
        ("Is the cup red? = NO", "Is the cup red?", "No", "Yes"),
        ("does it read 1+1=2=Yes", "does it read 1+1=2", "Yes", "No"),
        (f"{judge}=accept", judge, "Accept", "Reject"),
    ):
        ask = parse_ask(given, "ask_1", [("Yes", "No"), ("Accept", "Reject")])
        assert (ask.text, ask.wanted, ask.other) == (text, wanted, other)
        assert (ask.name, ask.kind, ask.author) == ("ask_1", "own", "own")


def test_a_template_stands_around_the_question():
    ask = parse_ask("is it {red}=no", template="{question}? Yes or No.")

    assert ask.text == "is it {red}? Yes or No."
    with pytest.raises(ValueError, match="the template does not contain {question}: 'Yes or No.'"):
        parse_ask("is it red=no", template="Yes or No.")


def test_a_question_without_a_known_wanted_answer_is_refused():
    cases = (
        ("does it fall", "'does it fall' names no wanted answer; write 'question=answer', the answer one of Yes, No"),
        ("does it fall=", "names no wanted answer"),
        ("=yes", "'=yes' holds no question"),
        ("does it fall=maybe", "the wanted answer 'maybe' is unknown; known are Yes, No"),
        ("does it fall=accept", "the wanted answer 'accept' is unknown"),
    )
    assert_refused(parse_ask, cases)
