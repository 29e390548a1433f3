"""From labels of windows to the rows of DenseDPO: which clip of a pair is better, latent frame by latent frame.

    dense_dpo/dense.parquet   DensePair, a row a pair
    composition.json          counts of the pairs and latent frames behind them

A pair without a preference in any latent frame is in no row.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.dense import window_frames, window_of_each, windows_of
from data.labels import LabelSet
from data.manifest import write_manifest
from data.records import DensePair, Sample, SharedStart
from data.store import ClipSet
from rl.rewards import reward_of
from rl.tables import DATASETS, write_composition, write_table

logger = logging.getLogger(__name__)

EQUAL, UNKNOWN = "no latent frame differs", "no latent frame has two labels"


class DenseRows(NamedTuple):
    """The rows that `build_dense` makes from windows that are labelled."""

    pairs: list[DensePair]
    composition: dict[str, Any]  # plain JSON


def build_dense(
    clip_set: ClipSet, pairs: Sequence[SharedStart], labelled: LabelSet, name: str, reward: str, min_margin: float
) -> DenseRows:
    """The pairs with a preference in at least one latent frame, in their order; the others are counted.

    clip_set, pairs: a dense set and its pairs. labelled: the labels of its windows. reward, min_margin: as section
        `build` has them; a latent frame has the reward of its window, and is 0 where the two rewards differ by no more
        than min_margin, or one is not known.
    name: the set and the source, such as "d1/physics", for the errors.
    Raises ValueError as `window_of_each` does, and where no pair is left.
    """
    length, count = labelled.facts["window"], clip_set.manifest["facts"]["starts"]["latent_frames"]
    rewards = {window: reward_of(label, reward) for window, label in labelled.by_id.items()}
    rows, left_out = [], dict[str, str]()
    for pair in pairs:
        clips = [clip_set.by_id[side] for side in (pair.first, pair.second)]
        first, second = (_by_latent_frame(clip, rewards, length, count) for clip in clips)
        better = [_better(one, other, min_margin) for one, other in zip(first, second, strict=True)]
        if any(better):
            rows.append(DensePair(pair.prompt_id, pair.first, pair.second, better))
        else:
            known = any(None not in both for both in zip(first, second, strict=True))
            left_out[pair.first] = EQUAL if known else UNKNOWN
    signs = Counter(sign for row in rows for sign in row.better)
    composition = {
        "name": name,
        "samples": 2 * len(pairs),
        "pairs": len(rows),
        "windows": len(window_frames(clip_set.samples[0].num_frames, length)),
        "latent_frames": count,
        "better": {str(sign): signs[sign] for sign in (1, -1, 0)},  # latent frames of the pairs, by preference
        "pairs_per_prompt": {one.prompt_id: 0 for one in pairs} | Counter(row.prompt_id for row in rows),
        "pairs_left_out": left_out,  # by their first clip
        "reasons": dict(sorted(Counter(left_out.values()).items())),
    }
    if not rows:
        raise ValueError(f"{name}: no preference in any of {len(pairs)} pairs: {composition['reasons']}")
    preferred = signs[1] + signs[-1]
    message = "%s: %d of %d pairs have a preference, in %d of their %d latent frames"
    logger.info(message, name, len(rows), len(pairs), preferred, len(rows) * count)
    return DenseRows(rows, composition)


def write_dense(
    folder: Path, rows: DenseRows, clips: Mapping[str, Any], labels: Mapping[str, Any], min_margin: float
) -> dict[str, Any]:
    """Write the folder of datasets of a dense set, manifests last; returns the composition.

    clips, labels: plain JSON that names the clip set and the labels. min_margin: by which the rows were made.
    """
    facts = {**clips, **labels, "build": {"min_margin": min_margin}}
    write_table(folder / "dense_dpo", rows.pairs, DensePair, facts)
    write_composition(folder, rows.composition)
    write_manifest(folder, DATASETS, **clips, **labels)
    return rows.composition


def _by_latent_frame(
    sample: Sample, rewards: Mapping[str, float | None], length: int, count: int
) -> list[float | None]:
    """The reward of each latent frame of a clip: that of its window. rewards: by the window's sample_id."""
    windows = windows_of(sample, length)
    return [rewards[windows[place].sample_id] for place in window_of_each(sample.num_frames, length, count)]


def _better(first: float | None, second: float | None, min_margin: float) -> int:
    """1 where the first reward is the higher one, -1 where the second is, 0 where neither is, or one is not known."""
    if first is None or second is None or abs(first - second) <= min_margin:
        return 0
    return 1 if first > second else -1
