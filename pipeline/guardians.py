"""A stage under DVC ends when its dvc does; a stage that a person starts ends when they say so."""

import logging
import os
import threading
import time
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between checks of the processes that a stage ends with
DVC_STAGE = "DVC_STAGE"  # DVC sets it for a stage's command
GONE = "the process that started this stage is gone; ending, to be resumed by the next run"


def end_with_dvc() -> None:
    """End this process soon after the dvc that started it: a killed dvc would otherwise leave its child running.

    Linux's parent-death signal is not enough: dvc starts us through a shell, so the parent may outlive dvc, and the
    signal also comes when merely the thread that started us ends.
    Without a dvc nothing is watched: nohup, setsid and tmux do what they are for, and a closed terminal sends SIGHUP.
    A process of torchrun ends with its launcher.
    """
    guardians = _guardians()
    if not guardians:
        return
    if not all(_alive(process) for process in guardians):
        _end()

    def watch() -> None:
        while all(_alive(process) for process in guardians):
            time.sleep(POLL)
        _end()

    threading.Thread(target=watch, name="end-with-dvc", daemon=True).start()


def dvc_of_this_stage() -> psutil.Process | None:
    """The dvc that started this process; None where there is none."""
    ancestors = psutil.Process().parents() if DVC_STAGE in os.environ else []
    return next((process for process in ancestors if _is_dvc(process)), None)


def _end() -> None:
    logger.error(GONE)
    os._exit(1)  # nothing to clean up: a stage can be killed at any moment


def _guardians() -> list[psutil.Process]:
    """Every ancestor up to the dvc that started this stage; the parent where that dvc is not found; else none."""
    if DVC_STAGE not in os.environ and "RANK" not in os.environ:
        return []
    ancestors = psutil.Process().parents()
    dvc = next((index for index, process in enumerate(ancestors) if _is_dvc(process)), None)
    if dvc is not None:
        return list(ancestors[: dvc + 1])
    if DVC_STAGE in os.environ and (not ancestors or ancestors[0].pid == 1):
        _end()  # dvc was killed before the stage could look for it
    return list(ancestors[:1]) if DVC_STAGE in os.environ or "RANK" in os.environ else []


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
