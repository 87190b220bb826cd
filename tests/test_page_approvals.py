"""Tool calls that wait for a person, decided on the chat page in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from playwright.sync_api import Locator, Page, expect

from tests.browser import PHONE, Watched, assert_accessible, chats, send, status, turn
from tests.conftest import RunningApp, environment
from tests.workshop import Workshop

DECIDED = "This was decided before, and a decision can't be taken back."
GONE = "The session has gone on, or the turn was cancelled, so it can't be taken up again."
HOSTILE = "<img src=x onerror='window.pwned = 1'><script>window.pwned = 2</script>"


@pytest.fixture
def shop() -> Workshop:
    """The tools of the server."""
    return Workshop()


@function_tool(needs_approval=True)
async def send_mail(to: str, body: str) -> str:
    """Sends a mail."""
    return f"sent to {to}"


@pytest.fixture
def running_app(tmp_path: Path, shop: Workshop) -> Iterator[RunningApp]:
    """A server whose agent has tools that need approval."""
    place = environment(f"sqlite:///{tmp_path}/threadkeep.db")
    app = RunningApp(place, tools=[*shop.tools(), send_mail])
    yield app
    shop.go_on.set()
    app.model.go_on.set()
    app.stop()


def card(page: Page, name: str) -> Locator:
    """The card of a tool's call."""
    return page.get_by_role("group", name=re.compile(rf"\b{name}\b")).and_(
        page.locator(".approval")
    )


def approve(card: Locator) -> None:
    card.get_by_role("button", name="Approve").click()


def decline(card: Locator, reason: str = "") -> None:
    card.get_by_role("textbox", name="Why not").fill(reason)
    card.get_by_role("button", name="Decline").click()


def verdict(card: Locator) -> Locator:
    return card.locator(".verdict")


def steps(page: Page) -> Locator:
    """What the agent did, by the names of the tools."""
    return page.locator("details.step .name")


def outputs(page: Page) -> Locator:
    """What the tools said."""
    return page.locator("details.step [data-label=Output] pre")


def finished(page: Page, text: str) -> None:
    """The answer has come to its end, and the next message can be sent."""
    expect(status(page)).to_have_text("Answer finished.")
    expect(page.locator(".text")).to_have_text(text)
    expect(page.get_by_role("button", name="Send message")).to_be_visible()


def pending(page: Page, running_app: RunningApp) -> list[str]:
    """The ids of what waits, as any other client sees them."""
    listed = page.request.get(f"{running_app.url}/approvals", params={"status": "pending"})
    return [approval["id"] for approval in listed.json()["data"]]


def decide_elsewhere(
    page: Page, running_app: RunningApp, approval_id: str, **decision: Any
) -> None:
    url = f"{running_app.url}/approvals/{approval_id}"
    assert page.request.post(url, data=decision).ok


def test_an_approved_call_is_made_and_the_answer_goes_on_below(page: Page, shop: Workshop) -> None:
    """In the turn that asked; the card says what was decided, and the composer that it goes on."""
    send(page, "use note; use pay; use work; say done")
    asked = card(page, "pay")
    expect(asked).to_contain_text("Assistant asks to call pay.")
    expect(status(page)).to_have_text("Assistant asks to call pay.")
    expect(outputs(page)).to_have_text(["note 1"])
    expect(page.get_by_role("button", name="Send message")).to_be_visible()
    approve(asked)
    expect(verdict(asked)).to_have_text("Approved")
    expect(asked.get_by_role("button")).to_have_count(0)
    shop.until_begun("work")
    expect(page.get_by_role("button", name="Stop answering")).to_be_enabled()
    shop.go_on.set()
    finished(page, "done")
    expect(steps(page)).to_have_text(["note", "pay", "work"])
    expect(outputs(page)).to_have_text(["note 1", "pay 1", "work 1"])
    expect(page.locator(".approvals ~ .text")).to_have_text("done")
    expect(page.locator(".bubble")).to_have_count(1)
    assert shop.done == {"note": 1, "pay": 1, "work": 1}


def test_the_model_is_told_why_a_call_was_declined(
    page: Page, running_app: RunningApp, shop: Workshop
) -> None:
    """In the words that were typed; Enter in their field declines."""
    send(page, "use pay; say done")
    reason = card(page, "pay").get_by_role("textbox", name="Why not")
    reason.fill("too expensive")
    reason.press("Enter")
    expect(verdict(card(page, "pay"))).to_have_text("Declined: too expensive")
    finished(page, "done")
    expect(outputs(page)).to_have_text("too expensive")
    assert running_app.model.inputs[-1][-1]["output"] == "too expensive"
    assert shop.done == {}


def test_each_call_is_decided_by_itself(page: Page, shop: Workshop) -> None:
    """The turn goes on with the last one; what waits has the focus of whoever uses the keyboard."""
    send(page, "use pay lend note; say done")
    approve_lend = card(page, "lend").get_by_role("button", name="Approve")
    approve_lend.focus()
    approve_lend.press("Enter")
    expect(verdict(card(page, "lend"))).to_have_text("Approved")
    expect(status(page)).to_have_text("Approved. Assistant asks to call pay.")
    expect(card(page, "pay")).to_be_focused()
    expect(outputs(page)).to_have_text(["note 1"])
    assert shop.done == {"note": 1}
    decline(card(page, "pay"))
    expect(verdict(card(page, "pay"))).to_have_text("Declined")
    finished(page, "done")
    expect(steps(page)).to_have_text(["pay", "lend", "note"])
    assert shop.done == {"note": 1, "lend": 1}


def test_a_double_click_decides_once(page: Page, shop: Workshop) -> None:
    """A decided card shrinks, and the next one may come under the pointer."""
    send(page, "use pay lend; say done")
    expect(card(page, "lend")).to_be_visible()
    card(page, "pay").get_by_role("button", name="Approve").click()
    expect(verdict(card(page, "pay"))).to_have_text("Approved")
    card(page, "lend").get_by_role("button", name="Approve").dispatch_event("click", {"detail": 2})
    card(page, "lend").get_by_role("button", name="Decline").dispatch_event("click", {"detail": 2})
    expect(card(page, "lend").locator("[inert]")).to_have_count(0)
    assert shop.done == {}
    approve(card(page, "lend"))
    finished(page, "done")
    assert shop.done == {"pay": 1, "lend": 1}


def test_a_tool_can_be_allowed_for_the_whole_conversation(page: Page, shop: Workshop) -> None:
    """Its other waiting calls are approved with it; the next time nobody is asked."""
    send(page, "use pay pay lend; say done")
    first, second = card(page, "pay").first, card(page, "pay").last
    first.get_by_role("checkbox", name="Always allow pay in this conversation").check()
    approve(first)
    expect(verdict(first)).to_have_text("Approved for this whole conversation")
    expect(verdict(second)).to_have_text("Approved for this whole conversation")
    expect(page.get_by_role("button", name="Send message")).to_be_visible()
    decline(card(page, "lend"))
    finished(page, "done")
    send(page, "use pay; say again")
    expect(page.locator(".text").last).to_have_text("again")
    expect(page.locator(".approval")).to_have_count(3)
    assert shop.done == {"pay": 3}


@pytest.mark.parametrize("way", ["reload", "restart", "restart and reload"])
def test_what_waits_outlives_the_page_and_the_server(
    page: Page, running_app: RunningApp, shop: Workshop, way: str
) -> None:
    """What was decided before, too; stored placeholders for the calls are not shown."""
    send(page, "use note; use pay lend; say done")
    decline(card(page, "pay"), "not now")
    expect(verdict(card(page, "pay"))).to_have_text("Declined: not now")
    if "restart" in way:
        running_app.restart()
    if "reload" in way:
        page.reload()
    expect(verdict(card(page, "pay"))).to_have_text("Declined: not now")
    expect(outputs(page)).to_have_text(["note 1"])
    approve(card(page, "lend"))
    finished(page, "done")
    expect(steps(page)).to_have_text(["note", "pay", "lend"])
    expect(outputs(page)).to_have_text(["note 1", "not now", "lend 1"])
    page.reload()
    expect(outputs(page)).to_have_text(["note 1", "not now", "lend 1"])
    expect(page.locator(".approval")).to_have_count(0)
    assert shop.done == {"note": 1, "lend": 1}


def test_a_reload_while_the_turn_goes_on_shows_all_of_it(page: Page, shop: Workshop) -> None:
    """What was done before it stopped comes from the session, the rest with the run's events."""
    send(page, "use note; use pay; use note work; say done")
    approve(card(page, "pay"))
    shop.until_begun("work")
    page.reload()
    expect(steps(page)).to_have_text(["note", "pay", "note", "work"])
    expect(outputs(page).nth(1)).to_have_text("pay 1")
    expect(page.get_by_role("button", name="Stop answering")).to_be_enabled()
    shop.go_on.set()
    finished(page, "done")
    expect(steps(page)).to_have_text(["note", "pay", "note", "work"])
    expect(outputs(page)).to_have_text(["note 1", "pay 1", "note 2", "work 1"])


def test_a_turn_can_stop_twice(page: Page, shop: Workshop) -> None:
    """Each time with cards of its own, also when the page came in between."""
    send(page, "use pay; use lend; say done")
    approve(card(page, "pay"))
    expect(card(page, "lend")).to_be_visible()
    page.reload()
    expect(outputs(page)).to_have_text(["pay 1"])
    approve(card(page, "lend"))
    finished(page, "done")
    expect(outputs(page)).to_have_text(["pay 1", "lend 1"])
    assert shop.done == {"pay": 1, "lend": 1}


@pytest.mark.parametrize(
    ("again", "reload"), [(True, True), (False, False)], ids=["again, reloaded", "not again"]
)
def test_a_call_in_doubt_is_run_again_or_not(
    page: Page, running_app: RunningApp, shop: Workshop, again: bool, reload: bool
) -> None:
    """The run says again what it had said before its server died, and the page shows it once."""
    send(page, "use note; use pay; use note work; say done")
    approve(card(page, "pay"))
    shop.until_begun("work")
    running_app.restart()
    doubt = card(page, "work")
    expect(doubt).to_contain_text("The call may have happened. Run it again?", timeout=20_000)
    expect(doubt.get_by_role("checkbox")).to_have_count(0)
    if reload:
        page.reload()
    expect(outputs(page)).to_have_text(["note 1", "pay 1", "note 2"])
    shop.go_on.set()
    doubt.get_by_role("button", name=re.compile("Run it again" if again else "Don.t$")).click()
    expect(verdict(doubt)).to_have_text("Run again" if again else "Not run again")
    finished(page, "done")
    expect(steps(page)).to_have_text(["note", "pay", "note", "work"])
    last = "work 1" if again else "outcome unknown"
    expect(outputs(page)).to_have_text(["note 1", "pay 1", "note 2", last])
    expect(page.locator("details.step ~ .approvals ~ .text")).to_have_text("done")


def test_a_new_message_closes_the_matter(page: Page, shop: Workshop) -> None:
    """It is allowed while a call waits; the card says that it was not decided."""
    send(page, "use pay; say done")
    expect(card(page, "pay")).to_be_visible()
    turn(page, "say else")
    expect(verdict(card(page, "pay"))).to_have_text("Not decided: you went on.")
    expect(card(page, "pay").get_by_role("button")).to_have_count(0)
    expect(page.locator(".text")).to_have_text("else")
    page.reload()
    expect(page.locator(".text")).to_have_text("else")
    expect(page.locator(".approval")).to_have_count(0)
    assert shop.done == {}


def test_a_message_that_is_not_sent_closes_nothing(page: Page, shop: Workshop) -> None:
    """The card can still be decided."""
    send(page, "use pay; say done")
    expect(card(page, "pay")).to_be_visible()
    page.route("**/responses", lambda route: route.abort(), times=1)
    send(page, "say else")
    expect(page.locator("#problem")).to_contain_text("Not sent.")
    approve(card(page, "pay"))
    finished(page, "done")
    assert shop.done == {"pay": 1}


def test_decided_elsewhere_first_the_card_says_so(
    page: Page, running_app: RunningApp, shop: Workshop
) -> None:
    """With the server's words and what was decided; the answer that came of it is shown."""
    send(page, "use pay; say done")
    expect(card(page, "pay")).to_be_visible()
    (approval_id,) = pending(page, running_app)
    decide_elsewhere(page, running_app, approval_id, approve=False, reason="by hand")
    approve(card(page, "pay"))
    expect(card(page, "pay").get_by_role("alert")).to_have_text(DECIDED)
    expect(verdict(card(page, "pay"))).to_have_text("Declined: by hand")
    finished(page, "done")
    assert shop.done == {}


def test_gone_on_elsewhere_the_card_says_so(
    page: Page, running_app: RunningApp, shop: Workshop
) -> None:
    """With the server's words, and the page shows what came instead."""
    send(page, "use pay; say done")
    expect(card(page, "pay")).to_be_visible()
    session_id = page.url.partition("=")[2]
    body = {"input": "say else", "custom_inputs": {"session_id": session_id}}
    assert page.request.post(f"{running_app.url}/responses", data=body).ok
    approve(card(page, "pay"))
    expect(card(page, "pay").get_by_role("alert")).to_have_text(GONE)
    expect(verdict(card(page, "pay"))).to_have_text("Not decided: the conversation went on.")
    expect(page.locator(".bubble")).to_have_text(["use pay; say done", "say else"])
    expect(page.locator(".text")).to_have_text("else")
    turn(page, "say on")
    assert shop.done == {}


def test_back_on_the_page_what_was_decided_elsewhere_is_seen(
    page: Page, running_app: RunningApp
) -> None:
    """In a tab that is looked at again, and in a chat that is opened again; nobody has to click."""
    send(page, "use pay lend; say done")
    expect(page.locator(".approval")).to_have_count(2)
    pay, lend = pending(page, running_app)
    decide_elsewhere(page, running_app, pay, approve=True)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(verdict(card(page, "pay"))).to_have_text("Approved")
    page.get_by_role("link", name="New chat", exact=True).click()
    chats(page).first.click()
    expect(verdict(card(page, "pay"))).to_have_text("Approved")
    decide_elsewhere(page, running_app, lend, approve=True)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    finished(page, "done")
    expect(outputs(page)).to_have_text(["pay 1", "lend 1"])


def test_a_decision_that_does_not_arrive_can_be_made_again(page: Page, shop: Workshop) -> None:
    """The card says what went wrong."""
    send(page, "use pay; say done")
    expect(card(page, "pay")).to_be_visible()
    page.route("**/approvals/*", lambda route: route.abort(), times=1)
    approve(card(page, "pay"))
    expect(card(page, "pay").get_by_role("alert")).to_contain_text("be reached.")
    approve(card(page, "pay"))
    expect(card(page, "pay").get_by_role("alert")).to_have_count(0)
    finished(page, "done")
    assert shop.done == {"pay": 1}


def test_an_answer_that_fails_after_a_decision_can_be_tried_again(
    page: Page, running_app: RunningApp, shop: Workshop
) -> None:
    """The approved call is not made twice for that, nor asked about again."""
    send(page, "use pay; stumble at last")
    approve(card(page, "pay"))
    retry = page.get_by_role("button", name="Retry")
    expect(retry).to_be_visible()
    running_app.model.go_on.set()
    retry.click()
    expect(page.locator(".text").last).to_have_text("at last")
    expect(page.locator(".bubble")).to_have_count(1)
    assert shop.done == {"pay": 1}


def test_a_long_turn_that_waits_is_shown_whole(page: Page, shop: Workshop) -> None:
    """Also what is on an older page of its items."""
    send(page, f"use {'note ' * 40}; use pay; say done")
    expect(card(page, "pay")).to_be_visible()
    page.reload()
    expect(steps(page)).to_have_count(41)
    expect(page.locator(".bubble")).to_have_count(1)
    approve(card(page, "pay"))
    finished(page, "done")
    expect(steps(page)).to_have_count(41)
    assert shop.done == {"note": 40, "pay": 1}


def test_what_is_asked_is_readable_and_never_html(
    page: Page, running_app: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments are set out line by line, long ones scroll, and they stay text."""
    arguments = {"to": HOSTILE, "body": "long words " * 500}
    call = function_call("send_mail", arguments, call_id="c1")
    model = ScriptedModel([[call], [assistant_message("Sent.")]])
    monkeypatch.setattr(running_app, "model", model)
    send(page, "Write to them")
    for _ in range(2):
        shown = card(page, "send_mail").get_by_role("group", name="Arguments of send_mail")
        expect(shown).to_contain_text(f'{{\n  "to": "{HOSTILE}",\n', use_inner_text=True)
        assert shown.evaluate("(pre) => pre.scrollHeight > pre.clientHeight")
        assert page.evaluate("window.pwned") is None
        assert card(page, "send_mail").locator("img, script").count() == 0
        page.reload()
    approve(card(page, "send_mail"))
    finished(page, "Sent.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_cards(page: Page, scheme: Any) -> None:
    """Open, decided and with a problem, on a desktop and on a phone, where nothing is cut off."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    send(page, "use pay lend; say done")
    expect(card(page, "lend")).to_be_visible()
    assert_accessible(page)
    page.route("**/approvals/*", lambda route: route.abort(), times=1)
    approve(card(page, "lend"))
    expect(card(page, "lend").get_by_role("alert")).to_be_visible()
    decline(card(page, "pay"), "no")
    expect(verdict(card(page, "pay"))).to_be_visible()
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    fits = "(card) => card.scrollWidth <= card.clientWidth"
    assert all(each.evaluate(fits) for each in page.locator(".approval").all())


def test_cards_come_with_a_part_of_the_page_of_its_own(
    watched: tuple[Page, Watched], running_app: RunningApp
) -> None:
    """It is loaded where something waits, and not before."""
    page, seen = watched

    def loaded() -> set[str]:
        names = {request.url.rpartition("/")[2] for request in seen.requests}
        return names & {"approvals.js", "approvals.css"}

    page.goto(running_app.url)
    turn(page, "say Hello.")
    assert loaded() == set()
    send(page, "use pay; say done")
    expect(card(page, "pay")).to_have_css("display", "grid")
    assert loaded() == {"approvals.js", "approvals.css"}
