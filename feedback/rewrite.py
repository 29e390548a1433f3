"""Prompts rewritten by a language model behind an OpenAI-compatible address.

Each is asked for once: calls go the way of the judges' (feedback/api.py), by the ledger, with the same retries.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from tqdm import tqdm

from data.prompts import PLACE, Prompt
from feedback.api import ApiOptions, ApiSource, Asked, Run, Stopped, key_from
from feedback.chat import OPENAI, Chat
from feedback.completions import parsed, read_message
from feedback.group_commit import GroupCommit
from feedback.ledger import Answer, Ledger, ledger_path, request_key
from feedback.provider import Fault, Media, Plan
from feedback.served import NO_KEY

logger = logging.getLogger(__name__)

INSTRUCTIONS = """Rewrite this prompt of a text-to-video model so that the model can follow it better: {prompt}

Say in one paragraph of at most 80 words what is seen: every object, the action from its beginning to its end, the
background, the light and the camera. Keep every object, direction and action of the prompt, and add no other action.
Reply with the rewritten prompt alone."""
PURPOSE = "rewriting prompts"


@dataclass(frozen=True)
class Rewriter:
    """Which model rewrites, and what it is asked. Raises ValueError for instructions without {prompt}."""

    model: str
    base_url: str | None  # null: OpenAI's
    key_variable: str | None  # environment variable that holds the key; null: the server wants none
    instructions: str
    concurrency: int  # calls in flight

    def __post_init__(self) -> None:
        if PLACE not in self.instructions:
            raise ValueError(f"the instructions have no {PLACE} in them, so the model would not see the prompt")


def rewrite(prompts: Sequence[Prompt], by: Rewriter) -> list[Prompt]:
    """The prompts with the model's texts, in their order, each on one line.

    What was ever replied is not asked for again, whatever becomes of the others. Raises LabelError where no call can
    succeed (a wrong key), ValueError naming the prompts that were refused or had no reply.
    """
    calls = [_call(prompt, by) for prompt in prompts]
    with Ledger(ledger_path()) as ledger:
        found: dict[str, Answer | Fault] = {**ledger.answers(call.key for call in calls)}
        missing = [call for call in calls if call.key not in found]
        logger.info("%s: %d prompts, %d of them answered before", by.model, len(prompts), len(prompts) - len(missing))
        found |= _asked(missing, by, ledger)
    texts, problems = [], []
    for prompt, call in zip(prompts, calls, strict=True):
        text, problem = _read(found[call.key])
        texts.append(text)
        problems += [f"{prompt.prompt_id} ({problem})"] if problem else []
    if problems:
        raise ValueError(f"{len(problems)} of {len(prompts)} prompts were not rewritten: {'; '.join(problems[:3])}")
    return [replace(prompt, prompt=text) for prompt, text in zip(prompts, texts, strict=True)]


def _call(prompt: Prompt, by: Rewriter) -> Asked:
    body = {"messages": [{"role": "user", "content": by.instructions.replace(PLACE, prompt.prompt)}]}
    sent = {"place": f"{by.base_url or OPENAI} {by.model} rewrite", "body": body}
    return Asked(Plan((), 0, body), request_key(sent), sent, 0)


def _asked(calls: Sequence[Asked], by: Rewriter, ledger: Ledger) -> dict[str, Answer | Fault]:
    """What came of calls that have no answer yet, by key. Raises LabelError where the run must stop."""
    by_key = {call.key: call for call in calls}  # two prompts with one text are one call
    if not by_key:
        return {}
    with GroupCommit(ledger) as commits:
        run = Run(cast(ApiSource, _Source(by)), ledger, commits, {})
        run.purpose = PURPOSE
        found = asyncio.run(_ask_all(run, by_key))
    if run.stop_reason:
        raise run.stop_reason
    return found


async def _ask_all(run: Run, calls: Mapping[str, Asked]) -> dict[str, Answer | Fault]:
    """The answers by key; of calls that a stopped run did not send, none."""
    found: dict[str, Answer | Fault] = {}
    with tqdm(total=len(calls), unit="prompt", desc=run.source.name) as progress:

        async def one(key: str, call: Asked) -> None:
            found[key] = await run.ask(call, [])
            progress.update()

        ended = await asyncio.gather(*(one(key, call) for key, call in calls.items()), return_exceptions=True)
    if run.opened:
        await run.provider.close()
    for error in ended:
        if isinstance(error, BaseException) and not isinstance(error, Stopped):
            raise error
    return found


def _read(found: Answer | Fault) -> tuple[str, str | None]:
    """The text of a reply on one line, and why there is none."""
    if isinstance(found, Fault):
        return "", found.reason
    message = read_message(parsed(found.reply))
    return " ".join((message.text or "").split()), message.error


class _Source:
    """As much of a source as feedback.api.Run asks of one: here the calls are about prompts, not clips."""

    price = None

    def __init__(self, by: Rewriter) -> None:
        self.name = by.model
        self.options = ApiOptions(model=by.model, rubric="", concurrency=by.concurrency)
        self.provider = _Provider(by, self.options.timeout)

    def cost(self, asked: Asked, reply: str) -> None:
        """Unknown: no price is given."""


class _Provider:
    def __init__(self, by: Rewriter, timeout: float) -> None:
        self.by, self.timeout = by, timeout

    def open(self) -> None:
        key, variable = self.by.key_variable and key_from(self.by.key_variable), self.by.key_variable
        self.chat = Chat(key or NO_KEY, variable or "", self.by.base_url, self.by.model, self.timeout)

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        return await self.chat.complete(plan.body, attempt)

    def fault(self, error: Exception) -> Fault:
        return self.chat.fault(error)

    async def close(self) -> None:
        await self.chat.close()
