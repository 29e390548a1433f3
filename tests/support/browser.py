"""Headless Chromium for tests that press real keys on a real page, driven by Playwright.

The browser is the machine's own; nothing is downloaded.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844}  # pixels


@contextlib.contextmanager
def running_chromium() -> Iterator[Browser]:
    """A browser that ends with the block.

    While it lives, asyncio.run() fails in this thread, because Playwright's own loop runs there.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def wait_until(tab: Page, expression: str, seconds: float = 30.0) -> None:
    """Wait until a JavaScript expression is true.

    Page.wait_for_function evaluates a text inside the page, which the rating page's content security policy forbids.
    """
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        if time.monotonic() > end:
            raise TimeoutError(f"{expression} after {seconds:g} s; the page reads {tab.inner_text('body')}")
        tab.wait_for_timeout(20)
