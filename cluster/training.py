"""One body as several processes of a torch process group on the nodes of a Ray cluster: the only module of Ray Train.

Ray Train starts the processes and joins them to a group; it repeats nothing and keeps nothing. What the body has done
lies in its resume state, on a disk that all nodes share, so a group that lost a process is started again here, and
goes on from there. This process stays, and when it ends, the group ends.
"""

import contextlib
import importlib
import json
import logging
import os
import pickle
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from cluster.devices import travels
from cluster.messages import Messages
from cluster.nodes import (
    LOGS,
    LOSSES,
    PATIENCE,
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
from cluster.provenance import code_hash
from data.pace import hold
from data.policies import CHECKPOINTS, FOLDER, PROGRESS

logger = logging.getLogger(__name__)

LOOK = 1.0  # seconds between looks at what the processes have said
RESIZE = 60.0  # seconds between looks of Ray Train at whether there is room for another number of processes
# Seconds for which Ray Train waits for room before it counts again what there is: a node that died a moment ago is
# counted for as long as 20 s. By default 60.
STALE = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
RAY = "ray"  # folder in the work, which Ray Train wants; deleted at the end


class SupersededError(RuntimeError):
    """A process that another one has taken the place of; not what is wrong with a run, so that it is started again."""


class Size(NamedTuple):
    """How many processes there may be."""

    least: int
    most: int

    @classmethod
    def of(cls, processes: str, accelerators: int) -> "Size":
        """processes: auto for one on each accelerator, at least one; a number; or a range such as 4-16.

        Raises ValueError for anything else.
        """
        least, dash, most = processes.partition("-")
        if processes == "auto":
            return cls(max(accelerators, 1), max(accelerators, 1))
        if least.isdecimal() and (most.isdecimal() or not dash) and 0 < int(least) <= int(most or least):
            return cls(int(least), int(most or least))
        raise ValueError(f"processes: {processes!r} is neither auto, a number above 0, nor a range such as 4-16")


def together(body: Callable[..., Any], arguments: Sequence[Any], processes: str, device: str, work: Path) -> Any:
    """What `body(*arguments)` returns in the first of several processes of a group, on the nodes of a cluster.

    body: a function of a module, which finds itself in the project's folder, in a torch process group, with torchrun's
        environment variables. Called again, it goes on from its state in `work`, which lies on a disk of all nodes.
    processes: see Size. Of a range, as many as there is room for; their number changes while they run. device: what
        each works on, as `cluster.devices.pick_device` takes it.
    A group that loses a process is started again, until LOSSES groups in a row have written no further checkpoint:
    then LostError, or WorkerError with what a library has raised there. What our own code raises ends the run at once,
    as it is. Raises RefusedError for a node that has other code or versions, ValueError where no cluster can be used.
    """
    ray = connected()
    kind = kind_of_worker(ray, device)
    size = Size.of(processes, 0 if kind == "CPU" else room_for(ray, kind))
    run = _Run(ray, kind, size, work, device, Ours(code_hash(), compared_versions()))
    if kind != "CPU":
        hold(lambda: len(run.members))
    try:
        return run.result(ray.cloudpickle.dumps((body, tuple(arguments))))
    finally:
        run.close()


# On the head


class _Raised(NamedTuple):
    """What a process of the group has raised."""

    where: str
    error: Exception | None  # of our own code, which says what is wrong
    trace: str


@dataclass(eq=False)
class _Run:
    """A body's groups, one after the other."""

    ray: Any
    kind: str  # of worker
    size: Size
    work: Path
    device: str
    ours: Ours
    starts: int = 0
    lost: int = 0  # processes
    fruitless: int = 0  # groups in a row that wrote no further checkpoint
    members: dict[int, str] = field(default_factory=dict)  # Ray's ids of the nodes, by rank
    raised: list[_Raised] = field(default_factory=list)  # in the group of the moment
    devices: list[dict[str, Any]] = field(default_factory=list)  # kinds that were met
    said: set[tuple[str, str]] = field(default_factory=set)  # warnings
    bar: Any = None
    shown: Any = None  # by the bar
    far: int = 0  # the most checkpoints that there were
    waits_since: float = field(default_factory=time.monotonic)

    def result(self, call: bytes) -> Any:
        """What the body returns. call: the body and its arguments, pickled."""
        shutil.rmtree(self.work / RAY, ignore_errors=True)  # of a start whose head was killed
        self.far = self._checkpoints()
        while True:
            ended = self._group(call)
            if (error := ended.exception()) is None:
                return pickle.loads(ended.result())
            self._mourn(error)

    def close(self) -> None:
        """Leave nothing behind that is no part of the state."""
        if self.bar is not None:
            self.bar.close()
        shutil.rmtree(self.work / RAY, ignore_errors=True)

    def _group(self, call: bytes) -> "Future[bytes]":
        """A group that has ended: what the body returned in its first process, pickled, or how it ended instead."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        messages = self.ray.remote(num_cpus=0, scheduling_strategy=here)(Messages).remote()
        self.starts, self.members, self.raised = self.starts + 1, {}, []
        trainer = self._trainer(messages, call)
        fit: Future[bytes] = _in_background(lambda: trainer.fit().return_value)
        while not fit.done():
            self._listen(messages)
            self._warn_of_waiting()
            time.sleep(LOOK)
        self._listen(messages)
        self.ray.kill(messages)
        return fit

    def _warn_of_waiting(self) -> None:
        if self.members:
            self.waits_since = time.monotonic()
        elif time.monotonic() - self.waits_since > PATIENCE:
            self.waits_since = time.monotonic()
            room = room_for(self.ray, self.kind)
            state = "they are still starting" if room >= self.size.least else "waiting for room"
            message = "no process yet: at least %d wanted, each on a %s of its own; the cluster has room for %d: %s"
            logger.warning(message, self.size.least, self.kind, room, state)

    def _trainer(self, messages: Any, call: bytes) -> Any:
        train: Any = importlib.import_module("ray.train")
        torch_train: Any = importlib.import_module("ray.train.torch")
        given = {
            "root": str(Path.cwd()),
            "device": self.device,
            "ours": tuple(self.ours),
            "messages": messages,
            "call": call,
        }
        never = train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
        folder = str((self.work / RAY).resolve())
        return torch_train.TorchTrainer(
            _entry(),
            train_loop_config=given,
            scaling_config=train.ScalingConfig(**self._scaling()),
            run_config=train.RunConfig(name=f"start-{self.starts}", storage_path=folder, failure_config=never),
        )

    def _scaling(self) -> dict[str, Any]:
        """As options of Ray Train."""
        each: dict[str, Any] = {"GPU": {"CPU": 0, "GPU": 1}, "TPU": {"TPU": 1}, "CPU": {"CPU": 1}}
        scaling = {
            "resources_per_worker": each[self.kind],
            "use_gpu": self.kind == "GPU",
            "use_tpu": self.kind == "TPU",
        }
        if self.kind == "TPU" and self.size.most > 1:
            scaling |= _slice_of(self.ray.nodes())
        if self.size.least == self.size.most:
            return {"num_workers": self.size.most, **scaling}
        os.environ.setdefault(*STALE)
        return {"num_workers": tuple(self.size), "elastic_resize_monitor_interval_s": RESIZE, **scaling}

    # What the processes say

    def _listen(self, messages: Any) -> None:
        hear: dict[str, Callable[..., None]] = {"here": self._welcome, "raised": self._note, "log": self._log}
        for what, said in self.ray.get(messages.taken.remote()):
            hear[what](*said)
        self._show()

    def _welcome(self, rank: int, size: int, node: str, device: dict[str, Any]) -> None:
        """A process that begins its work."""
        self.members = {other: where for other, where in self.members.items() if other < size} | {rank: node}
        if rank == 0:
            logger.info("%d processes train together, the first of them on %s", size, name_of(self.ray, node))
        if self.devices and device not in self.devices:
            message = "%s computes on %s, other processes on %s: equal within float tolerance only"
            logger.warning(message, name_of(self.ray, node), device, self.devices[0])
        self.devices.append(device)

    def _note(self, where: str, error: bytes | str | None, trace: str) -> None:
        refused = RefusedError(error) if isinstance(error, str) else None
        self.raised.append(_Raised(where, pickle.loads(error) if isinstance(error, bytes) else refused, trace))

    def _log(self, rank: int, where: str, name: str, level: int, message: str) -> None:
        """Say again what a process has said; warnings of several once, with the node of the first."""
        if level < logging.WARNING:
            logging.getLogger(name).log(level, message)
        elif (name, message) not in self.said:
            self.said.add((name, message))
            logging.getLogger(name).log(level, "%s: %s", where, message)

    def _show(self) -> None:
        """How far the run is, as its first process wrote it down."""
        path = self.work / PROGRESS
        if not (self.members and path.is_file()):
            return
        facts = json.loads(path.read_text(encoding="utf-8"))
        if self.bar is None:
            name = self.work.absolute().parent.name
            self.bar = tqdm(total=facts["steps"], initial=facts["done"], desc=name, unit=facts["unit"])
        status = {"processes": len(self.members), "lost": self.lost}
        if self.shown != (facts["done"], status):
            self.bar.n, self.shown = facts["done"], (facts["done"], status)
            self.bar.set_postfix(status)

    # What is lost

    def _mourn(self, error: BaseException) -> None:
        """Take note of a group that has ended early. Raises what is to be said, where another one is of no use."""
        for raised in self.raised:
            if raised.error is not None:
                raise raised.error from WorkerError(f"{raised.where}: {raised.trace}")
        if "StartupTimeout" in type(getattr(error, "controller_failure", None)).__name__:
            return  # there is no room yet, of which a warning says more
        gone = self._gone(error)
        for rank, what in sorted(gone.items()):
            self.lost += 1
            logger.warning("%s: %s", self._name(rank), what)
        if not gone:
            said = self.raised[0] if self.raised else _Raised("Ray Train", None, first_line(error))
            logger.warning("%s: %s", said.where, said.trace.strip().splitlines()[-1])
        far, newest = self._checkpoints(), self._newest()
        self.fruitless = 0 if far > self.far else self.fruitless
        self.fruitless, self.far = self.fruitless + 1, max(far, self.far)
        if self.fruitless >= LOSSES:
            raise self._last_word(error, gone) from error
        logger.warning("all processes are started again, and go on from %s", newest or "the begin")

    def _gone(self, error: BaseException) -> dict[int, str]:
        """What became of the processes that are gone, by rank; not of those that raised something."""
        there = alive(self.ray)
        gone = {rank: "the node is gone" for rank, node in self.members.items() if node not in there}
        for rank, one in getattr(error, "worker_failures", {}).items():
            if "HealthCheck" in type(one).__name__:
                cause = first_line(getattr(one, "health_check_failure", one))
                gone.setdefault(rank, f"its process is gone ({cause})")
        return gone

    def _last_word(self, error: BaseException, gone: dict[int, str]) -> Exception:
        if self.raised and not gone:
            return WorkerError(f"{self.raised[0].where}, {LOSSES} times in a row: {self.raised[0].trace}")
        each = [f"{self._name(rank)}: {what}" for rank, what in sorted(gone.items())] or [first_line(error)]
        return LostError(
            f"{LOSSES} groups of processes were lost one after the other, without a new checkpoint, the last one with "
            f"{', '.join(each)}. What is finished is kept. Most often memory runs out there: raise "
            f"gradient_accumulation, or look at Ray's logs on these nodes ({LOGS})"
        )

    def _name(self, rank: int) -> str:
        return name_of(self.ray, self.members[rank]) if rank in self.members else "a node that has not answered yet"

    def _newest(self) -> str | None:
        """The newest checkpoint."""
        return max((path.name for path in (self.work / FOLDER / CHECKPOINTS).glob("step-*")), default=None)

    def _checkpoints(self) -> int:
        return len(list((self.work / FOLDER / CHECKPOINTS).glob("step-*")))


def _in_background(call: Callable[[], Any]) -> "Future[Any]":
    """The call in a thread, which does not keep this process from ending, so that Ctrl-C stays this process's own."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="ray-train", daemon=True).start()
    return future


def _slice_of(nodes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """topology and accelerator_type of a cluster's TPUs, by the labels that Ray gives their nodes."""
    labels: dict[str, str] = next((one["Labels"] for one in nodes if one["Alive"] and one["Resources"].get("TPU")), {})
    found = {"topology": "ray.io/tpu-topology", "accelerator_type": "ray.io/accelerator-type"}
    if missing := [label for label in found.values() if label not in labels]:
        raise ValueError(f"several processes on TPUs need nodes with Ray's labels {', '.join(missing)}; found {labels}")
    return {name: labels[label] for name, label in found.items()}


# On the nodes


def _entry() -> Callable[[dict[str, Any]], bytes]:
    """What Ray Train runs: a function that travels whole, so that a node without this project can say so."""

    def enter(given: dict[str, Any]) -> bytes:
        import importlib
        import os
        import sys

        ray: Any = importlib.import_module("ray")
        root, messages = given["root"], given["messages"]
        try:
            if os.path.isdir(root):
                os.chdir(root)
                sys.path.insert(0, root)
            training = importlib.import_module("cluster.training")
        except Exception as error:
            where = f"node {ray.util.get_node_ip_address()}"
            reason = f"{where} cannot run this project's code: {error}. Every node needs the same environment, and the "
            ray.get(messages.say.remote("raised", (where, f"{reason}project at the same path: {root}", str(error))))
            raise
        returned: bytes = training.take_part(**given)
        return returned

    return enter


def take_part(root: str, device: str, ours: tuple[Any, ...], messages: Any, call: bytes) -> bytes:
    """What the body returns in this process of the group, pickled; what it raises is said to the head before."""
    ray: Any = importlib.import_module("ray")
    where = f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        facts = settle_in(root, device)
        if problem := Ours(*ours).problem_of(facts):
            raise RefusedError(f"{where} {problem}; what is finished is kept")
        device_facts = {key: facts.made_with["device"][key] for key in ("type", "name", "threads")}
        ray.get(messages.say.remote("here", (rank, size, facts.node, device_facts)))  # before the body can end this
        body, arguments = pickle.loads(call)
        with _told(messages, rank, where):
            return pickle.dumps(body(*arguments))
    except Exception as error:
        says = is_ours(error) and not isinstance(error, SupersededError) and travels(error)
        said = (where, pickle.dumps(error) if says else None, traceback.format_exc())
        ray.get(messages.say.remote("raised", said))
        raise RuntimeError(first_line(error)) from None  # a type that Ray's own processes can read


@contextlib.contextmanager
def _told(messages: Any, rank: int, where: str) -> Iterator[None]:
    """Within it the head hears what is logged: all of the first process, and warnings of the others."""
    teller = _Teller(messages, rank, where)
    logging.getLogger().addHandler(teller)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(teller)
        sys.stderr.flush()


class _Teller(logging.Handler):
    """Says to the head what is logged."""

    def __init__(self, messages: Any, rank: int, where: str) -> None:
        super().__init__(logging.INFO if rank == 0 else logging.WARNING)
        self.messages, self.rank, self.where = messages, rank, where

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("ray"):
            said = (self.rank, self.where, record.name, record.levelno, record.getMessage())
            self.messages.say.remote("log", said)
