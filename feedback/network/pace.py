"""When calls to a provider start: calls in flight, rates per minute, rests of all calls together, and retries."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from feedback.network.provider import RETRIED, Fault, Remedy

T = TypeVar("T")

# Of the SDKs' HTTP clients: Pace counts the calls in flight, and no connection is used twice. On a connection that is
# kept, a reply that is delivered twice would be read as the answer to the next call, and a call that is sent just when
# the server closes the connection would be lost.
LIMITS: dict[str, int | None] = {"max_connections": None, "max_keepalive_connections": 0}
CONNECT = 4.0  # seconds for a connection
FIRST_REST = 1.0  # seconds; doubles with every 429 that names no time
LONGEST_REST = 60.0


class Pace:
    """A gate that every call to one provider passes. All times are seconds.

    Calls start evenly spaced at the given rates, so that a minute's allowance is not used up in its first second.
    """

    def __init__(self, concurrency: int, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = self._rest_until = self._apart = 0.0
        self._rests = 0  # in a row, without a success in between
        self._stopped = asyncio.Event()

    @asynccontextmanager
    async def turn(self, tokens: float) -> AsyncIterator[None]:
        """Wait until a call of about this many tokens may start; it counts as in flight until the block ends."""
        async with self._slots:
            now = time.monotonic()
            starts = max(now, self._next_request, self._next_token)
            self._next_request = starts + self._per_request
            self._next_token = starts + self._per_token * tokens
            await self.sleep(starts - now)
            while (left := self._rest_until - time.monotonic()) > 0 and not self._stopped.is_set():
                # Spread a little: calls that all start at the same moment would all be turned down again.
                await self.sleep(left + random.uniform(0, self._apart))
            yield

    def rest(self, seconds: float | None) -> float:
        """Start no call for this long. None, where the provider named no time, is a guess that doubles.

        Returns the seconds of a rest that begins now; 0 where one is under way, which this may prolong.
        """
        now = time.monotonic()
        under_way = now < self._rest_until
        if seconds is None:
            if under_way:
                return 0.0  # calls that were in flight together are turned down together: one reason to rest
            self._rests += 1
            seconds = min(LONGEST_REST, FIRST_REST * 2 ** (self._rests - 1))
        self._apart = min(seconds, LONGEST_REST) / 10
        self._rest_until = max(self._rest_until, now + seconds)
        return 0.0 if under_way else seconds

    def went_well(self) -> None:
        """A call succeeded: the next rest is short again."""
        self._rests = 0

    def stop(self) -> None:
        """End all waits, for a turn and in `sleep`."""
        self._stopped.set()

    async def sleep(self, seconds: float) -> None:
        """Wait for so long, or until `stop`."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopped.wait()


async def retry(
    attempt: Callable[[], Awaitable[T | Fault]],
    attempts: int,
    longest_wait: float,
    pause: Callable[[Fault, float], Awaitable[None]],
) -> T | Fault:
    """What the first attempt without a fault returns; else the fault that no further attempt may mend, or the last.

    A fault of remedy LEARN is followed by another attempt at once, which does not count. One that asks for a wait
    above longest_wait (seconds) is final. pause(fault, seconds): waits before the next attempt.
    """
    number = 1
    while True:
        result = await attempt()
        if not isinstance(result, Fault):
            return result
        if result.remedy is Remedy.LEARN:
            continue
        if too_long := waits_too_long(result, longest_wait):
            return replace(result, reason=too_long)
        if result.remedy not in RETRIED or number == attempts:
            return replace(result, reason=f"{result.reason} after {number} attempts") if number > 1 else result
        number += 1
        await pause(result, result.wait if result.wait is not None else jitter(number))


def waits_too_long(fault: Fault, longest_wait: float) -> str | None:
    """A fault's reason, where the provider asks for a longer wait than this many seconds; else None."""
    if fault.wait is None or fault.wait <= longest_wait:
        return None
    return f"{fault.reason}: the provider asks to wait {fault.wait / 60:.0f} minutes"


def jitter(attempt: int) -> float:
    """Seconds to wait before attempt 2, 3, …: uniform up to a bound that doubles (full jitter)."""
    return random.uniform(0, min(LONGEST_REST, FIRST_REST * 2 ** (attempt - 2)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply's headers ask to wait; None where they name none."""
    if (milliseconds := headers.get("retry-after-ms")) and _number(milliseconds) is not None:
        return (_number(milliseconds) or 0.0) / 1000
    if not (value := headers.get("retry-after")):
        return None
    if (seconds := _number(value)) is not None:
        return max(0.0, seconds)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
