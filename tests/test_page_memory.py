"""What is remembered, on the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.browser import PHONE, assert_accessible, chats, send, turn
from tests.client import ask, client_of, session_of
from tests.conftest import RunningApp
from tests.test_memories import source_of
from threadkeep.memory_form import Draft, Source
from threadkeep.memory_store import MemoryStore


def remember(app: RunningApp) -> dict[str, str]:
    """Stores two memories; gives the ids of what there is, by a name."""
    with client_of(app.url) as client:
        session_id = session_of(ask(client, "say Noted. No <i>meat</i>, please."))
    store = MemoryStore(app.app.state.database, "")
    source = app.do(source_of(store.database, "", session_id, 1))
    diet = app.do(store.save("/memories/diet.md", Draft("Eats little meat"), source))
    says = {"description": "Vegetarian", "contents": "Also no <b>fish</b>."}
    app.do(store.update(diet["id"], lambda draft: replace(draft, **says), source))
    tea = app.do(store.add(Draft("Likes tea"), Source("gone", 1)))
    return {"session": session_id, "diet": diet["id"], "tea": tea["id"]}


def test_memories_are_seen_and_changed(page: Page, running_app: RunningApp) -> None:
    """In a panel, with where they come from and what they were before."""
    opens = page.get_by_role("button", name="Memory")
    opens.click()
    panel = page.get_by_role("dialog", name="Memory")
    expect(panel.get_by_text("Nothing is remembered yet")).to_be_visible()
    assert_accessible(page)
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(opens).to_be_focused()
    remember(running_app)
    opens.click()
    names = panel.locator(".body > ul > li > h3")
    expect(names).to_have_text(["Likes tea", "Vegetarian"])
    expect(panel.get_by_text("From a message that is gone")).to_be_visible()
    diet = panel.get_by_role("listitem").filter(has_text="/memories/diet.md")
    expect(diet.locator(".contents")).to_have_text("Also no <b>fish</b>.")
    expect(diet.get_by_role("link")).to_have_text("“say Noted. No <i>meat</i>, please.”")
    diet.get_by_text("What it was before: 1 version").click()
    expect(diet.get_by_text("Eats little meat")).to_be_visible()
    expect(diet.locator("ol small").first).to_have_text(re.compile(r"\d:\d\d"))  # of one day
    assert_accessible(page)

    diet.get_by_role("button", name="Pin").click()
    expect(diet.get_by_role("button", name="Unpin")).to_be_focused()
    expect(diet.get_by_role("heading")).to_have_text("VegetarianPinned")
    diet.get_by_role("button", name="Edit").click()
    line = panel.get_by_label("What is remembered, in a line")
    line.fill("Vegan")
    assert_accessible(page)
    line.press("Escape")
    expect(diet.get_by_role("button", name="Edit")).to_be_focused()
    page.keyboard.press("Enter")
    line.fill("Vegan")
    panel.get_by_label("Other names").fill("food, diet")
    line.press("Enter")
    expect(diet.get_by_role("heading")).to_have_text("VeganPinned")
    diet.get_by_text("What it was before").click()
    expect(diet.locator("ol > li")).to_have_count(2)

    field = panel.get_by_role("searchbox")
    field.fill("food")
    expect(names).to_have_text(["VeganPinned"])
    field.press("Escape")
    expect(names).to_have_text(["VeganPinned", "Likes tea"])
    panel.get_by_role("button", name="Delete: Likes tea").click()
    kept = "The chats in which it was said stay, and the message it comes from is not recalled"
    expect(page.get_by_role("dialog", name="Delete this memory?")).to_contain_text(kept)
    page.get_by_role("dialog", name="Delete this memory?").get_by_text("Delete", exact=True).click()
    expect(names).to_have_text(["VeganPinned"])
    panel.get_by_role("button", name="Add").click()
    line.press("Enter")
    expect(line).to_have_accessible_description("Say in a line what is to be remembered.")
    line.fill("x" * 512)
    expect(line).to_have_accessible_description("512 of 500 characters: 12 too many.")
    assert_accessible(page)
    line.fill("Lives in Bern")
    line.press("Enter")
    expect(names).to_have_text(["Lives in Bern", "VeganPinned"])
    with page.expect_download() as download:
        panel.get_by_role("button", name="Export").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert [json.loads(each)["description"] for each in lines] == ["Lives in Bern", "Vegan"]
    diet.get_by_role("link", name="From this chat").last.click()
    expect(panel).to_be_hidden()
    expect(page.locator(".bubble")).to_have_text("say Noted. No <i>meat</i>, please.")


def test_all_of_a_memory_is_found_and_shown(page: Page, running_app: RunningApp) -> None:
    """Parts of words, what it was before, and what has ended or is to come; what is long is folded,
    and what replaces a memory is a step away."""
    store = MemoryStore(running_app.app.state.database, "")
    rome = running_app.do(store.save("/memories/rome.md", Draft("In Rome", valid_from=4 * 10**12)))
    job = running_app.do(store.save("/memories/job.md", Draft("Works at Acme Ltd", "long " * 100)))
    was = running_app.do(store.save("/memories/work.md", Draft("Welds at Initech")))

    def change(memory_id: str, **values: object) -> None:
        running_app.do(store.update(memory_id, lambda draft: replace(draft, **values)))  # type: ignore[arg-type]

    change(job["id"], description="Works at Vega")
    change(was["id"], superseded_by=job["id"])
    page.goto(f"{running_app.url}/?memory={rome['id']}")
    panel = page.get_by_role("dialog", name="Memory")
    coming = panel.get_by_role("listitem").filter(has_text="/memories/rome.md")
    expect(coming).to_be_focused()
    expect(coming).to_contain_text("In RomeNot yet/memories/rome.mdFrom Oct 2, 2096")
    names = panel.locator(".body > ul > li > h3")
    for text, found in [
        ("eg", ["Works at Vega"]),
        ("ACM", ["Works at Vega"]),
        ("initech", ["Welds at InitechReplaced"]),
        ("zebra", []),
        ("work", ["Works at Vega", "Welds at InitechReplaced"]),
    ]:
        panel.get_by_role("searchbox").fill(text)
        expect(names).to_have_text(found)
    panel.get_by_role("link", name="/memories/job.md").click()
    vega = panel.get_by_role("listitem").filter(has=page.get_by_role("heading", name="Vega"))
    expect(vega).to_be_focused()
    expect(names).to_have_count(3)
    expect(vega.locator(".contents").first).to_have_text(re.compile("long …$"))
    vega.get_by_role("button", name="Show all").first.click()
    expect(vega.locator(".contents").first).to_have_text(" ".join(["long"] * 100))
    assert_accessible(page)
    vega.get_by_role("button", name="Edit").click()
    panel.get_by_label("Holds until").fill("2000-01-01")
    panel.get_by_role("button", name="Save").click()
    expect(panel.get_by_label("Holds until")).to_have_accessible_description(re.compile("later"))
    panel.get_by_label("Holds until").fill("2999-12-31")
    panel.get_by_role("button", name="Save").click()
    expect(vega).to_contain_text("Dec 31, 2999")


def test_what_was_changed_elsewhere_is_not_lost(page: Page, running_app: RunningApp) -> None:
    """Neither what is written here, nor there."""
    ids = remember(running_app)
    page.set_viewport_size(PHONE)
    page.get_by_role("button", name="Show sidebar").click()
    page.get_by_role("button", name="Memory").click()
    panel = page.get_by_role("dialog", name="Memory")
    panel.get_by_role("button", name="Edit: Likes tea").click()
    with client_of(running_app.url) as client:
        client.patch(f"/memories/{ids['tea']}", json={"description": "Likes green tea"})
    line = panel.get_by_label("What is remembered, in a line")
    line.fill("Likes mint tea")
    line.press("Enter")
    expect(panel.get_by_role("alert")).to_contain_text("changed meanwhile")
    expect(line).to_have_value("Likes mint tea")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_temporary_chat(page: Page, running_app: RunningApp) -> None:
    """It is sent so with each message, and says so; a new chat is none."""
    switch = page.get_by_role("button", name="Temporary chat")
    said = page.get_by_text("nothing is remembered from it or recalled in it")
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "true")
    expect(said).to_be_visible()
    assert_accessible(page)
    send(page, "fail")
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    page.reload()
    expect(page.get_by_text("it was deleted")).to_be_visible()
    for text in ("say One.", "say Two."):
        with page.expect_request("**/responses") as request:
            turn(page, text)
        assert request.value.post_data_json["custom_inputs"]["temporary"] is True
    page.reload()
    expect(switch).to_be_disabled()
    expect(said).to_be_visible()
    expect(chats(page)).to_have_text("Temporary: say One.")
    page.get_by_role("link", name="New chat").first.click()
    expect(said).to_be_hidden()
    with page.expect_request("**/responses") as request:
        turn(page, "say Three.")
    assert "temporary" not in request.value.post_data_json["custom_inputs"]
    expect(chats(page)).to_have_text(["say Three.", "Temporary: say One."])
    expect(switch).to_be_hidden()


def test_an_answer_tells_what_was_remembered(page: Page, running_app: RunningApp) -> None:
    """Asked for when it is opened; what is gone is said to be gone."""
    ids = remember(running_app)
    recalled = [
        {"memory": ids["diet"], "version": 1},
        {"memory": "gone", "version": 1},
        {"session_id": ids["session"], "seq": 1},
        {"session_id": ids["session"], "seq": 2},
        {"session_id": ids["session"], "seq": 9},
    ]

    def add(route: Route) -> None:
        told = json.dumps({"recalled": recalled})[1:-1]
        reply = route.fetch()
        text = reply.text().replace('"recalled":', '"others":')
        text = text.replace('"custom_outputs":{', f'"custom_outputs":{{{told},')
        route.fulfill(response=reply, body=text)

    page.route("**/responses/*", add)
    turn(page, "say A soup.")
    expect(page.get_by_text("Remembered 5")).to_be_visible()
    page.reload()
    page.get_by_text("Remembered 5").click()
    entries = page.locator(".recalled li")
    gone = "This is gone, or shared with others."
    expect(entries).to_have_text(
        [
            "Eats little meatNow: Vegetarian",
            gone,
            "say Noted. No <i>meat</i>, please.You said in another chat",
            "Noted. No <i>meat</i>, please.The assistant said in another chat",
            gone,
        ]
    )
    assert_accessible(page)
    page.unroute("**/responses/*")
    entries.get_by_role("link", name="Eats little meat").click()
    panel = page.get_by_role("dialog", name="Memory")
    expect(panel.get_by_role("listitem").filter(has_text="/memories/diet.md")).to_be_focused()
    page.keyboard.press("Escape")
    entries.get_by_role("link", name="say Noted.").click()
    expect(page.locator(".bubble")).to_have_text("say Noted. No <i>meat</i>, please.")
