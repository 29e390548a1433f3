"""What a provider's file (gpt, served, gemini) has to say, so that api.py can ask it and never pay twice."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data.records import Sample
from feedback.core.rubric import Question, Rubric

ATTEMPT_HEADER = "X-Client-Request-Id"  # of every call: our own name for one attempt, for the provider's logs
HOPELESS = (402, 404, 405, 501)  # statuses that no waiting mends, for no call: unpaid, no such model, no such endpoint
Media = Sequence[Mapping[str, Any]]  # a clip as it is sent, in the provider's own form


class Remedy(Enum):
    """What to do about a call that brought no answer."""

    RETRY = "retry"  # the same again, after a while
    REST = "rest"  # the same again, and nobody calls until a while has passed
    LEARN = "learn"  # again at once: the provider's file has learnt not to send a parameter
    ANSWER = "answer"  # this is the answer: a refusal, final
    FAIL = "fail"  # this call cannot succeed; others may
    STOP = "stop"  # no call can: a wrong key, a spent quota


@dataclass(frozen=True)
class Fault:
    """Why a call brought no answer."""

    remedy: Remedy
    reason: str  # for people; never holds a key
    wait: float | None = None  # seconds that the provider asked for
    lost: bool = False  # the provider may have answered, and may bill it
    body: str | None = None  # the reply, where the remedy is ANSWER
    status: int | None = None  # of the reply, by HTTP; null where none came


def told_by(error: BaseException) -> str:
    """An exception in words, also where it brought none of its own."""
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Plan:
    """One call that is wanted: some questions of a rubric about one clip, in one vote."""

    questions: tuple[Question, ...]
    vote: int
    body: Mapping[str, Any]  # what is sent beside the clip, as JSON


class Reading(NamedTuple):
    """What a raw reply says."""

    told: Mapping[str, Mapping[str, Any]]  # question name -> fields of its Verdict: answer, p_yes, reason or error
    version: str | None  # of the model that answered
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int = 0  # of the input tokens


class Provider(Protocol):
    """A product that answers questions about clips for money, or a server that speaks its language."""

    place: str  # endpoint and model, as far as they decide an answer; part of every request's key

    def plans(self, rubric: Rubric, sample: Sample, votes: int) -> list[Plan]:
        """The calls that all questions and votes about a clip take."""

    def seen(self, sample: Sample, rubric: Rubric) -> dict[str, Any]:
        """How the clip is shown, as JSON: all beside its bytes that decides what the model sees, `frames` among it."""

    def media(self, mp4: bytes, frames: np.ndarray, sample: Sample, rubric: Rubric) -> Media:
        """The clip in the form in which it is sent. frames: all of them, uint8 (F, H, W, 3)."""

    def open(self) -> None:
        """Get ready to send, within a running event loop. Raises LabelError where the key is missing."""

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        """One call; the raw reply. attempt: a name to tell the provider, for its logs and ours. Raises what it will."""

    def fault(self, error: Exception) -> Fault:
        """What an exception of `send` means."""

    def read(self, plan: Plan, reply: str) -> Reading:
        """What a raw reply says. Never raises: a reply that cannot be read is an error in each question's fields."""

    def tokens(self, plan: Plan, sample: Sample, rubric: Rubric) -> int:
        """About how many input tokens a call takes."""

    async def close(self) -> None:
        """Let go of connections."""


class Progress(NamedTuple):
    """How far a batch is."""

    done: bool  # nothing more will come of it: completed, expired, cancelled or failed
    failed: str | None = None  # why the provider took none of it, in its own words


class BatchProvider(Provider, Protocol):
    """A provider with an endpoint that answers files of calls within a day, for less."""

    most_requests: int  # that one batch takes
    most_bytes: int  # of its file

    def batch_line(self, name: str, plan: Plan, media: Media) -> str:
        """A call as a line of such a file, without its end: what `send` would send. name: told beside its answer."""

    async def submit(self, path: Path, token: str) -> str:
        """Hand in a file of lines; the provider's id of the batch. token: our own name for it, kept by the provider."""

    async def find(self, token: str) -> str | None:
        """The provider's id of the batch that was handed in under this name; null where none was."""

    async def progress(self, remote: str) -> Progress:
        """How far a batch is."""

    def results(self, remote: str) -> AsyncIterator[tuple[str, str | None]]:
        """Name and raw reply, as of `send`, of the lines of a batch that is done; null where a line failed."""
