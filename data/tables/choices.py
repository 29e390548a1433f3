"""What people said about clips, as public sets publish it: a CSV of choices between two clips, or of scores of clips.

    clip_a,clip_b,prompt,preferred,dimension      preferred: A, B or tie (also `same`)
    clip,prompt,score,dimension                   score: a number, the higher the better

Paths are absolute or from the CSV's folder. `dimension` may be absent or empty: the clips as a whole. Other columns are
ignored. Which of the two a file is, its header says.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.manifest import MANIFEST, write_manifest
from data.records import Sample, write_rows
from data.store import KIND, METADATA, ClipSet
from data.tables.read import columns_of, read_table
from data.video import read_fps, read_video

logger = logging.getLogger(__name__)

PAIRS = ("clip_a", "clip_b", "prompt", "preferred")
SCORES = ("clip", "prompt", "score")
PREFERRED = {"a": 1, "b": -1, "tie": 0, "same": 0}


class Clip(NamedTuple):
    """A clip of a prompt: what a judge is asked about, once."""

    path: Path
    prompt: str


class Choice(NamedTuple):
    """What people prefer."""

    a: Clip
    b: Clip
    preferred: int  # 1: a, -1: b, 0: neither
    dimension: str  # "": the clips as a whole


class Score(NamedTuple):
    """What people gave a clip."""

    clip: Clip
    score: float
    dimension: str


class Said(NamedTuple):
    """A file's rows; one of the two is empty."""

    choices: list[Choice]
    scores: list[Score]

    @property
    def clips(self) -> list[Clip]:
        """Each clip once, in the order of the file."""
        of_choices = [clip for one in self.choices for clip in (one.a, one.b)]
        return list(dict.fromkeys([*of_choices, *(one.clip for one in self.scores)]))

    @property
    def dimensions(self) -> list[str]:
        """Each dimension once, in the order of the file."""
        return list(dict.fromkeys([*(one.dimension for one in self.choices), *(one.dimension for one in self.scores)]))


class Opened(NamedTuple):
    """Clips that a judge can be asked about, as a clip set without latents, and those that cannot be decoded."""

    clip_set: ClipSet
    ids: dict[Clip, str]  # sample_id of each clip in the set
    unreadable: dict[Clip, str]  # why


def read_said(path: Path) -> Said:
    """The rows of a CSV; logs what may be a mistake in its header. Raises ValueError that names row and cure."""
    has = columns_of(path, (*PAIRS, *SCORES))
    if has >= {*PAIRS, *SCORES}:
        raise ValueError(f"{path}: has the columns of choices and of scores; wanted one of both")
    required = SCORES if len(has & set(SCORES)) > len(has & set(PAIRS)) else PAIRS
    table = read_table(path, required, ("dimension",))
    for remark in table.remarks:
        logger.warning("%s: %s", path, remark)
    if not table.rows:
        raise ValueError(f"{path}: no rows below the header")
    numbered = [(f"{path}, row {row.number}", row.cells) for row in table.rows]
    for where, row in numbered:
        if empty := [name for name in required if not row[name]]:
            raise ValueError(f"{where}: {empty[0]} is empty")
    if required is PAIRS:
        return Said([_choice(where, row, path.parent) for where, row in numbered], [])
    return Said([], [_score(where, row, path.parent) for where, row in numbered])


def open_clips(clips: Sequence[Clip], folder: Path) -> Opened:
    """The clips as a clip set in `folder`, by links to the files, which are left as they are.

    Every file is decoded once, for its number of frames and size. Raises ValueError where none can be decoded, and
    where the folder holds something else: it is written anew.
    """
    _check_ours(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(clip.prompt for clip in clips))}
    samples: list[Sample] = []
    ids: dict[Clip, str] = {}
    unreadable: dict[Clip, str] = {}
    for number, clip in enumerate(_shown(clips)):
        try:
            frames, fps = read_video(clip.path), read_fps(clip.path)
        except (ValueError, OSError) as error:
            unreadable[clip] = str(error)
            continue
        sample = _sample(f"clip-{number:06d}", numbers[clip.prompt], clip, frames, fps)
        _link(clip.path, folder / sample.file_name)
        samples.append(sample)
        ids[clip] = sample.sample_id
    if not samples:
        raise ValueError(f"none of {len(clips)} clips can be decoded, such as: {next(iter(unreadable.values()))}")
    write_rows(folder / METADATA, samples, Sample)
    write_manifest(folder, KIND, set="preferences", policy="unknown", shards=[])
    return Opened(ClipSet.open(folder), ids, unreadable)


def _check_ours(folder: Path) -> None:
    """Raises ValueError unless the folder is absent, empty or one that `open_clips` has written."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder}: no folder, where one is to be written; name another --out")
    for path in folder.rglob("*"):
        link = path.is_symlink() and path.parent == folder / "videos"
        if not (link or path.name in ("videos", METADATA, MANIFEST) or path.name.startswith(".")):
            raise ValueError(f"{folder}: {path.name} in it is none of what is written there; name another --out")


def _sample(sample_id: str, prompt: int, clip: Clip, frames: np.ndarray, fps: float) -> Sample:
    return Sample(
        sample_id=sample_id,
        prompt_id=f"prompt-{prompt:06d}",
        prompt=clip.prompt,
        category="preferences",
        split="test",
        policy="unknown",
        seed=0,
        num_frames=len(frames),
        fps=fps,
        height=frames.shape[1],
        width=frames.shape[2],
        file_name=f"videos/{sample_id}{clip.path.suffix}",
    )


def _choice(where: str, row: Mapping[str, str], folder: Path) -> Choice:
    preferred = row["preferred"]
    if preferred.lower() not in PREFERRED:
        raise ValueError(f"{where}: preferred is {preferred!r}, expected A, B or tie")
    a, b = (_clip(folder, row[name], row["prompt"]) for name in ("clip_a", "clip_b"))
    if a == b:
        raise ValueError(f"{where}: clip_a and clip_b are the same file, {a.path}")
    return Choice(a, b, PREFERRED[preferred.lower()], _dimension(row))


def _score(where: str, row: Mapping[str, str], folder: Path) -> Score:
    try:
        value = float(row["score"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: score is {row['score']!r}, expected a number")
    return Score(_clip(folder, row["clip"], row["prompt"]), value, _dimension(row))


def _clip(folder: Path, path: str, prompt: str) -> Clip:
    return Clip(Path(os.path.abspath(folder / path)), prompt)


def _dimension(row: Mapping[str, str]) -> str:
    return row.get("dimension", "")


def _link(file: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(file)


def _shown(clips: Sequence[Clip]) -> Iterable[Clip]:
    """The clips, with a progress bar."""
    from tqdm import tqdm  # takes a while to import, and no stage needs it here

    bar: Iterator[Clip] = iter(tqdm(clips, desc="decoding", unit="clip"))
    return bar
