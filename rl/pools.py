"""The datasets of several rounds as those of one: the rows of each round, one round after the other.

Pairs stay those that each round has of itself: a pair of clips of two rounds is never made.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.manifest import read_manifest, write_manifest
from rl.objectives import OBJECTIVES, OF_ROUNDS
from rl.rewards import effective_sizes
from rl.tables import DATASETS, read_composition, read_table, write_composition, write_table

logger = logging.getLogger(__name__)

COUNTED = ("samples", "weighted", "pairs")  # of a composition


def pool_tables(work: Path, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Write the datasets in `folders` as one, each objective's table and composition.json; returns that composition.

    name: of the pool. Raises StoreError for a folder that is half-written, ValueError, naming both, for datasets of
    another source, judge, reward or settings of stage build than the first.
    """
    for objective in OF_ROUNDS.values():
        tables = [read_table(folder / objective.name, objective) for folder in folders]
        facts = _facts_of_all([folder / objective.name for folder in folders], [table.facts for table in tables])
        rows = [row for table in tables for row in table.rows]
        write_table(work / objective.name, rows, objective.row_type, {"round": name, **facts})
    composition = composition_of_all(name, [read_composition(folder) for folder in folders])
    weighted = read_table(work / "rwr", OBJECTIVES["rwr"]).rows
    sizes = effective_sizes([row.prompt_id for row in weighted], [row.weight for row in weighted])
    composition["weights"] = {"rwr": sizes}
    write_composition(work, composition)
    facts = _facts_of_all(folders, [read_manifest(folder, DATASETS)["facts"] for folder in folders])
    write_manifest(work, DATASETS, **{"round": name, **facts})
    return composition


def composition_of_all(name: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A composition.json with the counts of several summed, and with those of each round as `rounds`; no `weights`.

    A prompt is without a pair where every round that has clips of it has none, for the reasons of each.
    """
    categories: dict[str, Counter[str]] = {}
    pairs: Counter[str] = Counter()
    for part in parts:
        pairs.update(part["pairs_per_prompt"])
        for category, counts in part["categories"].items():
            categories.setdefault(category, Counter()).update(counts)
    found: dict[str, dict[str, None]] = {}  # prompt_id -> its reasons, each once
    for part in parts:
        for prompt_id, reason in part["prompts_without_a_pair"].items():
            found.setdefault(prompt_id, {})[reason] = None
    unpaired = {prompt_id: "; ".join(reasons) for prompt_id, reasons in found.items() if not pairs[prompt_id]}
    rounds: dict[str, dict[str, int]] = {}
    for part in parts:
        own = {part["name"].partition("/")[0]: {key: part[key] for key in COUNTED}}
        rounds |= part.get("rounds", own)
    source = parts[0]["name"].partition("/")[2]
    return {
        "name": f"{name}/{source}",
        **{key: sum(part[key] for part in parts) for key in COUNTED},
        "categories": {category: dict(counts) for category, counts in categories.items()},
        "pairs_per_prompt": dict(pairs),
        "prompts_without_a_pair": unpaired,
        "reasons": dict(sorted(Counter(unpaired.values()).items())),
        "rounds": rounds,
    }


def _facts_of_all(folders: Sequence[Path], facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the manifests of all say alike, beside the round; a provider's model may have had several versions."""
    compared = [_comparable(one) for one in facts]
    for folder, other in zip(folders[1:], compared[1:], strict=True):
        for key in compared[0].keys() | other.keys():
            if compared[0].get(key) != other.get(key):
                raise ValueError(
                    f"{folders[0]} and {folder} cannot be trained on together: "
                    f"{key} is {compared[0].get(key)} and {other.get(key)}"
                )
    together = {key: value for key, value in facts[0].items() if key != "round"}
    if "judge" not in together:
        return together
    versions = list(dict.fromkeys(version for one in facts for version in one["judge"]["model_versions"] or []))
    if any(one["judge"]["model_versions"] != facts[0]["judge"]["model_versions"] for one in facts):
        logger.warning("%s were judged by several versions of the model: %s", ", ".join(map(str, folders)), versions)
        together["judge"] = together["judge"] | {"model_versions": versions}
    return together


def _comparable(facts: Mapping[str, Any]) -> dict[str, Any]:
    judge = {key: value for key, value in facts.get("judge", {}).items() if key != "model_versions"}
    return {key: value for key, value in facts.items() if key not in ("round", "judge")} | {"judge": judge}
