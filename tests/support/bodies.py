"""What processes of a cluster do in tests of how they end; without the imports of training."""

import os
import signal
import time
from pathlib import Path

from cluster.training import SupersededError


def refuse(folder: Path) -> None:
    """An error of ours; the folder counts the calls."""
    (folder / f"seen-{os.environ['RANK']}-{time.time_ns()}").write_text("")
    raise ValueError("train.common.steps: found 0")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def give_way_once(folder: Path) -> str:
    """The first call in the folder is superseded; the second one returns."""
    seen = folder / "seen"
    if not seen.exists():
        seen.write_text("")
        raise SupersededError("another start holds the folder")
    return "done"
