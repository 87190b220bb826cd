"""Turns of one session that come while another is at work: the four policies.

Every claim is checked within one server, and over two servers on one database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2 as httpx
import pytest

from tests.client import Json, ask, contents, follow, text_of_response
from tests.conftest import RunningApp
from tests.workshop import Workshop, until

pytestmark = pytest.mark.parametrize(
    ("backend", "servers"),
    [("sqlite", 1), ("sqlite", 2), ("postgres", 2)],
    ids=["sqlite, one server", "sqlite, two servers", "postgres, two servers"],
    indirect=["backend"],
)

POLICIES = ["enqueue", "reject", "interrupt", "rollback"]


@pytest.fixture
def servers() -> int:
    """How many there are; tests say it."""
    return 1


def send(
    client: httpx.Client, text: str, policy: str | None = None, session_id: str = "s", **more: Any
) -> httpx.Response:
    """One turn with a policy, whatever comes of it."""
    inputs = {"session_id": session_id} | ({"concurrency": policy} if policy else {})
    return client.post("/responses", json={"input": text, "custom_inputs": inputs} | more)


def begin(client: httpx.Client, text: str, session_id: str = "s") -> str:
    """A turn in background, at the moment that its model speaks; gives its id."""
    run_id: str = ask(client, text, session_id, background=True)["id"]
    for event in follow(client, run_id):
        if event["type"] == "response.output_text.delta":
            break
    return run_id


def wait_for(client: httpx.Client, run_id: str) -> Json:
    """The response of a run, when it has ended."""
    *_, last = follow(client, run_id)
    response: Json = last["response"]
    return response


def let_go(apps: Sequence[RunningApp]) -> None:
    for app in apps:
        app.model.go_on.set()


def items_of(client: httpx.Client, session_id: str = "s") -> list[Json]:
    """All that is stored of a session, as it is."""
    data: list[Json] = client.get(f"/sessions/{session_id}/items?limit=100").json()["data"]
    return data


def test_enqueue_waits_in_order(
    apps: list[RunningApp], here: httpx.Client, there: httpx.Client
) -> None:
    """Those that wait are answered one after the other, as they came."""
    begin(here, "hold")
    waiting = [send(there, f"say {n}", "enqueue", background=True).json()["id"] for n in range(3)]
    assert [there.get(f"/responses/{run}").json()["status"] for run in waiting] == ["queued"] * 3
    let_go(apps)
    assert [text_of_response(wait_for(there, run)) for run in waiting] == ["0", "1", "2"]
    said = ["hold", "Holding no more.", "say 0", "0", "say 1", "1", "say 2", "2"]
    assert contents(here, "s") == said


def test_reject_stores_nothing(
    apps: list[RunningApp], here: httpx.Client, there: httpx.Client
) -> None:
    """It is a conflict that no client repeats by itself; in a free session it is a turn."""
    run = begin(here, "hold")
    for more in ({}, {"stream": True}, {"background": True}):
        reply = send(there, "say never", "reject", **more)
        assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("conflict_error", "session_busy")
    assert contents(here, "s") == ["hold"]
    let_go(apps)
    wait_for(here, run)
    assert text_of_response(send(there, "say yes", "reject").json()) == "yes"
    assert contents(here, "s") == ["hold", "Holding no more.", "say yes", "yes"]


def test_interrupt_keeps_what_was_said(here: httpx.Client, there: httpx.Client) -> None:
    """The turn at work ends as cancelled, and the new one sees what it had said."""
    run = begin(here, "hold")
    assert text_of_response(send(there, "say now", "interrupt").json()) == "now"
    stopped = wait_for(here, run)
    assert (stopped["status"], text_of_response(stopped)) == ("cancelled", "Holding ")
    assert contents(here, "s") == ["hold", "Holding ", "say now", "now"]


def test_interrupt_in_the_middle_of_a_tool(
    here: httpx.Client, there: httpx.Client, shop: Workshop
) -> None:
    """The call has an output when the next turn sees it."""
    run = ask(here, "use work; say never", "s", background=True)["id"]
    shop.until_begun("work")
    assert text_of_response(send(there, "say now", "interrupt").json()) == "now"
    assert wait_for(here, run)["status"] == "cancelled"
    _, call, output, *rest = items_of(here)
    assert (call["type"], output["output"]) == ("function_call", "outcome unknown")
    assert [item["role"] for item in rest] == ["user", "assistant"]


def test_every_message_of_several_interrupts_is_kept(
    apps: list[RunningApp], here: httpx.Client, there: httpx.Client
) -> None:
    """In order; only the last one is answered to its end."""
    begin(here, "hold")
    new = [send(there, f"hold {n}", "interrupt", background=True).json() for n in range(5)]
    runs = [run["id"] for run in new]
    until(lambda: said_by(here) == 5)
    let_go(apps)
    ended = [wait_for(there, run) for run in runs]
    assert [run["status"] for run in ended] == ["cancelled"] * 4 + ["completed"]
    kept = contents(here, "s")
    assert [text for text in kept if text.startswith("hold")] == [
        "hold",
        *(f"hold {n}" for n in range(5)),
    ]
    assert kept[-1] == "Holding no more."
    assert kept.count("Holding no more.") == 1


def said_by(client: httpx.Client) -> int:
    """How many messages of the user came behind the first one."""
    return sum(item["role"] == "user" for item in items_of(client)) - 1


def test_rollback_undoes_the_turn(here: httpx.Client, there: httpx.Client) -> None:
    """As if it had never been asked."""
    ask(here, "say one", "s")
    run = begin(here, "hold")
    assert text_of_response(send(there, "say now", "rollback").json()) == "now"
    assert wait_for(here, run)["status"] == "cancelled"
    assert contents(here, "s") == ["say one", "one", "say now", "now"]


def test_rollback_undoes_a_session_and_its_title(here: httpx.Client, there: httpx.Client) -> None:
    """One that the turn had made is made anew."""
    begin(here, "hold")
    send(there, "say now", "rollback")
    assert contents(here, "s") == ["say now", "now"]
    (session,) = here.get("/sessions").json()["data"]
    assert session["title"] == "say now"


def test_rollback_undoes_a_branch(here: httpx.Client, there: httpx.Client) -> None:
    """What an edited message had cut off is back, and its fork is gone."""
    first = ask(here, "say one", "s")
    ask(here, "say two", "s")
    ask(here, "say three", "s")
    before = items_of(here)
    edited = [
        {"role": "user", "content": "say one"},
        *first["output"],
        {"role": "user", "content": "hold"},
    ]
    body = {"input": edited, "background": True, "custom_inputs": {"session_id": "s"}}
    run = here.post("/responses", json=body).json()["id"]
    until(lambda: contents(here, "s") == ["say one", "one", "hold"])
    assert len(here.get("/sessions").json()["data"]) == 2
    send(there, "say now", "rollback")
    assert wait_for(here, run)["status"] == "cancelled"
    assert items_of(here)[:6] == before
    assert contents(here, "s")[6:] == ["say now", "now"]
    assert len(here.get("/sessions").json()["data"]) == 1


def test_no_rollback_of_what_a_tool_did(
    here: httpx.Client, there: httpx.Client, shop: Workshop
) -> None:
    """Once one that is not idempotent has started: also when it has ended; the turn goes on."""
    run = ask(here, "use note; use work; say done", "s", background=True)["id"]
    shop.until_begun("work")
    reply = send(there, "say never", "rollback", stream=True)
    assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")
    assert reply.json()["error"]["type"] == "conflict_error"
    shop.go_on.set()
    assert text_of_response(wait_for(here, run)) == "done"
    assert len(items_of(here)) == 6


def test_rollback_of_what_only_looked(
    here: httpx.Client, there: httpx.Client, shop: Workshop
) -> None:
    """Idempotent tools are no hindrance, and what they gave is undone too."""
    ask(here, "say one", "s")
    run = ask(here, "use look; use search; say done", "s", background=True)["id"]
    shop.until_begun("search")
    assert text_of_response(send(there, "say now", "rollback").json()) == "now"
    assert wait_for(here, run)["status"] == "cancelled"
    assert contents(here, "s") == ["say one", "one", "say now", "now"]


def test_rollback_of_what_waits(
    apps: list[RunningApp], here: httpx.Client, there: httpx.Client
) -> None:
    """Turns of the same server that wait before it go as well; those elsewhere have their turn."""
    run = begin(here, "hold")
    waiting = send(here, "hold too", "enqueue", background=True).json()["id"]
    new = send(there, "say now", "rollback", background=True).json()["id"]
    assert text_of_response(wait_for(there, new)) == "now"
    assert wait_for(here, run)["status"] == "cancelled"
    assert wait_for(here, waiting)["status"] == "cancelled"
    assert contents(here, "s") == ["say now", "now"]


@pytest.mark.parametrize("policy", ["wait", "", 7, ["enqueue"], {}], ids=str)
def test_an_unknown_policy_is_refused(here: httpx.Client, policy: Any) -> None:
    """The field is named, and nothing is stored."""
    body = {"input": "hi", "custom_inputs": {"session_id": "s", "concurrency": policy}}
    reply = here.post("/responses", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "custom_inputs.concurrency")
    assert here.get("/sessions").json()["data"] == []


class TestSetting:
    """SESSION_CONCURRENCY says what holds when a client says nothing."""

    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"SESSION_CONCURRENCY": "reject"}

    def test_it_holds_unless_the_client_says(
        self, apps: list[RunningApp], here: httpx.Client, there: httpx.Client
    ) -> None:
        """Null says nothing."""
        begin(here, "hold")
        assert send(there, "say never").status_code == 409
        inputs = {"session_id": "s", "concurrency": None}
        reply = there.post("/responses", json={"input": "say never", "custom_inputs": inputs})
        assert reply.status_code == 409
        waiting = send(there, "say later", "enqueue", background=True).json()["id"]
        let_go(apps)
        assert text_of_response(wait_for(there, waiting)) == "later"
        assert contents(here, "s") == ["hold", "Holding no more.", "say later", "later"]


class TestQueueLimit:
    """SESSION_QUEUE_LIMIT bounds how many wait for a session, over all servers."""

    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"SESSION_QUEUE_LIMIT": "2"}

    def test_one_too_many_is_told_when_to_come_back(
        self, apps: list[RunningApp], here: httpx.Client, there: httpx.Client
    ) -> None:
        """Nothing of it is stored; other sessions have places of their own."""
        begin(here, "hold")
        waiting = [
            send(client, f"say {n}", background=True).json()["id"]
            for n, client in enumerate((here, there))
        ]
        for more in ({}, {"stream": True}, {"background": True}):
            reply = send(there, "say never", **more)
            assert reply.status_code == 429
            assert int(reply.headers["retry-after"]) > 0
            error = reply.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert text_of_response(ask(there, "say else", "other")) == "else"
        let_go(apps)
        assert [text_of_response(wait_for(there, run)) for run in waiting] == ["0", "1"]
        assert contents(here, "s") == ["hold", "Holding no more.", "say 0", "0", "say 1", "1"]
        assert text_of_response(send(there, "say again").json()) == "again"
