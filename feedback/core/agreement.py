"""How far several votes on the same clips agree: of a judge that was asked again, or of several people.

After Fleiss, "Measuring nominal scale agreement among many raters" (1971), with two answers and any number of votes.
A clip's agreement is the part of the pairs of its votes that are the same, k of n being yes:
(k(k - 1) + (n - k)(n - k - 1)) / (n(n - 1)). Observed agreement (P-bar) is its mean over the clips, expected agreement
(P_e) is p^2 + (1 - p)^2, p the mean over the clips of k / n, and kappa is (observed - expected) / (1 - expected).

Fleiss has as many votes on every clip. Here a vote without an answer is left out, and so is a clip with fewer than two
answered votes; every other clip counts the same. Over several questions both agreements are means over all clips
of all questions, with each question's own p, so that questions that differ do not pass for votes that agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

from data.records import Verdict
from feedback.core.rubric import Rubric, combine

Ballots = Mapping[str, Sequence[bool | None]]  # sample_id -> its votes, null where there was no answer


@dataclass(frozen=True)
class Agreement:
    """Of the clips with at least two answered votes."""

    clips: int
    not_unanimous: int  # clips, among them
    observed: float | None  # in [0, 1]; null without clips
    kappa: float | None  # at most 1, 0 as by chance; null without clips and where all votes are the same


@dataclass(frozen=True)
class VoteAgreement:
    """How far the votes of one source on a clip set agree."""

    label: Agreement  # of the labels that the votes would make, each alone
    answers: Agreement  # over all questions; a clip is unanimous where it is on each of them
    questions: dict[str, Agreement]


def vote_agreement(verdicts: Iterable[Verdict], rubric: Rubric) -> VoteAgreement:
    """Agreement of the votes of one source, by question and of the labels that the rubric's rule makes of each vote."""
    answers: dict[str, dict[str, list[bool | None]]] = {question.name: {} for question in rubric.questions}
    votes: dict[tuple[str, int], list[Verdict]] = {}
    for row in verdicts:
        answers[row.question].setdefault(row.sample_id, []).append(row.answer)
        votes.setdefault((row.sample_id, row.vote), []).append(row)
    labels: dict[str, list[bool | None]] = {}
    for (sample, _), rows in votes.items():
        labels.setdefault(sample, []).append(combine(rows, rubric).label)
    return VoteAgreement(
        label=agreement(labels),
        answers=agreement(*answers.values()),
        questions={question: agreement(ballots) for question, ballots in answers.items()},
    )


def agreement(*questions: Ballots) -> Agreement:
    """Agreement of the votes on one question, or over several."""
    observed: list[float] = []
    expected: list[float] = []
    clips: set[str] = set()
    split: set[str] = set()
    for ballots in questions:
        answered = {clip: [vote for vote in votes if vote is not None] for clip, votes in ballots.items()}
        answered = {clip: votes for clip, votes in answered.items() if len(votes) > 1}
        if not answered:
            continue
        yes = fmean(fmean(votes) for votes in answered.values())
        observed += [_agreeing_pairs(votes) for votes in answered.values()]
        expected += [yes**2 + (1 - yes) ** 2] * len(answered)
        clips |= answered.keys()
        split |= {clip for clip, votes in answered.items() if len(set(votes)) > 1}
    if not clips:
        return Agreement(0, 0, None, None)
    found, chance = fmean(observed), fmean(expected)
    return Agreement(len(clips), len(split), found, None if chance == 1 else (found - chance) / (1 - chance))


def _agreeing_pairs(votes: Sequence[bool]) -> float:
    """Part of the pairs of votes that are the same."""
    return (comb(sum(votes), 2) + comb(len(votes) - sum(votes), 2)) / comb(len(votes), 2)
