"""Texts asked of a language model, each asked for once: prompts rewritten, captions taken apart, a task's rules.

Calls over the network go the way of the judges' (api.py): by the ledger, with the same retries and the same budget. A
model in this process (text_local.py) is asked in the same way and costs nothing to ask again.
"""

import asyncio
import base64
import hashlib
import logging
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from tqdm import tqdm

from feedback.core.kinds import read_block
from feedback.network.api import ApiOptions, ApiSource, Asked, Run, Stopped, key_from
from feedback.network.chat import OPENAI, Chat
from feedback.network.completions import parsed, read_message, read_usage
from feedback.network.gemini import Gemini, read_candidate, usage
from feedback.network.group_commit import GroupCommit
from feedback.network.ledger import Answer, Ledger, ledger_path, request_key
from feedback.network.price import read_price, text_tokens
from feedback.network.provider import Fault, Media, Plan
from feedback.network.served import NO_KEY

logger = logging.getLogger(__name__)

KINDS = ("gemini", "gpt", "served", "qwen")  # of sources that write texts as well
PICTURE_TOKENS = 1000  # that a picture is expected to take, for estimates
REPLY_TOKENS = 500  # that a reply is


class Message(NamedTuple):
    """What a model is asked, and perhaps shown."""

    text: str
    image: Path | None = None  # a picture file


class Reply(NamedTuple):
    """What it replied, or why there is nothing."""

    text: str | None
    error: str | None


class TextModel(Protocol):
    """Whoever writes texts."""

    name: str  # and of which model, for whoever reads what it wrote

    def replies(self, messages: Sequence[Message], task: str) -> list[Reply]:
        """What comes of each message, in their order. task: a few words that the ledger files the calls under.

        Raises LabelError where no call can succeed (a wrong key), and where the budget is spent; what was answered is
        kept and not asked for again.
        """


def text_model(name: str, block: Mapping[str, Any], device: str) -> TextModel:
    """The model of a block of feedback.sources, as one that writes texts; `budget_usd` bounds each run of writing.

    device: where a local one keeps its weights. Raises ValueError where the block is wrong, or its kind writes nothing.
    """
    if block.get("kind") not in KINDS:
        raise ValueError(f"feedback.sources.{name}.kind is {block.get('kind')!r}, which writes no texts: {list(KINDS)}")
    _, options = read_block(name, block)
    if block["kind"] == "qwen":
        from feedback.questions.text_local import LocalText  # transformers takes seconds to import

        return LocalText(name, options, device)
    by = f"{name} ({options.model})"
    if block["kind"] == "gemini":
        return ApiText(by, GeminiText(replace(options, mode="text")), options)
    where = options.base_url, options.model, options.key_variable
    return ApiText(by, ChatText(*where, options.parameters, options.timeout), options)


class TextProvider(Protocol):
    """A provider as api.Run takes one (provider.py), and what a call that asks for a text looks like."""

    place: str

    def body(self, text: str) -> dict[str, Any]:
        """A call as JSON, beside its picture."""

    def picture(self, image: bytes, mime: str) -> Media:
        """A picture as it is sent with a call."""

    def text(self, reply: str) -> Reply:
        """What a raw reply says."""

    def usage(self, reply: str) -> Mapping[str, Any]:
        """input_tokens, output_tokens (null where not told) and cached_tokens of a raw reply."""

    async def close(self) -> None: ...


class ApiText:
    """A model over the network. It is as much of a source as feedback.network.api.Run asks of one."""

    def __init__(self, name: str, provider: TextProvider, options: ApiOptions) -> None:
        self.name, self.provider, self.options = name, provider, replace(options, output_tokens=REPLY_TOKENS)
        self.price = read_price(options.price)

    def replies(self, messages: Sequence[Message], task: str) -> list[Reply]:
        calls = [self._call(message, task) for message in messages]
        pictures = {call.key: message.image for call, message in zip(calls, messages, strict=True)}
        with Ledger(ledger_path()) as ledger:
            found: dict[str, Answer | Fault] = {**ledger.answers(call.key for call in calls)}
            missing = {call.key: call for call in calls if call.key not in found}  # two with one text are one call
            told = "%s, %s: %d texts, %d of them answered before"
            logger.info(told, self.name, task, len(calls), sum(call.key in found for call in calls))
            if missing:
                found |= self._asked(missing, pictures, task, ledger)
        return [self._read(found[call.key]) for call in calls]

    def cost(self, asked: Asked, reply: str) -> float | None:
        """US dollars that a reply cost; null where the price, or what it used, is unknown."""
        used = self.provider.usage(reply)
        if self.price is None or used["input_tokens"] is None or used["output_tokens"] is None:
            return None
        return self.price.of(used["input_tokens"], used["output_tokens"], used["cached_tokens"])

    def _call(self, message: Message, task: str) -> Asked:
        body = self.provider.body(message.text)
        sent = {"place": f"{self.provider.place} {task}", "body": body}
        if message.image is not None:
            sent["image"] = hashlib.sha256(message.image.read_bytes()).hexdigest()
        tokens = text_tokens(body) + PICTURE_TOKENS * (message.image is not None)
        return Asked(Plan((), 0, body), request_key(sent), sent, tokens)

    def _asked(
        self, calls: Mapping[str, Asked], pictures: Mapping[str, Path | None], task: str, ledger: Ledger
    ) -> dict[str, Answer | Fault]:
        """What came of calls that have no answer yet, by key. Raises LabelError where the run must stop."""
        with GroupCommit(ledger) as commits:
            run = Run(cast(ApiSource, self), ledger, commits, {})
            run.purpose = f"{task} {self.name}"
            found = asyncio.run(self._ask_all(run, calls, pictures))
        if run.stop_reason:
            raise run.stop_reason
        if self.price:
            logger.info("%s, %s: $%.4f in all so far", self.name, task, ledger.spent(run.purpose).dollars)
        return found

    async def _ask_all(
        self, run: Run, calls: Mapping[str, Asked], pictures: Mapping[str, Path | None]
    ) -> dict[str, Answer | Fault]:
        """The answers by key; of calls that a stopped run did not send, none."""
        found: dict[str, Answer | Fault] = {}
        with tqdm(total=len(calls), unit="text", desc=self.name) as progress:

            async def one(key: str, call: Asked) -> None:
                found[key] = await run.ask(call, self._media(pictures[key]))
                progress.update()

            ended = await asyncio.gather(*(one(key, call) for key, call in calls.items()), return_exceptions=True)
        if run.opened:
            await self.provider.close()
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, Stopped):
                raise error
        return found

    def _media(self, image: Path | None) -> Media:
        if image is None:
            return []
        return self.provider.picture(image.read_bytes(), mimetypes.guess_type(image.name)[0] or "image/png")

    def _read(self, found: Answer | Fault) -> Reply:
        return Reply(None, found.reason) if isinstance(found, Fault) else self.provider.text(found.reply)


class ChatText:
    """OpenAI's API, or a server that speaks its language."""

    def __init__(
        self, base_url: str | None, model: str, key_variable: str | None, parameters: Mapping[str, Any], timeout: float
    ) -> None:
        """
        base_url: null is OpenAI's. key_variable: environment variable that holds the key; null: the server wants none.
        parameters: sent with every call as they are. timeout: seconds for one reply.
        """
        self.base_url, self.model, self.key_variable = base_url, model, key_variable
        self.parameters, self.timeout = parameters, timeout
        self.place = f"{base_url or OPENAI} {model}"

    def body(self, text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}], **self.parameters}

    def picture(self, image: bytes, mime: str) -> Media:
        url = f"data:{mime};base64,{base64.b64encode(image).decode()}"
        return [{"type": "image_url", "image_url": {"url": url}}]

    def open(self) -> None:
        key = key_from(self.key_variable) if self.key_variable else NO_KEY
        self.chat = Chat(key, self.key_variable or "", self.base_url, self.model, self.timeout)

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        if not media:
            return await self.chat.complete(plan.body, attempt)
        (message,) = plan.body["messages"]
        content = [*media, {"type": "text", "text": message["content"]}]
        return await self.chat.complete({**plan.body, "messages": [{**message, "content": content}]}, attempt)

    def fault(self, error: Exception) -> Fault:
        return self.chat.fault(error)

    def text(self, reply: str) -> Reply:
        message = read_message(parsed(reply))
        return Reply(message.text, message.error)

    def usage(self, reply: str) -> Mapping[str, Any]:
        return {"cached_tokens": 0} | read_usage(parsed(reply))

    async def close(self) -> None:
        await self.chat.close()


class GeminiText(Gemini):
    """A Gemini model, asked for texts."""

    def body(self, text: str) -> dict[str, Any]:
        return {"text": text, "config": dict(self.options.parameters)}

    def picture(self, image: bytes, mime: str) -> Media:
        return [{"inline_data": {"mime_type": mime, "data": image}}]

    def text(self, reply: str) -> Reply:
        message = read_candidate(parsed(reply))
        return Reply(message.text, message.error)

    def usage(self, reply: str) -> Mapping[str, Any]:
        return usage(parsed(reply))
