"""Reads one of two answer words from a judge's reply; an ambiguous reply is not an answer.

Three forms are accepted:

    a JSON object with "answer", which is one of the two words, and optionally "reason"
    only the word, in any case, with punctuation or quotes around it
    the word first, then a reason that does not contain the other word

Every other reply gives an error that states the cause. `word_masses` reads the same two words from the probabilities
of one token. `after_thoughts` is what a reasoning model says after its thoughts, which may hold both words.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from feedback.core.rubric import Question
from feedback.core.source import UNREADABLE_ANSWER

# The marks around a reasoning model's thoughts. A chat template may hold the opening mark, so the reply may lack it.
_OPENING = re.compile(r"\s*(?:<think(?:ing)?>|◁think▷)")
_CLOSING = re.compile(r"</think(?:ing)?>|◁/think▷")
_ANSWER = re.compile(r"\s*(?:<answer>|<\|begin_of_box\|>)(.*?)(?:</answer>|<\|end_of_box\|>|\Z)", re.DOTALL)
QUOTE_LENGTH = 80  # characters of an unreadable reply that its error quotes; `raw` keeps the whole reply


class Masses(NamedTuple):
    """Probability that one token begins the affirmative word, and that it begins the negative word, in any spelling."""

    affirmative: float
    negative: float

    @property
    def p_yes(self) -> float | None:
        """The affirmative word's share of the two probabilities; None if neither word was among the tokens."""
        both = self.affirmative + self.negative
        return self.affirmative / both if both else None


def read_answer(text: str, question: Question) -> dict[str, Any]:
    """The fields of a Verdict: `answer` and `reason`, or `error`."""
    given = _object(text)
    if given is not None:
        return _of_object(given, question)
    bare = text.strip().strip("\"'`*_.,:;!()[]{}").strip()
    if (answer := _word(bare, question)) is not None:
        return {"answer": answer, "reason": None}
    first = re.match(r"[\"'`*_]*(\w+)[\"'`*_]*\s*[.,:;!\-–—(\n]\s*(?P<reason>.+)", text.strip(), re.DOTALL)
    if first and (answer := _word(first[1], question)) is not None:
        other = question.negative if answer else question.affirmative
        if not re.search(rf"\b{re.escape(other)}\b", first["reason"], re.IGNORECASE):
            return {"answer": answer, "reason": first["reason"].strip()}
    wanted = f"{question.affirmative} or {question.negative}"
    return {"error": f"{UNREADABLE_ANSWER}neither {wanted} alone, but {_quoted(text)}"}


def after_thoughts(text: str) -> str:
    """A reply without the thoughts before its answer and the marks around it; empty where the thoughts do not end."""
    closed = list(_CLOSING.finditer(text))
    if not closed and _OPENING.match(text):
        return ""
    spoken = text[closed[-1].end() :] if closed else text
    marked = _ANSWER.match(spoken)
    return marked[1] if marked else spoken


def verdict_schema(question: Question) -> dict[str, Any]:
    """JSON schema of a structured answer. `answer` comes first, so that the reason cannot influence it."""
    words = {"type": "string", "enum": [question.affirmative, question.negative]}
    return {
        "type": "object",
        "properties": {"answer": words, "reason": {"type": "string"}},
        "required": ["answer", "reason"],
        "additionalProperties": False,
    }


def probable(p_yes: float) -> dict[str, Any]:
    """The fields of a Verdict from a probability only. Exactly 0.5, which rounding makes frequent, is not an answer."""
    if isinstance(p_yes, bool) or not 0 <= p_yes <= 1 or p_yes == 0.5:
        return {"error": f"{UNREADABLE_ANSWER}a probability of {p_yes!r} decides nothing"}
    return {"answer": p_yes > 0.5, "p_yes": float(p_yes)}


def _of_object(given: Mapping[str, Any], question: Question) -> dict[str, Any]:
    word, reason = given.get("answer"), given.get("reason")
    answer = _word(word.strip(), question) if isinstance(word, str) else None
    if answer is None:
        wanted = f"{question.affirmative} or {question.negative}"
        return {"error": f"{UNREADABLE_ANSWER}`answer` is {_quoted(repr(word))}, neither {wanted}"}
    return {"answer": answer, "reason": reason.strip() or None if isinstance(reason, str) else None}


def _word(word: str, question: Question) -> bool | None:
    words = {question.affirmative.casefold(): True, question.negative.casefold(): False}
    return words.get(word.casefold())


def unfenced(text: str) -> str:
    """The reply without its code fence, if the whole reply is one fenced block."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    return fenced[1] if fenced else text


def _object(text: str) -> Mapping[str, Any] | None:
    try:
        given = json.loads(unfenced(text))
    except ValueError:
        return None
    return given if isinstance(given, dict) else None


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTE_LENGTH else text[:QUOTE_LENGTH] + "…")


def word_masses(top: Mapping[str, float], question: Question) -> Masses:
    """Probabilities of the two answer words at one position. top: most probable tokens -> log probability (nats).

    A token counts for a word if it is a prefix of that word and not of the other one. Case and a preceding space or
    quote are ignored.
    """
    words = question.affirmative.casefold(), question.negative.casefold()
    masses = [0.0, 0.0]
    for token, log_probability in top.items():
        plain = token.strip(" \t\n\"'`*_▁Ġ").casefold()
        begins = [bool(plain) and word.startswith(plain) for word in words]
        if sum(begins) == 1:
            masses[begins.index(True)] += math.exp(log_probability)
    return Masses(*masses)
