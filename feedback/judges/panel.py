"""Several sources as one: each member labels the clip by its own rubric, and a rule combines their labels.

"Future extensions may mitigate these issues by using stronger VLM as judges or ensembling multiple VLM judges", says
Ask-A-Video of what fooled its judge (§4.3). A panel is that, and nothing is combined twice: to rubric.combine a member
is a question, its label the answer and its p_accept the answer's probability, so the rules all, majority and mean are
the ones stated there. A member without a label is a null and never a vote against. Under `mean` a member speaks with
its own p_accept: that of a long sheet under `rule: all` is a product and low even where it accepts; give such a member
a rubric whose rule is mean.

Metrics may be members too. A panel's `score`, which `build` can take as the reward, is made of a value of each member:
a metric's score, a judge's p_accept (or 1 and 0 where it tells none), shaped as scale * value + shift by the panel's
`shaping`. The rules mean (also majority and all), product and lexicographic combine them as rubric.py states: under
product one bad value spoils the whole, under lexicographic a judge's reject vetoes and the metrics decide the rest.

A panel's verdict on a clip is one row per member, in vote 0: the member's own verdicts stand in `raw`, word by word.
How often its members are asked is the panel's own option `votes`, which those that always answer the same do not need;
to whoever asks the panel it is repeatable, and label.votes stays 1.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from itertools import islice
from typing import Any

from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, NotNegative, Positive
from data.records import Label, Verdict
from feedback.core.kinds import Kind, Needs, make_source
from feedback.core.rubric import Question, Rubric, Rule, combine
from feedback.core.source import FAILED, Request, Source, in_order, verdict, verdicts_on, votes_of

CHUNK = 256  # clips that a member judges before the next one does: of a local member, the most that a kill can cost


@dataclass(frozen=True, config=STRICT)
class Shape:
    """What a member's value becomes in the panel's score: scale * value + shift (§3.2)."""

    scale: Positive = 1.0
    shift: NotNegative = 0.0


@dataclass(frozen=True, config=STRICT)
class Options:
    """Options of kind `panel`."""

    rule: Rule
    members: dict[str, dict[str, Any]]  # each member's name and block, as in feedback.sources
    votes: Count = 1  # independent askings of each member that samples its answer
    shaping: dict[str, Shape] = field(default_factory=dict)  # by member; without one, its value is not changed

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"members are {list(self.members)}, expected at least two")
        for name, block in self.members.items():
            if not re.fullmatch(r"[a-z0-9_-]+", name):
                raise ValueError(f"members.{name}: a name is made of a-z, 0-9, - and _")
            if block.get("kind") == "panel":
                raise ValueError(f"members.{name}.kind is 'panel'; a panel's members are no panels themselves")
        if unknown := [name for name in self.shaping if name not in self.members]:
            raise ValueError(f"shaping.{unknown[0]} is of no member; members are {', '.join(self.members)}")


def load(name: str, options: Options, device: str) -> "PanelSource":
    """The panel of this block, all of its members loaded."""
    members = {
        member: make_source(f"{name}.members.{member}", block, device) for member, block in options.members.items()
    }
    return PanelSource(name, members, options.rule, options.votes, options.shaping)


class PanelSource:
    """Asks every member about a chunk of clips, one member after the other."""

    model_version: str | None = None  # each row has that of its member
    repeatable = True

    def __init__(
        self,
        name: str,
        members: Mapping[str, Source],
        rule: Rule,
        votes: int = 1,
        shaping: Mapping[str, Shape] | None = None,
    ) -> None:
        if votes > 1 and all(member.repeatable for member in members.values()):
            raise ValueError(f"{name}: votes is {votes}, but all of its members answer the same however often asked: 1")
        self.name, self.members = name, members
        self._shapes = {key: (shaping or {}).get(key, Shape()) for key in members}
        self.votes = {key: votes_of(one, votes) for key, one in members.items()}
        self.model = " + ".join(member.model for member in members.values())
        self.rubric = Rubric(
            name="panel",
            frames=None,
            rule=rule,
            instructions=f"Is this a clip of: {{prompt}}\nBy the rule {rule} of the members' labels.",
            questions=tuple(
                _question(key, member, self.votes[key], self._shapes[key]) for key, member in members.items()
            ),
        )

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        waiting = iter(requests)
        while chunk := list(islice(waiting, CHUNK)):
            by_member = [self._member_verdicts(question, chunk) for question in self.rubric.questions]
            for request in chunk:
                yield [of_member[request.sample.sample_id] for of_member in by_member]

    def status(self) -> dict[str, Any]:
        return {f"{key} {what}": so for key, member in self.members.items() for what, so in member.status().items()}

    def _member_verdicts(self, question: Question, chunk: Sequence[Request]) -> dict[str, Verdict]:
        """One member's verdict on each clip of a chunk, by sample_id."""
        member, votes = self.members[question.name], self.votes[question.name]
        requests = {request.sample.sample_id: replace(request, votes=votes) for request in chunk}
        with contextlib.closing(verdicts_on(member, requests)) as answers:
            return {sample: self._verdict(question, member, requests[sample], rows) for sample, rows in answers}

    def _verdict(self, question: Question, member: Source, request: Request, rows: Sequence[Verdict]) -> Verdict:
        """What a member's verdicts on a clip amount to: its label, or why it has none."""
        votes = -(-len(rows) // len(member.rubric.questions))  # which the member decides: people have one each
        rows = in_order(rows, request.sample.sample_id, member, votes, member.name)
        label, errors = combine(rows, member.rubric), [row.error for row in rows if row.error is not None]
        failed = [error for error in errors if error.startswith(FAILED)]
        facts: dict[str, Any] = {"answer": label.label, "p_yes": label.p_accept, "reason": label.reason}
        if (value := _value(label)) is not None:
            shape = self._shapes[question.name]
            facts["score"] = shape.scale * value + shape.shift
        if failed:  # whatever else it said: it is to be asked again
            facts = {"error": failed[0]}
        elif value is None:  # the member's own words, as long as they begin as source.py says
            facts |= {"reason": None, "error": errors[0] if len(errors) == len(rows) else label.reason}
        return verdict(
            self,
            request.sample,
            0,
            question,
            sorted({index for row in rows for index in row.frames}),
            model_version=" + ".join(sorted({row.model_version for row in rows})),
            raw=_as_json(rows),
            tokens=_total(row.tokens for row in rows),
            cost=_total(row.cost for row in rows),
            **facts,
        )


KIND = Kind(
    Options,
    load,
    needs=lambda given: Needs(inner={f"members.{key}": block for key, block in given.members.items()}),
)


def _value(label: Label) -> float | None:
    """What a member says as a number: a metric its score, a judge its p_accept; null where it says nothing."""
    if label.score is not None:
        return label.score
    if label.label is None:
        return None
    return float(label.label) if label.p_accept is None else label.p_accept


def _question(name: str, member: Source, votes: int, shape: Shape) -> Question:
    """A member as a question. Its text, and so the panel's hash, holds all that makes the member's label."""
    sheet = member.rubric
    wanted = ", ".join(f"{q.name}: {'yes' if q.wanted else 'no'}" for q in sheet.questions if q.required)
    return Question(
        name=name,
        ask=(
            f"Does {member.model} ({member.model_version or 'of a version that its replies name'}) accept it, "
            f"asked {sheet.hash} {votes} times, {sheet.rule} of {wanted}?"
            + ("" if shape == Shape() else f" Its value counts {shape.scale} times, and {shape.shift} more.")
        ),
        affirmative="accept",
        negative="reject",
        wanted=True,
        required=True,
    )


def _as_json(rows: Iterable[Verdict]) -> str:
    """Verdicts without what is null, and without what the panel's own row says."""
    own = ("sample_id", "source", "tokens", "cost")
    kept = [{key: value for key, value in asdict(row).items() if value is not None and key not in own} for row in rows]
    return json.dumps(kept, ensure_ascii=False)


def _total(amounts: Iterable[float | None]) -> Any:
    """Their sum; null where none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None
