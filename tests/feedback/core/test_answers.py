import json
import math

import pytest

from feedback.core.answers import SHOWN, Masses, probable, read_answer, verdict_schema, word_masses
from feedback.core.rubric import Question
from feedback.core.source import UNREADABLE_ANSWER
from feedback.network.openai_protocol import at_value, read_message, read_usage, top_of

ACCEPT = Question("accept", "Reply with a single word.", "Accept", "Reject", True, True)
YES = Question("good", "Is it good?", "yes", "no", True, True)


def structured(**fields) -> str:
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [
        ("Accept", True, None),
        ("Accept.", True, None),
        (" reject\n", False, None),
        ("REJECT!", False, None),
        ("**Accept**", True, None),
        ('"Reject."', False, None),
        ("Accept: the ball rolls as it should.", True, "the ball rolls as it should."),
        ("Reject - the cup melts", False, "the cup melts"),
        ("Reject\nThe cup melts.", False, "The cup melts."),
        (structured(answer="Accept", reason="It rolls."), True, "It rolls."),
        (structured(reason=" It melts. ", answer="reject"), False, "It melts."),
        (structured(answer=" Accept ", reason=""), True, None),
        (structured(answer="Reject"), False, None),
        (structured(answer="Reject", reason="One might accept it, were it not for the cup."), False, ...),
        ("```json\n" + structured(answer="Accept", reason="It rolls.") + "\n```", True, "It rolls."),
    ],
)
def test_an_answer_that_can_mean_one_thing_only_is_read(text, answer, reason):
    told = read_answer(text, ACCEPT)
    assert told["answer"] is answer
    assert reason is ... or told["reason"] == reason


@pytest.mark.parametrize(
    "text",
    [
        "One could accept it, but I would rather reject it.",
        "Accept or Reject",
        "Accept, though some would reject it",
        "Reject? Accept!",
        "I would accept this clip",  # words of the same stem elsewhere than at the beginning decide nothing
        "Not accept",
        "Acceptable",
        "Akzeptieren",
        "Das Video ist leider nicht in Ordnung.",
        "接受",
        "yes",
        "1",
        "",
        " \n",
        "\x00",
        structured(verdict="Accept"),
        structured(answer=True),
        structured(answer=None, reason="I cannot tell."),
        structured(answer="Accept or Reject"),
        structured(answer=["Accept"]),
        structured(answer={"Accept": True}),
        structured(answer="Accept", reason="It rolls.")[:-5],
        "[]",
        "null",
        "{}",
    ],
)
def test_what_might_mean_either_or_neither_is_null_with_what_was_said(text):
    told = read_answer(text, ACCEPT)
    assert told.keys() == {"error"}
    assert told["error"].startswith(UNREADABLE_ANSWER)
    assert "Accept" in told["error"] and "Reject" in told["error"]


def test_a_short_answer_word_within_another_word_is_no_answer():
    assert read_answer("No", YES)["answer"] is False
    assert read_answer("Yes: nothing is wrong", YES) == {"answer": True, "reason": "nothing is wrong"}
    assert "error" in read_answer("Nothing is wrong", YES)


def test_an_unreadable_answer_repeats_only_its_beginning():
    assert len(read_answer("so " * 10_000, ACCEPT)["error"]) < 2 * SHOWN + len(UNREADABLE_ANSWER)


def test_the_schema_asks_for_the_word_before_the_reason_and_for_nothing_else():
    schema = verdict_schema(ACCEPT)
    assert list(schema["properties"]) == schema["required"] == ["answer", "reason"]
    assert schema["properties"]["answer"]["enum"] == ["Accept", "Reject"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(("p_yes", "answer"), [(0.9, True), (0.500001, True), (0.2, False), (0, False), (1, True)])
def test_a_probability_on_one_side_of_a_half_is_an_answer(p_yes, answer):
    assert probable(p_yes) == {"answer": answer, "p_yes": p_yes}


@pytest.mark.parametrize("p_yes", [0.5, -0.1, 1.1, math.nan, math.inf, True])
def test_a_probability_that_decides_nothing_or_is_none_is_null(p_yes):
    assert probable(p_yes)["error"].startswith(UNREADABLE_ANSWER)


def test_the_masses_of_the_words_add_up_over_their_spellings():
    # e^-0.5 + e^-2 = 0.6065 + 0.1353 for Accept, e^-1.5 = 0.2231 for Reject; the others begin neither word.
    top = {"Acc": -0.5, " accept": -2.0, "▁Rej": -1.5, "The": -1.0, "": -0.1, "Acceptable": -0.2}
    masses = word_masses(top, ACCEPT)
    assert masses == pytest.approx((0.741866, 0.223130), abs=1e-6)
    assert masses.p_yes == pytest.approx(0.741866 / 0.964996, abs=1e-6)


def test_a_token_that_begins_both_words_speaks_for_neither():
    alike = Question("q", "?", "Accept", "Abort", True, True)
    assert word_masses({"A": -0.1, "Ac": -1.0}, alike) == pytest.approx((math.exp(-1.0), 0.0))


def test_words_that_are_not_among_the_tokens_have_no_probability():
    assert word_masses({"The": -0.1}, ACCEPT) == Masses(0.0, 0.0)
    assert Masses(0.0, 0.0).p_yes is None


def tokens(*parts: str) -> list[dict]:
    return [{"token": part, "logprob": 0.0, "top_logprobs": [{"token": part, "logprob": 0.0}]} for part in parts]


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (('{"', "answer", '":', ' "', "Acc", "ept", '"}'), "Acc"),
        (('{"answer": "', "Reject", '", "reason": "No."}'), "Reject"),
        (('{"reason": "the answer": "', "no", '"}'), None),
        (("Accept",), None),
    ],
)
def test_the_token_of_an_answer_is_the_one_at_which_its_value_begins(parts, found):
    token = at_value(tokens(*parts), "answer")
    assert (token and token["token"]) == found


def test_the_larger_of_two_probabilities_of_one_token_is_kept():
    assert top_of({"top_logprobs": [{"token": "A", "logprob": -2.0}, {"token": "A", "logprob": -1.0}]}) == {"A": -1.0}


@pytest.mark.parametrize("spoilt", [None, 7, {}, {"token": None}, {"token": "B"}, {"token": "B", "logprob": 3.0}])
def test_probabilities_of_which_one_is_spoilt_say_nothing(spoilt):
    assert top_of({"top_logprobs": [{"token": "A", "logprob": -2.0}, spoilt]}) == {}


def test_a_refusal_stands_in_the_error_in_its_own_words():
    reply = {"choices": [{"message": {"content": None, "refusal": "I cannot help with that."}}]}
    assert read_message(reply).error == "refused: I cannot help with that."


def test_usage_is_read_in_both_of_openais_spellings_and_unknown_where_it_is_not_told():
    told = {"input_tokens": 1000, "output_tokens": 20, "cached_tokens": 400}
    chat = {"prompt_tokens": 1000, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 400}}
    decisions = {"input_tokens": 1000, "output_tokens": 20, "input_tokens_details": {"cached_tokens": 400}}
    assert read_usage({"usage": chat}) == read_usage({"usage": decisions}) == told
    assert read_usage({}) == {"input_tokens": None, "output_tokens": None}
    assert read_usage({"error": {"message": "turned down"}}) == {"input_tokens": 0, "output_tokens": 0}
