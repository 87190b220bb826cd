"""Decisions that can't be taken: each has its status and its code, and nothing is done or lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

from tests.backends import Backend, SQLite
from tests.client import ANN, Json, ask, client_of, contents, text_of_response
from tests.conftest import RunningApp
from tests.deciding import DECLINED, answer, asked, decide, end_of, outputs, refusal
from tests.workshop import Workshop, move
from threadkeep import Session
from threadkeep.checkpoint import NEWEST_KNOWN

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def servers() -> int:
    return 1


@pytest.fixture
def app(apps: list[RunningApp]) -> RunningApp:
    """A server behind a proxy that says who asks."""
    return apps[0]


@pytest.fixture
def client(here: httpx.Client) -> httpx.Client:
    return here


@pytest.fixture
def waiting(client: httpx.Client) -> Json:
    """A response that waits for an approval of `pay`."""
    return ask(client, "use pay; say done", "s")


@pytest.fixture
def approval_id(waiting: Json) -> str:
    (approval_id,) = asked(waiting)
    return approval_id


def tried(client: httpx.Client, approval_id: str) -> tuple[int, str]:
    """What becomes of a decision that comes in either way, which is the same."""
    direct = client.post(f"/approvals/{approval_id}", json={"approve": True})
    item = answer(client, {"approval_request_id": approval_id, "approve": True})
    assert refusal(direct) == refusal(item)
    if direct.status_code == 409:
        assert direct.headers["x-should-retry"] == item.headers["x-should-retry"] == "false"
    return refusal(direct)


def test_what_a_database_can_not_hold(client: httpx.Client, approval_id: str) -> None:
    """Nothing has such an id; a reason must be another one."""
    gone = [
        client.get("/approvals/%00"),
        client.post("/approvals/%00", json={"approve": True}),
        client.get("/responses/%00"),
        client.post("/responses/%00/cancel"),
    ]
    assert {refusal(reply) for reply in gone} == {(404, "not_found")}
    wish = {"approve": False, "reason": "a\0b"}
    assert client.post(f"/approvals/{approval_id}", json=wish).status_code == 400
    assert answer(client, {"approval_request_id": approval_id} | wish).status_code == 400
    assert decide(client, approval_id, approve=False)["status"] == "rejected"


@pytest.mark.parametrize("approve", [True, False])
def test_decided_twice(
    client: httpx.Client, approval_id: str, shop: Workshop, approve: bool
) -> None:
    """The first one counts, whatever the second says."""
    end_of(client, decide(client, approval_id, approve)["response_id"])
    assert tried(client, approval_id) == (409, "approval_decided")
    assert shop.done["pay"] == approve


def test_decided_by_many_at_once(client: httpx.Client, approval_id: str, shop: Workshop) -> None:
    """One of them has done it; all others are told so, and the call is made once."""
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda _: client.post(f"/approvals/{approval_id}", json={"approve": True}),
                range(16),
            )
        )
    statuses = sorted(reply.status_code for reply in replies)
    assert statuses == [200] + [409] * 15
    (first,) = [reply.json() for reply in replies if reply.status_code == 200]
    assert text_of_response(end_of(client, first["response_id"])) == "done"
    assert shop.done == {"pay": 1}


def test_decided_too_late(
    backend: Backend, client: httpx.Client, approval_id: str, shop: Workshop
) -> None:
    """After its expiry it can't be, and the conversation goes on without it."""
    past = "1" if isinstance(backend, SQLite) else "'2000-01-01'"
    backend.execute(f"UPDATE threadkeep.approvals SET expires_at = {past}")
    assert tried(client, approval_id) == (409, "approval_expired")
    (listed,) = client.get("/approvals", params={"status": "expired"}).json()["data"]
    assert listed["id"] == approval_id
    assert client.get("/approvals", params={"status": "pending"}).json()["data"] == []
    assert text_of_response(ask(client, "say else", "s")) == "else"
    assert (outputs(client), shop.done) == ([DECLINED], {})


def test_decided_after_a_cancel(
    client: httpx.Client, waiting: Json, approval_id: str, shop: Workshop
) -> None:
    """Who cancels the response that waits takes the question back."""
    cancelled = client.post(f"/responses/{waiting['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert client.get(f"/responses/{waiting['id']}").json()["status"] == "cancelled"
    assert tried(client, approval_id) == (409, "turn_gone")
    assert client.get(f"/approvals/{approval_id}").json()["status"] == "closed"
    assert text_of_response(ask(client, "say else", "s")) == "else"
    assert (outputs(client), shop.done) == ([DECLINED], {})


def test_cancelled_after_the_decision(
    client: httpx.Client, waiting: Json, approval_id: str
) -> None:
    """The response that asked is over then; its follower is another one."""
    run_id = decide(client, approval_id, approve=True)["response_id"]
    assert client.post(f"/responses/{waiting['id']}/cancel").json()["status"] == "incomplete"
    assert end_of(client, run_id)["status"] == "completed"


@pytest.mark.parametrize("how", ["cleared", "rewound", "written to", "a new message"])
def test_decided_on_a_session_that_has_changed(
    app: RunningApp, client: httpx.Client, approval_id: str, shop: Workshop, how: str
) -> None:
    """What it was about is not as it was, so the call is not made."""
    session = Session("s", database=app.app.state.database, owner="ann")
    if how == "cleared":
        app.do(session.clear_session())
    elif how == "rewound":
        app.do(session.pop_item())
    elif how == "written to":
        app.do(session.add_items([{"role": "user", "content": "note"}]))
    else:
        ask(client, "say else", "s")
    assert tried(client, approval_id) == (409, "turn_gone")
    assert shop.done == {}
    assert text_of_response(ask(client, "say on", "s")) == "on"


def test_decided_when_the_session_is_deleted(client: httpx.Client, approval_id: str) -> None:
    """The approval went with it."""
    assert client.delete("/sessions/s").status_code == 200
    assert tried(client, approval_id) == (404, "not_found")


def test_decided_on_a_server_that_is_too_old(
    app: RunningApp, backend: Backend, client: httpx.Client, approval_id: str, shop: Workshop
) -> None:
    """A newer release has parked the turn: nothing is decided, so that it can be on a newer one."""
    backend.execute(f"UPDATE threadkeep.runs SET checkpoint_version = {NEWEST_KNOWN + 1}")
    assert tried(client, approval_id) == (503, "newer_release")
    assert client.get(f"/approvals/{approval_id}").json()["status"] == "pending"
    backend.execute("UPDATE threadkeep.approvals SET status = 'approved', decided_at = created_at")
    assert app.take_over() == 0
    assert client.get(f"/approvals/{approval_id}").json()["response_id"] is None
    backend.execute("UPDATE threadkeep.approvals SET status = 'pending'")
    backend.execute(f"UPDATE threadkeep.runs SET checkpoint_version = {NEWEST_KNOWN}")
    run_id = decide(client, approval_id, approve=True)["response_id"]
    assert text_of_response(end_of(client, run_id)) == "done"
    assert shop.done == {"pay": 1}


def test_a_server_that_is_too_old_takes_no_such_run_over(
    app: RunningApp, backend: Backend, client: httpx.Client, shop: Workshop
) -> None:
    """It could not make it again; a newer one can."""
    (approval_id,) = asked(ask(client, "use haul; say done", "s"))
    run_id = decide(client, approval_id, approve=True)["response_id"]
    shop.until_begun("haul")
    app.stop()
    shop.go_on.set()
    backend.execute(f"UPDATE threadkeep.runs SET checkpoint_version = {NEWEST_KNOWN + 1}")
    app.start()
    with client_of(app.url, **ANN) as again:
        assert app.take_over() == 0
        assert again.get(f"/responses/{run_id}").json()["status"] == "in_progress"
        backend.execute(f"UPDATE threadkeep.runs SET checkpoint_version = {NEWEST_KNOWN}")
        move(backend, run_id, app)
        assert end_of(again, run_id)["status"] == "incomplete"


def test_decisions_that_can_not_be_read(
    client: httpx.Client, waiting: Json, approval_id: str, shop: Workshop
) -> None:
    """The error names the field, and says what to send."""
    good = {"approval_request_id": approval_id, "approve": True}
    message = {"type": "message", "role": "user", "content": "and then"}
    for item, param in [
        (good | {"approve": "yes"}, "input[0].approve"),
        ({"approve": True}, "input[0].approval_request_id"),
        (good | {"approval_request_id": 7}, "input[0].approval_request_id"),
        (good | {"reason": "x" * 2001}, "input[0].reason"),
        (good | {"reason": "\ud800"}, "input[0].reason"),
    ]:
        reply = answer(client, item)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), item
    assert refusal(answer(client, good, message)) == (400, "mixed_input")
    reply = answer(client, good, previous_response_id="resp_other")
    assert reply.json()["error"]["param"] == "previous_response_id"
    for body in ({}, {"approve": 1}, {"approve": True, "state": {}}):
        assert client.post(f"/approvals/{approval_id}", json=body).status_code == 400
    always = {"approve": False, "always_approve": True}
    reply = client.post(f"/approvals/{approval_id}", json=always)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "always_approve")
    assert client.get(f"/approvals/{approval_id}").json()["status"] == "pending"
    assert shop.done == {}


def test_decisions_about_two_responses_at_once(client: httpx.Client, approval_id: str) -> None:
    """One request has one answer, so it can't go on with two turns; neither is decided."""
    (other,) = asked(ask(client, "use pay; say done", "other"))
    verdicts = [{"approval_request_id": name, "approve": True} for name in (approval_id, other)]
    assert answer(client, *verdicts).status_code == 400
    statuses = [client.get(f"/approvals/{name}").json()["status"] for name in (approval_id, other)]
    assert statuses == ["pending", "pending"]


def test_one_of_several_decisions_comes_too_late(client: httpx.Client, shop: Workshop) -> None:
    """All are taken or none."""
    first, second = asked(ask(client, "use pay lend; say done", "s"))
    decide(client, first, approve=False)
    verdicts = [{"approval_request_id": name, "approve": True} for name in (first, second)]
    assert refusal(answer(client, *verdicts)) == (409, "approval_decided")
    assert client.get(f"/approvals/{second}").json()["status"] == "pending"
    assert shop.done == {}


def test_the_same_decision_twice_in_a_request(client: httpx.Client, approval_id: str) -> None:
    """It says two things about one call, or one thing twice: neither is taken."""
    verdicts = [{"approval_request_id": approval_id, "approve": how} for how in (True, False)]
    assert answer(client, *verdicts).status_code == 400
    assert client.get(f"/approvals/{approval_id}").json()["status"] == "pending"


def test_a_state_never_leaves_the_server(
    client: httpx.Client, waiting: Json, approval_id: str
) -> None:
    """Nothing that a client can read holds it."""
    shown = [
        str(waiting),
        client.get(f"/responses/{waiting['id']}").text,
        client.get(f"/responses/{waiting['id']}", params={"stream": True}).text,
        client.get("/approvals").text,
        client.get("/sessions/s").text,
        client.get("/sessions/s/items").text,
    ]
    for text in shown:
        assert "schemaVersion" not in text
        assert "checkpoint" not in text
    assert contents(client, "s")[0] == "use pay; say done"
