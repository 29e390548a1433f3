"""Which start of a run may write: on a cluster, a process that was given up may work on unseen.

    <work>/.generation    <number> <word>

The first process of each start raises the number, and looks before each of its writes whether it is still the newest.
The word is its own, so that of two that start at once the last one to write holds the folder.
"""

import uuid
from pathlib import Path
from typing import NamedTuple

from cluster.training import SupersededError
from data.manifest import atomically

FILE = ".generation"  # in the folder of the resume state, and no part of it


class Generation(NamedTuple):
    """A start of a run, as its first process holds it."""

    path: Path
    held: str  # what the file said when this process had written it

    def check(self) -> None:
        """Raises SupersededError where a later start holds the folder, or the folder is gone with its run."""
        found = _read(self.path)
        if found != self.held:
            newer = f"start {found.partition(' ')[0]} of it holds the folder" if found else "its folder is gone"
            raise SupersededError(
                f"{self.path.parent}: this process is of start {self.held.partition(' ')[0]} of the run, and {newer}; "
                "it has written nothing since, and ends"
            )


def take(work: Path) -> Generation:
    """Hold `work` from here on; whoever held it may write no more."""
    path = work / FILE
    held = f"{int(_read(path).partition(' ')[0] or 0) + 1} {uuid.uuid4().hex}"
    with atomically(path) as partial:
        partial.write_text(held, encoding="utf-8")
    return Generation(path, held)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
