"""Questions about the clips of each prompt, as a CSV; the columns `other` and `required` are optional.

    prompt     the prompt's text, as in the prompt set
    name       the aspect that is asked about; equal names of several prompts are one aspect, whose rate is reported
    question   the question
    wanted     the answer in favour of the clip: Yes, No, or another word
    other      the answer against it; empty for the opposite of Yes or No
    required   Yes: the label depends on it, as where it is empty; No: the answer is recorded alone

`vfrl questions` writes such files, and feedback/core/rubric.py makes rubrics of them.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.tables.read import read_table, write_table

logger = logging.getLogger(__name__)

REQUIRED = ("prompt", "name", "question", "wanted")
OPTIONAL = ("other", "required")
YES, NO = "Yes", "No"
OPPOSITE = {"yes": NO, "no": YES}
QUOTES = "“”„‟«»‹›‘’‚‛＂\"'`"


@dataclass(frozen=True)
class OwnQuestion:
    """One row: a question about the clips of one prompt, answered by one of two words."""

    prompt: str
    name: str
    question: str
    wanted: str  # Yes and No are spelled so, however the file spells them
    other: str
    required: bool = True


def read_questions(path: Path) -> list[OwnQuestion]:
    """The questions in the order of the file.

    Raises ValueError naming the file and the row as a spreadsheet counts it (the header is row 1).
    """
    table = read_table(path, REQUIRED, OPTIONAL)
    for remark in table.remarks:
        logger.warning("%s: %s", path, remark)
    questions: list[OwnQuestion] = []
    row_of: dict[tuple[str, str], int] = {}
    spelled: dict[str, tuple[str, int]] = {}  # name in small letters -> as it stands first, and where
    for row in table.rows:
        where = f"{path}, row {row.number}"
        one = _question(where, row.cells)
        if (first := row_of.get((one.prompt, one.name))) is not None:
            raise ValueError(f"{where}: {one.prompt!r} has a question named {one.name!r} already, in row {first}")
        name, place = spelled.setdefault(one.name.casefold(), (one.name, row.number))
        if name != one.name:
            raise ValueError(f"{where}: name {one.name!r} is {name!r} in row {place}; spell one aspect alike")
        row_of[one.prompt, one.name] = row.number
        questions.append(one)
    if not questions:
        raise ValueError(f"{path}: no questions; wanted at least one row below the header")
    asked = {one.prompt for one in questions if one.required}
    if idle := [one for one in questions if one.prompt not in asked]:
        row_number = row_of[idle[0].prompt, idle[0].name]
        raise ValueError(
            f"{path}, row {row_number}: no question about {idle[0].prompt!r} is required, so its clips could not be "
            "labelled; write Yes in column required of one of them"
        )
    return questions


def write_questions(path: Path, questions: Iterable[OwnQuestion]) -> None:
    """Write questions as `read_questions` reads them; columns that would be empty are left out."""
    rows = list(questions)
    cells: dict[str, list[str]] = {
        "prompt": [one.prompt for one in rows],
        "name": [one.name for one in rows],
        "question": [one.question for one in rows],
        "wanted": [one.wanted for one in rows],
        "other": ["" if one.other == OPPOSITE.get(one.wanted.casefold()) else one.other for one in rows],
        "required": ["" if one.required else NO for one in rows],
    }
    used = [name for name, column in cells.items() if name in REQUIRED or any(column)]
    write_table(path, used, [[cells[name][place] for name in used] for place in range(len(rows))])


def _question(where: str, cells: Mapping[str, str]) -> OwnQuestion:
    for name in REQUIRED:
        if not cells[name]:
            raise ValueError(f"{where}: {name} is empty")
    for name in ("prompt", "name", "wanted", "other"):
        if len(cells.get(name, "").splitlines()) > 1:
            raise ValueError(f"{where}: {name} has a line break in it: {cells[name]!r}; write it on one line")
    for name in ("wanted", "other", "required"):
        if (text := cells.get(name, "")) and (text[0] in QUOTES or text[-1] in QUOTES):
            raise ValueError(f"{where}: {name} is {text!r}; write {text.strip(QUOTES) or YES}, without quotes")
    wanted, other = (_spelled(cells.get(name, "")) for name in ("wanted", "other"))
    other = other or OPPOSITE.get(wanted.casefold(), "")
    if not other:
        raise ValueError(
            f"{where}: wanted is {wanted!r}, expected Yes or No; another word needs the answer against the clip in "
            "column other"
        )
    if _first_word(wanted) == _first_word(other):
        raise ValueError(
            f"{where}: wanted is {wanted!r} and other {other!r}, which begin with the same word; a judge's answer is "
            "read from its first word"
        )
    return OwnQuestion(cells["prompt"], cells["name"], cells["question"], wanted, other, _required(where, cells))


def _spelled(word: str) -> str:
    """Yes and No with a capital, in any case; other words as they are."""
    return word.capitalize() if word.casefold() in OPPOSITE else word


def _first_word(text: str) -> str:
    """As of the answers of a rubric (feedback/core/rubric.py)."""
    found = re.search(r"\w+", text)
    return (found[0] if found else text).casefold()


def _required(where: str, cells: Mapping[str, str]) -> bool:
    given = cells.get("required", "")
    meaning = {"": True, "yes": True, "true": True, "no": False, "false": False}  # a spreadsheet may write TRUE
    if given.casefold() not in meaning:
        raise ValueError(f"{where}: required is {given!r}, expected Yes or No")
    return meaning[given.casefold()]


def by_prompt(questions: Sequence[OwnQuestion]) -> dict[str, list[OwnQuestion]]:
    """The questions about each prompt's clips, in the order of the file."""
    found: dict[str, list[OwnQuestion]] = {}
    for one in questions:
        found.setdefault(one.prompt, []).append(one)
    return found
