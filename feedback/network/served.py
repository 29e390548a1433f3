"""Any OpenAI-compatible server (vLLM, SGLang, …) as a source: one word a question, read from its probabilities.

With yes and no the tokens that begin the two answer words in any spelling, among the most probable first tokens,

    p_yes = mass(yes) / (mass(yes) + mass(no)),

as `qwen` reads it in this process. Where a server sends no probabilities, the words of its reply are read.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, Probability, WholeNotNegative
from data.records import Sample
from data.video import sample_frames
from feedback.core.answers import Masses, probable, read_answer, word_masses
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Rubric
from feedback.core.source import UNREADABLE_ANSWER
from feedback.network.api import ApiSource
from feedback.network.calls import ApiOptions, key_from
from feedback.network.openai_protocol import LOGPROBS, OpenAIClient, parsed, read_message, read_usage, string, top_of
from feedback.network.pictures import PictureFormat, data_urls, mp4_url
from feedback.network.price import text_tokens
from feedback.network.provider import Fault, Media, Plan, Reading

NO_KEY = "none"  # sent to a server that requires no key, since the client requires one


@dataclass(frozen=True, config=STRICT)
class Options(ApiOptions):
    """A `served` block of params.yaml."""

    base_url: str = "http://127.0.0.1:8000/v1"
    # video: the whole mp4, from which the server takes frames | frames: the rubric's, as pictures
    clip: Literal["video", "frames"] = "video"
    server_frames: Count | None = None  # frames that the server takes of a video; null: the rubric's
    picture: PictureFormat = "png"  # of frames
    picture_tokens: WholeNotNegative = 0  # tokens of one frame; 0: as Qwen2.5-VL, one for each 28 x 28 pixels
    min_answer_mass: Probability = 0.05  # least probability of both answer words together; below it the answer is null
    max_tokens: Count = 8  # of a reply
    key_variable: str | None = None  # environment variable that holds the server's key; null: it requires none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch:
            raise ValueError("batch is true, but a server of this kind has no batch endpoint: false")


def load(name: str, options: Options, device: str) -> ApiSource:
    """The judge of this block; no device is used here. Its key is read before the first call."""
    return ApiSource(name, Served(options), options)


KIND = Kind(
    Options,
    load,
    network=True,
    compares=True,
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
        options, variable = self.options, self.options.key_variable
        key = key_from(variable) if variable else NO_KEY
        self.client = OpenAIClient(key, variable or "", options.base_url, options.model, options.timeout, LOGPROBS)

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

    def words(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": text}

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        (message,) = plan.body["messages"]
        content = [*media, *message["content"]]
        return await self.client.complete({**plan.body, "messages": [{**message, "content": content}]}, attempt)

    def fault(self, error: Exception) -> Fault:
        return self.client.fault(error)

    def defect(self, reply: str) -> None:
        return None

    def read(self, plan: Plan, reply: str) -> Reading:
        given, (question,) = parsed(reply), plan.questions
        message = read_message(given)
        facts: Mapping[str, Any] = {"error": message.error}
        if message.text is not None:
            masses = word_masses(top_of(message.tokens[0]), question) if message.tokens else None
            facts = read_answer(message.text, question) if masses is None else self._by_masses(masses)
        return Reading({question.name: facts}, string(given.get("model")), **read_usage(given))

    def _by_masses(self, masses: Masses) -> dict[str, Any]:
        """Fields of a Verdict by the probabilities of the two answer words."""
        together = sum(masses)
        if together < self.options.min_answer_mass:
            least = f"expected at least {self.options.min_answer_mass:g}"
            return {"error": f"{UNREADABLE_ANSWER}all answers have a probability of {together:.3g}, {least}"}
        if masses.tie > max(masses.affirmative, masses.negative):
            return {"tie": True, "p_yes": (masses.affirmative + masses.tie / 2) / together}  # it counts for both sides
        assert masses.p_yes is not None  # one of the others has a probability
        return probable(masses.p_yes)

    def tokens(self, plan: Plan, sample: Sample, rubric: Rubric) -> int:
        each = self.options.picture_tokens or max(1, round(sample.height / 28) * round(sample.width / 28))
        return len(self.seen(sample, rubric)["frames"]) * each + text_tokens(plan.body)

    async def close(self) -> None:
        await self.client.close()
