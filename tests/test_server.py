"""Turns over real HTTP: plain, streamed and in background; followed, stopped and failed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, cast
from uuid import UUID

import httpx2 as httpx
import pytest
from agents import Agent

from tests.backends import Backend
from tests.client import (
    ask,
    client_of,
    contents,
    follow,
    post,
    session_of,
    stream,
    text_of_response,
)
from tests.conftest import RunningApp, backends, run_app
from threadkeep.server.run_requests import RunRequests

backend = backends("sqlite", "postgres")


@pytest.fixture
def running_app(backend: Backend) -> Iterator[RunningApp]:
    """A server on each kind of database in turn."""
    yield from run_app(backend)


@pytest.fixture
def client(running_app: RunningApp) -> Iterator[httpx.Client]:
    with client_of(running_app.url) as client:
        yield client


def test_the_documented_conversation(client: httpx.Client) -> None:
    """The second turn knows what the first one said; the session is new, and its id is a uuid7."""
    first = ask(client, "Hello, I live in SF!")
    assert UUID(session_of(first)).version == 7
    second = ask(client, "What city did I say I live in?", session_of(first))
    assert text_of_response(second) == "You live in SF."
    assert session_of(second) == session_of(first)
    assert first["id"].startswith("resp_")
    assert (first["object"], first["status"]) == ("response", "completed")
    assert first["usage"]["total_tokens"] == 8


def test_a_stream_is_one_response(client: httpx.Client) -> None:
    """One first and one last event, numbered from 0 over tools and all, every text closed."""
    events = stream(client, "time")
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.created") == kinds.count("response.completed") == 1
    assert kinds.count("response.output_text.done") == 1
    assert kinds.count("response.content_part.done") == 1
    last = events[-1]["response"]
    assert session_of(events[0]["response"]) == session_of(last)
    assert [i["type"] for i in last["output"]] == [
        "function_call",
        "function_call_output",
        "message",
    ]
    added = [e for e in events if e["type"] == "response.output_item.added"]
    done = [e for e in events if e["type"] == "response.output_item.done"]
    assert [e["output_index"] for e in added] == [e["output_index"] for e in done] == [0, 1, 2]
    assert [e["item"]["id"] for e in added] == [item["id"] for item in last["output"]]
    assert len({item["id"] for item in last["output"]}) == 3
    assert "__fake_id__" not in str(events)


def test_a_streamed_answer_is_kept_like_a_plain_one(client: httpx.Client) -> None:
    """Its deltas add up to the text; the next turn knows it."""
    events = stream(client, "I live in SF")
    deltas = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    last = events[-1]["response"]
    assert deltas == text_of_response(last)
    again = ask(client, "What city?", session_of(last))
    assert text_of_response(again) == "You live in SF."


@pytest.mark.parametrize(
    "naming",
    [
        {"custom_inputs": {"session_id": "mine"}},
        {"context": {"conversation_id": "mine"}},
        {"conversation": "mine"},
        {"conversation": {"id": "mine"}},
        {
            "custom_inputs": {"session_id": "mine"},
            "context": {"conversation_id": "x"},
            "conversation": "y",
        },
        {"context": {"conversation_id": "mine"}, "conversation": "y"},
        {"custom_inputs": {"session_id": None}, "conversation": "mine"},
    ],
    ids=str,
)
def test_ways_to_name_a_session(client: httpx.Client, naming: dict[str, Any]) -> None:
    """The first of custom_inputs, context and conversation counts."""
    reply = client.post("/responses", json={"input": "hi"} | naming).json()
    assert session_of(reply) == "mine"
    assert reply["conversation"] == {"id": "mine"}


def test_previous_response_id_goes_on_with_its_session(
    client: httpx.Client, running_app: RunningApp
) -> None:
    """Also after a restart; an unknown one is a 404."""
    first = ask(client, "I live in SF")
    running_app.restart()
    second = client.post(
        "/responses", json={"input": "What city?", "previous_response_id": first["id"]}
    ).json()
    assert text_of_response(second) == "You live in SF."
    assert second["previous_response_id"] == first["id"]
    reply = client.post("/responses", json={"input": "x", "previous_response_id": "resp_no"})
    assert reply.status_code == 404


def test_whole_histories_are_not_stored_twice(client: httpx.Client) -> None:
    """Clients that send everything each time, on a new session and on a known one."""
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "I live in SF"},
        {"role": "assistant", "content": "Nice."},
        {"role": "user", "content": "What city?"},
    ]
    first = client.post("/responses", json={"input": talk}).json()
    session_id = session_of(first)
    assert text_of_response(first) == "You live in SF."
    talk += [*first["output"], {"role": "user", "content": "say bye"}]
    again = client.post(
        "/responses", json={"input": talk, "custom_inputs": {"session_id": session_id}}
    ).json()
    assert text_of_response(again) == "bye"
    assert contents(client, session_id) == [
        "I live in SF",
        "Nice.",
        "What city?",
        "You live in SF.",
        "say bye",
        "bye",
    ]


def test_an_edited_message_keeps_the_old_branch_as_a_fork(client: httpx.Client) -> None:
    """The session goes on along the new branch; the model no longer sees the old one."""
    first = ask(client, "say one")
    session_id = session_of(first)
    ask(client, "I live in Rome", session_id)
    edited = [
        {"role": "user", "content": "say one"},
        *first["output"],
        {"role": "user", "content": "What city?"},
    ]
    reply = client.post(
        "/responses", json={"input": edited, "custom_inputs": {"session_id": session_id}}
    ).json()
    assert text_of_response(reply) == "You did not say."
    assert contents(client, session_id) == ["say one", "one", "What city?", "You did not say."]
    sessions = client.get("/sessions").json()["data"]
    (fork,) = [s for s in sessions if s["parent_session_id"] == session_id]
    old = ["say one", "one", "I live in Rome", "You said: I live in Rome"]
    assert contents(client, fork["id"]) == old


def test_two_new_messages_in_one_request_are_both_kept(client: httpx.Client) -> None:
    """In their order, before the answer."""
    messages = [{"role": "user", "content": text} for text in ("I live in SF", "What city?")]
    reply = client.post("/responses", json={"input": messages}).json()
    assert text_of_response(reply) == "You live in SF."
    assert contents(client, session_of(reply)) == ["I live in SF", "What city?", "You live in SF."]


def test_a_background_run_is_polled_and_followed(
    client: httpx.Client, running_app: RunningApp
) -> None:
    """The reply comes at once; following shows every event once, from any point on."""
    reply = ask(client, "hold", background=True)
    assert reply["status"] == "in_progress"
    assert client.get(f"/responses/{reply['id']}").json()["status"] == "in_progress"
    session = client.get(f"/sessions/{session_of(reply)}").json()
    assert session["active_response_id"] == reply["id"]
    running_app.model.go_on.set()
    events = list(follow(client, reply["id"]))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    done = client.get(f"/responses/{reply['id']}").json()
    assert done == events[-1]["response"]
    assert text_of_response(done) == "Holding no more."
    session = client.get(f"/sessions/{session_of(reply)}").json()
    assert session["active_response_id"] is None


def test_following_with_cuts_misses_nothing(client: httpx.Client) -> None:
    """Cut every few events and resumed by cursor or header, it equals an uncut one."""
    reply = ask(client, "count 60", background=True)
    seen: list[Any] = []
    while not seen or seen[-1]["type"] != "response.completed":
        after = {"starting_after": seen[-1]["sequence_number"]} if seen else {}
        seen += islice(follow(client, reply["id"], **after), 7)
    assert seen == list(follow(client, reply["id"]))
    last = str(seen[-1]["sequence_number"])
    url = f"/responses/{reply['id']}?stream=true"
    assert client.get(url, headers={"Last-Event-ID": last}).status_code == 204
    assert client.get(f"{url}&starting_after={last}").status_code == 204
    with client.stream("GET", url, headers={"Last-Event-ID": "3"}) as resumed:
        assert next(resumed.iter_lines()) == "id: 4"


def test_a_stream_carries_its_html_for_the_page(client: httpx.Client) -> None:
    """Blocks put together by the deltas equal the whole text rendered; a cursor changes nothing."""
    reply = ask(client, "say # Title\n\nsome *text*\n\n- a\n- b", background=True)
    blocks: list[str] = []
    after = -1
    for _ in range(100):
        for event in islice(follow(client, reply["id"], html=True, starting_after=after + 1), 3):
            after = event["sequence_number"]
            if "html" in event:
                blocks[event["html"]["from"] :] = event["html"]["blocks"]
        if event["type"] == "response.completed":
            break
    items = client.get(f"/sessions/{session_of(reply)}/items?html=true").json()["data"]
    assert blocks == items[-1]["html"]
    assert "<h1>" in blocks[0]


def test_a_client_that_goes_away_stops_nothing(client: httpx.Client) -> None:
    """The answer is there when it comes back."""
    body = {"input": "count 50", "stream": True}
    with client.stream("POST", "/responses", json=body) as reply:
        first = next(line for line in reply.iter_lines() if line.startswith("data:"))
    response_id = first.split('"id":"')[1].split('"')[0]
    *_, last = follow(client, response_id)
    assert text_of_response(last["response"]).endswith("50 ")


def test_stopping_keeps_what_was_said(client: httpx.Client) -> None:
    """The status is cancelled, the partial answer stays, and the talk goes on."""
    reply = ask(client, "hold", background=True)
    for event in follow(client, reply["id"]):
        if event["type"] == "response.output_text.delta":
            break
    stopped = client.post(f"/responses/{reply['id']}/cancel").json()
    assert stopped["status"] == "cancelled"
    assert text_of_response(stopped) == "Holding "
    assert client.post(f"/responses/{reply['id']}/cancel").json() == stopped
    *_, last = follow(client, reply["id"])
    assert last["type"] == "response.incomplete"
    assert contents(client, session_of(reply)) == ["hold", "Holding "]
    assert text_of_response(ask(client, "say on", session_of(reply))) == "on"


def test_stopping_keeps_a_message_that_was_finished(client: httpx.Client) -> None:
    """Also when the model had not ended its answer, so that the SDK had stored nothing."""
    reply = ask(client, "linger first words", background=True)
    for event in follow(client, reply["id"]):
        if event["type"] == "response.output_item.done":
            break
    stopped = client.post(f"/responses/{reply['id']}/cancel").json()
    assert (stopped["status"], text_of_response(stopped)) == ("cancelled", "first words")
    assert contents(client, session_of(reply)) == ["linger first words", "first words"]


def test_a_refusal_is_an_answer(client: httpx.Client) -> None:
    """The user is told, and the talk goes on."""
    reply = ask(client, "refuse", "s")
    assert reply["status"] == "completed"
    assert reply["output"][0]["content"][0]["refusal"] == "I'd rather not."
    assert text_of_response(ask(client, "say on", "s")) == "on"


def test_a_failed_first_turn_leaves_no_session(client: httpx.Client) -> None:
    """Nobody finds a nameless empty chat in the list; the run can still be looked up."""
    reply = post(client, "fail", "s")
    assert client.get("/sessions").json()["data"] == []
    run_id = reply.json()["error"]["message"].split("(")[1].split(")")[0]
    assert client.get(f"/responses/{run_id}").json()["status"] == "failed"


def test_a_failed_edit_is_undone(client: httpx.Client) -> None:
    """The branch that was cut off for it is back, and its fork is gone."""
    first = ask(client, "say one", "s")
    ask(client, "say two", "s")
    before = client.get("/sessions/s/items").json()["data"]
    edited = [
        {"role": "user", "content": "say one"},
        *first["output"],
        {"role": "user", "content": "fail"},
    ]
    body = {"input": edited, "custom_inputs": {"session_id": "s"}}
    assert client.post("/responses", json=body).status_code == 502
    assert client.get("/sessions/s/items").json()["data"] == before
    assert len(client.get("/sessions").json()["data"]) == 1


def test_a_failed_turn_is_taken_back(client: httpx.Client) -> None:
    """The error says what to do and names no host; the retry is stored once."""
    session_id = session_of(ask(client, "say hi"))
    reply = post(client, "fail", session_id)
    assert reply.status_code == 502
    assert reply.headers["x-should-retry"] == "false"
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("model_error", "model_error")
    assert "resp_" in error["message"]
    assert contents(client, session_id) == ["say hi", "hi"]
    events = stream(client, "fail", session_id)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "model_error"
    assert contents(client, session_id) == ["say hi", "hi"]
    assert text_of_response(ask(client, "say ok", session_id)) == "ok"


def test_a_turn_stays_once_a_tool_has_run(client: httpx.Client) -> None:
    """What was paid for is not forgotten, and no call is left without its output."""
    assert post(client, "time and fail", "s").status_code == 502
    *kept, note = contents(client, "s")
    assert kept == ["time and fail", "function_call", "function_call_output"]
    assert "can't be reached" in note
    assert text_of_response(ask(client, "say on", "s")) == "on"


def test_turns_of_one_session_wait_for_each_other(
    client: httpx.Client, running_app: RunningApp
) -> None:
    """Twenty at once are stored one after the other, each with its answer."""
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda n: ask(client, f"say {n}", "busy"), range(20)))
    assert [text_of_response(reply) for reply in replies] == [str(n) for n in range(20)]
    stored = contents(client, "busy")
    assert len(stored) == 40
    assert all(stored[i] == f"say {stored[i + 1]}" for i in range(0, 40, 2))


def test_a_background_run_that_waits_is_queued(
    client: httpx.Client, running_app: RunningApp
) -> None:
    """It can be seen and stopped while it waits."""
    first = ask(client, "hold", "s", background=True)
    second = ask(client, "say later", "s", background=True)
    third = ask(client, "say never", "s", background=True)
    assert (first["status"], second["status"]) == ("in_progress", "queued")
    stopped = client.post(f"/responses/{third['id']}/cancel").json()
    assert stopped["status"] == "cancelled"
    running_app.model.go_on.set()
    *_, last = follow(client, second["id"])
    assert text_of_response(last["response"]) == "later"
    assert contents(client, "s") == ["hold", "Holding no more.", "say later", "later"]


def test_with_store_false_nothing_is_kept(client: httpx.Client) -> None:
    """The session is read, but neither items nor the run are written."""
    session_id = session_of(ask(client, "I live in SF"))
    reply = ask(client, "What city?", session_id, store=False)
    assert text_of_response(reply) == "You live in SF."
    assert len(contents(client, session_id)) == 2
    assert client.get(f"/responses/{reply['id']}").status_code == 404
    ask(client, "time", "never", store=False)
    assert client.get("/sessions/never").status_code == 404


def test_an_answer_goes_on_after_a_restart(client: httpx.Client, running_app: RunningApp) -> None:
    """It keeps its id; who follows is told where it goes on, and what was said in vain."""
    reply = ask(client, "hold", background=True)
    for event in follow(client, reply["id"]):
        if event["type"] == "response.output_text.delta":
            break
    running_app.restart()
    running_app.model.go_on.set()
    events = list(follow(client, reply["id"]))
    kinds = [event["type"] for event in events]
    assert kinds.count("response.created") == kinds.count("threadkeep.resumed") == 1
    resumed = events[kinds.index("threadkeep.resumed")]
    assert (resumed["voided"], kinds[-1]) == ([0], "response.completed")
    assert text_of_response(events[-1]["response"]) == "Holding no more."
    assert contents(client, session_of(reply)) == ["hold", "Holding no more."]
    assert text_of_response(ask(client, "say on", session_of(reply))) == "on"


def test_user_code_that_gives_no_session_id_is_told(
    running_app: RunningApp, client: httpx.Client
) -> None:
    """It is not the client's fault, and the function is named."""
    state = running_app.app.state
    state.run_requests = RunRequests(
        lambda context: Agent(name="A"),
        lambda request: cast(str, None),
        state.models,
        "",
        "enqueue",
    )
    reply = post(client, "hi", metadata={"a": "b"})
    assert reply.status_code == 500
    assert "get_session_id" in reply.json()["error"]["message"]


def test_sessions_are_listed_paged_and_deleted(client: httpx.Client) -> None:
    """Last changed first; deleting one removes its items and runs, and no other."""
    ids = [session_of(ask(client, f"say {n}")) for n in range(5)]
    ask(client, "again", ids[1])
    order = [ids[1], ids[4], ids[3], ids[2], ids[0]]
    listed = client.get("/sessions").json()
    assert [s["id"] for s in listed["data"]] == order
    assert listed["data"][0]["title"] == "say 1"
    page = client.get("/sessions?limit=2").json()
    assert ([s["id"] for s in page["data"]], page["has_more"]) == (order[:2], True)
    page = client.get(f"/sessions?limit=3&after={page['last_id']}").json()
    assert ([s["id"] for s in page["data"]], page["has_more"]) == (order[2:], False)

    run = client.get(f"/sessions/{ids[0]}/items").json()["data"][0]["response_id"]
    assert client.delete(f"/sessions/{ids[0]}").json()["deleted"]
    for path in (f"/sessions/{ids[0]}", f"/sessions/{ids[0]}/items", f"/responses/{run}"):
        assert client.get(path).status_code == 404
    assert client.delete(f"/sessions/{ids[0]}").status_code == 404
    assert len(client.get("/sessions").json()["data"]) == 4


def test_a_session_is_deleted_under_a_running_answer(client: httpx.Client) -> None:
    """The run is stopped first, and nothing of it comes back."""
    reply = ask(client, "hold", background=True)
    assert client.delete(f"/sessions/{session_of(reply)}").status_code == 200
    assert client.get(f"/sessions/{session_of(reply)}").status_code == 404
    assert client.get(f"/responses/{reply['id']}").status_code == 404


def test_a_damaged_item_is_shown_as_such(client: httpx.Client, backend: Backend) -> None:
    """The others are listed and go to the model; the row stays."""
    ask(client, "I live in SF", "s")
    backend.execute("UPDATE threadkeep.items SET data = 'x' WHERE seq = 2")
    backend.execute("UPDATE threadkeep.sessions SET epoch = 1")
    first, second = client.get("/sessions/s/items?html=true").json()["data"]
    assert (first["content"], second["type"], second["seq"]) == ("I live in SF", "unreadable", 2)
    assert text_of_response(ask(client, "What city?", "s")) == "You live in SF."


def test_items_are_paged_in_both_directions(client: httpx.Client) -> None:
    """Each carries its seq, which is the cursor."""
    for n in range(3):
        ask(client, f"say {n}", "s")
    page = client.get("/sessions/s/items?limit=4").json()
    assert ([i["seq"] for i in page["data"]], page["has_more"]) == ([1, 2, 3, 4], True)
    page = client.get("/sessions/s/items?limit=4&after=4").json()
    assert ([i["seq"] for i in page["data"]], page["has_more"]) == ([5, 6], False)
    page = client.get("/sessions/s/items?limit=4&order=desc").json()
    assert ([i["seq"] for i in page["data"]], page["has_more"]) == ([6, 5, 4, 3], True)
    page = client.get("/sessions/s/items?limit=4&order=desc&after=3").json()
    assert ([i["seq"] for i in page["data"]], page["has_more"]) == ([2, 1], False)


def test_health_ready_and_info(client: httpx.Client) -> None:
    """As probes and MLflow's clients ask for them."""
    assert client.get("/health").json() == {"status": "healthy"}
    assert client.get("/ready").json()["status"] == "ready"
    info = client.get("/agent/info").json()
    assert (info["use_case"], info["agent_api"]) == ("agent", "responses")


def test_the_reference_comes_from_this_server_alone(client: httpx.Client) -> None:
    """Every call is in it, and it loads nothing from elsewhere."""
    page = client.get("/docs").text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page
    assert "http://" not in page
    assert "https://" not in page
