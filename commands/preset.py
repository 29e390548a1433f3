"""Lay presets over params.yaml."""

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data.manifest import atomically
from pipeline.changes import changes
from pipeline.command import ROOT, stage_command
from pipeline.params import PARAMS, ParamsError, load_params

if TYPE_CHECKING:
    from ruamel.yaml import YAML

PRESETS = ROOT / "configs/presets"
# A preset replaces these as a whole: entries of a name that it does not know, and values that stand or fall together.
WHOLE = (
    "rounds", "pools", "dense", "policies", "extend", "preferences", "timesteps", "sft", "rwr", "dpo", "kto", "nft",
    "dense_dpo", "changes", "components", "models", "best_of",
)  # fmt: skip
OPEN = ("train.", "feedback.sources.", "build.sources.")  # where a preset may add keys
# Null under a preset that sets generator.path, unless it sets them too; two models may share a path.
OF_MODEL = ("revision", "components", "embedded_guidance")
UNDER = "presets"  # a preset's key that names those which it is laid over


@stage_command
@click.argument("names", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Print the changes, and write nothing.")
def main(names: tuple[str, ...], dry_run: bool) -> None:
    """Lay presets over params.yaml, in the order of NAMES, and print what each changes.

    A name is that of a file in configs/presets, such as generators/wan2.2-ti2v, or the path of a YAML file of your own.
    Values of a preset replace those of params.yaml and of the presets before it; all other values, and comments, stay.
    A preset that names others in its key `presets` is laid over them. `git checkout params.yaml` undoes it.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise ParamsError(f"preset {twice[0]} is named twice")
    before, paths = load_params(PARAMS), layers(names)
    for path in paths:
        after = copy.deepcopy(before)
        overlay(after, values_of(path), path)
        changed = list(changes(before, after))
        click.echo(f"{path.stem}: {len(changed)} values of {PARAMS} change")
        for line in changed:
            click.echo(f"  {line}")
        before = after
    if dry_run:
        click.echo(f"{PARAMS} is as it was (--dry-run)")
        return
    write(paths)
    click.echo(f"{PARAMS} is written; `vfrl check` says whether all of it fits together")


def preset_path(name: str) -> Path:
    """The file of a preset's name, or the file that is named by its path. Raises ParamsError where there is none.

    A preset in a folder of configs/presets has the folder in its name, such as generators/wan2.2-ti2v.
    """
    files = [*sorted(PRESETS.glob("*.yaml")), *sorted(PRESETS.glob("*/*.yaml"))]
    known = {path.relative_to(PRESETS).with_suffix("").as_posix(): path for path in files}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise ParamsError(f"preset {name!r} is unknown; known are {', '.join(known)}, and the paths of YAML files")


def layers(names: Iterable[str], above: Sequence[Path] = ()) -> list[Path]:
    """The presets' files in the order in which they are laid: before each, those that its key `presets` names.

    above: those that lead to these names. Raises ParamsError for a preset that leads to itself.
    """
    found: list[Path] = []
    for name in names:
        path = preset_path(name)
        if path in above:
            raise ParamsError(f"{path}: its key {UNDER} leads back to itself")
        below = load_params(path).get(UNDER, [])
        if not isinstance(below, list):
            raise ParamsError(f"{path}: {UNDER} is {below!r}, expected a list of presets")
        found += [*(one for one in layers(below, (*above, path)) if one not in found), path]
    return found


def values_of(path: Path) -> dict[str, Any]:
    """What a preset's own file lays over params."""
    return {key: value for key, value in load_params(path).items() if key != UNDER}


def overlay(params: MutableMapping[str, Any], preset: Mapping[str, Any], of: Path | str = "preset") -> None:
    """Overwrite `params` in place with the values of `preset`. of: the preset's file, for errors.

    Raises ParamsError for a key that params lack, and for a value in place of a section.
    """
    for file, values in ((of, preset), (PARAMS, params)):
        for name in preset.keys() & values.keys():
            if not isinstance(values[name], Mapping):
                raise ParamsError(f"{file}: {name} is {values[name]!r}, expected a section")
    if "path" in preset.get("generator", {}):
        params["generator"].update((key, None) for key in OF_MODEL if key in params["generator"])
    _overlay(params, preset, "", of)


def _overlay(params: MutableMapping[str, Any], preset: Mapping[str, Any], where: str, of: Path | str) -> None:
    for key, value in preset.items():
        known = params.get(key)
        if key not in params and not where.startswith(OPEN):
            beside = f"in {where.removesuffix('.')}" if where else "its sections"
            raise ParamsError(f"{of}: {PARAMS} has no {where}{key}; {beside} are {', '.join(map(str, params))}")
        if isinstance(known, MutableMapping) and isinstance(value, Mapping) and key not in WHOLE:
            _overlay(known, value, f"{where}{key}.", of)
        elif isinstance(known, MutableMapping) and not isinstance(value, Mapping | None):
            raise ParamsError(f"{of}: {where}{key} is {value!r}; in {PARAMS} it is a section")
        else:
            params[key] = value


def write(presets: Sequence[Path]) -> None:
    """Lay these presets over params.yaml, and keep its comments."""
    with edited() as params:
        for path in presets:
            preset = parser().load(path)
            preset.pop(UNDER, None)
            overlay(params, preset, path)


@contextmanager
def edited() -> Iterator[Any]:
    """params.yaml as a ruamel mapping, which is written when the block ends, its comments kept."""
    yaml = parser()
    params = yaml.load(PARAMS)
    yield params
    with atomically(PARAMS) as partial, partial.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def parser() -> "YAML":
    """Of YAML with comments, which it writes as params.yaml is written."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml
