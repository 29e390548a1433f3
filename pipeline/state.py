"""A stage may be killed at any moment and started again: its resume folder, its lock, and when it ends itself.

.state/<stage>-<out>/lock               held while the stage runs, with its pid; <out> with - for /
.state/<stage>-<out>/<identity>/        the work so far of exactly this code, these params and these inputs
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import psutil

logger = logging.getLogger(__name__)

STATE = Path(".state")
POLL = 0.5  # seconds between checks of the parent processes
OUTPUTS = ("runs", "metrics", "report-out")  # folders that the stages write into
ROOT = Path(__file__).parent.parent


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a stage; the text says what is kept, and what the next run does."""


class StateError(click.ClickException):
    """Why a stage cannot start; the command ends with this message and exit code 1."""


def check_outputs(root: Path) -> None:
    """Raises StateError where a folder of outputs is a symbolic link: DVC refuses it only after the stage has run."""
    for name in OUTPUTS:
        if (root / name).is_symlink():
            raise StateError(
                f"{name} is a symbolic link to {(root / name).readlink()}, and DVC refuses outputs behind one; to use a"
                f" larger disk, clone the repository there, or mount it at {name} (mount --bind)"
            )


@contextlib.contextmanager
def stage_state(stage: str, out: Path, params: Any, inputs: Sequence[Path], root: Path = STATE) -> Iterator[Path]:
    """The folder in which a stage may find what a killed run of itself had finished; deleted when the body succeeds.

    out: what the stage will write, which no two runs may do at once. params: all that shapes the output beside the
        inputs, with a repr that tells values apart (frozen dataclasses, dictionaries, tuples). inputs: the files and
        folders that the stage reads.
    Other params, inputs or code mean another folder, and the older ones are deleted. Under torchrun the first process
    does all of this; the others get the folder.
    From here on the process ends when the one that started it does. Raises StateError while another run holds the
    stage, and Interrupted in place of a KeyboardInterrupt.
    """
    home = root / "-".join([stage, *out.parts])
    work = home / identity(params, inputs)
    if os.environ.get("RANK", "0") != "0":
        _end_with_parent()
        yield work
        return
    with _lock(home):
        _end_with_parent()
        for other in home.iterdir():
            if other.is_dir() and other != work:
                shutil.rmtree(other)
        if work.exists():
            logger.info("%s: resuming from %s", home.name, work)
        work.mkdir(exist_ok=True)
        try:
            yield work
        except KeyboardInterrupt:
            raise Interrupted(_what_is_kept(work)) from None
        shutil.rmtree(work)


def _what_is_kept(work: Path) -> str:
    if any(path.is_file() for path in work.rglob("*")):
        return (
            f"Interrupted. What is finished is kept in {work}: run the same command again, and it goes on from there."
        )
    return "Interrupted. Nothing was finished yet: run the same command again, and it starts afresh."


def identity(params: Any, inputs: Sequence[Path]) -> str:
    """Sixteen hex digits that change with the params, the inputs' contents and our code."""
    facts = [repr(params), *(f"{path} {fingerprint(path)}" for path in inputs), code_version()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Hash of what a file or folder holds; a folder of ours is known by the manifest that lists its files.

    A foreign folder (a model) is known by names, sizes and times, which cost nothing to read. What does not exist
    here, such as a model that is a hub id, is known by its name.
    """
    listed = path / "manifest.json"
    if path.is_file() or listed.is_file():
        return hashlib.sha256((listed if path.is_dir() else path).read_bytes()).hexdigest()
    files = [(file.relative_to(path), file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    return repr([(str(name), stat.st_size, stat.st_mtime_ns) for name, stat in files]) if files else str(path)


def packages(root: Path = ROOT) -> list[str]:
    """Names of our packages: the folders at the root with an __init__.py, without the tests."""
    return sorted(path.parent.name for path in root.glob("*/__init__.py") if path.parent.name != "tests")


def code_version(root: Path = ROOT) -> str:
    """Hash of every Python and YAML file of our packages: work that other code began is not continued."""
    digest = hashlib.sha256()
    sources = (path for package in packages(root) for path in (root / package).rglob("*"))
    for path in sorted(path for path in sources if path.suffix in (".py", ".yaml")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Hold the stage. The kernel lets go when the process ends, however it ends; the file itself stays."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StateError(f"{home.name} is already running, pid {file.read().strip() or 'unknown'}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _end_with_parent() -> None:
    """End this process soon after the dvc that started it: a killed dvc would otherwise leave its child running.

    Linux's parent-death signal is not enough: dvc starts us through a shell, so the parent may outlive dvc, and the
    signal also comes when merely the thread that started us ends.
    """
    guardians = _guardians()

    def watch() -> None:
        while all(_alive(process) for process in guardians):
            time.sleep(POLL)
        logger.error("the process that started this stage is gone; ending, to be resumed by the next run")
        os._exit(1)  # nothing to clean up: a stage can be killed at any moment

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _guardians() -> list[psutil.Process]:
    """The parent, and every ancestor up to the dvc that started this stage, if there is one."""
    ancestors = psutil.Process().parents()
    dvc = next((index for index, process in enumerate(ancestors) if _is_dvc(process)), 0)
    return list(ancestors[: dvc + 1])


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline()[:4])
    except psutil.Error:
        return False


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
