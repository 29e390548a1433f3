"""Any OpenAI-compatible server (vLLM, SGLang, …) as a source: one word a question, read from its probabilities.

With yes and no the tokens that begin the two answer words in any spelling, among the most probable first tokens,

    p_yes = mass(yes) / (mass(yes) + mass(no)),

as `qwen` reads it in this process. A server that tells no probabilities is read by its words.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from data.config import STRICT
from data.records import Sample
from data.video import sample_frames
from feedback.core.answers import probable, read_answer, word_masses
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Rubric
from feedback.core.source import UNREADABLE_ANSWER
from feedback.network.api import ApiOptions, ApiSource, key_from
from feedback.network.completions import LOGPROBS, parsed, read_message, read_usage, string, top_of
from feedback.network.pictures import FORMATS, data_urls, mp4_url
from feedback.network.price import text_tokens
from feedback.network.provider import Fault, Media, Plan, Reading

CLIPS = ("video", "frames")
NO_KEY = "none"  # what a server that asks for no key is sent, since the client insists on one


@dataclass(frozen=True, config=STRICT)
class Options(ApiOptions):
    """A `served` block of params.yaml."""

    base_url: str = "http://127.0.0.1:8000/v1"
    clip: str = "video"  # video: the whole mp4, of which the server takes frames | frames: the rubric's, as pictures
    server_frames: int | None = None  # of a video: how many the server was started to take, evenly; null: the rubric's
    picture: str = "png"  # of frames: png | jpeg
    picture_tokens: int = 0  # that one frame takes; 0: as Qwen2.5-VL cuts it, one for each 28 x 28 pixels
    min_answer_mass: float = 0.05  # probability that both answers together must hold; less is off-topic: null
    max_tokens: int = 8  # of a reply
    key_variable: str | None = None  # environment variable that holds the server's key; null: it wants none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch:
            raise ValueError("batch is true, but a server of this kind has no batch endpoint: false")
        if self.clip not in CLIPS:
            raise ValueError(f"clip is {self.clip!r}, known are {list(CLIPS)}")
        if self.picture not in FORMATS:
            raise ValueError(f"picture is {self.picture!r}, known are {list(FORMATS)}")


def load(name: str, options: Options, device: str) -> ApiSource:
    """The judge of this block; no device is used here. Its key is read when it is first asked."""
    return ApiSource(name, Served(options), options)


KIND = Kind(
    Options,
    load,
    network=True,
    needs=lambda given: Needs(
        given.rubric, server=given.base_url, key_variable=given.key_variable, whole_clips=given.clip == "video"
    ),
)


class Served:
    """Calls of one model on one server."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.place = f"{options.base_url} {options.model} {options.clip}"

    def open(self) -> None:
        from feedback.network.chat import Chat  # the SDK takes a second to import

        options, variable = self.options, self.options.key_variable
        key = key_from(variable) if variable else NO_KEY
        self.chat = Chat(key, variable or "", options.base_url, options.model, options.timeout, LOGPROBS)

    def plans(self, rubric: Rubric, sample: Sample, votes: int) -> list[Plan]:
        plans = []
        for vote in range(votes):
            for question in rubric.questions:
                content = [{"type": "text", "text": rubric.text(question, sample.prompt)}]
                body = {"messages": [{"role": "user", "content": content}], "max_tokens": self.options.max_tokens}
                sampling = {"temperature": 0.0} if votes == 1 else {"temperature": 1.0, "seed": vote}
                plans.append(Plan((question,), vote, body | sampling | self.options.parameters))
        return plans

    def seen(self, sample: Sample, rubric: Rubric) -> dict[str, Any]:
        wanted = rubric.frames if self.options.clip == "frames" else self.options.server_frames or rubric.frames
        frames = sample_frames(sample.num_frames, wanted or sample.num_frames)
        return {"frames": frames, "clip": self.options.clip, "picture": self.options.picture}

    def media(self, mp4: bytes, frames: np.ndarray, sample: Sample, rubric: Rubric) -> Media:
        if self.options.clip == "video":
            return [{"type": "video_url", "video_url": {"url": mp4_url(mp4)}}]
        urls = data_urls(frames, self.seen(sample, rubric)["frames"], self.options.picture)
        return [{"type": "image_url", "image_url": {"url": url}} for url in urls]

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        (message,) = plan.body["messages"]
        content = [*media, *message["content"]]
        return await self.chat.complete({**plan.body, "messages": [{**message, "content": content}]}, attempt)

    def fault(self, error: Exception) -> Fault:
        return self.chat.fault(error)

    def read(self, plan: Plan, reply: str) -> Reading:
        given, (question,) = parsed(reply), plan.questions
        message = read_message(given)
        told: Mapping[str, Any] = {"error": message.error}
        if message.text is not None:
            masses = word_masses(top_of(message.tokens[0]), question) if message.tokens else None
            told = read_answer(message.text, question) if masses is None else self._told(masses)
        return Reading({question.name: told}, string(given.get("model")), **read_usage(given))

    def _told(self, masses: Any) -> dict[str, Any]:
        both = masses.affirmative + masses.negative
        if both < self.options.min_answer_mass:
            least = f"at least {self.options.min_answer_mass:g} is asked for"
            return {"error": f"{UNREADABLE_ANSWER}both answers have a probability of {both:.3g}, {least}"}
        return probable(masses.p_yes)

    def tokens(self, plan: Plan, sample: Sample, rubric: Rubric) -> int:
        each = self.options.picture_tokens or max(1, round(sample.height / 28) * round(sample.width / 28))
        return len(self.seen(sample, rubric)["frames"]) * each + text_tokens(plan.body)

    async def close(self) -> None:
        await self.chat.close()
