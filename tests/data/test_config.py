"""Sections as strict dataclasses: what is taken, and how errors name what is wrong."""

from typing import Annotated, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from data.config import STRICT, ConfigError, Count, Positive, read_config


@dataclass(frozen=True, config=STRICT)
class Inner:
    steps: Count
    solver: Literal["euler", "unipc"] = "unipc"


@dataclass(frozen=True, config=STRICT)
class Outer:
    rate: Positive
    names: tuple[str, ...]
    inner: Inner | None
    extra: dict

    def __post_init__(self) -> None:
        if len(self.names) > 2:
            raise ValueError(f"names are {len(self.names)}, expected at most 2")


GIVEN = {"rate": 1, "names": ["a"], "inner": {"steps": 3}, "extra": {"free": [1]}}


def test_lists_become_tuples_sections_dataclasses_and_whole_numbers_floats():
    assert read_config(Outer, GIVEN, "outer") == Outer(1.0, ("a",), Inner(3), {"free": [1]})


def test_a_wrong_value_is_named_with_what_is_right():
    for change, message in (
        ({"rat": 1}, "outer.rat (1) is unknown; known keys are rate, names, inner, extra"),
        ({"rate": 0}, "outer.rate is 0, expected greater than 0; known keys are rate"),
        ({"rate": None}, "outer.rate is null, expected a valid number; known"),
        ({"rate": True}, "outer.rate is True, expected a valid number"),
        ({"names": ["a", 2]}, "outer.names[1] is 2, expected a valid string"),
        ({"inner": {"steps": "3"}}, "outer.inner.steps is '3', expected a valid integer; known keys are steps, solver"),
        ({"inner": {}}, "outer.inner.steps is missing; known keys are steps, solver"),
        ({"inner": 8}, "outer.inner is 8, expected a section with the keys steps, solver"),
        ({"inner": {"steps": 1, "solver": "ddim"}}, "outer.inner.solver is 'ddim', expected 'euler' or 'unipc'"),
        ({"names": ["a", "b", "c"]}, "outer: names are 3, expected at most 2"),
    ):
        with pytest.raises(ConfigError) as error:
            read_config(Outer, GIVEN | change, "outer")
        assert message in str(error.value), (change, message)


def test_every_wrong_key_has_a_line_of_its_own():
    with pytest.raises(ConfigError) as error:
        read_config(Outer, GIVEN | {"rate": -1, "rat": 2}, "outer")
    assert [line.split()[0] for line in str(error.value).splitlines()] == ["outer.rate", "outer.rat"]


def test_what_is_no_section_is_named_with_the_keys_of_one():
    with pytest.raises(ConfigError, match=r"outer is 7, expected a section with the keys rate, names, inner, extra"):
        read_config(Outer, 7, "outer")


@dataclass(frozen=True, config=STRICT)
class Square:
    side: Positive
    kind: Literal["square"] = "square"


@dataclass(frozen=True, config=STRICT)
class Disc:
    radius: Positive
    kind: Literal["disc"] = "disc"


@dataclass(frozen=True, config=STRICT)
class Drawing:
    shape: Annotated[Square | Disc, Field(discriminator="kind")]


def test_one_of_several_sections_is_chosen_by_its_tag_which_errors_do_not_put_into_the_path():
    assert read_config(Drawing, {"shape": {"kind": "disc", "radius": 2}}, "d") == Drawing(Disc(2.0))
    for shape, message in (
        ({"kind": "star"}, "d.shape.kind is 'star', expected one of square, disc"),
        ({"side": 1}, "d.shape.kind is missing, expected one of square, disc"),
        ({"kind": "disc", "radius": 0}, "d.shape.radius is 0, expected greater than 0; known keys are radius, kind"),
        ({"kind": "square", "side": 1, "radius": 1}, "d.shape.radius (1) is unknown; known keys are side, kind"),
        ("disc", "d.shape is 'disc', expected a section; known keys are square, disc"),
    ):
        with pytest.raises(ConfigError) as error:
            read_config(Drawing, {"shape": shape}, "d")
        assert message in str(error.value), shape
