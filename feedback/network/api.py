"""A source that asks a provider over the network: each call written down first, answered once, retried with care.

Gemini, GPT and servers of their kind differ in what a call looks like (provider.py); all else is here, once: the
ledger, the retries, the budget, what becomes of a reply.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from data.records import Sample, Verdict
from data.store import read_clip
from feedback.core.rubric import load_rubric
from feedback.core.source import FAILED, UNREADABLE_CLIP, LabelError, Request, verdict, without_answer
from feedback.network.group_commit import GroupCommit
from feedback.network.ledger import Answer, Ledger, ledger_path, request_key
from feedback.network.pace import Pace, jitter
from feedback.network.price import Estimate, read_price
from feedback.network.provider import Fault, Media, Plan, Provider, Remedy

logger = logging.getLogger(__name__)

# What sources of structured answers add to every question.
REASONED = "Put that word in `answer`, and into `reason` what decided it, in at most twenty words."
TOLD_REST = 1.0  # seconds; of shorter rests there is no word
POLL = 1.0  # seconds between looks at a request that another stage has in flight


@dataclass(frozen=True)
class ApiOptions:
    """What the blocks of all network sources may say."""

    model: str
    rubric: str  # YAML file
    concurrency: int = 16  # calls in flight
    requests_per_minute: float | None = None  # null: as fast as the calls in flight allow
    tokens_per_minute: float | None = None  # of input
    timeout: float = 120.0  # seconds for one reply
    attempts: int = 8  # at one call, before it counts as failed
    longest_wait: float = 600.0  # seconds that a provider may ask for before the run stops instead
    budget_usd: float | None = None  # for labelling one clip set, all runs together; null: no bound
    price: dict | None = None  # input, output, cached_input, batch, as_of; null: unknown
    output_tokens: int = 60  # that an answer is expected to take, for estimates before there are answers
    parameters: dict = field(default_factory=dict)  # sent with every call as they are, such as {temperature: 1.0}
    batch: bool = False  # true: by the provider's batch endpoint, at price.batch, within a day
    poll_seconds: float = 60.0  # between looks at a batch

    def __post_init__(self) -> None:
        positive = (
            "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "attempts", "longest_wait",
            "poll_seconds",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, expected more than 0")
        if self.budget_usd is not None and self.budget_usd < 0:
            raise ValueError(f"budget_usd is {self.budget_usd}, expected dollars, or null for no bound")
        if read_price(self.price) is None and self.budget_usd is not None:
            raise ValueError(f"budget_usd is {self.budget_usd}, but price is null, so that it could not be kept")


def key_from(variable: str) -> str:
    """A key from the environment. Raises LabelError naming the variable."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise LabelError(f"the environment variable {variable} is not set; it holds the key of this judge's provider")
    if not (key.isascii() and key.isprintable() and " " not in key):  # no header takes it, and the error would show it
        raise LabelError(f"the environment variable {variable} holds characters that no key has; set it anew")
    return key


class ApiSource:
    """Asks a provider about clips, `concurrency` calls at a time."""

    repeatable = False
    model_version = None  # every reply names its own

    def __init__(self, name: str, provider: Provider, options: ApiOptions, also: str = "") -> None:
        """also: what this kind of source adds to every question, such as in which form to reply."""
        self.name, self.provider, self.options, self.model = name, provider, options, options.model
        rubric = load_rubric(Path(options.rubric))
        questions = tuple(replace(q, ask=f"{q.ask.strip()} {also}".strip()) for q in rubric.questions)
        self.rubric = replace(rubric, questions=questions)
        self.price = read_price(options.price)
        self._status: dict[str, Any] = {}

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        """As the protocol says. Raises LabelError where the run must stop; what was in flight is kept first."""
        wanted = list(requests)
        logger.info(self.estimate(wanted).line(self.name, self.model, self.price))
        with Ledger(ledger_path()) as ledger, GroupCommit(ledger) as commits, asyncio.Runner() as runner:
            yield from Run(self, ledger, commits, self._status).verdicts(runner, iter(wanted))

    def status(self) -> dict[str, Any]:
        return self._status

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What judging these clips would take."""
        clips = calls = answered = tokens = 0
        with Ledger(ledger_path()) as ledger:
            for request in requests:
                clips += 1
                try:
                    wanted = self.asked(request.sample, request.votes, _content(request))
                except UnreadableClip:  # which no call will be about
                    continue
                for asked in wanted:
                    calls += 1
                    if ledger.answer(asked.key):
                        answered += 1
                    else:
                        tokens += asked.tokens
        return self._estimate(clips, calls, answered, tokens)

    def estimate_for(self, sample: Sample, votes: int, count: int) -> Estimate:
        """What judging `count` clips like this one would take, none of them answered yet."""
        asked = self.asked(sample, votes, "")
        return self._estimate(count, count * len(asked), 0, count * sum(one.tokens for one in asked))

    def _estimate(self, clips: int, calls: int, answered: int, tokens: int) -> Estimate:
        left = calls - answered
        out = left * self.options.output_tokens
        per_minute = (
            (left, self.options.requests_per_minute),
            (tokens, self.options.tokens_per_minute),
        )
        minutes = [amount / rate for amount, rate in per_minute if rate]
        batch = self.options.batch
        dollars = self.price.of(tokens, out, batch=batch) if self.price else None
        least = None if batch else max(minutes, default=None)
        return Estimate(clips, calls, answered, tokens, out, dollars, least, batch)

    def asked(self, sample: Sample, votes: int, clip: str) -> list["Asked"]:
        """The calls that judging a clip takes. clip: hash of its mp4."""
        seen = self.provider.seen(sample, self.rubric)
        calls = []
        for plan in self.provider.plans(self.rubric, sample, votes):
            sent = {"place": self.provider.place, "clip": clip, "seen": seen, "body": plan.body, "vote": plan.vote}
            calls.append(Asked(plan, request_key(sent), sent, self.provider.tokens(plan, sample, self.rubric)))
        return calls

    def cost(self, asked: "Asked", reply: str, batch: bool = False) -> float | None:
        """US dollars that a reply cost; null where the price, or what it used, is unknown."""
        reading = self.provider.read(asked.plan, reply)
        if self.price is None or reading.input_tokens is None or reading.output_tokens is None:
            return None
        cached = min(reading.cached_tokens, reading.input_tokens)
        return self.price.of(reading.input_tokens, reading.output_tokens, cached, batch)

    def verdicts(
        self, request: Request, answers: Mapping[int, "Answer | Fault"], calls: list["Asked"]
    ) -> list[Verdict]:
        """A clip's verdicts from the answers to its calls, by their place in the list of calls."""
        frames = self.provider.seen(request.sample, self.rubric)["frames"]
        rows = []
        for index, asked in enumerate(calls):
            for question, told in zip(asked.plan.questions, self._told(asked, answers[index]), strict=True):
                rows.append(verdict(self, request.sample, asked.plan.vote, question, frames, **told))
        return rows

    def _told(self, asked: "Asked", answer: "Answer | Fault") -> list[dict[str, Any]]:
        """The fields of a verdict for each question of a call, which share its tokens and its cost."""
        questions = asked.plan.questions
        if isinstance(answer, Fault):
            return [{"error": f"{FAILED}{answer.reason}"} for _ in questions]
        reading = self.provider.read(asked.plan, answer.reply)
        tokens = None
        if reading.input_tokens is not None and reading.output_tokens is not None:
            tokens = reading.input_tokens + reading.output_tokens
        rows = []
        for index, question in enumerate(questions):
            share = None if tokens is None else tokens // len(questions) + (index < tokens % len(questions))
            cost = None if answer.cost is None else answer.cost / len(questions)
            facts = {"raw": answer.reply, "model_version": reading.version, "tokens": share, "cost": cost}
            told = facts | dict(reading.told[question.name])
            rows.append({name: _writable(value) for name, value in told.items()})
        return rows


class Asked(NamedTuple):
    """A call that is wanted, with the key under which the ledger knows it."""

    plan: Plan
    key: str
    sent: Mapping[str, Any]  # all that determines the answer, as JSON
    tokens: int  # of input, about


class Run:
    """One run of a source: its calls in flight, its dollars, and whether it must stop."""

    def __init__(self, source: ApiSource, ledger: Ledger, commits: GroupCommit, status: dict[str, Any]) -> None:
        self.source, self.ledger, self.status, self.options = source, ledger, status, source.options
        self.commits = commits
        self.provider = source.provider
        self.pace = Pace(self.options.concurrency, self.options.requests_per_minute, self.options.tokens_per_minute)
        self.stop = False  # no more calls are begun
        self.stop_reason: LabelError | None = None
        self.opened = False
        self.purpose: str | None = None
        self.dollars = self.reserved = 0.0  # of this purpose: spent, or possibly so; and in flight
        self.dearness = 1.0  # what the dearest call of this run cost, as a multiple of what was expected of it
        self.counts = {"answered before": 0, "asked": 0, "retried": 0}
        self.own: set[str] = set()  # keys of calls that this run's batches, and what went ahead of them, asked
        self.faults: set[int | str] = set()  # kinds of fault that were logged

    def verdicts(self, runner: asyncio.Runner, requests: Iterator[Request]) -> Iterator[list[Verdict]]:
        """All verdicts on one clip at a time, as its calls are answered."""
        done: asyncio.Queue = asyncio.Queue()
        under_way: set[asyncio.Task] = set()
        try:
            requests = self._in_batches(runner, requests)
            while True:
                while len(under_way) < 2 * self.options.concurrency and not self.stop:
                    if (request := next(requests, None)) is None:
                        break
                    under_way.add(self._start(runner, request, done))
                if not under_way:
                    break
                task = runner.run(done.get())
                under_way.discard(task)
                if rows := task.result():
                    yield rows
        finally:
            self.stop = True
            self.pace.stop()
            if under_way:
                logger.info("%s: waiting for the calls in flight, to keep their answers", self.source.name)
            runner.run(self._close(under_way))
            self._log()
        if self.stop_reason:
            raise self.stop_reason

    def _in_batches(self, runner: asyncio.Runner, requests: Iterator[Request]) -> Iterator[Request]:
        """The same requests, after batches answered what they could. One that is open is waited for in any case."""
        if not self.options.batch and not self.ledger.any_batch(self.provider.place):
            return requests
        from feedback.network.batches import fill  # which needs this module

        listed = list(requests)
        with contextlib.suppress(Stopped):
            runner.run(fill(self, listed))
        return iter(listed)

    def _start(self, runner: asyncio.Runner, request: Request, done: asyncio.Queue) -> asyncio.Task:
        task = runner.get_loop().create_task(self._clip(request))
        task.add_done_callback(done.put_nowait)
        return task

    async def _close(self, under_way: set[asyncio.Task]) -> None:
        await asyncio.gather(*under_way, return_exceptions=True)
        if self.opened:
            await self.provider.close()

    async def _clip(self, request: Request) -> list[Verdict] | None:
        """A clip's verdicts; null where the run was stopped before it had them all."""
        self.begin_purpose(request)
        try:
            calls = self.calls(request)
            known = await self.commits.do(partial(self.ledger.answers, [asked.key for asked in calls]))
            answers: dict[int, Answer | Fault] = {
                index: known[asked.key] for index, asked in enumerate(calls) if asked.key in known
            }
            self.counts["answered before"] += sum(calls[index].key not in self.own for index in answers)
            missing = [index for index in range(len(calls)) if index not in answers]
            if missing:
                media = await asyncio.to_thread(self.media, request)
                answers |= dict(
                    zip(missing, await self._ask_all([calls[index] for index in missing], media), strict=True)
                )
        except UnreadableClip as error:
            return without_answer(self.source, request, f"{UNREADABLE_CLIP}{error}")
        except Stopped:
            return None
        return self.source.verdicts(request, answers, calls)

    def begin_purpose(self, request: Request) -> None:
        if self.purpose is None:
            self.purpose = f"{request.purpose} {self.source.name}"
            self.count_dollars()

    def count_dollars(self) -> None:
        """Read from the ledger what this purpose has cost."""
        spent = self.ledger.spent(self.purpose or "")
        self.dollars = spent.dollars + spent.possibly

    def calls(self, request: Request) -> list[Asked]:
        """The calls that judging a clip takes. Raises UnreadableClip."""
        return self.source.asked(request.sample, request.votes, _content(request))

    def media(self, request: Request) -> Media:
        mp4 = _read(request.path)
        if _hash(mp4) != _content(request):
            raise UnreadableClip(f"{request.path}: changed since its clip set was written")
        try:
            frames = read_clip(request.path, request.sample)
        except (ValueError, OSError) as error:
            raise UnreadableClip(str(error)) from error
        return self.provider.media(mp4, frames, request.sample, self.source.rubric)

    async def _ask_all(self, calls: list[Asked], media: Media) -> list[Answer | Fault]:
        """Their answers. None is left behind when another fails: what was sent may be billed, so it is waited for."""
        ended = await asyncio.gather(*(self.ask(asked, media) for asked in calls), return_exceptions=True)
        for one in ended:
            if isinstance(one, BaseException):
                raise one
        return ended  # type: ignore[return-value]

    async def ask(self, asked: Asked, media: Media) -> Answer | Fault:
        """The answer to a call, from the provider or from whoever asked first; or why there is none."""
        attempt = 1
        while True:
            answer = await self._try(asked, media)
            if isinstance(answer, Answer):
                return answer
            if answer is None:  # another stage is asking this very question
                await self.pace.sleep(POLL)
                continue
            if answer.remedy is Remedy.LEARN:
                continue
            self._warn_once(answer)
            if answer.remedy is Remedy.FAIL or attempt == self.options.attempts:
                tried = f" after {attempt} attempts" if attempt > 1 else ""
                return Fault(Remedy.FAIL, f"{answer.reason}{tried}")
            attempt += 1
            self.counts["retried"] += 1
            self._show()
            await self.pace.sleep(answer.wait if answer.wait is not None else jitter(attempt))

    def _warn_once(self, fault: Fault) -> None:
        """Log the first fault of a kind, so that a server that is down is not met with silence."""
        kind = fault.status or fault.reason
        if kind not in self.faults:
            self.faults.add(kind)
            again = fault.remedy is not Remedy.FAIL and self.options.attempts > 1
            then = f"tried again, {self.options.attempts} times at most" if again else "not tried again"
            logger.warning("%s: %s; %s", self.source.name, fault.reason, then)

    async def _try(self, asked: Asked, media: Media) -> Answer | Fault | None:
        """One attempt at a call, within the budget."""
        async with self.pace.turn(asked.tokens):
            price = self.source.price
            expected = price.of(asked.tokens, self.options.output_tokens) if price else None
            self.afford(expected or 0.0)
            self.open()
            self.reserved += expected or 0.0
            try:
                return await self._attempt(asked, media, expected)
            finally:
                self.reserved -= expected or 0.0

    async def _attempt(self, asked: Asked, media: Media, expected: float | None) -> Answer | Fault | None:
        """Send a call, written down before and after."""
        begin = partial(self.ledger.begin, asked.key, asked.sent, self.purpose or "", expected)
        begun = await self.commits.do(begin)
        if begun is None or isinstance(begun, Answer):
            return begun
        self.counts["asked"] += 1
        fault: Fault | None = None
        try:
            reply = await self.provider.send(asked.plan, media, str(begun.id))
            if defect := _defect(reply):
                fault = Fault(Remedy.RETRY, defect, lost=True)
        except Exception as error:
            fault = self.provider.fault(error)
        if fault is not None and fault.remedy is Remedy.ANSWER:
            reply, fault = fault.body or "{}", None
        if fault is not None:
            await self._end(begun, fault, expected or 0.0)
            return fault
        cost = self.source.cost(asked, reply)
        await self.commits.do(partial(self.ledger.answered, begun, reply, cost))
        self.dollars += (expected or 0.0) if cost is None else cost
        if cost and expected:
            self.dearness = max(self.dearness, cost / expected)
        self.pace.went_well()
        self._show()
        return Answer(reply, cost)

    async def _end(self, begun: Any, fault: Fault, expected: float) -> None:
        """Note how an attempt without an answer ended, and what that means for the others."""
        if fault.lost:
            await self.commits.do(partial(self.ledger.lost, begun))
            self.dollars += expected
        else:
            await self.commits.do(partial(self.ledger.refused, begun))
        if fault.remedy is Remedy.STOP:
            self.halt(f"{fault.reason}")
        if fault.wait is not None and fault.wait > self.options.longest_wait:
            self.halt(f"{fault.reason}: to be asked again in {fault.wait / 60:.0f} minutes")
        if fault.remedy is Remedy.REST and (seconds := self.pace.rest(fault.wait)) >= TOLD_REST:
            logger.warning("%s: all calls rest for %.0f s: %s", self.source.name, seconds, fault.reason)

    def open(self) -> None:
        if not self.opened:
            try:
                self.provider.open()
            except LabelError as error:
                self.halt(str(error))
            self.opened = True

    def afford(self, expected: float) -> None:
        """Raise where the run is stopping, or would spend more than it may."""
        budget = self.options.budget_usd
        if self.stop:
            raise Stopped
        if budget is not None and self.dollars + self.dearness * (self.reserved + expected) > budget:
            self.halt(
                f"budget_usd of ${budget:,.2f} for this clip set is spent but for "
                f"${max(0.0, budget - self.dollars):,.4f}; raise feedback.sources.{self.source.name}.budget_usd"
            )

    def halt(self, reason: str) -> NoReturn:
        """Begin no more calls, and let what asked for them fail with this reason."""
        self.stop = True
        self.pace.stop()
        self.stop_reason = self.stop_reason or LabelError(
            f"{self.source.name}: {reason}. The answers so far are kept: run it again to go on"
        )
        raise Stopped

    def _show(self) -> None:
        self.status |= {"retried": self.counts["retried"]}
        if self.source.price:
            self.status |= {"$": f"{self.dollars:.2f}"}

    def _log(self) -> None:
        purpose = self.purpose or ""
        spent, resent = self.ledger.spent(purpose), self.ledger.resent(purpose)
        unpriced = f", {spent.unpriced} calls of unknown price" if spent.unpriced else ""
        logger.info(
            "%s: %d calls were answered before, %d sent now, %d of them retries; this clip set has cost $%.4f%s, and "
            "up to $%.4f for %d calls that may have been billed without an answer, of which %d were sent again",
            self.source.name, self.counts["answered before"], self.counts["asked"], self.counts["retried"],
            spent.dollars, unpriced, spent.possibly, spent.lost, resent,
        )  # fmt: skip


class Stopped(Exception):
    """The run takes no more calls."""


class UnreadableClip(Exception):
    """A clip's mp4 could not be decoded."""


def _writable(value: Any) -> Any:
    """A value of a reply without halves of characters, which JSON may hold and no table takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(request: Request) -> str:
    """sha256 of a request's mp4."""
    return request.content or _hash(_read(request.path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableClip(str(error)) from error


def _defect(reply: str) -> str | None:
    """Why what came as a reply is none; null where it is one."""
    try:
        told = json.loads(reply)
    except ValueError:
        return "the reply is not whole JSON"
    if isinstance(told, dict) and told.get("error") and not told.keys() & {"choices", "candidates"}:
        return "the reply is an error under the status of a success"  # as gateways in between send them
    return None
