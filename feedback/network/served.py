"""Any OpenAI-compatible server (vLLM, SGLang, …) as a source: one word a question, read from its probabilities.

With yes and no the tokens that begin the two answer words in any spelling, among the most probable tokens at the place
where the answer begins, after thoughts, spaces and quotes,

    p_yes = mass(yes) / (mass(yes) + mass(no)),

as `qwen` reads it in this process. Where a server sends no probabilities, or that place is not clear, the words of
its reply are read. A clip is sent in one of three forms:

    exact    the rubric's frames as one video with their times, as vLLM takes it; `server_probe` checks that it does
    frames   the rubric's frames as pictures, as every server takes them: they have no times
    video    the whole mp4: the server chooses frames, and the verdicts list none
"""

import asyncio
import shlex
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, Probability, Url, WholeNotNegative
from data.records import Sample
from data.video import sample_frames
from feedback.core.answers import Masses, probable, read_answer, reason_after, word_masses
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Rubric
from feedback.core.source import UNREADABLE_ANSWER
from feedback.core.weights import FolderOrHubId
from feedback.network.api import ApiSource
from feedback.network.calls import ApiOptions, key_from
from feedback.network.openai_protocol import (
    LOGPROBS,
    OpenAIClient,
    answer_token,
    parsed,
    read_message,
    read_usage,
    string,
    top_of,
)
from feedback.network.pictures import PictureFormat, data_urls, frame_times, frames_size, frames_url, mp4_url, png_url
from feedback.network.price import text_tokens
from feedback.network.provider import Fault, Media, Plan, Reading, Remedy
from feedback.network.server_probe import (
    TIMES,
    ProbedClip,
    ServerMismatch,
    check_answers,
    check_frames,
    check_times,
    judge_here,
)

PROBE = "probe"  # name of the probe's requests, in place of an attempt's number
NO_KEY = "none"  # sent to a server that requires no key, since the client requires one


@dataclass(frozen=True, config=STRICT)
class Options(ApiOptions):
    """A `served` block of params.yaml."""

    base_url: Url = "http://127.0.0.1:8000/v1"
    # exact: the rubric's frames as one video | frames: as pictures | video: the whole mp4, the server takes frames
    clip: Literal["exact", "frames", "video"] = "exact"
    check_with: FolderOrHubId | None = None  # exact: the same model in this process, to compare the first clip with
    server_frames: Count | None = None  # video: frames that the server takes, for the estimate; null: the rubric's
    picture: PictureFormat = "png"  # of frames
    picture_tokens: WholeNotNegative = 0  # tokens of one frame; 0: as Qwen2.5-VL, one for each 28 x 28 pixels
    min_answer_mass: Probability = 0.05  # least probability of both answer words together; below it the answer is null
    max_tokens: Count = 8  # of a reply
    key_variable: str | None = None  # environment variable that holds the server's key; null: it requires none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch:
            raise ValueError("batch is true, but a server of this kind has no batch endpoint: false")
        if self.check_with is not None and self.clip != "exact":
            raise ValueError(f"check_with is {self.check_with}, but clip is {self.clip}; only clip: exact is compared")


def load(name: str, options: Options, device: str) -> ApiSource:
    """The judge of this block. device: of `check_with`. Its key is read before the first call."""
    return ApiSource(name, Served(options, device), options)


KIND = Kind(
    Options,
    load,
    network=True,
    compares=True,
    by_prompt=True,
    first_frame=True,
    needs=lambda given: Needs(
        given.rubric,
        model=given.check_with,
        server=given.base_url,
        key_variable=given.key_variable,
        whole_clips=given.clip == "video",
    ),
)


class Served:
    """Calls of one model on one server."""

    def __init__(self, options: Options, device: str = "cpu") -> None:
        self.options, self.device = options, device
        self.frames_known = options.clip != "video"
        self.place = f"{options.base_url} {options.model} {options.clip}"

    def open(self) -> None:
        options, variable = self.options, self.options.key_variable
        key = key_from(variable) if variable else NO_KEY
        self.client = OpenAIClient(key, variable or "", options.base_url, options.model, options.timeout, LOGPROBS)
        self._probes: dict[tuple[int, int, int], asyncio.Task[None]] = {}  # of clips of a size

    def plans(self, rubric: Rubric, sample: Sample, votes: int) -> list[Plan]:
        plans = []
        times: dict[str, Any] = {}
        if self.options.clip == "exact":
            times = {TIMES: {"video": frame_times(self.seen(sample, rubric)["frames"], sample.fps)}}
        for vote in range(votes):
            for question in rubric.questions:
                content = [{"type": "text", "text": rubric.text(question, sample.prompt)}]
                message = {"role": "user", "content": content}
                body = {"messages": [message], "max_tokens": self.options.max_tokens, **times}
                sampling = {"temperature": 0.0} if votes == 1 else {"temperature": 1.0, "seed": vote}
                plans.append(Plan((question,), vote, body | sampling | self.options.parameters))
        return plans

    def seen(self, sample: Sample, rubric: Rubric) -> dict[str, Any]:
        chosen = self.options.server_frames if self.options.clip == "video" else None
        wanted = chosen or rubric.frames
        frames = sample_frames(sample.num_frames, wanted or sample.num_frames)
        return {"frames": frames, "clip": self.options.clip, "picture": self.options.picture}

    def media(self, mp4: bytes, frames: np.ndarray, sample: Sample, rubric: Rubric) -> Media:
        if self.options.clip == "video":
            return [{"type": "video_url", "video_url": {"url": mp4_url(mp4)}}]
        seen = self.seen(sample, rubric)["frames"]
        if self.options.clip == "exact":
            url = frames_url(frames, seen, self.options.picture)
            return [{"type": "video_url", "video_url": {"url": url}}]
        urls = data_urls(frames, seen, self.options.picture)
        return [{"type": "image_url", "image_url": {"url": url}} for url in urls]

    def first_frame(self, png: bytes) -> Media:
        return [{"type": "image_url", "image_url": {"url": png_url(png)}}]

    def words(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": text}

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        if self.options.clip == "exact":
            for url in (part["video_url"]["url"] for part in media if part["type"] == "video_url"):
                await self._probed(plan, url)
        (message,) = plan.body["messages"]
        content = [*media, *message["content"]]
        return await self.client.complete({**plan.body, "messages": [{**message, "content": content}]}, attempt)

    def _probed(self, plan: Plan, url: str) -> Awaitable[None]:
        """The probe of clips of this size and number of frames, which all calls wait for; a failed one is repeated."""
        key = frames_size(url)
        task = self._probes.get(key)
        if task is None or (task.done() and task.exception()):
            task = self._probes[key] = asyncio.create_task(self._probe(plan, url))
        return asyncio.shield(task)

    async def _probe(self, plan: Plan, url: str) -> None:
        """Raise ServerMismatch where no call can succeed."""
        try:
            await self._compared(plan, ProbedClip(plan.body, url, self.options.picture))
        except Exception as error:
            if not _is_refusal(error) or self.client.fault(error).remedy not in (Remedy.FAIL, Remedy.ANSWER):
                raise
            reason = self.client.fault(error).reason
            raise ServerMismatch(f"the server does not take a video of frames: {reason.rstrip('.')}") from error

    async def _compared(self, plan: Plan, shown: ProbedClip) -> None:
        send = partial(self.client.complete, attempt=PROBE)
        await check_frames(send, shown)
        await check_times(send, shown, _is_refusal)
        if path := self.options.check_with:
            (question,) = plan.questions
            text = plan.body["messages"][0]["content"][0]["text"]
            here = await asyncio.to_thread(judge_here, path, question, text, self.device)
            await check_answers(send, shown, here, lambda reply: self._p_yes(plan, reply))

    def _p_yes(self, plan: Plan, reply: str) -> float | None:
        (facts,) = self.read(plan, reply).by_question.values()
        return facts.get("p_yes")

    def fault(self, error: Exception) -> Fault:
        if isinstance(error, ServerMismatch):
            return Fault(Remedy.STOP, str(error), cure=self._start())
        return self.client.fault(error)

    def _start(self) -> str:
        """How to start a server that shows the frames that it is sent."""
        command = (
            f"vllm serve {shlex.quote(self.options.model)} --trust-request-mm-kwargs "
            """--limit-mm-per-prompt '{"video": 2}' --max-logprobs 20"""
        )
        return f"Start vLLM 0.32 or later with: {command} ; or send pictures, without times: clip: frames"

    def defect(self, reply: str) -> str | None:
        return read_message(parsed(reply)).defect

    def read(self, plan: Plan, reply: str) -> Reading:
        given, (question,) = parsed(reply), plan.questions
        message = read_message(given)
        facts: Mapping[str, Any] = {"error": message.error}
        if message.text is not None:
            token = answer_token(message)
            top = top_of(token) if token else {}
            facts = self._by_masses(word_masses(top, question)) if top else read_answer(message.text, question)
            if facts.get("answer") is not None and not facts.get("reason"):
                facts = {**facts, "reason": reason_after(message.text, question, facts["answer"])}
        return Reading({question.name: facts}, string(given.get("model")), **read_usage(given))

    def _by_masses(self, masses: Masses) -> dict[str, Any]:
        """Fields of a Verdict by the probabilities of the two answer words."""
        together = sum(masses)
        if not together or together < self.options.min_answer_mass:
            least = f"expected at least {self.options.min_answer_mass:g}"
            return {"error": f"{UNREADABLE_ANSWER}all answers have a probability of {together:.3g}, {least}"}
        if masses.tie > max(masses.affirmative, masses.negative):
            return {"tie": True, "p_yes": (masses.affirmative + masses.tie / 2) / together}  # it counts for both sides
        assert masses.p_yes is not None  # one of the two has a probability
        return probable(masses.p_yes)

    def tokens(self, plan: Plan, sample: Sample, rubric: Rubric) -> int:
        each = self.options.picture_tokens or max(1, round(sample.height / 28) * round(sample.width / 28))
        shown = len(self.seen(sample, rubric)["frames"]) + (rubric.first_frame is not None)
        return shown * each + text_tokens(plan.body)

    async def close(self) -> None:
        await self.client.close()


def _is_refusal(error: Exception) -> bool:
    """Whether the server refuses the contents of a call."""
    import openai

    return isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
