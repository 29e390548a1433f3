"""What a training run leaves behind as it goes: its log, its checkpoints, and the state to resume from.

The state is one safetensors file, no pickle. Random draws are functions of the step (rl.batches), so parameters,
optimizer moments and the step are all of it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import Parameter

from data.manifest import MANIFEST, atomically

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"
CHECKPOINTS = "checkpoints"


class ResumeError(ValueError):
    """A resume state that does not belong to this run."""


def write_state(
    folder: Path,
    step: int,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> None:
    """Write the state after `step` steps, replacing the last one; a kill leaves the old or the new, whole.

    identity: flat JSON facts that a run must share to resume from it.
    """
    tensors = {f"parameter/{name}": parameter.detach() for name, parameter in parameters.items()}
    moments = optimizer.state_dict()["state"]
    for index, name in enumerate(parameters):
        for key, value in moments.get(index, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    # One metadata entry: safetensors writes several in random order.
    state = json.dumps({"step": step, "identity": identity}, sort_keys=True)
    with atomically(folder / STATE_FILE) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, metadata={"state": state})


def read_state(folder: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Restore parameters and optimizer from a folder's state; returns how many steps it has behind it.

    Raises ResumeError naming parameters that only one of state and run has.
    """
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no dict)
    found = {key.removeprefix("parameter/") for key in tensors if key.startswith("parameter/")}
    if found != set(parameters):
        differing = sorted(found ^ set(parameters))
        raise ResumeError(f"{folder / STATE_FILE}: {len(differing)} parameters differ, such as {differing[0]}")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for index, (name, parameter) in enumerate(parameters.items()):
            parameter.copy_(tensors[f"parameter/{name}"])
            prefix = f"optimizer/{name}/"
            moments[index] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {i: m for i, m in moments.items() if m}})
    return steps_done(folder)


def steps_done(folder: Path) -> int:
    """How many steps the folder's state has behind it."""
    return _facts(folder)["step"]


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises ResumeError naming the first key in which the folder's state is of another run."""
    found, wanted = _facts(folder)["identity"], json.loads(json.dumps(identity))
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            raise ResumeError(
                f"{folder / STATE_FILE}: {key} was {found.get(key)!r} when this state was written and is"
                f" {wanted.get(key)!r} now; set it back, or start afresh without this state"
            )


def _facts(folder: Path) -> dict[str, Any]:
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        return json.loads(file.metadata()["state"])


# The policy folder in the making: log.jsonl and checkpoints/step-000100/...


def name_of(step: int) -> str:
    """Folder name of the checkpoint after that many steps."""
    return f"step-{step:06d}"


def append_log(folder: Path, line: Mapping[str, Any]) -> None:
    """Add a line to log.jsonl, on disk before this returns: the state must never be ahead of the log."""
    with open(folder / LOG_FILE, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last one torn by a kill is left out."""
    path = folder / LOG_FILE
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def is_whole(folder: Path, done: int, checkpoint_every: int) -> bool:
    """Whether the folder has every checkpoint that a run writes in its first `done` steps."""
    written = range(checkpoint_every, done + 1, checkpoint_every)
    return all((folder / CHECKPOINTS / name_of(step)).is_dir() for step in written)


def keep_until(folder: Path, done: int) -> None:
    """Drop from the folder whatever a killed run wrote after its first `done` steps; at 0, all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = range(done + 1) if done else range(0)
    kept = {LOG_FILE, CHECKPOINTS} | {name_of(step) for step in steps}
    for path in [*folder.iterdir(), *(folder / CHECKPOINTS).glob("*")]:
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = [line for line in read_log(folder) if line["step"] in steps]
    with atomically(folder / LOG_FILE) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Checkpoint(NamedTuple):
    """A trained policy as it was after some step; the folder is a policy of its own."""

    name: str  # step-000100
    step: int
    folder: Path


def candidates(policy: Path) -> list[Checkpoint]:
    """A finished policy after each step that it was kept at, the first step first, its last step last.

    Raises ValueError for a folder that is no trained policy, and for one kept at a single step, where nothing is to
    be chosen.
    """
    path = policy / "policy.json"
    last = json.loads(path.read_text(encoding="utf-8")).get("step") if path.is_file() else None
    if last is None:
        raise ValueError(f"{policy}: not a trained policy, so it has no checkpoints")
    folders = {int(folder.name.removeprefix("step-")): folder for folder in (policy / CHECKPOINTS).glob("step-*")}
    found = [Checkpoint(name_of(step), step, folder) for step, folder in sorted(({last: policy} | folders).items())]
    if len(found) == 1:
        raise ValueError(
            f"{policy}: kept at step {last} alone, so there is nothing to choose from; lower "
            f"checkpoint_every in the section train"
        )
    return found


def copy_policy(folder: Path, out: Path) -> None:
    """Copy what makes a folder a policy, without the run's log, checkpoints and manifest."""
    shutil.copytree(folder, out, ignore=lambda _, names: {LOG_FILE, CHECKPOINTS, MANIFEST} & set(names))
