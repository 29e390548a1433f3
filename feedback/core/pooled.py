"""A source whose model works on the workers of a pool, one on each accelerator of a cluster; here it is one like any.

Clips travel to the workers within the units, so these need no folder of this machine; verdicts come back. Workers keep
no verdicts and open no ledger: this process does. Units are cut by the places of the clips in their set, so that a run
that goes on after a kill judges the same clips together.
"""

import contextlib
import copy
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cluster.devices import pick_device
from cluster.pool import Make, Pool, Unit
from data.records import Comparison, Verdict
from feedback.core.rubric import AnyRubric
from feedback.core.source import Request, metrics_of
from feedback.pairs.shown import ShownPair

SubjectT = TypeVar("SubjectT", Request, ShownPair)
RowT = TypeVar("RowT", Verdict, Comparison)


class Workers:
    """Where sources are loaded that run a model. Each worker holds all those that it was asked for."""

    def __init__(self, pool: Pool, device: str, together: int) -> None:
        """device: of each worker, as `pick_device` takes it. together: clips of a unit, at least."""
        self.pool, self.together = pool, together
        self.make: Make[_Asked, Any] = partial(_Judges, device)


class PooledSource:
    """The source of a block, as the workers have it. It judges clips, and pairs where its rubric compares."""

    def __init__(self, name: str, block: Mapping[str, Any], workers: Workers) -> None:
        self.name, self._block, self._workers = name, block, workers
        ((_, facts),) = workers.pool.run(workers.make, [Unit(0, f"the weights of {name}", _Asked(name, block))])
        self.model, self.model_version, self.repeatable = facts.model, facts.model_version, facts.repeatable
        self.metrics, self.device = facts.metrics, facts.device
        self.rubric = self._own = facts.rubric
        size = int(block.get("batch_size") or 1)
        self.unit = -(-workers.together // size) * size  # clips, in whole batches

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        """As the protocol says, unit by unit as they are done."""
        for _, answers in self._workers.pool.run(self._workers.make, self._units(requests)):
            yield from answers

    def compare(self, pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
        """As a Comparer (feedback.pairs.shown), unit by unit as they are done."""
        for _, answers in self._workers.pool.run(self._workers.make, self._units(pairs)):
            yield from answers

    def status(self) -> dict[str, Any]:
        """The pool's."""
        return self._workers.pool.status()

    def _units(self, subjects: Iterable[SubjectT]) -> list[Unit["_Asked"]]:
        units: dict[int, list[SubjectT]] = {}
        for one in subjects:
            units.setdefault(one.place // self.unit, []).append(one)
        rubric = None if self.rubric is self._own else self.rubric
        return [
            Unit(number, _in_words(ones), _Asked(self.name, self._block, rubric, ones, _files(ones)))
            for number, ones in sorted(units.items())
        ]


# At the workers


class _Facts(NamedTuple):
    """What a source says of itself where it is loaded."""

    model: str
    model_version: str | None
    repeatable: bool
    rubric: AnyRubric
    metrics: list[str]
    device: str


@dataclass(frozen=True)
class _File:
    """A file that takes its bytes with it when it is sent to another process; None where there is none."""

    path: Path
    content: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        content = None
        with contextlib.suppress(OSError):
            content = self.path.read_bytes()
        return _File, (self.path, content)


class _Asked(NamedTuple):
    """A source, and what it is asked."""

    name: str
    block: Mapping[str, Any]
    rubric: AnyRubric | None = None  # in place of the source's own
    subjects: Sequence[Request | ShownPair] = ()  # none: its facts are asked for
    files: Sequence[_File] = ()  # that the subjects name


class _Judges:
    """Sources on a device, each loaded when it is asked for first."""

    def __init__(self, device: str) -> None:
        self.device = str(pick_device(device))
        self.sources: dict[str, Any] = {}

    def work(self, asked: _Asked) -> Any:
        """All answers about each subject, or the source's facts."""
        source = self._source(asked)
        if not asked.subjects:
            version = source.model_version
            metrics = list(metrics_of(source))
            return _Facts(source.model, version, source.repeatable, source.rubric, metrics, self.device)
        if asked.rubric is not None:
            source = copy.copy(source)
            source.rubric = asked.rubric
        ask = source.compare if isinstance(asked.subjects[0], ShownPair) else source.judge
        with tempfile.TemporaryDirectory() as folder:
            put = {file.path: _put(file, Path(folder, f"{n}{file.path.suffix}")) for n, file in enumerate(asked.files)}
            subjects = [_moved(subject, put) for subject in asked.subjects]
            return [[_as_named_here(row, put) for row in rows] for rows in ask(iter(subjects))]

    def _source(self, asked: _Asked) -> Any:
        from feedback.core.kinds import read_block  # which imports this module

        if asked.name not in self.sources:
            kind, options = read_block(asked.name, asked.block)
            self.sources[asked.name] = kind.load(asked.name, options, self.device)
        return self.sources[asked.name]


def _put(file: _File, place: Path) -> Path:
    """Where the file is read on this machine."""
    if file.content is None:
        return file.path
    place.write_bytes(file.content)
    return place


def _moved(subject: Any, put: Mapping[Path, Path]) -> Any:
    if isinstance(subject, ShownPair):
        return replace(subject, first=_moved(subject.first, put), second=_moved(subject.second, put))
    first = subject.first_frame and subject.first_frame._replace(path=put[subject.first_frame.path])
    return replace(subject, path=put[subject.path], first_frame=first)


def _as_named_here(row: RowT, put: Mapping[Path, Path]) -> RowT:
    """The row as if its clips had been read where the sender has them."""
    error = row.error
    for path, place in put.items() if error else ():
        error = error and error.replace(str(place), str(path))
    return row if error == row.error else replace(row, error=error)


def _clips(subjects: Sequence[Request | ShownPair]) -> list[Request]:
    pairs = [(one.first, one.second) if isinstance(one, ShownPair) else (one,) for one in subjects]
    return [request for pair in pairs for request in pair]


def _files(subjects: Sequence[Request | ShownPair]) -> list[_File]:
    clips = _clips(subjects)
    paths = [one.path for one in clips] + [one.first_frame.path for one in clips if one.first_frame]
    return [_File(path) for path in dict.fromkeys(paths)]


def _in_words(subjects: Sequence[Request | ShownPair]) -> str:
    clips = _clips(subjects)
    return f"the verdicts on {clips[0].sample.sample_id} to {clips[-1].sample.sample_id}"
