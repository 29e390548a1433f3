"""What a differentiable judge is asked about the clips of each prompt, and which answer is wanted.

Stored as JSON lines, one for each prompt and question, so that a run tells which question moved its generator and who
wrote it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data.manifest import atomically
from feedback.core.rubric import Rubric

ALIGNMENT, PHYSICS, QUALITY, PROCESS, GOAL = "alignment", "physics", "quality", "process", "goal"
RUBRIC, OWN = "rubric", "own"
KINDS = (ALIGNMENT, PHYSICS, QUALITY, PROCESS, GOAL, RUBRIC, OWN)
YES, NO = "Yes", "No"
QUESTION = "{question}"  # in a template, for the question


@dataclass(frozen=True)
class Ask:
    """One question to a judge, answered by one of two words. Raises ValueError naming the field that is wrong."""

    name: str  # unique among the questions of a prompt
    kind: str  # alignment | physics | quality (Diffusion-DRF), process | goal (VLM-as-Teacher), rubric, own
    text: str  # all that the judge is told beside the pictures
    wanted: str  # the answer that speaks for the clip, spelled as the judge is to say it
    other: str  # the answer that speaks against it
    explanation: str | None  # what follows the wanted answer, where a loss forces a whole reply; null: nothing
    with_reference: bool  # whether a real clip of the prompt is shown after the generated one
    author: str  # who wrote the question: a rubric, a question sheet, a text model, template, own

    def __post_init__(self) -> None:
        for key in ("name", "text", "wanted", "other", "author"):
            if not isinstance(value := getattr(self, key), str) or not value.strip():
                raise ValueError(f"{key} is {value!r}, expected a text")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, known are {list(KINDS)}")
        if self.wanted.casefold() == self.other.casefold():
            raise ValueError(f"other is {self.other!r}, the same word as wanted")
        if self.explanation is not None and not (isinstance(self.explanation, str) and self.explanation.strip()):
            raise ValueError(f"explanation is {self.explanation!r}, expected a text or null")
        if not isinstance(self.with_reference, bool):
            raise ValueError(f"with_reference is {self.with_reference!r}, expected true or false")


def opposing(wanted: str) -> str:
    """No for Yes and the other way round, spelled so."""
    return NO if wanted == YES else YES


def asks_of_rubric(rubric: Rubric, prompt: str) -> tuple[Ask, ...]:
    """The required questions of a rubric about the clips of one prompt; those that change no label are left out."""
    asks = []
    for question in rubric.questions:
        if question.required:
            words = question.affirmative, question.negative
            wanted, other = words if question.wanted else reversed(words)
            text = rubric.text(question, prompt)
            asks.append(Ask(question.name, RUBRIC, text, wanted, other, None, False, rubric.name))
    return tuple(asks)


def parse_ask(
    given: str, name: str = OWN, answers: Sequence[tuple[str, str]] = ((YES, NO),), template: str = QUESTION
) -> Ask:
    """A question as people write it on the command line: the question, "=", the wanted answer in any case.

    The last "=" counts. answers: pairs of opposing words as the judge spells them. template: what the judge is told,
    with {question} in it. Raises ValueError where the question or the wanted answer is missing, or the answer is none
    of these words.
    """
    if QUESTION not in template:
        raise ValueError(f"the template has no {QUESTION} in it: {template!r}")
    question, equals, told = (part.strip() for part in given.rpartition("="))
    known = ", ".join(word for pair in answers for word in pair)
    if not equals or not told:
        raise ValueError(f"{given!r} names no wanted answer; write 'question=answer', the answer one of {known}")
    if not question:
        raise ValueError(f"{given!r} holds no question; write 'question=answer'")
    for one, two in answers:
        for wanted, other in ((one, two), (two, one)):
            if told.casefold() == wanted.casefold():
                return Ask(name, OWN, template.replace(QUESTION, question), wanted, other, None, False, OWN)
    raise ValueError(f"{given!r}: the wanted answer {told!r} is unknown; known are {known}")


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


def read_asks(path: Path) -> dict[str, tuple[Ask, ...]]:
    """The questions of each prompt_id, as `write_asks` wrote them.

    Raises ValueError naming the file, and the line where one is wrong; also for a file without questions.
    """
    asks: dict[str, tuple[Ask, ...]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable ({error})") from error
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            prompt_id, ask = _parsed(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        before = asks.get(prompt_id, ())
        if ask.name in {one.name for one in before}:
            raise ValueError(f"{path}, line {number}: {prompt_id} has a second question {ask.name!r}")
        asks[prompt_id] = (*before, ask)
    if not asks:
        raise ValueError(f"{path}: no questions")
    return asks


def _parsed(line: str) -> tuple[str, Ask]:
    """A line's prompt_id and question."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    known = ["prompt_id", *(field.name for field in fields(Ask))]
    if not isinstance(row, dict) or set(row) != set(known):
        found = sorted(row) if isinstance(row, dict) else repr(row)
        raise ValueError(f"expected an object with the keys {', '.join(known)}, found {found}")
    prompt_id = row.pop("prompt_id")
    if not isinstance(prompt_id, str) or not prompt_id:
        raise ValueError(f"prompt_id is {prompt_id!r}, expected a text")
    return prompt_id, Ask(**row)
