"""Checkpoints that are published as pickles: read without running code, and converted once to safetensors."""

import fcntl
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import torch

from data.manifest import StoreError, publish, read_manifest, write_manifest

logger = logging.getLogger(__name__)


def converted(kind: str, key: str, convert: Callable[[Path], None], cache: Path | None = None) -> Path:
    """The folder that `convert` writes for a checkpoint, made on first use.

    kind: of checkpoint. key: identifies the checkpoint, such as its sha256. convert: writes the folder it is given.
    cache: folder of the copies, each under its key; None: `kind` in the user's cache folder.
    A kill never leaves a partial copy, a damaged copy is made again, and of two processes only one converts.
    """
    cache = cache or platformdirs.user_cache_path("video-feedback-rl") / kind
    cache.mkdir(parents=True, exist_ok=True)
    out, work = cache / key, cache / f".{key}.partial"
    with (cache / f".{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(out, kind):
            logger.info("converting a checkpoint of kind %s, once, to %s", kind, out)
            shutil.rmtree(work, ignore_errors=True)  # left by a killed run
            convert(work)
            write_manifest(work, kind, checkpoint=key)
            publish(work, out)
            shutil.rmtree(work)
    return out


def read_pickle(checkpoint: Path) -> Any:
    """What torch.save wrote. Never runs code from the pickle.

    Raises ValueError if there is any, or if the file is not a pickle.
    """
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{checkpoint}: damaged, or contains more than plain tensors, which is refused: {cause}"
        ) from error


def _is_whole(folder: Path, kind: str) -> bool:
    try:
        read_manifest(folder, kind)
    except StoreError:
        return False
    return True
