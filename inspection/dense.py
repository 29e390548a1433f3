"""What tables of dense sets (data/dense.py) have more than others: windows, pairs with one start, latent frames.

    clips               start, other: sample_ids of what a clip starts from, and of the other clip of its pair
    windows             clip: its sample_id; window: place from 0; frames: such as "5 to 8"; start and other of the clip
    rows of dense_dpo   start; better: as of DensePair, such as "1 0 -1"; first_better, second_better, neither: how many
                        latent frames

view.py puts them into its tables, composition.py counts them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data.dense import Window, latent_frames
from data.records import DensePair, SharedStart, read_rows
from data.store import STARTS

SIGNS = {"first_better": 1, "second_better": -1, "neither": 0}


def starts_of(clips: Path) -> list[SharedStart]:
    """The pairs of a clip set; none where it is no set of pairs with one start."""
    path = clips / STARTS
    return read_rows(path, SharedStart) if path.is_file() else []


def with_starts(table: pd.DataFrame, pairs: Sequence[SharedStart], key: str) -> pd.DataFrame:
    """The table with the columns start and other, where there are pairs. key: its column of clips' sample_ids."""
    if not pairs:
        return table
    start = {one: pair.start for pair in pairs for one in (pair.first, pair.second)}
    other = {pair.first: pair.second for pair in pairs} | {pair.second: pair.first for pair in pairs}
    return table.assign(start=table[key].map(start).astype("string"), other=table[key].map(other).astype("string"))


def with_windows(table: pd.DataFrame, windows: Mapping[str, Window]) -> pd.DataFrame:
    """A table of windows with the columns clip, window and frames. windows: by their sample_id."""
    of = [windows[one] for one in table["sample_id"]]
    places = dict[str, int]()  # by sample_id, counted up within a clip
    counted = Counter[str]()
    for one in windows.values():
        places[one.sample_id] = counted[one.clip]
        counted[one.clip] += 1
    return table.assign(
        clip=pd.array([one.clip for one in of], dtype="string"),
        window=pd.array([places[one.sample_id] for one in of], dtype="Int64"),
        frames=pd.array([span(one.frames) for one in of], dtype="string"),
    )


def with_preferences(table: pd.DataFrame, rows: Sequence[DensePair], pairs: Sequence[SharedStart]) -> pd.DataFrame:
    """A table of rows of dense_dpo with better as a text, the numbers of latent frames, and start."""
    start = {pair.first: pair.start for pair in pairs}
    counts = {name: [row.better.count(sign) for row in rows] for name, sign in SIGNS.items()}
    return table.assign(
        better=pd.array([" ".join(map(str, row.better)) for row in rows], dtype="string"),
        start=pd.array([start.get(row.first) for row in rows], dtype="string"),
        **{name: pd.array(values, dtype="Int64") for name, values in counts.items()},
    )


def latent_frame_rows(table: pd.DataFrame, num_frames: int) -> list[list[str]]:
    """A line a latent frame: its place, its frames of the clip, and how many pairs prefer which clip there.

    num_frames: of a clip.
    """
    better = [[int(sign) for sign in text.split()] for text in table["better"]]
    rows = []
    for place, frames in enumerate(latent_frames(num_frames, len(better[0]))):
        counts = Counter(signs[place] for signs in better)
        rows.append([str(place), span(frames), *(str(counts[sign]) for sign in SIGNS.values())])
    return rows


def prompts_without_a_preference(composition: Mapping[str, Any], pairs: Sequence[SharedStart]) -> dict[str, str]:
    """The prompts none of whose pairs has a preference, each with how many pairs lack one for which reason.

    composition: of composition.json (rl/dense.py).
    """
    prompt_of = {pair.first: pair.prompt_id for pair in pairs}
    reasons: dict[str, Counter[str]] = {}
    for first, reason in composition["pairs_left_out"].items():
        reasons.setdefault(prompt_of[first], Counter())[reason] += 1
    return {
        prompt: _counted(reasons[prompt]) for prompt, count in composition["pairs_per_prompt"].items() if count == 0
    }


def left_out(composition: Mapping[str, Any]) -> str:
    """How many pairs of the set have no preference, and why."""
    reasons, total = composition["reasons"], composition["samples"] // 2
    why = f": {_counted(reasons)}" if reasons else ""
    return f"pairs without a preference: {sum(reasons.values())} of {total}{why}"


def span(frames: range) -> str:
    """Frames that follow each other, in words: "5 to 8", or "0"."""
    return str(frames[0]) if len(frames) == 1 else f"{frames[0]} to {frames[-1]}"


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
