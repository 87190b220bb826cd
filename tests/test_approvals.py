"""Tools that need a person's approval: the turn waits, for days, and goes on anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.backends import Backend
from tests.client import Json, ask, client_of, contents, follow, text_of_response
from tests.conftest import RunningApp, environment
from tests.workshop import Workshop, move

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

DECLINED = "declined: the user went on without approving it"
USER = {"X-Forwarded-User": "ann"}


@pytest.fixture
def shop() -> Workshop:
    """The tools of both servers."""
    return Workshop()


@pytest.fixture
def apps(backend: Backend, shop: Workshop) -> Iterator[list[RunningApp]]:
    """Two servers on one database, behind a proxy that says who asks."""
    place = environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1")
    apps = [RunningApp(dict(place), tools=shop.tools()) for _ in range(2)]
    yield apps
    shop.go_on.set()
    for app in apps:
        app.model.go_on.set()
        app.stop()


@pytest.fixture
def here(apps: list[RunningApp]) -> Iterator[httpx.Client]:
    with client_of(apps[0].url, **USER) as client:
        yield client


@pytest.fixture
def there(apps: list[RunningApp]) -> Iterator[httpx.Client]:
    with client_of(apps[1].url, **USER) as client:
        yield client


def asked(response: Json) -> list[str]:
    """The ids of the approvals that a response asks for."""
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "approval_required"}
    return [item["id"] for item in response["output"] if item["type"] == "mcp_approval_request"]


def decide(client: httpx.Client, approval_id: str, approve: bool, **more: Any) -> Json:
    reply = client.post(f"/approvals/{approval_id}", json={"approve": approve, **more})
    assert reply.status_code == 200, reply.text
    decided: Json = reply.json()
    return decided


def end_of(client: httpx.Client, run_id: str) -> Json:
    *_, last = follow(client, run_id)
    response: Json = last["response"]
    return response


def outputs(client: httpx.Client, session_id: str = "s") -> list[str]:
    items = client.get(f"/sessions/{session_id}/items").json()["data"]
    return [item["output"] for item in items if item["type"] == "function_call_output"]


def test_a_call_waits_for_its_approval(
    here: httpx.Client, there: httpx.Client, shop: Workshop
) -> None:
    """The response asks for it, and any server knows of it; nothing was done yet."""
    response = ask(here, "use note; use pay; say done", "s")
    (approval_id,) = asked(response)
    item = response["output"][-1]
    assert (item["name"], item["arguments"], item["server_label"]) == (
        "pay",
        "{}",
        "needs_approval",
    )
    (listed,) = there.get("/approvals", params={"status": "pending"}).json()["data"]
    assert listed["id"] == approval_id
    assert (listed["kind"], listed["agent"], listed["name"]) == (
        "needs_approval",
        "Assistant",
        "pay",
    )
    assert listed["expires_at"] - listed["created_at"] == 7 * 24 * 3600
    assert shop.done == {"note": 1}
    assert here.get("/sessions/s").json()["active_response_id"] is None


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_approved_it_is_made_once(
    here: httpx.Client, there: httpx.Client, shop: Workshop, elsewhere: bool
) -> None:
    """On any server; the turn goes on in a response of its own, as if nobody had been asked."""
    response = ask(here, "use note; use pay; use note; say done", "s")
    (approval_id,) = asked(response)
    decided = decide(there if elsewhere else here, approval_id, True, reason="fine")
    assert (decided["status"], decided["reason"]) == ("approved", "fine")
    ended = end_of(here, decided["response_id"])
    assert (ended["status"], text_of_response(ended)) == ("completed", "done")
    assert ended["previous_response_id"] == response["id"]
    assert shop.done == {"note": 2, "pay": 1}
    assert outputs(there) == ["note 1", "pay 1", "note 2"]
    assert contents(there, "s")[0::7] == ["use note; use pay; use note; say done", "done"]
    assert text_of_response(ask(there, "say on", "s")) == "on"


def test_taken_over_it_still_says_what_it_goes_on_from(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop
) -> None:
    """Whichever process ends the run that goes on."""
    response = ask(here, "use pay; use search; say done", "s")
    (approval_id,) = asked(response)
    run_id = decide(here, approval_id, True)["response_id"]
    shop.until_begun("search")
    move(backend, run_id, apps[1])
    shop.go_on.set()
    ended = end_of(here, run_id)
    assert (ended["status"], ended["previous_response_id"]) == ("completed", response["id"])


def test_rejected_the_model_is_told_why(
    apps: list[RunningApp], here: httpx.Client, shop: Workshop
) -> None:
    """In the words of whoever decided."""
    (approval_id,) = asked(ask(here, "use pay; say done", "s"))
    decided = decide(here, approval_id, False, reason="too expensive")
    assert text_of_response(end_of(here, decided["response_id"])) == "done"
    assert shop.done == {}
    assert outputs(here) == ["too expensive"]
    assert apps[0].model.inputs[-1][-1]["output"] == "too expensive"


def test_a_new_message_declines_it(here: httpx.Client, there: httpx.Client, shop: Workshop) -> None:
    """The history stays valid, and it is too late to decide."""
    (approval_id,) = asked(ask(here, "use pay; say done", "s"))
    assert text_of_response(ask(there, "say else", "s")) == "else"
    assert outputs(here) == [DECLINED]
    reply = here.post(f"/approvals/{approval_id}", json={"approve": True})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "turn_gone")
    assert there.get(f"/approvals/{approval_id}").json()["status"] == "closed"
    assert shop.done == {}
