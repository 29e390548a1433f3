"""A stage's lock, on one machine or on a disk that several hosts share.

The kernel holds the lock (flock) and lets go when the process ends, however it ends. Where the disk's flock reaches
other hosts (NFS 4, Lustre mounted with `flock`) it decides there too. Where it does not, the file's record does:

    {"pid": 4711, "host": "node3", "boot": "7ba5dee2-…"}    who runs, or ran and was killed; empty after a clean end

Its process touches the file every BEAT seconds. Another host takes a record over when it was not touched for SILENT
looks in a row; it compares the file's times with each other alone, since clocks of hosts differ. A process that finds
another's record in its file was taken for dead, stopped as it was or cut off from the disk, and ends.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil

logger = logging.getLogger(__name__)

LOCK = "lock"  # name of the file
BOOT = Path("/proc/sys/kernel/random/boot_id")  # another one after each start of a kernel, and on each host
BEAT = 5.0  # seconds between two touches
LOOK = 1.0  # seconds between two looks at whether another host's run touches its file
SILENT = 30  # looks in a row that see no touch, after which a run of another host is taken for dead


class HeldError(ValueError):
    """Why the lock cannot be had, and how to go on."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, or held it when it was killed."""

    pid: int
    host: str
    boot: str  # of the kernel that it runs on

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, under this very kernel, whose flock then says whether it is alive."""
        return self.boot == _boot()


def ours() -> Holder:
    """This process."""
    return Holder(os.getpid(), platform.node(), _boot())


def holder_of(path: Path) -> Holder | None:
    """Whom a lock file names; None where its last run ended by itself."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # no file, empty, half written, or of older code
        return None


def is_running(path: Path) -> bool:
    """Whether the process that a lock file names is alive, to show it: of another host by when it touched the file."""
    holder = holder_of(path)
    if holder is None:
        return False
    touched = path.stat().st_mtime
    if not holder.is_here:
        return time.time() - touched < SILENT * LOOK
    try:
        return bool(psutil.Process(holder.pid).create_time() <= touched)  # else another's pid
    except psutil.Error:
        return False


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock. The file itself stays.

    what: is locked, in errors. Raises HeldError where another run holds it, and where the disk has no locks.
    """
    with path.open("a+", encoding="utf-8") as file:
        _flock(file, path, what)
        _wait_for_another_host(path, what)
        me = ours()
        _write(file, json.dumps(asdict(me)))
        try:
            with _touched(path, me, what):
                yield
        finally:
            if holder_of(path) == me:
                _write(file, "")


def _flock(file: TextIO, path: Path, what: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(what, holder_of(path)) from None
    except OSError as error:
        raise HeldError(
            f"{path}: the disk has no locks ({error.strerror}), so that two runs could do the same work at once. Mount "
            "it with them (Lustre: flock), or put .state on another disk"
        ) from error


def _held(what: str, holder: Holder | None) -> HeldError:
    if holder is None or holder.is_here:
        return HeldError(f"{what} is already running, pid {holder.pid if holder else 'unknown'}")
    return HeldError(
        f"{what} is already running on host {holder.host}, pid {holder.pid}. Wait for it; or end it there, and run "
        "this again"
    )


def _wait_for_another_host(path: Path, what: str) -> None:
    """Return when no run of another host works under this lock. Raises HeldError where one does."""
    holder = holder_of(path)
    if holder is None or holder.is_here:
        return
    message = "%s: its last run, on host %s, pid %d, did not end by itself; looking for %g s whether it is alive"
    logger.info(message, what, holder.host, holder.pid, SILENT * LOOK)
    before = _touched_at(path)
    for _ in range(SILENT):  # looks, not seconds: a disk that hangs holds up both hosts
        time.sleep(LOOK)
        if _touched_at(path) != before:
            if holder_of(path) is None:  # it has ended
                return
            raise _held(what, holder_of(path))
    logger.warning("%s: host %s gave no sign of its run; this one goes on with its work", what, holder.host)


def _touched_at(path: Path) -> int:
    with path.open("rb") as file:  # opening it asks a server; a mere stat may be answered from a cache
        return os.fstat(file.fileno()).st_mtime_ns


def _write(file: TextIO, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
    os.fsync(file.fileno())  # for other hosts


@contextlib.contextmanager
def _touched(path: Path, me: Holder, what: str) -> Iterator[None]:
    """Touch the file within it; end this process where the file names another one."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            other = holder_of(path)
            if other not in (None, me):
                logger.error("%s was taken over, since this run gave no sign for long; ending: %s", what, other)
                os._exit(1)  # nothing to clean up: a stage can be killed at any moment
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _boot() -> str:
    """What tells kernels apart; the name of the host where there is nothing better."""
    with contextlib.suppress(OSError):
        return BOOT.read_text().strip()
    return platform.node()
