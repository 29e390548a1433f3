"""A local server that takes commits as the Hugging Face Hub does, all files in the commit itself."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub(ThreadingHTTPServer):
    """One dataset repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.tokens: set[str | None] = set()
        self.commits = 0
        self.refuses = False  # answers 403 to everything

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        tree = [{"type": "file", "path": path, "size": len(of), "oid": "0"} for path, of in self.server.files.items()]
        self._reply(tree)

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._reply({"url": f"{hub.url}/datasets/{hub.created[-1]['organization']}/{hub.created[-1]['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            self._reply({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                self._apply(line["key"], line["value"])
            hub.commits += 1
            self._reply({"commitUrl": f"{hub.url}/datasets/a/b/commit/1", "commitOid": "1"})
        else:  # the check of a card's header
            self._reply({"errors": [], "warnings": []})

    def _apply(self, key: str, value: dict) -> None:
        if key == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "deletedFile":
            del self.server.files[value["path"]]

    def _reply(self, document: object) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        body = json.dumps({"error": "not yours"} if self.server.refuses else document).encode()
        self.send_response(403 if self.server.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
