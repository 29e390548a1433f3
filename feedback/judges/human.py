"""People as a source: their ratings from the page of `vfrl rate` (commands/rate/server.py).

The ledger's key of a rating consists of the clip's bytes, its prompt, the rubric and the rater, so a rating applies in
every clone and every clip set that contains the same clip. This module serves no page and does not wait: it reads the
ratings. What becomes of a clip that a rater has not rated is the option `unrated`:

    error       labelling stops, and names the clips and the command to rate them
    leave_out   the rater has no vote on the clip. Those who rated it decide; without any, its label is null
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT
from data.manifest import sha256_of
from data.records import Comparison, Verdict
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import AnyRubric, Question, Rubric, load_rubric
from feedback.core.source import UNRATED, UNREADABLE_ANSWER, FirstFrame, LabelError, Request, shown_first_frame, verdict
from feedback.network.ledger import PEOPLE, Ledger, ledger_path, request_key
from feedback.pairs.people import compare
from feedback.pairs.shown import ShownPair

PLACE = PEOPLE
MEANING = {"a": True, "r": False, "u": None}  # key pressed -> affirmative answer, negative answer, neither
UNSURE = "unsure"  # the error of a verdict whose rater could not decide
NAMED = 3  # number of sample ids in an error


def _names(raters: tuple[str, ...]) -> tuple[str, ...]:
    if not raters:
        raise ValueError("expected the name of at least one person")
    for rater in raters:
        if not rater or rater != rater.strip():
            raise ValueError(f"{rater!r} is not a name")
    if len(set(raters)) != len(raters):
        raise ValueError(f"a name occurs twice in {', '.join(raters)}")
    return raters


@dataclass(frozen=True, config=STRICT)
class Options:
    """Options of kind `human`."""

    rubric: str  # YAML file
    # Names of the people whose ratings count, one vote each, in this order
    raters: Annotated[tuple[str, ...], AfterValidator(_names)]
    # error: every rater rates every clip, or labelling stops | leave_out: a clip is labelled by those who rated it
    unrated: Literal["error", "leave_out"] = "error"


class Rateable(NamedTuple):
    """One question to one person about one clip. Clips with the same bytes and prompt count as the same clip."""

    rater: str
    clip: str  # sha256 of the mp4
    prompt: str
    rubric: Rubric
    question: Question
    first_frame: FirstFrame | None = None  # which the page shows beside the clip

    @property
    def sent(self) -> dict[str, str]:
        """All values that determine the rating, in the ledger's form."""
        return {
            "place": PLACE,
            "rater": self.rater,
            "clip": self.clip,
            "prompt": self.prompt,
            "rubric": self.rubric.hash,
            "question": self.question.name,
            **({"first_frame": self.first_frame.content} if self.first_frame else {}),
        }

    @property
    def key(self) -> str:
        """The ledger's key of the rating."""
        return request_key(self.sent)


def write_reply(answer: str, seconds: float | None) -> str:
    """A rating in the ledger's form. answer: a key of MEANING. seconds: time that the rater took."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"answer": answer, "at": at, "seconds": seconds if seconds is None else round(seconds, 1)})


def read_reply(reply: str) -> str | None:
    """The key of MEANING that was pressed; None for a reply that `write_reply` did not write."""
    try:
        answer = json.loads(reply)["answer"]
    except (ValueError, TypeError, KeyError):
        return None
    return answer if answer in MEANING else None


def rated_at(reply: str) -> str:
    """Time when a reply was written, as a text that sorts by time."""
    return str(json.loads(reply)["at"])


def load(name: str, options: Options, device: str) -> "HumanSource":
    """The people of this block. The device is not used."""
    return HumanSource(name, load_rubric(Path(options.rubric)), options.raters, options.unrated == "leave_out")


class HumanSource:
    """Reads ratings, one vote per rater."""

    model = "human"
    model_version: str | None = None  # each verdict names its rater
    repeatable = False

    def __init__(self, name: str, rubric: AnyRubric, raters: Sequence[str], leave_out: bool = False) -> None:
        """leave_out: whether a rater who has not rated a clip has no vote on it; else labelling stops."""
        self.name, self.rubric, self.raters, self.leave_out = name, rubric, tuple(raters), leave_out

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        """As the protocol says, in the order of the requests.

        Raises LabelError before the first verdict if a rating is missing, except under `leave_out`.
        """
        pairs = [(request, self._rateables(request)) for request in requests]
        with Ledger(ledger_path()) as ledger:
            found = ledger.answers(one.key for _, ones in pairs for one in ones)
        missing = {rater: [r for r, ones in pairs if _lacks(ones, rater, found)] for rater in self.raters}
        if any(missing.values()) and not self.leave_out:
            raise LabelError(self._what_to_do(missing, len(pairs)))
        for request, ones in pairs:
            yield [self._verdict(request, one, found[one.key].reply if one.key in found else None) for one in ones]

    def rated(self, requests: Iterable[Request]) -> dict[str, set[str]]:
        """By rater, the sample_ids of the clips with all of the rater's answers. Reads no mp4 whose hash is known."""
        pairs = [(request, self._rateables(request, request.content)) for request in requests]
        with Ledger(ledger_path()) as ledger:
            found = ledger.answers(one.key for _, ones in pairs for one in ones)
        return {
            rater: {request.sample.sample_id for request, ones in pairs if not _lacks(ones, rater, found)}
            for rater in self.raters
        }

    def compare(self, pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
        """As a Comparer (feedback.pairs.shown), for a rubric that compares: each rater's answer, in one order."""
        return compare(self, pairs)

    def status(self) -> dict[str, Any]:
        """Empty: reading ratings has no retries and no cost."""
        return {}

    def _rateables(self, request: Request, content: str | None = None) -> list[Rateable]:
        """content: sha256 of the mp4; None: of the file as it is now."""
        clip, prompt = content or sha256_of(request.path), request.sample.prompt
        rubric, first = self.rubric.of(prompt), shown_first_frame(self.rubric, request)
        return [
            Rateable(rater, clip, prompt, rubric, question, first)
            for question in rubric.questions
            for rater in self.raters
        ]

    def _verdict(self, request: Request, one: Rateable, reply: str | None) -> Verdict:
        """A rater's vote. reply: None without a rating."""
        pressed = None if reply is None else read_reply(reply)
        if reply is None:
            fields: dict[str, Any] = {"error": f"{UNRATED}{one.rater} has not rated it"}
        elif pressed is None:
            fields = {"error": f"{UNREADABLE_ANSWER}{reply}"}
        elif MEANING[pressed] is None:
            fields = {"error": UNSURE}
        else:
            fields = {"answer": MEANING[pressed]}
        vote, frames = self.raters.index(one.rater), range(request.sample.num_frames)
        return verdict(self, request.sample, vote, one.question, frames, raw=reply, model_version=one.rater, **fields)

    def _what_to_do(self, missing: dict[str, list[Request]], clips: int) -> str:
        """Text that names the missing ratings and the commands to collect them.

        missing: by rater, the clips without a rating. clips: number of clips in all.
        """
        lines, commands = [], []
        for rater, requests in ((rater, requests) for rater, requests in missing.items() if requests):
            ids = [request.sample.sample_id for request in requests]
            lines.append(f"{len(ids)} of {clips} by {rater} ({', '.join(ids[:NAMED])}{', …' * (len(ids) > NAMED)})")
            sets = dict.fromkeys(_set_of(request) for request in requests)
            words = [word for folder in sets for word in ("--set", folder)] + ["--source", self.name, "--rater", rater]
            commands.append(f"  {shlex.join(['vfrl', 'rate', *words])}")
        block = f"feedback.sources.{self.name}"
        return (
            f"{self.name}: clips without a rating in {ledger_path()}: {'; '.join(lines)}. Rate them with\n"
            + "\n".join(commands)
            + "\nand run this again; ratings are kept. To use the clips that are rated, and no others, set"
            + f" {block}.unrated: leave_out"
        )


KIND = Kind(
    Options,
    load,
    people=True,
    compares=True,
    by_prompt=True,
    first_frame=True,
    needs=lambda given: Needs(rubric=given.rubric),
)


def _lacks(ones: Sequence[Rateable], rater: str, found: Mapping[str, Any]) -> bool:
    return any(one.rater == rater and one.key not in found for one in ones)


def _set_of(request: Request) -> str:
    """The folder of a request's clip set."""
    return str(request.path.parents[len(Path(request.sample.file_name).parts) - 1])
