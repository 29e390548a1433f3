"""The providers' batch endpoints: files of calls, answered within a day at half the price.

A pass before the single calls, which only fills the ledger: calls that it leaves out, and those that a provider fails
to answer, are sent one by one afterwards. A batch is recorded before it is submitted, under a name that the provider
stores too, and its calls stay in flight when the run ends. So the next run finds out what became of it, however the
run ended:

    refused when it was submitted       it is over at once: its calls are free again
    killed before it was submitted      the provider knows no batch of this name: likewise
    killed after that, without its id   the provider knows one: its id is recorded now
    killed while it was under way       it is polled until it is done
    killed while it was collected       its answers are collected again; the ledger stores each answer once
"""

import asyncio
import contextlib
import logging
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, NoReturn, Protocol, TextIO, TypeVar, cast

from feedback.network.calls import POLL, Call, Caller, CallRun, Stopped, defect
from feedback.network.ledger import Attempt, StoredAnswer
from feedback.network.pace import retry
from feedback.network.provider import RETRIED, BatchProvider, Fault, Media, Remedy, UnreadableClip

logger = logging.getLogger(__name__)
T = TypeVar("T")
Asked = TypeVar("Asked")  # what a call is about: a clip or a pair of clips
AskedOf = TypeVar("AskedOf", contravariant=True)

PILOTS = 3  # calls that are sent before a batch, one by one, until the provider has answered one
NAME = 40  # hex digits of a call's key that name its line in a batch
PATIENCE = 60  # attempts, about half an hour, at a batch that the provider has: a batch outlasts a network failure
NO_ENDPOINT = (403, 404, 405, 501)  # statuses that mean: there is no batch endpoint, or none for this key


class ClipCaller(Caller, Protocol[AskedOf]):
    """A caller whose calls are about clips, one at a time or two."""

    def calls(self, request: AskedOf) -> list[Call]:
        """The calls that judging a clip takes. Raises UnreadableClip."""

    def media(self, request: AskedOf) -> Media:
        """A clip as it is sent. Raises UnreadableClip."""


async def fill(run: CallRun, source: ClipCaller[Asked], requests: Sequence[Asked]) -> None:
    """Let batches answer the calls without an answer in the ledger, and store their answers there.

    Batches of earlier runs are waited for in any case; new ones are submitted where the options say `batch`.
    Raises Stopped where the run must stop, after what was submitted has been collected, where the provider allows it.
    """
    if requests:
        with contextlib.ExitStack() as locks:
            await _Pass(run, source, requests, locks).through()


@dataclass
class _Chunk:
    """A batch that is being written."""

    token: str
    path: Path
    calls: int = 0
    size: int = 0  # bytes


@dataclass
class _UnderWay:
    """A batch that the provider has."""

    token: str
    remote: str
    expected: float  # US dollars of it that count against this run's budget
    wanted: bool  # whether this run needs any of its answers
    unknown: int = 0  # times in a row that the provider did not know it


@dataclass
class _Pass(Generic[Asked]):
    """One run's batches."""

    run: CallRun
    source: ClipCaller[Asked]
    requests: Sequence[Asked]
    locks: contextlib.ExitStack
    missing: set[str] = field(default_factory=set)  # keys of calls without an answer, that no batch has in flight
    under_way: list[_UnderWay] = field(default_factory=list)
    failed: str | None = None  # the provider's message about the first batch of which it took nothing
    sample: Call | None = None  # any call, by which the tokens of every reply can be read

    def __post_init__(self) -> None:
        self.ledger, self.options = self.run.ledger, self.run.options
        self.provider = cast(BatchProvider, self.run.provider)
        self.place = f"{self.provider.place} {self.run.purpose}"
        self.answered = 0  # calls, by batches

    async def through(self) -> None:
        """Take up the batches of earlier runs, submit new ones, and collect all."""
        await self._wait_for_others()
        places = self._look_for_missing()
        if not self.missing:
            return
        self.run.open()
        await self._take_up(places)
        with contextlib.suppress(Stopped):  # the run stops, but first collects what is paid for
            if self.options.batch and await self._pilot():
                await self._submit_all()
        await self._collect_all()

    async def _wait_for_others(self) -> None:
        """Wait until no other run handles batches of this clip set; its answers are then in the ledger."""
        logged = False
        while (lock := self.ledger.hold(self.place)) is None:
            if not logged:
                logger.info("%s: another run has batches of this clip set under way; waiting for it", self.source.name)
                logged = True
            await asyncio.sleep(POLL)
        self.locks.enter_context(lock)
        self.run.count_dollars()

    def _look_for_missing(self) -> list[str]:
        """Find the calls without an answer; returns the places of the batches to take up.

        These are this pass's own place, and the places of batches that hold such calls: a batch of a source of another
        name, or of another set with the same clips. This run's single calls would otherwise wait for such a batch,
        and no run would collect it.
        """
        places: dict[str, TextIO | None] = {}
        for request in self.requests:
            for call in self._calls(request):
                self.sample = self.sample or call
                if self.ledger.answer(call.key):
                    continue
                self.missing.add(call.key)
                place = self.ledger.batch_place(call.key)
                if place and place != self.place and place not in places:
                    places[place] = self.ledger.hold(place)
        for lock in filter(None, places.values()):
            self.locks.enter_context(lock)
        return [self.place, *(place for place, lock in places.items() if lock)]

    def _calls(self, request: Asked) -> list[Call]:
        try:
            return self.source.calls(request)
        except UnreadableClip:  # becomes the clip's verdict when it is judged
            return []

    async def _take_up(self, places: Sequence[str]) -> None:
        """Find out what became of the batches of earlier runs."""
        for place in places:
            for batch in self.ledger.open_batches(place):
                token, remote = batch.token, batch.remote
                if remote is None:
                    try:
                        remote = await self._patiently(partial(self.provider.find, token))
                    except _RefusedBatch as refused:
                        self._give_up(token, refused.fault)
                        continue
                    if remote is None:
                        logger.info("%s: a batch of a killed run never arrived; nothing was billed", self.source.name)
                        self.ledger.close_batch(token, "refused")
                        continue
                    self.ledger.submitted(token, remote)
                logger.info("%s: resuming batch %s of an earlier run", self.source.name, remote)
                self._watch(token, remote)
        # What is still in a batch belongs to another live run, or was submitted since.
        self.missing = {key for key in self.missing if self.ledger.batch_place(key) is None}

    def _give_up(self, token: str, fault: Fault) -> None:
        """End a batch that the provider may or may not have. Raises Stopped where a later run may find out."""
        waived = fault.status is not None and fault.remedy is Remedy.RETRY and not self.options.batch
        if fault.status not in NO_ENDPOINT and not waived:
            self._halt(fault)
        self.ledger.close_batch(token, "lost")
        self.run.count_dollars()
        logger.warning(
            "%s: it cannot be known whether batch %s was submitted (%s); it may have been billed, and its calls are "
            "sent again", self.source.name, token, fault.reason,
        )  # fmt: skip

    def _watch(self, token: str, remote: str) -> None:
        expected = self.ledger.expected_of(token, self.run.purpose)
        wanted = not self.missing.isdisjoint(self.ledger.attempts_of(token))
        self.under_way.append(_UnderWay(token, remote, expected, wanted))
        self.run.reserved += expected

    def _clips(self) -> Iterator[tuple[Asked, list[Call]]]:
        """The clips with calls that are missing, and these calls."""
        for request in self.requests:
            if calls := [call for call in self._calls(request) if call.key in self.missing]:
                yield request, calls

    async def _pilot(self) -> bool:
        """Whether calls are answered at all, by a single call, which also finds the parameters that the model takes."""
        tried = 0
        for request, (call, *_) in self._clips():
            try:
                media = await asyncio.to_thread(self.source.media, request)
            except UnreadableClip:
                continue
            answer = await self.run.send(call, media)
            self.missing.discard(call.key)
            self.run.own.add(call.key)
            if isinstance(answer, StoredAnswer):
                return True
            tried += 1
            if tried == PILOTS:
                logger.warning("%s: no batch is submitted: %s", self.source.name, answer.reason)
                return False
        return False

    async def _submit_all(self) -> None:
        """Submit the missing calls, in as many batches as the provider needs; one clip in memory at a time."""
        chunk: _Chunk | None = None
        with tempfile.TemporaryDirectory() as folder:
            for request, calls in self._clips():
                try:
                    media = await asyncio.to_thread(self.source.media, request)
                except UnreadableClip:
                    continue
                for call in calls:
                    line = f"{self.provider.batch_line(call.key[:NAME], call.plan, media)}\n".encode()
                    if len(line) > self.provider.most_bytes:
                        continue
                    if chunk and self._full(chunk, line):
                        await self._submit(chunk)
                        chunk = None
                    try:
                        chunk = self._add(chunk, Path(folder), call, line)
                    except Stopped:  # the budget is spent
                        if chunk:
                            await self._submit(chunk)
                        raise
            if chunk:
                await self._submit(chunk)

    def _full(self, chunk: _Chunk, line: bytes) -> bool:
        return chunk.calls == self.provider.most_requests or chunk.size + len(line) > self.provider.most_bytes

    def _add(self, chunk: _Chunk | None, folder: Path, call: Call, line: bytes) -> _Chunk:
        """The chunk with one more call, which is in flight from here on. Raises Stopped where the budget is spent."""
        price = self.source.price
        expected = price.of(call.tokens, self.source.output_tokens, batch=True) if price else None
        self.run.afford(expected or 0.0)
        if chunk is None:
            token = f"label-{uuid.uuid4().hex}"
            chunk = _Chunk(token, folder / f"{token}.jsonl")
            self.ledger.open_batch(token, self.place)
        begun = self.ledger.begin(call.key, call.sent, self.run.purpose, expected, batch=chunk.token)
        if isinstance(begun, Attempt):  # no other run has sent it since
            with chunk.path.open("ab") as file:
                file.write(line)
            chunk.calls, chunk.size = chunk.calls + 1, chunk.size + len(line)
            self.run.counts["sent"] += 1
            self.run.own.add(call.key)
            self.run.reserved += expected or 0.0
        return chunk

    async def _submit(self, chunk: _Chunk) -> None:
        if not chunk.calls:
            self.ledger.close_batch(chunk.token, "refused")
            return
        unsure = False  # whether an attempt may have arrived though it failed

        async def submit() -> str:
            nonlocal unsure
            if unsure and (found := await self.provider.find(chunk.token)):
                return found
            try:
                return await self.provider.submit(chunk.path, chunk.token)
            except Exception as error:
                unsure = self.provider.fault(error).remedy in RETRIED
                raise

        try:
            remote = await self._patiently(submit)
        except _RefusedBatch as refused:
            if not unsure:
                self.ledger.close_batch(chunk.token, "refused")
            elif refused.fault.status in NO_ENDPOINT:
                self._give_up(chunk.token, refused.fault)
            self._halt(refused.fault, submitting=True)
        self.ledger.submitted(chunk.token, remote)
        chunk.path.unlink()
        self.under_way.append(
            _UnderWay(chunk.token, remote, self.ledger.expected_of(chunk.token, self.run.purpose), True)
        )
        message = "%s: batch %s of %d calls, %.1f MB, is submitted"
        logger.info(message, self.source.name, remote, chunk.calls, chunk.size / 1e6)

    async def _collect_all(self) -> None:
        """Wait until all batches are done, and store their answers."""
        batches = len(self.under_way)
        while self.under_way:
            for one in list(self.under_way):
                await self._poll(one)
            if not any(one.wanted for one in self.under_way):
                break
            logger.info(
                "%s: %d of %d batches are done, %d calls answered by them; polling again in %.0f s",
                self.source.name, batches - len(self.under_way), batches, self.answered, self.options.poll_seconds,
            )  # fmt: skip
            await asyncio.sleep(self.options.poll_seconds)
        if self.failed:
            self.run.halt(self.failed)

    async def _poll(self, batch: _UnderWay) -> None:
        """Look at a batch, and collect it where it is done."""
        try:
            progress = await self._patiently(lambda: self.provider.progress(batch.remote), PATIENCE)
            if progress.failed:
                self.failed = self.failed or f"batch {batch.remote} failed: {progress.failed}"
                self._close(batch, "refused")
            elif progress.done:
                await self._patiently(lambda: self._collect(batch), PATIENCE)
        except _RefusedBatch as refused:
            if refused.fault.status != 404:
                self._halt(refused.fault)
            batch.unknown += 1
            if batch.unknown < self.options.attempts:
                return
            self._close(batch, "lost")
            logger.warning(
                "%s: the provider does not know batch %s any more (%s); it may have been billed, and its calls are "
                "sent one by one", self.source.name, batch.remote, refused.fault.reason,
            )  # fmt: skip
        else:
            batch.unknown = 0

    async def _collect(self, batch: _UnderWay) -> None:
        """Commit the answers of a batch that is done. Its calls without an answer are free to be sent again."""
        assert self.sample
        attempts = self.ledger.attempts_of(batch.token)
        named = {key[:NAME]: attempt for key, attempt in attempts.items()}
        before = self.answered
        async for name, reply in self.provider.results(batch.remote):
            if reply is None or not (attempt := named.pop(name, None)):
                continue
            if defect(self.provider, reply):
                self.ledger.lost(attempt)  # it may have been billed
            else:
                cost = self.source.cost(self.sample, reply, batch=True)
                self.ledger.answered(attempt, reply, cost)
                self.answered += 1
        answered = self.answered - before
        message = "%s: batch %s: %d calls answered, %d left to be sent one by one"
        logger.info(message, self.source.name, batch.remote, answered, len(attempts) - answered)
        self._close(batch, "refused")

    def _close(self, batch: _UnderWay, outcome: str) -> None:
        """End a batch: its calls without an answer end with this outcome."""
        self.ledger.close_batch(batch.token, outcome)
        self.under_way.remove(batch)
        self.run.reserved -= batch.expected
        self.run.count_dollars()

    async def _patiently(self, request: Callable[[], Awaitable[T]], attempts: int | None = None) -> T:
        """What `request` returns, tried again after faults that may pass. Raises _RefusedBatch where it fails for good.

        attempts: None is as many as for a call.
        """

        async def attempt() -> T | Fault:
            try:
                found = await request()
            except Exception as error:
                fault = self.provider.fault(error)
                if not fault.unreachable:
                    self.run.reached = True
                elif not self.run.reached:  # else as often as any fault: a batch outlasts a network failure
                    await self.run.wait_for_server(fault)
                return fault
            self.run.reached = True
            return found

        async def pause(fault: Fault, seconds: float) -> None:
            logger.warning("%s: the batch endpoint: %s; again in %.0f s", self.source.name, fault.reason, seconds)
            await asyncio.sleep(seconds)

        found = await retry(attempt, attempts or self.options.attempts, self.options.longest_wait, pause)
        if isinstance(found, Fault):
            raise _RefusedBatch(found)
        return found

    def _halt(self, fault: Fault, submitting: bool = False) -> NoReturn:
        """Stop the run because of a fault of the batch endpoint."""
        reason, cure = f"at the batch endpoint: {fault.reason}", fault.cure
        if submitting and fault.status in NO_ENDPOINT:
            block = f"feedback.sources.{self.source.name}"
            cure = f"Does base_url have a batch endpoint, and may the key use it? Otherwise set {block}.batch: false"
        self.run.halt(reason, cure)


class _RefusedBatch(Exception):
    """The batch endpoint refused a request for good."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault
