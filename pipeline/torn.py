"""The two files that DVC writes in place: a dvc that is killed meanwhile leaves half of one, which the next refuses."""

import contextlib
import fcntl
import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from data.manifest import atomically
from pipeline.saved import LOCK

logger = logging.getLogger(__name__)

READERS = "rwlock"  # in .dvc/tmp: which running dvc reads and writes what; readers is DVC's name for them
GUARDS = ("lock", "rwlock.lock")  # in .dvc/tmp: held by a dvc while it writes one of the files


def mend(root: Path = Path()) -> None:
    """Mend what a killed dvc left torn, with a warning that says so; nothing where all is whole, or while a dvc writes.

    A torn list of readers and writers is removed: a later dvc ignores the entries of dead processes anyway. A torn
    dvc.lock is moved to dvc.lock.torn, and git's version takes its place, if there is one; finished stages that it
    lacks come back from DVC's cache.
    """
    with _no_dvc_writes(root / ".dvc/tmp") as free:
        if not free:
            return
        readers, lock = root / ".dvc/tmp" / READERS, root / LOCK
        if readers.is_file() and not _is_json(readers):
            readers.unlink()
            logger.warning("%s: removed; dvc was killed while it wrote this list of what it uses", readers)
        if lock.is_file() and not _is_whole(lock):
            torn, committed = lock.rename(f"{lock}.torn"), _committed(root)
            if committed:
                with atomically(lock) as partial:
                    partial.write_bytes(committed)
            logger.warning(
                "%s: dvc was killed while it wrote this file; moved to %s, and %s. `dvc repro` restores finished "
                "stages from DVC's cache",
                lock, torn, "git's version takes its place" if committed else "git has no version of it",
            )  # fmt: skip


@contextlib.contextmanager
def _no_dvc_writes(folder: Path) -> Iterator[bool]:
    """Whether no dvc holds a guard; within it none can take one."""
    with contextlib.ExitStack() as stack:
        try:
            for name in GUARDS if folder.is_dir() else ():
                fcntl.flock(stack.enter_context((folder / name).open("a")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _is_whole(lock: Path) -> bool:
    """Whether DVC can read it. One that is cut between two stages counts: DVC takes the others for not run."""
    try:
        document = yaml.load(lock.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return "schema" in document and all(_is_entry(one) for one in (document.get("stages") or {}).values())
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError):
        return False


def _is_entry(stage: object) -> bool:
    """Whether it is a stage of dvc.lock, with each file's path."""
    if not isinstance(stage, dict) or "cmd" not in stage:
        return False
    files = [file for kind in ("deps", "outs") for file in stage.get(kind) or []]
    return all(isinstance(file, dict) and isinstance(file.get("path"), str) for file in files)


def _committed(root: Path) -> bytes | None:
    """The file as git's last commit has it; None where it has none."""
    command = ["git", "-C", str(root), "show", f"HEAD:./{LOCK}"]
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
