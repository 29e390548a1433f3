"""Question sheets, YAML files in this folder: what a text model is told to write, and the words around that."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from data.prompts import PLACE

PART, STATED, DEFECT, QUESTION = "{part}", "{stated}", "{defect}", "{question}"


@dataclass(frozen=True)
class Decomposition:
    """Diffusion-DRF's: questions about the parts of a caption, and about defects."""

    name: str
    decompose: str  # to the text model, with {prompt}
    parts: dict[str, str]  # part -> what `alignment` calls it
    alignment: str  # to the judge, with {part} and {stated}
    compared: str  # to the judge, with {defect}: of a generated clip and a real one after it
    alone: str  # the same of a generated clip by itself
    physics: dict[str, str]  # defect -> in words
    quality: dict[str, str]
    explain: str  # ends a question whose answer is to be explained
    one_word: str  # ends one whose answer is not

    places = {"decompose": (PLACE,), "alignment": (PART, STATED), "compared": (DEFECT,), "alone": (DEFECT,)}


@dataclass(frozen=True)
class Teaching:
    """VLM-as-Teacher's: process constraints and goal conditions of a task."""

    name: str
    most: int  # questions to a task
    teach: str  # to the text model, with {prompt}
    ask: str  # to the judge, with {question}
    explain: str
    one_word: str

    places = {"teach": (PLACE,), "ask": (QUESTION,)}


Sheet = Decomposition | Teaching
METHODS: dict[str, type[Decomposition] | type[Teaching]] = {"decompose": Decomposition, "teach": Teaching}


def load_sheet(path: Path) -> Sheet:
    """A question sheet from its YAML file. Raises ValueError naming the file and the key that is wrong."""
    try:
        block = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable question sheet ({error})") from error
    method = block.pop("method", None) if isinstance(block, dict) else None
    if method not in METHODS:
        raise ValueError(f"{path}: method is {method!r}, known are {list(METHODS)}")
    cls = METHODS[method]
    if problem := _problem(block, cls):
        raise ValueError(f"{path}: {problem}")
    return cls(**block)


def _problem(block: dict[str, Any], cls: type) -> str | None:
    """What is wrong with a sheet's keys and values, with the key first; null if nothing is."""
    known = [field.name for field in fields(cls)]
    for key in block:
        if key not in known:
            return f"{key} is not a key of this sheet; known are {known}"
    for key in known:
        if key not in block:
            return f"{key} is missing"
        hint, value = get_type_hints(cls)[key], block[key]
        if hint is str and not (isinstance(value, str) and value.strip()):
            return f"{key} is {value!r}, expected a text"
        if hint is int and not (type(value) is int and value >= 1):
            return f"{key} is {value!r}, expected a whole number, at least 1"
        if hint == dict[str, str] and not (isinstance(value, dict) and value and all(map(_named, value.items()))):
            return f"{key} is {value!r}, expected texts by name"
        for place in cls.places.get(key, ()):  # type: ignore[attr-defined]
            if place not in value:
                return f"{key} has no {place} in it"
    return None


def _named(item: tuple[Any, Any]) -> bool:
    name, text = item
    return isinstance(name, str) and isinstance(text, str) and bool(text.strip())
