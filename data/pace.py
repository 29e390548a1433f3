"""How long work takes: a library says what it has measured, and who called it may listen."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple


class Measured(NamedTuple):
    """Work that this process has done, without what an earlier run of it had finished."""

    unit: str  # clips | calls | rows | shown pairs
    amount: int
    seconds: float


_heard: ContextVar[list[Measured] | None] = ContextVar("heard", default=None)


def measured(unit: str, count: int, seconds: float) -> None:
    """Tell the caller that listens, if one does."""
    if (heard := _heard.get()) is not None and count:
        heard.append(Measured(unit, count, seconds))


@contextlib.contextmanager
def listening() -> Iterator[list[Measured]]:
    """The list to which everything is added that is measured within the block."""
    heard: list[Measured] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)
