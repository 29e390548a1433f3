"""How much was done of what costs time or money: libraries count it where it is done, and a caller may collect it."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, fields


@dataclass
class Counts:
    """Amounts of work. They depend on params and inputs alone, so a run that is repeated has the same."""

    clips: int = 0  # sampled, or rolled out online
    judge_calls: int = 0  # answers of a judge to a question, in a vote, about a clip or about two
    usd: float | None = 0.0  # US dollars that providers were paid for answers; None: a price is unknown
    forwards: int = 0  # of a denoiser, by clips: guidance is two a step. Without what a backward computes again
    backwards: int = 0  # likewise
    decodes: int = 0  # clips, or wanted frames of one, through the VAE's decoder

    def add(self, other: "Counts") -> None:
        """Add the other's amounts. An amount that is unknown in one of both is unknown."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            setattr(self, one.name, None if mine is None or theirs is None else mine + theirs)


_collected: ContextVar[Counts | None] = ContextVar("counts", default=None)


def current_counts() -> Counts | None:
    """The counts that a caller collects now, if one does. None in threads that torch starts, so keep it for a hook."""
    return _collected.get()


def count(amounts: Counts) -> None:
    """Add to the counts that a caller collects, if one does."""
    if (found := _collected.get()) is not None:
        found.add(amounts)


@contextlib.contextmanager
def collected_counts() -> Iterator[Counts]:
    """The counts to which all is added that is counted within the block; a caller around it gets none of that."""
    found = Counts()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Nothing within the block is counted."""
    token = _collected.set(None)
    try:
        yield
    finally:
        _collected.reset(token)
