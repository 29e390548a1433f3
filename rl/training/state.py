"""The state from which a killed training run resumes, in safetensors, no pickle.

    state.safetensors              of parameters that are whole on every process
    state-000500/                  of shards: a file of each process that wrote it, and facts.json. Any number of
                                   processes reads it, also one alone

Random draws are functions of the step (rl.training.batches), so parameters,
optimizer moments and the step are all of it.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed
from torch.nn import Parameter

from cluster import devices
from data.manifest import atomically

STATE_FILE = "state.safetensors"
SHARDS, FACTS = "state-{:06d}", "facts.json"
WRITTEN = "state-" + 6 * "[0-9]"  # of SHARDS, whole


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
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps, replacing the last one; a kill leaves the old or the new, whole.

    identity: flat JSON facts that a run must share to resume from it. made_with: what the steps so far were made with.
    check: called when all is written, before it takes the place of the last state; what it raises leaves that one.
    counts: of the steps so far, as JSON; None where they are not known.
    """
    tensors = {f"parameter/{name}": parameter.detach() for name, parameter in parameters.items()}
    moments = optimizer.state_dict()["state"]
    for index, name in enumerate(parameters):
        for key, value in moments.get(index, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    # One metadata entry: safetensors writes several in random order.
    facts = {"step": step, "identity": identity, "made_with": made_with, "counts": counts}
    state = json.dumps(facts, sort_keys=True)
    with atomically(folder / STATE_FILE) as partial:
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, partial, metadata={"state": state})
        check()


def read_state(folder: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Restore parameters and optimizer from a folder's state; returns the number of steps done.

    Of shards, every process calls it. Raises ResumeError naming parameters that only one of state and run has.
    """
    if path_of(folder).is_dir():
        _read_shards(path_of(folder), parameters, optimizer)
        return steps_done(folder)
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


def write_shards(
    folder: Path,
    step: int,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    made_with: Sequence[Mapping[str, Any]],
    check: Callable[[], None] = lambda: None,
    counts: Mapping[str, Any] | None = None,
) -> None:
    """As `write_state`, of parameters that are shards, each process its own; every process calls it.

    check: called on the first process when all is written, before it takes the place of the last state.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    path = folder / SHARDS.format(step)
    word = devices.gather_over_ranks(uuid.uuid4().hex)[0]  # so that two starts of a run never write one folder
    partial = path.with_name(f"{path.name}.{word}.partial")
    if devices.rank() == 0:
        for old in folder.glob("state-*.partial"):
            shutil.rmtree(old)
        partial.mkdir(parents=True)
    devices.barrier()
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    alone = not distributed.is_initialized()
    save(_tensors(parameters, optimizer), storage_writer=writer, no_dist=alone)
    devices.barrier()
    if devices.rank() == 0:
        facts = {"step": step, "identity": identity, "made_with": made_with, "counts": counts}
        with atomically(partial / FACTS) as file:
            file.write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")
        check()
        partial.rename(path)
        for old in folder.glob(WRITTEN):
            if old != path:
                shutil.rmtree(old)
    devices.barrier()


def _read_shards(path: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Restore parameters and optimizer from what `write_shards` wrote."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors = _tensors(parameters, optimizer)
    reader = HuggingFaceStorageReader(str(path))
    load(tensors, storage_reader=reader, no_dist=not distributed.is_initialized())
    for name, parameter in parameters.items():
        for key in optimizer.state[parameter]:
            optimizer.state[parameter][key] = tensors[f"optimizer/{name}/{key}"]


def _tensors(parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Parameters and moments, of which this process has its shards; the moments are zeros before the first step."""
    tensors = {f"parameter/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        moments = optimizer.state[parameter]
        if not moments:
            where = parameter.device if optimizer.defaults["fused"] else "cpu"
            moments["step"] = torch.zeros((), device=where)
            moments["exp_avg"] = torch.zeros_like(parameter.detach())
            moments["exp_avg_sq"] = torch.zeros_like(parameter.detach())
        tensors |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
    return tensors


def is_there(folder: Path) -> bool:
    """Whether the folder has a state."""
    return path_of(folder).exists()


def path_of(folder: Path) -> Path:
    """The folder's state: of shards the newest whole one, else the file, which may be missing."""
    return max(folder.glob(WRITTEN), default=folder / STATE_FILE)


def steps_done(folder: Path) -> int:
    """The number of steps before the folder's state."""
    return int(_facts(folder)["step"])


def steps_made_with(folder: Path) -> list[dict[str, Any]]:
    """What the steps before the folder's state were made with, as it was written."""
    return list(_facts(folder)["made_with"])


def steps_counted(folder: Path) -> dict[str, Any] | None:
    """The counts of the steps before the folder's state, as they were written; None where it has none."""
    counts: dict[str, Any] | None = _facts(folder).get("counts")
    return counts


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises ResumeError naming the first key in which the folder's state is of another run."""
    found, wanted = _facts(folder)["identity"], json.loads(json.dumps(identity))
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            raise ResumeError(
                f"{path_of(folder)}: {key} was {found.get(key)!r} when this state was written and is"
                f" {wanted.get(key)!r} now; set it back, or start afresh without this state"
            )


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any]
    if path_of(folder).is_dir():
        facts = json.loads((path_of(folder) / FACTS).read_text(encoding="utf-8"))
        return facts
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        facts = json.loads(file.metadata()["state"])
    return facts
