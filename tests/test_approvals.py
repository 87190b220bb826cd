"""Tools that need a person's approval: the turn waits, for days, and goes on anywhere."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.backends import Backend, SQLite
from tests.client import ANN, ask, client_of, contents, post, text_of_response
from tests.conftest import RunningApp
from tests.deciding import DECLINED, UNKNOWN, answer, asked, decide, end_of, outputs
from tests.workshop import Workshop, move

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


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
    assert ended["usage"]["total_tokens"] == 2 * 8  # of what came behind the approval
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


def test_two_calls_are_decided_each_on_its_own(here: httpx.Client, shop: Workshop) -> None:
    """The first decision only waits for the second; what needs none was done at once."""
    response = ask(here, "use pay note lend; say done", "s")
    first, second = asked(response)
    assert shop.done == {"note": 1}
    assert outputs(here).count(DECLINED) == 2
    assert decide(here, first, approve=True)["response_id"] is None
    assert here.get("/sessions/s").json()["active_response_id"] is None
    decided = decide(here, second, approve=False, reason="not now")
    assert text_of_response(end_of(here, decided["response_id"])) == "done"
    assert sorted(outputs(here)) == ["not now", "note 1", "pay 1"]
    assert shop.done == {"note": 1, "pay": 1}


def test_whether_it_needs_one_is_decided_by_the_tool(here: httpx.Client, shop: Workshop) -> None:
    """Each time that it is called."""
    shop.strict = False
    assert text_of_response(ask(here, "use lend; say done", "s")) == "done"
    shop.strict = True
    assert len(asked(ask(here, "use lend; say done", "s"))) == 1
    assert shop.done == {"lend": 1}


def test_it_asks_again_later_in_the_turn(here: httpx.Client, shop: Workshop) -> None:
    """Each step that needs an approval stops the turn anew, and goes on from where that was."""
    response = ask(here, "use note; use pay; use note; use lend; use note; say done", "s")
    for expected in ("pay", "lend"):
        assert response["output"][-1]["name"] == expected
        (approval_id,) = asked(response)
        response = end_of(here, decide(here, approval_id, approve=True)["response_id"])
    assert text_of_response(response) == "done"
    assert outputs(here) == ["note 1", "pay 1", "note 2", "lend 1", "note 3"]


def test_always_approved_it_asks_no_more(
    here: httpx.Client, there: httpx.Client, shop: Workshop
) -> None:
    """For that tool in that session: later in the turn, beside it, and in later turns; until it
    is taken back."""
    first, _ = asked(ask(here, "use pay pay; use pay; say done", "s"))
    decided = decide(here, first, approve=True, always_approve=True)
    assert decided["always_approve"]
    assert text_of_response(end_of(here, decided["response_id"])) == "done"
    assert text_of_response(ask(there, "use pay; say more", "s")) == "more"
    assert shop.done == {"pay": 4}
    asked(ask(here, "use lend; say done", "s"))
    asked(ask(here, "use pay; say done", "another"))
    known = here.get("/sessions/s").json()["always_approve"]
    assert known == [{"agent": "Assistant", "name": "pay"}]
    session = there.patch("/sessions/s", json={"always_approve": []}).json()
    assert session["always_approve"] == []
    asked(ask(here, "use pay; say done", "s"))
    assert shop.done == {"pay": 4}


@pytest.mark.parametrize("how", ["whole", "stream", "background"])
def test_input_items_decide_as_well(here: httpx.Client, shop: Workshop, how: str) -> None:
    """As the Responses API has it, several at once, and the reply is the turn that goes on."""
    response = ask(here, "use pay lend; say done", "s")
    pay, lend = asked(response)
    verdicts = [
        {"approval_request_id": pay, "approve": True},
        {"approval_request_id": lend, "approve": False, "reason": "no"},
    ]
    how_asked = {} if how == "whole" else {how: True}
    reply = answer(here, *verdicts, previous_response_id=response["id"], **how_asked)
    assert reply.status_code == 200
    went_on = here.get(f"/approvals/{pay}").json()["response_id"]
    assert text_of_response(end_of(here, went_on)) == "done"
    assert went_on in reply.text
    assert shop.done == {"pay": 1}
    assert here.get(f"/approvals/{lend}").json()["reason"] == "no"


def test_a_part_of_the_decisions_leaves_the_response_waiting(here: httpx.Client) -> None:
    """The reply is the response that still waits, with all that it asks for."""
    response = ask(here, "use pay lend; say done", "s")
    pay, lend = asked(response)
    reply = answer(here, {"approval_request_id": pay, "approve": True}).json()
    assert (reply["id"], asked(reply)) == (response["id"], [pay, lend])
    reply = answer(here, {"approval_request_id": lend, "approve": True}).json()
    assert text_of_response(reply) == "done"


def test_the_openai_client_decides_after_a_restart(apps: list[RunningApp], shop: Workshop) -> None:
    """A dialogue through the official client; a decision that it sends twice is made once."""
    app = apps[0]
    client = openai.OpenAI(base_url=app.url, api_key="none", default_headers=ANN)
    with client:
        response = client.responses.create(model="agent", input="use pay; say done")
        (request,) = [item for item in response.output if item.type == "mcp_approval_request"]
        assert (response.status, request.name) == ("incomplete", "pay")
        app.restart()
        assert client.responses.retrieve(response.id).output[-1].id == request.id
        verdict: Any = {
            "type": "mcp_approval_response",
            "approval_request_id": request.id,
            "approve": True,
        }
        answers = [
            client.responses.create(
                model="agent",
                input=[verdict],
                previous_response_id=response.id,
                extra_headers={"Idempotency-Key": "the same"},
            )
            for _ in range(2)
        ]
        assert [answer.output_text for answer in answers] == ["done", "done"]
        assert answers[0].id == answers[1].id != response.id
        assert shop.done == {"pay": 1}
        again = client.responses.create(
            model="agent", input="say on", previous_response_id=answers[0].id
        )
        assert again.output_text == "on"


def test_parked_here_and_decided_elsewhere(apps: list[RunningApp], shop: Workshop) -> None:
    """The server that asked is gone for good."""
    with client_of(apps[0].url, **ANN) as here:
        (approval_id,) = asked(ask(here, "use note; use pay; say done", "s"))
    apps[0].stop()
    with client_of(apps[1].url, **ANN) as there:
        decided = decide(there, approval_id, approve=True)
        assert text_of_response(end_of(there, decided["response_id"])) == "done"
    assert shop.done == {"note": 1, "pay": 1}
    apps[0].start()


@pytest.mark.parametrize("approve", [True, False])
def test_a_process_that_dies_in_the_approved_call_leaves_it_in_doubt(
    apps: list[RunningApp],
    here: httpx.Client,
    there: httpx.Client,
    backend: Backend,
    shop: Workshop,
    approve: bool,
) -> None:
    """It was approved to run once; whether it runs again is another question. What a person knows
    of it, the model is told."""
    (approval_id,) = asked(ask(here, "use note; use haul; say done", "s"))
    run_id = decide(here, approval_id, approve=True)["response_id"]
    shop.until_begun("haul")
    move(backend, run_id, apps[1])
    (in_doubt,) = asked(end_of(there, run_id))
    shown = there.get(f"/approvals/{in_doubt}").json()
    assert (shown["kind"], shown["name"]) == ("in_doubt", "haul")
    assert outputs(here) == ["note 1", UNKNOWN]
    shop.go_on.set()
    decided = decide(there, in_doubt, approve=approve, reason="I looked: it is there")
    assert text_of_response(end_of(there, decided["response_id"])) == "done"
    assert shop.begun == {"note": 1, "haul": 1 + approve}
    assert outputs(here)[1].startswith("haul " if approve else f"{UNKNOWN}: I looked: it is there")


def test_what_was_called_needs_no_approval_afterwards(
    apps: list[RunningApp],
    here: httpx.Client,
    there: httpx.Client,
    backend: Backend,
    shop: Workshop,
) -> None:
    """A tool that wants one when its run is made again was called before, and is not asked for."""
    shop.strict = False
    run = ask(here, "use lend; use search; say done", "s", background=True)
    shop.until_begun("search")
    shop.strict = True
    move(backend, run["id"], apps[1])
    shop.go_on.set()
    assert text_of_response(end_of(there, run["id"])) == "done"
    assert shop.done["lend"] == 1


def test_a_turn_that_fails_behind_an_approval_stays(
    apps: list[RunningApp], here: httpx.Client, shop: Workshop
) -> None:
    """What was done is kept, and the same input goes on behind it."""
    text = "use pay; stumble done"
    (approval_id,) = asked(ask(here, text, "s"))
    run_id = decide(here, approval_id, approve=True)["response_id"]
    assert end_of(here, run_id)["status"] == "failed"
    assert outputs(here) == ["pay 1"]
    for app in apps:
        app.model.go_on.set()
    assert text_of_response(ask(here, text, "s")) == "done"
    assert (outputs(here), shop.done) == (["pay 1"], {"pay": 1})


def test_a_rejected_turn_that_fails_keeps_its_message(here: httpx.Client) -> None:
    """No tool was called, but somebody was asked."""
    (approval_id,) = asked(ask(here, "use pay; stumble done", "s"))
    run_id = decide(here, approval_id, approve=False)["response_id"]
    assert end_of(here, run_id)["status"] == "failed"
    assert contents(here, "s")[0] == "use pay; stumble done"


def test_nothing_is_kept_of_a_turn_that_is_not_stored(here: httpx.Client, shop: Workshop) -> None:
    """So it can't wait, and says so."""
    reply = post(here, "use pay; say done", "s", store=False)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "needs_store")
    assert here.get("/approvals").json()["data"] == []
    assert shop.done == {}


def test_old_runs_that_wait_are_not_forgotten(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop
) -> None:
    """Retention takes what has ended, not what somebody may decide yet."""
    (approval_id,) = asked(ask(here, "use pay; say done", "s"))
    long_ago = "1" if isinstance(backend, SQLite) else "'2000-01-01'"
    backend.execute(f"UPDATE threadkeep.runs SET finished_at = {long_ago}")
    database = apps[0].app.state.database
    count = apps[0].do(database.call("forget_old_runs", older_than=1000, limit=10))[0]["count"]
    assert count == 0
    decided = decide(here, approval_id, approve=True)
    assert text_of_response(end_of(here, decided["response_id"])) == "done"
