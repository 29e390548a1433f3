"""Labels of windows: a source judges some frames of each clip at a time, as clips of their own.

The labels of a set by windows have a row for each window (data/dense.py), and a fact `window`, its length. A source
that knows which frame of a clip is wrong, as the physics check does, reads the whole clip (`Request.whole`); every
other one is shown the window's frames alone, so a rubric of more frames than a window has sees all of them, and what
takes longer than a window cannot be seen.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data.dense import window_samples, windows_of
from data.records import Sample
from data.store import ClipSet, read_clip
from data.video import write_video
from feedback.core.label import LabelCounts, Windows, label_clip_set
from feedback.core.source import Source, WholeClip, raters_of

logger = logging.getLogger(__name__)


def label_windows(
    clip_set: ClipSet,
    source: Source,
    length: int,
    work: Path,
    out: Path,
    batch_size: int,
    votes: int = 1,
    max_failed: float = 0.0,
) -> LabelCounts:
    """As `label_clip_set`, with the windows of the clips in place of the clips. length: of a window, in frames.

    work: also holds the mp4 of each window, which are cut where they are missing.
    Raises ValueError as it does, and for a source of people (`vfrl rate` shows whole clips) or one that compares.
    """
    if any(raters_of(one) for one in (source, *getattr(source, "members", {}).values())):
        raise ValueError(f"{source.name}: people rate whole clips, so they cannot label windows")
    if source.rubric.compares:
        raise ValueError(f"{source.name} compares two clips at once, so it cannot label windows")
    whole: dict[str, WholeClip] = {}
    for sample in clip_set.samples:
        path, content = clip_set.video(sample), clip_set.hashes.get(sample.file_name)
        for window in windows_of(sample, length):
            whole[window.sample_id] = WholeClip(sample, path, content, window.frames)
    cut, rows = (work / "windows").absolute(), window_samples(clip_set.samples, length)
    windows = [replace(row, file_name=str(cut / f"{row.sample_id}.mp4")) for row in rows]
    _cut(windows, whole)
    return label_clip_set(
        replace(clip_set, samples=windows), source, work, out, batch_size, votes, max_failed, Windows(length, whole)
    )


def _cut(windows: Sequence[Sample], whole: Mapping[str, WholeClip]) -> None:
    """Write the mp4s of windows that are missing. Those of a clip that cannot be read stay missing, so unreadable."""
    missing: dict[Path, list[Sample]] = {}
    for window in windows:
        if not Path(window.file_name).is_file():
            missing.setdefault(whole[window.sample_id].path, []).append(window)
    for path, of_clip in tqdm(missing.items(), unit="clip", desc="cut into windows"):
        try:
            frames = read_clip(path, whole[of_clip[0].sample_id].sample)
        except (ValueError, OSError) as error:
            logger.warning("%s: not cut into windows: %s", path, error)
            continue
        for window in of_clip:
            seen = whole[window.sample_id].frames
            write_video(Path(window.file_name), frames[seen.start : seen.stop], window.fps)
