"""How often each question of a judge gets its wanted answer: which aspect training moved."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.labels import read_asked, read_verdicts
from data.records import Sample

Answers = dict[str, np.ndarray]  # question -> (N,) float: 1 the wanted answer, 0 the other, nan not asked or no answer


def read_answers(folder: Path, samples: Sequence[Sample]) -> Answers:
    """A judge's answers in a folder of labels, by question, for each clip in order; empty for a single question.

    The answer of several votes is their majority; where they tie, it is not known.
    """
    asked = read_asked(folder)
    if not asked:
        return {}
    place = {sample.sample_id: (index, sample.prompt) for index, sample in enumerate(samples)}
    margins = {name: np.zeros(len(samples)) for _, name in asked}  # votes for the wanted answer minus those against
    for row in read_verdicts(folder):
        if row.answer is not None:
            index, prompt = place[row.sample_id]
            margins[row.question][index] += 1 if row.answer == asked[prompt, row.question].wanted else -1
    return {name: np.where(margin == 0, np.nan, margin > 0) for name, margin in margins.items()}


def in_all(sets: Mapping[str, Mapping[str, Answers]]) -> dict[str, list[str]]:
    """Judge -> the questions that it asked about every policy's clips. sets: policy -> judge -> its answers."""
    first, *others = sets.values()
    common = {
        judge: [name for name in answers if all(name in other.get(judge, {}) for other in others)]
        for judge, answers in first.items()
    }
    return {judge: names for judge, names in common.items() if names}
