"""A source whose judge is reached over the network: clips become calls, replies become verdicts.

Gemini, GPT and servers of their kind differ in the form of a call (provider.py). All else is here and in calls.py,
once: the ledger, the retries, the budget, and what becomes of a reply.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from data.pace import measured
from data.records import Comparison, Sample, Verdict
from data.store import read_clip
from feedback.core.rubric import load_rubric
from feedback.core.source import (
    FAILED,
    UNREADABLE_CLIP,
    FirstFrame,
    Request,
    shown_first_frame,
    verdict,
    without_answer,
)
from feedback.network.batches import ClipCaller, fill
from feedback.network.calls import OUTPUT_TOKENS, ApiOptions, Call, CallRun, Stopped
from feedback.network.ledger import GroupCommit, Ledger, StoredAnswer, ledger_path, request_key
from feedback.network.price import CostEstimate, text_tokens
from feedback.network.provider import Fault, Media, Provider, UnreadableClip
from feedback.pairs.shown import ShownPair, comparison, without_comparison

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Request | ShownPair)  # what is asked about
Row = TypeVar("Row", bound=Verdict | Comparison)  # what an answer becomes
AskedOf = TypeVar("AskedOf", contravariant=True)
RowOf = TypeVar("RowOf")
FIRST_VIDEO, SECOND_VIDEO = "First video:", "Second video:"  # sent before the clips of a pair
# What sources of structured answers add to every question.
REASONED = "Put that word in `answer`, and into `reason` what decided it, in at most twenty words."


class ApiSource:
    """Sends calls about clips to a provider, `concurrency` at a time."""

    repeatable = False
    model_version = None  # every reply names its own

    def __init__(self, name: str, provider: Provider, options: ApiOptions, also: str = "") -> None:
        """also: what this kind of source adds to every question, such as the form of the reply."""
        self.name, self.provider, self.options, self.model = name, provider, options, options.model
        rubric = load_rubric(Path(options.rubric))
        self.rubric = rubric.with_questions(lambda q: replace(q, ask=f"{q.ask.strip()} {also}".strip()))
        self.price = options.own_price
        self.output_tokens = self.price.output_tokens if self.price else OUTPUT_TOKENS
        self._status: dict[str, Any] = {}
        self._read = {"with a probability": 0, "by words": 0}  # of the current run

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        """As the protocol says. Raises LabelError where the run must stop, after the calls in flight are answered."""
        yield from self._answers(self, list(requests))

    def compare(self, pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
        """As a Comparer (feedback.pairs.shown), for a rubric that compares. Raises LabelError as `judge` does."""
        asker: _Asker[ShownPair, Comparison] = _OfPairs(self)
        yield from self._answers(asker, list(pairs))

    def _answers(self, asker: "_Asker[T, Row]", listed: Sequence[T]) -> Iterator[list[Row]]:
        logger.info(self.estimate(listed).line(self.name, self.model, self.price))
        purpose = f"{listed[0].purpose} {self.name}" if listed else ""
        self._read = dict.fromkeys(self._read, 0)
        self._status.pop("by words", None)
        with Ledger(ledger_path()) as ledger, GroupCommit(ledger) as commits, asyncio.Runner() as runner:
            run = CallRun(self, ledger, commits, purpose, self._status)
            run.count_dollars()
            began = time.monotonic()
            yield from _Judging(asker, run, runner).verdicts(listed)
            measured("calls", run.counts["sent"], time.monotonic() - began)
        if by_words := self._status.get("by words"):
            logger.warning(
                "%s: %d of %d answers came without log probabilities and were read from their words: their p_yes is "
                "null, and they count as certain",
                self.name, by_words, sum(self._read.values()),
            )  # fmt: skip

    def status(self) -> dict[str, Any]:
        """Retries, and the dollars of the clip set, once there are any."""
        return self._status

    # Before anything is sent

    def estimate(self, requests: Iterable[Request | ShownPair]) -> CostEstimate:
        """What judging these clips, or comparing these pairs, would take."""
        clips = calls = answered = tokens = 0
        with Ledger(ledger_path()) as ledger:
            for request in requests:
                clips += 1
                try:
                    of_clip = self.calls(request) if isinstance(request, Request) else _OfPairs(self).calls(request)
                except UnreadableClip:  # no call will be about it
                    continue
                for call in of_clip:
                    calls += 1
                    if ledger.answer(call.key):
                        answered += 1
                    else:
                        tokens += call.tokens
        return self._estimate(clips, calls, answered, tokens)

    def estimate_for(self, samples: Iterable[Sample], votes: int, count: int = 1) -> CostEstimate:
        """What judging `count` clips like each of these would take, or pairs of such clips; none answered yet."""
        clips, calls = 0, list[Call]()
        for sample in samples:
            clips += 1
            if self.rubric.compares:
                calls += _OfPairs(self).calls_about((sample, sample), votes, ("", ""))
            else:
                calls += self.calls_about(sample, votes, "")
        return self._estimate(count * clips, count * len(calls), 0, count * sum(call.tokens for call in calls))

    def _estimate(self, clips: int, calls: int, answered: int, tokens: int) -> CostEstimate:
        left = calls - answered
        out = left * self.output_tokens
        per_minute = (
            (left, self.options.requests_per_minute),
            (tokens, self.options.tokens_per_minute),
        )
        minutes = [amount / rate for amount, rate in per_minute if rate]
        batch = self.options.batch
        dollars = self.price.of(tokens, out, batch=batch) if self.price else None
        least = None if batch else max(minutes, default=None)
        unit = "shown pairs" if self.rubric.compares else "clips"
        return CostEstimate(clips, calls, answered, tokens, out, dollars, least, batch, unit)

    # From clips to calls

    def calls(self, request: Request) -> list[Call]:
        """The calls that judging a clip takes. Raises UnreadableClip."""
        first = shown_first_frame(self.rubric, request)
        return self.calls_about(request.sample, request.votes, content_of(request), first and first.content)

    def calls_about(self, sample: Sample, votes: int, clip: str, first: str | None = None) -> list[Call]:
        """The calls that judging a clip takes. clip, first: sha256 of its mp4, and of a first frame that is shown."""
        rubric = self.rubric.of(sample.prompt)
        seen = self.provider.seen(sample, rubric)
        calls = []
        for plan in self.provider.plans(rubric, sample, votes):
            sent = {"place": self.provider.place, "clip": clip, "seen": seen, "body": plan.body, "vote": plan.vote}
            sent |= {"first_frame": first} if first else {}
            calls.append(Call(plan, request_key(sent), sent, self.provider.tokens(plan, sample, rubric)))
        return calls

    def media(self, request: Request) -> Media:
        """A clip as it is sent, after its first frame where that is shown. Raises UnreadableClip."""
        return [*self.first_frame(shown_first_frame(self.rubric, request)), *self.clip_media(request)]

    def first_frame(self, first: FirstFrame | None) -> Media:
        """A first frame as it is sent; nothing where none is shown. Raises UnreadableClip."""
        if first is None:
            return []
        png = _read(first.path)
        if _hash(png) != first.content:
            raise UnreadableClip(f"{first.path}: changed since its clip set was written")
        return self.provider.first_frame(png)

    def clip_media(self, request: Request) -> Media:
        """A clip as it is sent, without its first frame. Raises UnreadableClip."""
        mp4 = _read(request.path)
        if _hash(mp4) != content_of(request):
            raise UnreadableClip(f"{request.path}: changed since its clip set was written")
        try:
            frames = read_clip(request.path, request.sample)
        except (ValueError, OSError) as error:
            raise UnreadableClip(str(error)) from error
        return self.provider.media(mp4, frames, request.sample, self.rubric.of(request.sample.prompt))

    def unanswered(self, request: Request, error: str) -> list[Verdict]:
        """A clip's verdicts where nothing was asked, with this error."""
        return without_answer(self, request, error)

    # From replies to verdicts

    def cost(self, call: Call, reply: str, batch: bool = False) -> float | None:
        """US dollars that a reply cost; None where the price, or what the reply used, is unknown."""
        reading = self.provider.read(call.plan, reply)
        if self.price is None or reading.input_tokens is None or reading.output_tokens is None:
            return None
        cached = min(reading.cached_tokens, reading.input_tokens)
        return self.price.of(reading.input_tokens, reading.output_tokens, cached, batch)

    def verdicts(
        self, request: Request, answers: Mapping[int, StoredAnswer | Fault], calls: Sequence[Call]
    ) -> list[Verdict]:
        """A clip's verdicts from the answers to its calls, by their place in `calls`."""
        rubric = self.rubric.of(request.sample.prompt)
        frames = self.provider.seen(request.sample, rubric)["frames"] if self.provider.frames_known else []
        rows = []
        for index, call in enumerate(calls):
            for question, facts in zip(call.plan.questions, self.facts(call, answers[index]), strict=True):
                rows.append(verdict(self, request.sample, call.plan.vote, question, frames, **facts))
        self._count(rows)
        return rows

    def _count(self, rows: Sequence[Verdict]) -> None:
        """Count the answers that lack a probability, where others of this run have one."""
        for row in rows:
            if row.answer is not None:
                self._read["by words" if row.p_yes is None else "with a probability"] += 1
        if all(self._read.values()):
            self._status["by words"] = self._read["by words"]

    def facts(self, call: Call, answer: StoredAnswer | Fault) -> list[dict[str, Any]]:
        """The fields of a verdict for each question of a call, which share its tokens and its cost."""
        questions = call.plan.questions
        if isinstance(answer, Fault):
            return [{"error": f"{FAILED}{answer.reason}"} for _ in questions]
        reading = self.provider.read(call.plan, answer.reply)
        tokens = None
        if reading.input_tokens is not None and reading.output_tokens is not None:
            tokens = reading.input_tokens + reading.output_tokens
        rows = []
        for index, question in enumerate(questions):
            share = None if tokens is None else tokens // len(questions) + (index < tokens % len(questions))
            cost = None if answer.cost is None else answer.cost / len(questions)
            facts = {"raw": answer.reply, "model_version": reading.version, "tokens": share, "cost": cost}
            facts |= reading.by_question[question.name]
            rows.append({name: _writable(value) for name, value in facts.items()})
        return rows


class _Asker(ClipCaller[AskedOf], Protocol[AskedOf, RowOf]):
    """What is asked of a source, and what its answers become: verdicts on a clip, or comparisons of two."""

    def verdicts(
        self, request: AskedOf, answers: Mapping[int, StoredAnswer | Fault], calls: Sequence[Call]
    ) -> list[RowOf]:
        """The rows about a clip, or two, from the answers to its calls, by their place in `calls`."""

    def unanswered(self, request: AskedOf, error: str) -> list[RowOf]:
        """The rows about a clip, or two, where nothing was asked, with this error."""


class _OfPairs:
    """The calls of a source about two clips at once, as a caller of its own."""

    def __init__(self, source: ApiSource) -> None:
        self.source, self.name, self.options = source, source.name, source.options
        self.provider, self.price, self.cost = source.provider, source.price, source.cost
        self.output_tokens = source.output_tokens

    def calls(self, request: ShownPair) -> list[Call]:
        """As of a clip."""
        pair = (request.first, request.second)
        first, second = (content_of(one) for one in pair)
        samples, frame = (request.first.sample, request.second.sample), request.first_frame(self.source.rubric)
        return self.calls_about(samples, request.votes, (first, second), frame and frame.content)

    def calls_about(
        self, samples: tuple[Sample, Sample], votes: int, clips: tuple[str, str], frame: str | None = None
    ) -> list[Call]:
        """The calls that comparing two clips takes in this order, which is part of their keys.

        clips, frame: sha256 of their mp4, and of a first frame that is shown before both. Raises UnreadableClip where
        what is sent beside one clip, such as the times of its frames, does not hold for the other.
        """
        rubric = self.source.rubric.of(samples[0].prompt)
        seen, other = (self.provider.seen(sample, rubric) for sample in samples)
        plans, of_second = (self.provider.plans(rubric, sample, votes) for sample in samples)
        if plans != of_second:
            raise UnreadableClip("the two clips differ in their frames or rate, and one call has times for one of them")
        calls = []
        for plan in plans:
            sent: dict[str, Any] = {"place": self.provider.place, "clip": clips[0], "second": clips[1], "seen": seen}
            sent |= {"seen_second": other, "body": plan.body, "vote": plan.vote}
            sent |= {"first_frame": frame} if frame else {}
            tokens = sum(self.provider.tokens(plan, sample, rubric) for sample in samples) - text_tokens(plan.body)
            calls.append(Call(plan, request_key(sent), sent, tokens))
        return calls

    def media(self, request: ShownPair) -> Media:
        """Both clips as they are sent, each after a text that says which it is; before them a first frame, if shown."""
        words = (self.provider.words(text) for text in (FIRST_VIDEO, SECOND_VIDEO))
        clips = (self.source.clip_media(one) for one in (request.first, request.second))
        frame = self.source.first_frame(request.first_frame(self.source.rubric))
        return [*frame, *(part for word, clip in zip(words, clips, strict=True) for part in (word, *clip))]

    def verdicts(
        self, request: ShownPair, answers: Mapping[int, StoredAnswer | Fault], calls: Sequence[Call]
    ) -> list[Comparison]:
        """As of a clip."""
        rubric = self.source.rubric.of(request.prompt)
        first, second = (self.provider.seen(one.sample, rubric)["frames"] for one in (request.first, request.second))
        return [
            comparison(self.source, request, call.plan.vote, question, (first, second), facts)
            for index, call in enumerate(calls)
            for question, facts in zip(call.plan.questions, self.source.facts(call, answers[index]), strict=True)
        ]

    def unanswered(self, request: ShownPair, error: str) -> list[Comparison]:
        """As of a clip."""
        return without_comparison(self.source, request, error)


class _Judging(Generic[T, Row]):
    """One run over clips, or pairs of clips: many in progress at once, their rows yielded as they are complete."""

    def __init__(self, source: _Asker[T, Row], run: CallRun, runner: asyncio.Runner) -> None:
        self.source, self.run, self.runner = source, run, runner
        # Clips are decoded by as many threads as there are cores, so that the first ones are sent before the last are
        # read. Not the loop's own threads, in which it also looks up names.
        self.readers = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "clips")

    def verdicts(self, requests: Sequence[T]) -> Iterator[list[Row]]:
        """All rows about one clip at a time, in the order in which they are complete."""
        done: asyncio.Queue[asyncio.Task[list[Row] | None]] = asyncio.Queue()
        in_progress: set[asyncio.Task[list[Row] | None]] = set()
        try:
            self._run_batches(requests)
            waiting = iter(requests)
            while True:
                while len(in_progress) < 2 * self.run.options.concurrency and not self.run.stop:
                    if (request := next(waiting, None)) is None:
                        break
                    task = self.runner.get_loop().create_task(self._clip(request))
                    task.add_done_callback(done.put_nowait)
                    in_progress.add(task)
                if not in_progress:
                    break
                task = self.runner.run(done.get())
                in_progress.discard(task)
                if rows := task.result():
                    yield rows
        finally:
            self.run.stop = True
            self.run.pace.stop()
            if in_progress:
                logger.info("%s: waiting for the calls in flight, to keep their answers", self.source.name)
            self.runner.run(self._close(in_progress))
            self.readers.shutdown()
            self.run.log_totals()
        if self.run.stop_reason:
            raise self.run.stop_reason

    def _run_batches(self, requests: Sequence[T]) -> None:
        """Let batches answer what they can. An open batch is waited for, also where the options turn batches off."""
        if self.run.options.batch or self.run.ledger.any_batch(self.run.provider.place):
            with contextlib.suppress(Stopped):
                self.runner.run(fill(self.run, self.source, requests))

    async def _close(self, in_progress: set[asyncio.Task[list[Row] | None]]) -> None:
        await asyncio.gather(*in_progress, return_exceptions=True)
        await self.run.close()

    async def _clip(self, request: T) -> list[Row] | None:
        """The rows about a clip; None where the run was stopped before it had them all."""
        run = self.run
        try:
            calls = self.source.calls(request)
            known = await run.commits.do(partial(run.ledger.answers, [call.key for call in calls]))
            answers: dict[int, StoredAnswer | Fault] = {
                index: known[call.key] for index, call in enumerate(calls) if call.key in known
            }
            run.counts["answered before"] += sum(calls[index].key not in run.own for index in answers)
            missing = [index for index in range(len(calls)) if index not in answers]
            if missing:
                media = await asyncio.get_running_loop().run_in_executor(self.readers, self.source.media, request)
                found = await self._send_all([calls[index] for index in missing], media)
                answers |= dict(zip(missing, found, strict=True))
        except UnreadableClip as error:
            return self.source.unanswered(request, f"{UNREADABLE_CLIP}{error}")
        except Stopped:
            return None
        return self.source.verdicts(request, answers, calls)

    async def _send_all(self, calls: Sequence[Call], media: Media) -> list[StoredAnswer | Fault]:
        """Their answers. All calls are awaited also where one fails: what was sent may be billed."""
        ended = await asyncio.gather(*(self.run.send(call, media) for call in calls), return_exceptions=True)
        answers: list[StoredAnswer | Fault] = []
        for one in ended:
            if isinstance(one, BaseException):
                raise one
            answers.append(one)
        return answers


def _writable(value: Any) -> Any:
    """A value of a reply without lone surrogates, which JSON may hold and no table takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_of(request: Request) -> str:
    """sha256 of a request's mp4."""
    return request.content or _hash(_read(request.path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableClip(str(error)) from error
