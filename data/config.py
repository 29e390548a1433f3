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
    name, owner, hint = _located(cls, error["loc"], where)
    context = error.get("ctx", {})
    if error["type"] == "value_error" and "error" in context:
        return f"{name}: {context['error']}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        key = context["discriminator"].strip("'")
        found = f"is {context['tag']!r}" if "tag" in context else "is missing"
        return f"{name}.{key} {found}, expected one of {', '.join(_tagged(owner))}"
    if is_dataclass(hint) and error["type"] == "dataclass_type":
        return f"{name} is {_yaml(error['input'])}, expected a section with the keys {', '.join(_keys(hint))}"
    known = f"known keys are {', '.join(_keys(owner) or _tagged(owner))}"
    if error["type"] == "unexpected_keyword_argument":
        return f"{name} ({error['input']!r}) is unknown; {known}"
    if error["type"] == "missing":
        return f"{name} is missing; {known}"
    expected = error["msg"].removeprefix("Input should be ").replace("valid dictionary", "section")
    expected = (
        expected.replace("a valid boolean", "true or false")
        .replace("an object", "a section")
        .replace("valid array", "list")
    )
    return f"{name} is {_yaml(error['input'])}, expected {expected}; {known}"


def _located(cls: Any, location: Sequence[int | str], where: str) -> tuple[str, Any, Any]:
    """A value's name, such as panel.members[2], the innermost dataclass or tagged union around it, and its type."""
    name, owner, hint = where, cls, cls
    for key in location:
        if choices := _tagged(hint):  # pydantic puts the tag into the location, where params.yaml has no key
            owner = hint = choices.get(str(key))
            continue
        name += f"[{key}]" if isinstance(key, int) else f".{key}"
        if is_dataclass(hint):
            owner, hint = hint, _without_none(typing.get_type_hints(hint, include_extras=True).get(str(key)))
        else:
            hint = None
    return name, hint if _tagged(hint) else owner, hint


def _without_none(hint: Any) -> Any:
    """The type X of a field `X | None`."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return options[0] if is_union and len(options) == 1 else hint


def _tagged(hint: Any) -> dict[str, Any]:
    """The dataclasses of a discriminated union, Annotated[A | B, Field(discriminator="name")], by their tag."""
    marks = [mark.discriminator for mark in getattr(hint, "__metadata__", ()) if getattr(mark, "discriminator", None)]
    if not marks:
        return {}
    options = typing.get_args(typing.get_args(hint)[0])
    return {tag: one for one in options for tag in typing.get_args(typing.get_type_hints(one)[marks[0]])}


def _yaml(value: Any) -> str:
    return "null" if value is None else repr(value)


def _keys(cls: Any) -> list[str]:
    return [field.name for field in fields(cls) if field.init] if is_dataclass(cls) else []
