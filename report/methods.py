"""What a run was made with, as a methods section needs it: models, judges, settings, seeds, code, libraries, device."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.manifest import read_manifest
from report.table import UNKNOWN, Cell, ResultTable, Row

JUDGE = ("model", "model_versions", "rubric", "rubric_hash", "votes")  # of a labels manifest
# Of policy.json, beside config. step: whose weights the policy has; of an online run it may be 0, the start.
ORIGIN = (
    "objective", "recipe", "start", "round", "rounds", "source", "reward", "build", "rows", "judges", "held_out",
    "judge_versions", "sampling", "step", "stopped", "decoder_psnr",
)  # fmt: skip
NO_RESULT = ("gradient_accumulation", "gradient_checkpointing", "checkpoint_every", "log_every")  # of config
SHORT = 12  # characters of a hash or commit in a table
FEW = 6  # names of changed files in a table


def read_methods(
    policies: Path, sets: Path, names: Iterable[str], sources: Iterable[str], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    """What summary.json holds as `methods`.

    policies, sets: folders of the policies and of their evaluation sets. names: policies, base among them. sources:
    judges of the evaluation. sampling: settings of what is sampled, by a name of it.

        generator             family, path, revision, fingerprint
        judges.<source>       model, model_versions, rubric, rubric_hash, votes: of the evaluation and of training
        policies.<name>       of a trained policy: objective, start, round, source, reward, rows, config, made_with
        sampling.<name>       as it is given
    """
    facts = {name: _facts(policies / name) for name in names}
    trained = {name: found for name, found in facts.items() if "objective" in found}
    judges = {name: found["judge"] for name, found in trained.items() if isinstance(found.get("judge"), dict)}
    labels = {source: read_manifest(sets / "base" / "labels" / source, "labels")["facts"] for source in sources}
    return {
        "generator": facts["base"],
        "judges": {source: {key: found.get(key) for key in JUDGE} for source, found in labels.items()}
        | {trained[name]["source"]: judge for name, judge in judges.items()},
        "policies": {
            name: {key: found[key] for key in (*ORIGIN, "config", "made_with") if key in found}
            for name, found in trained.items()
        },
        "sampling": dict(sampling),
    }


def tables(
    methods: Mapping[str, Any] | None, replicated: Mapping[str, Any] = MappingProxyType({})
) -> list[ResultTable]:
    """What the page shows of `read_methods`. replicated: the key `replicates` of the summary."""
    if methods is None:
        return []
    found = [
        _models(methods),
        _settings(methods["policies"], replicated),
        _made_with(methods["policies"]),
        _sampling(methods),
    ]
    return [table for table in found if table.rows]


def _facts(policy: Path) -> dict[str, Any]:
    path = policy / "policy.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _models(methods: Mapping[str, Any]) -> ResultTable:
    generator = methods["generator"]
    rows = [_row("generator", {"model": generator.get("path"), "version": _short(generator.get("fingerprint"))})]
    for source, judge in methods["judges"].items():
        versions = [_short(version) for version in judge["model_versions"] or []]
        asked = {"rubric": judge["rubric"], "hash of the rubric": judge["rubric_hash"], "votes": judge["votes"]}
        rows.append(_row(f"judge {source}", {"model": judge["model"], "version": versions, **asked}))
    return ResultTable("Models and rubrics", "", ["model", "version", "rubric", "hash of the rubric", "votes"], rows)


def _settings(policies: Mapping[str, Any], replicated: Mapping[str, Any]) -> ResultTable:
    """A row for each setting that a policy has, a column for each policy, one for all its seeds."""
    further = {name for one in replicated.values() for name in one["policies"][1:]}
    seeds = {name: {"seed": one["seeds"]} for name, one in replicated.items()}
    columns = {
        name: {key: one.get(key) for key in ORIGIN if key != "build"}
        | {"rounds": [f"{found['round']} by {found['policy']}" for found in one.get("rounds") or []]}
        | {f"build.{key}": value for key, value in (one.get("build") or {}).items()}
        | {key: value for key, value in one["config"].items() if key not in NO_RESULT}
        | seeds.get(name, {})
        for name, one in policies.items()
        if name not in further
    }
    return _by_column("How each policy was trained", "setting", columns)


def _made_with(policies: Mapping[str, Any]) -> ResultTable:
    """Code, libraries and device, a column for the policies that share them."""
    columns: dict[str, dict[str, Any]] = {}
    shared: list[tuple[Any, list[str]]] = []
    for name, one in policies.items():
        entries = one.get("made_with") or []
        alike = next((names for found, names in shared if found == entries), None)
        if alike is None:
            shared.append((entries, [name]))
        else:
            alike.append(name)
    for entries, names in shared:
        for entry in entries:
            after = f" from step {entry['from_step'] + 1}" if entry["from_step"] else ""
            code, device = entry["code"], entry["device"]
            columns[", ".join(names) + after] = {
                "commit": _short(code["commit"]),
                "files changed since": _changed(code["changed"]),
                **entry["versions"],
                "device": f"{device['type']}: {device['name']}",
                "processes": device["processes"],
                "threads": device["threads"],
            }
    return _by_column("Code, libraries and device of training", "", columns)


def _sampling(methods: Mapping[str, Any]) -> ResultTable:
    return _by_column("Sampling", "setting", methods["sampling"])


def _by_column(title: str, head: str, columns: Mapping[str, Mapping[str, Any]]) -> ResultTable:
    """A table of values by column and row; rows that are null in every column are left out."""
    keys = dict.fromkeys(key for values in columns.values() for key in values)
    rows = [_row(key, {column: values.get(key) for column, values in columns.items()}) for key in keys]
    return ResultTable(
        title, head, list(columns), [row for row in rows if any(c.text != UNKNOWN for c in row.cells.values())]
    )


def _row(name: str, values: Mapping[str, Any]) -> Row:
    return Row(name, {column: Cell(_text(value)) for column, value in values.items()})


def _text(value: Any) -> str:
    """A value of JSON in a cell."""
    if value is None or value == []:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return str(value)


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest[:SHORT]


def _changed(paths: Sequence[str] | None) -> str | None:
    """The first files of a list, and how many more there are."""
    if paths is None:
        return None
    more = [f"{len(paths) - FEW} more"] if len(paths) > FEW else []
    return ", ".join([*paths[:FEW], *more]) or "none"
