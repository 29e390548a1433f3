"""How fast a provider may be asked: calls in flight, rates a minute, and a rest that all calls take together."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Of the SDKs' HTTP clients: Pace counts the calls in flight, and no connection is used twice. On one that is kept, a
# reply that is delivered twice would be taken for the answer to the next call, and a call that is sent just when the
# other side lets go of it would be lost.
LIMITS = {"max_connections": None, "max_keepalive_connections": 0}
FIRST_REST = 1.0  # seconds; doubles with every 429 that tells no time of its own
LONGEST_REST = 60.0


class Pace:
    """A gate that every call to one provider goes through. All times are seconds.

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
        """Wait until a call of about this many tokens may start; it holds a place in flight until the block ends."""
        async with self._slots:
            now = time.monotonic()
            starts = max(now, self._next_request, self._next_token)
            self._next_request = starts + self._per_request
            self._next_token = starts + self._per_token * tokens
            await self.sleep(starts - now)
            while (left := self._rest_until - time.monotonic()) > 0 and not self._stopped.is_set():
                # A little apart, or all would come back in one moment and be turned down again.
                await self.sleep(left + random.uniform(0, self._apart))
            yield

    def rest(self, seconds: float | None) -> float:
        """Nobody starts a call for this long; null, where the provider told no time, is a guess that doubles.

        Returns the seconds of a rest that begins now; 0 where one is under way, which this may draw out.
        """
        now = time.monotonic()
        under_way = now < self._rest_until
        if seconds is None:
            if under_way:
                return 0.0  # calls that were in flight together are turned down together, one reason to rest
            self._rests += 1
            seconds = min(LONGEST_REST, FIRST_REST * 2 ** (self._rests - 1))
        self._apart = min(seconds, LONGEST_REST) / 10
        self._rest_until = max(self._rest_until, now + seconds)
        return 0.0 if under_way else seconds

    def went_well(self) -> None:
        """A call succeeded: the next rest is short again."""
        self._rests = 0

    def stop(self) -> None:
        """Nobody waits any longer, neither for a turn nor in `sleep`."""
        self._stopped.set()

    async def sleep(self, seconds: float) -> None:
        """Wait for so long, or until the end comes."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopped.wait()


def jitter(attempt: int) -> float:
    """Seconds to wait before attempt 2, 3, …: anything up to a bound that doubles (full jitter)."""
    return random.uniform(0, min(LONGEST_REST, FIRST_REST * 2 ** (attempt - 2)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply's headers ask to wait; null where they do not say."""
    if (milliseconds := headers.get("retry-after-ms")) and _number(milliseconds) is not None:
        return (_number(milliseconds) or 0.0) / 1000
    if not (told := headers.get("retry-after")):
        return None
    if (seconds := _number(told)) is not None:
        return max(0.0, seconds)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
