"""Several sources as one: each member labels the clip by its own rubric, and a rule combines their labels.

"Future extensions may mitigate these issues by using stronger VLM as judges or ensembling multiple VLM judges", says
Ask-A-Video about errors of its judge (§4.3). A panel is such an ensemble. rubric.combine makes its label: it treats
each member as a question, the member's label as the answer and its p_accept as the answer's probability, so the rules
all, majority and mean are those stated there. A member without a label is a null and never a vote against. Rule
`mean` uses each member's p_accept. With many questions under `rule: all`, a p_accept is a product and is low even for
an accepted clip; such a member should have a rubric with rule mean.

Metrics may be members too. A panel's `score`, which `build` can take as the reward, is made from one value per member:
a metric's score, or a judge's p_accept (1 or 0 by its label if it has none). The panel's `shaping` changes a value to
scale * value + shift. The rules mean (also majority and all), product and lexicographic combine the values as rubric.py
states: under product one low value makes the score low; under lexicographic a judge's reject is a veto, and otherwise
the metrics decide.

A panel's verdict on a clip is one row per member, in vote 0. `raw` holds the member's own verdicts verbatim. The
panel's option `votes` is the number of votes of each member that samples its answer. The panel itself is
repeatable: it votes once, regardless of label.votes.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from functools import partial
from itertools import islice
from typing import Any

from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, NotNegative, Positive
from data.records import Label, Verdict
from feedback.core.kept import verdicts_of
from feedback.core.kinds import Kind, Make, Needs, make_source, read_block
from feedback.core.rubric import Question, Rubric, RubricByPrompt, Rule, combine
from feedback.core.source import FAILED, Request, Source, in_order, verdict, votes_of

CHUNK = 256  # clips that a member judges before the next member does; a kill loses at most one chunk of a local member
MANY = 16 * CHUNK  # the same where a member has many workers, which would be idle at the end of each chunk


@dataclass(frozen=True, config=STRICT)
class Shaping:
    """Changes a member's value in the panel's score to scale * value + shift (§3.2)."""

    scale: Positive = 1.0
    shift: NotNegative = 0.0


@dataclass(frozen=True, config=STRICT)
class Options:
    """Options of kind `panel`."""

    rule: Rule
    members: dict[str, dict[str, Any]]  # name -> block of each member, as in feedback.sources
    votes: Count = 1  # independent votes of each member that samples its answer
    shaping: dict[str, Shaping] = field(
        default_factory=dict
    )  # by member; the value of a member without one is unchanged

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"members are {list(self.members)}, expected at least two")
        for name, block in self.members.items():
            if not re.fullmatch(r"[a-z0-9_-]+", name):
                raise ValueError(f"members.{name}: a name is made of a-z, 0-9, - and _")
            if block.get("kind") == "panel":
                raise ValueError(f"members.{name}.kind is 'panel'; a panel cannot be a member of a panel")
        if unknown := [name for name in self.shaping if name not in self.members]:
            raise ValueError(f"shaping.{unknown[0]} names no member; members are {', '.join(self.members)}")


def load(name: str, options: Options, device: str) -> "PanelSource":
    """The panel of this block, with all members loaded."""
    return of_members(name, options, partial(make_source, device=device))


def of_members(name: str, options: Options, make: Make) -> "PanelSource":
    """The panel of this block. make: makes its members."""
    members = {member: make(f"{name}.members.{member}", block) for member, block in options.members.items()}
    return PanelSource(name, members, options.rule, options.votes, options.shaping)


class PanelSource:
    """Judges each chunk of clips with every member, one member after the other."""

    model_version: str | None = None  # each row has its member's version
    repeatable = True

    def __init__(
        self,
        name: str,
        members: Mapping[str, Source],
        rule: Rule,
        votes: int = 1,
        shaping: Mapping[str, Shaping] | None = None,
    ) -> None:
        if votes > 1 and all(member.repeatable for member in members.values()):
            raise ValueError(f"{name}: votes is {votes}, but all of its members are repeatable; expected 1")
        self.name, self.members = name, members
        self._shaping = {key: (shaping or {}).get(key, Shaping()) for key in members}
        self.votes = {key: votes_of(one, votes) for key, one in members.items()}
        self.model = " + ".join(member.model for member in members.values())
        self.rubric = Rubric(
            name="panel",
            frames=None,
            rule=rule,
            instructions=f"Is this a clip of: {{prompt}}\nBy the rule {rule} of the members' labels.",
            questions=tuple(
                _question(key, member, self.votes[key], self._shaping[key]) for key, member in members.items()
            ),
        )

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        """As the protocol says, in the order of the requests."""
        waiting, size = iter(requests), MANY if any(map(_has_workers, self.members.values())) else CHUNK
        while chunk := list(islice(waiting, size)):
            by_member = [self._member_verdicts(question, chunk) for question in self.rubric.questions]
            for request in chunk:
                yield [of_member[request.sample.sample_id] for of_member in by_member]

    def status(self) -> dict[str, Any]:
        """The status of every member, with the member's name before each key."""
        return {f"{key} {what}": so for key, member in self.members.items() for what, so in member.status().items()}

    def _member_verdicts(self, question: Question, chunk: Sequence[Request]) -> dict[str, Verdict]:
        """One member's verdict on each clip of a chunk, by sample_id."""
        member, votes = self.members[question.name], self.votes[question.name]
        requests = {request.sample.sample_id: replace(request, votes=votes) for request in chunk}
        with contextlib.closing(verdicts_of(member, requests)) as answers:
            return {sample: self._verdict(question, member, requests[sample], rows) for sample, rows in answers}

    def _verdict(self, question: Question, member: Source, request: Request, rows: Sequence[Verdict]) -> Verdict:
        """The panel's row for a member: the member's label from its verdicts on a clip, or why it has none."""
        rubric = member.rubric.of(request.sample.prompt)
        votes = -(-len(rows) // len(rubric.questions))  # the member determines the number: each person has one
        rows = in_order(rows, request.sample, member, votes, member.name)
        label, errors = combine(rows, rubric), [row.error for row in rows if row.error is not None]
        failed = [error for error in errors if error.startswith(FAILED)]
        facts: dict[str, Any] = {"answer": label.label, "p_yes": label.p_accept, "reason": label.reason}
        if (value := _value(label)) is not None:
            shaping = self._shaping[question.name]
            facts["score"] = shaping.scale * value + shaping.shift
        if failed:  # regardless of its other answers: the next run judges the clip again
            facts = {"error": failed[0]}
        elif value is None:  # the member's own error, which begins with a prefix of source.py
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


def _labels(given: Options) -> bool:
    """Whether a member accepts or rejects clips: a panel of metrics alone only scores them."""
    return any(read_block(f"members.{name}", block).labels for name, block in given.members.items())


KIND = Kind(
    Options,
    load,
    labels=_labels,
    members=of_members,
    kept=False,  # its members' verdicts are
    needs=lambda given: Needs(inner={f"members.{key}": block for key, block in given.members.items()}),
)


def _has_workers(member: Source) -> bool:
    return hasattr(member, "unit")


def _value(label: Label) -> float | None:
    """A member's value: a metric's score, a judge's p_accept, or 1 or 0 by its label; None without all of these."""
    if label.score is not None:
        return label.score
    if label.label is None:
        return None
    return float(label.label) if label.p_accept is None else label.p_accept


def _question(name: str, member: Source, votes: int, shaping: Shaping) -> Question:
    """A member as a question. Its text, and so the panel's hash, contains all that determines the label."""
    sheet = member.rubric
    wanted = _wanted(sheet) if isinstance(sheet, Rubric) else _hashed(sheet)
    return Question(
        name=name,
        ask=(
            f"Does {member.model} ({member.model_version or 'of a version that its replies name'}) accept it, "
            f"asked {sheet.hash} {votes} times, {sheet.rule} of {wanted}?"
            + ("" if shaping == Shaping() else f" Its value counts {shaping.scale} times, and {shaping.shift} more.")
        ),
        affirmative="accept",
        negative="reject",
        wanted=True,
        required=True,
    )


def _wanted(rubric: Rubric) -> str:
    """The wanted answers of the required questions."""
    return ", ".join(f"{q.name}: {'yes' if q.wanted else 'no'}" for q in rubric.questions if q.required)


def _hashed(rubric: RubricByPrompt) -> str:
    """The same for the questions of all prompts, too many to list, as a hash."""
    wanted = sorted((prompt, _wanted(rubric.of(prompt))) for prompt in rubric.own)
    return f"each prompt's own ({hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]})"


def _as_json(rows: Iterable[Verdict]) -> str:
    """Verdicts without null values and without values that the panel's own row holds."""
    own = ("sample_id", "source", "tokens", "cost")
    kept = [{key: value for key, value in asdict(row).items() if value is not None and key not in own} for row in rows]
    return json.dumps(kept, ensure_ascii=False)


def _total(amounts: Iterable[float | None]) -> Any:
    """The sum of the known amounts; None if none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None
