"""The chat page of a server that takes keys, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import Watched, assert_accessible, chats, send, status, turn
from tests.conftest import RunningApp, environment
from threadkeep.api_keys import new_key

KEY, ENTRY = new_key("ann")


@pytest.fixture
def running_app(tmp_path: Path) -> Iterator[RunningApp]:
    """A server that takes a key of Ann's."""
    place = environment(f"sqlite:///{tmp_path}/threadkeep.db", THREADKEEP_API_KEYS=ENTRY)
    app = RunningApp(place)
    yield app
    app.model.go_on.set()
    app.stop()


def test_the_page_asks_for_a_key(watched: tuple[Page, Watched], running_app: RunningApp) -> None:
    """Until the server knows it; kept for the tab, sent with each call, and given up."""
    page, seen = watched
    page.goto(running_app.url)
    dialog = page.get_by_role("dialog", name="Sign in")
    expect(dialog).to_be_visible()
    assert_accessible(page)
    page.keyboard.press("Escape")
    for wrong, said in (("k\u00e9y", "This is no key."), ("tk_wrong", "know this key")):
        dialog.get_by_label("Your key").fill(wrong)
        dialog.get_by_role("button", name="Sign in").click()
        expect(dialog.get_by_role("alert")).to_contain_text(said)
    dialog.get_by_label("Your key").fill(f" {KEY} ")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    turn(page, "say One.")
    expect(page.locator(".text")).to_have_text("One.")
    send(page, "hold")
    expect(page.locator(".text").last).to_have_text("Holding")
    page.reload()
    expect(page.locator(".text").last).to_have_text("Holding")
    assert_accessible(page)
    running_app.model.go_on.set()
    expect(status(page)).to_have_text("Answer finished.")
    expect(page.locator(".text").last).to_have_text("Holding no more.")
    calls = [r for r in seen.requests if "/responses" in r.url or "/sessions" in r.url]
    with_key = [r for r in calls if r.headers.get("authorization") == f"Bearer {KEY}"]
    assert any("stream=true" in r.url for r in with_key)
    assert not any(KEY in r.url for r in seen.requests)
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    page.get_by_role("button", name="Sign out").click()
    expect(dialog).to_be_visible()
    expect(chats(page)).to_have_count(0)
    assert page.evaluate("sessionStorage.length") == 0
