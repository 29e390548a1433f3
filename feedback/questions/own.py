"""The questions that a writer has for each prompt of a set, as rows of a rubric's CSV (data/tables/questions.py)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data.prompts import Prompt
from data.tables.questions import OwnQuestion
from feedback.questions import Writing, decomposition, is_source, teaching, write_questions
from feedback.questions.sheet import DecompositionSheet, load_sheet


class OwnQuestions(NamedTuple):
    """The questions about all prompts, and the prompts that have none."""

    questions: list[OwnQuestion]
    unwritten: dict[str, str]  # prompt_id -> why

    @property
    def prompts(self) -> int:
        """How many prompts have questions."""
        return len({one.prompt for one in self.questions})

    @property
    def names(self) -> Counter[str]:
        """How many prompts are asked about each aspect, in the order of the questions."""
        return Counter(one.name for one in self.questions)


def own_questions(
    prompts: Sequence[Prompt],
    by: Writing,
    sources: Mapping[str, Any],
    device: str,
    size: tuple[int, int] | None = None,
) -> OwnQuestions:
    """The questions about the prompts, in their order; prompts with the same text share theirs.

    by: where `kinds` is null, a source writes all kinds of its question sheet. size: as write_questions takes it, which
    also says what is raised.
    """
    if by.kinds is None and by.rubric is not None and is_source(by.writer):
        sheet = load_sheet(Path(by.rubric))
        by = replace(by, kinds=decomposition.KINDS if isinstance(sheet, DecompositionSheet) else teaching.KINDS)
    texts = {prompt.prompt: prompt for prompt in reversed(prompts)}  # of equal texts the first
    once = [prompt for prompt in prompts if texts[prompt.prompt] is prompt]
    written = write_questions(once, by, sources, device, size)
    questions = [
        OwnQuestion(prompt.prompt, ask.name, ask.text, ask.wanted, ask.other)
        for prompt in once
        for ask in written.asks.get(prompt.prompt_id, ())
    ]
    return OwnQuestions(questions, written.unwritten)
