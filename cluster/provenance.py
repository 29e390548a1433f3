"""What a policy is made with, beside what it is made from: the code, the libraries, the device.

Nothing here tells when or where on a disk it ran, so the same machine and commit give the same bytes.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cluster.devices import world_size
from data.version import version

ROOT = Path(__file__).parent.parent
LIBRARIES = ("diffusers", "transformers", "peft")
WRITTEN = ("dvc.lock", "metrics")  # tracked by git, and written by every run


def made_with(device: torch.device, root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """code, versions and device, as policy.json holds them; plain JSON."""
    return {"code": code(root), "versions": versions(), "device": describe_device(device)}


def code(root: Path = ROOT) -> dict[str, Any]:
    """The commit of the repository `root`, and which of its files differ from it.

    changed: tracked files, and Python files that git does not know; what a run itself writes does not count. Both are
    None where there is no git or no repository.
    """
    prefix = _git(root, "rev-parse", "--show-prefix")  # not empty where the repository is one around `root`
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    if commit is None or status is None or (prefix or "").strip():
        return {"commit": None, "changed": None}
    found = ((line[:2], line[3:]) for line in status.split("\0") if line)
    counted = (path for kind, path in found if kind != "??" or path.endswith(".py"))
    return {"commit": commit.strip(), "changed": sorted(path for path in counted if not _is_written(path))}


def code_hash(root: Path = ROOT) -> str:
    """Sixteen hex digits of the Python and YAML files of the packages in `root`; the tests do not count."""
    folders = sorted(path.parent for path in root.glob("*/__init__.py") if path.parent.name != "tests")
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".yaml")]
    listed = ((path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256("\n".join(map(" ".join, listed)).encode()).hexdigest()[:16]


def versions() -> dict[str, str | None]:
    """Versions of this project, of Python and of the libraries that compute; None for one that is not installed."""
    ours = {"video-feedback-rl": version(), "python": platform.python_version()}
    return ours | {"torch": str(torch.__version__)} | {name: _version(name) for name in LIBRARIES}


def describe_device(device: torch.device) -> dict[str, Any]:
    """type and name of a device, the number of processes that train together, and each one's CPU threads."""
    return {
        "type": device.type,
        "name": _cpu_name() if device.type == "cpu" else _accelerator_name(device),
        "processes": world_size(),
        "threads": torch.get_num_threads(),
    }


def differences(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What of `now` is not as `before`, in the same form; empty where all is equal."""
    found = {part: {k: v for k, v in facts.items() if before.get(part, {}).get(k) != v} for part, facts in now.items()}
    return {part: facts for part, facts in found.items() if facts}


def in_words(before: Mapping[str, Mapping[str, Any]], differing: Mapping[str, Mapping[str, Any]]) -> str:
    """Each value of `differing`, from `differences`, beside the one before; empty where there is none."""
    each = (
        f"{k} {v} (was {before.get(part, {}).get(k)})" for part, facts in differing.items() for k, v in facts.items()
    )
    return ", ".join(each)


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None where it fails."""
    # Without the lock a status in a run never disturbs a person's own git command.
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, env=environment)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _is_written(path: str) -> bool:
    return any(Path(path).is_relative_to(written) for written in WRITTEN)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """The model of the CPU, and the vector instructions that torch uses on it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def _accelerator_name(device: torch.device) -> str | None:
    """What the device's own backend calls it; None where it has no name."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return None if named is None else str(named(device))
