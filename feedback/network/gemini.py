"""Google's Gemini models as a source: the whole clip as inline mp4 at a given frame rate, or the rubric's frames.

mode text       generateContent with a JSON schema of `answer` and `reason`, a question a call; no probability
mode decision   the Decisions API: the probability of each question's affirmative word, all questions of a clip in one
                call; no reason. It exists for some models only, see Google's page
"""

import base64
import json
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval
from pydantic.dataclasses import dataclass

from data.config import STRICT, Url, WholeNotNegative
from data.records import Sample
from data.video import sample_frames
from feedback.core.answers import probable, read_answer, verdict_schema
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Question, Rubric
from feedback.core.source import REFUSED, UNREADABLE_ANSWER
from feedback.network.api import REASONED, ApiSource
from feedback.network.calls import ApiOptions, compares, key_from
from feedback.network.openai_protocol import ReplyMessage, count, mapping, mappings, parsed, string
from feedback.network.pace import CONNECT, LIMITS, retry_after
from feedback.network.pictures import PictureFormat, data_urls
from feedback.network.price import Price, text_tokens
from feedback.network.provider import (
    ATTEMPT_HEADER,
    PAY,
    UNKNOWN,
    UNPAID,
    Fault,
    Media,
    Plan,
    Progress,
    Reading,
    Remedy,
    is_loopback,
    mend_key,
    mend_name,
    no_reply,
    via_proxy,
    without_key,
)

FRAME_TOKENS = 70  # of a model without a price
MOST_FPS = 24.0  # frames per second: the most that Gemini samples of a video
GOOGLE = "https://generativelanguage.googleapis.com/"
OVER = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "EXPIRED", "CANCELLED", "FAILED")  # states of a batch, after JOB_STATE_
BESIDE = (  # fields of the SDK's config that stand beside generationConfig in a request
    "systemInstruction", "safetySettings", "tools", "toolConfig", "labels", "cachedContent", "serviceTier", "store",
)  # fmt: skip
# Finish reasons that are the provider's decision about the clip, not a truncated reply.
FILTERS = (
    "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION", "MODEL_ARMOR", "LANGUAGE",
)  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class GeminiPrice(Price):
    """The price of a Gemini model."""

    frame_tokens: WholeNotNegative  # tokens of one frame: Gemini 3 takes 70 of a video, 2.5 258


@dataclass(frozen=True, config=STRICT)
class Options(ApiOptions):
    """A `gemini` block of params.yaml."""

    price: GeminiPrice | None = None  # of `model`; null: unknown
    mode: Literal["text", "decision"] = "text"
    clip: Literal["video", "frames"] = "video"  # video: the whole mp4 | frames: the rubric's, as pictures
    # Frames per second that Gemini samples of a video; null: all, up to 24. A whole number stays one: it is in the key.
    fps: Annotated[int | float, Interval(gt=0, le=MOST_FPS)] | None = None
    picture: PictureFormat = "png"  # of frames
    resolution: Literal["low", "medium", "high"] | None = None  # tokens a frame; null: the model's own choice
    base_url: Url | None = None  # null: Google's
    key_variable: str = "GEMINI_API_KEY"  # environment variable that holds the key

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "decision" and compares(self.rubric):
            raise ValueError(
                f"mode is decision, but {self.rubric} compares two clips, which is a question for mode text"
            )
        if self.batch and self.mode != "text":
            raise ValueError(f"batch is true, but Gemini's batch endpoint does not take mode {self.mode}: false")


def load(name: str, options: Options, device: str) -> ApiSource:
    """The judge of this block; no device is used. Its key is read before the first call."""
    return ApiSource(name, Gemini(options), options, REASONED if options.mode == "text" else "")


KIND = Kind(
    Options,
    load,
    network=True,
    compares=True,
    by_prompt=True,
    first_frame=True,
    needs=lambda given: Needs(
        given.rubric, server=given.base_url, key_variable=given.key_variable, whole_clips=given.clip == "video"
    ),
)


class Gemini:
    """Calls of one Gemini model."""

    most_requests, most_bytes = 50_000, 1_000_000_000  # Gemini takes files of 2 GB
    frames_known = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self.place = f"{options.base_url or 'gemini'} {options.model} {options.mode}"

    def open(self) -> None:
        import httpx2
        from google import genai  # the SDK takes a second or two to import

        self._key = key_from(self.options.key_variable)
        base_url = self.options.base_url or GOOGLE  # always named: the SDK would otherwise read the environment
        http: dict[str, Any] = {
            "api_version": "v1beta",  # where the Decisions API and the newest models are
            "timeout": round(1000 * self.options.timeout),
            "retry_options": {"attempts": 1},  # the SDK's own retries would send calls that the ledger does not know of
            # Without a client the SDK takes aiohttp where that is installed, which raises other errors.
            "httpx_async_client": httpx2.AsyncClient(
                timeout=self.options.timeout,
                limits=httpx2.Limits(**LIMITS),
                event_hooks={"request": [_connect_soon]},
                trust_env=not is_loopback(base_url),  # a proxy cannot reach a server on this machine
            ),
            "base_url": base_url,
        }
        self.client = genai.Client(api_key=self._key, vertexai=False, http_options=http)  # type: ignore[arg-type]

    async def close(self) -> None:
        await self.client.aio.aclose()

    def plans(self, rubric: Rubric, sample: Sample, votes: int) -> list[Plan]:
        options = self.options
        if options.mode == "decision":
            questions = {question.name: _noul(rubric, question, sample) for question in rubric.questions}
            return [
                Plan(rubric.questions, vote, {"questions": questions} | options.parameters) for vote in range(votes)
            ]
        plans = []
        for vote in range(votes):
            for question in rubric.questions:
                config = {
                    "response_mime_type": "application/json",
                    "response_json_schema": verdict_schema(question),
                    **(
                        {"media_resolution": f"MEDIA_RESOLUTION_{options.resolution.upper()}"}
                        if options.resolution
                        else {}
                    ),
                    **options.parameters,
                }
                plans.append(Plan((question,), vote, {"text": rubric.text(question, sample.prompt), "config": config}))
        return plans

    def seen(self, sample: Sample, rubric: Rubric) -> dict[str, Any]:
        if self.options.clip == "frames":
            frames = sample_frames(sample.num_frames, rubric.frames or sample.num_frames)
            return {"frames": frames, "picture": self.options.picture, "resolution": self.options.resolution}
        fps = self._fps(sample)
        every = sample.fps / fps
        frames = sorted({int(every * index) for index in range(int((sample.num_frames - 1) / every) + 1)})
        return {"frames": frames, "fps": fps, "resolution": self.options.resolution}

    def _fps(self, sample: Sample) -> float:
        return self.options.fps or min(sample.fps, MOST_FPS)

    def media(self, mp4: bytes, frames: np.ndarray, sample: Sample, rubric: Rubric) -> Media:
        if self.options.clip == "video":
            if self.options.mode == "decision":
                static = {"type": "static", "fps": self._fps(sample), "content_layers": ["frames"]}
                data = base64.b64encode(mp4).decode()
                return [{"type": "video", "mime_type": "video/mp4", "data": data, "processing": static} | self._level()]
            metadata = {"fps": self._fps(sample)}
            return [{"inline_data": {"mime_type": "video/mp4", "data": mp4}, "video_metadata": metadata}]
        urls = data_urls(frames, self.seen(sample, rubric)["frames"], self.options.picture)
        return self._pictures([url.partition(",")[2] for url in urls], f"image/{self.options.picture}")

    def first_frame(self, png: bytes) -> Media:
        return self._pictures([base64.b64encode(png).decode()], "image/png")

    def _pictures(self, pictures: Sequence[str], mime: str) -> Media:
        """Pictures, in base64, as they are sent."""
        if self.options.mode == "decision":
            return [{"type": "image", "mime_type": mime, "data": one} | self._level() for one in pictures]
        return [{"inline_data": {"mime_type": mime, "data": base64.b64decode(one)}} for one in pictures]

    def _level(self) -> dict[str, str]:
        return {"resolution": self.options.resolution} if self.options.resolution else {}

    def words(self, text: str) -> dict[str, Any]:
        return {"text": text}

    async def send(self, plan: Plan, media: Media, attempt: str) -> str:
        headers = {ATTEMPT_HEADER: attempt}
        if self.options.mode == "decision":
            raw = await self.client.aio.decisions.with_raw_response.create(
                input=list(media),
                model=f"models/{self.options.model}",
                extra_headers=headers,
                **plan.body,
            )
            content: bytes = await raw.read()
            return content.decode("utf-8", "replace")
        reply = await self.client.aio.models.generate_content(
            model=self.options.model,
            contents=[_content(plan, media)],  # type: ignore[arg-type]
            config={  # type: ignore[arg-type]
                **plan.body["config"],
                "should_return_http_response": True,
                "automatic_function_calling": {"disable": True},
                "http_options": {"headers": headers},
            },
        )
        return reply.sdk_http_response.body or "" if reply.sdk_http_response else ""

    def batch_line(self, name: str, plan: Plan, media: Media) -> str:
        from google.genai import types

        config = _as_rest(types.GenerateContentConfig(**plan.body["config"]))
        request: dict[str, Any] = {"contents": [_as_rest(types.Content(**_content(plan, media)))]}
        request |= {key: config.pop(key) for key in BESIDE if key in config}
        if isinstance(text := request.get("systemInstruction"), str):
            request["systemInstruction"] = {"role": "user", "parts": [{"text": text}]}
        return json.dumps({"key": name, "request": request | {"generationConfig": config}}, separators=(",", ":"))

    async def submit(self, path: Path, token: str) -> str:
        import httpx2

        aio = self.client.aio
        try:
            sent = await aio.files.upload(file=path, config={"display_name": token, "mime_type": "jsonl"})
        except (KeyError, ValueError) as error:  # the SDK's errors for an upload that was cut off
            raise httpx2.RemoteProtocolError(str(error)) from error
        job = await aio.batches.create(model=self.options.model, src=str(sent.name), config={"display_name": token})
        return str(job.name)

    async def find(self, token: str) -> str | None:
        async for job in await self.client.aio.batches.list(config={"page_size": 100}):
            if job.display_name == token:
                return job.name
        return None

    async def progress(self, remote: str) -> Progress:
        job = await self.client.aio.batches.get(name=remote)
        state = job.state.name.removeprefix("JOB_STATE_") if job.state else ""
        # The SDK drops the reason.
        failed = "the provider gives no reason here; its console may" if state == "FAILED" else None
        return Progress(state in OVER, failed)

    async def results(self, remote: str) -> AsyncIterator[tuple[str, str | None]]:
        job = await self.client.aio.batches.get(name=remote)
        if not job.dest or not job.dest.file_name:
            return
        with tempfile.TemporaryFile() as file:
            await self.client.aio.files.download(file=job.dest.file_name, destination=file)
            file.seek(0)
            for line in file:
                given = parsed(line.decode("utf-8", "replace"))
                reply = given.get("response")
                whole = isinstance(reply, Mapping) and "error" not in reply
                yield str(given.get("key")), json.dumps(reply) if whole else None

    def fault(self, error: Exception) -> Fault:
        import httpx2

        status = getattr(error, "code", None) or getattr(error, "status_code", None)
        response = getattr(error, "response", None)
        if isinstance(status, int):
            body = getattr(error, "details", None) or getattr(error, "body", None)
            wait = retry_after(getattr(response, "headers", None) or {})
            return replace(self._status_fault(status, body, wait), status=status)
        if isinstance(error, UnicodeDecodeError):  # raised by the SDK for an error page of some proxy
            return Fault(Remedy.RETRY, "an error page that is no UTF-8", lost=True)
        cause = error if isinstance(error, httpx2.HTTPError) else error.__cause__
        if isinstance(cause, httpx2.HTTPError):
            fault = no_reply(cause, self._address)
            return replace(fault, reason=self._clean(fault.reason))
        raise error

    def defect(self, reply: str) -> str | None:
        """Gemini now and then sends an empty text under STOP, and usually answers when the call is repeated."""
        given = parsed(reply)
        if self.options.mode == "text":
            return read_candidate(given).defect
        return None if given.get("answers") or _blocked(given) else "a reply without answers"

    def _status_fault(self, status: int, body: Any, wait: float | None) -> Fault:
        given = mapping(body[0] if isinstance(body, list) and body else body)
        via = "" if given.get("error") else via_proxy(self._address)  # a page may be the proxy's own
        error = mapping(given.get("error", given))
        details = mappings(error.get("details"))
        reason = self._clean(f"HTTP {status}{via}: {error.get('message') or body}")
        variable, model, words = self.options.key_variable, self.options.model, str(error.get("message") or "")
        if status in (401, 403) or any(one.get("reason") == "API_KEY_INVALID" for one in details):
            rejected = f"the key in {variable} was rejected (HTTP {status}{via}): {words or body}"
            return Fault(Remedy.STOP, self._clean(rejected), cure=mend_key(variable, model))
        if status == UNPAID:
            return Fault(Remedy.STOP, reason, cure=PAY)
        if status in UNKNOWN or (status == 400 and "model name" in words):
            return Fault(Remedy.STOP, reason, cure=mend_name(model, self._address))
        if status == 400 and error.get("status") == "FAILED_PRECONDITION":  # no billing account, or not in this country
            return Fault(Remedy.STOP, reason, cure=f"See what {model} requires of the key's account")
        if status == 429:
            quotas = [one.get("quotaId") for detail in details for one in mappings(detail.get("violations"))]
            by_day = any("PerDay" in str(quota) for quota in quotas)
            # Not "billing": the message of an ordinary limit a minute speaks of billing details too.
            if re.search(r"spending cap|credits are depleted", words, re.IGNORECASE):
                return Fault(Remedy.STOP, reason, cure=PAY)
            if by_day:
                return Fault(Remedy.STOP, reason)
            return Fault(Remedy.REST, reason, wait if wait is not None else _retry_delay(details))
        if status in (408, 504):
            return Fault(Remedy.RETRY, reason, wait, lost=True)
        if status >= 500 or status in (409, 499):
            wait = wait if wait is not None else _retry_delay(details)
            return Fault(Remedy.REST if wait is not None else Remedy.RETRY, reason, wait)
        return Fault(Remedy.FAIL, reason)

    def _clean(self, text: str) -> str:
        return without_key(text, self._key)

    @property
    def _address(self) -> str:
        return (self.options.base_url or GOOGLE).rstrip("/")

    def read(self, plan: Plan, reply: str) -> Reading:
        given = parsed(reply)
        if self.options.mode == "decision":
            return Reading(_read_decisions(plan, given), string(given.get("model")), **_decision_usage(given))
        (question,) = plan.questions
        version = string(given.get("modelVersion"))
        return Reading({question.name: _read_text(question, given)}, version, **usage(given))

    def tokens(self, plan: Plan, sample: Sample, rubric: Rubric) -> int:
        price = self.options.own_price
        each = price.frame_tokens if isinstance(price, GeminiPrice) else FRAME_TOKENS
        shown = len(self.seen(sample, rubric)["frames"]) + (rubric.first_frame is not None)
        return shown * each + text_tokens(plan.body)


async def _connect_soon(request: Any) -> None:
    """Shorten the wait for a connection: the SDK gives each call one timeout, for the connection and the reply."""
    timeout = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = timeout | {"connect": min(CONNECT, timeout.get("connect") or CONNECT)}


def _content(plan: Plan, media: Media) -> dict[str, Any]:
    """The message of a call with its clip, in mode text."""
    return {"role": "user", "parts": [*media, {"text": plan.body["text"]}]}


def _as_rest(one: Any) -> dict[str, Any]:
    """One of the SDK's models as JSON, with the API's names of its fields."""
    made: dict[str, Any] = one.model_dump(mode="json", by_alias=True, exclude_none=True)
    return made


def _noul(rubric: Rubric, question: Question, sample: Sample) -> dict[str, Any]:
    """A yes-or-no question of the Decisions API, whose `true` is the affirmative word."""
    criteria = {"true_description": question.affirmative, "false_description": question.negative}
    return {"type": "noul", "instructions": rubric.text(question, sample.prompt), "criteria": criteria}


def _retry_delay(details: list[Mapping[str, Any]]) -> float | None:
    """Seconds that a google.rpc.RetryInfo asks to wait; None where there is none."""
    for one in details:
        if found := re.fullmatch(r"([\d.]+)s", str(one.get("retryDelay", ""))):
            return float(found[1])
    return None


def _read_text(question: Question, given: Mapping[str, Any]) -> Mapping[str, Any]:
    message = read_candidate(given)
    return {"error": message.error} if message.text is None else read_answer(message.text, question)


def read_candidate(given: Mapping[str, Any]) -> ReplyMessage:
    """The first candidate of a reply of generateContent. A block, or a stop by a filter, is an error that names it."""
    if reason := _blocked(given):
        return ReplyMessage(None, f"{REFUSED}{reason}", [])
    match given:
        case {"candidates": [candidate, *_]} if isinstance(candidate, Mapping):
            text, reason = _text_of(candidate), candidate.get("finishReason")
            if reason in FILTERS:
                return ReplyMessage(None, f"{REFUSED}stopped for {reason}", [])
            if text.strip():
                return ReplyMessage(text, None, [])
            if reason == "MAX_TOKENS":  # thoughts took all of them
                error = f"{UNREADABLE_ANSWER}no answer within max_output_tokens; a larger one leaves room"
                return ReplyMessage(None, error, [])
            return ReplyMessage(None, f"{UNREADABLE_ANSWER}an empty reply, finishReason {reason}", [], empty=True)
    return ReplyMessage(None, f"{UNREADABLE_ANSWER}no candidate in the reply: {list(given)[:5]}", [], empty=True)


def _text_of(candidate: Mapping[str, Any]) -> str:
    """The text of a candidate without its thoughts."""
    parts = mappings(mapping(candidate.get("content")).get("parts"))
    return "".join(string(part.get("text")) or "" for part in parts if not part.get("thought"))


def _blocked(given: Mapping[str, Any]) -> str | None:
    feedback = mapping(given.get("promptFeedback") or given.get("prompt_feedback"))
    reason = feedback.get("blockReason") or feedback.get("block_reason")
    message = feedback.get("blockReasonMessage") or feedback.get("block_reason_message")
    return f"blocked for {reason}{f': {message}' if message else ''}" if reason else None


def _read_decisions(plan: Plan, given: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    if reason := _blocked(given):
        return {question.name: {"error": f"{REFUSED}{reason}"} for question in plan.questions}
    answers = given.get("answers")
    answers = answers if isinstance(answers, Mapping) else {}
    by_question: dict[str, Mapping[str, Any]] = {}
    for question in plan.questions:
        match answers.get(question.name):
            case {"noul": float() | int() as p_yes}:
                by_question[question.name] = probable(p_yes)
            case other:
                by_question[question.name] = {"error": f"{UNREADABLE_ANSWER}no probability, but {str(other)[:80]}"}
    return by_question


def usage(given: Mapping[str, Any]) -> dict[str, Any]:
    """Token counts, fields of a Reading, of a reply of generateContent."""
    counts = mapping(given.get("usageMetadata"))
    thoughts = count(counts.get("thoughtsTokenCount")) or 0  # billed as output
    return {
        "input_tokens": (tokens := count(counts.get("promptTokenCount"))),
        "output_tokens": None if tokens is None else (count(counts.get("candidatesTokenCount")) or 0) + thoughts,
        "cached_tokens": count(counts.get("cachedContentTokenCount")) or 0,
    }


def _decision_usage(given: Mapping[str, Any]) -> dict[str, Any]:
    usage = mapping(given.get("usage"))
    thoughts = count(usage.get("total_thought_tokens")) or 0
    return {
        "input_tokens": (tokens := count(usage.get("total_input_tokens"))),
        "output_tokens": None if tokens is None else (count(usage.get("total_output_tokens")) or 0) + thoughts,
        "cached_tokens": count(usage.get("total_cached_tokens")) or 0,
    }
