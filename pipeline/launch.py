"""On which machines, and as how many processes, a stage trains: this machine's own, or those of a Ray cluster."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cluster.pool import ENGINES, HERE
from data.pace import hold

ResultT = TypeVar("ResultT")


class Launch(NamedTuple):
    """The options of a stage that trains. All change no result, or its last digits alone."""

    engine: str  # of cluster.pool.ENGINES
    processes: str  # auto, a number, or of engine ray a range such as 4-16
    device: str  # as cluster.devices.pick_device takes it

    def begin(self) -> None:
        """Become torchrun where several processes of this machine are to train; before the stage takes its lock.

        Raises ValueError for options that are wrong, or that this machine or cluster cannot serve.
        """
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is unknown; known: {', '.join(ENGINES)}")
        if self.engine == HERE:
            from cluster.devices import pick_device, relaunch

            relaunch(self.processes, pick_device(self.device))
        else:
            from cluster.nodes import connected

            connected()

    def run(self, body: Callable[..., ResultT], job: Any, work: Path) -> ResultT:
        """What `body(job, work, device)` returns in its first process, or in this one of torchrun's.

        body: a function of a module of ours, which trains by `rl.training.run`. job: of classes that can be pickled.
        work: the stage's resume state.
        """
        if self.engine == HERE:
            from cluster.devices import pick_device

            processes = int(os.environ.get("WORLD_SIZE", "1"))
            on_accelerators = pick_device(self.device).type != "cpu"
            hold(lambda: processes if on_accelerators else 0)
            return body(job, work, self.device)
        from cluster.training import together

        returned: ResultT = together(body, (job, work, self.device), self.processes, self.device, work)
        return returned
