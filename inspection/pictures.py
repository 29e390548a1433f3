"""The chosen clips to look at: a contact sheet, or a page that plays them."""

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.first_frames import read_png
from data.store import read_clip
from data.video import prompt_caption, save_sheet, small_frames
from inspection.view import CaptionedClip, View, captioned_clips
from report.html import render
from report.playable import copy_playable, write_playable

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("clips.html.j2")


class Page(NamedTuple):
    """A page that was written."""

    path: Path  # of index.html
    clips: int


def write_sheet(clips: Iterable[CaptionedClip], out: Path) -> int:
    """Draw the clips that can be decoded, each with its caption, as a PNG; returns how many those are.

    A clip whose generator was given a first frame has it on the left of its frames, beside a gap.
    Raises ValueError where `out` is no .png and where no clip can be decoded.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"--sheet {out}: the sheet is a PNG, so its name ends in .png")
    rows = [
        (caption_of(one), small_frames(frames, read_png(one.first) if one.first else None))
        for one, frames in readable(clips)
    ]
    if not rows:
        raise ValueError(f"--sheet {out}: none of the clips can be decoded")
    save_sheet(rows, out)
    return len(rows)


def write_clip_page(view: View, out: Path, title: str) -> Page:
    """Write a page of the view's clips into the folder `out`, which holds all that it shows and opens from disk.

    Every clip, or window, plays beside its label and every verdict on it. Those that cannot be decoded are left out.
    """
    media = out / "media"
    media.mkdir(parents=True)
    clips, verdicts = [], verdicts_of(view)
    for one, frames in readable(captioned_clips(view)):
        name = f"{one.sample.sample_id}{one.path.suffix}"
        if one.window:
            write_playable(media / name, frames, one.sample.fps)
        else:
            copy_playable(one.path, media / name, one.sample)
        first = f"media/{one.sample.prompt_id}.png" if one.first else None
        if one.first and first:
            shutil.copyfile(one.first, out / first)
        clips.append((one, f"media/{name}", first, verdicts.get(one.sample.sample_id, [])))
    page = render(TEMPLATE, title=title, clips=clips)
    (out / "index.html").write_text(page, encoding="utf-8")
    return Page(out / "index.html", len(clips))


def verdicts_of(view: View) -> dict[str, list[dict[str, Any]]]:
    """Verdicts on the view's clips by sample_id, as rows with None for a null; empty where the view has none."""
    if view.verdicts is None:
        return {}
    mine = view.verdicts[view.verdicts["sample_id"].isin(view.rows["sample_id"])].astype(object)
    mine = mine.where(mine.notna(), None)
    return {clip: of.to_dict("records") for clip, of in mine.groupby("sample_id")}


def readable(clips: Iterable[CaptionedClip]) -> Iterator[tuple[CaptionedClip, np.ndarray]]:
    """Each clip with its frames, uint8 (F, H, W, 3). One that cannot be decoded is named in a warning and left out."""
    for one in tqdm(list(clips), unit="clip", desc="decode", delay=2):
        try:
            clip, seen = one.window or (one.sample, range(one.sample.num_frames))
            yield one, read_clip(one.path, clip)[seen.start : seen.stop]
        except (ValueError, OSError) as error:
            logger.warning("%s is left out: %s", one.sample.sample_id, error)


def caption_of(one: CaptionedClip) -> str:
    """Heading, prompt and outcome; a prompt that the captions' font cannot write is named by its id."""
    return " · ".join(part for part in (one.heading, prompt_caption(one.sample), one.outcome) if part)
