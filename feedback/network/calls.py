"""Calls to a provider: each recorded in the ledger before it is sent, answered once, retried, and within the budget."""

import json
import logging
import os
import random
import time
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, NotNegative, Positive
from feedback.core.rubric import load_rubric
from feedback.core.source import LabelError
from feedback.network.ledger import Attempt, GroupCommit, Ledger, StoredAnswer
from feedback.network.pace import Pace, retry, waits_too_long
from feedback.network.price import Price
from feedback.network.provider import Fault, Media, Plan, Remedy, Sender

logger = logging.getLogger(__name__)

LOGGED_REST = 1.0  # seconds; shorter rests are not logged
POLL = 1.0  # seconds between looks at a request that another stage has in flight
KEPT = "The answers so far are kept"
FIRST_CONTACT = 4.0  # seconds in which a server that this run has not reached must be reachable
RESTART = 300.0  # likewise of one that was: a server with a large model starts in minutes
OUTPUT_TOKENS = 60  # expected of an answer of a model without a price


@dataclass(frozen=True, config=STRICT)
class ApiOptions:
    """The options that the blocks of all network sources share."""

    model: str
    rubric: str  # YAML file
    concurrency: Count = 16  # calls in flight
    requests_per_minute: Positive | None = None  # null: as fast as the calls in flight allow
    tokens_per_minute: Positive | None = None  # of input
    timeout: Positive = 120.0  # seconds for one reply
    attempts: Count = 8  # at one call, before it counts as failed
    longest_wait: Positive = 600.0  # seconds; the run stops where a provider asks for a longer wait
    budget_usd: NotNegative | None = None  # for a clip set, or an online run; all runs together; null: no bound
    price: Price | None = None  # of `model`; null: unknown
    parameters: dict[str, Any] = field(default_factory=dict)  # sent with every call, such as {temperature: 1.0}
    batch: bool = False  # true: by the provider's batch endpoint, at price.batch, within a day
    poll_seconds: Positive = 60.0  # between looks at a batch

    def __post_init__(self) -> None:
        if self.budget_usd is not None and self.own_price is None:
            problem = self.wrong_price or "price is null"
            raise ValueError(
                f"budget_usd is {self.budget_usd:g}, but {problem}, so the budget could not be kept. Give the price of "
                f"{self.model} (price.model: {self.model}), or set budget_usd: null"
            )

    @property
    def own_price(self) -> Price | None:
        """The price of `model`; None where it is unknown, as when the block's price is of another model."""
        return None if self.wrong_price else self.price

    @property
    def wrong_price(self) -> str | None:
        """Why the block's price is not of its model; None where it is, or is null."""
        if self.price is None or self.price.model == self.model:
            return None
        return f"price is of {self.price.model} and model is {self.model}"


def compares(rubric: str) -> bool:
    """Whether a rubric's file is about two clips; false for one that cannot be read, which is reported elsewhere."""
    try:
        return load_rubric(Path(rubric)).compares
    except ValueError:
        return False


def key_from(variable: str) -> str:
    """A key from the environment. Raises LabelError naming the variable."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise LabelError(f"the environment variable {variable} is not set; it holds the key of this judge's provider")
    if not (key.isascii() and key.isprintable() and " " not in key):  # no header takes it, and the error would show it
        raise LabelError(f"the environment variable {variable} holds characters that no key has")
    return key


class Call(NamedTuple):
    """A call to be made, with the key under which the ledger stores its answer."""

    plan: Plan
    key: str
    sent: Mapping[str, Any]  # all that determines the answer, as JSON
    tokens: int  # of input, estimated


class Caller(Protocol):
    """A source of judgements or of texts, as far as CallRun needs it."""

    @property
    def name(self) -> str:
        """For log lines and errors."""

    @property
    def options(self) -> ApiOptions:
        """The rates, the budget and the attempts."""

    @property
    def provider(self) -> Sender:
        """Where calls are sent."""

    @property
    def price(self) -> Price | None:
        """None where it is unknown."""

    @property
    def output_tokens(self) -> int:
        """Expected of a reply, for estimates before there are replies."""

    def cost(self, call: Call, reply: str, batch: bool = False) -> float | None:
        """US dollars that a reply cost; None where the price, or what the reply used, is unknown."""


class Stopped(Exception):
    """The run starts no more calls."""


class CallRun:
    """One run of a caller: its calls in flight, its dollars, and whether it must stop."""

    def __init__(
        self, caller: Caller, ledger: Ledger, commits: GroupCommit, purpose: str, status: dict[str, Any]
    ) -> None:
        """purpose: the ledger's name for what the calls are for; their costs add up by it. status: for progress bars.

        `count_dollars` makes the budget one of all runs of the purpose; without it, it is of this run.
        """
        self.caller, self.ledger, self.commits, self.purpose, self.status = caller, ledger, commits, purpose, status
        self.options, self.provider = caller.options, caller.provider
        self.pace = Pace(self.options.concurrency, self.options.requests_per_minute, self.options.tokens_per_minute)
        self.stop = False  # no more calls are started
        self.stop_reason: LabelError | None = None
        self.opened = False
        self.reached = False  # the server has taken a connection of this run
        self.away_since: float | None = None  # time.monotonic() since when it takes none
        self.dollars = self.reserved = 0.0  # of this purpose: spent, or possibly so; and in flight
        self.cost_ratio = 1.0  # largest actual / estimated cost of a call of this run, at least 1
        self.counts = {"answered before": 0, "sent": 0, "retried": 0}
        self.own: set[str] = set()  # keys of calls in this run's batches, and of the pilot calls before them
        self.faults: set[int | str] = set()  # kinds of fault that were logged

    def count_dollars(self) -> None:
        """Read from the ledger what this purpose has cost."""
        spent = self.ledger.spent(self.purpose)
        self.dollars = spent.dollars + spent.possibly

    async def send(self, call: Call, media: Media) -> StoredAnswer | Fault:
        """The answer to a call, from the provider or from another run; or why there is none.

        Raises Stopped where the run is stopping, or this call makes it stop.
        """

        async def attempt() -> StoredAnswer | Fault:
            while True:
                result = await self._attempt(call, media)
                if result is None:  # another stage has this call in flight
                    await self.pace.sleep(POLL)
                elif isinstance(result, Fault) and result.unreachable:
                    await self.wait_for_server(result)
                else:
                    break
            if isinstance(result, Fault) and result.remedy is not Remedy.LEARN:
                self._warn_once(result)
            return result

        async def pause(_: Fault, seconds: float) -> None:
            self.counts["retried"] += 1
            self._update_status()
            await self.pace.sleep(seconds)

        return await retry(attempt, self.options.attempts, self.options.longest_wait, pause)

    async def wait_for_server(self, fault: Fault) -> None:
        """Wait before a server that takes no connection is tried again. Raises Stopped where it stays away.

        A server that was never reached is probably not started, or its address is wrong; one that was reached may be
        restarted.
        """
        now = time.monotonic()
        patience = RESTART if self.reached else FIRST_CONTACT
        if self.away_since is None:
            self.away_since = now
            what = "it answered before, and may be restarting" if self.reached else "it was not reached yet"
            logger.warning("%s: %s; %s: waiting up to %.0f s", self.caller.name, fault.reason, what, patience)
        if now - self.away_since >= patience:
            away = f"{fault.reason}; it took no connection for {now - self.away_since:.0f} s"
            self.halt(away, None if self.reached else "Start the server, or correct base_url, or mend the network")
        await self.pace.sleep(patience / 60 + random.uniform(0, 1))
        if self.stop:
            raise Stopped

    def _warn_once(self, fault: Fault) -> None:
        """Log the first fault of a kind, so that a server that is down does not go unnoticed."""
        kind = fault.status or fault.reason
        if kind not in self.faults:
            self.faults.add(kind)
            again = fault.remedy is not Remedy.FAIL and self.options.attempts > 1
            then = f"tried again, {self.options.attempts} times at most" if again else "not tried again"
            logger.warning("%s: %s; %s", self.caller.name, fault.reason, then)

    async def _attempt(self, call: Call, media: Media) -> StoredAnswer | Fault | None:
        """One attempt at a call, within pace and budget; None while another run has the call in flight.

        A call that is answered gives its turn to the next one at once, and is recorded while that one is sent.
        """
        price = self.caller.price
        expected = price.of(call.tokens, self.caller.output_tokens) if price else None
        async with self.pace.turn(call.tokens):
            self.afford(expected or 0.0)
            self.open()
            self.reserved += expected or 0.0
            try:
                step = partial(self.ledger.begin, call.key, call.sent, self.purpose, expected)
                begun = await self.commits.do(step)
                if not isinstance(begun, Attempt):
                    return begun
                answer = await self._sent(call, media, begun)
                if isinstance(answer, Fault):
                    await self._end(begun, answer, expected or 0.0)
                    return answer
                cost = self._spent(call, answer, expected)
            finally:
                self.reserved -= expected or 0.0
        await self.commits.do(partial(self.ledger.answered, begun, answer, cost))
        return StoredAnswer(answer, cost)

    async def _sent(self, call: Call, media: Media, attempt: Attempt) -> str | Fault:
        """The reply to a call that the ledger has; or why there is none."""
        self.counts["sent"] += 1
        fault: Fault | None = None
        reply = "{}"
        try:
            reply = await self.provider.send(call.plan, media, str(attempt.id))
            if problem := defect(self.provider, reply):
                fault = Fault(Remedy.RETRY, problem, lost=True)
        except Exception as error:
            fault = self.provider.fault(error)
        if fault is None or not fault.unreachable:
            self.reached, self.away_since = True, None
        if fault is not None and fault.remedy is Remedy.ANSWER:
            return fault.body or "{}"
        return reply if fault is None else fault

    def _spent(self, call: Call, reply: str, expected: float | None) -> float | None:
        """What a reply cost, which counts from now on; None where that is unknown."""
        cost = self.caller.cost(call, reply)
        self.dollars += (expected or 0.0) if cost is None else cost
        if cost and expected:
            self.cost_ratio = max(self.cost_ratio, cost / expected)
        self.pace.went_well()
        self._update_status()
        return cost

    async def _end(self, attempt: Attempt, fault: Fault, expected: float) -> None:
        """Record how an attempt without an answer ended, and what that means for the other calls."""
        if fault.lost:
            await self.commits.do(partial(self.ledger.lost, attempt))
            self.dollars += expected
        else:
            await self.commits.do(partial(self.ledger.refused, attempt))
        if fault.remedy is Remedy.STOP:
            self.halt(fault.reason, fault.cure)
        if too_long := waits_too_long(fault, self.options.longest_wait):
            self.halt(too_long)
        if fault.remedy is Remedy.REST and (seconds := self.pace.rest(fault.wait)) >= LOGGED_REST:
            logger.warning("%s: no call starts for %.0f s: %s", self.caller.name, seconds, fault.reason)

    def open(self) -> None:
        """Create the client, once. Raises Stopped where the key is missing."""
        if not self.opened:
            try:
                self.provider.open()
            except LabelError as error:
                self.halt(str(error), "Set it")
            self.opened = True

    async def close(self) -> None:
        """Close the client, where it was created."""
        if self.opened:
            await self.provider.close()

    def afford(self, expected: float) -> None:
        """Raise Stopped where the run is stopping, or would exceed its budget by this many more dollars."""
        budget = self.options.budget_usd
        if self.stop:
            raise Stopped
        if budget is not None and self.dollars + self.cost_ratio * (self.reserved + expected) > budget:
            self.halt(
                f"budget_usd of ${budget:,.2f} for this clip set is spent but for "
                f"${max(0.0, budget - self.dollars):,.4f}; raise feedback.sources.{self.caller.name}.budget_usd"
            )

    def halt(self, reason: str, cure: str | None = None) -> NoReturn:
        """Start no more calls, and raise Stopped; `stop_reason` becomes an error with this reason.

        cure: what to do, where a further run would otherwise fail too.
        """
        self.stop = True
        self.pace.stop()
        then = f"{cure}; the answers so far are kept" if cure else f"{KEPT}: run it again to continue"
        self.stop_reason = self.stop_reason or LabelError(f"{self.caller.name}: {reason.rstrip('.')}. {then}")
        raise Stopped

    def _update_status(self) -> None:
        self.status |= {"retried": self.counts["retried"]}
        if self.caller.price:
            self.status |= {"$": f"{self.dollars:.2f}"}

    def log_totals(self) -> None:
        """Log the calls of this run, and the cost of its purpose over all runs."""
        spent, resent = self.ledger.spent(self.purpose), self.ledger.resent(self.purpose)
        unpriced = f", {spent.unpriced} calls of unknown price" if spent.unpriced else ""
        logger.info(
            "%s: %d calls were answered before, %d sent now, %d of them retries; this clip set has cost $%.4f%s, and "
            "up to $%.4f for %d calls that may have been billed without an answer, of which %d were sent again",
            self.caller.name, self.counts["answered before"], self.counts["sent"], self.counts["retried"],
            spent.dollars, unpriced, spent.possibly, spent.lost, resent,
        )  # fmt: skip


def defect(provider: Sender, reply: str) -> str | None:
    """Why a reply under the status of a success has to be requested again; None where it is an answer."""
    try:
        given = json.loads(reply)
    except ValueError:
        return "the reply is not whole JSON"
    if isinstance(given, dict) and given.get("error") and not given.keys() & {"choices", "candidates"}:
        return "the reply is an error under the status of a success"  # as gateways in between send them
    return provider.defect(reply)
