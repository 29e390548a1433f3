"""A round's datasets on disk: one folder an objective, each with the rows that it trains on.

    sft/weighted.parquet     every clip of the round, weight 1: no label is read, so no change of judge reaches it
    rwr/weighted.parquet     every clip with a reward
    dpo/paired.parquet
    kto/, nft/               weighted.parquet: every clip with a reward, weight 1: they read the reward itself
    composition.json         counts of the clips and pairs behind them, and how many clips the weights amount to

A folder of its own for each, because a policy then depends on its own rows alone, and because
`datasets.load_dataset(folder)` reads a folder of one schema.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest import read_manifest, write_manifest
from data.records import DensePair, Pair, Sample, Weighted, read_rows, write_rows
from rl.objectives import Objective

KIND, DATASETS = "dataset", "datasets"  # of an objective's folder, and of the folder of all
COMPOSITION = "composition.json"
FILES = {Weighted: "weighted.parquet", Pair: "paired.parquet", DensePair: "dense.parquet"}


class ObjectiveRows(NamedTuple):
    """The rows of one objective and the facts of their folder's manifest."""

    rows: list[Any]
    facts: dict[str, Any]


def write_tables(
    folder: Path,
    samples: Sequence[Sample],
    weighted: Sequence[Weighted],
    paired: Sequence[Pair],
    composition: Mapping[str, Any],
    clips: Mapping[str, Any],
    labels: Mapping[str, Any],
    weighting: Mapping[str, Any],
    pairing: Mapping[str, Any],
) -> None:
    """Write the folder, manifests last.

    samples: all clips of the round. weighted, paired, composition: from `rl.datasets.build`.
    clips, labels: plain JSON that names the clip set and the labels, for the manifests: the first of every table, the
        second of the tables that labels were read for.
    weighting, pairing: the settings that made `weighted` (from `rl.rewards.weighting`) and `paired`, each for its own
        table, because a change of the pairing must not change a byte of the weighted rows; kto and nft read neither.
    """
    everything = [Weighted(sample.sample_id, sample.prompt_id, reward=1.0, weight=1.0) for sample in samples]
    write_table(folder / "sft", everything, Weighted, clips)
    write_table(folder / "rwr", weighted, Weighted, {**clips, **labels, "build": dict(weighting)})
    unshaped = [replace(row, weight=1.0) for row in weighted]
    for name in ("kto", "nft"):  # a copy each, because dvc.yaml finds a policy's rows by its objective
        write_table(folder / name, unshaped, Weighted, {**clips, **labels})
    write_table(folder / "dpo", paired, Pair, {**clips, **labels, "build": dict(pairing)})
    write_composition(folder, composition)
    write_manifest(folder, DATASETS, **clips, **labels)


def read_table(folder: Path, objective: Objective) -> ObjectiveRows:
    """The rows in an objective's folder. Raises StoreError for a folder that is half-written or of another kind."""
    facts = read_manifest(folder, KIND)["facts"]
    return ObjectiveRows(read_rows(folder / FILES[objective.row_type], objective.row_type), facts)


def write_table(folder: Path, rows: Sequence[Any], row_type: type, facts: Mapping[str, Any]) -> None:
    """Write the rows of one objective into a folder of their own, its manifest last, with these facts."""
    write_rows(folder / FILES[row_type], rows, row_type)
    write_manifest(folder, KIND, **facts)


def write_composition(folder: Path, composition: Mapping[str, Any]) -> None:
    """Write composition.json into a folder of datasets."""
    text = json.dumps(composition, indent=1, ensure_ascii=False)
    (folder / COMPOSITION).write_text(text + "\n", encoding="utf-8")


def read_composition(folder: Path) -> dict[str, Any]:
    """The composition.json of a folder of datasets."""
    composition: dict[str, Any] = json.loads((folder / COMPOSITION).read_text(encoding="utf-8"))
    return composition
