"""Headless Chromium for tests that press real keys on a real page, driven through its DevTools pipe."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
needs_chromium = pytest.mark.skipif(
    not Path(CHROMIUM).is_file(), reason="no chromium; `apt-get install chromium` brings it"
)
# Chromium reads commands from descriptor 3 and answers on 4, where subprocess cannot put a pipe by itself.
LAUNCH = (
    "import os, sys; read, write = map(int, sys.argv[1:3]); os.dup2(read, 3); os.dup2(write, 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"Backspace": 8}  # windowsVirtualKeyCode of keys that type nothing


class Tab:
    """One page of a browser."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies, self._buffer, self._next, self._session = commands, replies, b"", 0, None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def press(self, key: str) -> None:
        """Press and release a key: a character, or a name of KEYS."""
        code = KEYS.get(key) or ord(key.upper())
        typed = {} if key in KEYS else {"text": key}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **typed)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def hover(self, selector: str) -> None:
        """Move the mouse over an element."""
        x, y = self._middle(selector)
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Press and release the mouse on an element."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """Touch an element with a finger."""
        x, y = self._middle(selector)
        self._call("Emulation.setTouchEmulationEnabled", enabled=True)
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of an element in the view, in pixels."""
        places = self.value(
            f"(box => [box.left, box.top, box.right, box.bottom])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return tuple(places)

    def value(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise ValueError(f"{expression}: {found['exceptionDetails']['exception']['description']}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 30.0) -> None:
        """Until a JavaScript expression is true."""
        until = time.monotonic() + seconds
        while not self.value(expression):
            if time.monotonic() > until:
                raise TimeoutError(
                    f"{expression} after {seconds} s; the page says {self.value('document.body.innerText')}"
                )
            time.sleep(0.02)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _middle(self, selector: str) -> tuple[float, float]:
        left, top, right, bottom = self.box(selector)
        return (left + right) / 2, (top + bottom) / 2

    def _call(self, method: str, **params: Any) -> dict:
        self._next += 1
        command = {"id": self._next, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (reply := self._read()).get("id") != self._next:
            pass  # an event
        if "error" in reply:
            raise ValueError(f"{method}: {reply['error']}")
        return reply["result"]

    def _read(self) -> dict:
        while b"\0" not in self._buffer:
            if not (more := os.read(self._replies, 1 << 16)):
                raise EOFError("chromium ended")
            self._buffer += more
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """An empty page in a browser of its own, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        ends = [*os.pipe(), *os.pipe()]
        read, commands, replies, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
        options = (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        )  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(read), str(write), CHROMIUM, *options],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (*ends, read, write):
            os.close(end)
        try:
            yield Tab(commands, replies)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(commands)
            os.close(replies)
