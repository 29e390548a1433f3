"""Question sheets, YAML files in this folder: the instructions to a text model, and the texts around its words."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import MinLen
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, read_config
from data.prompts import PLACE
from data.written import read_written
from feedback.differentiable.asks import Text

PART, STATED, DEFECT, QUESTION = "{part}", "{stated}", "{defect}", "{question}"

Texts = Annotated[dict[str, Text], MinLen(1)]  # by name
Explanation = Literal["short", "long"]  # of an answer: a few words that give the reason, or a chain of thought


@dataclass(frozen=True, config=STRICT)
class DecompositionSheet:
    """Diffusion-DRF's: questions about the parts of a caption, and about defects."""

    name: Text
    decompose: Text  # to the text model, with {prompt}
    parts: Texts  # part -> its name in `alignment`
    alignment: Text  # to the judge, with {part} and {stated}
    compared: Text  # to the judge, with {defect}: of a generated clip and a real one after it
    alone: Text  # the same of a generated clip by itself
    physics: Texts  # defect -> in words
    quality: Texts
    explain: dict[Explanation, Text]  # ends a question whose answer is to be explained
    one_word: Text  # ends a question whose answer is one word

    def __post_init__(self) -> None:
        _check_places(
            decompose=(self.decompose, PLACE),
            alignment=(self.alignment, PART, STATED),
            compared=(self.compared, DEFECT),
            alone=(self.alone, DEFECT),
        )


@dataclass(frozen=True, config=STRICT)
class TeachingSheet:
    """VLM-as-Teacher's: process constraints and goal conditions of a task."""

    name: Text
    most: Count  # questions to a task
    teach: Text  # to the text model, with {prompt}
    ask: Text  # to the judge, with {question}
    explain: dict[Explanation, Text]
    one_word: Text

    def __post_init__(self) -> None:
        _check_places(teach=(self.teach, PLACE), ask=(self.ask, QUESTION))


def _check_places(**texts: tuple[str, ...]) -> None:
    """Raises ValueError naming a text without one of its places. texts: by key, the text and its places."""
    for key, (text, *places) in texts.items():
        for place in places:
            if place not in text:
                raise ValueError(f"{key} does not contain {place}")


Sheet = DecompositionSheet | TeachingSheet
METHODS: dict[str, type[DecompositionSheet] | type[TeachingSheet]] = {
    "decompose": DecompositionSheet,
    "teach": TeachingSheet,
}


def ending(sheet: Sheet, explanation: Explanation | None) -> str:
    """What ends a question: how long an explanation of the answer is wanted; None: a word alone.

    Raises ValueError where the sheet does not say how to ask for this explanation.
    """
    if explanation is None:
        return sheet.one_word.strip()
    if explanation not in sheet.explain:
        raise ValueError(
            f"explanation is {explanation}, but the question sheet {sheet.name} has no explain.{explanation}"
        )
    return sheet.explain[explanation].strip()


def load_sheet(path: Path) -> Sheet:
    """A question sheet from its YAML file. Raises ValueError naming the file and the key that is wrong."""
    try:
        block: Any = yaml.safe_load(read_written(Path(path)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a readable question sheet ({error})") from error
    method = block.pop("method", None) if isinstance(block, dict) else None
    if method not in METHODS:
        raise ValueError(f"{path}: method is {method!r}, known are {', '.join(METHODS)}")
    return read_config(METHODS[method], block, f"{path}: sheet")
