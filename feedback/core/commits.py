"""Answers in resume state, a file for each unit of consecutive subjects of a set, so that none is torn by a kill.

A source judges some consecutive clips, or pairs, together, and what else is judged with one changes its last digits.
So a run that goes on must find whole units, in whatever order they were answered.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from data.manifest import atomically
from data.records import Comparison, Verdict, write_rows

KeyT = TypeVar("KeyT", bound=Hashable)
RowT = TypeVar("RowT", bound=Verdict | Comparison)


class Commits(Generic[KeyT, RowT]):
    """Writes `<work>/<name>-<number of the unit>.parquet` when all of a unit is answered; `flush` writes the rest.

    size: subjects of a unit. keys: all subjects, in the order of the set. found: answers that are committed already.
    """

    def __init__(
        self, work: Path, name: str, row: type[RowT], size: int, keys: Sequence[KeyT],
        found: Mapping[KeyT, Sequence[RowT]],
    ) -> None:  # fmt: skip
        self.work, self.name, self.row, self.size, self.keys = work, name, row, size, keys
        self._places = {key: place for place, key in enumerate(keys)}
        self._found = dict(found)
        self._open: set[int] = set()  # units with answers that are not written yet

    def add(self, key: KeyT, rows: Sequence[RowT]) -> None:
        """Take the answers about a subject."""
        number = self._places[key] // self.size
        self._found[key] = rows
        self._open.add(number)
        if all(one in self._found for one in self._unit(number)):
            self._write(number)

    def flush(self) -> None:
        """Write what is there of units that are not whole."""
        for number in sorted(self._open):
            self._write(number)

    def _unit(self, number: int) -> Sequence[KeyT]:
        return self.keys[number * self.size : (number + 1) * self.size]

    def _write(self, number: int) -> None:
        rows = [row for key in self._unit(number) for row in self._found.get(key, ())]
        with atomically(self.work / f"{self.name}-{number:05d}.parquet") as partial:
            write_rows(partial, rows, self.row)
        self._open.remove(number)
