"""How long work takes: libraries record what they measure, and a caller may collect it."""

import contextlib
from collections.abc import Iterator
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
    """The list to which everything is added that is measured within the block."""
    found: list[Measured] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
