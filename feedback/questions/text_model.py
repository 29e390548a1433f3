"""Texts by a language model, each paid for once: rewritten prompts, the parts of captions, a task's rules.

Calls over the network use the judges' ledger, retries and budget (feedback/network/calls.py). A model in this process
(text_local.py) has the same interface; its replies are not stored.
"""

import asyncio
import base64
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tqdm import tqdm

from feedback.core.kinds import read_block
from feedback.network.calls import ApiOptions, Call, CallRun, Stopped, key_from
from feedback.network.gemini import Gemini, read_candidate, usage
from feedback.network.ledger import GroupCommit, Ledger, StoredAnswer, ledger_path, request_key
from feedback.network.openai_protocol import OPENAI, OpenAIClient, parsed, read_message, read_usage
from feedback.network.price import text_tokens
from feedback.network.provider import Fault, Media, Plan, Sender
from feedback.network.served import NO_KEY
from feedback.questions.texts import TextModel, TextReply, TextRequest

logger = logging.getLogger(__name__)

KINDS = ("gemini", "gpt", "served", "qwen")  # of sources that write texts as well
PICTURE_TOKENS = 1000  # of a picture, for estimates
REPLY_TOKENS = 500  # of a reply, for estimates


def text_model(name: str, block: Mapping[str, Any], device: str) -> TextModel:
    """The model of a block of feedback.sources, as one that writes texts; `budget_usd` bounds each run of writing.

    device: of a local model's weights. Raises ValueError where the block is wrong, or its kind writes no texts.
    """
    if block.get("kind") not in KINDS:
        raise ValueError(f"feedback.sources.{name}.kind is {block.get('kind')!r}, which writes no texts: {list(KINDS)}")
    _, options = read_block(name, block)
    if block["kind"] == "qwen":
        from feedback.questions.text_local import LocalText  # transformers takes seconds to import

        return LocalText(name, options, device)
    author = f"{name} ({options.model})"
    if block["kind"] == "gemini":
        return ApiText(author, GeminiText(replace(options, mode="text")), options)
    endpoint = options.base_url, options.model, options.key_variable
    return ApiText(author, ChatText(*endpoint, options.parameters, options.timeout), options)


class TextProvider(Sender, Protocol):
    """A provider of texts: the form of a call, and the contents of its reply."""

    def body(self, text: str) -> dict[str, Any]:
        """A call as JSON, beside its picture."""

    def picture(self, image: bytes) -> Media:
        """A picture, given as PNG, as it is sent with a call."""

    def text(self, reply: str) -> TextReply:
        """The text of a raw reply."""

    def usage(self, reply: str) -> Mapping[str, Any]:
        """input_tokens, output_tokens (None where the reply does not name them) and cached_tokens of a raw reply."""


class ApiText:
    """A model over the network: a feedback.network.calls.Caller."""

    def __init__(self, name: str, provider: TextProvider, options: ApiOptions) -> None:
        self.name, self.provider, self.options = name, provider, options
        self.price, self.output_tokens = options.own_price, REPLY_TOKENS

    def replies(self, requests: Sequence[TextRequest], task: str) -> list[TextReply]:
        """As feedback.questions.texts.TextModel says."""
        calls = [self._call(request, task) for request in requests]
        pictures = {call.key: request.image for call, request in zip(calls, requests, strict=True)}
        with Ledger(ledger_path()) as ledger:
            found: dict[str, StoredAnswer | Fault] = {**ledger.answers(call.key for call in calls)}
            missing = {call.key: call for call in calls if call.key not in found}  # equal requests are one call
            known = sum(call.key in found for call in calls)
            logger.info("%s, %s: %d texts, %d of them answered before", self.name, task, len(calls), known)
            if missing:
                found |= self._send(missing, pictures, task, ledger)
        return [self._read(found[call.key]) for call in calls]

    def cost(self, call: Call, reply: str, batch: bool = False) -> float | None:
        """US dollars that a reply cost; None where the price, or what the reply used, is unknown."""
        used = self.provider.usage(reply)
        if self.price is None or used["input_tokens"] is None or used["output_tokens"] is None:
            return None
        return self.price.of(used["input_tokens"], used["output_tokens"], used["cached_tokens"], batch)

    def _call(self, request: TextRequest, task: str) -> Call:
        body = self.provider.body(request.text)
        sent: dict[str, Any] = {"place": f"{self.provider.place} {task}", "body": body}
        if request.image is not None:
            sent["image"] = hashlib.sha256(request.image).hexdigest()
        tokens = text_tokens(body) + PICTURE_TOKENS * (request.image is not None)
        return Call(Plan((), 0, body), request_key(sent), sent, tokens)

    def _send(
        self, calls: Mapping[str, Call], pictures: Mapping[str, bytes | None], task: str, ledger: Ledger
    ) -> dict[str, StoredAnswer | Fault]:
        """The answers to calls that have none yet, by key. Raises LabelError where the run must stop."""
        with GroupCommit(ledger) as commits:
            run = CallRun(self, ledger, commits, f"{task} {self.name}", {})
            found = asyncio.run(self._send_all(run, calls, pictures))
        if run.stop_reason:
            raise run.stop_reason
        if self.price:
            logger.info("%s, %s: $%.4f in all so far", self.name, task, ledger.spent(run.purpose).dollars)
        return found

    async def _send_all(
        self, run: CallRun, calls: Mapping[str, Call], pictures: Mapping[str, bytes | None]
    ) -> dict[str, StoredAnswer | Fault]:
        """The answers by key, without the calls that a stopped run did not send."""
        found: dict[str, StoredAnswer | Fault] = {}
        with tqdm(total=len(calls), unit="text", desc=self.name) as progress:

            async def one(key: str, call: Call) -> None:
                found[key] = await run.send(call, self._media(pictures[key]))
                progress.update()

            ended = await asyncio.gather(*(one(key, call) for key, call in calls.items()), return_exceptions=True)
        await run.close()
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, Stopped):
                raise error
        return found

    def _media(self, image: bytes | None) -> Media:
        return [] if image is None else self.provider.picture(image)

    def _read(self, found: StoredAnswer | Fault) -> TextReply:
        return TextReply(None, found.reason) if isinstance(found, Fault) else self.provider.text(found.reply)


class ChatText:
    """Texts by OpenAI's API, or by a server with the same protocol: a TextProvider."""

    def __init__(
        self, base_url: str | None, model: str, key_variable: str | None, parameters: Mapping[str, Any], timeout: float
    ) -> None:
        """base_url: None is OpenAI's. key_variable: environment variable of the key; None: the server requires none.

        parameters: sent with every call as they are. timeout: seconds for one reply.
        """
        self.base_url, self.model, self.key_variable = base_url, model, key_variable
        self.parameters, self.timeout = parameters, timeout
        self.place = f"{base_url or OPENAI} {model}"

    def body(self, text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}], **self.parameters}

    def picture(self, image: bytes) -> Media:
        url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        return [{"type": "image_url", "image_url": {"url": url}}]

    def open(self) -> None:
        key = key_from(self.key_variable) if self.key_variable else NO_KEY
        self.client = OpenAIClient(key, self.key_variable or "", self.base_url, self.model, self.timeout)

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        if not media:
            return await self.client.complete(plan.body, attempt)
        (message,) = plan.body["messages"]
        content = [*media, {"type": "text", "text": message["content"]}]
        return await self.client.complete({**plan.body, "messages": [{**message, "content": content}]}, attempt)

    def fault(self, error: Exception) -> Fault:
        return self.client.fault(error)

    def defect(self, reply: str) -> str | None:
        return read_message(parsed(reply)).defect

    def text(self, reply: str) -> TextReply:
        message = read_message(parsed(reply))
        return TextReply(message.text, message.error)

    def usage(self, reply: str) -> Mapping[str, Any]:
        return {"cached_tokens": 0} | read_usage(parsed(reply))

    async def close(self) -> None:
        await self.client.close()


class GeminiText(Gemini):
    """Texts by a Gemini model: a TextProvider."""

    def body(self, text: str) -> dict[str, Any]:
        return {"text": text, "config": dict(self.options.parameters)}

    def picture(self, image: bytes) -> Media:
        return [{"inline_data": {"mime_type": "image/png", "data": image}}]

    def text(self, reply: str) -> TextReply:
        message = read_candidate(parsed(reply))
        return TextReply(message.text, message.error)

    def usage(self, reply: str) -> Mapping[str, Any]:
        return usage(parsed(reply))
