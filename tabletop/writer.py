"""Questions about captions of the tabletop world from its own grammar, without a text model: `writer: template`.

All words are those that the tabletop's judges know. VLM-as-Teacher's kinds are the same questions: a goal is that what
the caption says happens, and the process rules are that nothing goes wrong with the things on the table.
"""

from collections.abc import Sequence

from feedback.differentiable.asks import ALIGNMENT, GOAL, PHYSICS, PROCESS, QUALITY, Ask, opposing
from tabletop.captions import parse
from tabletop.questions import IN_FIRST, questions

KINDS = {ALIGNMENT: ALIGNMENT, PHYSICS: PHYSICS, QUALITY: QUALITY, PROCESS: PHYSICS, GOAL: ALIGNMENT}
AUTHOR = "template"


def write_asks(caption: str, kinds: Sequence[str], with_reference: bool) -> list[Ask]:
    """The questions of these kinds about clips of a caption, kind by kind.

    with_reference: whether questions about defects compare with a real clip.
    Raises ValueError for a kind that the grammar does not have, and for a caption of another world.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds {unknown} are unknown, expected some of {sorted(KINDS)} for these questions")
    of_caption = questions(parse(caption))
    asks = []
    for kind in kinds:
        for name, of_kind, text, wanted in of_caption:
            if of_kind == KINDS[kind]:
                beside = with_reference and kind in (PHYSICS, QUALITY)
                words = f"{text} {IN_FIRST}" if beside else text
                asks.append(Ask(f"{kind}_{name}", kind, words, wanted, opposing(wanted), None, beside, AUTHOR))
    return asks
