"""From a source's answers about two clips to what it prefers.

This is the full rule, for the answers of one source on one pair of clips:

- An answer is `first`, `second` or `tie`: which clip is better. Answers that are missing are left out and counted; they
  are never a tie.
- A question's answer in one order of showing is the side with more votes, `tie` where both have as many. Its chance is
  the mean over the answered votes of the probability that the first is better; a vote without one counts 1, 0 or 1/2.
- `rule: all`: `first` if the first clip got every required question, `second` if the second got one, otherwise `tie`;
  null if a required question is unanswered. The chance is the smallest of the questions'. This is the rule for
  questions about faults of the first clip: one fault decides.
- `rule: majority`: the side that got more required questions; null if fewer than half are answered. The chance is the
  mean.
- `rule: mean`: by the mean chance, above 1/2 `first`, below `second`, otherwise `tie`; null if fewer than half
  are known.
- Both orders must agree: the pair's preference is what was better in both. Where they differ, or one is a tie, it is a
  tie; where one is null, it is null. So is a tie what a source prefers against its own mean chance.
- People see a pair in one order each: the preference is the side with more people, a tie where both have as many.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from data.preferences import FIRST, OTHER, SECOND, TIE
from data.records import Comparison, Preference
from feedback.core.rubric import Rubric

WORTH = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}


class Outcome(NamedTuple):
    """What is better of two clips, in terms of their order, and the probability that the first is."""

    answer: str | None  # first, second or tie
    p_first: float | None


NOTHING = Outcome(None, None)


def prefer(
    prompt_id: str, ids: tuple[str, str], rows: Sequence[Comparison], rubric: Rubric, both_orders: bool = True
) -> Preference:
    """The preference between two clips that the rule in this module's docstring makes from one source's answers.

    ids: the clips, as the preference names them first and second. both_orders: false for people.
    Raises ValueError for an answer about other clips.
    """
    forward = [row for row in rows if (row.first, row.second) == ids]
    backward = [row for row in rows if (row.second, row.first) == ids]
    if len(forward) + len(backward) != len(rows):
        raise ValueError(f"answers about other clips than {ids}")
    ahead, behind = outcome(forward, rubric), _flipped(outcome(backward, rubric))
    found = _agreed(ahead, behind) if both_orders else _of_people(forward, backward, rubric)
    return Preference(
        prompt_id=prompt_id,
        first=ids[0],
        second=ids[1],
        source=rows[0].source,
        preferred=found.answer,
        p_first=found.p_first,
        forward=ahead.answer,
        backward=behind.answer,
        nulls=sum(row.answer is None for row in rows),
        reason=_reason(found.answer, rows),
    )


def outcome(rows: Sequence[Comparison], rubric: Rubric) -> Outcome:
    """What the answers about one order come to."""
    ballots = [[row for row in rows if row.question == q.name] for q in rubric.questions if q.required]
    questions = [_of_question(ballot) for ballot in ballots]
    answers = [one.answer for one in questions if one.answer is not None]
    chances = [one.p_first for one in questions if one.p_first is not None]
    if not answers or len(answers) < (len(ballots) if rubric.rule == "all" else len(ballots) / 2):
        return NOTHING
    if rubric.rule == "all":
        worst = min(answers, key=lambda answer: WORTH[answer])
        return Outcome(worst, min(chances))
    if rubric.rule == "majority":
        return Outcome(_side(fmean(WORTH[answer] for answer in answers)), fmean(chances))
    return Outcome(_side(fmean(chances)), fmean(chances))


def _of_question(ballot: Sequence[Comparison]) -> Outcome:
    answered = [(row.answer, row.p_first) for row in ballot if row.answer is not None]
    if not answered:
        return NOTHING
    chance = fmean(WORTH[answer] if p_first is None else p_first for answer, p_first in answered)
    return Outcome(_side(fmean(WORTH[answer] for answer, _ in answered)), chance)


def _side(worth: float) -> str:
    return FIRST if worth > 0.5 else SECOND if worth < 0.5 else TIE


def _flipped(shown: Outcome) -> Outcome:
    """The outcome in terms of the clips in the other order."""
    answer = None if shown.answer is None else OTHER[shown.answer]
    return Outcome(answer, None if shown.p_first is None else 1 - shown.p_first)


def _of_people(forward: Sequence[Comparison], backward: Sequence[Comparison], rubric: Rubric) -> Outcome:
    """The side with more people, each of whom saw one order."""
    said = [outcome(rows, rubric) for rows in _by_vote(forward)]
    said += [_flipped(outcome(rows, rubric)) for rows in _by_vote(backward)]
    worths = [WORTH[one.answer] for one in said if one.answer is not None]
    return Outcome(_side(fmean(worths)), fmean(worths)) if worths else NOTHING


def _by_vote(rows: Sequence[Comparison]) -> list[list[Comparison]]:
    return [[row for row in rows if row.vote == vote] for vote in sorted({row.vote for row in rows})]


def _agreed(ahead: Outcome, behind: Outcome) -> Outcome:
    """What both orders say; both outcomes are in terms of the same first clip."""
    if ahead.answer is None or behind.answer is None or ahead.p_first is None or behind.p_first is None:
        return NOTHING
    chance = (ahead.p_first + behind.p_first) / 2
    agreed = ahead.answer == behind.answer == _side(chance)
    return Outcome(ahead.answer if agreed else TIE, chance)


def _reason(preferred: str | None, rows: Sequence[Comparison]) -> str | None:
    """The source's own words, of all its answers; or why answers are missing."""
    texts = [row.error if preferred is None else row.reason for row in rows]
    return "; ".join(dict.fromkeys(text for text in texts if text)) or None
