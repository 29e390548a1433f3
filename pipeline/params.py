"""params.yaml into frozen dataclasses."""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

PARAMS = Path("params.yaml")

T = TypeVar("T")


class ParamsError(click.ClickException):
    """What is wrong with params.yaml; a stage that raises it ends with this message and exit code 1."""


def load_params(path: Path = PARAMS) -> dict[str, Any]:
    """params.yaml as DVC reads it: YAML 1.2, where 1e-4 is a number."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        params = YAML(typ="safe", pure=True).load(path)
    except (OSError, YAMLError) as error:
        raise ParamsError(f"{path}: not readable ({error})") from error
    if not isinstance(params, dict):
        raise ParamsError(f"{path}: holds {params!r}, expected sections")
    return params


def block(name: str, path: Path = PARAMS) -> Any:
    """What stands at a dotted name such as `feedback.sources.judge`. Raises ParamsError listing what is there."""
    value: Any = load_params(path)
    for depth, key in enumerate(name.split(".")):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(value) if isinstance(value, dict) else repr(value)
            where = ".".join(name.split(".")[:depth]) or path
            raise ParamsError(f"{path}: {name} is missing; in {where} there is: {known}")
        value = value[key]
    return value


def section(name: str, cls: type[T], path: Path = PARAMS) -> T:
    """The section at a dotted name as the frozen dataclass `cls`.

    Every key must be a field of `cls`, every field without a default must be there, and every value must have the
    field's type: int, float (a whole number will do), str, bool, X | None, tuple[X, ...], dict, or another dataclass
    for a section within it. Otherwise raises ParamsError naming `section.key`, the value and the known keys.
    """
    return read_section(block(name, path), cls, name, path)


def read_section(values: Any, cls: type[T], name: str, path: Path = PARAMS) -> T:
    """These values as `cls`, as `section` reads them. name: what errors call them."""
    hints = typing.get_type_hints(cls)
    known = ", ".join(hints)
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: {name} is {values!r}, expected a section with the keys {known}")
    for key, value in values.items():
        if key not in hints:
            raise ParamsError(f"{path}: {name}.{key} ({value!r}) is unknown; known keys are {known}")
        if not _is(value, hints[key]):
            wanted = _type_name(hints[key])
            raise ParamsError(f"{path}: {name}.{key} is {value!r}, expected {wanted}; known keys are {known}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is field.default_factory is MISSING:
            raise ParamsError(f"{path}: {name}.{field.name} is missing; known keys are {known}")
    try:
        return cls(**{key: _as(value, hints[key], f"{name}.{key}", path) for key, value in values.items()})
    except ValueError as error:  # the dataclass's own check of its values
        raise ParamsError(f"{path}: {name}: {error}") from error


def _is(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML may stand for this type. True and False are no numbers."""
    if isinstance(hint, types.UnionType):
        return any(_is(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(_is(item, typing.get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return is_dataclass(hint) or isinstance(value, typing.get_origin(hint) or hint)  # _build looks into a dataclass


def _as(value: Any, hint: Any, name: str, path: Path) -> Any:
    """A value that `_is` of this type, as it."""
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if is_dataclass(option) and value is not None:
            return read_section(value, option, name, path)  # type: ignore[arg-type]
    if isinstance(value, list):
        return tuple(value)
    return float(value) if hint is float else value


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("None", "null")
