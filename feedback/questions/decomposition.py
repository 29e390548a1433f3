"""Diffusion-DRF's questions (§3.2, §3.3): about the parts that a caption states, and about defects.

alignment           a question for each part that the caption states; the wanted answer is Yes
physics, quality    a question for each defect of the sheet; the wanted answer is No; compared with a real clip where
                    there is one
"""

from collections.abc import Mapping, Sequence

from data.prompts import PLACE
from feedback.differentiable.asks import ALIGNMENT, NO, PHYSICS, QUALITY, YES, Ask
from feedback.questions.replies import quoted, read_json
from feedback.questions.sheet import DEFECT, PART, STATED, DecompositionSheet, Explanation, ending

KINDS = (ALIGNMENT, PHYSICS, QUALITY)


def read_parts(reply: str, parts: Sequence[str]) -> dict[str, list[str]]:
    """The statements of a caption about each part, from a text model's reply; parts without statements are left out.

    Raises ValueError where the reply is not an object of these parts with a list of texts each, or all are empty.
    """
    given = read_json(reply)
    if not isinstance(given, dict) or set(given) != set(parts):
        raise ValueError(f"the reply is not an object with the keys {', '.join(parts)}: {quoted(given)}")
    for part in parts:
        if not isinstance(given[part], list) or not all(isinstance(one, str) and one.strip() for one in given[part]):
            raise ValueError(f"{part} in the reply is not a list of texts: {quoted(given[part])}")
    stated = {part: [" ".join(one.split()) for one in given[part]] for part in parts if given[part]}
    if not stated:
        raise ValueError("the reply finds no statement in the caption")
    return stated


def alignment_asks(
    sheet: DecompositionSheet, stated: Mapping[str, Sequence[str]], author: str, explanation: Explanation | None
) -> list[Ask]:
    """A question for each part with statements. stated: the result of `read_parts`."""
    asks = []
    for part, statements in stated.items():
        words = sheet.alignment.strip().replace(PART, sheet.parts[part]).replace(STATED, "; ".join(statements))
        text = f"{words} {ending(sheet, explanation)}"
        asks.append(Ask(f"{ALIGNMENT}_{part}", ALIGNMENT, text, YES, NO, None, False, author))
    return asks


def defect_asks(
    sheet: DecompositionSheet, kind: str, caption: str, with_reference: bool, explanation: Explanation | None
) -> list[Ask]:
    """A question for each defect of a kind, physics or quality; with_reference: compared with a real clip."""
    around = sheet.compared if with_reference else sheet.alone
    asks = []
    for name, defect in (sheet.physics if kind == PHYSICS else sheet.quality).items():
        text = f"{around.strip().replace(DEFECT, defect)} {ending(sheet, explanation)}".replace(PLACE, caption)
        asks.append(Ask(f"{kind}_{name}", kind, text, NO, YES, None, with_reference, sheet.name))
    return asks
