"""params.yaml: parsed once a process, its sections as frozen dataclasses."""

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import click

from data.config import ConfigError, read_config
from data.written import read_written

PARAMS = Path("params.yaml")

T = TypeVar("T")


class ParamsError(click.ClickException):
    """What is wrong with params.yaml; a command that raises it ends with this message and exit code 1."""


def load_params(path: Path = PARAMS) -> dict[str, Any]:
    """params.yaml as DVC reads it: YAML 1.2, where 1e-4 is a number."""
    try:
        text = read_written(path)
    except ValueError as error:
        raise ParamsError(str(error)) from error
    return copy.deepcopy(_parsed(text, path))


@lru_cache(maxsize=8)  # by text: a changed file is parsed again
def _parsed(text: str, path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        params = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"{path}: not readable ({error})") from error
    if not isinstance(params, dict):
        raise ParamsError(f"{path}: holds {params!r}, expected sections")
    return params


def aliases(path: Path = PARAMS) -> list[str]:
    """A sentence for each alias in the file: DVC merges an aliased block back with its old values."""
    import yaml

    events = yaml.parse(read_written(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [
        f"{path}, line {event.start_mark.line + 1}: *{event.anchor} repeats a block, and what `dvc exp run -S` sets in "
        "such a block is lost without a word: write the block out, or name a source"
        for event in events
        if isinstance(event, yaml.AliasEvent) and event.start_mark
    ]


def block(name: str, path: Path = PARAMS) -> Any:
    """The value at a dotted name such as `feedback.sources.judge`. Raises ParamsError listing the keys beside it."""
    value: Any = load_params(path)
    for depth, key in enumerate(name.split(".")):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(value) if isinstance(value, dict) else repr(value)
            where = ".".join(name.split(".")[:depth]) or path
            raise ParamsError(f"{path}: {name} is missing; in {where} there is: {known}")
        value = value[key]
    return value


def section(name: str, cls: type[T], path: Path = PARAMS) -> T:
    """The section at a dotted name as the dataclass `cls`. Raises ParamsError as data.config.read_config says."""
    return read_section(block(name, path), cls, name, path)


def read_section(values: Any, cls: type[T], name: str, path: Path = PARAMS) -> T:
    """These values as `cls`, as `section` reads them. name: what errors call them."""
    try:
        return read_config(cls, values, name)
    except ConfigError as error:
        raise ParamsError(f"{path}: {error}") from error


def source_block(name: str) -> dict[str, Any]:
    """`feedback.sources.<name>` with the blocks of the sources that it lists. Raises ParamsError for unknown names."""
    from feedback.core.kinds import resolve

    try:
        return resolve(name, block("feedback.sources"))
    except ValueError as error:
        raise ParamsError(f"{PARAMS}: {error}") from error
