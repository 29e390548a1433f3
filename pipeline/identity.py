"""What unfinished work of a stage is of: its run's params and inputs, and the code that dvc.yaml lists for the stage.

The facts are plain JSON, so that they can be read beside the work and compared with those of another run.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.manifest import MANIFEST, sha256_of

ROOT = Path(__file__).parent.parent
RECORDED = Path("runs/inputs")  # what stage base records of the files and the code that params.yaml names
PARAMS, INPUTS, CODE = "params", "inputs", "code"
SOURCES = (".py", ".yaml")
WIDTH = 60  # characters of a value in a difference


class Difference(NamedTuple):
    """One thing in which a run differs from an earlier one."""

    kind: str  # PARAMS | INPUTS | CODE
    text: str


def facts_of(stage: str, params: Any, inputs: Sequence[Path], root: Path = ROOT) -> dict[str, Any]:
    """params, inputs and code of a stage's run. root: the repository, whose dvc.yaml lists the stage's code."""
    return {
        PARAMS: _plain(params),
        INPUTS: {str(path): _content(path) for path in inputs},
        CODE: {str(path.relative_to(root)): sha256_of(path) for path in code_files(stage, root)},
    }


def identity(facts: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change with the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What of the facts `now` is not as it was, in words; params first, code last."""
    found = []
    for kind in (PARAMS, INPUTS, CODE):
        old, new = dict(_leaves(before[kind])), dict(_leaves(now[kind]))
        for key in sorted(old.keys() | new.keys()):
            if key not in new or key not in old or old[key] != new[key]:
                found.append(Difference(kind, _in_words(kind, key, old, new)))
    return found


def code_files(stage: str, root: Path = ROOT) -> list[Path]:
    """The Python and YAML files that dvc.yaml lists for a stage, by its name or its command's; all of ours for another.

    Stages of one command have the same code (tests/test_pipeline.py), so that a run by hand is known as under DVC.
    """
    parsed = yaml.load((root / "dvc.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    stages = {name: entry.get("do", entry) for name, entry in parsed["stages"].items()}
    runs = re.compile(rf"python -m stages\.{re.escape(stage)}\b")
    own = [entry for name, entry in stages.items() if name == stage or runs.match(entry["cmd"])]
    ours = packages(root)
    listed = {dep for entry in own for dep in entry.get("deps", []) if Path(dep).parts[0] in ours}
    files = (file for name in listed or ours for file in _sources(root / name))
    return sorted(files)


def packages(root: Path = ROOT) -> list[str]:
    """Names of our packages: the folders at the root with an __init__.py, without the tests."""
    return sorted(path.parent.name for path in root.glob("*/__init__.py") if path.parent.name != "tests")


def fingerprint(path: Path) -> str:
    """Hash of what a file or folder holds; a folder of ours is known by the manifest that lists its files.

    A foreign folder (a model) is known by names, sizes and times, which cost nothing to read. What does not exist
    here, such as a model that is a hub id, is known by its name.
    """
    listed = path / MANIFEST
    if path.is_file() or listed.is_file():
        return sha256_of(listed if path.is_dir() else path)
    files = [(file.relative_to(path), file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    known = repr([(str(name), stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(known.encode()).hexdigest() if files else str(path)


def _sources(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.suffix in SOURCES and file.is_file())


def _content(path: Path) -> Any:
    """The fingerprint; of a record of stage base what it says of files and code. Its params are among the run's own."""
    if path.parts[: len(RECORDED.parts)] != RECORDED.parts or not path.is_file():
        return fingerprint(path)
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in record.items() if key != "block"}


def _plain(value: Any) -> Any:
    """A value as JSON; what JSON has no form for is its repr."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value of everything that is no mapping."""
    if not isinstance(value, Mapping) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{key}.{name}" if key else str(name))


def _in_words(kind: str, key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if key not in new or key not in old:
        return f"{key} is {'new' if key in new else 'gone'}"
    if kind == PARAMS:
        return f"{key or 'params'} was {_short(old[key])}, is {_short(new[key])}"
    return f"{key} has changed"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
