"""The chat page in a real browser, for tests.

Every test fails, too, when the page logs an error, breaks its Content Security Policy or asks any
other host for anything (`Watched`; the fixtures are in conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # has no types
from playwright.sync_api import (
    Browser,
    Locator,
    Page,
    Request,
    ViewportSize,
    expect,
    sync_playwright,
)

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=20_000)  # the machine may be at work on other tests

DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, started."""
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing. apt-get install -y chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """What a page did that it must not do."""

    def __init__(self, page: Page, origin: str) -> None:
        self.problems: list[str] = []
        self.requests: list[Request] = []
        self._origin = origin
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self._logged(message.type, message.text))
        page.on("request", self._asked)
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (event) =>"
            " console.error(`CSP ${event.violatedDirective} ${event.blockedURI}`))"
        )

    def _logged(self, kind: str, text: str) -> None:
        # Chromium logs every status of 400 and above, those the page handles too.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.problems.append(text)

    def _asked(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((self._origin, "data:")):
            self.problems.append(request.url)


def send(page: Page, text: str) -> None:
    """Sends a message."""
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("textbox", name="Message").press("Enter")


def turn(page: Page, text: str) -> None:
    """Sends a message and waits for the whole answer."""
    send(page, text)
    expect(status(page)).to_have_text("Answer finished.")


def status(page: Page) -> Locator:
    """What was said last to screen readers."""
    return page.locator("#status")


def chats(page: Page) -> Locator:
    """The list of chats."""
    return page.get_by_role("navigation", name="Past chats").get_by_role("link")


def assert_accessible(page: Page) -> None:
    """Axe finds nothing."""
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
