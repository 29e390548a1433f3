"""A policy's folder: its log, its checkpoints, and how both are kept whole when a run is killed.

log.jsonl                     a line for each logged step
checkpoints/step-000100/ …    each a policy of its own
previews/step-000100.png …    clips of the policy as it was then, where previews are on
heatmaps/step-000100.png …    where the judges looked then, of a policy that is checked between online updates

policy.json of an online policy says under `sampling` how the clips of its updates were sampled:

shift                         of the flow's time; null: the generator's own
unconditional                 who predicts without the prompt, for guidance: policy | base, adapters off; null: policy
unconditional_scale           what that prediction is multiplied by: one | projected (CFG-Zero*); null: one
steps, guidance, solver, negative_prompt     guidance: a range [low, high] where it was drawn for each update
inference_steps               of full samples

The first three belong to the policy: its clips are sampled so, and policies that start from it have them too.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest import MANIFEST, atomically

LOG_FILE = "log.jsonl"
CHECKPOINTS = "checkpoints"
PREVIEWS = "previews"
HEATMAPS = "heatmaps"
SAMPLED = "sampling"  # key of policy.json
OF_POLICY = ("shift", "unconditional", "unconditional_scale")  # those of its keys that belong to the policy
BASE = "base"  # value of unconditional
PROJECTED = "projected"  # value of unconditional_scale
FOLDER = "policy"  # in the resume state of a run that trains, the folder that becomes the policy
PROGRESS = (
    "progress.json"  # beside it, how far and how fast the run is: unit, steps, done; since its start now, seconds
)
FINISHED = ".finished"  # suffix of the note beside a stage's work whose result is published


def name_of(step: int) -> str:
    """Folder name of the checkpoint after that many steps."""
    return f"step-{step:06d}"


def preview_of(folder: Path, step: int) -> Path:
    """The picture of a policy's clips after that many steps."""
    return folder / PREVIEWS / f"{name_of(step)}.png"


def previews_in(folder: Path) -> dict[int, Path]:
    """A policy's pictures by their steps."""
    return {int(path.stem.removeprefix("step-")): path for path in (folder / PREVIEWS).glob("step-*.png")}


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


def numbers(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a log line, those within mappings under names such as held_out/training; no nulls, no text."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{key}"] = value
    return found


def is_whole(folder: Path, done: int, checkpoint_every: int) -> bool:
    """Whether the folder has every checkpoint that a run writes in its first `done` steps."""
    written = range(checkpoint_every, done + 1, checkpoint_every)
    return all((folder / CHECKPOINTS / name_of(step)).is_dir() for step in written)


def keep_until(folder: Path, done: int) -> None:
    """Drop from the folder whatever a killed run wrote after its first `done` steps; at 0, all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = range(done + 1) if done else range(0)
    kept = {LOG_FILE, CHECKPOINTS, PREVIEWS} | {name_of(step) for step in steps}
    kept |= {preview_of(folder, step).name for step in steps}
    for path in [*folder.iterdir(), *(folder / CHECKPOINTS).glob("*"), *(folder / PREVIEWS).glob("*")]:
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = [line for line in read_log(folder) if line["step"] in steps]
    with atomically(folder / LOG_FILE) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))


class PolicyCheckpoint(NamedTuple):
    """A trained policy as it was after some step; the folder is a policy of its own."""

    name: str  # step-000100
    step: int
    folder: Path


def candidates(policy: Path) -> list[PolicyCheckpoint]:
    """A finished policy after each step that it was kept at, the first step first, its last step last.

    Raises ValueError for a folder that is no trained policy, and for one kept at a single step, where nothing is to
    be chosen.
    """
    path = policy / "policy.json"
    last = json.loads(path.read_text(encoding="utf-8")).get("step") if path.is_file() else None
    if last is None:
        raise ValueError(f"{policy}: not a trained policy, so it has no checkpoints")
    folders = {int(folder.name.removeprefix("step-")): folder for folder in (policy / CHECKPOINTS).glob("step-*")}
    found = [
        PolicyCheckpoint(name_of(step), step, folder) for step, folder in sorted(({last: policy} | folders).items())
    ]
    if len(found) == 1:
        raise ValueError(
            f"{policy}: kept at step {last} alone, so there is nothing to choose from; lower "
            f"checkpoint_every in the section train"
        )
    return found


def copy_policy(folder: Path, out: Path) -> None:
    """Copy what makes a folder a policy, without the run's log, checkpoints, pictures and manifest."""
    of_run = {LOG_FILE, CHECKPOINTS, PREVIEWS, HEATMAPS, MANIFEST}
    shutil.copytree(folder, out, ignore=lambda _, names: of_run & set(names))


def sampled_with(folder: Path) -> dict[str, Any]:
    """How the clips of a policy's updates were sampled, as its policy.json says; empty where it does not say.

    Of a policy that was trained on a round and starts from an online one: what belongs to the policy alone.
    """
    path = folder / "policy.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Any] = facts.get(SAMPLED) or {}
    return found


def sampled_otherwise(trained: Mapping[str, Any], steps: int, guidance: float, negative_prompt: str | None) -> str:
    """In words, how sampling differs from that of a policy's updates; "" where it does not.

    trained: as `sampled_with` returns it. Not the keys of OF_POLICY, which hold wherever it is sampled.
    """
    if "guidance" not in trained:
        return ""
    known = dict.fromkeys((trained["steps"], trained["inference_steps"]))
    unwanted, found = trained["negative_prompt"], list[str]()
    scales = trained["guidance"] if isinstance(trained["guidance"], list | tuple) else [trained["guidance"]]
    if not min(scales) <= guidance <= max(scales):
        found.append(f"guidance {guidance:g} (in training {' to '.join(f'{scale:g}' for scale in scales)})")
    elif guidance > 1 and negative_prompt != unwanted:  # without guidance it leads away from nothing
        words = ["of the pipeline" if text is None else repr(text) for text in (negative_prompt, unwanted)]
        found.append(f"negative prompt {words[0]} (in training {words[1]})")
    if steps not in known:
        found.append(f"{steps} steps (in training {' or '.join(map(str, known))})")
    return ", ".join(found)


def off_policy(name: str, policy: str, start: str) -> str:
    """The warning of a round whose clips are not those of the policy that training starts from."""
    return f"the clips of {name} are off-policy: {policy} sampled them, and training starts from {start}"
