"""A rubric: the questions for a source, their wanted answers, and the rule that combines the answers into one label.

A rubric is a YAML file (feedback/rubrics/). This is the full rule for the verdicts of one source on one clip:

- A question's answer is the majority of its votes. Votes without an answer are left out, and their number is recorded.
  A question without any answer, or with as many votes for as against, stays unanswered.
- A question's chance is the mean over its answered votes of the probability of the wanted answer. A vote without a
  probability counts as 1 if it is the wanted answer, else as 0. Without an answered vote the chance is unknown. If the
  votes tie, the question is unanswered but its chance is known.
- `rule: all`: the label is true if every required question got its wanted answer, false if all are answered and at
  least one got the other answer, null if a required question is unanswered. p_accept is the product of the required
  questions' chances; it is null if one of them is unknown.
- `rule: majority`: the label is true if more than half of the answered required questions got their wanted answer,
  false if more than half did not, null if the two numbers are equal or fewer than half of the required questions are
  answered. p_accept is the mean of the known chances; it is null if fewer than half of them are known. p_accept
  measures agreement, so it and the label may be on different sides of 0.5: for example two chances just above 0.5 and
  one close to 0.
- `rule: mean`: p_accept as under majority. The label is p_accept > 0.5; it is null if p_accept is null or exactly 0.5.
- A question whose votes have scores and no answers, such as a metric's, does not count as null and is left out of label
  and p_accept. If there is no other required question, both are null.
- score is the mean over the required questions of the mean score of their votes; null if one question has no score.
- `rule: product`: label and p_accept as under all. score is the product of the questions' scores.
- `rule: lexicographic`: label and p_accept as under all. If questions were answered, score is 0 for a false label and
  null for a null label. Otherwise it is the mean of the measured questions' scores. A reject is thus a veto.

Questions that are not required are sent and recorded, and do not affect the label. Counts and means leave out what is
unanswered: it is never a 0 and never half a tie. The order of the verdicts has no effect.

`first_frame` holds words: a source is then shown the image that the generator was given, before the clip, and is told
these words before the instructions. They should say what the first picture is, and that the clip is to be judged.

Where `questions` is the path of a CSV (data/tables/questions.py), each prompt has questions of its own: load_rubric
then gives a RubricByPrompt. `rubric.of(prompt)` is the Rubric of a prompt's clips, of either kind.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
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
from data.tables.questions import OwnQuestion, by_prompt, read_questions
from data.written import read_written

Rule = Literal["all", "majority", "mean", "product", "lexicographic"]
COMPARING = ("all", "majority", "mean")  # the rules of rubrics that compare clips


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a text; put Yes and No in quotes")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError(f"{value!r} is empty, expected a text")
    return value


def _no_quotes(value: str) -> str:
    if value.strip()[0] in QUOTES or value.strip()[-1] in QUOTES:
        raise ValueError(f'{value!r} has quotes that YAML takes for letters; write "Yes", with straight quotes')
    return value


def _yes_or_no(value: Any) -> Any:
    """Yes and no in quotes too: beside "Yes" of the answers, which needs them, that is easily written."""
    return YES_OR_NO.get(value.strip().lower(), value) if isinstance(value, str) else value


QUOTES = "“”„‟«»‹›‘’‚‛＂\"'`"
YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}
Text = Annotated[str, BeforeValidator(_no_boolean), AfterValidator(_not_blank)]
Answer = Annotated[str, BeforeValidator(_no_boolean), AfterValidator(_not_blank), AfterValidator(_no_quotes)]
YesOrNo = Annotated[bool, BeforeValidator(_yes_or_no)]


@dataclass(frozen=True, config=STRICT)
class Question:
    """A question about a clip, answered by one of two words."""

    name: Text
    ask: Text
    affirmative: Answer  # the word that means yes
    negative: Answer
    wanted: YesOrNo  # the answer in favour of the clip, of two clips in favour of the first; true: yes
    required: YesOrNo
    tie: Answer | None = None  # of a question about two clips: the word for no difference; null: one of the two words


@dataclass(frozen=True, config=STRICT)
class Rubric:
    """The questions about a clip. `{prompt}`, in the instructions or in every question, stands for its prompt.

    With `compares`, the questions are about two clips of one prompt, which are shown one after the other, and a wanted
    answer means that the first is better (feedback.pairs.outcome).
    """

    name: str
    frames: Count | None  # number of evenly spaced frames that the source sees; null: all frames
    rule: Rule
    instructions: str
    questions: tuple[Question, ...]
    compares: bool = False
    first_frame: Text | None = None  # what the source is told of the first frame, which it is shown; null: it is not

    def of(self, prompt: str) -> "Rubric":
        """The rubric of this prompt's clips: this one, whatever the prompt."""
        return self

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Nothing is missing: the questions are about every prompt."""

    def with_questions(self, change: Callable[[Question], Question]) -> "Rubric":
        """A copy with each question changed."""
        return replace(self, questions=tuple(map(change, self.questions)))

    def text(self, question: Question, prompt: str) -> str:
        """The text that a source receives for one question about a clip of this prompt."""
        text = f"{self.instructions.strip()}\n\n{question.ask.strip()}".lstrip()
        if self.first_frame:
            text = f"{self.first_frame.strip()}\n\n{text}"
        return text.replace("{prompt}", prompt)

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits of what is sent: texts, answer words and which frames, without the combining rule."""
        sent = [
            [q.name, self.text(q, "{prompt}"), q.affirmative, q.negative, *([q.tie] if q.tie else [])]
            for q in self.questions
        ]
        two = ["two clips"] if self.compares else []
        first = ["first frame"] if self.first_frame else []
        return hashlib.sha256(json.dumps([self.frames, sent, *two, *first]).encode()).hexdigest()[:12]


@plain_dataclass(frozen=True)
class RubricByPrompt:
    """A rubric with questions of each prompt's own. It has no `questions`: `of` gives those of a prompt."""

    name: str
    frames: int | None
    rule: Rule
    instructions: str
    file: str  # the CSV
    own: Mapping[str, tuple[Question, ...]]  # by the prompt's text
    first_frame: str | None = None  # as of a Rubric

    compares = False  # two clips are compared by one set of questions

    def of(self, prompt: str) -> Rubric:
        """The rubric of this prompt's clips. Raises ValueError naming the file where it has no question about them."""
        if prompt not in self.own:
            self.check_prompts([prompt])
        return self._rubrics[prompt]

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Raises ValueError naming the file, the number of prompts without a question and the first of them."""
        asked = list(dict.fromkeys(prompts))
        if lacking := [prompt for prompt in asked if prompt not in self.own]:
            near = difflib.get_close_matches(lacking[0], self.own, 1, cutoff=0.9)
            meant = f" (the file has {near[0]!r})" if near else ""
            raise ValueError(
                f"{self.file} has no question about {len(lacking)} of {len(asked)} prompts, the first of them "
                f"{lacking[0]!r}{meant}; `vfrl questions` writes the questions of a prompt set"
            )

    def with_questions(self, change: Callable[[Question], Question]) -> "RubricByPrompt":
        """A copy with each question changed."""
        return replace(self, own={prompt: tuple(map(change, asked)) for prompt, asked in self.own.items()})

    @cached_property
    def _rubrics(self) -> dict[str, Rubric]:
        shared = (self.name, self.frames, self.rule, self.instructions)
        first = self.first_frame
        return {prompt: Rubric(*shared, questions, first_frame=first) for prompt, questions in self.own.items()}

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits of what is sent about the clips of all prompts, in any order of these."""
        sent = sorted((prompt, rubric.hash) for prompt, rubric in self._rubrics.items())
        return hashlib.sha256(json.dumps(sent).encode()).hexdigest()[:12]


AnyRubric = Rubric | RubricByPrompt


@dataclass(frozen=True, config=STRICT)
class _Sheet:
    """The YAML file of a RubricByPrompt."""

    name: str
    frames: Count | None
    rule: Rule
    instructions: str
    questions: Text  # path of the CSV
    compares: Literal[False] = False
    first_frame: Text | None = None


def load_rubric(path: Path) -> AnyRubric:
    """A rubric from its YAML file. Raises ValueError that names the file and the wrong key.

    The path of a CSV of questions is taken from the working folder, as the paths in params.yaml are.
    """
    try:
        block = yaml.safe_load(read_written(Path(path)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a readable rubric ({error})") from error
    own = isinstance(block, Mapping) and isinstance(block.get("questions"), str)
    if own and block.get("compares"):
        raise ValueError(f"{path}: compares: true, but two clips are compared by one list of questions, not by a CSV")
    read: Rubric | _Sheet
    try:
        read = read_config(_Sheet, block, "") if own else read_config(Rubric, block, "")
    except ValueError as error:
        problems = [line.strip().removeprefix(".") for line in str(error).splitlines()]
        raise ValueError(f"{path}: " + "\n  ".join(problems)) from error
    if isinstance(read, _Sheet):
        return _by_prompt(path, read)
    if problem := _problem(read):
        raise ValueError(f"{path}: {problem}")
    return read


def questions_file(path: Path) -> str | None:
    """The CSV of questions that a rubric's YAML file names; None where its questions stand in it. As load_rubric."""
    rubric = load_rubric(path)
    return rubric.file if isinstance(rubric, RubricByPrompt) else None


def _by_prompt(path: Path, sheet: _Sheet) -> RubricByPrompt:
    try:
        rows = by_prompt(read_questions(Path(sheet.questions)))
    except ValueError as error:
        raise ValueError(f"{path}: questions: {error}") from error
    own = {prompt: tuple(map(_question, questions)) for prompt, questions in rows.items()}
    shared = (sheet.name, sheet.frames, sheet.rule, sheet.instructions)
    return RubricByPrompt(*shared, sheet.questions, own, sheet.first_frame)


def _question(row: OwnQuestion) -> Question:
    """The word that means yes is Yes where that is one of the two, otherwise the wanted word."""
    no_is_wanted = row.other == "Yes"
    words = (row.other, row.wanted) if no_is_wanted else (row.wanted, row.other)
    return Question(row.name, row.question, *words, wanted=not no_is_wanted, required=row.required)


def combine(verdicts: Sequence[Verdict], rubric: Rubric) -> Label:
    """The label that the rule in this module's docstring makes from one source's verdicts on one clip.

    Raises ValueError if the verdicts are of several clips or sources, or lack a required question.
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
    not_measured = [question for question in required if not _measured(ballots[question.name])]
    met = [_met(question, ballots[question.name]) for question in not_measured]
    chances = [_chance(question, ballots[question.name]) for question in not_measured]
    label, p_accept = _outcome(rubric.rule, met, chances)
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
    """Label and p_accept by a rule. met: whether each question got its wanted answer. chances: their probabilities."""
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
    """Whether the majority of a question's answered votes is the wanted answer; None without answers and for a tie."""
    return _majority([verdict.answer == question.wanted for verdict in ballot if verdict.answer is not None])


def _chance(question: Question, ballot: Sequence[Verdict]) -> float | None:
    """Mean over a question's answered votes of the probability of the wanted answer; None without answers."""
    p_yes = [float(v.answer) if v.p_yes is None else v.p_yes for v in ballot if v.answer is not None]
    return fmean(p if question.wanted else 1 - p for p in p_yes) if p_yes else None


def _measured(ballot: Sequence[Verdict]) -> bool:
    """Whether every vote on a question has a score and no answer."""
    return all(verdict.answer is None and verdict.score is not None for verdict in ballot)


def _score(rule: Rule, label: bool | None, ballots: Sequence[Sequence[Verdict]]) -> float | None:
    """The score by a rule; each required question's score is the mean of its votes' scores."""
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
    """The tally under rules majority and mean, and the cause of each missing answer; None if there is neither."""
    tally = f"{met.count(True)} for and {met.count(False)} against, of {len(met)} required questions"
    gaps = [_gap(name, ballot) for name, ballot in ballots.items()]
    return _joined([tally if met and rule in ("majority", "mean") else None, *gaps]) or None


def _gap(name: str, ballot: Sequence[Verdict]) -> str | None:
    """Why a question is unanswered; None if it is answered or measured."""
    answers = [verdict.answer for verdict in ballot if verdict.answer is not None]
    if _measured(ballot):
        return None
    if not answers:
        return f"{name}: no answer ({_joined(verdict.error for verdict in ballot)})"
    return f"{name}: {len(answers)} votes tied" if _majority(answers) is None else None


def _words(required: Sequence[Question], ballots: Mapping[str, Sequence[Verdict]], label: bool) -> str | None:
    """The source's reasons for a label: of all questions if it accepts, of the failed questions if it rejects."""
    decisive = [q for q in required if _met(q, ballots[q.name]) == label]
    reasons = (v.reason for q in decisive for v in ballots[q.name] if v.answer == (q.wanted == label))
    return _joined(reasons) or None


def _joined(texts: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _first_word(text: str) -> str:
    found = re.search(r"\w+", text)
    return (found[0] if found else text.strip()).lower()


def _problem(rubric: Rubric) -> str | None:
    """A contradiction between a rubric's values, with the key first; None if there is none."""
    names = [question.name for question in rubric.questions]
    if len(set(names)) != len(names):
        return f"questions: two have the same name in {names}"
    if rubric.compares and rubric.rule not in COMPARING:
        return f"rule is {rubric.rule}, which no rubric with compares: true has: {', '.join(COMPARING)}"
    if not any(question.required for question in rubric.questions):
        return "questions: none is required, so no clip could be labelled"
    for index, question in enumerate(rubric.questions):
        words = [text for text in (question.affirmative, question.negative, question.tie) if text is not None]
        first = [_first_word(text) for text in words]
        if first[0] == first[1]:
            return (
                f"questions[{index}].negative is {question.negative!r}, which begins with the same word as its "
                f"affirmative {question.affirmative!r}; a judge's answer is read from its first word"
            )
        if first[2:] and first[2] in first[:2]:
            return f"questions[{index}].tie is {question.tie!r}, which begins with the same word as another answer"
        if question.tie and not rubric.compares:
            return f"questions[{index}].tie is {question.tie!r}, but a question about one clip has no tie: null"
        if not rubric.compares and "{prompt}" not in rubric.text(question, "{prompt}"):
            return f"questions[{index}].ask: neither it nor the instructions hold {{prompt}}"
    return None
