"""A local server with the APIs of OpenAI, vLLM and Gemini, which misbehaves on command.

Its answer to a request depends on the request's content alone, so that a repeated request has the same answer. Faults
of transport are random. `python -m tests.support.faulty_provider PORT` serves until it is killed; `serving` does so in
a thread of the test. GET /truth returns the attempts that arrived.
"""

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import math
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from PIL import Image

TRANSPORT = ("429", "429-after", "500", "503", "502-page", "drop", "reset", "hang", "truncated")
BILLED = ("drop", "reset", "hang", "truncated")  # the answer was made, and did not arrive
ODD = ("dotted", "bare", "both", "foreign", "refusal", "shape", "filtered", "policy")
NULL = ODD[2:]
EMPTY = "empty"  # a reply without a word, as an `odd` of the script
HANG = 30.0  # seconds; longer than any client in the tests waits


@dataclass
class Behaviour:
    """What the server does; changed by tests while it runs."""

    latency: float = 0.0  # seconds
    together: int = 0  # no reply before so many requests are in flight at once, or HANG is over
    faults: float = 0.0  # share of all requests with a fault of transport
    odd: float = 0.0  # share of all answers in another form than requested
    # What happens to the next requests, in place of chance: `fault` or `odd` by name, or a reply as `status`,
    # `headers`, `body`, in which $KEY stands for the key that was sent. `of`: only for requests with this text;
    # `times`: 1 by default; `after`: seconds before the reply.
    script: list[dict[str, Any]] = field(default_factory=list)
    refuses: tuple[str, ...] = ()  # parameters that are answered with 400
    seed: int = 0
    # Of videos of frames with `media_io_kwargs`, as vLLM takes them.
    trusts: bool = True  # --trust-request-mm-kwargs; without it they are answered with 400
    reads_times: bool = True  # False: it ignores them, as a server that does not know them
    most_frames: int | None = None  # frames that the model is shown; None: all
    pixels: int | None = None  # of all frames of a video together; above it they are scaled down; None: they never are
    usage: bool = True  # whether replies say how many tokens they took
    probe_faults: int = 0  # probes that are answered with 503 first


class Server:
    """One server's state."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.random = random.Random(behaviour.seed)
        self.attempts: list[dict[str, Any]] = []  # every request that arrived
        self.bodies: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []  # bodies that ask how the server is set up, and are no attempts
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.base = ""
        self.gathered = asyncio.Event()
        self.closing = asyncio.Event()  # ends the calls that hang

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**28)
        app.router.add_get("/truth", self._truth)
        app.router.add_post("/{path:.*}", self._post)
        return app

    async def _truth(self, request: web.Request) -> web.Response:
        return web.json_response({"attempts": self.attempts})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.most_in_flight >= self.behaviour.together:
            self.gathered.set()
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        sent = await request.json()
        text = json.dumps(sent, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if request.headers.get("X-Client-Request-Id") == "probe":
            self.probes.append(sent)
            if self.behaviour.probe_faults:
                self.behaviour.probe_faults -= 1
                return web.json_response(_fault("503")[1], status=503)
            status, body = self._refused(sent) or (200, self._counted(sent, reply(request.path, sent, key, None)[1]))
            return web.json_response(body, status=status)
        self.bodies.append(sent)
        self.headers.append(dict(request.headers))
        fault = self.random.choice(TRANSPORT) if self.random.random() < self.behaviour.faults else None
        scripted = self._scripted(text)
        fault, odd = scripted.get("fault", fault), scripted.get("odd", odd_of(key, self.behaviour.odd))
        attempt = {
            "id": request.headers.get("X-Client-Request-Id"), "key": key, "fault": fault, "odd": odd,
            "billed": fault in (None, *BILLED), "delivered": False, "at": time.monotonic(),
        }  # fmt: skip
        self.attempts.append(attempt)
        await asyncio.sleep(scripted.get("after", 0.0))
        if "body" in scripted:
            status = scripted.get("status", 200)
            attempt["billed"] = status == 200
            return await self._send(request, attempt, status, scripted["body"], scripted.get("headers", {}))
        for name in self.behaviour.refuses:
            if name in text:
                attempt["billed"] = False
                error = {"message": f"Unsupported parameter: '{name}' is not supported with this model.", "param": name}
                body = {"error": error | {"type": "invalid_request_error", "code": "unsupported_parameter"}}
                return await self._send(request, attempt, 400, body, {})
        if refused := self._refused(sent):
            attempt["billed"] = False
            return await self._send(request, attempt, *refused, {})
        await asyncio.sleep(self.behaviour.latency)
        if self.behaviour.together:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.gathered.wait(), HANG)
        if fault is not None and fault[0].isdigit():
            return await self._send(request, attempt, *_fault(fault))
        status, body = reply(request.path, sent, key, odd)
        attempt["billed"] = status == 200
        body = self._counted(sent, body)
        return await self._travel(request, attempt, status, body, fault)

    def _refused(self, sent: dict[str, Any]) -> tuple[int, Any] | None:
        """vLLM's answer to a video of frames that it does not take."""
        given = sent.get("media_io_kwargs")
        if given and not self.behaviour.trusts:
            return 400, {"error": {"message": UNTRUSTED, "type": "BadRequestError", "param": "media_io_kwargs"}}
        times = given["video"]["frames_indices"] if given and self.behaviour.reads_times else None
        if times is not None and len(times) != (frames := len(_pictures(sent))):
            message = f"frames_indices length ({len(times)}) must match number of frames sent ({frames})"
            return 400, {"error": {"message": message, "type": "BadRequestError", "param": None}}
        return None

    def _counted(self, sent: dict[str, Any], body: Any) -> Any:
        """A reply with the tokens of a prompt that has a video of frames: 800, and 50 a pair of frames of 32 x 32."""
        pictures = _pictures(sent)
        if not pictures or "usage" not in body:
            return body
        if not self.behaviour.usage:
            return {key: value for key, value in body.items() if key != "usage"}
        shown = min(len(pictures), self.behaviour.most_frames or len(pictures))
        width, height = Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size
        scale = min(1.0, (self.behaviour.pixels or math.inf) / (shown * width * height))
        tokens = 800 + math.ceil(shown / 2) * round(50 * width * height * scale / 1024)
        return body | {"usage": body["usage"] | {"prompt_tokens": tokens, "total_tokens": tokens + 20}}

    def _scripted(self, text: str) -> dict[str, Any]:
        """The script's entry for a request; empty where it has none."""
        for entry in self.behaviour.script:
            if entry.get("of", "") in text and entry.get("times", 1) > 0:
                entry["times"] = entry.get("times", 1) - 1
                return entry
        return {}

    async def _travel(
        self, request: web.Request, attempt: dict[str, Any], status: int, body: Any, fault: str | None
    ) -> web.StreamResponse:
        if fault == "hang":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), HANG)
        text = json.dumps(body)
        if fault == "truncated":
            return await self._send(request, attempt | {}, status, text[: len(text) // 2], {})
        if fault == "twice" and request.transport:
            head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            request.transport.write((head + text).encode())
        if fault == "drop" and request.transport:
            request.transport.abort()
        if fault == "reset":
            response = web.StreamResponse(status=status, headers={"Content-Length": str(len(text))})
            await response.prepare(request)
            await response.write(text[: len(text) // 2].encode())
            if request.transport:
                request.transport.abort()
            return response
        return await self._send(request, attempt, status, body, {})

    async def _send(
        self, request: web.Request, attempt: dict[str, Any], status: int, body: Any, headers: dict[str, str]
    ) -> web.StreamResponse:
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        key = request.headers.get("Authorization") or request.headers.get("x-goog-api-key") or ""
        text = text.replace("$KEY", key.removeprefix("Bearer ")).encode() if isinstance(text, str) else text
        gone = request.transport is None or request.transport.is_closing()
        response = web.Response(status=status, body=text, headers=headers, content_type="application/json")
        attempt["delivered"] = not gone
        return response


def _fault(fault: str) -> tuple[int, Any, dict[str, str]]:
    status = int(fault[:3])
    headers = {"Retry-After": "0.05"} if fault == "429-after" else {}
    if fault == "502-page":
        return status, "<html><h1>502 Bad Gateway</h1></html>", headers
    error = {"message": f"a fault of the server: {fault}", "type": "server_error", "code": None, "param": None}
    return status, {"error": error | {"status": "UNAVAILABLE"}}, headers


def _pictures(sent: dict[str, Any]) -> list[str]:
    """The pictures, base64, of a request's video of frames; empty where it has none."""
    for message in sent.get("messages", ()):
        for part in message["content"] if isinstance(message["content"], list) else ():
            url = part.get("video_url", {}).get("url", "")
            if url.startswith("data:video/jpeg;base64,"):
                return url.split(",")[1:]
    return []


def odd_of(key: str, share: float) -> str | None:
    """The odd form of an answer, or None, by its request alone."""
    drawn = random.Random(key)
    return drawn.choice(ODD) if drawn.random() < share else None


def meant(key: str) -> str:
    """The server's verdict on a request's clip."""
    return "Accept" if int(key, 16) % 2 else "Reject"


def reply(path: str, sent: dict[str, Any], key: str, odd: str | None) -> tuple[int, Any]:
    """Status and body of the answer to a request."""
    word = meant(key)
    if path.endswith("/chat/completions"):
        return _completion(sent, key, word, odd)
    if path.endswith("/decisions") and isinstance(sent["questions"], list):
        probability = 0.9 if word == "Accept" else 0.2
        answers = [{"type": "predicate", "name": q.get("name"), "probability": probability} for q in sent["questions"]]
        if odd == EMPTY:
            answers = []
        elif odd in NULL:
            answers = [{"type": "refusal", "name": q.get("name")} for q in sent["questions"]]
        usage = {
            "input_tokens": 900, "output_tokens": 0, "total_tokens": 900,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        return 200, {"id": key, "model": "gpt-6-luna", "answers": answers, "usage": usage}
    if path.endswith(":generateContent"):
        return _candidate(path, key, word, odd)
    if path.endswith("/decisions"):
        if odd in NULL:
            return 200, {"prompt_feedback": {"block_reason": "safety"}, "key": key}
        noul = {"type": "noul", "noul": 0.9 if word == "Accept" else 0.2, "confidence": 0.9}
        usage = {"total_input_tokens": 900, "total_output_tokens": 0, "total_tokens": 900}
        by_question = {} if odd == EMPTY else dict.fromkeys(sent["questions"], noul)
        return 200, {"answers": by_question, "usage": usage, "key": key}
    return 404, {"error": {"message": f"no such path {path}", "type": "invalid_request_error"}}


UNTRUSTED = (
    "Per-request media_io_kwargs are disabled by default because they can change multimodal media loading resource "
    "usage. Start the server with --trust-request-mm-kwargs only when clients are trusted."
)
TEXTS = {
    "dotted": "{word}.",
    "bare": " {lower}\n",
    "both": "One could accept it, but I would rather reject it.",
    "foreign": "Das Video ist leider nicht in Ordnung.",
    "shape": '{{"verdict": "{word}"}}',
}


def _completion(sent: dict[str, Any], key: str, word: str, odd: str | None) -> tuple[int, Any]:
    if odd == "policy":
        error = {"message": "The clip was turned down.", "type": "invalid_request_error", "param": None}
        return 400, {"error": error | {"code": "content_policy_violation"}}
    structured = "response_format" in sent
    text = json.dumps({"answer": word, "reason": "as the hash says"}) if structured else word
    if odd in TEXTS:
        text = TEXTS[odd].format(word=word, lower=word.lower())
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    if odd == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
    if odd == "filtered":
        message["content"], choice["finish_reason"] = "", "content_filter"
    if sent.get("logprobs") and odd is None:
        choice["logprobs"] = {"content": _tokens(text, word)}
    choices = [] if odd == EMPTY else [choice]
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}
    return 200, {
        "id": f"chatcmpl-{key}", "object": "chat.completion", "created": 0, "model": f"{sent['model']}-2026-10-01",
        "choices": choices, "usage": usage | {"prompt_tokens_details": {"cached_tokens": 400}},
    }  # fmt: skip


def _candidate(path: str, key: str, word: str, odd: str | None) -> tuple[int, Any]:
    text = json.dumps({"answer": word, "reason": "as the hash says"})
    if odd in TEXTS:
        text = TEXTS[odd].format(word=word, lower=word.lower())
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}
    if odd in ("refusal", "filtered"):
        candidate = {"finishReason": "SAFETY" if odd == "filtered" else "PROHIBITED_CONTENT"}
    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 20, "thoughtsTokenCount": 30, "totalTokenCount": 1050}
    body: dict[str, Any] = {
        "usageMetadata": usage,
        "modelVersion": path.rsplit("/", 1)[1].partition(":")[0],
        "key": key,
    }
    if odd == "policy":
        return 200, body | {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    return 200, body | {"candidates": [] if odd == EMPTY else [candidate]}


def _tokens(text: str, word: str) -> list[dict[str, Any]]:
    """A reply's tokens: the answer word as two, the texts before and after it as one each."""
    before, _, after = text.partition(word)
    other = "Rej" if word == "Accept" else "Acc"
    top = [{"token": word[:3], "logprob": -0.2231436}, {"token": other, "logprob": -2.3025851}]
    first = {"token": word[:3], "logprob": -0.2231436, "top_logprobs": top}
    rest = [{"token": part, "logprob": 0.0, "top_logprobs": []} for part in (word[3:], after) if part]
    lead = [{"token": before, "logprob": 0.0, "top_logprobs": []}] if before else []
    return [*lead, first, *rest]


@contextlib.contextmanager
def serving(behaviour: Behaviour | None = None, port: int = 0, kind: type[Server] = Server) -> Iterator[Any]:
    """A server in a thread of this process; `base` is its URL."""
    server, loop, ready = kind(behaviour or Behaviour()), asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(server.app(), handler_cancellation=False, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        server.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(server.closing.set)
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


if __name__ == "__main__":
    given = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    with serving(Behaviour(**given), int(sys.argv[1])) as running:
        sys.stderr.write(f"serving at {running.base}\n")
        threading.Event().wait()
