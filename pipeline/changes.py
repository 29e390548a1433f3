"""Why a stage is out of date: which value, which file of its code, which model or rubric, what it reads."""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.params import block

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.stage import Stage

INPUTS = Path("runs/inputs")  # what stage base writes, beside the base policy
MADE = ("runs", "metrics", "report-out")  # folders that stages write into; what else they depend on is code or data
COMMITS = 50  # of a folder's history that are searched for the code that a stage ran with
ABSENT = object()
GONE = "deleted"  # what DVC says of a path that is not there
UNKNOWN = "not in cache"  # and of an output that its cache does not have either
GENERATOR = "generator.json"
CODE = "code"  # in a file of runs/inputs: hashes of code; the rest are files, commits and the source's block
CHANGED = "changed"


class Reason(NamedTuple):
    """One thing that changed since a stage ran."""

    kind: Literal["new", "params", "code", "input", "other"]  # new: its output is neither there nor in DVC's cache
    text: str


def changes(before: Mapping[str, Any], after: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """A line for each value that differs: its dotted name, what it was and what it is."""
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, f"{where}{key}.")
        elif old != new:
            yield f"{where}{key}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    import yaml

    if value is ABSENT:
        return "absent"
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


class Changes:
    """What changed since the stages ran, against what stage base would write now."""

    def __init__(self, fresh: Path, base: Path) -> None:
        """fresh: a folder with the inputs as stage base would write them now. base: the base policy's folder."""
        self.fresh, self.base = fresh, base
        self._code: dict[tuple[str, str], list[str]] = {}  # many stages depend on the same folder

    @cached_property
    def stale(self) -> set[str]:
        """Paths of what stage base would write with other bytes than are on disk."""
        files = (path.relative_to(self.fresh) for path in self.fresh.rglob("*.json"))
        found = {str(INPUTS / path) for path in files if not _same(INPUTS / path, self.fresh / path)}
        return found | ({str(self.base)} if self._other_generator else set())

    @cached_property
    def _other_generator(self) -> bool:
        """Whether the base policy, which says of what files the generator is, will be another one. Code is no part."""
        before, now = (_read(folder / GENERATOR) or {} for folder in (INPUTS, self.fresh))
        return bool(before) and before.get("files") != now.get("files")

    def of(self, stage: "Stage") -> list[Reason]:
        """What changed for a stage, each once."""
        if not any(out.hash_info for out in stage.outs):
            return [Reason("new", "not run yet")]
        states = {path: state for out in stage.outs for path, state in out.status().items()}
        if UNKNOWN in states.values() and not any(out.exists for out in stage.outs if out.use_cache):
            return [Reason("new", "output not there yet")]
        found = [Reason("other", "the command changed")] if stage.changed_stage() else []
        for dep in stage.deps:
            found += self._of_dependency(dep)
        found += [Reason("other", f"output {path} {_state(state)}") for path, state in states.items()]
        return list(dict.fromkeys(found))

    def pending(self, stage: "Stage") -> bool:
        """Whether it depends on what stage base would write anew."""
        return any(dep.def_path in self.stale for dep in stage.deps)

    def _of_dependency(self, dep: "Dependency") -> Iterator[Reason]:
        if hasattr(dep, "params"):
            yield from self._of_params(dep)
            return
        path = Path(dep.def_path)
        if INPUTS in path.parents:
            yield from self._of_input(dep)
        elif path == self.base:
            if self._other_generator or (path.is_dir() and dep.status()):
                yield Reason("input", f"{path} modified")
        elif not (status := dep.status()):
            return
        elif path.parts[0] in MADE:  # what is not there is an output of a stage that has a line of its own
            yield from (Reason("input", f"{name} {state}") for name, state in status.items() if state != GONE)
        else:
            yield from (Reason("code", f"code {file}") for file in self._code_files(dep) or [str(path)])

    def _of_params(self, dep: Any) -> Iterator[Reason]:
        known = dep.hash_info.value or {}
        before = {key: known[key] for key in dep.params if key in known}
        yield from (Reason("params", line) for line in changes(before, {key: block(key) for key in dep.params}))

    def _of_input(self, dep: "Dependency") -> Iterator[Reason]:
        """Of a file of runs/inputs: which of the files, commits and code in it changed."""
        path = Path(dep.def_path)
        fresh = self.fresh / path.relative_to(INPUTS)
        if not dep.hash_info:
            yield Reason("input", f"{path} is read from now on")
            return
        if fresh.is_file() and hashlib.md5(fresh.read_bytes()).hexdigest() == dep.hash_info.value:
            return
        before, now = _read(Path(dep.cache_path)), _read(fresh)
        if before is None or now is None:
            yield Reason("input", f"{path} changed")
            return
        for name, how in _renewed(before.get(CODE, {}), now.get(CODE, {})):
            yield Reason("code", f"code {name}" if how == CHANGED else f"code {name} {how}")
        left_out = (CODE, "block")  # of which the params tell
        others = ({key: value for key, value in one.items() if key not in left_out} for one in (before, now))
        yield from (Reason("input", f"{name} {how}") for name, how in _renewed(*others))

    def _code_files(self, dep: "Dependency") -> list[str]:
        """The files of a folder that changed since; empty where git does not know what they were."""
        key = dep.def_path, str(dep.hash_info.value)
        if key not in self._code:
            folder = Path(dep.def_path)
            self._code[key] = changed_files(folder, key[1]) if folder.is_dir() else []
        return self._code[key]


def changed_files(folder: Path, recorded: str) -> list[str]:
    """The files below a folder that differ from those that DVC recorded the hash of.

    They are looked for in the last commits that touched the folder; where none had that hash, the list is empty.
    """
    now = {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and _counts(str(path))
    }
    blobs: dict[str, str] = {}
    for commit in _git("log", f"--max-count={COMMITS}", "--format=%H", "--", f"{folder}").splitlines():
        before = _listing(commit, folder, blobs)
        if _hash_of(before) == recorded:
            names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
            return [str(folder / name) for name in names]
    return []


def _listing(commit: str, folder: Path, blobs: dict[str, str]) -> dict[str, str]:
    """md5 by path below the folder of its files in a commit. blobs: md5 by git's hash, which is added to."""
    lines = _git("ls-tree", "-r", commit, f"{folder}/").splitlines()
    files = {line.partition("\t")[2]: line.split()[2] for line in lines}
    files = {path: blob for path, blob in files.items() if _counts(path)}
    for blob in {blob for blob in files.values() if blob not in blobs}:
        blobs[blob] = hashlib.md5(_git_bytes("cat-file", "blob", blob)).hexdigest()
    return {str(Path(path).relative_to(folder)): blobs[blob] for path, blob in files.items()}


def _hash_of(listing: Mapping[str, str]) -> str:
    """DVC's hash of a folder: of the list of its files."""
    entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(listing.items())]
    return f"{hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest()}.dir"


def _counts(path: str) -> bool:
    return not path.endswith(".pyc") and "__pycache__" not in path  # as .dvcignore says


def _git(*words: str) -> str:
    return _git_bytes(*words).decode(errors="replace")


def _git_bytes(*words: str) -> bytes:
    """What git prints; nothing where there is no git or no repository."""
    try:
        return subprocess.run(["git", *words], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def _renewed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The innermost names under which the values differ, and how; values are hashes, which tell a person nothing."""
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _renewed(old, new)
        elif old != new:
            yield str(key), "is new" if key not in before else "is gone" if key not in now else CHANGED


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and path.read_bytes() == other.read_bytes()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _state(found: Any) -> str:
    return "not there yet" if found == GONE else str(found)
