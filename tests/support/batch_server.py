"""The batch endpoints of OpenAI and Gemini beside a provider's others, with files, listings and uploads, in memory."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.faulty_provider import EMPTY, Behaviour, Server, reply

PAGE = 2  # batches that one page of a listing holds
OURS = "label_batch"  # OpenAI's metadata key for our token


@dataclass
class ServerBatch:
    """One batch that arrived."""

    id: str
    token: str
    lines: list[dict[str, Any]]
    state: str
    looks: int  # that are still answered with "in progress"
    output: str | None = None  # the file with its answers


@dataclass
class BatchBehaviour:
    """What the server does with batches; changed by tests."""

    looks: int = 1  # that find a batch in progress
    end: str = "completed"  # completed | expired | failed | cancelled
    answers: int | None = None  # lines that are answered before it ends; None: all
    spoiled: tuple[str, ...] = ()  # texts of lines that the provider fails
    empty: tuple[str, ...] = ()  # texts of lines that are answered without a word
    # Faults of requests: `of`, a part of "METHOD /path"; `status`, or None for a dropped connection; `headers`; `page`:
    # whether the error is a page and not JSON; `after`: whether the request has its effect all the same; `times`, 1 by
    # default.
    script: list[dict[str, Any]] = field(default_factory=list)


def as_sent(body: dict[str, Any]) -> str:
    """A call's body as text, with one field spelled as the SDK spells it in single calls; the API takes both."""
    return json.dumps(body, sort_keys=True).replace('"mimeType": "v', '"mime_type": "v')


class BatchServer(Server):
    """One server's files and batches."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(behaviour)
        self.plan = BatchBehaviour()
        self.files: dict[str, bytes] = {}
        self.batches: list[ServerBatch] = [
            ServerBatch(f"batch-{n}", f"somebody's {n}", [], "completed", 0) for n in range(3)
        ]
        self.uploads: dict[str, bytes] = {}
        self.calls: list[str] = []  # "METHOD /path" of everything but single calls

    @property
    def ours(self) -> list[ServerBatch]:
        return self.batches[3:]

    def lines(self) -> list[dict[str, Any]]:
        """The bodies of all calls that came in batches."""
        return [line.get("body") or line["request"] for batch in self.ours for line in batch.lines]

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**28, middlewares=[self._disturb])
        add = app.router.add_route
        add("POST", "/v1/files", self._openai_file)
        add("GET", "/v1/files/{name}/content", self._download)
        add("POST", "/v1/batches", self._openai_create)
        add("GET", "/v1/batches", self._openai_list)
        add("GET", "/v1/batches/{name}", self._get)
        add("POST", "/upload/v1beta/files", self._gemini_start)
        add("POST", "/uploading/{name}", self._gemini_upload)
        add("GET", "/v1beta/files/{name}:download", self._download)
        add("POST", "/v1beta/models/{model}:batchGenerateContent", self._gemini_create)
        add("GET", "/v1beta/batches", self._gemini_list)
        add("GET", "/v1beta/batches/{name}", self._get)
        add("POST", "/{path:.*}", self._post)
        return app

    @web.middleware
    async def _disturb(self, request: web.Request, handler: Any) -> web.StreamResponse:
        call = f"{request.method} {request.path}"
        if handler.__func__ is not Server._post:
            self.calls.append(call)
        for fault in self.plan.script:
            if fault["of"] in call and fault.get("times", 1) > 0:
                fault["times"] = fault.get("times", 1) - 1
                if fault.get("after"):
                    await handler(request)
                if fault["status"] is None and request.transport:
                    request.transport.abort()
                error = {"message": f"scripted status {fault['status']}", "code": None, "type": "t", "status": "T"}
                status = fault["status"] or 500
                if fault.get("page"):
                    return web.Response(status=status, text="<html>no</html>", content_type="text/html")
                return web.json_response({"error": error}, status=status, headers=fault.get("headers"))
        return await handler(request)

    # OpenAI's

    async def _openai_file(self, request: web.Request) -> web.Response:
        sent = await request.post()
        assert sent["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = sent["file"].file.read()  # type: ignore[union-attr]
        facts = {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 0, "filename": "f"}
        return web.json_response(facts | {"purpose": "batch", "status": "processed"})

    async def _openai_create(self, request: web.Request) -> web.Response:
        sent = await request.json()
        assert (sent["endpoint"], sent["completion_window"]) == ("/v1/chat/completions", "24h")
        return web.json_response(self._as_openai(self._take(sent["metadata"][OURS], sent["input_file_id"])))

    async def _openai_list(self, request: web.Request) -> web.Response:
        newest = self.batches[::-1]
        after = [batch.id for batch in newest].index(request.query["after"]) + 1 if "after" in request.query else 0
        page = newest[after : after + PAGE]
        more = after + PAGE < len(newest)
        return web.json_response({"object": "list", "data": [self._as_openai(one) for one in page], "has_more": more})

    def _as_openai(self, batch: ServerBatch) -> dict[str, Any]:
        error = {"code": "x", "message": "the file is no JSONL", "line": 7, "param": None}
        failed = {"object": "list", "data": [error]}
        return {
            "id": batch.id, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file",
            "completion_window": "24h", "created_at": 0, "status": batch.state, "metadata": {OURS: batch.token},
            "output_file_id": batch.output, "errors": failed if batch.state == "failed" else None,
        }  # fmt: skip

    # Gemini's

    async def _gemini_start(self, request: web.Request) -> web.Response:
        assert request.headers["X-Goog-Upload-Command"] == "start"
        assert request.headers["X-Goog-Upload-Header-Content-Type"] == "jsonl"
        name = f"up-{len(self.uploads)}"
        self.uploads[name] = b""
        return web.json_response({}, headers={"X-Goog-Upload-URL": f"{self.base}/uploading/{name}"})

    async def _gemini_upload(self, request: web.Request) -> web.Response:
        name, commands = request.match_info["name"], request.headers["X-Goog-Upload-Command"]
        assert int(request.headers["X-Goog-Upload-Offset"]) == len(self.uploads[name])
        self.uploads[name] += await request.read()
        if "finalize" not in commands:
            return web.json_response({}, headers={"X-Goog-Upload-Status": "active"})
        self.files[name] = self.uploads[name]
        return web.json_response({"file": {"name": f"files/{name}"}}, headers={"X-Goog-Upload-Status": "final"})

    async def _gemini_create(self, request: web.Request) -> web.Response:
        batch = (await request.json())["batch"]
        name = batch["inputConfig"]["fileName"].removeprefix("files/")
        return web.json_response(self._as_gemini(self._take(batch["displayName"], name)))

    async def _gemini_list(self, request: web.Request) -> web.Response:
        start = int(request.query.get("pageToken", "0"))
        page = [self._as_gemini(one) for one in self.batches[::-1][start : start + PAGE]]
        more = {"nextPageToken": str(start + PAGE)} if start + PAGE < len(self.batches) else {}
        return web.json_response({"operations": page} | more)

    def _as_gemini(self, batch: ServerBatch) -> dict[str, Any]:
        states = {"completed": "SUCCEEDED", "in_progress": "RUNNING"}
        state = f"BATCH_STATE_{states.get(batch.state, batch.state.upper())}"
        metadata: dict[str, Any] = {"displayName": batch.token, "state": state, "model": "models/m"}
        if batch.output:
            metadata["output"] = {"responsesFile": f"files/{batch.output}"}
        return {"name": f"batches/{batch.id}", "metadata": metadata}

    # Both

    def _take(self, token: str, file: str) -> ServerBatch:
        lines = [json.loads(line) for line in self.files[file].splitlines()]
        batch = ServerBatch(f"batch-{len(self.batches)}", token, lines, "in_progress", self.plan.looks)
        self.batches.append(batch)
        return batch

    async def _get(self, request: web.Request) -> web.Response:
        batch = next(one for one in self.batches if one.id == request.match_info["name"])
        if batch.state == "in_progress":
            if batch.looks == 0:
                self._end(batch)
            batch.looks -= 1
        openai = request.path.startswith("/v1/")
        return web.json_response(self._as_openai(batch) if openai else self._as_gemini(batch))

    def _end(self, batch: ServerBatch) -> None:
        batch.state = self.plan.end
        if batch.state == "failed":
            return
        answers = [self._answer_line(line) for line in batch.lines[: self.plan.answers]]
        if answers:
            batch.output = f"out-{batch.id}"
            # In another order than they came in, as providers do.
            self.files[batch.output] = "".join(json.dumps(line) + "\n" for line in answers[::-1]).encode()

    def _answer_line(self, line: dict[str, Any]) -> dict[str, Any]:
        sent = line.get("body") or line["request"]
        text = as_sent(sent)
        spoiled = any(one in text for one in self.plan.spoiled)
        path = line.get("url") or "/v1beta/models/m:generateContent"
        _, body = reply(path, sent, hashlib.sha256(text.encode()).hexdigest()[:16], None)
        if any(one in text for one in self.plan.empty):
            _, body = reply(path, sent, "0", EMPTY)
        if "key" in line:
            return {"key": line["key"]} | ({"error": {"code": 13, "message": "x"}} if spoiled else {"response": body})
        status, body = (500, {"error": {"message": "x"}}) if spoiled else (200, body)
        response = {"status_code": status, "request_id": "r", "body": body}
        return {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}

    async def _download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]])
