"""What gpt.py, served.py and gemini.py implement, so that calls.py, api.py and batches.py are written once for all."""

import ipaddress
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import numpy as np

from data.records import Sample
from feedback.core.rubric import Question, Rubric

ATTEMPT_HEADER = "X-Client-Request-Id"  # of every call: the ledger's number of the attempt, for the provider's logs
UNPAID = 402  # a status that no retry changes, for no call
UNKNOWN = (404, 405, 501)  # likewise: no such model, no such endpoint
Media = Sequence[Mapping[str, Any]]  # a clip or a picture as it is sent, in the provider's own form


class Remedy(Enum):
    """What to do about a call that brought no answer."""

    RETRY = "retry"  # send it again after a wait
    REST = "rest"  # send it again after a wait in which no other call starts
    LEARN = "learn"  # send it again at once: the client now leaves out a parameter that the model refused
    ANSWER = "answer"  # this is the answer: a refusal, final
    FAIL = "fail"  # this call cannot succeed; others may
    STOP = "stop"  # no call can succeed: a wrong key, a spent quota


RETRIED = (Remedy.RETRY, Remedy.REST)


@dataclass(frozen=True)
class Fault:
    """Why a call brought no answer."""

    remedy: Remedy
    reason: str  # for people; never contains a key
    wait: float | None = None  # seconds that the provider asked for
    lost: bool = False  # the provider may have answered, and may bill the answer
    body: str | None = None  # the reply, where the remedy is ANSWER
    status: int | None = None  # HTTP status of the reply; None where no reply came
    unreachable: bool = False  # no connection could be made
    cure: str | None = None  # what to do before the next run, where the remedy is STOP


@dataclass(frozen=True)
class Plan:
    """The contents of one call: some questions of a rubric about one clip, or two, in one vote."""

    questions: tuple[Question, ...]
    vote: int
    body: Mapping[str, Any]  # what is sent beside the clip, as JSON


class Reading(NamedTuple):
    """The contents of a raw reply."""

    by_question: Mapping[str, Mapping[str, Any]]  # question -> fields of its Verdict: answer, p_yes, reason or error
    version: str | None  # of the model that answered
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int = 0  # of the input tokens


class UnreadableClip(Exception):
    """A clip's mp4 or its first frame is missing, was changed or cannot be decoded."""


class Sender(Protocol):
    """An endpoint and a model that calls are sent to."""

    place: str  # endpoint and model, as far as they decide an answer; part of every request's key

    def open(self) -> None:
        """Create the client, within a running event loop. Raises LabelError where the key is missing."""

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        """The raw reply to one call. attempt: a name to send along, for the provider's logs. May raise anything."""

    def fault(self, error: Exception) -> Fault:
        """What an exception of `send` means. An exception that is not of the client is raised again."""

    def defect(self, reply: str) -> str | None:
        """Why a reply under the status of a success has to be requested again; None where it is an answer.

        A reply without any words, thoughts, refusal or filter is none; words that cannot be read are an answer.
        """

    async def close(self) -> None:
        """Close the connections."""


class Provider(Sender, Protocol):
    """A product that answers questions about clips for money, or a server with the same API."""

    @property
    def frames_known(self) -> bool:
        """Whether the model sees the frames that `seen` lists; verdicts list none where the server chooses its own."""

    def plans(self, rubric: Rubric, sample: Sample, votes: int) -> list[Plan]:
        """The calls that all questions and votes about a clip take."""

    def seen(self, sample: Sample, rubric: Rubric) -> dict[str, Any]:
        """All beside the clip's bytes that decides what the model sees of it, as JSON with the key `frames`."""

    def media(self, mp4: bytes, frames: np.ndarray, sample: Sample, rubric: Rubric) -> Media:
        """The clip in the form in which it is sent. frames: all of them, uint8 (F, H, W, 3)."""

    def first_frame(self, png: bytes) -> Media:
        """The image that the generator was given, in the form in which it is sent. png: the file."""

    def words(self, text: str) -> Mapping[str, Any]:
        """A text among the media, in the form in which it is sent."""

    def read(self, plan: Plan, reply: str) -> Reading:
        """The contents of a raw reply. Never raises: an unreadable reply is an error in each question's fields."""

    def tokens(self, plan: Plan, sample: Sample, rubric: Rubric) -> int:
        """Estimated input tokens of a call."""


class Progress(NamedTuple):
    """The state of a batch."""

    done: bool  # it will bring no further answers: completed, expired, cancelled or failed
    failed: str | None = None  # why the provider took none of it, in the provider's words


class BatchProvider(Provider, Protocol):
    """A provider with an endpoint that answers files of calls within a day, at a lower price."""

    most_requests: int  # calls that one batch takes
    most_bytes: int  # of its file

    def batch_line(self, name: str, plan: Plan, media: Media) -> str:
        """A call as a line of such a file, without its end, the same as `send` sends. name: comes with its answer."""

    async def submit(self, path: Path, token: str) -> str:
        """Submit a file of lines; the provider's id of the batch. token: our name for it, stored by the provider."""

    async def find(self, token: str) -> str | None:
        """The provider's id of the batch that was submitted under this name; None where there is none."""

    async def progress(self, remote: str) -> Progress:
        """The state of a batch."""

    def results(self, remote: str) -> AsyncIterator[tuple[str, str | None]]:
        """Name and raw reply, as of `send`, of the lines of a batch that is done; None where a line failed."""


def describe(error: BaseException) -> str:
    """An exception's message, or its type where it has none."""
    return str(error) or type(error).__name__


def mend_name(model: str, where: str) -> str:
    """The cure of an unknown model or endpoint. where: the address that the calls are sent to."""
    return f"Correct the block's model ({model}), or its base_url or mode ({where})"


def mend_key(variable: str, model: str) -> str:
    """The cure of a key that is refused. variable: environment variable of the key; empty where there is none."""
    if not variable:
        return "Name the environment variable that holds the server's key as the block's key_variable"
    return f"Set {variable} to a key that may use {model}"


PAY = "Raise the limit or pay in the provider's console"  # the cure of a spent quota and an unpaid bill


def without_key(text: str, key: str) -> str:
    """A provider's words with *** for the key, for its beginning and end, and for a masked form such as sk-…***cdef."""
    text = re.sub(r"[\w-]*\*{2,}[\w*-]*", "***", text.replace(key, "***"))
    return re.sub(
        r"[\w-]{4,}", lambda part: "***" if key.startswith(part[0]) or key.endswith(part[0]) else part[0], text
    )


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine, which a proxy of the environment cannot reach."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def no_reply(error: BaseException, address: str) -> Fault:
    """What a failed connection of an SDK's HTTP client means. error: of httpx2, or the SDK's own."""
    import httpx2

    unreachable = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
    reason = f"no reply from {address}{via_proxy(address)} ({describe(error)})"
    sent = not unreachable and not isinstance(error, httpx2.PoolTimeout)
    return Fault(Remedy.RETRY, reason, lost=sent, unreachable=unreachable)


def via_proxy(url: str) -> str:
    """For messages about an address: the environment's proxy that stands before it; empty where there is none."""
    parts, proxies = urlsplit(url), getproxies_environment()
    proxy = urlsplit(proxies.get(parts.scheme) or proxies.get("all") or "")
    if not proxy.hostname or is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return ""
    place = proxy.hostname + (f":{proxy.port}" if proxy.port else "")  # without a name and password
    return f" through the proxy {place} of the environment, which NO_PROXY={parts.hostname} bypasses"
