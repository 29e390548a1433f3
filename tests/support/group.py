"""Training runs on the processes of one group, for tests: started once, because they take seconds to import torch."""

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.store import ClipSet
from generators.core.load import load_generator
from generators.core.size import VideoSize
from rl.training.run import TrainingRun
from tests.support import online, training
from tests.support.children import start as start_child
from tests.support.tiny import load_wan


class Run(NamedTuple):
    """A run of the loop over clips or, without an objective, of the online loop, which publishes home/out."""

    home: Path
    generator: Path
    start: Path
    objective: str | None = None
    clips: Path | None = None
    changes: dict[str, Any] = {}
    weights: Sequence[float] = ()  # of the rows in the place of those that they have
    family: tuple[str, int, int] | None = None  # of a generator that is no tiny Wan: name, frames and side
    stops: bool = False  # whether it ends before it publishes, as if killed
    on_node: int | None = None  # processes that are said to be on each node; None: all


class Killed(BaseException):
    """Stands for a kill, of all processes at one moment."""


def run_together(processes: int, runs: Sequence[Run]) -> None:
    """Do these runs one after the other on so many processes, and fail where one of them does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [str(rank) for rank in range(processes)]
    children = [start_child(_all, runs, RANK=rank, LOCAL_RANK=rank, **group) for rank in ranks]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * processes


def run_alone(one: Run) -> None:
    """Do a run on this process."""
    os.environ.pop("LOCAL_WORLD_SIZE", None)
    if one.on_node:
        os.environ["LOCAL_WORLD_SIZE"] = str(one.on_node)
    finish = TrainingRun.finish
    if one.stops:
        TrainingRun.finish = _killed
    try:
        _do(one)
    except Killed:
        pass
    finally:
        TrainingRun.finish = finish


def _all(runs: Sequence[Run]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    for one in runs:
        run_alone(one)


def _killed(*_: Any, **__: Any) -> None:
    raise Killed


def _do(one: Run) -> None:
    if one.objective is None:
        online.run(one.generator, one.start, one.home, **one.changes)
        return
    assert one.clips is not None
    clip_set = ClipSet.open(one.clips)
    rows = training.rows(one.objective, clip_set)
    if one.weights:
        rows = [replace(row, weight=weight) for row, weight in zip(rows, one.weights, strict=True)]
    training.run(one.objective, _loaded(one), clip_set, one.start, one.home, table=rows, **one.changes)


def _loaded(one: Run):
    parts = ("denoiser", "vae") if "preview" in one.changes else ("denoiser",)
    if one.family is None:
        return load_wan(one.generator, max_prompt_tokens=6, parts=parts)
    name, frames, side = one.family
    size = VideoSize(frames, side, side, 8)
    return load_generator(name, str(one.generator), size, max_prompt_tokens=6, parts=parts)
