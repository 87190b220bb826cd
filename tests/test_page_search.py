"""Chats found on the page."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser import PHONE, assert_accessible, chats, status, turn
from tests.conftest import RunningApp


def test_a_chat_is_found_and_opened(page: Page, running_app: RunningApp) -> None:
    """By what was said in it, with the passage; Escape gives the list back."""
    turn(page, "say My favourite <b>sushi</b> place is Kiku.")
    page.get_by_role("link", name="New chat").first.click()
    turn(page, "say Hello")
    field = page.get_by_role("searchbox", name="Search chats")
    found = page.get_by_role("navigation", name="Chats found").get_by_role("link")
    field.press_sequentially("kiku sus")
    expect(found).to_have_count(1)
    expect(found.locator("small")).to_have_text("My favourite <b>sushi</b> place is Kiku.")
    expect(found.locator("mark")).to_have_text(["sushi", "Kiku"])
    expect(status(page)).to_have_text("1 found.")
    expect(chats(page)).to_have_count(0)
    assert_accessible(page)
    found.click()
    expect(page.locator(".bubble")).to_have_text(["say My favourite <b>sushi</b> place is Kiku."])
    field.fill("zebra")
    expect(page.get_by_text("Nothing found.")).to_be_visible()
    field.press("Escape")
    expect(chats(page)).to_have_count(2)
    expect(field).to_have_value("")
    page.set_viewport_size(PHONE)
    page.get_by_role("button", name="Show sidebar").click()
    field.press_sequentially("kiku")
    found.click()
    expect(found).to_be_hidden()
    expect(page.locator(".text")).to_have_text(["My favourite <b>sushi</b> place is Kiku."])
