"""Diffusion-DRF's questions (§3.2, §3.3): about the parts that a caption states, and about defects.

alignment           a question for each part that the caption states, Yes wanted
physics, quality    a question for each defect of the sheet, No wanted; beside a real clip where there is one
"""

from collections.abc import Mapping, Sequence

from data.prompts import PLACE
from feedback.differentiable.asks import ALIGNMENT, NO, PHYSICS, QUALITY, YES, Ask
from feedback.questions.replies import read_json, shown
from feedback.questions.sheet import DEFECT, PART, STATED, Decomposition

KINDS = (ALIGNMENT, PHYSICS, QUALITY)


def read_parts(reply: str, parts: Sequence[str]) -> dict[str, list[str]]:
    """What a caption states about each part, from a text model's reply; parts of which it states nothing are left out.

    Raises ValueError where the reply is no object of these parts with a list of texts each, or all lists are empty.
    """
    given = read_json(reply)
    if not isinstance(given, dict) or set(given) != set(parts):
        raise ValueError(f"the reply is no object with the keys {', '.join(parts)}: {shown(given)}")
    for part in parts:
        if not isinstance(given[part], list) or not all(isinstance(one, str) and one.strip() for one in given[part]):
            raise ValueError(f"{part} in the reply is no list of texts: {shown(given[part])}")
    stated = {part: [" ".join(one.split()) for one in given[part]] for part in parts if given[part]}
    if not stated:
        raise ValueError("the reply finds nothing in the caption that could be asked about")
    return stated


def alignment_asks(sheet: Decomposition, stated: Mapping[str, Sequence[str]], author: str, explain: bool) -> list[Ask]:
    """A question for each part of which a caption states something. stated: what `read_parts` returned."""
    asks = []
    for part, statements in stated.items():
        words = sheet.alignment.strip().replace(PART, sheet.parts[part]).replace(STATED, "; ".join(statements))
        asks.append(Ask(f"{ALIGNMENT}_{part}", ALIGNMENT, _ended(words, sheet, explain), YES, NO, None, False, author))
    return asks


def defect_asks(sheet: Decomposition, kind: str, caption: str, with_reference: bool, explain: bool) -> list[Ask]:
    """A question for each defect of a kind, physics or quality; asked beside a real clip where with_reference."""
    around = sheet.compared if with_reference else sheet.alone
    asks = []
    for name, defect in (sheet.physics if kind == PHYSICS else sheet.quality).items():
        text = _ended(around.strip().replace(DEFECT, defect), sheet, explain).replace(PLACE, caption)
        asks.append(Ask(f"{kind}_{name}", kind, text, NO, YES, None, with_reference, sheet.name))
    return asks


def _ended(text: str, sheet: Decomposition, explain: bool) -> str:
    return f"{text} {(sheet.explain if explain else sheet.one_word).strip()}"
