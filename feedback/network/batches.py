"""The providers' batch endpoints: files of calls, answered within a day at half the price.

A pass before the ordinary one, which only fills the ledger: what it left out, and what a provider failed to answer, is
asked about one by one afterwards. A batch is written down before it is handed in, under a name that the provider keeps
too, and the calls in it stay in flight when the run ends. So the next run finds out what became of it, however this
one was killed:

    refused when it was handed in       it is over at once: its calls are free again
    killed before it was handed in      the provider knows no batch of this name: likewise
    after that, before its id came      the provider does know one: its id is written down now
    while it was under way              it is looked at until it is done
    while its answers were collected    they are collected again; the ledger keeps each answer once
"""

import asyncio
import contextlib
import logging
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO, TypeVar, cast

from feedback.core.source import Request
from feedback.network.api import POLL, Asked, Run, Stopped, UnreadableClip
from feedback.network.ledger import Answer, Attempt
from feedback.network.pace import jitter
from feedback.network.provider import BatchProvider, Fault, Remedy

logger = logging.getLogger(__name__)
T = TypeVar("T")

PILOTS = 3  # calls that go ahead, one by one, until the provider has answered one
WAITED = (Remedy.RETRY, Remedy.REST)
NAME = 40  # hex digits of a call's key that name its line in a batch
PATIENCE = 60  # tries, about half an hour, at a batch that the provider has: what takes a day outlasts a cut network
NO_ENDPOINT = (403, 404, 405, 501)  # statuses that mean: there is no batch endpoint, or none for this key


async def fill(run: Run, requests: Sequence[Request]) -> None:
    """Have batches answer what the ledger cannot yet. The answers are in the ledger then.

    Batches of earlier runs are waited for in any case, new ones are handed in where the options say `batch`.
    Raises Stopped where the run must stop, after what was handed in has been collected, if the provider lets it.
    """
    if requests:
        run.begin_purpose(requests[0])
        with contextlib.ExitStack() as locks:
            await _Pass(run, requests, locks).through()


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
class _Pass:
    """One run's batches."""

    run: Run
    requests: Sequence[Request]
    locks: contextlib.ExitStack
    missing: set[str] = field(default_factory=set)  # keys of calls without an answer, that no batch has in flight
    under_way: list[_UnderWay] = field(default_factory=list)
    failed: str | None = None  # what the provider said of the first batch of which it took nothing
    sample: Asked | None = None  # any call: to read how many tokens a reply took, every one does

    def __post_init__(self) -> None:
        self.source, self.ledger, self.options = self.run.source, self.run.ledger, self.run.options
        self.provider = cast(BatchProvider, self.run.provider)
        self.place = f"{self.provider.place} {self.run.purpose}"
        self.answered = 0  # calls, by batches

    async def through(self) -> None:
        await self._wait_for_others()
        places = self._look_for_missing()
        if not self.missing:
            return
        self.run.open()
        await self._take_up(places)
        with contextlib.suppress(Stopped):  # it stops all the same, but first collects what is paid for
            if self.options.batch and await self._pilot():
                await self._submit_all()
        await self._collect_all()

    async def _wait_for_others(self) -> None:
        """Until no other run sees to batches of this clip set, from whose answers this one will profit."""
        told = False
        while (lock := self.ledger.hold(self.place)) is None:
            if not told:
                logger.info("%s: another run has batches of this clip set under way; waiting for it", self.source.name)
                told = True
            await asyncio.sleep(POLL)
        self.locks.enter_context(lock)
        self.run.count_dollars()

    def _look_for_missing(self) -> list[str]:
        """Note the calls that have no answer. The places of batches to take up: this one's, and those that hold them.

        A batch of another source's name, or of another set with the same clips, would otherwise be waited for by
        this run's ordinary pass, and collected by nobody.
        """
        places: dict[str, TextIO | None] = {}
        for request in self.requests:
            for asked in self._calls(request):
                self.sample = self.sample or asked
                if self.ledger.answer(asked.key):
                    continue
                self.missing.add(asked.key)
                place = self.ledger.batch_place(asked.key)
                if place and place != self.place and place not in places:
                    places[place] = self.ledger.hold(place)
        for lock in filter(None, places.values()):
            self.locks.enter_context(lock)
        return [self.place, *(place for place, lock in places.items() if lock)]

    def _calls(self, request: Request) -> list[Asked]:
        try:
            return self.run.calls(request)
        except UnreadableClip:  # the ordinary pass says so
            return []

    async def _take_up(self, places: Sequence[str]) -> None:
        """Find out what became of batches of earlier runs."""
        for place in places:
            for batch in self.ledger.open_batches(place):
                token, remote = batch.token, batch.remote
                if remote is None:
                    try:
                        remote = await self._patiently(partial(self.provider.find, token))
                    except _Refused as refused:
                        self._give_up(token, refused.fault)
                        continue
                    if remote is None:
                        logger.info("%s: a batch of a killed run never arrived; nothing is lost", self.source.name)
                        self.ledger.close_batch(token, "refused")
                        continue
                    self.ledger.submitted(token, remote)
                logger.info("%s: batch %s of an earlier run is taken up", self.source.name, remote)
                self._watch(token, remote)
        # What a batch still holds is another live run's, or is new since.
        self.missing = {key for key in self.missing if self.ledger.batch_place(key) is None}

    def _give_up(self, token: str, fault: Fault) -> None:
        """End a batch of which the provider does not say whether it has it. Raises Stopped where it yet may."""
        waived = fault.status is not None and fault.remedy is Remedy.RETRY and not self.options.batch
        if fault.status not in NO_ENDPOINT and not waived:
            self._halt(fault)
        self.ledger.close_batch(token, "lost")
        self.run.count_dollars()
        logger.warning(
            "%s: whether batch %s was handed in cannot be found out (%s); it may have been billed, and its calls are "
            "asked again", self.source.name, token, fault.reason,
        )  # fmt: skip

    def _watch(self, token: str, remote: str) -> None:
        expected = self.ledger.expected_of(token, self.run.purpose or "")
        wanted = not self.missing.isdisjoint(self.ledger.attempts_of(token))
        self.under_way.append(_UnderWay(token, remote, expected, wanted))
        self.run.reserved += expected

    def _clips(self) -> Iterator[tuple[Request, list[Asked]]]:
        """Clips with calls that are missing, and these."""
        for request in self.requests:
            if calls := [asked for asked in self._calls(request) if asked.key in self.missing]:
                yield request, calls

    async def _pilot(self) -> bool:
        """Whether calls are answered at all, by asking one ahead; it also teaches what the model takes."""
        tried = 0
        for request, (asked, *_) in self._clips():
            try:
                media = await asyncio.to_thread(self.run.media, request)
            except UnreadableClip:
                continue
            answer = await self.run.ask(asked, media)
            self.missing.discard(asked.key)
            self.run.own.add(asked.key)
            if isinstance(answer, Answer):
                return True
            tried += 1
            if tried == PILOTS:
                logger.warning("%s: no batch is handed in: %s", self.source.name, answer.reason)
                return False
        return False

    async def _submit_all(self) -> None:
        """Hand in what is missing, in as many batches as the provider needs; one clip in memory at a time."""
        chunk: _Chunk | None = None
        with tempfile.TemporaryDirectory() as folder:
            for request, calls in self._clips():
                try:
                    media = await asyncio.to_thread(self.run.media, request)
                except UnreadableClip:
                    continue
                for asked in calls:
                    line = f"{self.provider.batch_line(asked.key[:NAME], asked.plan, media)}\n".encode()
                    if len(line) > self.provider.most_bytes:
                        continue
                    if chunk and self._full(chunk, line):
                        await self._submit(chunk)
                        chunk = None
                    try:
                        chunk = self._add(chunk, Path(folder), asked, line)
                    except Stopped:  # the budget ends here
                        if chunk:
                            await self._submit(chunk)
                        raise
            if chunk:
                await self._submit(chunk)

    def _full(self, chunk: _Chunk, line: bytes) -> bool:
        return chunk.calls == self.provider.most_requests or chunk.size + len(line) > self.provider.most_bytes

    def _add(self, chunk: _Chunk | None, folder: Path, asked: Asked, line: bytes) -> _Chunk:
        """The chunk with one more call, which is in flight from here on. Raises Stopped where the budget is spent."""
        price = self.source.price
        expected = price.of(asked.tokens, self.options.output_tokens, batch=True) if price else None
        self.run.afford(expected or 0.0)
        if chunk is None:
            token = f"label-{uuid.uuid4().hex}"
            chunk = _Chunk(token, folder / f"{token}.jsonl")
            self.ledger.open_batch(token, self.place)
        begun = self.ledger.begin(asked.key, asked.sent, self.run.purpose or "", expected, batch=chunk.token)
        if isinstance(begun, Attempt):  # and nobody else has asked since
            with chunk.path.open("ab") as file:
                file.write(line)
            chunk.calls, chunk.size = chunk.calls + 1, chunk.size + len(line)
            self.run.counts["asked"] += 1
            self.run.own.add(asked.key)
            self.run.reserved += expected or 0.0
        return chunk

    async def _submit(self, chunk: _Chunk) -> None:
        if not chunk.calls:
            self.ledger.close_batch(chunk.token, "refused")
            return
        unsure = False  # whether a try may have arrived, of whose end we were not told

        async def hand_in() -> str:
            nonlocal unsure
            if unsure and (found := await self.provider.find(chunk.token)):
                return found
            try:
                return await self.provider.submit(chunk.path, chunk.token)
            except Exception as error:
                unsure = self.provider.fault(error).remedy in WAITED
                raise

        try:
            remote = await self._patiently(hand_in)
        except _Refused as refused:
            if not unsure:
                self.ledger.close_batch(chunk.token, "refused")
            elif refused.fault.status in NO_ENDPOINT:
                self._give_up(chunk.token, refused.fault)
            self._halt(refused.fault, handing_in=True)
        self.ledger.submitted(chunk.token, remote)
        chunk.path.unlink()
        self.under_way.append(
            _UnderWay(chunk.token, remote, self.ledger.expected_of(chunk.token, self.run.purpose or ""), True)
        )
        told = "%s: batch %s of %d calls, %.1f MB, is handed in"
        logger.info(told, self.source.name, remote, chunk.calls, chunk.size / 1e6)

    async def _collect_all(self) -> None:
        """Wait until all batches are done, and take their answers."""
        batches = len(self.under_way)
        while self.under_way:
            for one in list(self.under_way):
                await self._look(one)
            if not any(one.wanted for one in self.under_way):
                break
            logger.info(
                "%s: %d of %d batches are done, %d calls answered by them; next look in %.0f s",
                self.source.name, batches - len(self.under_way), batches, self.answered, self.options.poll_seconds,
            )  # fmt: skip
            await asyncio.sleep(self.options.poll_seconds)
        if self.failed:
            self.run.halt(self.failed)

    async def _look(self, batch: _UnderWay) -> None:
        try:
            progress = await self._patiently(lambda: self.provider.progress(batch.remote), PATIENCE)
            if progress.failed:
                self.failed = self.failed or f"batch {batch.remote} failed: {progress.failed}"
                self._close(batch, "refused")
            elif progress.done:
                await self._patiently(lambda: self._collect(batch), PATIENCE)
        except _Refused as refused:
            if refused.fault.status != 404:
                self._halt(refused.fault)
            batch.unknown += 1
            if batch.unknown < self.options.attempts:
                return
            self._close(batch, "lost")
            logger.warning(
                "%s: the provider does not know batch %s any more (%s); it may have been billed, and its calls are "
                "asked one by one", self.source.name, batch.remote, refused.fault.reason,
            )  # fmt: skip
        else:
            batch.unknown = 0

    async def _collect(self, batch: _UnderWay) -> None:
        """Commit the answers of a batch that is done. What it has no answer to is free to be asked again."""
        assert self.sample
        attempts = self.ledger.attempts_of(batch.token)
        named = {key[:NAME]: attempt for key, attempt in attempts.items()}
        before = self.answered
        async for name, reply in self.provider.results(batch.remote):
            if reply is not None and (attempt := named.pop(name, None)):
                cost = self.source.cost(self.sample, reply, batch=True)
                self.ledger.answered(attempt, reply, cost)
                self.answered += 1
        told = "%s: batch %s: %d calls answered, %d left to be asked one by one"
        logger.info(told, self.source.name, batch.remote, self.answered - before, len(named))
        self._close(batch, "refused")

    def _close(self, batch: _UnderWay, outcome: str) -> None:
        """A batch is over: what of it has no answer ends with this outcome."""
        self.ledger.close_batch(batch.token, outcome)
        self.under_way.remove(batch)
        self.run.reserved -= batch.expected
        self.run.count_dollars()

    async def _patiently(self, act: Callable[[], Awaitable[T]], tries: int | None = None) -> T:
        """What `act` returns, as soon as the network and the provider let it. Raises _Refused where they do not.

        tries: how often it is tried; null: as often as a call.
        """
        tries, attempt = tries or self.options.attempts, 1
        while True:
            try:
                return await act()
            except Exception as error:
                fault = self.provider.fault(error)
            if fault.remedy not in WAITED:
                raise _Refused(fault)
            if fault.wait is not None and fault.wait > self.options.longest_wait:
                told = f"{fault.reason}: to be asked again in {fault.wait / 60:.0f} minutes"
                raise _Refused(replace(fault, reason=told))
            if attempt == tries:
                raise _Refused(replace(fault, reason=f"{fault.reason} after {attempt} attempts"))
            attempt += 1
            wait = fault.wait if fault.wait is not None else jitter(attempt)
            logger.warning("%s: the batch endpoint: %s; again in %.0f s", self.source.name, fault.reason, wait)
            await asyncio.sleep(wait)

    def _halt(self, fault: Fault, handing_in: bool = False) -> NoReturn:
        """Stop the run for what a batch endpoint said."""
        reason = f"at the batch endpoint: {fault.reason.rstrip('.')}"
        if handing_in and fault.status in NO_ENDPOINT:
            block = f"feedback.sources.{self.source.name}"
            reason += f". Is there one at base_url, and may the key use it? Otherwise set {block}.batch: false"
        self.run.halt(reason)


class _Refused(Exception):
    """The batch endpoint will not do what it was asked for."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault
