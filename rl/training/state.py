"""The state from which a killed training run resumes: one safetensors file, no pickle.

Random draws are functions of the step (rl.training.batches), so parameters,
optimizer moments and the step are all of it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import Parameter

from data.manifest import atomically

STATE_FILE = "state.safetensors"


class ResumeError(ValueError):
    """A resume state that does not belong to this run."""


def write_state(
    folder: Path,
    step: int,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    made_with: Sequence[Mapping[str, Any]],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the state after `step` steps, replacing the last one; a kill leaves the old or the new, whole.

    identity: flat JSON facts that a run must share to resume from it. made_with: what the steps so far were made with.
    check: called when all is written, before it takes the place of the last state; what it raises leaves that one.
    """
    tensors = {f"parameter/{name}": parameter.detach() for name, parameter in parameters.items()}
    moments = optimizer.state_dict()["state"]
    for index, name in enumerate(parameters):
        for key, value in moments.get(index, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    # One metadata entry: safetensors writes several in random order.
    state = json.dumps({"step": step, "identity": identity, "made_with": made_with}, sort_keys=True)
    with atomically(folder / STATE_FILE) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, metadata={"state": state})
        check()


def read_state(folder: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Restore parameters and optimizer from a folder's state; returns the number of steps done.

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
    """The number of steps before the folder's state."""
    return int(_facts(folder)["step"])


def steps_made_with(folder: Path) -> list[dict[str, Any]]:
    """What the steps before the folder's state were made with, as it was written."""
    return list(_facts(folder)["made_with"])


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
        facts: dict[str, Any] = json.loads(file.metadata()["state"])
    return facts
