"""What params.yaml names outside runs/, by content: DVC cannot follow a path, a module or a list inside a parameter.

    generator.json         the family's code and the files of the model
    prompts.json           the prompt set and the clips and images that it names
    sources/<name>.json    the block with its members', the files that it names (rubric, model), the code of its kind
    online/<name>.json     the files that an entry of online.policies and its recipe name, the code of their writer

Stage `base` writes them at every `dvc repro`; the other stages depend on those that they use. So a changed rubric runs
the stages that use it, in any folder, and no others.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.manifest import atomically
from data.prompts import load_prompts
from feedback.core.kinds import KINDS, resolve
from feedback.questions import WRITERS
from generators.core.load import FAMILIES
from pipeline.online import REFERENCES
from pipeline.recipes import load_recipe

# Code that dvc.yaml lists for the stages that use it; other code is found from its module.
LISTED = ("data", "cluster", "generators/core", "feedback", "rl")
NO_PATH = ("kind", "references")  # keys whose values name code
CACHE = Path(".state/hashes.json")  # path -> size, mtime in ns, sha256: a large model is read once


def write_inputs(params: Mapping[str, Any], out: Path) -> None:
    """Write a JSON file for each thing that params.yaml names into the folder `out`. Equal inputs give equal bytes."""
    sources = params["feedback"]["sources"]
    with _Hashes(CACHE) as hashes:
        generator = params["generator"]
        _write(
            out / "generator.json", files=_files(generator, hashes), code=_code(generator["family"], FAMILIES, hashes)
        )
        _write(out / "prompts.json", files=_prompt_files(params["prompts"]["path"], hashes))
        for name in sources:
            block = resolve(name, sources)
            kinds = sorted({one["kind"] for one in _blocks(block)})
            code = {kind: found for kind in kinds if (found := _code(kind, KINDS, hashes))}
            _write(out / f"sources/{name}.json", block=block, files=_files(block, hashes), code=code)
        for name, entry in params["online"]["policies"].items():
            _write(out / f"online/{name}.json", **_online(entry, hashes))


def _online(entry: Mapping[str, Any], hashes: "_Hashes") -> dict[str, Any]:
    """The files that an entry of online.policies and its recipe name, and the code of its writer and references."""
    questions = load_recipe(entry["recipe"], entry.get("changes") or {}).questions
    files = _files([dict(entry), questions.rubric if questions else None], hashes)
    named = [(entry.get("references"), REFERENCES), (questions.writer if questions else None, WRITERS)]
    modules = {name: table.get(name, name) for name, table in named if name and (name in table or "." in name)}
    return {"files": files, "code": {name: _code(path, {}, hashes) for name, path in modules.items()}}


def module_files(dotted: str) -> list[Path]:
    """The files of the working folder that a module's import runs, as paths from that folder, sorted.

    Files under LISTED are left out. A module of the environment has none.
    """
    found, todo = set[Path](), [dotted]
    while todo:
        for path in _files_of(todo.pop()):
            if path not in found and not any(path.is_relative_to(folder) for folder in LISTED):
                found.add(path)
                todo += _imports(path)
    return sorted(found)


def _files_of(dotted: str) -> Iterator[Path]:
    """The files of the working folder that importing a dotted name runs: its module and the packages around it."""
    parts = dotted.split(".")
    for length in range(1, len(parts) + 1):
        inner = Path(*parts[:length])
        yield from (path for path in (inner.with_suffix(".py"), inner / "__init__.py") if path.is_file())


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _code(name: str, table: Mapping[str, str], hashes: "_Hashes") -> dict[str, str]:
    """sha256 by path of the code behind a name of a table or a dotted path; empty where dvc.yaml lists it."""
    return {str(path): hashes.of(path) for path in module_files(table.get(name, name))}


def _blocks(block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A source's block and those of the sources that it lists."""
    return [block, *(inner for key in ("members", "of") for inner in (block.get(key) or {}).values())]


def _files(value: Any, hashes: "_Hashes") -> dict[str, str]:
    """sha256 by path of every file and folder that a value of params.yaml names, however deep."""
    if isinstance(value, Mapping):
        value = [inner for key, inner in value.items() if key not in NO_PATH]
    if isinstance(value, list):
        return {path: found for inner in value for path, found in _files(inner, hashes).items()}
    path = Path(value) if isinstance(value, str) and value else None
    return {str(path): hashes.of(path)} if path and path.exists() else {}


def _prompt_files(path: str, hashes: "_Hashes") -> dict[str, str]:
    """sha256 by path of a prompt set and of the images and reference clips that it names."""
    named = [one for prompt in load_prompts(Path(path)) for one in (prompt.image, prompt.reference) if one]
    return _files([path, *sorted(set(named))], hashes)


def _write(path: Path, **facts: Any) -> None:
    with atomically(path) as partial:
        partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


class _Hashes:
    """Content hashes, remembered in a file by size and time of change."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known: dict[str, list[Any]] = {}

    def __enter__(self) -> "_Hashes":
        if self.cache.is_file():
            self.known = json.loads(self.cache.read_text(encoding="utf-8"))
        return self

    def __exit__(self, *failure: object) -> None:
        with atomically(self.cache) as partial:
            partial.write_text(json.dumps(self.known), encoding="utf-8")

    def of(self, path: Path) -> str:
        """sha256 of a file's bytes, or of a folder's names and bytes; hidden files and __pycache__ do not count."""
        if path.is_file():
            return self._of_file(path)
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
        listed = [[str(file.relative_to(path)), self._of_file(file)] for file in files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        size, changed, found = self.known.get(str(path), (None, None, ""))
        if (size, changed) != (stat.st_size, stat.st_mtime_ns):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            self.known[str(path)] = [stat.st_size, stat.st_mtime_ns, found]
        return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)
