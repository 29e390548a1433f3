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
from typing import NamedTuple

from tqdm import tqdm

from data.dense import Window, window_samples, windows_of
from data.records import Sample
from data.store import ClipSet, read_clip
from data.video import write_video
from feedback.core.label import LabelCounts, Look, Windows, label_clip_set, look_at, spread
from feedback.core.source import Source, WholeClip, raters_of

logger = logging.getLogger(__name__)


class CutSet(NamedTuple):
    """The windows of a clip set."""

    clip_set: ClipSet  # the same one, with the windows in place of the clips; their file_name is a whole path
    windows: Windows


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
    _check_labels_windows(source)
    cut = cut_windows(clip_set, length, work / "windows")
    return label_clip_set(cut.clip_set, source, work, out, batch_size, votes, max_failed, cut.windows)


def look_at_windows(
    clip_set: ClipSet, source: Source, length: int, limit: int, folder: Path, votes: int = 1, max_failed: float = 0.0
) -> list[Look]:
    """As `look_at`, of windows of `length` frames, which are cut in `folder`. Raises ValueError as `label_windows`.

    The file_name of a look's sample names the clip and the window's frames.
    """
    _check_labels_windows(source)
    cut = cut_windows(clip_set, length, folder, limit)
    looks = look_at(cut.clip_set, source, limit, votes, max_failed, cut.windows)
    return [look._replace(sample=_named(look.sample, cut.windows.whole[look.sample.sample_id])) for look in looks]


def cut_windows(clip_set: ClipSet, length: int, folder: Path, limit: int | None = None) -> CutSet:
    """The windows of a set, each with an mp4 in `folder`, which is cut where it is missing.

    length: frames of a window. limit: of so many windows alone, evenly spread; None: of all.
    The mp4s of a clip that cannot be read stay missing, so that its windows are unreadable clips.
    """
    rows, parts, whole = window_samples(clip_set.samples, length), list[Window](), dict[str, WholeClip]()
    for sample in clip_set.samples:
        parts += windows_of(sample, length)
    if limit is not None:
        rows, parts = spread(rows, limit), spread(parts, limit)
    for part in parts:
        clip = clip_set.by_id[part.clip]
        content = clip_set.hashes.get(clip.file_name)
        whole[part.sample_id] = WholeClip(clip, clip_set.video(clip), content, part.frames)
    samples = [replace(row, file_name=str(folder.absolute() / f"{row.sample_id}.mp4")) for row in rows]
    _cut(samples, whole)
    return CutSet(replace(clip_set, samples=samples), Windows(length, whole))


def _named(window: Sample, whole: WholeClip) -> Sample:
    return replace(window, file_name=f"{whole.sample.file_name}, frames {whole.frames[0]} to {whole.frames[-1]}")


def _check_labels_windows(source: Source) -> None:
    """Raises ValueError for a source of people or one that compares."""
    if any(raters_of(one) for one in (source, *getattr(source, "members", {}).values())):
        raise ValueError(f"{source.name}: people rate whole clips, so they cannot label windows")
    if source.rubric.compares:
        raise ValueError(f"{source.name} compares two clips at once, so it cannot label windows")


def _cut(windows: Sequence[Sample], whole: Mapping[str, WholeClip]) -> None:
    """Write the mp4s of windows that are missing."""
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
