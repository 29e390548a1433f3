"""OpenAI's protocol, as `gpt`, `served` and text models use it: the client, its errors, and the contents of replies."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from feedback.core.answers import after_thoughts, unfenced
from feedback.core.source import REFUSED, UNREADABLE_ANSWER
from feedback.network.pace import CONNECT, LIMITS, retry_after
from feedback.network.provider import (
    ATTEMPT_HEADER,
    PAY,
    UNKNOWN,
    UNPAID,
    Fault,
    Remedy,
    is_loopback,
    mend_key,
    mend_name,
    no_reply,
    via_proxy,
    without_key,
)

if TYPE_CHECKING:  # the SDK takes a second to import, which a check of params.yaml need not spend
    import openai

OPENAI = "https://api.openai.com/v1"
# Optional parameters of a call, the next set where a model refuses the one before: older models give 20 tokens, newer
# ones 5 and only without reasoning, some none. 5 contain all spellings of two words that matter.
LOGPROBS: tuple[dict[str, Any], ...] = (
    {"logprobs": True, "top_logprobs": 20},
    {"logprobs": True, "top_logprobs": 5},
    {},
)
SPENT = (  # codes of limits that last longer than any wait
    "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
    "billing_limit_user_error", "billing_not_active",
)  # fmt: skip
# Codes of a 400 that every call would have: a model or a parameter of the block is not known.
NOT_KNOWN = ("model_not_found", "invalid_model", "unsupported_parameter", "unsupported_value", "unknown_parameter")
NO_MODEL = re.compile(r"invalid model|no such model|model \S+ (does not exist|is not found|not found)", re.IGNORECASE)
BY_DAY = re.compile(r"per day|\bRPD\b|\bTPD\b")  # in the message of a limit that lasts until tomorrow
NO_VARIABLE = "the server requires a key, and key_variable is null"
FILTERED = ("content_policy_violation", "content_filter", "invalid_prompt", "image_content_policy_violation")
ROUNDING = 1e-3  # nats by which the logarithm of a probability may lie above 0


# The client


class ParameterRefused(Exception):
    """The model refuses an optional parameter; later calls use the next set."""


class OpenAIClient:
    """A client for one model."""

    def __init__(
        self,
        key: str,
        variable: str,
        base_url: str | None,
        model: str,
        timeout: float,
        optional: Sequence[Mapping[str, Any]] = ({},),
    ) -> None:
        """variable: environment variable of the key, for error messages; empty where the server requires no key.

        timeout: seconds. optional: sets of parameters that are sent beside every call, the next where the model
        refuses the one before.
        """
        import httpx2
        import openai

        self._key, self._variable, self.model = key, variable, model
        base_url = base_url or OPENAI  # always named: the SDK would otherwise take another from the environment
        self.client = openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT)),
            max_retries=0,  # the SDK's own retries would send calls that the ledger does not know of
            http_client=openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(**LIMITS),
                trust_env=not is_loopback(base_url),  # a proxy cannot reach a server on this machine
            ),
        )
        self._optional, self._set = optional, 0

    def full_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body with all that `complete` would send beside it now."""
        return {"model": self.model, **self._optional[self._set], **body}

    async def complete(self, body: Mapping[str, Any], attempt: str) -> str:
        """The raw reply of chat.completions."""
        import openai

        used = self._set
        try:
            return await self._post("/chat/completions", {**self._optional[used], **body}, attempt)
        except (openai.BadRequestError, openai.PermissionDeniedError) as error:
            words = re.findall(r"\w+", f"{error.param} {error.message}")
            if refused := [name for name in self._optional[used] if name in words]:
                self._set = max(self._set, used + 1)  # calls that are in flight together are refused together
                raise ParameterRefused(f"{self.model} does not take {refused[0]} as it was sent") from error
            raise

    async def decide(self, body: Mapping[str, Any], attempt: str) -> str:
        """The raw reply of the Decisions API."""
        return await self._post("/decisions", body, attempt)

    async def _post(self, path: str, body: Mapping[str, Any], attempt: str) -> str:
        """The SDK's own post, without its walk through every field of a body: 5 ms a call under a profiler."""
        import httpx2

        response = await self.client.post(
            path,
            cast_to=httpx2.Response,
            body={"model": self.model, **body},
            options={"headers": {ATTEMPT_HEADER: attempt}},
        )
        return response.text

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    def fault(self, error: Exception) -> Fault:
        """What an exception of a call means. One that is not of the client is raised again."""
        import httpx2
        import openai

        if isinstance(error, ParameterRefused):
            return Fault(Remedy.LEARN, str(error))
        if isinstance(error, openai.APIStatusError):
            return replace(self._status_fault(error), status=error.status_code)
        if isinstance(error, openai.APIConnectionError | httpx2.TransportError):  # bare, while a file is streamed
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            fault = no_reply(cause or error, self._address)
            return replace(fault, reason=self._clean(fault.reason))
        raise error

    def _status_fault(self, error: "openai.APIStatusError") -> Fault:
        status, code, wait = error.status_code, error.code or error.type or "", retry_after(error.response.headers)
        message = error.body.get("message") if isinstance(error.body, dict) else None
        via = "" if isinstance(error.body, dict) else via_proxy(self._address)  # a page may be the proxy's own
        reason = self._clean(f"HTTP {status}{via}: {message or error.message}")
        spent = code in SPENT or error.type in SPENT
        if spent or status == UNPAID:
            return Fault(Remedy.STOP, reason, wait, cure=PAY)
        if status in (401, 403):
            named = f"the key in {self._variable} was rejected" if self._variable else NO_VARIABLE
            words = self._clean(f"{named} (HTTP {status}, {code or 'no code'}{via}): {message or error.message}")
            return Fault(Remedy.STOP, words, cure=mend_key(self._variable, self.model))
        if status in UNKNOWN:
            return Fault(Remedy.STOP, reason, cure=mend_name(self.model, self._address))
        of_clip = str(error.param).startswith(("messages", "input"))
        if status == 400 and not of_clip and (code in NOT_KNOWN or NO_MODEL.search(error.message)):
            return Fault(Remedy.STOP, reason, cure=f"Correct the block's model ({self.model}) or its parameters")
        if status == 429:
            by_day = BY_DAY.search(error.message)
            return Fault(Remedy.STOP if by_day else Remedy.REST, reason, wait)
        if status in (408, 504):
            return Fault(Remedy.RETRY, reason, wait, lost=True)
        if status == 409 or status >= 500:
            return Fault(Remedy.REST if wait is not None else Remedy.RETRY, reason, wait)
        if not isinstance(error.body, dict):
            return Fault(Remedy.RETRY, reason, wait)  # truncated, or of some proxy: it may be a refusal or not
        if code in FILTERED:
            return Fault(Remedy.ANSWER, reason, body=self._clean(json.dumps({"error": error.body})))
        return Fault(Remedy.FAIL, reason)

    def _clean(self, text: str) -> str:
        return without_key(text, self._key) if self._variable else text

    @property
    def _address(self) -> str:
        return str(self.client.base_url).rstrip("/")


# Replies


class ReplyMessage(NamedTuple):
    """The message in a reply: its text, or the error that its verdicts hold."""

    text: str | None  # without thoughts
    error: str | None
    tokens: list[Mapping[str, Any]]  # token, logprob and top_logprobs of each position; empty where none were sent
    empty: bool = (
        False  # neither words nor thoughts, a refusal or the stop of a filter: asked again, it usually answers
    )

    @property
    def defect(self) -> str | None:
        """Why it has to be requested again; None where it is an answer."""
        return (self.error or "").removeprefix(UNREADABLE_ANSWER) if self.empty else None


def read_message(reply: Mapping[str, Any]) -> ReplyMessage:
    """The first choice of a chat completion. A refusal, or a stop by a filter, is an error in the provider's words."""
    if refusal := _filtered(reply):
        return ReplyMessage(None, f"{REFUSED}{refusal}", [])
    match reply:
        case {"choices": [{"message": {"refusal": str(refusal)}}, *_]} if refusal:
            return ReplyMessage(None, f"{REFUSED}{refusal}", [])
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            return ReplyMessage(None, f"{REFUSED}stopped by the provider's content filter", [])
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]} if (
            spoken := after_thoughts(text)
        ).strip():
            return ReplyMessage(spoken, None, mappings(mapping(choice.get("logprobs")).get("content")))
        case {"choices": [{"message": message, "finish_reason": reason}, *_]} if _thinks(mapping(message)):
            cure = "; a larger max_tokens leaves room for one" if reason == "length" else ""
            error = f"{UNREADABLE_ANSWER}thoughts without an answer, finish_reason {reason!r}{cure}"
            return ReplyMessage(None, error, [])
        case {"choices": [{"finish_reason": "length"}, *_]}:  # hidden thoughts took all of the tokens
            return ReplyMessage(None, f"{UNREADABLE_ANSWER}no answer within max_tokens; a larger one leaves room", [])
        case {"choices": [{"finish_reason": reason}, *_]}:
            return ReplyMessage(None, f"{UNREADABLE_ANSWER}an empty reply, finish_reason {reason!r}", [], empty=True)
    return ReplyMessage(None, f"{UNREADABLE_ANSWER}no chat completion: {list(reply)[:5]}", [], empty=True)


def _thinks(message: Mapping[str, Any]) -> bool:
    """Whether there are thoughts in a message that has no answer."""
    return any((string(message.get(key)) or "").strip() for key in ("content", "reasoning_content", "reasoning"))


def _filtered(reply: Mapping[str, Any]) -> str | None:
    match reply:
        case {"error": {"message": str(message)}}:
            return message
        case {"error": error} if error:
            return str(error)
    return None


def read_usage(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Token counts, fields of a Reading, of a reply of chat.completions or of the Decisions API."""
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


def answer_token(message: ReplyMessage) -> Mapping[str, Any] | None:
    """The token at which the answer begins in a reply that is one word or a JSON object; None if that is not clear.

    Thoughts, whether or not they are part of the text, spaces and quotes come before it.
    """
    text = (message.text or "").strip()
    start = _joined(message.tokens).rfind(_without_spaces(text))
    if not text or start < 0:
        return None
    if unfenced(text).startswith("{"):
        return at_value(message.tokens, "answer", start)
    letter = re.search(r"\w", _without_spaces(text))
    return _token_at(message.tokens, start + letter.start()) if letter else None


def at_value(tokens: Sequence[Mapping[str, Any]], key: str, start: int = 0) -> Mapping[str, Any] | None:
    """The token at which the value of a JSON object's string begins, in a reply made of these tokens.

    start: the character of the reply, counted without spaces, at which the object begins.
    """
    found = re.compile(rf'"{re.escape(key)}"\s*:\s*"').search(_joined(tokens), start)
    return _token_at(tokens, found.end()) if found else None


def _joined(tokens: Sequence[Mapping[str, Any]]) -> str:
    """A reply without spaces: where a tokenizer marks them by the place of its tokens, the tokens hold none."""
    return "".join(_without_spaces(str(token.get("token", ""))) for token in tokens)


def _without_spaces(text: str) -> str:
    return re.sub(r"[\s▁]+", "", text)


def _token_at(tokens: Sequence[Mapping[str, Any]], place: int) -> Mapping[str, Any] | None:
    """The token that holds this character of a reply, counted without spaces."""
    end = 0
    for token in tokens:
        end += len(_without_spaces(str(token.get("token", ""))))
        if end > place:
            return token
    return None


def top_of(token: Mapping[str, Any]) -> dict[str, float]:
    """Token -> log probability of the most probable tokens at a position; spellings that repeat keep the larger.

    Empty where one of them is malformed: the others alone might mean the contrary.
    """
    top: dict[str, float] = {}
    listed = token.get("top_logprobs")
    for one in listed if isinstance(listed, list) else []:
        word, log_probability = mapping(one).get("token"), mapping(one).get("logprob")
        if not (isinstance(word, str) and isinstance(log_probability, int | float) and log_probability <= ROUNDING):
            return {}
        top[word] = max(log_probability, top.get(word, float("-inf")))
    return top


# Values of a reply, of this protocol and of others, where they have the expected type


def parsed(reply: str) -> Mapping[str, Any]:
    """A raw reply as JSON; an empty object where it is not JSON, or not an object."""
    try:
        return mapping(json.loads(reply))
    except ValueError:
        return {}


def mapping(given: Any) -> Mapping[str, Any]:
    """An object of a reply; empty for any other type."""
    return given if isinstance(given, dict) else {}


def mappings(given: Any) -> list[Mapping[str, Any]]:
    """The objects in a list of a reply; empty for any other type."""
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def count(given: Any) -> int | None:
    """A count of a reply; None for any other type."""
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else None


def string(given: Any) -> str | None:
    """A text of a reply; None for any other type, and for an empty text."""
    return given if isinstance(given, str) and given else None
