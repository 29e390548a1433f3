"""How long work takes: libraries record what they measure, and a caller may collect it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple


class Measured(NamedTuple):
    """Work that this process has done, without what an earlier run of it had finished."""

    unit: str  # clips | calls | rows | shown pairs
    amount: int
    seconds: float


_collected: ContextVar[list[Measured] | None] = ContextVar("collected", default=None)


def measured(unit: str, count: int, seconds: float) -> None:
    """Add a measurement to the list that a caller collects, if one does."""
    if (found := _collected.get()) is not None and count:
        found.append(Measured(unit, count, seconds))


@contextlib.contextmanager
def collected_measurements() -> Iterator[list[Measured]]:
    """The list to which everything is added that is measured within the block; then a caller around it gets it too."""
    found: list[Measured] = []
    around = _collected.get()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
        if around is not None:
            around += found


class TimeWorked(NamedTuple):
    """The time of a piece of work."""

    seconds: float
    accelerator_seconds: float  # each second times the accelerators that were held in it


class Clock:
    """The time of a piece of work that earlier runs may have begun; for any thread."""

    def __init__(self, before: TimeWorked) -> None:
        """before: the time of the earlier runs."""
        self._worked, self._since = before, time.monotonic()
        self._held: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()

    def read(self) -> TimeWorked:
        """The time until now. Accelerators count as many as are held now since the last read."""
        with self._lock:
            now = time.monotonic()
            passed, self._since = now - self._since, now
            seconds, of_accelerators = self._worked
            self._worked = TimeWorked(seconds + passed, of_accelerators + passed * self._held())
            return self._worked

    def hold(self, accelerators: Callable[[], int]) -> None:
        """From now on the work holds as many accelerators as `accelerators()` says."""
        self.read()
        self._held = accelerators


_clock: Clock | None = None  # of this process's stage, for all its threads


def hold(accelerators: Callable[[], int]) -> None:
    """Tell the clock of this process's stage, if it has one, what says how many accelerators the stage holds."""
    if _clock is not None:
        _clock.hold(accelerators)


def time_worked() -> TimeWorked | None:
    """The time of this process's stage so far, over all its runs that were killed; None where it has no clock."""
    return None if _clock is None else _clock.read()


@contextlib.contextmanager
def clock_of_this_stage(clock: Clock) -> Iterator[None]:
    """Within the block, `hold` and `time_worked` are of this clock."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before
