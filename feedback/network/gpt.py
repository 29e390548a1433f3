"""OpenAI's models as a source: frames as pictures; the answer is a word with a short reason, or a probability.

mode text       chat.completions with a JSON schema of `answer` and `reason`, a question a call; p_yes comes from the
                log probabilities of the answer's first token, where the model gives them
mode decision   /v1/decisions: the probability of each question's affirmative word, all questions of a clip in one
                call; no reason. It exists for some models only, see OpenAI's page
"""

import json
import math
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from data.config import STRICT, NotNegative, Url
from data.records import Sample
from data.video import sample_frames
from feedback.core.answers import probable, read_answer, verdict_schema, word_masses
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Question, Rubric
from feedback.core.source import REFUSED, UNREADABLE_ANSWER
from feedback.network.api import REASONED, ApiSource
from feedback.network.calls import ApiOptions, compares, key_from
from feedback.network.openai_protocol import (
    LOGPROBS,
    OpenAIClient,
    at_value,
    parsed,
    read_message,
    read_usage,
    string,
    top_of,
)
from feedback.network.pictures import PictureFormat, data_urls, png_url
from feedback.network.price import Price, text_tokens
from feedback.network.provider import Fault, Media, Plan, Progress, Reading

PATCH_TOKENS = 1.2  # of a model without a price
PATCH = 32  # pixels a side of the patches that a picture is billed by
OVER = ("completed", "expired", "cancelled", "failed")  # states of a batch
TOKEN = "label_batch"  # key of our name for a batch in its metadata


@dataclass(frozen=True, config=STRICT)
class GptPrice(Price):
    """The price of a GPT."""

    patch_tokens: NotNegative  # of 32 x 32 pixels of a frame: GPT-5.6 and 6 1.2, GPT-5.4 mini 1.62


@dataclass(frozen=True, config=STRICT)
class Options(ApiOptions):
    """A `gpt` block of params.yaml."""

    price: GptPrice | None = None  # of `model`; null: unknown
    mode: Literal["text", "decision"] = "text"
    picture: PictureFormat = "png"  # in which the frames are sent
    detail: str = "auto"  # low | high | auto: how closely the model looks at a picture
    base_url: Url | None = None  # null: api.openai.com
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "decision" and compares(self.rubric):
            raise ValueError(
                f"mode is decision, but {self.rubric} compares two clips, which is a question for mode text"
            )
        if self.batch and self.mode != "text":
            raise ValueError(f"batch is true, but OpenAI's batch endpoint does not take mode {self.mode}: false")


def load(name: str, options: Options, device: str) -> ApiSource:
    """The judge of this block; no device is used. Its key is read before the first call."""
    return ApiSource(name, Gpt(options), options, REASONED if options.mode == "text" else "")


KIND = Kind(
    Options,
    load,
    network=True,
    compares=True,
    by_prompt=True,
    first_frame=True,
    needs=lambda given: Needs(given.rubric, server=given.base_url, key_variable=given.key_variable),
)


class Gpt:
    """Calls of one OpenAI model."""

    most_requests, most_bytes = 49_000, 195_000_000  # a little less than OpenAI's 50,000 and 200 MB
    frames_known = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self.place = f"{options.base_url or 'openai'} {options.model} {options.mode}"

    def open(self) -> None:
        options = self.options
        key = key_from(options.key_variable)
        self.client = OpenAIClient(
            key, options.key_variable, options.base_url, options.model, options.timeout, LOGPROBS
        )

    def plans(self, rubric: Rubric, sample: Sample, votes: int) -> list[Plan]:
        if self.options.mode == "text":
            bodies = [(question, self._text_body(rubric, question, sample)) for question in rubric.questions]
            return [Plan((question,), vote, body) for vote in range(votes) for question, body in bodies]
        body = {"questions": [_predicate(rubric, question, sample) for question in rubric.questions]}
        return [Plan(rubric.questions, vote, body | self.options.parameters) for vote in range(votes)]

    def _text_body(self, rubric: Rubric, question: Question, sample: Sample) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": [{"type": "text", "text": rubric.text(question, sample.prompt)}]}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": verdict_schema(question)},
            },
        } | self.options.parameters

    def seen(self, sample: Sample, rubric: Rubric) -> dict[str, Any]:
        frames = sample_frames(sample.num_frames, rubric.frames or sample.num_frames)
        return {"frames": frames, "picture": self.options.picture, "detail": self.options.detail}

    def media(self, mp4: bytes, frames: np.ndarray, sample: Sample, rubric: Rubric) -> Media:
        return self._pictures(data_urls(frames, self.seen(sample, rubric)["frames"], self.options.picture))

    def first_frame(self, png: bytes) -> Media:
        return self._pictures([png_url(png)])

    def _pictures(self, urls: Sequence[str]) -> Media:
        if self.options.mode == "text":
            return [{"type": "image_url", "image_url": {"url": url, "detail": self.options.detail}} for url in urls]
        return [{"type": "input_image", "image_url": url, "detail": self.options.detail} for url in urls]

    def words(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": text}

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        if self.options.mode == "decision":
            input_ = [{"type": "message", "role": "user", "content": list(media)}]
            return await self.client.decide({**plan.body, "input": input_}, attempt)
        return await self.client.complete(_with(media, plan), attempt)

    def batch_line(self, name: str, plan: Plan, media: Media) -> str:
        call = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions"}
        return json.dumps({**call, "body": self.client.full_body(_with(media, plan))}, separators=(",", ":"))

    async def submit(self, path: Path, token: str) -> str:
        client = self.client.client
        with path.open("rb") as file:  # not the path: the SDK would read the whole file into memory
            sent = await client.files.create(file=(f"{token}.jsonl", file), purpose="batch")
        batch = await client.batches.create(
            input_file_id=sent.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={TOKEN: token},
        )
        return batch.id

    async def find(self, token: str) -> str | None:
        async for batch in self.client.client.batches.list(limit=100):
            if (batch.metadata or {}).get(TOKEN) == token:
                return batch.id
        return None

    async def progress(self, remote: str) -> Progress:
        batch = await self.client.client.batches.retrieve(remote)
        errors = (batch.errors.data if batch.errors else None) or []
        reasons = "; ".join(f"{one.message}" + (f" (line {one.line})" if one.line else "") for one in errors[:3])
        failed = (reasons or "no reason given") if batch.status == "failed" else None
        return Progress(batch.status in OVER, failed)

    async def results(self, remote: str) -> AsyncIterator[tuple[str, str | None]]:
        client = self.client.client
        batch = await client.batches.retrieve(remote)
        if not batch.output_file_id:  # calls without an answer are in another file
            return
        with tempfile.TemporaryFile() as file:
            async with client.files.with_streaming_response.content(batch.output_file_id) as response:
                async for chunk in response.iter_bytes():
                    file.write(chunk)
            file.seek(0)
            for line in file:
                yield _read_line(parsed(line.decode("utf-8", "replace")))

    def fault(self, error: Exception) -> Fault:
        return self.client.fault(error)

    def defect(self, reply: str) -> str | None:
        given = parsed(reply)
        if self.options.mode == "text" or given.get("error"):
            return read_message(given).defect
        return None if given.get("answers") else "a reply without answers"

    def read(self, plan: Plan, reply: str) -> Reading:
        given = parsed(reply)
        read = _read_decisions if self.options.mode == "decision" else _read_text
        return Reading(read(plan, given), string(given.get("model")), **read_usage(given))

    async def close(self) -> None:
        await self.client.close()

    def tokens(self, plan: Plan, sample: Sample, rubric: Rubric) -> int:
        patches = math.ceil(sample.height / PATCH) * math.ceil(sample.width / PATCH)
        price = self.options.own_price
        each = math.ceil(patches * (price.patch_tokens if isinstance(price, GptPrice) else PATCH_TOKENS))
        shown = len(self.seen(sample, rubric)["frames"]) + (rubric.first_frame is not None)
        return shown * each + text_tokens(plan.body)


def _with(media: Media, plan: Plan) -> dict[str, Any]:
    """The body of a call with its clip, in mode text."""
    (message,) = plan.body["messages"]
    # The pictures first: the provider caches the beginning, which all calls about a clip share.
    content = [*media, *message["content"]]
    return {**plan.body, "messages": [{**message, "content": content}]}


def _read_line(line: Mapping[str, Any]) -> tuple[str, str | None]:
    """A line of a batch's output: our name for the call, and the reply."""
    match line:
        case {"response": {"status_code": 200, "body": dict() as body}}:
            return str(line.get("custom_id")), json.dumps(body)
    return str(line.get("custom_id")), None


def _predicate(rubric: Rubric, question: Question, sample: Sample) -> dict[str, Any]:
    statement = f"The statement to judge: the right reply is {question.affirmative}."
    text = f"{rubric.text(question, sample.prompt)}\n\n{statement}"
    return {"type": "predicate", "name": question.name, "instructions": text}


def _read_text(plan: Plan, given: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    (question,) = plan.questions
    message = read_message(given)
    if message.text is None:
        return {question.name: {"error": message.error}}
    facts = read_answer(message.text, question)
    if "answer" in facts and (token := at_value(message.tokens, "answer")) is not None:
        facts["p_yes"] = word_masses(top_of(token), question).p_yes
    return {question.name: facts}


def _read_decisions(plan: Plan, given: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    answers = given.get("answers")
    if given.get("error"):
        return {question.name: {"error": read_message(given).error} for question in plan.questions}
    if not isinstance(answers, list) or len(answers) != len(plan.questions):
        error = f"{UNREADABLE_ANSWER}{len(plan.questions)} answers are expected, not {str(answers)[:80]}"
        return {question.name: {"error": error} for question in plan.questions}
    return {question.name: _read_decision(answer) for question, answer in zip(plan.questions, answers, strict=True)}


def _read_decision(answer: Any) -> dict[str, Any]:
    match answer:
        case {"type": "refusal"}:
            return {"error": f"{REFUSED}the model declined to answer this question"}
        case {"type": "predicate", "probability": float() | int() as probability}:
            return probable(probability)
    return {"error": f"{UNREADABLE_ANSWER}no probability, but {str(answer)[:80]}"}
