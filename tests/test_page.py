"""The chat page in a real browser, against the real server; only the model is scripted."""

from __future__ import annotations

import re
from typing import Any

import pytest
from agents.testing import ScriptedModel, assistant_message, function_call
from playwright.sync_api import Page, expect

from tests.browser import PHONE, Watched, assert_accessible, chats, send, status, turn
from tests.conftest import RunningApp

RICH = """# Weather

Use `fetch` as in **this** example:

```python
async def fetch() -> str:
    return "ok"  # a rather long line, so that the code has to scroll sideways on a small screen
```

#### Numbers

| City | Degrees |
|:--|--:|
| Lisbon | 21 |

- one
- [docs](https://docs.example/)

> quoted
"""

HOSTILE = """<script>window.pwned = 1</script>
<img src="https://evil.example/a.png" onerror="window.pwned = 2">

![track](https://evil.example/track.png) [click](javascript:window.pwned=3)

<style>body { display: none }</style> <svg onload="window.pwned = 4">
"""


def test_two_turns_are_still_there_after_a_reload(page: Page) -> None:
    """The page keeps nothing itself: what it shows again comes from the server."""
    turn(page, "I live in **Lisbon**, say it")
    turn(page, "say You live in **Lisbon**.")
    page.reload()
    expect(page.locator(".bubble")).to_have_text(
        ["I live in **Lisbon**, say it", "say You live in **Lisbon**."]
    )
    expect(page.locator(".text")).to_have_text(
        ["You said: I live in Lisbon, say it", "You live in Lisbon."]
    )
    expect(page.locator(".text strong")).to_have_text(["Lisbon", "Lisbon"])


def test_a_chat_outlives_the_server(page: Page, running_app: RunningApp) -> None:
    """After a restart it is in the list and opens, has its address, and goes on."""
    turn(page, "I live in Lisbon")
    address = page.url
    running_app.restart()
    page.goto(running_app.url)
    chats(page).get_by_text("I live in Lisbon").click()
    expect(page.locator(".text")).to_have_text("You said: I live in Lisbon")
    assert page.url == address
    expect(chats(page).first).to_have_attribute("aria-current", "page")
    turn(page, "What city do I live in?")
    expect(page.locator(".text").last).to_have_text("You live in Lisbon.")


def test_a_reload_in_mid_answer_goes_on_to_the_end(page: Page, running_app: RunningApp) -> None:
    """The run belongs to the server; the page that comes back follows it from its first event."""
    send(page, "hold")
    expect(page.locator(".text")).to_have_text("Holding")
    page.reload()
    expect(page.locator(".text")).to_have_text("Holding")
    expect(page.get_by_role("button", name="Stop answering")).to_be_enabled()
    running_app.model.go_on.set()
    expect(page.locator(".text")).to_have_text("Holding no more.")
    expect(page.locator(".bubble")).to_have_text("hold")
    expect(page.get_by_role("button", name="Send message")).to_be_visible()


def test_another_chat_can_be_read_while_one_is_answered(
    page: Page, running_app: RunningApp
) -> None:
    """What is said meanwhile is there on the way back."""
    turn(page, "say First.")
    page.get_by_role("link", name="New chat", exact=True).click()
    send(page, "hold")
    expect(page.locator(".text")).to_have_text("Holding")
    chats(page).get_by_text("say First.").click()
    expect(page.locator(".text")).to_have_text("First.")
    expect(page.get_by_role("button", name="Send message")).to_be_visible()
    chats(page).get_by_text("hold").click()
    expect(page.locator(".text")).to_have_text("Holding")
    running_app.model.go_on.set()
    expect(page.locator(".text")).to_have_text("Holding no more.")


def test_stop_keeps_what_was_said(page: Page) -> None:
    """Also after a reload; and the next message can be sent at once."""
    send(page, "hold")
    expect(page.locator(".text")).to_have_text("Holding")
    page.get_by_role("button", name="Stop answering").click()
    expect(page.locator(".answer .note")).to_have_text("Stopped.")
    page.reload()
    expect(page.locator(".text")).to_have_text("Holding")
    expect(page.locator(".answer .note")).to_have_text("Stopped.")
    turn(page, "say You are welcome.")


def test_hostile_markdown_does_nothing(page: Page) -> None:
    """Neither while it streams nor when it is read again; `watched` sees violations and loads."""
    turn(page, f"say {HOSTILE}")
    expect(page.locator(".text")).to_contain_text("<script>window.pwned = 1</script>")
    page.reload()
    expect(page.locator(".text")).to_contain_text("<script>window.pwned = 1</script>")
    assert page.evaluate("window.pwned") is None
    assert page.locator(".text").locator("img, script, style, svg, [onerror]").count() == 0
    expect(page.get_by_role("link", name="track")).to_have_attribute("rel", "noopener noreferrer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: Any) -> None:
    """In the empty chat, in one with all there is, in the dialog, and on a phone."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    expect(page.get_by_role("heading", name=re.compile("on your mind"))).to_be_visible()
    assert_accessible(page)
    turn(page, "time")
    turn(page, f"say {RICH}")
    send(page, "fail")
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    page.locator("summary").click()
    assert_accessible(page)
    page.get_by_role("button", name=re.compile("Delete chat")).click()
    assert_accessible(page)
    page.get_by_role("button", name="Keep it").click()
    page.set_viewport_size(PHONE)
    assert_accessible(page)
    page.get_by_role("button", name="Show sidebar").click()
    assert_accessible(page)


def test_deleting_asks_first_and_is_for_good(page: Page) -> None:
    """The open chat gives way to a new one; the address of the deleted one says so."""
    turn(page, "Keep this")
    page.get_by_role("link", name="New chat", exact=True).click()
    turn(page, "Delete this")
    address = page.url
    delete = page.get_by_role("button", name="Delete chat: Delete this")
    delete.click()
    page.get_by_role("button", name="Keep it").click()
    expect(delete).to_be_focused()
    expect(chats(page)).to_have_text(["Delete this", "Keep this"])
    delete.click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(chats(page)).to_have_text(["Keep this"])
    expect(page.get_by_role("heading", name=re.compile("on your mind"))).to_be_visible()
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("or it was deleted")


def test_tool_calls_are_folded_steps_above_their_answer(
    page: Page, running_app: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With name, arguments and output; the same live and read again."""
    call = function_call("get_current_time", {"zone": "Lisbon"}, call_id="c1")
    model = ScriptedModel([[call], [assistant_message("It is late.")]])
    monkeypatch.setattr(running_app, "model", model)
    turn(page, "Is it late?")
    for _ in range(2):
        step = page.locator("details.step")
        expect(step.locator("summary")).to_have_text("get_current_timeLisbon")
        expect(step.locator("pre").first).to_be_hidden()
        step.locator("summary").click()
        expect(step.locator("pre")).to_have_text([re.compile('"zone": "Lisbon"'), re.compile("T")])
        expect(page.locator("details.step + .text")).to_have_text("It is late.")
        page.reload()


def test_a_failed_answer_can_be_tried_again(
    page: Page, running_app: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error stands where the answer would; the message is in the chat once."""
    model = ScriptedModel([RuntimeError("secret"), [assistant_message("Now it works.")]])
    monkeypatch.setattr(running_app, "model", model)
    send(page, "Try this")
    expect(page.locator(".answer").get_by_role("alert")).to_be_visible()
    expect(page.locator(".answer")).not_to_contain_text("secret")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".text")).to_have_text("Now it works.")
    page.reload()
    expect(page.locator(".bubble")).to_have_text(["Try this"])


def test_a_message_that_is_not_sent_stays_in_the_composer(
    watched: tuple[Page, Watched], running_app: RunningApp
) -> None:
    """And can be sent from there when the way is free again, under the same Idempotency-Key."""
    page, seen = watched
    page.goto(running_app.url)
    page.route("**/responses", lambda route: route.abort(), times=1)
    send(page, "say Arrived.")
    expect(page.locator("#problem")).to_contain_text("Not sent.")
    composer = page.get_by_role("textbox", name="Message")
    expect(composer).to_have_value("say Arrived.")
    expect(page.locator(".bubble")).to_have_count(0)
    composer.press("Enter")
    expect(page.locator(".text")).to_have_text("Arrived.")
    expect(page.locator("#problem")).to_be_empty()
    posts = [request for request in seen.requests if request.method == "POST"]
    assert len(posts) == 2
    assert len({request.headers["idempotency-key"] for request in posts}) == 1


def test_enter_sends_but_not_with_shift_or_within_a_composed_word(page: Page) -> None:
    """Input methods use Enter to accept a word."""
    composer = page.get_by_role("textbox", name="Message")
    composer.fill("one")
    composer.press("Shift+Enter")
    composer.press_sequentially("two")
    composer.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    expect(composer).to_have_value("one\ntwo")
    composer.press("Enter")
    expect(page.locator(".bubble")).to_have_text("one\ntwo", use_inner_text=True)
    expect(composer).to_have_value("")
    expect(composer).to_be_focused()


def test_an_example_can_be_sent_with_one_click(page: Page) -> None:
    """The empty chat offers three."""
    examples = page.locator(".greeting").get_by_role("button")
    expect(examples).to_have_count(3)
    text = examples.first.text_content() or ""
    examples.first.click()
    expect(page.locator(".bubble")).to_have_text(text)
    expect(page.locator(".text")).to_have_text(f"You said: {text}")


def test_back_and_forward_move_between_chats(page: Page) -> None:
    """Each chat has an address."""
    turn(page, "First")
    page.get_by_role("link", name="New chat", exact=True).click()
    turn(page, "Second")
    page.go_back()
    expect(page.locator(".text")).to_have_text("You said: First")
    expect(page).to_have_title("First · Threadkeep")
    page.go_forward()
    expect(page.locator(".text")).to_have_text("You said: Second")


def test_older_turns_come_when_scrolling_up(page: Page, running_app: RunningApp) -> None:
    """The newest are shown first, and what is being read stays where it is."""
    items = []
    for number in range(60):
        items.append({"role": "user", "content": f"Question {number}"})
        items.append({"role": "assistant", "content": f"Answer {number}. " + "words " * 60})
    body = {"input": [*items, {"role": "user", "content": "say Last."}]}
    reply = page.request.post(f"{running_app.url}/responses", data=body).json()
    page.goto(f"{running_app.url}/?session={reply['custom_outputs']['session_id']}")
    expect(page.get_by_text("Last.", exact=True)).to_be_in_viewport()
    shown = page.locator(".bubble")
    expect(shown.filter(has_text="Question 59")).to_be_attached()
    expect(shown.first).not_to_have_text("Question 0")
    while (before := shown.count()) < 61:
        page.locator("#scroller").evaluate("(element) => { element.scrollTop = 0 }")
        expect(shown.nth(before)).to_be_attached()
    expect(shown.first).to_have_text("Question 0")
    expect(page.locator(".answer")).to_have_count(61)
    assert page.locator("#scroller").evaluate("(element) => element.scrollTop") > 0


def test_the_list_of_chats_is_paged(page: Page, running_app: RunningApp) -> None:
    """Thirty at first, more when their end comes into sight."""
    for number in range(70):
        page.request.post(f"{running_app.url}/responses", data={"input": f"Chat {number}"})
    page.reload()
    expect(chats(page)).to_have_count(30)
    chats(page).last.scroll_into_view_if_needed()
    expect(chats(page)).to_have_count(60)
    chats(page).last.scroll_into_view_if_needed()
    expect(chats(page)).to_have_text([f"Chat {number}" for number in reversed(range(70))])


def test_reading_above_is_not_disturbed(page: Page, running_app: RunningApp) -> None:
    """New text moves the view only for a reader who is at the end."""
    turn(page, "say " + "line\n\n" * 60)
    send(page, "hold")
    holding = page.get_by_text("Holding")
    expect(holding).to_be_in_viewport()
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -900)
    expect(holding).not_to_be_in_viewport()
    running_app.model.go_on.set()
    expect(status(page)).to_have_text("Answer finished.")
    expect(holding).not_to_be_in_viewport()
    jump = page.get_by_role("button", name="Scroll to the latest message")
    jump.click()
    expect(holding).to_be_in_viewport()
    expect(jump).to_be_hidden()


def test_the_page_goes_on_with_a_run_whose_server_stopped(
    page: Page, running_app: RunningApp
) -> None:
    """It asks until the server is back, and what is said anew takes the place of what was cut."""
    send(page, "hold")
    expect(page.locator(".text")).to_have_text("Holding")
    running_app.stop()
    expect(page.locator("#notice")).to_have_text("Connection lost. Trying again…")
    running_app.model.go_on.set()
    running_app.start()
    expect(page.get_by_role("button", name="Send message")).to_be_visible(timeout=20_000)
    expect(page.locator("#notice")).to_be_empty()
    expect(page.locator(".bubble")).to_have_text("hold")
    expect(page.locator(".text")).to_have_text("Holding no more.")


def test_a_long_open_block_arrives_whole(page: Page) -> None:
    """Long blocks are not rendered at every delta, but at the end nothing is missing."""
    code = "".join(f"line {number}\n" for number in range(1000))
    turn(page, f"say ```text\n{code}```")
    assert page.locator(".code pre").text_content() == code


def test_code_and_answers_can_be_copied(page: Page) -> None:
    """Code as it is, an answer as the markdown that the model wrote."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    turn(page, f"say {RICH}")
    for name, text in [("Copy code", "async def fetch()"), ("Copy answer", RICH.strip())]:
        page.get_by_role("button", name=name).click()
        expect(status(page)).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()").startswith(text)


def test_a_loading_model_is_announced_until_it_is_ready(
    watched: tuple[Page, Watched], running_app: RunningApp
) -> None:
    """The page asks once a second, and no more once the server is ready."""
    page, seen = watched
    loading = {"status": "loading", "message": "The embedded model is loading."}
    page.route("**/ready", lambda route: route.fulfill(status=503, json=loading), times=2)
    page.goto(running_app.url)
    expect(page.locator("#notice")).to_have_text("The embedded model is loading…")
    expect(page.locator("#notice")).to_be_empty()
    turn(page, "say Ready.")
    assert [request.url.endswith("/ready") for request in seen.requests].count(True) == 3


def test_the_sidebar_folds_and_lies_over_small_screens(page: Page) -> None:
    """Escape closes it, and the focus goes back to the button that opened it."""
    turn(page, "Hello")
    page.get_by_role("button", name="Hide sidebar").click()
    expect(chats(page).first).to_be_hidden()
    page.set_viewport_size(PHONE)
    page.get_by_role("button", name="Show sidebar").click()
    expect(chats(page).first).to_be_visible()
    page.keyboard.press("Escape")
    expect(chats(page).first).to_be_hidden()
    expect(page.get_by_role("button", name="Show sidebar")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_page_is_light(watched: tuple[Page, Watched], running_app: RunningApp) -> None:
    """All of it, without its data: under 80 KB, in at most 14 requests."""
    page, seen = watched
    page.goto(running_app.url, wait_until="networkidle")
    parts = [r for r in seen.requests if r.resource_type not in ("fetch", "eventsource")]
    size = sum(len(response.body()) for r in parts if (response := r.response()))
    assert size < 80_000
    assert len(parts) <= 14
