"""The code behind a dotted name: the files that its import runs, found from their import statements."""

import ast
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path


def module_files(dotted: str, skipped: Collection[str] = ()) -> dict[Path, str]:
    """The files that a module's import runs, sorted, each with its module's name.

    Paths are from the working folder where they lie in it. skipped: names of modules and packages that are left out,
    with all that only they import. What is installed (site-packages, the standard library) is left out too.
    """
    found, todo = dict[Path, str](), [dotted]
    while todo:
        for path, name in _files_of(todo.pop()):
            if path not in found and not any(f"{name}.".startswith(f"{one}.") for one in skipped):
                found[path] = name
                todo += _imports(path, name)
    return dict(sorted(found.items()))


def installed_versions(files: Mapping[Path, str]) -> dict[str, str]:
    """Versions by name of the installed packages that these files, with their modules' names, import."""
    own = {name.split(".")[0] for name in files.values()}
    imported = {name.split(".")[0] for path, module in files.items() for name in _imports(path, module)}
    packages = {package for name in imported - own for package in _distributions().get(name, ())}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


@cache
def _distributions() -> dict[str, list[str]]:
    """Names of the installed packages that bring a module, by its name."""
    found = importlib.metadata.packages_distributions()
    return {name: of for name, of in found.items() if name not in sys.stdlib_module_names}


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
    """The folder that a module or package is imported from; None where it is installed or not there."""
    if not top:
        return None
    if Path(f"{top}.py").is_file() or Path(top).is_dir():
        return Path()
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # of __main__
        return None
    if spec is None or not (spec.submodule_search_locations or spec.has_location):
        return None
    place = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
    installed = place.is_relative_to(sysconfig.get_path("stdlib")) or {"site-packages", "dist-packages"} & {
        *place.parts
    }
    return None if installed else place.parent


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
