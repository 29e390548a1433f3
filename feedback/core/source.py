"""The interface of all kinds of source: a source receives requests about clips and answers with verdicts."""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from data.records import Sample, Verdict
from data.store import read_clip
from feedback.core.rubric import AnyRubric, Question, Rubric

if TYPE_CHECKING:
    from feedback.pairs.shown import Named

READERS = 2  # threads that decode clips ahead of a source in this process

# Prefixes of the error of a verdict without an answer. The cause follows the prefix.
UNREADABLE_CLIP = "unreadable clip: "  # its mp4 could not be decoded, so the source did not see it
UNREADABLE_ANSWER = "unreadable: "  # the source replied, but not with an answer
REFUSED = "refused: "  # the source or its provider's filter refused to answer
UNKNOWN_VERSION = "unknown"  # version of a model whose reply does not name one
FAILED = "failed: "  # every attempt to get a reply failed; the next run tries again
UNRATED = "unrated: "  # a person has not rated the clip; the next run reads the ratings again


class LabelError(ValueError):
    """Why a clip set was not labelled, and what to do. The answers received so far are kept."""


class FirstFrame(NamedTuple):
    """The image that a clip's generator was given."""

    path: Path  # PNG of the clip's size
    content: str  # sha256 of the file


class WholeClip(NamedTuple):
    """The clip that a window was cut from."""

    sample: Sample
    path: Path  # its mp4
    content: str | None  # sha256 of the mp4, if it is known
    frames: range  # those of the window


@dataclass(frozen=True)
class Request:
    """One clip to judge: `votes` verdicts on every question of the source's rubric."""

    sample: Sample
    path: Path  # its mp4
    votes: int = 1  # independent votes; more than 1 only for sources whose `repeatable` is false
    purpose: str = ""  # the same text for all clips of a set: budgets are summed by purpose
    content: str | None = None  # sha256 of the mp4, if it is known without reading the file
    first_frame: FirstFrame | None = None  # None: the generator was given no image
    place: int = 0  # in the set: what is judged together is cut by it where verdicts come in any order
    whole: WholeClip | None = None  # of a window, which then is the sample; None: the sample is no window


class Source(Protocol):
    """A judge or a metric: a verdict for each clip, vote and question of its rubric. An unknown answer is None.

    A source may have further attributes: `raters`, the names of people with one vote each (see `raters_of`);
    `metrics`, the names of the metrics that it computes (see `metrics_of`); `unit`, how many clips that follow each
    other in a set it judges together, in any order of these units; and `keeping`, which `make_source` sets where its
    verdicts are kept (see feedback.core.kept).
    """

    name: str  # the name under feedback.sources
    model: str  # folder, hub id or product that answers
    repeatable: bool  # whether a second vote always equals the first, and is therefore not needed

    @property
    def rubric(self) -> AnyRubric:
        """`rubric.of(prompt)` holds the questions about a prompt's clips."""

    @property
    def model_version(self) -> str | None:
        """Revision or fingerprint of the model behind every answer; None if each reply names its own."""

    def judge(self, requests: Iterable[Request]) -> Iterator[Sequence[Verdict]]:
        """Yields all verdicts on one clip at a time, in any order of the clips.

        Requests are drawn on demand. For an unreadable answer, a refusal, a blocked or a failed call, `answer` is None
        and `error` begins with one of the prefixes above.
        """

    def status(self) -> dict[str, Any]:
        """What a progress bar displays besides the counts of labels, such as retries and dollars; may be empty."""


class Metric(Protocol):
    """A function of clips.

    A metric that does not see all frames has a method `frame_indices(num_frames, fps)` (see `frames_seen`).
    """

    model: str  # folder, hub id or library that computes the numbers
    model_version: str  # its revision or fingerprint
    definition: str  # a sentence that defines the number, with every value it depends on

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]) -> Sequence[float]:
        """A number for each clip, from all its frames, uint8 (F, H, W, 3); F may differ between clips.

        fps: frames per second of each clip. The number is nan if the metric is undefined for a clip, such as a clip of
        one frame.
        """


def verdict(
    source: Source, sample: Sample, vote: int, question: Question, frames: Sequence[int], **fields: Any
) -> Verdict:
    """A verdict of this source. frames: indices of the frames that the source saw.

    fields: further fields of Verdict. Missing ones are None, except `model_version`, which defaults to the source's.
    """
    empty = dict.fromkeys(("answer", "p_yes", "score", "reason", "raw", "tokens", "cost", "error"))
    return Verdict(
        sample_id=sample.sample_id,
        source=source.name,
        question=question.name,
        vote=vote,
        model=source.model,
        model_version=fields.pop("model_version", source.model_version) or UNKNOWN_VERSION,
        rubric_hash=source.rubric.hash,
        frames=list(frames),
        **(empty | fields),
    )


def raters_of(source: Source) -> Sequence[str]:
    """The names of the people who vote, one vote each; empty if the source is not people."""
    raters: Sequence[str] = getattr(source, "raters", ())
    return raters


def metrics_of(source: Source) -> Collection[str]:
    """The names of the metrics that the source computes; empty if it computes none."""
    metrics: Collection[str] = getattr(source, "metrics", ())
    return metrics


def frames_seen(metric: Metric, num_frames: int, fps: float) -> Sequence[int]:
    """Indices of the frames of a clip that a metric sees; all of them unless it has a method `frame_indices`."""
    chosen: Callable[[int, float], Sequence[int]] = getattr(metric, "frame_indices", lambda count, _: range(count))
    return chosen(num_frames, fps)


def votes_of(source: Source, votes: int) -> int:
    """The number of votes that a clip gets if `votes` are requested.

    Each person has one vote. A repeatable source has one vote in total. Raises ValueError if `votes` is below 1.
    """
    if votes < 1:
        raise ValueError(f"votes {votes} must be at least 1")
    return len(raters_of(source)) or (1 if source.repeatable else votes)


def shown_first_frame(rubric: AnyRubric, request: Request) -> FirstFrame | None:
    """The first frame that a source shows with this clip; None where its rubric shows none.

    Raises LabelError where the rubric shows first frames and the clip has none.
    """
    if rubric.first_frame is None:
        return None
    if request.first_frame is None:
        raise LabelError(
            f"{request.path}: has no first frame, and the rubric {rubric.name} shows it. Judge clips that were made "
            "from a prompt set with the column image, or take first_frame out of the rubric"
        )
    return request.first_frame


def check_first_frames(source: "Named", requests: Iterable[Request]) -> None:
    """Raises LabelError where a source, or a member of a panel, shows first frames and a clip has none."""
    asked = list(requests)
    for one in (source, *getattr(source, "members", {}).values()):
        for request in asked:
            shown_first_frame(one.rubric, request)


def without_answer(source: Source, request: Request, error: str) -> list[Verdict]:
    """Null verdicts with this error on all questions and votes of a clip."""
    return [
        verdict(source, request.sample, vote, question, [], error=error)
        for question in source.rubric.of(request.sample.prompt).questions
        for vote in range(request.votes)
    ]


def verdicts_on(
    source: Source, requests: Mapping[str, Request]
) -> Generator[tuple[str, Sequence[Verdict]], None, None]:
    """Yields each clip's sample_id with the source's verdicts on it, in the source's order. requests: by sample_id.

    Raises ValueError if the source answers about another clip, answers twice about a clip, or leaves one out.
    """
    found: set[str] = set()
    answers = source.judge(iter(requests.values()))
    try:
        for rows in answers:
            sample = rows[0].sample_id if rows else "no clip"
            if sample not in requests or sample in found:
                raise ValueError(f"{source.name} answered about {sample}, which was not requested, or answered twice")
            found.add(sample)
            yield sample, rows
    finally:  # calls in flight end before the caller continues
        getattr(answers, "close", lambda: None)()
    if missing := sorted(requests.keys() - found):
        raise ValueError(f"{source.name} left out {len(missing)} clips, such as {missing[:3]}")


def rubrics_of(source: Source, samples: Iterable[Sample]) -> dict[str, Rubric]:
    """The rubric of each clip's prompt, by sample_id."""
    return {sample.sample_id: source.rubric.of(sample.prompt) for sample in samples}


def in_order(rows: Sequence[Verdict], sample: Sample, source: Source, votes: int, where: str) -> list[Verdict]:
    """A clip's verdicts, sorted by question and vote. Raises ValueError unless each question and vote has one verdict.

    where: the place of the verdicts, for the error.
    """
    questions = source.rubric.of(sample.prompt).questions
    expected = [(sample.sample_id, question.name, vote) for question in questions for vote in range(votes)]
    found = {(row.sample_id, row.question, row.vote): row for row in rows}
    if len(found) != len(rows) or found.keys() != set(expected):
        raise ValueError(
            f"{where}: {len(rows)} verdicts on {sample.sample_id} do not match the {len(expected)} requested"
        )
    return [found[key] for key in expected]


def decoded(requests: Iterable[Request], ahead: int, whole: bool = False) -> Iterator[tuple[Request, np.ndarray | str]]:
    """Each request with all frames of its clip, uint8 (F, H, W, 3), or with the error for its verdicts.

    whole: of a window, the frames of the clip that it was cut from.
    Threads decode while the caller works on earlier clips; memory holds at most `ahead` decoded clips.
    """

    def read(request: Request) -> np.ndarray | str:
        try:
            clip = request.whole if whole and request.whole else request
            return read_clip(clip.path, clip.sample)
        except (ValueError, OSError) as error:
            return f"{UNREADABLE_CLIP}{error}"

    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[tuple[Request, Future[np.ndarray | str]]] = deque()
        for request in requests:
            waiting.append((request, pool.submit(read, request)))
            if len(waiting) >= ahead:
                first, reading = waiting.popleft()
                yield first, reading.result()
        while waiting:
            first, reading = waiting.popleft()
            yield first, reading.result()
