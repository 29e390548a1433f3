"""Clips as any browser plays them, for pages that are opened from disk."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

import av
import numpy as np

import data.video
from data.records import Sample
from data.video import LOSSLESS_UP_TO, read_video, write_video

logger = logging.getLogger(__name__)

ENLARGED = 2  # times, of clips that are stored without loss of colour


class PlayableCopies:
    """A folder of clips that were encoded for a page before, by the hash of what they were made from.

    It keeps what one page uses: `prune` deletes the rest. For any thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[Path] = set()
        code = b"".join(Path(module).read_bytes() for module in (__file__, data.video.__file__))
        self._code = code + av.__version__.encode()  # of other code or another encoder the bytes may differ
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, source: Path, fps: float) -> Path:
        """Where the encoded form of this clip is, or is to be written."""
        content = source.read_bytes() if source.is_file() else b""
        name = hashlib.sha256(b"%s %r %s" % (self._code, fps, content)).hexdigest()
        self._used.add(self.folder / f"{name}.mp4")
        return self.folder / f"{name}.mp4"

    def prune(self) -> None:
        """Delete what was not asked for since this object was made."""
        for path in set(self.folder.iterdir()) - self._used:
            path.unlink()


def write_playable(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 (F, H, W, 3) frames as an mp4 that any browser plays: H.264 4:2:0.

    A clip set stores small clips as 4:4:4, which phones, Safari and Firefox on most systems do not play. Here each of
    their pixels is ENLARGED times as large, so that it shares its colour with few others. Measured on 20 clips of the
    tabletop world, a pixel is 2.4 of 255 off (99 % of them within 12).
    """
    if min(frames.shape[1:3]) <= LOSSLESS_UP_TO:
        frames = frames.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    write_video(path, frames, fps, lossless=False)


def copy_playable(source: Path, copy: Path, sample: Sample, encoded: PlayableCopies | None = None) -> None:
    """Write the clip to `copy` as any browser plays it.

    A small clip is encoded again, others are linked.
    A clip that cannot be read is named in the log and left as it is: the page says so, too.

    encoded: where clips that were encoded before are found and this one is kept; None encodes it in any case.
    """
    if min(sample.height, sample.width) <= LOSSLESS_UP_TO:
        kept = encoded.path(source, sample.fps) if encoded else copy
        try:
            if not kept.exists():
                write_playable(kept, read_video(source), sample.fps)
        except ValueError as error:
            logger.warning("%s; the page shows it as a clip that cannot be played", error)
        else:
            if kept != copy:
                link(kept, copy)
            return
    if source.is_file():
        link(source.resolve(), copy)


def link(source: Path, copy: Path) -> None:
    """A hard link, which costs no disk, or a copy where the file system has none."""
    try:
        os.link(source, copy)
    except OSError:
        shutil.copyfile(source, copy)
