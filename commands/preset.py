"""Lay a preset over params.yaml."""

from collections.abc import MutableMapping
from typing import Any

import click

from pipeline.command import ROOT, stage_command
from pipeline.params import PARAMS, ParamsError

PRESETS = ROOT / "configs/presets"
WHOLE = ("rounds", "policies", "preferences", "timesteps", "sft", "rwr", "dpo")  # a preset replaces these as a whole


@stage_command
@click.argument("name")
def main(name: str) -> None:
    """Lay configs/presets/NAME.yaml over params.yaml.

    Values of the preset replace those of params.yaml; all other values and all comments stay. `git checkout
    params.yaml` undoes it.
    """
    from ruamel.yaml import YAML

    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ParamsError(f"preset {name!r} is unknown; known are {', '.join(known)}")
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    params = yaml.load(PARAMS)
    overlay(params, yaml.load(PRESETS / f"{name}.yaml"))
    with PARAMS.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    click.echo(f"{PARAMS}: preset {name} is laid over it; `git diff {PARAMS}` shows the changes")


def overlay(params: MutableMapping[str, Any], preset: MutableMapping[str, Any], where: str = "") -> None:
    """Overwrite `params` in place with the values of `preset`. Raises ParamsError for a section that params lack."""
    for key, value in preset.items():
        inside = isinstance(value, dict) and isinstance(params.get(key), MutableMapping) and key not in WHOLE
        if inside:
            overlay(params[key], value, f"{where}{key}.")
        elif key not in params and not where.startswith(("train.", "feedback.sources.")):
            raise ParamsError(f"preset: params.yaml has no {where}{key}; beside it there is {', '.join(params)}")
        else:
            params[key] = value
