"""Several workers on the CPU: forks of this process, each on one core, that share the models it has loaded.

Small operations gain nothing from a second thread, and several processes do. The first unit is done in this process:
it loads the models, and tells by torch's threads whether a worker would leave cores idle (cluster.devices.fit_threads).
"""

import os
import pickle
import signal
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from cluster.pool import DataT, Here, Make, ResultT, Unit, Worker

POLL = 0.1  # seconds between a worker's looks at whether its parent is alive

_worker: Worker[Any, Any] | None = None  # of a forked process


class Forks:
    """Units are done by this process and by forks of it.

    workers: how many forks; None: as many as keep every core busy.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self._here = Here()
        self._forked = 0

    def run(
        self, make: Make[DataT, ResultT], units: Sequence[Unit[DataT]]
    ) -> Generator[tuple[int, ResultT], None, None]:
        """As the protocol says. Raises ChildProcessError where a fork is killed, such as for want of memory."""
        yield from self._here.run(make, units[:1])
        rest = units[1:]
        self._forked = count = min(len(rest), self.workers or _idle_cores())
        if count < 2:
            yield from self._here.run(make, rest)
        else:
            yield from _forked(self._here.worker, rest, count)

    def status(self) -> dict[str, Any]:
        """How many forks there are."""
        return {"workers": self._forked} if self._forked > 1 else {}

    def release(self) -> None:
        """As the protocol says."""
        self._here.release()


def _idle_cores() -> int:
    """How many workers keep the cores busy that this process may use."""
    return len(os.sched_getaffinity(0)) // torch.get_num_threads()


def _forked(
    worker: Worker[DataT, ResultT], units: Sequence[Unit[DataT]], count: int
) -> Generator[tuple[int, ResultT], None, None]:
    waiting = iter(units)
    running: dict[Future[bytes], Unit[DataT]] = {}
    begin = partial(_begin, worker, os.getpid())  # a fork gets it as it is, without pickling
    with ProcessPoolExecutor(count, get_context("fork"), begin) as executor:
        try:
            while True:
                for unit in waiting:
                    running[executor.submit(_work, unit.data)] = unit
                    if len(running) > count:  # one more than there are workers, so that none waits for this process
                        break
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    unit = running.pop(future)
                    yield unit.number, _result(future, unit)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _result(future: "Future[bytes]", unit: Unit[Any]) -> Any:
    try:
        return pickle.loads(future.result())
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"a worker was killed while {unit.what} or a unit beside it was made, most likely because memory was "
            "short. Finished units are kept; STAGE_WORKERS=1 needs least memory"
        ) from error


def _begin(worker: Worker[Any, Any], parent: int) -> None:
    """Make a fork ready: it ends with its parent, which alone listens to Ctrl-C."""
    global _worker
    _worker = worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def _work(data: Any) -> bytes:
    """Pickled here: torch would pass its tensors through shared memory, which a container may have little of."""
    assert _worker is not None
    return pickle.dumps(_worker.work(data), pickle.HIGHEST_PROTOCOL)
