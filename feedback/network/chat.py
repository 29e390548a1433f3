"""The OpenAI client as both `gpt` and `served` use it: one call, and what its errors mean."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import openai

from feedback.network.pace import LIMITS, retry_after
from feedback.network.provider import ATTEMPT_HEADER, HOPELESS, Fault, Remedy, told_by

OPENAI = "https://api.openai.com/v1"
SPENT = (  # no waiting mends these
    "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
    "billing_limit_user_error", "billing_not_active",
)  # fmt: skip
BY_DAY = re.compile(r"per day|\bRPD\b|\bTPD\b")  # in the message of a limit that lasts until tomorrow
NO_VARIABLE = "the server wants a key, and key_variable names none"
FILTERED = ("content_policy_violation", "content_filter", "invalid_prompt", "image_content_policy_violation")


class ParameterRefused(Exception):
    """The model does not take a parameter that it need not be sent; later calls leave it out, or ask for less."""


class Chat:
    """A client for one model."""

    def __init__(
        self,
        key: str,
        variable: str,
        base_url: str | None,
        model: str,
        timeout: float,
        wishes: Sequence[Mapping[str, Any]] = ({},),
    ) -> None:
        """
        variable: environment variable that the key came from, for error messages. timeout: seconds.
        wishes: parameters that are sent beside every call, the next of them where the model refuses the one before.
        """
        self._key, self._variable, self.model = key, variable, model
        # One retry loop, ours: the SDK's own would send again what the ledger does not know of.
        self.client = openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url or OPENAI,  # named in any case: the SDK would else take another from the environment
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(limits=httpx2.Limits(**LIMITS)),
        )
        self._wishes, self._wish = wishes, 0

    def whole(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body with all that `complete` would send beside it now."""
        return {"model": self.model, **self._wishes[self._wish], **body}

    async def complete(self, body: Mapping[str, Any], attempt: str) -> str:
        """The raw reply of chat.completions."""
        wish = self._wish
        try:
            return await self._post("/chat/completions", {**self._wishes[wish], **body}, attempt)
        except (openai.BadRequestError, openai.PermissionDeniedError) as error:
            words = re.findall(r"\w+", f"{error.param} {error.message}")
            if refused := [name for name in self._wishes[wish] if name in words]:
                self._wish = max(self._wish, wish + 1)  # calls that are in flight together are refused together
                raise ParameterRefused(f"{self.model} does not take {refused[0]} as it was sent") from error
            raise

    async def decide(self, body: Mapping[str, Any], attempt: str) -> str:
        """The raw reply of the Decisions API."""
        return await self._post("/decisions", body, attempt)

    async def _post(self, path: str, body: Mapping[str, Any], attempt: str) -> str:
        """The SDK's own way to a path, without its walk through every field of a body: 5 ms a call under a profiler."""
        response = await self.client.post(
            path,
            cast_to=httpx2.Response,
            body={"model": self.model, **body},
            options={"headers": {ATTEMPT_HEADER: attempt}},
        )
        return response.text

    async def close(self) -> None:
        await self.client.close()

    def fault(self, error: Exception) -> Fault:
        """What an exception of a call means. One that is not the client's own is raised again."""
        if isinstance(error, ParameterRefused):
            return Fault(Remedy.LEARN, str(error))
        if isinstance(error, openai.APIStatusError):
            return replace(self._status_fault(error), status=error.status_code)
        if isinstance(error, openai.APIConnectionError | httpx2.TransportError):  # bare, while a file is streamed
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            sent = not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            told = f"no reply from {str(self.client.base_url).rstrip('/')} ({told_by(cause or error)})"
            return Fault(Remedy.RETRY, self._clean(told), lost=sent)
        raise error

    def _status_fault(self, error: openai.APIStatusError) -> Fault:
        status, code, wait = error.status_code, error.code or error.type or "", retry_after(error.response.headers)
        message = error.body.get("message") if isinstance(error.body, dict) else None
        told = self._clean(f"HTTP {status}: {message or error.message}")
        if status in (401, 403):
            # Its message repeats part of the key.
            named = f"the key in {self._variable} was rejected" if self._variable else NO_VARIABLE
            return Fault(Remedy.STOP, self._clean(f"{named} (HTTP {status}, {code or 'no code'})"))
        if status in HOPELESS:
            return Fault(Remedy.STOP, told)
        if status == 429:
            over = code in SPENT or error.type in SPENT or BY_DAY.search(error.message)
            return Fault(Remedy.STOP if over else Remedy.REST, told, wait)
        if status in (408, 504):
            return Fault(Remedy.RETRY, told, wait, lost=True)
        if status == 409 or status >= 500:
            return Fault(Remedy.REST if wait is not None else Remedy.RETRY, told, wait)
        if not isinstance(error.body, dict):
            return Fault(Remedy.RETRY, told, wait)  # cut short on the way, or of some proxy: it may be a refusal or not
        if code in FILTERED:
            return Fault(Remedy.ANSWER, told, body=self._clean(json.dumps({"error": error.body})))
        return Fault(Remedy.FAIL, told)

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._variable else text
