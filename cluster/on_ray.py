"""Units of work on the workers of a running Ray cluster: the only module that knows of Ray's core.

A worker is an actor on an accelerator of its own, or on a CPU of a cluster without any. Ray restarts nothing and
repeats nothing by itself: a unit whose worker is lost is done again by another, here, where it is known what was
committed. This process stays, and with it the results; when it ends, its actors end.
"""

import contextlib
import logging
import pickle
import statistics
import time
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cluster.devices import travels
from cluster.nodes import (
    LOGS,
    LOSSES,
    PATIENCE,
    Facts,
    LostError,
    Ours,
    RefusedError,
    WorkerError,
    alive,
    compared_versions,
    connected,
    first_line,
    is_ours,
    kind_of_worker,
    name_of,
    room_for,
    settle_in,
)
from cluster.pool import DataT, Make, ResultT, Unit
from cluster.provenance import code_hash
from data.pace import hold

logger = logging.getLogger(__name__)

KIND = "accelerator_type:"  # before an accelerator's kind, among a node's resources
LOOK = 5.0  # seconds between looks at the size of the cluster
STRAGGLER = 3.0  # times the median time of a unit, after which an idle worker does it too


class Node(NamedTuple):
    """A node of the cluster, as `survey` finds it."""

    address: str
    resources: dict[str, float]  # CPU, GPU, TPU: how many
    accelerators: tuple[str, ...]  # their kinds, as Ray calls them
    problem: str | None  # why its workers would be refused


class CallOutcome(NamedTuple):
    """What came of a call: errors too are values, since Ray's own carry neither our types nor whose they are."""

    result: Any = None
    error: Exception | None = None  # of our own code, which says what is wrong
    trace: str = ""  # of whatever was raised
    warnings: tuple[tuple[str, int, str], ...] = ()  # logger, level, message


@dataclass(eq=False)
class _Member:
    """A worker, as this process knows it."""

    actor: Any
    facts: Facts | None = None  # None: it has not answered yet
    is_ready: bool = False
    unit: Unit[Any] | None = None
    since: float = field(default_factory=time.monotonic)  # when it was asked for, or was given its unit


class OnRay:
    """The workers of a cluster that runs already; one whose node is started later joins."""

    def __init__(self, workers: int | None, device: str) -> None:
        """workers: how many at most, which are asked for until they are there; None: as many as accelerators are there.

        Raises ValueError where Ray is missing, no cluster runs, or tokens are off.
        """
        self._ray, self._workers, self._device = connected(), workers, device
        self._kind = kind_of_worker(self._ray, device)
        self._resources = self._resources_of_a_worker()
        self._ours = Ours(code_hash(), compared_versions())
        self._make: Make[Any, Any] | None = None
        self._members: list[_Member] = []
        self._flying: dict[Any, _Member] = {}  # by the reference to what the worker is doing
        self._lost, self._starts_lost = 0, 0
        self._devices: list[dict[str, Any]] = []  # kinds that were met
        self._said: set[tuple[str, int, str]] = set()
        self._waits_since = time.monotonic()
        if self._kind != "CPU":
            hold(lambda: sum(one.facts is not None for one in list(self._members)))

    def run(
        self, make: Make[DataT, ResultT], units: Sequence[Unit[DataT]]
    ) -> Generator[tuple[int, ResultT], None, None]:
        """As the protocol says, in the order in which they are done.

        A unit whose worker is lost is done again, before the others. One that costs LOSSES workers is set aside: the
        others are done, then LostError names it. An error of a worker ends the run.
        """
        if make is not self._make:
            self.release()
            self._make = make
        there, mine = alive(self._ray), {id(unit) for unit in units}
        for member in [one for one in self._members if one.unit or (one.facts and one.facts.node not in there)]:
            self._dismiss(member)  # at a unit of a run that was left, or lost while idle, which is no unit's fault
        work = _Queue(units)
        try:
            while work.left:
                self._hire(len(work.left))
                self._give(work)
                done, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=LOOK)
                for ref in done:
                    yield from self._taken(ref, work)
        finally:
            for member in [one for one in self._members if id(one.unit) in mine]:  # another was first, or an error
                self._dismiss(member)
        work.say_what_was_lost()

    def status(self) -> dict[str, Any]:
        """Workers that are at work or idle, and units that were lost with theirs."""
        return {"workers": sum(one.is_ready for one in self._members), "lost": self._lost}

    def release(self) -> None:
        """As the protocol says."""
        for member in list(self._members):
            self._dismiss(member)
        self._make = None

    # Workers

    def _resources_of_a_worker(self) -> dict[str, Any]:
        """As options of an actor."""
        options: dict[str, dict[str, Any]] = {
            "GPU": {"num_cpus": 0, "num_gpus": 1},
            "TPU": {"num_cpus": 0, "resources": {"TPU": 1}},
        }
        return options.get(self._kind, {"num_cpus": 1})

    def _capacity(self) -> int:
        """How many workers the cluster has room for as it is now."""
        return room_for(self._ray, self._kind)

    def _hire(self, left: int) -> None:
        """Ask for workers, as many as there is work and room for; one that is not there yet waits for room."""
        room = self._capacity() if self._workers is None else self._workers
        wanted = min(max(room, 1), left)
        for member in [one for one in self._members if one.facts is None][: max(0, len(self._members) - wanted)]:
            self._dismiss(member)
        while len(self._members) < wanted:
            remote = self._ray.remote(max_restarts=0, max_task_retries=0, **self._resources)(_Actor)
            member = _Member(remote.remote())
            self._members.append(member)
            self._flying[member.actor.hello.remote(str(Path.cwd()), self._device)] = member
        if any(one.is_ready for one in self._members):
            self._waits_since = time.monotonic()
        elif time.monotonic() - self._waits_since > PATIENCE:
            message = "no worker yet: %d asked for, each with %s; the cluster has room for %d"
            logger.warning(message, len(self._members), self._resources, self._capacity())
            self._waits_since = time.monotonic()

    def _give(self, work: "_Queue") -> None:
        """Give each idle worker a unit."""
        for member in self._members:
            if member.is_ready and member.unit is None and (unit := work.next_for(self._members)):
                member.unit, member.since = unit, time.monotonic()
                self._flying[member.actor.work.remote(unit.data)] = member

    def _taken(self, ref: Any, work: "_Queue") -> Generator[tuple[int, Any], None, None]:
        """What a worker has done: its unit, or a step of its start."""
        member = self._flying.pop(ref)
        try:
            outcome: CallOutcome = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:  # not within our methods, so Ray could not call them
            raise RefusedError(
                f"node {getattr(error, 'ip', 'unknown')} cannot run this project's code: {error.cause}. Every "
                f"node needs the same environment, and the project at the same path: {Path.cwd()}"
            ) from error
        except self._ray.exceptions.RayError as error:  # the worker, its node or the way to it is gone
            self._mourn(member, work, error)
            return
        where = self._name(member)
        for name, level, message in outcome.warnings:
            if (name, level, message) not in self._said:
                self._said.add((name, level, message))
                logging.getLogger(name).log(level, "%s: %s", where, message)
        if outcome.trace:
            raised = WorkerError(f"{where}: {outcome.trace}")
            raise raised if outcome.error is None else outcome.error from raised
        if member.facts is None:
            member.facts = outcome.result
            self._check(member)
            self._flying[member.actor.start.remote(self._ray.cloudpickle.dumps(self._make))] = member
        elif not member.is_ready:
            member.is_ready, self._starts_lost = True, 0
            message = "%s: ready after %.1f s, %d workers"
            seconds = time.monotonic() - member.since
            logger.info(message, self._name(member), seconds, self.status()["workers"])
        else:
            assert member.unit is not None
            unit, member.unit = member.unit, None
            self._starts_lost = 0
            if work.finish(unit, time.monotonic() - member.since):
                yield unit.number, outcome.result

    def _check(self, member: _Member) -> None:
        """Raises RefusedError for a node with other code or versions, or without tokens; warns of another device."""
        facts = member.facts
        assert facts is not None
        if problem := self._ours.problem_of(facts):
            raise RefusedError(f"{self._name(member)} {problem}; what is finished is kept")
        device = {key: facts.made_with["device"][key] for key in ("type", "name", "threads")}
        if self._devices and device not in self._devices:
            message = "%s computes on %s, other workers on %s: clips and labels are equal within float tolerance only"
            logger.warning(message, self._name(member), device, self._devices[0])
        self._devices.append(device)

    def _mourn(self, member: _Member, work: "_Queue", error: Exception) -> None:
        """Take note of a lost worker. Raises LostError where workers are lost before they can work."""
        where, unit = self._name(member), member.unit
        gone = member.facts is not None and member.facts.node not in alive(self._ray)
        what = "the node is gone" if gone else f"its worker is gone ({first_line(error)})"
        self._dismiss(member)
        if unit is None:
            self._starts_lost += 1
            logger.warning("%s: %s, before it could work", where, what)
            if self._starts_lost >= LOSSES:
                raise LostError(
                    f"{self._starts_lost} workers were lost one after the other before any could work, the last on "
                    f"{where}: {first_line(error)}. Ray's logs on that node: {LOGS}"
                ) from error
            return
        if work.lose(unit, where, any(one.unit is unit for one in self._members)):
            self._lost += 1
            logger.warning("%s: %s; %s are done again", where, what, unit.what)

    def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        for ref in [ref for ref, one in self._flying.items() if one is member]:
            del self._flying[ref]
        with contextlib.suppress(Exception):  # it may be gone already
            self._ray.kill(member.actor)

    def _name(self, member: _Member) -> str:
        if member.facts is None:
            return "a node that has not answered yet"
        return name_of(self._ray, member.facts.node)


def survey(timeout: float = 60.0) -> list[Node]:
    """All nodes that are there. Raises ValueError as `OnRay` does.

    timeout: seconds to wait for the nodes' answers, which import torch.
    """
    ray, ours = connected(), Ours(code_hash(), compared_versions())
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    actors = [ray.remote(num_cpus=0, scheduling_strategy=place)(_Actor).remote() for place in places]
    asked = [actor.hello.remote(str(Path.cwd()), "cpu") for actor in actors]
    answered = set(ray.wait(asked, num_returns=len(asked), timeout=timeout)[0])
    found = []
    for node, ref in zip(nodes, asked, strict=True):
        counted = {name: node["Resources"][name] for name in ("CPU", "GPU", "TPU") if node["Resources"].get(name)}
        try:
            outcome = ray.get(ref) if ref in answered else None
            problem = outcome and (outcome.trace or ours.problem_of(outcome.result))
        except ray.exceptions.RayError as error:
            outcome, problem = None, first_line(error)
        silent = None if outcome or problem else f"has not answered within {timeout:g} s"
        kinds = tuple(sorted(name.removeprefix(KIND) for name in node["Resources"] if name.startswith(KIND)))
        found.append(Node(node["NodeManagerAddress"], counted, kinds, problem or silent))
    return found


class _Queue:
    """The units of a run: which wait, which are left, which were lost, and how long they took."""

    def __init__(self, units: Sequence[Unit[Any]]) -> None:
        self.waiting = deque(units)
        self.left = {unit.number for unit in units}
        self.seconds: list[float] = []  # of finished units
        self.lost: dict[int, list[str]] = {}  # where, by unit
        self.given_up: list[Unit[Any]] = []

    def next_for(self, members: Sequence[_Member]) -> Unit[Any] | None:
        """A unit that waits; at the end one that takes another worker far longer than the others took."""
        if self.waiting:
            return self.waiting.popleft()
        if not self.seconds:
            return None
        late = time.monotonic() - STRAGGLER * statistics.median(self.seconds)
        running = [one.unit for one in members if one.unit and one.unit.number in self.left]
        slow = [one.unit for one in members if one.unit and one.since < late and running.count(one.unit) == 1]
        found = next((unit for unit in slow if unit.number in self.left), None)
        if found:
            logger.warning("%s take long; an idle worker does them too", found.what)
        return found

    def finish(self, unit: Unit[Any], seconds: float) -> bool:
        """Whether nobody did it before."""
        if unit.number not in self.left:
            return False
        self.left.remove(unit.number)
        self.seconds.append(seconds)
        return True

    def lose(self, unit: Unit[Any], where: str, another: bool) -> bool:
        """Note a lost unit, which waits again, before the others. another: whether another worker does it already.

        Returns whether it is done again.
        """
        if unit.number not in self.left:
            return False
        self.lost.setdefault(unit.number, []).append(where)
        if len(self.lost[unit.number]) >= LOSSES:
            self.left.remove(unit.number)
            self.given_up.append(unit)
            return False
        if not another:
            self.waiting.appendleft(unit)
        return True

    def say_what_was_lost(self) -> None:
        """Raises LostError naming a unit that was given up."""
        for unit in self.given_up:
            raise LostError(
                f"{unit.what} cost {LOSSES} workers, on {', '.join(self.lost[unit.number])}; all else is done and "
                "kept. Most often memory runs out there: take a smaller batch_size, or look at Ray's logs on these "
                f"nodes ({LOGS})"
            )
        if self.lost:
            logger.info("units that were lost with their workers and done again: %d", len(self.lost))


class _Actor:
    """What runs on a node."""

    def hello(self, root: str, device: str) -> CallOutcome:
        """Facts, in the project's folder."""
        return _outcome(lambda: settle_in(root, device))

    def start(self, make: bytes) -> CallOutcome:
        """Build the worker. make: pickled."""

        def build() -> None:
            self.worker = pickle.loads(make)()

        return _outcome(build)

    def work(self, data: Any) -> CallOutcome:
        """A unit's result."""
        return _outcome(lambda: self.worker.work(data))


def _outcome(call: Any) -> CallOutcome:
    """What a call returns or raises, and the warnings that it logs."""
    listener = _Listener()
    logging.getLogger().addHandler(listener)
    try:
        return CallOutcome(call(), warnings=tuple(listener.heard))
    except Exception as error:
        ours = error if is_ours(error) and travels(error) else None
        return CallOutcome(error=ours, trace=traceback.format_exc(), warnings=tuple(listener.heard))
    finally:
        logging.getLogger().removeHandler(listener)


class _Listener(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append((record.name, record.levelno, record.getMessage()))
