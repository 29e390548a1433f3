"""The questions to a differentiable judge about the clips of each prompt, each with its wanted answer.

Stored as JSON lines, one for each prompt and question, so that the record of a run says which question moved its
generator and who wrote it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints
from pydantic.dataclasses import dataclass

from data.config import STRICT, read_config
from data.manifest import atomically
from feedback.core.rubric import AnyRubric

ALIGNMENT, PHYSICS, QUALITY, PROCESS, GOAL = "alignment", "physics", "quality", "process", "goal"
RUBRIC, OWN = "rubric", "own"
KINDS = (ALIGNMENT, PHYSICS, QUALITY, PROCESS, GOAL, RUBRIC, OWN)
YES, NO = "Yes", "No"
QUESTION = "{question}"  # in a template, for the question

Text = Annotated[str, StringConstraints(pattern=r"\S")]  # with at least one visible character


@dataclass(frozen=True, config=STRICT)
class Ask:
    """One question to a judge, answered by one of two words. Raises ValueError naming the field that is wrong."""

    name: Text  # unique among the questions of a prompt
    kind: (
        str  # one of KINDS: alignment, physics, quality of Diffusion-DRF; process, goal of VLM-as-Teacher; rubric, own
    )
    text: Text  # the judge's whole message beside the pictures
    wanted: Text  # the answer in favour of the clip, in the judge's spelling
    other: Text  # the answer against it
    explanation: Text | None  # the text after the wanted answer, for a loss of a whole reply; None: no text
    with_reference: bool  # whether a real clip of the prompt follows the generated one
    author: Text  # of the question: a rubric, a question sheet, a text model, template, own
    with_first_frame: bool = False  # whether the image that the clip starts from is shown before it

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, known are {', '.join(KINDS)}")
        if self.wanted.casefold() == self.other.casefold():
            raise ValueError(f"other is {self.other!r}, the same word as wanted")


def opposing(wanted: str) -> str:
    """No for Yes and the other way round, spelled so."""
    return NO if wanted == YES else YES


def asks_of_rubric(given: AnyRubric, prompt: str) -> tuple[Ask, ...]:
    """The required questions of a rubric about the clips of one prompt; the others change no label."""
    asks, rubric = [], given.of(prompt)
    shown = rubric.first_frame is not None
    for question in rubric.questions:
        if question.required:
            words = question.affirmative, question.negative
            wanted, other = words if question.wanted else words[::-1]
            text = rubric.text(question, prompt)
            asks.append(Ask(question.name, RUBRIC, text, wanted, other, None, False, rubric.name, shown))
    return tuple(asks)


def parse_ask(
    given: str, name: str = OWN, answers: Sequence[tuple[str, str]] = ((YES, NO),), template: str = QUESTION
) -> Ask:
    """A question as typed on the command line: the question, "=", the wanted answer in any case.

    The last "=" counts. answers: pairs of opposing words in the judge's spelling. template: the judge's message, with
    {question} in it. Raises ValueError where the question or the wanted answer is missing, or the answer is none of
    these words.
    """
    if QUESTION not in template:
        raise ValueError(f"the template does not contain {QUESTION}: {template!r}")
    question, equals, answer = (part.strip() for part in given.rpartition("="))
    known = ", ".join(word for pair in answers for word in pair)
    if not equals or not answer:
        raise ValueError(f"{given!r} names no wanted answer; write 'question=answer', the answer one of {known}")
    if not question:
        raise ValueError(f"{given!r} holds no question; write 'question=answer'")
    for one, two in answers:
        for wanted, other in ((one, two), (two, one)):
            if answer.casefold() == wanted.casefold():
                return Ask(name, OWN, template.replace(QUESTION, question), wanted, other, None, False, OWN)
    raise ValueError(f"{given!r}: the wanted answer {answer!r} is unknown; known are {known}")


def read_asks(path: Path) -> dict[str, tuple[Ask, ...]]:
    """The questions that `write_asks` wrote, by prompt_id; none where there is no file.

    Raises ConfigError naming the line and the field that is wrong.
    """
    found: dict[str, tuple[Ask, ...]] = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):  # splitlines would split within a text
        row = json.loads(line)
        prompt_id = row.pop("prompt_id")
        found[prompt_id] = (*found.get(prompt_id, ()), read_config(Ask, row, f"{path}, line {number}"))
    return found


def write_asks(path: Path, asks: Mapping[str, Sequence[Ask]]) -> None:
    """One JSON line for each prompt_id and question, in the order given: equal questions make equal bytes.

    Raises ValueError where two questions of a prompt share a name.
    """
    for prompt_id, of_prompt in asks.items():
        if len({ask.name for ask in of_prompt}) != len(of_prompt):
            raise ValueError(f"{prompt_id}: two questions have the same name in {[ask.name for ask in of_prompt]}")
    rows = [{"prompt_id": prompt_id, **vars(ask)} for prompt_id, of_prompt in asks.items() for ask in of_prompt]
    with atomically(path) as partial:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        partial.write_text(text, encoding="utf-8")
