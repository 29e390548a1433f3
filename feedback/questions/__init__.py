"""Writers of a judge's questions: a rubric, a text model with a question sheet, or a module such as the tabletop's."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic.dataclasses import dataclass

from data.config import STRICT
from data.doors import find
from data.first_frames import first_frames, png_bytes
from data.prompts import PLACE, Prompt
from feedback.core.rubric import load_rubric
from feedback.differentiable.asks import ALIGNMENT, RUBRIC, Ask, asks_of_rubric
from feedback.questions import decomposition, teaching
from feedback.questions.decomposition import alignment_asks, defect_asks, read_parts
from feedback.questions.sheet import DecompositionSheet, Explanation, Sheet, TeachingSheet, ending, load_sheet
from feedback.questions.teaching import read_rules
from feedback.questions.text_model import text_model
from feedback.questions.texts import TextRequest

logger = logging.getLogger(__name__)

WRITERS = {"template": "tabletop.writer"}  # `writer` -> a module with write_asks(caption, kinds, with_reference)
TASK = "questions"  # under which the ledger files the calls of text models
WriteAsks = Callable[[str, Sequence[str], bool], list[Ask]]  # of a caption, kinds of questions, and with_reference
NAMED = 3  # prompts without questions that a message names


@dataclass(frozen=True, config=STRICT)
class Writing:
    """The writer of questions, and which questions it writes."""

    writer: str  # rubric | a source of feedback.sources that writes texts | a name in WRITERS or a dotted path
    rubric: str | None  # YAML file: of a rubric, or of the question sheet that a text model follows; null: a module
    kinds: tuple[str, ...] | None  # kinds of the writer's questions to use; null for a rubric, which has no kinds
    explanation: Explanation | Literal[False]  # of an answer, which `reference_answers` fills in; false: none
    with_reference: bool  # whether questions about defects compare with a real clip


class Written(NamedTuple):
    """The questions about each prompt's clips, and the prompts that have none."""

    asks: dict[str, tuple[Ask, ...]]  # by prompt_id
    unwritten: dict[str, str]  # prompt_id -> why: a refusal, or a reply of a wrong form


def write_questions(
    prompts: Sequence[Prompt],
    by: Writing,
    sources: Mapping[str, Any],
    device: str,
    size: tuple[int, int] | None = None,
) -> Written:
    """The questions about each prompt's clips, in the order of the prompts.

    sources: the blocks of feedback.sources. device: of the weights of a text model in this process.
    size: height and width of the clips. A teacher is shown a prompt's image as the generator is given it: cropped and
        resized by data.first_frames. None: no prompt with an image is asked about by a teacher.
    Raises ValueError naming the setting that is wrong, for an image that cannot be read, and where no prompt has a
    question.
    """
    if by.writer == RUBRIC:
        rubric = load_rubric(_path(by))
        return _collected(prompts, lambda prompt: asks_of_rubric(rubric, prompt.prompt))
    if not is_source(by.writer):
        return _collected(prompts, _asks_of_module(by))
    if by.writer not in sources:
        known = [RUBRIC, *WRITERS, *sources]
        raise ValueError(f"writer is {by.writer!r}, known are {known}, the last of them feedback.sources")
    sheet = load_sheet(_path(by))
    explanation = by.explanation or None
    ending(sheet, explanation)  # before a reply is paid for
    kinds = _kinds(by, decomposition.KINDS if isinstance(sheet, DecompositionSheet) else teaching.KINDS)
    model = text_model(by.writer, sources[by.writer], device)
    replies = model.replies(_text_requests(prompts, sheet, size), TASK)
    reply_to = {prompt.prompt_id: reply for prompt, reply in zip(prompts, replies, strict=True)}

    def write(prompt: Prompt) -> list[Ask]:
        reply = reply_to[prompt.prompt_id]
        if reply.text is None:
            raise ValueError(reply.error)
        if isinstance(sheet, TeachingSheet):
            return [ask for ask in read_rules(reply.text, sheet, model.name, explanation) if ask.kind in kinds]
        stated = read_parts(reply.text, list(sheet.parts))
        asks: list[Ask] = []
        for kind in kinds:
            if kind == ALIGNMENT:
                asks += alignment_asks(sheet, stated, model.name, explanation)
            else:
                asks += defect_asks(sheet, kind, prompt.prompt, by.with_reference, explanation)
        return asks

    return _collected(prompts, write)


def is_source(writer: str) -> bool:
    """Whether a writer is the name of a source of feedback.sources: it is none of ours and no dotted path."""
    return writer != RUBRIC and writer not in WRITERS and "." not in writer


def _asks_of_module(by: Writing) -> Callable[[Prompt], Sequence[Ask]]:
    """Writes the questions about a prompt by `write_asks` of the module that `writer` names."""
    write_asks: WriteAsks = find(by.writer, WRITERS, "writer", "write_asks")
    if not by.kinds:
        raise ValueError(f"kinds is {by.kinds}, expected some kinds of questions that {by.writer} writes")
    kinds = tuple(by.kinds)
    return lambda prompt: write_asks(prompt.prompt, kinds, by.with_reference)


def _path(by: Writing) -> Path:
    if by.rubric is None:
        raise ValueError(f"writer is {by.writer}, but rubric, a YAML file, is null")
    return Path(by.rubric)


def _kinds(by: Writing, known: Iterable[str]) -> tuple[str, ...]:
    """The kinds of questions to use. Raises ValueError where there are none, or the writer does not know one."""
    if not by.kinds or not set(by.kinds) <= set(known):
        raise ValueError(f"kinds is {by.kinds}, expected some of {sorted(known)} for these questions")
    return tuple(by.kinds)


def _text_requests(prompts: Sequence[Prompt], sheet: Sheet, size: tuple[int, int] | None) -> list[TextRequest]:
    if isinstance(sheet, DecompositionSheet):
        return [TextRequest(sheet.decompose.replace(PLACE, prompt.prompt)) for prompt in prompts]
    pictured = [prompt for prompt in prompts if prompt.image]
    if pictured and size is None:
        raise ValueError(
            f"size: None, but prompt {pictured[0].prompt_id} has an image, which is shown at a clip's size"
        )
    shown = {name: png_bytes(frame) for name, frame in first_frames(pictured, *size).items()} if size else {}
    texts = ((prompt.prompt_id, sheet.teach.replace(PLACE, prompt.prompt)) for prompt in prompts)
    return [TextRequest(text, shown.get(name)) for name, text in texts]


def _collected(prompts: Sequence[Prompt], write: Callable[[Prompt], Sequence[Ask]]) -> Written:
    """The questions that `write` returns for each prompt, and its error where it raised one.

    Logs how many prompts have no questions. Raises ValueError where none has.
    """
    asks, unwritten = {}, {}
    for prompt in prompts:
        try:
            of_prompt = tuple(write(prompt))
        except ValueError as error:
            unwritten[prompt.prompt_id] = str(error)
            continue
        if of_prompt:
            asks[prompt.prompt_id] = of_prompt
        else:
            unwritten[prompt.prompt_id] = "no question of these kinds"
    reasons = "; ".join(f"{prompt_id}: {why}" for prompt_id, why in list(unwritten.items())[:NAMED])
    if not asks:
        raise ValueError(f"none of {len(prompts)} prompts has a question: {reasons}")
    if unwritten:
        logger.warning("%d of %d prompts have no question and are left out: %s", len(unwritten), len(prompts), reasons)
    logger.info("%d questions about %d prompts", sum(map(len, asks.values())), len(asks))
    return Written(asks, unwritten)
