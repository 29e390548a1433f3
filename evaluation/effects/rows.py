"""What stage `effects` measures of a policy's evaluation clips and hands to stage `evaluate`.

motion.parquet    ClipMotion, a row a clip
spread.parquet    PromptSpread, a row a prompt
drift.parquet     ClipDrift, a row a clip of the base and time; empty where drift is not measured
manifest.json     its facts name the clips by `clip_set` and `base`, sha256 of their manifests
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest import MANIFEST, read_manifest, sha256_of, write_manifest
from data.records import ClipDrift, ClipMotion, PromptSpread, Sample, read_rows, write_rows

KIND = "effects"
MOTION, SPREAD, DRIFT = "motion.parquet", "spread.parquet", "drift.parquet"


class Effects(NamedTuple):
    """What was measured of one policy."""

    motion: list[ClipMotion]
    spread: list[PromptSpread]
    drift: list[ClipDrift]


def write_effects(folder: Path, effects: Effects, **facts: Any) -> None:
    """Write the rows and, last, the manifest with these facts."""
    write_rows(folder / MOTION, effects.motion, ClipMotion)
    write_rows(folder / SPREAD, effects.spread, PromptSpread)
    write_rows(folder / DRIFT, effects.drift, ClipDrift)
    write_manifest(folder, KIND, **facts)


def read_effects(folder: Path, clips: Path, samples: Sequence[Sample]) -> Effects:
    """The rows of a finished folder, those of motion in the order of `samples`, which are all clips of the set `clips`.

    Raises StoreError for a half-written folder, ValueError for one that is missing or is of other clips.
    """
    if not folder.is_dir():
        policy = folder.parent.name
        raise ValueError(
            f"{folder} is not there: {policy}'s clips were not measured; `dvc repro effects@{policy}` does"
        )
    facts = read_manifest(folder, KIND)["facts"]
    motion = read_rows(folder / MOTION, ClipMotion)
    by_id = {row.sample_id: row for row in motion}
    if facts["clip_set"] != sha256_of(clips / MANIFEST) or by_id.keys() != {sample.sample_id for sample in samples}:
        raise ValueError(f"{folder}: was measured on other clips than those of {clips}")
    in_order = [by_id[sample.sample_id] for sample in samples]
    return Effects(in_order, read_rows(folder / SPREAD, PromptSpread), read_rows(folder / DRIFT, ClipDrift))
