"""Sizes and rates: what is too much is refused before anything is stored, or cut with a note."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from agents import Agent, Runner, ToolOutputImage, ToolOutputText, function_tool
from agents.testing import ScriptedModel, assistant_message

import threadkeep.session
import threadkeep.session_turn
from tests.backends import Backend
from tests.client import ANN, BOB, ask, client_of, contents, post
from tests.conftest import RunningApp, environment
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.errors import SessionFullError, TooLargeError
from threadkeep.limits import MAX_ITEM_BYTES
from threadkeep.settings import DatabaseSettings
from threadkeep.tool_output import bounded

BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

LIMITS = {
    "REQUEST_MAX_BYTES": "20000",
    "MESSAGE_MAX_CHARS": "100",
    "ITEM_MAX_BYTES": "6000",
    "SESSION_MAX_ITEMS": "4",
}


@function_tool
def flood() -> str:
    """Gives more than an item may hold."""
    return "begin " + 'ü"' * 20_000 + " end"


@function_tool(failure_error_function=None)
def burst() -> str:
    """Fails with more than an item may hold."""
    raise RuntimeError("begin " + "x" * 20_000 + " end")


@pytest.fixture
def settings() -> dict[str, str]:
    return dict(LIMITS)


@pytest.fixture
def servers() -> int:
    return 1


def refused(reply: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param), error
    return str(error["message"])


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningApp]:
    """A server with low limits."""
    app = RunningApp(
        environment(f"sqlite:///{tmp_path}/threadkeep.db", **LIMITS), tools=[flood, burst]
    )
    yield app
    app.model.go_on.set()
    app.stop()


def test_what_is_too_large_is_not_stored(small: RunningApp) -> None:
    """The error names the part, its size and the setting; what just fits is taken."""
    with client_of(small.url) as client:
        said = refused(post(client, "x" * 101), 413, "message_too_large", "input[0].content")
        assert "101" in said
        assert "MESSAGE_MAX_CHARS" in said
        parts = [{"type": "input_text", "text": "x" * 50}] * 3
        body: dict[str, Any] = {"input": [{"role": "user", "content": parts}], "store": False}
        reply = client.post("/responses", json=body)
        refused(reply, 413, "message_too_large", "input[0].content")
        picture = {"type": "input_image", "image_url": "data:" + "x" * 6000}
        body = {
            "input": [{"role": "user", "content": "hi"}, {"role": "user", "content": [picture]}]
        }
        said = refused(client.post("/responses", json=body), 413, "item_too_large", "input[1]")
        assert "ITEM_MAX_BYTES" in said
        said = refused(client.post("/responses", json={"input": "x" * 20_000}), 413, "too_large")
        assert "20000 bytes (REQUEST_MAX_BYTES)" in said
        assert client.get("/sessions").json()["data"] == []
        ask(client, "say " + "ü" * 96)

        lines = [{"object": "session", "version": 1, "id": "i", "title": None, "metadata": {}}]
        lines[0] |= {"parent_session_id": None, "item_count": 1, "created_at": 1, "updated_at": 1}
        lines.append({"object": "item", "seq": 1, "created_at": 1, "response_id": None})
        lines[1]["data"] = {"role": "user", "content": "x" * 6000}
        reply = client.post("/sessions/import", content="\n".join(map(json.dumps, lines)))
        refused(reply, 413, "item_too_large", "line 2")
        lines[0]["item_count"] = 5
        reply = client.post("/sessions/import", content="\n".join(map(json.dumps, lines)))
        refused(reply, 422, "session_full")
        assert client.get("/sessions/i").status_code == 404


@BOTH
def test_a_full_session_begins_no_turn(apps: list[RunningApp], here: httpx.Client) -> None:
    """A turn that has begun is stored to its end; the next one is refused, and a fork goes on."""
    ask(here, "say one", "s")
    ask(here, "say one; say two", "t")
    here.delete("/sessions/t")
    body = {"input": "say two", "custom_inputs": {"session_id": "s"}, "store": False}
    assert here.post("/responses", json=body).status_code == 200
    ask(here, "say two", "s")
    assert len(contents(here, "s")) == 4
    message = refused(post(here, "say three", "s"), 422, "session_full")
    assert "SESSION_MAX_ITEMS" in message
    assert len(contents(here, "s")) == 4
    # A whole view that goes another way is refused before the old way is cut off.
    view = [{"role": "user", "content": "say one"}, {"role": "assistant", "content": "other"}]
    view += [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    body = {"input": [*view, {"role": "user", "content": "d"}]}
    body["custom_inputs"] = {"session_id": "s"}
    refused(here.post("/responses", json=body), 422, "session_full")
    assert [s["id"] for s in here.get("/sessions").json()["data"]] == ["s"]
    refused(here.post("/responses", json={"input": body["input"]}), 422, "session_full")
    assert [s["id"] for s in here.get("/sessions").json()["data"]] == ["s"]
    fork = here.post("/sessions/s/fork", json={"up_to": 2}).json()["id"]
    ask(here, "say three", fork)
    assert contents(here, fork)[2:] == ["say three", "three"]


@BOTH
def test_turns_that_wait_for_a_session_that_is_full_then(
    apps: list[RunningApp], here: httpx.Client
) -> None:
    """Room is looked for when a turn begins."""
    ask(here, "say one", "s")
    first = ask(here, "hold", "s", background=True)
    second = ask(here, "say late", "s", background=True)
    apps[0].model.go_on.set()
    for run, status in ((first, "completed"), (second, "failed")):
        run = here.get(f"/responses/{run['id']}", params={"stream": True})
        assert f'"type":"response.{status}"' in run.text
    assert '"session_full"' in run.text
    assert len(contents(here, "s")) == 4


def test_an_output_that_is_too_large_is_cut(small: RunningApp) -> None:
    """In the middle, with a note: the model, the session and the events have the same."""
    with client_of(small.url) as client:
        response = ask(client, "use flood; say done", "s")
        (stored,) = [
            item
            for item in client.get("/sessions/s/items").json()["data"]
            if item["type"] == "function_call_output"
        ]
        output = stored["output"]
        head, note, tail = output.split("\n")
        assert head.startswith("begin ü")
        assert tail.endswith('ü" end')
        left_out = 40_010 - len(head) - len(tail)
        assert note == f"[Left out: {left_out} characters, too large for ITEM_MAX_BYTES=6000]"
        assert 4000 < len(json.dumps(stored, ensure_ascii=False).encode()) <= 6000
        assert small.model.inputs[-1][-1]["output"] == output
        (told,) = [i for i in response["output"] if i["type"] == "function_call_output"]
        assert told["output"] == output
        assert post(client, "use burst; say done", "t").status_code == 500
        failed = client.get("/sessions/t/items").json()["data"][-2]["output"]
        assert 1000 < len(failed) < 6000
        assert "Left out" in failed


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("x" * 2000, "x" * 2000),
        ({"a": "x" * 2000}, {"a": "x" * 2000}),
        ([ToolOutputText(text="y" * 90_000)], "[Left out: 86"),
        (
            [ToolOutputText(text="caption"), ToolOutputImage(image_url="x" * 9000)],
            "caption\n[Left out: 1 images or files, too large for ITEM_MAX_BYTES=4096]",
        ),
        ([ToolOutputText(text="a")], [ToolOutputText(text="a")]),
        ({"a": ["z" * 90_000]}, "[Left out: 86"),
        ("\ud83d" * 90_000, "[Left out: 89"),
        ("\0" * 90_000, "[Left out: 89"),
        ("x" * 1000 + "😀" * 90_000, "[Left out: 89"),
        (None, None),
    ],
    ids=range(10),
)
def test_outputs_of_every_kind(output: Any, shown: Any) -> None:
    """What fits stays what it is; what does not becomes text that fits, however it is escaped."""
    cut = bounded(output, 4096)
    if isinstance(cut, str):
        assert len(json.dumps(cut, ensure_ascii="\ud83d" in cut).encode()) < 4096 - 512
        assert shown in cut
    else:
        assert cut == shown


@BOTH
async def test_a_library_names_the_item(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the batch is stored. A full session takes what a turn adds that has begun."""
    monkeypatch.setattr(threadkeep.session, "MAX_SESSION_ITEMS", 3)
    monkeypatch.setattr(threadkeep.session_turn, "MAX_SESSION_ITEMS", 3)
    database = connect(DatabaseSettings.read(backend.variables))
    session = Session("s", database=database)
    large = {"role": "user", "content": "x" * MAX_ITEM_BYTES}
    with pytest.raises(TooLargeError) as caught:
        await session.add_items([{"role": "user", "content": "a"}, large])  # type: ignore[list-item]
    assert caught.value.param == "items[1]"
    assert await session.get_items() == []
    model = ScriptedModel([[assistant_message("one")], [assistant_message("two")]])
    agent = Agent(name="A", model=model)
    for text in ("a", "b"):
        await Runner.run(agent, text, session=session)
    assert len(await session.get_items()) == 4
    with pytest.raises(SessionFullError):
        await Runner.run(agent, "c", session=session)
    with pytest.raises(SessionFullError):
        async with session.turn():
            pytest.fail("it has begun")
    assert len(await session.get_items()) == 4
    await session.add_items([{"role": "assistant", "content": "more"}])
    assert len(await session.get_items()) == 5
    with pytest.raises(SessionFullError):
        await Session("t", database=database).add_items([{"role": "user", "content": "a"}] * 4)
    await database.close()


@BOTH
class TestRates:
    """REQUESTS_PER_MINUTE counts what an owner begins, over all processes."""

    @pytest.fixture
    def servers(self) -> int:
        return 2

    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"REQUESTS_PER_MINUTE": "5"}

    def test_so_many_are_taken(
        self, apps: list[RunningApp], here: httpx.Client, there: httpx.Client
    ) -> None:
        """At once, of whatever kind; then each waits its time, and others none."""
        refused(here.post("/responses", json={"input": ""}), 400, "empty", "input[0].content")
        named = {"headers": {"idempotency-key": "k"}, "json": {"input": "say hi"}}
        run_id = here.post("/responses", **named).json()["id"]
        session_id = ask(there, "say hi")["custom_outputs"]["session_id"]
        here.delete(f"/sessions/{session_id}")
        kinds: list[dict[str, Any]] = [{"store": False}, {"background": True}, {"stream": True}]
        kinds += [{}] * 3
        with ThreadPoolExecutor() as pool:
            sent = [
                pool.submit(post, (here, there)[at % 2], "say hi", **kind)
                for at, kind in enumerate(kinds)
            ]
            replies = [each.result() for each in sent]
        refusals = [reply for reply in replies if reply.status_code == 429]
        assert len(refusals) == 3
        for reply in refusals:
            assert "5 requests a minute" in refused(reply, 429, "rate_limited")
            assert 1 <= int(reply.headers["retry-after"]) <= 12
        # What was begun already, or costs nothing, is still to be had.
        assert there.post("/responses", **named).json()["id"] == run_id
        assert here.get("/sessions").status_code == 200
        with client_of(apps[0].url, **BOB) as bob:
            ask(bob, "say hi")

    def test_each_comes_back_after_its_share(self, apps: list[RunningApp]) -> None:
        """The driver's clock decides; what was not used for a minute is not saved up."""
        database = apps[0].app.state.database

        async def take(share: int, times: int) -> list[int]:
            rows = [
                await database.call("take_request", owner="o", share=share) for _ in range(times)
            ]
            return [row[0]["wait_ms"] for row in rows]

        waits = apps[0].do(take(20_000, 5))
        assert waits[:3] == [0, 0, 0]
        assert all(19_000 < wait <= 20_000 for wait in waits[3:])
        (wait,) = apps[0].do(take(400, 1))  # another setting holds at once
        assert 0 < wait <= 400
        apps[0].do(asyncio.sleep((wait + 5) / 1000))
        assert apps[0].do(take(400, 1)) == [0]


def test_the_default_is_no_rate(small: RunningApp) -> None:
    """Nothing is counted."""
    with client_of(small.url, **ANN) as client:
        for _ in range(3):
            ask(client, "say hi")
    assert small.app.state.settings.requests_per_minute is None
