"""What params.yaml names outside runs/, by content: DVC cannot follow a path, a module or a list inside a parameter.

    generator.json         the family's code and the files of the model
    prompts.json           the prompt set and the images that it names
    references.json        the reference clips that it names
    sources/<name>.json    the block with its members', the files that it names (rubric, model), the commits of its hub
                           ids, the code of its kind
    online/<name>.json     the files that an entry of online.policies and its recipe name, the writer's model or code

Stage `base` writes them at every `dvc repro`; the other stages depend on those that they use. So a changed rubric runs
the stages that use it, in any folder, and no others.
"""

import ast
import hashlib
import importlib.util
import json
import os
import re
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from data.manifest import atomically
from data.prompts import load_prompts
from feedback.core.kinds import KINDS, read_block, resolve
from feedback.questions import WRITERS, is_source
from generators.core.load import FAMILIES
from pipeline.command import ROOT
from pipeline.online import REFERENCES
from pipeline.recipes import load_recipe, recipe_files

# Code that dvc.yaml lists for the stages that use it; other code is found from its module.
LISTED = ("data", "cluster", "generators/core", "feedback", "rl")
NO_PATH = ("family", "kind", "references", "writer")  # keys whose values name code
CACHE = Path(".state/hashes.json")  # path -> size, mtime in ns, sha256: a large model is read once
COMMIT = re.compile("[0-9a-f]{40}")  # a revision that is a commit stands for itself


def write_inputs(params: Mapping[str, Any], out: Path, needed: Collection[str] = ()) -> None:
    """Write a JSON file for each thing that params.yaml names into the folder `out`. Equal inputs give equal bytes.

    needed: the sources that the run uses. The hub is asked once for the commit of a hub id of theirs that was never
        downloaded; all other commits are those of the local cache.
    """
    sources = params["feedback"]["sources"]
    with _Hashes(CACHE) as hashes:
        generator, prompts = params["generator"], load_prompts(Path(params["prompts"]["path"]))
        family = _code(generator["family"], FAMILIES, hashes)
        _write(out / "generator.json", files=_files(generator, hashes), code=family)
        images = [prompt.image for prompt in prompts if prompt.image]
        references = [prompt.reference for prompt in prompts if prompt.reference]
        _write(out / "prompts.json", files=_files([params["prompts"]["path"], *images], hashes))
        _write(out / "references.json", files=_files(references, hashes))
        for name in sources:
            block = resolve(name, sources)
            kinds = sorted({one["kind"] for one in _blocks(block)})
            code = {kind: found for kind in kinds if (found := _code(kind, KINDS, hashes))}
            hub = {"hub": found} if (found := _commits(name, block, name in needed)) else {}
            _write(out / f"sources/{name}.json", block=block, files=_files(block, hashes), code=code, **hub)
        for name, entry in params["online"]["policies"].items():
            _write(out / f"online/{name}.json", **_online(entry, sources, hashes))


def _online(entry: Mapping[str, Any], sources: Mapping[str, Any], hashes: "_Hashes") -> dict[str, Any]:
    """The recipe, the files that it and its entry of online.policies name, and the code of writer and references.

    Of a writer that is a source only its model counts: what it wrote is kept with the policy, so that another price or
    pace of the writer is no reason to train again.
    """
    questions = load_recipe(entry["recipe"], entry.get("changes") or {}).questions
    named: list[Any] = [dict(entry), *map(str, recipe_files(entry["recipe"])), *_pictures(entry.get("overlay"))]
    found: dict[str, Any] = {}
    if questions:
        named.append(questions.rubric)
        if is_source(questions.writer):
            writer = sources.get(questions.writer, {})
            found["writer"] = {key: writer.get(key) for key in ("kind", "path", "revision", "model", "base_url")}
            named.append(found["writer"])
    modules = [(entry.get("references"), REFERENCES), (questions.writer if questions else None, WRITERS)]
    dotted = {name: table.get(name, name) for name, table in modules if name and (name in table or "." in name)}
    code = {name: _code(path, {}, hashes) for name, path in dotted.items()}
    return {"files": _files(named, hashes), "code": code, **found}


def _pictures(overlay: str | None) -> list[str]:
    """The pictures that an overlay's marks name, relative to its folder. What is wrong with it, `load_overlay` says."""
    if not overlay:
        return []
    try:
        given = yaml.safe_load(Path(overlay).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    marks = given.get("marks") if isinstance(given, Mapping) else None
    marks = [mark for mark in marks if isinstance(mark, Mapping)] if isinstance(marks, list) else []
    return [str(Path(overlay).parent / str(mark[key])) for mark in marks for key in ("image", "mask") if key in mark]


def _commits(name: str, block: Mapping[str, Any], needed: bool) -> dict[str, str]:
    """The commits that the hub ids of a source and of those that it lists stand for, by id and revision."""
    needs = read_block(name, block).needs
    found = {}
    if needs.model and not Path(needs.model).exists() and not COMMIT.fullmatch(needs.revision or ""):
        commit = hub_commit(needs.model, needs.revision, needed)
        found = {f"{needs.model}@{needs.revision or 'main'}": commit} if commit else {}
    for key, inner in needs.inner.items():
        found |= _commits(f"{name}.{key}", inner, needed)
    return found


def hub_commit(model: str, revision: str | None, ask: bool) -> str | None:
    """The commit of a hub id in the local cache; None where it is not known.

    ask: whether the hub is asked where the cache does not know it. So the first download, by a later stage, changes
        nothing that was recorded, and the labels are not made again.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for local in (True, False) if ask else (True,):
        try:
            found = snapshot_download(model, revision=revision, allow_patterns=["config.json"], local_files_only=local)
            return Path(found).name
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError):
            continue
    return None


def module_files(dotted: str) -> list[Path]:
    """The files that a module's import runs, sorted: as paths from the working folder where they lie in it.

    Files under LISTED and what is installed (site-packages, the standard library) are left out.
    """
    found, todo = dict[Path, str](), [dotted]
    while todo:
        for path, name in _files_of(todo.pop()):
            if path not in found and not any(path.is_relative_to(folder) for folder in LISTED):
                found[path] = name
                todo += _imports(path, name)
    return sorted(found)


def _files_of(dotted: str) -> Iterator[tuple[Path, str]]:
    """The files that importing a dotted name runs, each with its module's name: the packages around it and itself."""
    parts = dotted.split(".")
    if (folder := _folder_of(parts[0])) is None:
        return
    for length in range(1, len(parts) + 1):
        inner = folder.joinpath(*parts[:length])
        for path in (inner.with_suffix(".py"), inner / "__init__.py"):
            if path.is_file():
                yield path, ".".join(parts[:length])


def _folder_of(top: str) -> Path | None:
    """The folder that a module or package is imported from; None where it is installed, ours, or not there."""
    if Path(f"{top}.py").is_file() or Path(top).is_dir():
        return Path()
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # of __main__, and of an empty name
        return None
    if spec is None or not (spec.submodule_search_locations or spec.has_location):
        return None
    place = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
    installed = place.is_relative_to(sysconfig.get_path("stdlib")) or {"site-packages", "dist-packages"} & {
        *place.parts
    }
    return None if installed or place.is_relative_to(ROOT) else place.parent


def _imports(path: Path, name: str) -> list[str]:
    """Names that a file's import statements may import. name: the module's, for those that begin with a dot."""
    names: list[str] = []
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
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
    if path is None or not path.exists():
        return {}
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return {str(path.relative_to(Path.cwd()) if inside else path): hashes.of(path)}


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
        files = sorted(_files_under(path))
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


def _files_under(folder: Path) -> Iterator[Path]:
    """All files of a folder, links followed, without what is hidden and without __pycache__."""
    for found, folders, names in os.walk(folder, followlinks=True):
        here = Path(found).resolve()
        seen = [name for name in folders if name.startswith(".") or name == "__pycache__"]
        seen += [name for name in folders if here.is_relative_to((here / name).resolve())]  # a link to a folder above
        folders[:] = [name for name in folders if name not in seen]
        yield from (file for name in names if not name.startswith(".") and (file := Path(found, name)).is_file())
