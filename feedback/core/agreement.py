"""Agreement of several votes on the same clips: repeated votes of one judge, or one vote each of several people.

The measure follows Fleiss, "Measuring nominal scale agreement among many raters" (1971), with two answers and any
number of votes. A clip's agreement is the fraction of pairs of its votes that are equal. With k yes among n votes it is
(k(k - 1) + (n - k)(n - k - 1)) / (n(n - 1)). Observed agreement (P-bar) is the mean over the clips. Expected agreement
(P_e) is p^2 + (1 - p)^2, where p is the mean of k / n over the clips. kappa is (observed - expected) / (1 - expected).

Deviation: Fleiss has the same number of votes on every clip. This module leaves out votes without an answer and clips
with fewer than two answered votes; all other clips have equal weight. Over several questions both agreements are means
over all clips of all questions, with each question's own p: a difference between questions does not raise kappa.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

from data.records import Verdict
from feedback.core.rubric import Rubric, combine

Ballots = Mapping[str, Sequence[bool | None]]  # sample_id -> its votes; None: no answer


@dataclass(frozen=True)
class Agreement:
    """Agreement on the clips with at least two answered votes."""

    clips: int
    not_unanimous: int  # how many of these clips have votes that differ
    observed: float | None  # in [0, 1]; None without clips
    kappa: float | None  # at most 1; 0 is chance; None without clips and where all votes are equal


@dataclass(frozen=True)
class VoteAgreement:
    """Agreement of the votes of one source on a clip set."""

    label: Agreement  # of the labels that the rule makes from each single vote
    answers: Agreement  # over all questions; a clip is unanimous if it is unanimous on every question
    questions: dict[str, Agreement]


def vote_agreement(verdicts: Iterable[Verdict], rubrics: Mapping[str, Rubric]) -> VoteAgreement:
    """Agreement of one source's votes, by question and for the labels that the rubric's rule makes from each vote.

    rubrics: by sample_id.
    """
    names = dict.fromkeys(question.name for one in rubrics.values() for question in one.questions)
    answers: dict[str, dict[str, list[bool | None]]] = {name: {} for name in names}
    votes: dict[tuple[str, int], list[Verdict]] = {}
    for row in verdicts:
        answers[row.question].setdefault(row.sample_id, []).append(row.answer)
        votes.setdefault((row.sample_id, row.vote), []).append(row)
    labels: dict[str, list[bool | None]] = {}
    for (sample, _), rows in votes.items():
        labels.setdefault(sample, []).append(combine(rows, rubrics[sample]).label)
    return VoteAgreement(
        label=agreement(labels),
        answers=agreement(*answers.values()),
        questions={question: agreement(ballots) for question, ballots in answers.items()},
    )


def agreement(*questions: Ballots) -> Agreement:
    """Agreement of the votes on one question or on several questions."""
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
    """Fraction of the pairs of votes that are equal."""
    return (comb(sum(votes), 2) + comb(len(votes) - sum(votes), 2)) / comb(len(votes), 2)
