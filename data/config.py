"""Sections of a configuration as frozen dataclasses, with errors that name the key, its value and what is right.

    @dataclass(frozen=True, config=STRICT)      # pydantic.dataclasses.dataclass
    class Sampling:
        steps: Count
        solver: Literal["euler", "unipc"]

A class may check its values together in __post_init__ and raise ValueError.
"""

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Interval
from pydantic import ConfigDict, TypeAdapter, ValidationError

STRICT = ConfigDict(extra="forbid", strict=True)  # no unknown key; no "1" for 1, no True for 1, no 1.0 for 1

Count = Annotated[int, Ge(1)]
WholeNotNegative = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, le=1)]

T = TypeVar("T")


class ConfigError(ValueError):
    """What is wrong with a section: a line for each key."""


def read_config(cls: type[T], values: Any, where: str) -> T:
    """These values as `cls`, a dataclass of pydantic's. where: what errors call the section, such as `evaluate`.

    A list becomes a tuple where the field is one, a section within becomes the field's dataclass.
    Raises ConfigError for unknown and missing keys, wrong types, values out of range, and what __post_init__ refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}, expected a section with the keys {', '.join(_keys(cls))}")
    try:
        # By way of JSON, whose strict rules take a list for a tuple and a whole number for a float.
        return TypeAdapter(cls).validate_json(json.dumps(values, default=str), strict=True, extra="forbid")
    except ValidationError as error:
        problems = [_problem(cls, one, where) for one in error.errors()]
        raise ConfigError("\n  ".join(dict.fromkeys(problems))) from error


def _problem(cls: type, error: Any, where: str) -> str:
    """One of pydantic's errors in a line that names the key."""
    location: Sequence[int | str] = error["loc"]
    if error["type"] == "value_error" and "error" in error.get("ctx", {}):
        return f"{_join(where, location)}: {error['ctx']['error']}"
    name = _join(where, location)
    known = f"known keys are {', '.join(_keys(_owner(cls, location)))}"
    if error["type"] == "unexpected_keyword_argument":
        return f"{name} ({error['input']!r}) is unknown; {known}"
    if error["type"] == "missing":
        return f"{name} is missing; {known}"
    expected = error["msg"].removeprefix("Input should be ").replace("valid dictionary", "section")
    return f"{name} is {_yaml(error['input'])}, expected {expected}; {known}"


def _join(where: str, location: Sequence[int | str]) -> str:
    """`where` with the keys that lead to a value: panel.members[2]."""
    return where + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location)


def _yaml(value: Any) -> str:
    return "null" if value is None else repr(value)


def _keys(cls: Any) -> list[str]:
    return [field.name for field in fields(cls) if field.init] if is_dataclass(cls) else []


def _owner(cls: Any, location: Sequence[int | str]) -> Any:
    """The innermost dataclass of `cls` that a location lies in."""
    for key in location[:-1]:
        hint = typing.get_type_hints(cls).get(str(key))
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        inner = next((option for option in options if is_dataclass(option)), None)
        if inner is None:
            return cls
        cls = inner
    return cls
