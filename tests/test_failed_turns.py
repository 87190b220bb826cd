"""A turn that fails or loses its process on its way: undone, kept, gone on with, asked about."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from agents import Agent, GuardrailFunctionOutput, RunContextWrapper, output_guardrail

from tests.backends import Backend, SQLite
from tests.client import (
    ANN,
    Json,
    ask,
    client_of,
    contents,
    post,
    session_of,
    text_of_response,
)
from tests.conftest import RunningApp
from tests.deciding import UNKNOWN, end_of, outputs
from tests.workshop import Workshop, move, until

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

NOTE = "(This turn ended before its answer was done: "


@pytest.fixture
def of_agent() -> dict[str, Any]:
    """A guardrail."""
    return {"output_guardrails": [no_secrets]}


@output_guardrail
async def no_secrets(
    context: RunContextWrapper[Any], agent: Agent[Any], said: str
) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(None, tripwire_triggered="secret" in said)


def in_doubt(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop, text: str
) -> Json:
    """A turn whose first server died in the middle of its tools, as it waits for a person."""
    run = ask(here, text, "s", background=True)
    shop.until_begun("work", text.count("work"))
    until(lambda: stored_outcomes(apps[0], run["id"]) == sum(shop.done.values()))
    move(backend, run["id"], apps[1])
    with client_of(apps[1].url, **ANN) as there:
        return end_of(there, run["id"])


def stored_outcomes(app: RunningApp, run_id: str) -> int:
    """How many calls of a run are known to have ended."""
    rows = app.do(app.app.state.database.call("read_journal", journal_id=run_id, owner="ann"))
    return sum(row["status"] == "done" for row in rows)


def test_a_turn_that_fails_before_a_tool_leaves_nothing(here: httpx.Client) -> None:
    """The session is as before, to its last detail; the run says why."""
    ask(here, "say one", "s")
    before = here.get("/sessions/s").json(), here.get("/sessions/s/items").json()
    reply = post(here, "fail", "s")
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "model_error")
    session, items = here.get("/sessions/s").json(), here.get("/sessions/s/items").json()
    del before[0]["updated_at"], session["updated_at"]
    assert (session, items) == before
    run_id = reply.json()["error"]["message"].rpartition("(")[2].rstrip(")")
    assert here.get(f"/responses/{run_id}").json()["status"] == "failed"


def test_an_answer_that_a_guardrail_stops_leaves_nothing(here: httpx.Client) -> None:
    """Nor does its message; the same input is asked anew."""
    ask(here, "say one", "s")
    reply = post(here, "say a secret", "s")
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "guardrail_tripped")
    assert contents(here, "s") == ["say one", "one"]


def test_a_turn_that_fails_after_a_tool_stays(here: httpx.Client, shop: Workshop) -> None:
    """With the outputs of what was done, and a note for the model and whoever reads."""
    assert post(here, "use note; use look; fail", "s").status_code == 502
    *kept, note = contents(here, "s")
    calls = ["function_call", "function_call_output"]
    assert kept == ["use note; use look; fail", *calls, *calls]
    assert note.startswith(NOTE)
    assert outputs(here, "s") == ["note 1", "look 1"]
    assert text_of_response(ask(here, "say on", "s")) == "on"
    assert shop.done == {"note": 1, "look": 1}


@pytest.mark.parametrize("whole", [False, True], ids=["the message", "the whole history"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_the_same_input_resumes_it(
    apps: list[RunningApp],
    here: httpx.Client,
    there: httpx.Client,
    shop: Workshop,
    whole: bool,
    elsewhere: bool,
) -> None:
    """In a new response: no tool runs again, and nothing of the input is stored twice."""
    first = ask(here, "say one", "s")
    history = [{"role": "user", "content": "say one"}, *first["output"]] if whole else []
    text = "use note; use note look; stumble done"
    body = {
        "input": [*history, {"role": "user", "content": text}],
        "custom_inputs": {"session_id": "s"},
    }
    failed = [here.post("/responses", json=body) for _ in range(2)]
    assert [reply.status_code for reply in failed] == [502, 502]
    assert len({reply.json()["error"]["message"] for reply in failed}) == 2
    for app in apps:
        app.model.go_on.set()
    reply = (there if elsewhere else here).post("/responses", json=body).json()
    assert (reply["status"], text_of_response(reply)) == ("completed", "done")
    assert reply["id"] not in str([answer.json() for answer in failed])
    assert shop.done == {"note": 2, "look": 1}
    assert outputs(there, "s") == ["note 1", "note 2", "look 1"]
    assert [c for c in contents(there, "s") if not c.startswith("function")] == [
        "say one",
        "one",
        text,
        "done",
    ]
    assert len(here.get("/sessions").json()["data"]) == 1


def test_another_input_goes_on_behind_it(
    apps: list[RunningApp], here: httpx.Client, shop: Workshop
) -> None:
    """Then the failed turn is over: the same input is a new one."""
    assert post(here, "use note; stumble done", "s").status_code == 502
    ask(here, "say else", "s")
    apps[0].model.go_on.set()
    assert text_of_response(ask(here, "use note; stumble done", "s")) == "done"
    assert outputs(here, "s") == ["note 1", "note 2"]
    kept = [text for text in contents(here, "s") if not text.startswith("function")]
    assert kept[0] == kept[4] == "use note; stumble done"
    assert kept[1].startswith(NOTE)
    assert (kept[2:4], kept[5:]) == (["say else", "else"], ["done"])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("use note; use crash; say never", "agent_error"),
        ("; ".join(["use note"] * 11) + "; say never", "max_turns"),
        ("use note; say a secret", "guardrail_tripped"),
    ],
    ids=["tool", "turns", "guardrail"],
)
def test_what_would_fail_again_is_begun_anew(
    here: httpx.Client, shop: Workshop, text: str, code: str
) -> None:
    """Its tools run once more, behind the turn that failed."""
    replies = [post(here, text, "s") for _ in range(2)]
    assert [reply.json()["error"]["code"] for reply in replies] == [code, code]
    assert contents(here, "s").count(text) == 2
    assert shop.done["note"] == 2 * min(10, text.count("use note"))
    assert text_of_response(ask(here, "say on", "s")) == "on"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_stopped_in_the_middle_of_a_call(
    apps: list[RunningApp],
    here: httpx.Client,
    there: httpx.Client,
    shop: Workshop,
    elsewhere: bool,
) -> None:
    """It is closed as unknown; what had ended beside it is kept, and the talk goes on."""
    run = ask(here, "use note work; say never", "s", background=True)
    shop.until_begun("work")
    until(lambda: stored_outcomes(apps[0], run["id"]) == 1)
    client = there if elsewhere else here
    stopped = client.post(f"/responses/{run['id']}/cancel").json()
    assert stopped["status"] == "cancelled"
    assert outputs(here, "s") == ["note 1", UNKNOWN]
    assert text_of_response(ask(here, "say on", "s")) == "on"


def test_a_call_in_doubt_waits_for_a_person(
    apps: list[RunningApp],
    here: httpx.Client,
    there: httpx.Client,
    backend: Backend,
    shop: Workshop,
) -> None:
    """The response says so, the inbox lists it; what had ended is not asked about."""
    ended = in_doubt(apps, here, backend, shop, "use note; use work; say done")
    assert ended["status"] == "incomplete"
    assert ended["incomplete_details"] == {"reason": "approval_required"}
    *_, asked = ended["output"]
    assert (asked["type"], asked["name"], asked["arguments"]) == (
        "mcp_approval_request",
        "work",
        "{}",
    )
    (listed,) = there.get("/approvals").json()["data"]
    assert (listed["id"], listed["status"], listed["session_id"]) == (asked["id"], "pending", "s")
    assert there.get(f"/approvals/{asked['id']}").json() == listed
    assert outputs(here, "s") == ["note 1", UNKNOWN]
    assert shop.begun == {"note": 1, "work": 1}


def test_approved_it_runs_once_more(
    apps: list[RunningApp],
    here: httpx.Client,
    there: httpx.Client,
    backend: Backend,
    shop: Workshop,
) -> None:
    """The turn goes on in a new response, and ends as if nothing had been; decided once."""
    run = in_doubt(apps, here, backend, shop, "use note; use work; use note; say done")
    shop.go_on.set()
    url = f"/approvals/{run['output'][-1]['id']}"
    decided = there.post(url, json={"approve": True, "reason": "it did not"}).json()
    assert (decided["status"], decided["reason"]) == ("approved", "it did not")
    ended = end_of(here, decided["response_id"])
    assert (ended["status"], text_of_response(ended)) == ("completed", "done")
    assert ended["previous_response_id"] == run["id"] != ended["id"]
    assert shop.begun == {"note": 2, "work": 2}
    assert len(outputs(here, "s")) == 3
    assert UNKNOWN not in outputs(here, "s")
    assert contents(here, "s")[-1] == "done"
    for approve in (True, False):
        again = here.post(url, json={"approve": approve})
        assert (again.status_code, again.headers["x-should-retry"]) == (409, "false")


def test_rejected_its_outcome_is_unknown(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop
) -> None:
    """So the model is told, and it goes on with that."""
    run = in_doubt(apps, here, backend, shop, "use work; use note; say done")
    url = f"/approvals/{run['output'][-1]['id']}"
    decided = here.post(url, json={"approve": False}).json()
    assert decided["status"] == "rejected"
    assert text_of_response(end_of(here, decided["response_id"])) == "done"
    assert outputs(here, "s") == [UNKNOWN, "note 1"]
    assert shop.begun == {"work": 1, "note": 1}
    seen = [item for item in apps[0].model.inputs[-1] if item.get("output")]
    assert [item["output"] for item in seen] == [UNKNOWN, "note 1"]


def test_a_session_that_has_gone_on_waits_for_nobody(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop
) -> None:
    """A new message leaves the call unknown; then it is too late to decide."""
    run = in_doubt(apps, here, backend, shop, "use work; say done")
    assert text_of_response(ask(here, "say else", "s")) == "else"
    reply = here.post(f"/approvals/{run['output'][-1]['id']}", json={"approve": True})
    assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")
    assert outputs(here, "s") == [UNKNOWN]
    assert shop.begun["work"] == 1


def test_it_goes_on_when_all_calls_are_decided(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop
) -> None:
    """Two in doubt: the first decision only waits for the second."""
    run = in_doubt(apps, here, backend, shop, "use work note work; say done")
    asked = [item["id"] for item in run["output"] if item["type"] == "mcp_approval_request"]
    assert len(asked) == 2
    shop.go_on.set()
    first = here.post(f"/approvals/{asked[0]}", json={"approve": True}).json()
    assert first["response_id"] is None
    assert here.get("/sessions/s").json()["active_response_id"] is None
    second = here.post(f"/approvals/{asked[1]}", json={"approve": False}).json()
    assert text_of_response(end_of(here, second["response_id"])) == "done"
    assert shop.begun == {"work": 3, "note": 1}
    note, unknown, work = sorted(outputs(here, "s"))
    assert (note, unknown, work.split()[0]) == ("note 1", UNKNOWN, "work")


def test_two_servers_deciding_at_once_go_on_once(
    apps: list[RunningApp],
    here: httpx.Client,
    there: httpx.Client,
    backend: Backend,
    shop: Workshop,
) -> None:
    """Both are told the same response, or the first one none."""
    run = in_doubt(apps, here, backend, shop, "use work work; say done")
    asked = [item["id"] for item in run["output"] if item["type"] == "mcp_approval_request"]
    shop.go_on.set()
    with ThreadPoolExecutor(2) as pool:
        posts = [
            pool.submit(client.post, f"/approvals/{approval}", json={"approve": True})
            for client, approval in zip((here, there), asked, strict=True)
        ]
        replies = [reply.result() for reply in posts]
    assert [reply.status_code for reply in replies] == [200, 200]
    (response_id,) = {reply.json()["response_id"] for reply in replies} - {None}
    assert text_of_response(end_of(here, response_id)) == "done"
    assert shop.begun["work"] == 4
    assert len(outputs(here, "s")) == 2
    assert contents(here, "s")[-1] == "done"


def test_the_process_that_was_to_go_on_may_die(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop
) -> None:
    """Whoever looks later goes on with what is decided."""
    run = in_doubt(apps, here, backend, shop, "use work; say done")
    approval_id = run["output"][-1]["id"]
    long_ago = "0" if isinstance(backend, SQLite) else "'2000-01-01'"
    backend.execute(
        f"UPDATE threadkeep.approvals SET status = 'approved', decided_at = {long_ago} "
        f"WHERE approval_id = '{approval_id}'"
    )
    shop.go_on.set()
    until(lambda: apps[1].take_over() or shop.done["work"])
    until(lambda: contents(here, "s")[-1] == "done")
    assert shop.begun["work"] == 2


def test_what_may_run_twice_runs_without_asking(
    apps: list[RunningApp], here: httpx.Client, backend: Backend, shop: Workshop
) -> None:
    """An idempotent tool in doubt is called again, and the run keeps its id."""
    run = ask(here, "use note; use search; say done", "s", background=True)
    shop.until_begun("search")
    move(backend, run["id"], apps[1])
    shop.until_begun("search", 2)
    shop.go_on.set()
    assert text_of_response(end_of(here, run["id"])) == "done"
    assert here.get("/approvals").json()["data"] == []
    assert shop.begun == {"note": 1, "search": 2}
    assert session_of(end_of(here, run["id"])) == "s"
