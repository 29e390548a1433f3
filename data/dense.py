"""Clip sets of pairs with one start (DenseDPO), and the windows of frames that their clips are judged by.

A dense set is a clip set with one table more, starts.parquet: a SharedStart for each pair, in the order of the clips.
A window is some frames of a clip that follow each other. Latent frames are the VAE's: the first one of a causal VAE is
one frame of the clip, each further one is r frames.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from data.labels import KIND as LABELS
from data.labels import LabelSet, open_labels
from data.manifest import read_manifest
from data.records import Sample, SharedStart, read_rows
from data.store import STARTS, ClipSet


class Window(NamedTuple):
    """Some frames of a clip."""

    sample_id: str  # of the window, where it is judged as a clip
    clip: str  # sample_id
    frames: range  # their indices


def read_starts(clip_set: ClipSet) -> list[SharedStart]:
    """The pairs of a dense set. Raises ValueError for another clip set."""
    path = clip_set.folder / STARTS
    if not path.is_file():
        raise ValueError(f"{clip_set.folder}: not a set of pairs with one start: it has no {STARTS}")
    return read_rows(path, SharedStart)


def pairs_of_starts(sources: Sequence[Sample], samples: Sequence[Sample], pairs_per_prompt: int) -> list[SharedStart]:
    """Which clips of a dense set are a pair, and what they start from: the first clips of each prompt, one a pair.

    sources: the clips that may be started from. samples: of the set, 2 pairs_per_prompt of each prompt, which follow
        each other in pairs.
    Raises ValueError for a prompt that has fewer sources than pairs.
    """
    of_prompt: dict[str, list[Sample]] = {}
    for source in sources:
        of_prompt.setdefault(source.prompt_id, []).append(source)
    pairs = []
    for number, (first, second) in enumerate(zip(samples[::2], samples[1::2], strict=True)):
        place, there = number % pairs_per_prompt, of_prompt.get(first.prompt_id, [])
        if place >= len(there):
            raise ValueError(
                f"pairs_per_prompt is {pairs_per_prompt}, but {first.prompt_id} has {len(there)} clips to start from"
            )
        pairs.append(SharedStart(first.prompt_id, there[place].sample_id, first.sample_id, second.sample_id))
    return pairs


def window_frames(num_frames: int, length: int) -> list[range]:
    """The frames of each window of a clip: the first has `length` + 1, then each has `length`, the last what is left.

    So windows end where latent frames end, of a causal VAE with `length` a multiple of its frames a latent frame.
    Raises ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"window is {length}, expected at least 1 frame")
    bounds = [0, *range(length + 1, num_frames, length), num_frames]
    return [range(first, last) for first, last in pairwise(bounds)]


def windows_of(sample: Sample, length: int) -> list[Window]:
    """The windows of a clip. Raises ValueError as `window_frames` does."""
    of_clip = window_frames(sample.num_frames, length)
    return [Window(f"{sample.sample_id}-w{place}", sample.sample_id, frames) for place, frames in enumerate(of_clip)]


def window_samples(samples: Sequence[Sample], length: int) -> list[Sample]:
    """The windows of clips as rows of clips of their own, clip after clip; they have no file."""
    return [
        replace(sample, sample_id=window.sample_id, num_frames=len(window.frames), file_name="")
        for sample in samples
        for window in windows_of(sample, length)
    ]


def latent_frames(num_frames: int, count: int) -> list[range]:
    """The frames of a clip that each of its `count` latent frames is made of.

    A causal VAE: one frame, then r for each latent frame. Another: r for each. Raises ValueError where the numbers are
    of neither, such as latents that are padded to whole patches.
    """
    if count > 1 and (num_frames - 1) % (count - 1) == 0:
        ratio = (num_frames - 1) // (count - 1)
        return [range(1), *(range(1 + ratio * place, 1 + ratio * (place + 1)) for place in range(count - 1))]
    if count and num_frames % count == 0:
        ratio = num_frames // count
        return [range(ratio * place, ratio * (place + 1)) for place in range(count)]
    raise ValueError(
        f"{count} latent frames are not of {num_frames} frames in equal parts, as of latents that are padded to whole "
        "patches: windows cannot be mapped to them"
    )


def window_of_each(num_frames: int, length: int, count: int) -> list[int]:
    """The place of the window that each of `count` latent frames of a clip lies in.

    Raises ValueError as `latent_frames` and `window_frames` do, and where a latent frame lies in two windows.
    """
    windows = window_frames(num_frames, length)
    return [_holding(frames, windows, num_frames, length) for frames in latent_frames(num_frames, count)]


def open_window_labels(folder: Path, clip_set: ClipSet) -> LabelSet:
    """The labels of a clip set's windows. Raises as `open_labels` does, and ValueError for labels of whole clips."""
    facts = read_manifest(folder, LABELS)["facts"]
    if "window" not in facts:
        raise ValueError(f"{folder}: labels of whole clips; wanted are those of windows")
    length = facts["window"]
    return open_labels(folder, clip_set.folder, window_samples(clip_set.samples, length), window=length)


def _holding(frames: range, windows: Sequence[range], num_frames: int, length: int) -> int:
    for place, window in enumerate(windows):
        if frames[0] in window and frames[-1] in window:
            return place
    raise ValueError(
        f"window is {length}, so frames {frames[0]} to {frames[-1]} of {num_frames}, which are one latent "
        f"frame, lie in two windows; wanted is a multiple of {len(frames)}"
    )
