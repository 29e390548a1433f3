"""Whether this machine has what a run needs: libraries, device, memory, codecs, a ledger, a git and DVC repository."""

import importlib.metadata
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import yaml

from data.policies import FINISHED
from data.video import read_video, write_video
from feedback.core.database import shared_disk_of
from pipeline.state import StateError, check_outputs

OK, NOTE, BROKEN = "ok", "–", "BROKEN"
PYTHON = (3, 11)
GIB = 2**30
LIBRARIES = (
    "torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "safetensors", "datasets", "pyarrow",
    "av", "dvc", "huggingface_hub", "openai", "google-genai",
)  # fmt: skip
COLOUR_ERROR = {True: 1, False: 12}  # greatest difference of 255 after lossless, and after crf 12 of a smooth picture


class Finding(NamedTuple):
    """One line of what was found."""

    state: str  # OK | NOTE: not needed here | BROKEN
    what: str
    detail: str


def libraries(constraints: Path) -> Iterator[Finding]:
    """Python and the libraries that matter, by the installed metadata: none is imported.

    constraints: file of the versions that were tested together; a difference is a note.
    """
    found = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info[:2] >= PYTHON
    yield Finding(OK if enough else BROKEN, "python", found if enough else f"{found}; at least 3.11 is needed")
    pins = constraints.read_text(encoding="utf-8") if constraints.is_file() else ""
    tested = dict(re.findall(r"^([\w-]+)==(\S+)", pins, re.M))
    for name in LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(BROKEN, name, "not installed: pip install --editable .")
            continue
        same = version.split("+")[0] == tested.get(name, version)
        yield Finding(OK if same else NOTE, name, version if same else f"{version}; tested with {tested[name]}")


def hardware() -> Iterator[Finding]:
    """Processor, memory and disk, without torch."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    yield Finding(OK, "processor", f"{len(os.sched_getaffinity(0))} cores of {os.cpu_count()} for this process")
    yield Finding(OK, "memory", f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}")
    yield Finding(OK, "disk", f"{disk.free / GIB:.1f} GiB free of {disk.total / GIB:.1f}, at {Path.cwd()}")


def cluster() -> Iterator[Finding]:
    """The nodes of the Ray cluster that stages would work on, each with what it has, and what it is refused for."""
    from cluster.nodes import compared_versions
    from cluster.on_ray import survey

    try:
        nodes = survey()
    except ValueError as error:
        yield Finding(BROKEN, "cluster", str(error))
        return
    yield Finding(OK, "token", "asked for on this node")
    here = {name: number for name, number in compared_versions().items() if number} | {
        "ray": importlib.metadata.version("ray")
    }
    yield Finding(OK, "versions", f"here {', '.join(f'{name} {number}' for name, number in here.items())}")
    for node in nodes:
        counted = ", ".join(f"{count:g} {name}" for name, count in node.resources.items()) or "for no work"
        counted += f" ({', '.join(node.accelerators)})" if node.accelerators else ""
        same = "code and versions as here"
        yield Finding(BROKEN if node.problem else OK, f"node {node.address}", f"{counted}; {node.problem or same}")


def accelerator() -> Finding:
    """The device that `auto` means; importing torch takes seconds."""
    try:
        import torch

        from cluster.devices import pick_device

        device = pick_device("auto")
        if device.type == "cpu":
            return Finding(OK, "device", f"cpu: torch {torch.__version__} sees no accelerator")
        free, total = torch.accelerator.get_memory_info(device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        count = torch.accelerator.device_count()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return Finding(BROKEN, "device", f"torch cannot be used: {error}")
    return Finding(OK, "device", f"{count} x {name}, {free / GIB:.1f} GiB free of {total / GIB:.1f} on the first")


def codecs() -> Iterator[Finding]:
    """Whether PyAV's libx264 really writes and reads back a clip, in both ways that clips are written."""
    ramp = np.linspace(30, 220, 16 * 16, dtype=np.uint8).reshape(1, 16, 16, 1)
    frames = ramp.repeat(5, axis=0).repeat(3, axis=3)
    for lossless, name in ((True, "yuv444p, lossless"), (False, "yuv420p, crf 12")):
        what = f"libx264 {name}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                write_video(Path(folder, "clip.mp4"), frames, 8.0, lossless)
                back = read_video(Path(folder, "clip.mp4"))
        except (ValueError, OSError, LookupError) as error:  # PyAV: an unknown codec is a LookupError
            yield Finding(BROKEN, what, f"not written and read back: {error}")
            continue
        if back.shape != frames.shape:
            yield Finding(BROKEN, what, f"{frames.shape} came back as {back.shape}")
            continue
        off = int(np.abs(back.astype(int) - frames).max())
        good = off <= COLOUR_ERROR[lossless]
        yield Finding(OK if good else BROKEN, what, f"{len(back)} frames written and read back within {off} of 255")


def ledger(path: Path, needed: bool) -> Finding:
    """Where judges' answers are kept, and whether they can be. needed: whether params.yaml uses such judges."""
    none_yet = "none yet; it is made at the first call to a judge"
    return _kept(path, "ledger", "answers", "answers", none_yet, BROKEN if needed else NOTE)


def verdicts(path: Path | None) -> Finding:
    """Where verdicts of this machine are kept, and whether they can be. path: None where that is off."""
    if path is None:
        return Finding(NOTE, "verdicts", "not kept: FEEDBACK_VERDICTS is off, so that clips are judged again")
    none_yet = "none yet; it is made when a judge of this machine is loaded"
    return _kept(path, "verdicts", "verdicts", "clips", none_yet, NOTE)


def _kept(path: Path, what: str, table: str, unit: str, none_yet: str, bad: str) -> Finding:
    """An SQLite file of ours. bad: the state where it cannot be used."""
    if disk := shared_disk_of(path):
        variable = f"FEEDBACK_{what.upper()}"
        return Finding(
            bad, what, f"{path}: on a network file system ({disk}); name a file of this machine in {variable}"
        )
    there = path if path.exists() else next(parent for parent in path.parents if parent.exists())
    if not os.access(there, os.W_OK) or not os.access(path.parent if path.exists() else there, os.W_OK):
        return Finding(bad, what, f"{path}: not writable")
    if not path.exists():
        return Finding(OK, what, f"{path}: {none_yet}")
    try:
        opened = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            ((count,),) = opened.execute(f"SELECT COUNT(*) FROM {table}")
        finally:
            opened.close()
    except sqlite3.Error as error:
        return Finding(bad, what, f"{path}: no {what} ({error})")
    return Finding(OK, what, f"{path}: {count} {unit}, writable")


def repository(root: Path) -> Iterator[Finding]:
    """The state of git and of DVC in a folder; neither is changed, and nothing is hashed."""
    yield _git(root)
    if not (root / ".dvc").is_dir():
        yield Finding(BROKEN, "dvc", f"{root}: no .dvc folder; run in the repository, or make one with dvc init")
    elif shutil.which("dvc") is None:
        missing = "the command dvc is not on PATH (make repro finds it): activate the environment"
        yield Finding(NOTE, "dvc", f"{_recorded(root)}; {missing}")
    else:
        yield Finding(OK, "dvc", _recorded(root))
    try:
        check_outputs(root)
    except StateError as error:
        yield Finding(BROKEN, "outputs", error.message)
    work = [path for path in (root / ".state").glob("*/*") if path.is_dir()]
    unfinished = sorted(one.parent.name for one in work if not one.with_name(f"{one.name}{FINISHED}").is_file())
    if unfinished:
        yield Finding(
            NOTE,
            "unfinished",
            f"{', '.join(unfinished)}: the next dvc repro goes on from there, or says what has changed since",
        )


def _git(root: Path) -> Finding:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        commit, branch = git("rev-parse", "--short", "HEAD"), git("rev-parse", "--abbrev-ref", "HEAD")
        changed = len(git("status", "--porcelain").splitlines())
    except (OSError, subprocess.CalledProcessError):
        return Finding(NOTE, "git", f"{root}: no repository with a commit, or no git")
    return Finding(OK, "git", f"{branch} at {commit}, files that differ from it: {changed}")


def _recorded(root: Path) -> str:
    lock = root / "dvc.lock"
    if not lock.is_file():
        return "no dvc.lock: no stage was run here yet"
    stages = (yaml.load(lock.read_text(encoding="utf-8"), yaml.CSafeLoader).get("stages") or {}).values()
    here = sum(all((root / out["path"]).exists() for out in stage.get("outs", [])) for stage in stages)
    return f"{len(stages)} stages recorded in dvc.lock, {here} of them with their results here (see dvc status)"
