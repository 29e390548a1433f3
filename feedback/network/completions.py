"""Reads what OpenAI's API and servers that speak its language reply: a message, its probabilities, its bill."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feedback.core.source import REFUSED, UNREADABLE_ANSWER

# Wishes of a call, the next where a model refuses the one before: older models tell 20 tokens, newer ones 5 and only
# without reasoning, some none. 5 hold all spellings of two words that matter.
LOGPROBS: tuple[dict[str, Any], ...] = (
    {"logprobs": True, "top_logprobs": 20},
    {"logprobs": True, "top_logprobs": 5},
    {},
)


ROUNDING = 1e-3  # nats by which the logarithm of a probability may lie above 0


class Message(NamedTuple):
    """What a chat completion says: its text, or the error that its verdicts should hold."""

    text: str | None
    error: str | None
    tokens: list[Mapping[str, Any]]  # token, logprob and top_logprobs of each position; empty where not told


def read_message(reply: Mapping[str, Any]) -> Message:
    """The first choice of a chat completion. A refusal or a filter's stop is an error in its own words."""
    if refusal := _filtered(reply):
        return Message(None, f"{REFUSED}{refusal}", [])
    match reply:
        case {"choices": [{"message": {"refusal": str(refusal)}}, *_]} if refusal:
            return Message(None, f"{REFUSED}{refusal}", [])
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            return Message(None, f"{REFUSED}stopped by the provider's content filter", [])
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]} if text.strip():
            return Message(text, None, mappings(mapping(choice.get("logprobs")).get("content")))
        case {"choices": [{"finish_reason": reason}, *_]}:
            return Message(None, f"{UNREADABLE_ANSWER}an empty reply, finish_reason {reason!r}", [])
    return Message(None, f"{UNREADABLE_ANSWER}no chat completion: {list(reply)[:5]}", [])


def _filtered(reply: Mapping[str, Any]) -> str | None:
    match reply:
        case {"error": {"message": str(message)}}:
            return message
        case {"error": error} if error:
            return str(error)
    return None


def read_usage(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Reading: what a reply of chat.completions or of the Decisions API used."""
    usage = reply.get("usage")
    if not isinstance(usage, Mapping):
        none = 0 if reply.get("error") else None
        return {"input_tokens": none, "output_tokens": none}
    details = mapping(usage.get("prompt_tokens_details", usage.get("input_tokens_details")))
    return {
        "input_tokens": count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        "output_tokens": count(usage.get("completion_tokens", usage.get("output_tokens"))),
        "cached_tokens": count(details.get("cached_tokens")) or 0,
    }


def parsed(reply: str) -> Mapping[str, Any]:
    """A raw reply as JSON; an empty object where it is none, or something else than an object."""
    try:
        given = json.loads(reply)
    except ValueError:
        return {}
    return mapping(given)


# What a reply holds is only looked into where it has the shape that was expected.


def mapping(given: Any) -> Mapping[str, Any]:
    """An object of a reply; empty where there is something else."""
    return given if isinstance(given, dict) else {}


def mappings(given: Any) -> list[Mapping[str, Any]]:
    """The objects in a list of a reply; none where there is something else."""
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def count(given: Any) -> int | None:
    """A count of a reply; null where there is something else."""
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else None


def string(given: Any) -> str | None:
    """A text of a reply; null where there is something else, or nothing."""
    return given if isinstance(given, str) and given else None


def at_value(tokens: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any] | None:
    """The token at which the value of a JSON object's string begins, in a reply made of these tokens."""
    text = "".join(str(token.get("token", "")) for token in tokens)
    found = re.search(rf'"{re.escape(key)}"\s*:\s*"', text)
    if not found:
        return None
    end = 0
    for token in tokens:
        end += len(str(token.get("token", "")))
        if end > found.end():
            return token
    return None


def top_of(token: Mapping[str, Any]) -> dict[str, float]:
    """Token -> log probability of the most probable tokens at a position; spellings that repeat keep the larger.

    Empty where one of them is not as it should be: the others alone might say the contrary.
    """
    top: dict[str, float] = {}
    listed = token.get("top_logprobs")
    for one in listed if isinstance(listed, list) else []:
        word, log_probability = mapping(one).get("token"), mapping(one).get("logprob")
        if not (isinstance(word, str) and isinstance(log_probability, int | float) and log_probability <= ROUNDING):
            return {}
        top[word] = max(log_probability, top.get(word, float("-inf")))
    return top
