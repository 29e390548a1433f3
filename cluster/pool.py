"""Units of work on one worker or on many: what a stage asks of the machines that it runs on.

A unit is done by one worker at a time, in any order of the units, and its result depends on the unit alone. The caller
commits the results: workers write nothing, so that a worker that was given up, and works on unseen, does no harm.
"""

import gc
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from data.pace import hold

DataT = TypeVar("DataT")
ResultT = TypeVar("ResultT")
DataT_contra = TypeVar("DataT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)

HERE, RAY = ENGINES = ("here", "ray")
AUTO = "auto"


class Unit(NamedTuple, Generic[DataT]):
    """A piece of work, as much as may be lost with a worker."""

    number: int  # unique within a run
    what: str  # in words, such as the clips that it makes
    data: DataT


class Worker(Protocol[DataT_contra, ResultT_co]):
    """Does units, one after the other."""

    def work(self, data: DataT_contra, /) -> ResultT_co:
        """The result of a unit's data."""


Make = Callable[[], Worker[DataT, ResultT]]
"""Builds a worker where it works: there it loads its models, onto a device of that machine."""


class Pool(Protocol):
    """Does units of work. The workers of one `make` stay for its next run, and go when another is run."""

    def run(
        self, make: Make[DataT, ResultT], units: Sequence[Unit[DataT]]
    ) -> Generator[tuple[int, ResultT], None, None]:
        """Yields the number and the result of every unit, in any order. Close it to stop earlier.

        Raises what a worker raises.
        """

    def status(self) -> dict[str, Any]:
        """What a progress bar shows of the workers; may be empty."""

    def release(self) -> None:
        """Let go of the workers and of what they hold."""


class Here:
    """The default: one worker in this process; units in their order."""

    def __init__(self) -> None:
        self._made: tuple[Make[Any, Any], Worker[Any, Any]] | None = None

    def run(
        self, make: Make[DataT, ResultT], units: Sequence[Unit[DataT]]
    ) -> Generator[tuple[int, ResultT], None, None]:
        """As the protocol says."""
        if units and (self._made is None or self._made[0] is not make):
            self.release()  # before the next loads its models
            self._made = make, make()
        for unit in units:
            yield unit.number, self.worker.work(unit.data)

    @property
    def worker(self) -> Worker[Any, Any]:
        """The worker that was made last."""
        assert self._made is not None
        return self._made[1]

    def status(self) -> dict[str, Any]:
        """Empty: there is one worker, and it cannot be lost alone."""
        return {}

    def release(self) -> None:
        """As the protocol says."""
        self._made = None
        gc.collect()  # compiled modules hold themselves


def pool_of(engine: str, workers: str = AUTO, device: str = AUTO) -> Pool:
    """The pool of that engine.

    workers: how many at most: a number, or auto for every accelerator of the cluster; of engine here on the CPU, for
    every core. device: what each works on, as `cluster.devices.pick_device` takes it. Raises ValueError for other
    values, and as `OnRay` does.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; known: {', '.join(ENGINES)}")
    if workers != AUTO and not (workers.isdecimal() and int(workers) > 0):
        raise ValueError(f"workers: {workers!r} is neither auto nor a number above 0")
    if engine == HERE:
        from cluster.devices import pick_device

        if pick_device(device).type != "cpu":
            hold(lambda: 1)
            return Here()
        from cluster.forks import Forks

        return Forks(None if workers == AUTO else int(workers))
    from cluster.on_ray import OnRay

    return OnRay(None if workers == AUTO else int(workers), device)
