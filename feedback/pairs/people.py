"""People who compare two clips: their answers from the page of `vfrl rate` (commands/rate/), by the ledger.

A comparison is stored under the rater, both clips' bytes in either order, the prompt, the rubric and the question; the
reply says which of the two was on the left.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.manifest import sha256_of
from data.preferences import FIRST, SECOND, TIE
from data.records import Comparison
from feedback.core.rubric import AnyRubric, Question, Rubric
from feedback.core.source import UNRATED, UNREADABLE_ANSWER, FirstFrame, LabelError, Request
from feedback.network.ledger import Ledger, StoredAnswer, ledger_path, request_key
from feedback.pairs.shown import ShownPair, comparison

PLACE = "human pair"
UNSURE = "unsure"  # the error of an answer of a rater who could not decide
CHOICES = {"left": FIRST, "right": SECOND, "equal": TIE, "u": None}  # answer of the page -> which is better
NAMED = 3  # pairs in an error


class People(Protocol):
    """A source of kind human."""

    name: str
    model: str
    raters: tuple[str, ...]
    leave_out: bool

    @property
    def rubric(self) -> AnyRubric:
        """As of a Source."""

    @property
    def model_version(self) -> str | None:
        """As of a Source."""


class RateablePair(NamedTuple):
    """One question to one person about two clips of one prompt."""

    rater: str
    clips: tuple[str, str]  # sha256 of the mp4s
    prompt: str
    rubric: Rubric
    question: Question
    first_frame: FirstFrame | None = None  # of both clips, which the page shows beside them

    @property
    def sent(self) -> dict[str, Any]:
        """All values that determine the answer, in the ledger's form."""
        return {
            "place": PLACE,
            "rater": self.rater,
            "clips": sorted(self.clips),
            "prompt": self.prompt,
            "rubric": self.rubric.hash,
            "question": self.question.name,
            **({"first_frame": self.first_frame.content} if self.first_frame else {}),
        }

    @property
    def key(self) -> str:
        """The ledger's key of the answer."""
        return request_key(self.sent)


def write_choice(answer: str, left: str, seconds: float | None) -> str:
    """An answer in the ledger's form. answer: a key of CHOICES. left: sha256 of the clip that was on the left."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    seconds = seconds if seconds is None else round(seconds, 1)
    return json.dumps({"answer": answer, "left": left, "at": at, "seconds": seconds})


class RatedChoice(NamedTuple):
    """A stored answer."""

    answer: str  # a key of CHOICES
    left: str  # sha256 of the clip on the left


def read_choice(reply: str) -> RatedChoice | None:
    """What `write_choice` wrote; None for another reply."""
    try:
        given = json.loads(reply)
        found = RatedChoice(str(given["answer"]), str(given["left"]))
    except (ValueError, TypeError, KeyError):
        return None
    return found if found.answer in CHOICES else None


def compare(people: People, pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
    """Every rater's answers about each pair, in the order in which the rater saw its clips.

    Raises LabelError before the first if one is missing and `leave_out` is false.
    """
    asked = [(pair, _rateables(people, pair)) for pair in pairs]
    with Ledger(ledger_path()) as ledger:
        found = ledger.answers(one.key for _, ones in asked for one in ones)
    missing = {
        rater: [pair for pair, ones in asked if any(one.rater == rater and one.key not in found for one in ones)]
        for rater in people.raters
    }
    if any(missing.values()) and not people.leave_out:
        raise LabelError(what_to_do(people, missing, len(asked)))
    for pair, ones in asked:
        yield [_comparison(people, pair, one, found.get(one.key)) for one in ones]


def what_to_do(people: People, missing: Mapping[str, Sequence[ShownPair]], total: int) -> str:
    """Text that names the pairs without an answer, by rater, and the commands to collect the answers."""
    lines, commands = [], []
    for rater, pairs in ((rater, pairs) for rater, pairs in missing.items() if pairs):
        named = ", ".join(" and ".join(pair.ids) for pair in pairs[:NAMED])
        lines.append(f"{len(pairs)} of {total} by {rater} ({named}{', …' * (len(pairs) > NAMED)})")
        commands.append(f"  {rate_command(people.name, pairs, rater)}")
    return (
        f"{people.name}: pairs without an answer in {ledger_path()}: {'; '.join(lines)}. Compare them with\n"
        + "\n".join(commands)
        + f"\nand run this again; answers are kept. To use those that are there, set feedback.sources.{people.name}"
        + ".unrated: leave_out"
    )


def rate_command(name: str, pairs: Sequence[ShownPair], rater: str) -> str:
    """The command to compare these pairs. name: of the source."""
    sets, against = _sets(pairs)
    words = [word for folder in sets for word in ("--set", folder)] + (["--against", against] if against else [])
    return shlex.join(["vfrl", "rate", *words, "--source", name, "--rater", rater])


def _sets(pairs: Sequence[ShownPair]) -> tuple[list[str], str | None]:
    """The folders of the clips, and that of the second clips where it is another one."""
    first = [_set_of(pair.first) for pair in pairs]
    second = [_set_of(pair.second) for pair in pairs]
    return list(dict.fromkeys(first)), second[0] if first[0] != second[0] else None


def _set_of(request: Request) -> str:
    return str(request.path.parents[len(Path(request.sample.file_name).parts) - 1])


def _rateables(people: People, pair: ShownPair) -> list[RateablePair]:
    clips = (content_of(pair.first), content_of(pair.second))
    rubric, first = people.rubric.of(pair.prompt), pair.first_frame(people.rubric)
    return [
        RateablePair(rater, clips, pair.prompt, rubric, question, first)
        for question in rubric.questions
        for rater in people.raters
    ]


def content_of(request: Request) -> str:
    """sha256 of a clip's mp4."""
    return request.content or sha256_of(request.path)


def _comparison(people: People, pair: ShownPair, one: RateablePair, stored: StoredAnswer | None) -> Comparison:
    """A rater's answer. stored: None without one."""
    choice = read_choice(stored.reply) if stored else None
    facts: dict[str, Any] = {"raw": stored.reply if stored else None, "model_version": one.rater}
    if stored is None:
        facts["error"] = f"{UNRATED}{one.rater} has not compared them"
    elif choice is None:
        facts["error"] = f"{UNREADABLE_ANSWER}{stored.reply}"
    elif CHOICES[choice.answer] is None:
        facts["error"] = UNSURE
    elif CHOICES[choice.answer] == TIE:
        facts["tie"] = True
    else:
        facts["answer"] = (CHOICES[choice.answer] == FIRST) == one.question.wanted
    shown = pair if choice is None or choice.left == one.clips[0] else pair.swapped()
    frames = (range(shown.first.sample.num_frames), range(shown.second.sample.num_frames))
    return comparison(people, shown, people.raters.index(one.rater), one.question, frames, facts)
