"""What a source is asked: questions with their wanted answers, and how the answers combine into one label.

A rubric is a YAML file (feedback/rubrics/). Its rule, in full, for the verdicts of one source on one clip:

- A question's answer is the majority of its votes. Votes without an answer are left out and counted; a question
  without any answer, or with as many for as against, stays unanswered.
- A question's chance is the mean over its answered votes of the probability of the wanted answer; a vote whose source
  tells no probability counts as 1 or 0 by its answer. Without an answered vote it is unknown; votes that tie leave the
  question unanswered but its chance known.
- `rule: all`: the label is true when every required question got its wanted answer, false when all are answered and
  one is not as wanted, null when a required question is unanswered. p_accept is the product of the required questions'
  chances, null when one is unknown.
- `rule: majority`: the label is true when more than half of the answered required questions got their wanted answer,
  false when more than half did not, null when it is as many as not, or when fewer than half of the required questions
  are answered. p_accept is the mean of the known chances, null when fewer than half of them are known. It grades how
  far the answers agree, so it may lie on the other side of 0.5 than the label: two just in favour, one dead against.
- `rule: mean`: p_accept as under majority; the label is p_accept > 0.5, null where p_accept is null or exactly 0.5.
- A question that was measured and not answered, as a metric's, is no null and is left out of label and p_accept; with
  no other question both are null.
- score is the mean over the required questions of the mean of their votes' scores; null where one of them has none.
- `rule: product`: label and p_accept as under all; score is the product of the questions' scores.
- `rule: lexicographic`: label and p_accept as under all; score is 0 where the label is false, null where questions were
  answered and it is null, else the mean of the measured questions' scores: a reject vetoes.

Questions that are not required are asked and recorded, and change nothing. What is unanswered is left out of counts
and means; it is never a 0 and never half a tie. The order in which the verdicts come changes nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, BeforeValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, read_config
from data.records import Label, Verdict

Rule = Literal["all", "majority", "mean", "product", "lexicographic"]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no text; put Yes and No in quotes")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError(f"{value!r} is empty, expected a text")
    return value


Text = Annotated[str, BeforeValidator(_no_boolean), AfterValidator(_not_blank)]


@dataclass(frozen=True, config=STRICT)
class Question:
    """A question about a clip, to be answered by one of two words."""

    name: Text
    ask: Text
    affirmative: Text  # the word that means yes
    negative: Text
    wanted: bool  # the answer that speaks for the clip: yes is true
    required: bool


@dataclass(frozen=True, config=STRICT)
class Rubric:
    """What is asked about a clip. `{prompt}` stands for the clip's prompt in the instructions or in every question."""

    name: str
    frames: Count | None  # how many frames are shown, evenly spaced; null: all of them
    rule: Rule
    instructions: str
    questions: tuple[Question, ...]

    def text(self, question: Question, prompt: str) -> str:
        """The words that a source is sent for one question about a clip of this prompt."""
        return f"{self.instructions.strip()}\n\n{question.ask.strip()}".replace("{prompt}", prompt)

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits of what is really sent: texts, answer words and frame count, not how answers combine."""
        sent = [[q.name, self.text(q, "{prompt}"), q.affirmative, q.negative] for q in self.questions]
        return hashlib.sha256(json.dumps([self.frames, sent]).encode()).hexdigest()[:12]


def load_rubric(path: Path) -> Rubric:
    """A rubric from its YAML file. Raises ValueError naming the file and the key that is wrong."""
    try:
        block = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable rubric ({error})") from error
    try:
        rubric = read_config(Rubric, block, "")
    except ValueError as error:
        problems = [line.strip().removeprefix(".") for line in str(error).splitlines()]
        raise ValueError(f"{path}: " + "\n  ".join(problems)) from error
    if problem := _problem(rubric):
        raise ValueError(f"{path}: {problem}")
    return rubric


def combine(verdicts: Sequence[Verdict], rubric: Rubric) -> Label:
    """The label that one source's verdicts on one clip amount to, by the rule that this module states.

    Raises ValueError where the verdicts are of several clips or sources, or miss a required question.
    """
    if len({(verdict.sample_id, verdict.source) for verdict in verdicts}) != 1:
        raise ValueError("a label combines the verdicts of one source on one clip")
    required = [question for question in rubric.questions if question.required]
    in_order = sorted(verdicts, key=lambda verdict: verdict.vote)
    ballots = {q.name: [verdict for verdict in in_order if verdict.question == q.name] for q in required}
    if empty := [name for name, ballot in ballots.items() if not ballot]:
        raise ValueError(f"{verdicts[0].sample_id}: no verdict on the required questions {empty}")
    votes = {verdict.vote for verdict in verdicts}
    null_votes = {v.vote for ballot in ballots.values() for v in ballot if v.answer is None and v.score is None}
    asked = [question for question in required if not _measured(ballots[question.name])]
    met = [_met(question, ballots[question.name]) for question in asked]
    label, p_accept = _outcome(rubric.rule, met, [_chance(question, ballots[question.name]) for question in asked])
    return Label(
        sample_id=verdicts[0].sample_id,
        source=verdicts[0].source,
        label=label,
        p_accept=p_accept,
        score=_score(rubric.rule, label, list(ballots.values())),
        votes=len(votes),
        nulls=len(null_votes),
        reason=_why_unlabelled(rubric.rule, met, ballots) if label is None else _words(required, ballots, label),
    )


class _Outcome(NamedTuple):
    label: bool | None
    p_accept: float | None


def _outcome(rule: Rule, met: Sequence[bool | None], chances: Sequence[float | None]) -> _Outcome:
    """What a rule makes of the required questions: which were answered as wanted, and how probable that was."""
    known = [chance for chance in chances if chance is not None]
    if not met:
        return _Outcome(None, None)
    if rule in ("all", "product", "lexicographic"):
        return _Outcome(None if None in met else all(met), prod(known) if len(known) == len(chances) else None)
    p_accept = fmean(known) if 2 * len(known) >= len(chances) else None
    if rule == "mean":
        return _Outcome(None if p_accept in (None, 0.5) else p_accept > 0.5, p_accept)
    answers = [answer for answer in met if answer is not None]
    return _Outcome(_majority(answers) if 2 * len(answers) >= len(met) else None, p_accept)


def _majority(answers: Sequence[bool]) -> bool | None:
    margin = 2 * sum(answers) - len(answers)
    return margin > 0 if margin else None


def _met(question: Question, ballot: Sequence[Verdict]) -> bool | None:
    """Whether the majority of a question's answered votes is as wanted; null without answers and when they tie."""
    return _majority([verdict.answer == question.wanted for verdict in ballot if verdict.answer is not None])


def _chance(question: Question, ballot: Sequence[Verdict]) -> float | None:
    """Mean over a question's answered votes of the probability of the wanted answer; null without answers."""
    told = [float(v.answer) if v.p_yes is None else v.p_yes for v in ballot if v.answer is not None]
    return fmean(p if question.wanted else 1 - p for p in told) if told else None


def _measured(ballot: Sequence[Verdict]) -> bool:
    """Whether a question's votes are numbers, and none of them an answer or a null."""
    return all(verdict.answer is None and verdict.score is not None for verdict in ballot)


def _score(rule: Rule, label: bool | None, ballots: Sequence[Sequence[Verdict]]) -> float | None:
    """What a rule makes of the scores of the required questions, each the mean of its votes'."""
    scores = [[verdict.score for verdict in ballot if verdict.score is not None] for ballot in ballots]
    if not all(scores):
        return None
    means = [fmean(of_question) for of_question in scores]
    if rule == "product":
        return prod(means)
    measured = [mean for mean, ballot in zip(means, ballots, strict=True) if _measured(ballot)]
    if rule == "lexicographic" and len(measured) < len(ballots):
        if not label:
            return None if label is None else 0.0
        return fmean(measured or means)
    return fmean(means)


def _why_unlabelled(rule: Rule, met: Sequence[bool | None], ballots: Mapping[str, Sequence[Verdict]]) -> str | None:
    """How the answers stand, unless one that is missing says it all, and what is missing; null if nothing was asked."""
    tally = f"{met.count(True)} for and {met.count(False)} against, of {len(met)} required questions"
    gaps = [_gap(name, ballot) for name, ballot in ballots.items()]
    return _joined([tally if met and rule in ("majority", "mean") else None, *gaps]) or None


def _gap(name: str, ballot: Sequence[Verdict]) -> str | None:
    """Why a question is unanswered; null if it is answered, or was measured and not asked."""
    answers = [verdict.answer for verdict in ballot if verdict.answer is not None]
    if _measured(ballot):
        return None
    if not answers:
        return f"{name}: no answer ({_joined(verdict.error for verdict in ballot)})"
    return f"{name}: {len(answers)} votes tied" if _majority(answers) is None else None


def _words(required: Sequence[Question], ballots: Mapping[str, Sequence[Verdict]], label: bool) -> str | None:
    """The source's own reasons for a label: of all questions when it accepts, of the failed ones when it rejects."""
    telling = [q for q in required if _met(q, ballots[q.name]) == label]
    reasons = (v.reason for q in telling for v in ballots[q.name] if v.answer == (q.wanted == label))
    return _joined(reasons) or None


def _joined(texts: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _problem(rubric: Rubric) -> str | None:
    """What is wrong with a rubric's values together, with the key first; None if nothing is."""
    names = [question.name for question in rubric.questions]
    if len(set(names)) != len(names):
        return f"questions: two have the same name in {names}"
    if not any(question.required for question in rubric.questions):
        return "questions: none is required, so no clip could be labelled"
    for index, question in enumerate(rubric.questions):
        if question.affirmative.lower() == question.negative.lower():
            return f"questions[{index}].negative is {question.negative!r}, the same word as its affirmative"
        if "{prompt}" not in rubric.text(question, "{prompt}"):
            return f"questions[{index}].ask: neither it nor the instructions hold {{prompt}}"
    return None
