import json
import math

import pytest

from feedback.core.answers import QUOTE_LENGTH, Masses, probable, read_answer, verdict_schema, word_masses
from feedback.core.rubric import Question
from feedback.core.source import UNREADABLE_ANSWER
from feedback.network.openai_protocol import at_value, read_message, read_usage, top_of

ACCEPT = Question("accept", "Reply with a single word.", "Accept", "Reject", True, True)
YES = Question("good", "Is it good?", "yes", "no", True, True)


def structured(**fields) -> str:
    return json.dumps(fields)


READABLE = (
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
)


def test_an_unambiguous_answer_is_read():
    for text, answer, reason in READABLE:
        fields = read_answer(text, ACCEPT)
        assert fields.get("answer") is answer, text
        assert reason is ... or fields["reason"] == reason, text


UNREADABLE = (
    "One could accept it, but I would rather reject it.",
    "Accept or Reject",
    "Accept, though some would reject it",
    "Reject? Accept!",
    "I would accept this clip",  # an answer word that is not the first word is ignored
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
)


def test_an_ambiguous_reply_gives_an_error_that_names_both_words():
    for text in UNREADABLE:
        fields = read_answer(text, ACCEPT)
        assert fields.keys() == {"error"}, text
        assert fields["error"].startswith(UNREADABLE_ANSWER), text
        assert "Accept" in fields["error"] and "Reject" in fields["error"], text


def test_a_short_answer_word_within_another_word_is_not_an_answer():
    assert read_answer("No", YES)["answer"] is False
    assert read_answer("Yes: nothing is wrong", YES) == {"answer": True, "reason": "nothing is wrong"}
    assert "error" in read_answer("Nothing is wrong", YES)


def test_the_error_of_an_unreadable_answer_quotes_only_its_beginning():
    assert len(read_answer("so " * 10_000, ACCEPT)["error"]) < 2 * QUOTE_LENGTH + len(UNREADABLE_ANSWER)


def test_the_schema_has_the_answer_before_the_reason_and_no_other_key():
    schema = verdict_schema(ACCEPT)
    assert list(schema["properties"]) == schema["required"] == ["answer", "reason"]
    assert schema["properties"]["answer"]["enum"] == ["Accept", "Reject"]
    assert schema["additionalProperties"] is False


def test_a_probability_other_than_a_half_is_an_answer():
    for p_yes, answer in ((0.9, True), (0.500001, True), (0.2, False), (0, False), (1, True)):
        assert probable(p_yes) == {"answer": answer, "p_yes": p_yes}


def test_a_half_and_values_that_are_not_probabilities_give_an_error():
    for p_yes in (0.5, -0.1, 1.1, math.nan, math.inf, True):
        assert probable(p_yes).get("error", "").startswith(UNREADABLE_ANSWER), p_yes


def test_the_masses_of_the_words_are_summed_over_their_spellings():
    # e^-0.5 + e^-2 = 0.6065 + 0.1353 for Accept, e^-1.5 = 0.2231 for Reject; the others begin neither word.
    top = {"Acc": -0.5, " accept": -2.0, "▁Rej": -1.5, "The": -1.0, "": -0.1, "Acceptable": -0.2}
    masses = word_masses(top, ACCEPT)
    assert masses == pytest.approx((0.741866, 0.223130, 0.0), abs=1e-6)
    assert masses.p_yes == pytest.approx(0.741866 / 0.964996, abs=1e-6)


def test_a_token_that_begins_both_words_counts_for_neither():
    alike = Question("q", "?", "Accept", "Abort", True, True)
    assert word_masses({"A": -0.1, "Ac": -1.0}, alike) == pytest.approx((math.exp(-1.0), 0.0, 0.0))


def test_words_that_are_not_among_the_tokens_have_no_probability():
    assert word_masses({"The": -0.1}, ACCEPT) == Masses(0.0, 0.0)
    assert Masses(0.0, 0.0).p_yes is None


def tokens(*parts: str) -> list[dict]:
    return [{"token": part, "logprob": 0.0, "top_logprobs": [{"token": part, "logprob": 0.0}]} for part in parts]


ANSWER_TOKENS = (
    (('{"', "answer", '":', ' "', "Acc", "ept", '"}'), "Acc"),
    (('{"answer": "', "Reject", '", "reason": "No."}'), "Reject"),
    (('{"reason": "the answer": "', "no", '"}'), None),
    (("Accept",), None),
)


def test_the_token_of_an_answer_is_the_first_token_of_its_value():
    for parts, found in ANSWER_TOKENS:
        token = at_value(tokens(*parts), "answer")
        assert (token and token["token"]) == found, parts


def test_the_larger_of_two_probabilities_of_one_token_is_kept():
    assert top_of({"top_logprobs": [{"token": "A", "logprob": -2.0}, {"token": "A", "logprob": -1.0}]}) == {"A": -1.0}


def test_one_malformed_entry_discards_all_probabilities():
    for entry in (None, 7, {}, {"token": None}, {"token": "B"}, {"token": "B", "logprob": 3.0}):
        assert top_of({"top_logprobs": [{"token": "A", "logprob": -2.0}, entry]}) == {}, entry


def test_the_error_of_a_refusal_quotes_it():
    reply = {"choices": [{"message": {"content": None, "refusal": "I cannot help with that."}}]}
    assert read_message(reply).error == "refused: I cannot help with that."


def test_usage_is_read_in_both_of_openais_spellings_and_is_none_if_missing():
    usage = {"input_tokens": 1000, "output_tokens": 20, "cached_tokens": 400}
    chat = {"prompt_tokens": 1000, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 400}}
    decisions = {"input_tokens": 1000, "output_tokens": 20, "input_tokens_details": {"cached_tokens": 400}}
    assert read_usage({"usage": chat}) == read_usage({"usage": decisions}) == usage
    assert read_usage({}) == {"input_tokens": None, "output_tokens": None}
    assert read_usage({"error": {"message": "turned down"}}) == {"input_tokens": 0, "output_tokens": 0}
