"""What every kind of source shares: it is asked about clips, and answers with verdicts."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.records import Sample, Verdict
from data.store import read_clip
from feedback.core.rubric import Question, Rubric

READERS = 2  # threads that decode clips ahead of a source in this process

# How the error of a verdict without an answer begins; what follows is the reason.
UNREADABLE_CLIP = "unreadable clip: "  # its mp4 could not be decoded, so the source did not see it
UNREADABLE_ANSWER = "unreadable: "  # the source replied, and its words are not an answer
REFUSED = "refused: "  # the source, or its provider's filter, would not answer
UNKNOWN_VERSION = "unknown"  # of a model whose reply does not name it
FAILED = "failed: "  # no reply could be had; asked again by the next run


class LabelError(ValueError):
    """Why a clip set was not labelled, and what to do; the answers that were had are kept."""


@dataclass(frozen=True)
class Request:
    """One clip to be judged, on every question of the source's rubric, `votes` times over."""

    sample: Sample
    path: Path  # its mp4
    votes: int = 1  # independent askings; more than 1 only for sources whose `repeatable` is false
    purpose: str = ""  # what it is for, the same for all clips of a set: budgets add up by it
    content: str | None = None  # sha256 of the mp4, where it is known without reading it


class Source(Protocol):
    """Who judges. A verdict for each clip, vote and question of the rubric; what it cannot tell is null."""

    name: str  # the name under feedback.sources
    rubric: Rubric
    model: str  # folder, hub id or product that answers
    repeatable: bool  # whether asking again gives the same answer, so that a second vote says nothing

    @property
    def model_version(self) -> str | None:
        """Revision or fingerprint of every answer; null where each reply names its own."""

    def judge(self, requests: Iterable[Request]) -> Iterator[Sequence[Verdict]]:
        """All verdicts on one clip at a time, as they come, in any order of the clips.

        Requests are drawn as they are needed. An answer that cannot be read, a refusal, a blocked or a failed call:
        answer null, and `error` says which, beginning with one of the words above.
        """

    def status(self) -> dict[str, Any]:
        """What a progress bar should show beside the counts of labels: retries, dollars; may be empty."""


class Metric(Protocol):
    """A function of clips."""

    model: str  # folder, hub id or library that the numbers come from
    model_version: str  # revision or fingerprint of it
    definition: str  # a sentence that says what the number is, with every value it depends on

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]) -> Sequence[float]:
        """A number for each clip, from all its frames, uint8 (F, H, W, 3); F may differ from clip to clip.

        fps: frames per second of each clip. A clip that the metric is not defined for, such as one of a single frame,
        has nan.
        """


def verdict(
    source: Source, sample: Sample, vote: int, question: Question, frames: Sequence[int], **told: Any
) -> Verdict:
    """A verdict of this source; whatever is not told stays null, but for the model's version.

    frames: indices of the frames that it saw.
    """
    untold = dict.fromkeys(("answer", "p_yes", "score", "reason", "raw", "tokens", "cost", "error"))
    return Verdict(
        sample_id=sample.sample_id,
        source=source.name,
        question=question.name,
        vote=vote,
        model=source.model,
        model_version=told.pop("model_version", source.model_version) or UNKNOWN_VERSION,
        rubric_hash=source.rubric.hash,
        frames=list(frames),
        **(untold | told),
    )


def votes_of(source: Source, asked: int) -> int:
    """How many votes a clip gets where so many are asked for.

    People have one each; so has a judge that answers the same however often it is asked. Raises ValueError below 1.
    """
    if asked < 1:
        raise ValueError(f"votes {asked} must be at least 1")
    return len(getattr(source, "raters", ())) or (1 if source.repeatable else asked)


def without_answer(source: Source, request: Request, error: str) -> list[Verdict]:
    """Null verdicts on all questions and votes of a clip, for one reason."""
    return [
        verdict(source, request.sample, vote, question, [], error=error)
        for question in source.rubric.questions
        for vote in range(request.votes)
    ]


def verdicts_on(
    source: Source, requests: Mapping[str, Request]
) -> Generator[tuple[str, Sequence[Verdict]], None, None]:
    """Each clip's sample_id with the source's verdicts on it, as they come. requests: by sample_id.

    Raises ValueError where the source answers about a clip that is not among them, about one twice, or about one never.
    """
    found: set[str] = set()
    answers = source.judge(iter(requests.values()))
    try:
        for rows in answers:
            sample = rows[0].sample_id if rows else "no clip"
            if sample not in requests or sample in found:
                raise ValueError(f"{source.name} answered about {sample} unasked, or twice")
            found.add(sample)
            yield sample, rows
    finally:  # calls in flight end before the caller goes on
        getattr(answers, "close", lambda: None)()
    if missing := sorted(requests.keys() - found):
        raise ValueError(f"{source.name} left out {len(missing)} clips, such as {missing[:3]}")


def in_order(rows: Sequence[Verdict], sample: str, source: Source, votes: int, where: str) -> list[Verdict]:
    """A clip's verdicts by question and vote. Raises ValueError unless there is one for each question and vote.

    where: what the error calls the place of the verdicts.
    """
    expected = [(sample, question.name, vote) for question in source.rubric.questions for vote in range(votes)]
    found = {(row.sample_id, row.question, row.vote): row for row in rows}
    if len(found) != len(rows) or found.keys() != set(expected):
        raise ValueError(f"{where}: {len(rows)} verdicts on {sample} do not match the {len(expected)} asked for")
    return [found[key] for key in expected]


def decoded(requests: Iterable[Request], ahead: int) -> Iterator[tuple[Request, np.ndarray | str]]:
    """Each request with all frames of its clip, uint8 (F, H, W, 3), or with the error that its verdicts should hold.

    Threads decode while the caller works on earlier clips; at most `ahead` clips lie decoded in memory.
    """

    def read(request: Request) -> np.ndarray | str:
        try:
            return read_clip(request.path, request.sample)
        except (ValueError, OSError) as error:
            return f"{UNREADABLE_CLIP}{error}"

    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque = deque()
        for request in requests:
            waiting.append((request, pool.submit(read, request)))
            if len(waiting) >= ahead:
                first, reading = waiting.popleft()
                yield first, reading.result()
        while waiting:
            first, reading = waiting.popleft()
            yield first, reading.result()
