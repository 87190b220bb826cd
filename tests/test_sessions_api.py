"""Sessions over HTTP: changed, forked, rewound, exported and imported, each by its owner alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest

from tests.backends import Backend
from tests.client import ANN, BOB, Json, ask, client_of, contents, follow
from tests.conftest import RunningApp, environment, new_backend
from tests.test_mend import call, output, said, thought, user
from tests.workshop import Workshop
from threadkeep import Session

T = TypeVar("T")


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return new_backend(request, tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def app(place: Backend) -> Iterator[RunningApp]:
    """One server for all tests, behind a proxy that says who asks."""
    settings = environment(place, THREADKEEP_TRUST_PROXY_HEADERS="1")
    app = RunningApp(settings, tools=Workshop().tools())
    yield app
    app.model.go_on.set()
    app.stop()


@pytest.fixture
def ann(app: RunningApp) -> Iterator[httpx.Client]:
    with client_of(app.url, **ANN) as client:
        yield client


@pytest.fixture
def bob(app: RunningApp) -> Iterator[httpx.Client]:
    with client_of(app.url, **BOB) as client:
        yield client


@pytest.fixture
def s(app: RunningApp) -> str:
    """The id of a session, new in each test."""
    return str(uuid4())


def store(app: RunningApp, session_id: str, items: list[Any]) -> None:
    """Stores items as a library does."""
    app.do(Session(session_id, database=app.app.state.database, owner="ann").add_items(items))


def stored(app: RunningApp, session_id: str) -> list[Any]:
    session = Session(session_id, database=app.app.state.database, owner="ann")
    return app.do(session.get_items())


def everything(client: httpx.Client, *session_ids: str) -> list[Json]:
    """The sessions of an owner, and the items of some, as they are told."""
    paths = ["", *(f"/{session_id}/items" for session_id in session_ids)]
    return [client.get(f"/sessions{path}?limit=1000").json() for path in paths]


def refused(reply: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """The reply is an error; gives what it says."""
    assert reply.status_code == status, reply.text[:300]
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    message: str = error["message"]
    return message


TALK = [user("a"), thought(), call("1"), call("2"), output("1"), output("2"), said("b"), user("c")]
"""Seq 2 to 6 belong together."""


def test_a_session_is_changed(ann: httpx.Client, s: str) -> None:
    """What is sent, and no more; metadata as a whole. It keeps its place in the list."""
    ask(ann, "say hi", s)
    before = ann.get(f"/sessions/{s}").json()
    ask(ann, "say newer", str(uuid4()))
    order = [one["id"] for one in ann.get("/sessions").json()["data"]]
    metadata = {"color": "blue", "nested": {"n": [1, 2.5, None]}, "emoji": "🧵\0"}
    changed = ann.patch(f"/sessions/{s}", json={"title": "Ü" * 200, "metadata": metadata})
    assert changed.json() == before | {"title": "Ü" * 200, "metadata": metadata}
    changed = ann.patch(f"/sessions/{s}", json={"metadata": {"b": 1}, "always_approve": []})
    assert changed.json() == before | {"title": "Ü" * 200, "metadata": {"b": 1}}
    changed = ann.patch(f"/sessions/{s}", json={"title": None})
    assert changed.json() == before | {"title": None, "metadata": {"b": 1}}
    assert ann.get(f"/sessions/{s}").json() == changed.json()
    assert [one["id"] for one in ann.get("/sessions").json()["data"]] == order
    ask(ann, "say again", s)
    assert ann.get(f"/sessions/{s}").json()["title"] == "say again"


def test_what_a_session_can_not_be_changed_to(ann: httpx.Client, s: str) -> None:
    """The error names the field, and nothing is changed."""
    ask(ann, "say hi", s)
    before = ann.get(f"/sessions/{s}").json()
    deep = json.loads("[" * 150 + "]" * 150)
    for body, code, param in [
        ({}, "empty", None),
        ({"name": "x"}, "extra_forbidden", "name"),
        ({"title": 7}, "string_type", "title"),
        ({"title": ""}, "invalid_value", "title"),
        ({"title": "x" * 201}, "invalid_value", "title"),
        ({"title": "a\0b"}, "invalid_value", "title"),
        ({"title": "\ud800"}, "invalid_value", "title"),
        ({"metadata": None}, "dict_type", "metadata"),
        ({"title": "x", "metadata": {"a": "\ud800"}}, "invalid_value", "metadata"),
        ({"title": "x", "metadata": {"a": float("nan")}}, "invalid_value", "metadata"),
        ({"title": "x", "metadata": {"a": "x" * 65536}}, "invalid_value", "metadata"),
        ({"title": "x", "metadata": {"a": deep}}, "invalid_value", "metadata"),
        (
            {"title": "x", "always_approve": [{"agent": "a", "name": "\0"}]},
            "invalid_value",
            "always_approve[0].name",
        ),
    ]:
        headers = {"content-type": "application/json"}
        reply = ann.patch(f"/sessions/{s}", content=json.dumps(body), headers=headers)
        refused(reply, 400, code, param)
    assert ann.get(f"/sessions/{s}").json() == before


def test_a_session_is_forked(ann: httpx.Client, app: RunningApp, s: str) -> None:
    """The copy has text, time and title, and no run; what becomes of either is nothing to the
    other."""
    ask(ann, "say one", s)
    ask(ann, "say two", s)
    ann.patch(f"/sessions/{s}", json={"metadata": {"a": 1}})
    parent = ann.get(f"/sessions/{s}").json()
    whole = ann.post(f"/sessions/{s}/fork").json()
    part = ann.post(f"/sessions/{s}/fork", json={"up_to": 2}).json()
    assert UUID(part["id"]).version == 7
    assert part == ann.get(f"/sessions/{part['id']}").json()
    for fork, count in ((whole, 4), (part, 2)):
        assert fork["parent_session_id"] == s
        assert (fork["title"], fork["metadata"]) == (parent["title"], {"a": 1})
        assert fork["item_count"] == count
        copied = ann.get(f"/sessions/{fork['id']}/items").json()["data"]
        items = ann.get(f"/sessions/{s}/items").json()["data"][:count]
        assert copied == [item | {"response_id": None} for item in items]
    assert ann.get(f"/sessions/{s}").json() == parent
    assert ann.get("/sessions").json()["data"][0]["id"] == part["id"]
    ask(ann, "say three", part["id"])
    assert ann.delete(f"/sessions/{s}").is_success
    assert contents(ann, whole["id"]) == ["say one", "one", "say two", "two"]
    assert contents(ann, part["id"]) == ["say one", "one", "say three", "three"]


def test_a_turn_at_work_is_no_hindrance_to_a_fork(
    ann: httpx.Client, app: RunningApp, s: str
) -> None:
    """It has what is stored, and is not touched when the turn goes on or is taken back."""
    app.model.go_on.clear()
    ask(ann, "say one", s)
    reply = ask(ann, "hold", s, background=True)
    refused(ann.post(f"/sessions/{s}/rewind", json={"to": 1}), 409, "session_busy")
    fork = ann.post(f"/sessions/{s}/fork").json()
    assert fork["active_response_id"] is None
    assert contents(ann, fork["id"]) == ["say one", "one", "hold"]
    ask(ann, "say on", fork["id"])
    app.model.go_on.set()
    *_, last = follow(ann, reply["id"])
    assert last["type"] == "response.completed"
    assert contents(ann, s) == ["say one", "one", "hold", "Holding no more."]
    assert contents(ann, fork["id"]) == ["say one", "one", "hold", "say on", "on"]


def test_a_fork_inherits_no_permission(ann: httpx.Client, s: str) -> None:
    """What needs no approval in a session needs one in its fork, and in what is rewound of it."""
    [asked] = [
        item["id"]
        for item in ask(ann, "use pay; say done", s)["output"]
        if item["type"] == "mcp_approval_request"
    ]
    decided = ann.post(f"/approvals/{asked}", json={"approve": True, "always_approve": True})
    list(follow(ann, decided.json()["response_id"]))
    assert ann.get(f"/sessions/{s}").json()["always_approve"] != []
    fork = ann.post(f"/sessions/{s}/fork").json()
    assert fork["always_approve"] == []
    assert ask(ann, "use pay; say done", fork["id"])["status"] == "incomplete"


def test_half_turns_are_never_made(ann: httpx.Client, app: RunningApp, s: str) -> None:
    """Neither by a fork nor by a rewind; the error names the nearest places. A call whose output is
    not there yet stays behind."""
    store(app, s, TALK)
    for seq in range(2, 6):
        reply = ann.post(f"/sessions/{s}/fork", json={"up_to": seq})
        said = refused(reply, 400, "half_turn", "up_to")
        assert said.endswith("The nearest that can be: 1 or 6.")
        reply = ann.post(f"/sessions/{s}/rewind", json={"to": seq + 1})
        said = refused(reply, 400, "half_turn", "to")
        assert said.endswith("The nearest that can be: 2 or 7.")
    for seq in (1, 6, 7, 8):
        fork = ann.post(f"/sessions/{s}/fork", json={"up_to": seq}).json()
        assert stored(app, fork["id"]) == TALK[:seq]
    for body, param in (({"up_to": 9}, "up_to"), ({"to": 9}, "to")):
        reply = ann.post(f"/sessions/{s}/{'fork' if param == 'up_to' else 'rewind'}", json=body)
        assert "the session has 8" in refused(reply, 400, "invalid_value", param)
    store(app, s, [call("3"), call("4"), output("3")])
    reply = ann.post(f"/sessions/{s}/fork", json={"up_to": 11})
    assert refused(reply, 400, "half_turn", "up_to").endswith("The nearest that can be: 8.")
    assert stored(app, ann.post(f"/sessions/{s}/fork").json()["id"]) == TALK
    assert stored(app, s) == [*TALK, call("3"), call("4"), output("3")]
    store(app, s, [output("4")])
    assert ann.post(f"/sessions/{s}/fork").json()["item_count"] == 12


def test_a_session_is_rewound(ann: httpx.Client, s: str) -> None:
    """What is cut is kept in a fork, and the model sees it no more; also from the first item on."""
    ask(ann, "I live in Rome", s)
    ask(ann, "say two", s)
    rewound = ann.post(f"/sessions/{s}/rewind", json={"to": 3}).json()
    fork_id = rewound.pop("fork_id")
    assert rewound == ann.get(f"/sessions/{s}").json()
    assert contents(ann, s) == ["I live in Rome", "You said: I live in Rome"]
    assert contents(ann, fork_id)[2:] == ["say two", "two"]
    assert ann.get(f"/sessions/{fork_id}").json()["parent_session_id"] == s
    assert ann.post(f"/sessions/{s}/rewind", json={"to": 1}).json()["item_count"] == 0
    reply = ask(ann, "What city?", s)
    assert "You did not say." in str(reply["output"])


def test_exported_and_imported(ann: httpx.Client, bob: httpx.Client, s: str) -> None:
    """As it was, and whoever sends it owns it; not twice, and not over one of somebody else."""
    ask(ann, "use note; say done", s)
    ann.patch(f"/sessions/{s}", json={"title": "Mine", "metadata": {"a": [1.0, "\n"]}})
    session, items = (ann.get(f"/sessions/{s}{part}").json() for part in ("", "/items"))
    exported = ann.get(f"/sessions/{s}/export")
    assert exported.headers["content-type"] == "application/jsonl"
    head, *lines = [json.loads(line) for line in exported.text.splitlines()]
    assert (head["object"], head["version"], head["item_count"]) == ("session", 1, len(lines))
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert "owner" not in head
    mine, others = (
        client.post("/sessions/import", content=exported.content) for client in (ann, bob)
    )
    assert refused(mine, 409, "session_exists") == refused(others, 409, "session_exists")
    assert mine.headers["x-should-retry"] == "false"
    assert ann.delete(f"/sessions/{s}").is_success
    imported = bob.post("/sessions/import", content=exported.content).json()
    assert imported == session
    assert bob.get(f"/sessions/{s}/items").json() == items
    assert bob.get(f"/sessions/{s}/export").content == exported.content
    assert ann.get(f"/sessions/{s}").status_code == 404
    ask(bob, "say on", s)
    assert contents(bob, s)[-1] == "on"


def test_what_can_not_be_imported(ann: httpx.Client, app: RunningApp, s: str) -> None:
    """The error names the line, and nothing is kept of the others."""
    store(app, s, [user("a"), user("b"), user("c")])
    good = ann.get(f"/sessions/{s}/export").text.replace(s, str(uuid4())).splitlines()
    before = everything(ann)
    head, one, two, three = good
    data = json.dumps({"role": "user"})
    for lines, number, words in [
        ([], None, "nothing to import"),
        (["", one], 2, "must be a session"),
        ([head, one, two], 3, "tells of 3 items, and 2 came"),
        ([*good, three], 5, "one more item"),
        ([head, two, three], 2, "the seq 1"),
        ([head, one, two[:-1], three], 3, "is no JSON object"),
        ([head, one, two + "{}", three], 3, "is no JSON object"),
        ([head, one, "[]", three], 3, "is no JSON object"),
        ([head, one, "[" * 99999, three], 3, "is no JSON object"),
        ([head, one, '{"object":"item","seq":NaN}', three], 3, "is no JSON object"),
        ([head, head], 2, "must be an item"),
        ([head.replace('"version":1', '"version":2')], 1, "knows 1"),
        ([head.replace('"version":1', '"version":1,"owner":"bob"')], 1, 'known: ["owner"]'),
        ([head.replace('"item_count":3', '"item_count":true')], 1, "item_count"),
        ([head.replace('"metadata":{}', '"metadata":"x"')], 1, "metadata must be an object"),
        ([head.replace('"title":"a"', '"title":7')], 1, "title must be a string"),
        ([head.replace('"id":"', '"id":"\\n')], 1, "id must have no control"),
        ([head, one.replace('"created_at":', '"created_at":-')], 2, "created_at"),
        ([head, one.replace('"response_id":null', '"response_id":""')], 2, "response_id"),
        ([head, one.split('"data"')[0] + '"data":7}'], 2, "must have an object"),
        ([head, one.split('"data"')[0] + '"data":"\\u0000"}'], 2, "NUL"),
        ([head, one.split('"data"')[0] + '"data":"\\ud800"}'], 2, "surrogate"),
        ([head, one.split('"data"')[0] + f'"data":{"[" * 200}{data}{"]" * 200}}}'], 2, "object"),
        (
            [head, one.split('"data"')[0] + f'"data":{{"a":{"[" * 100}{"]" * 100}}}}}'],
            2,
            "too deeply",
        ),
    ]:
        reply = ann.post("/sessions/import", content="\n".join(lines))
        assert reply.status_code == 400, lines
        error = reply.json()["error"]
        assert error["param"] == (f"line {number}" if number else None), (error, lines)
        assert words in error["message"]
    broken = f"{head}\n{one}\n".encode() + b"\xff\n"
    refused(ann.post("/sessions/import", content=broken), 400, "invalid_value", "line 3")
    big = (head, one, two, '"' + "x" * 9 * 1024 * 1024)
    refused(ann.post("/sessions/import", content="\n".join(big)), 413, "too_large")
    assert everything(ann) == before


def test_what_only_an_import_can_bring(ann: httpx.Client, app: RunningApp, s: str) -> None:
    """Texts that are no items, or that others can't read, hide nothing else; the talk goes on."""
    store(app, s, [user("I live in SF")] * 4)
    deep = json.dumps('{"a":' + "[" * 5000 + "]" * 5000 + "}")
    texts = ['"no item"', deep, '{"type":"x","n":1e999}', '{"role":"user","content":"\\ud800"}']
    head, *lines = ann.get(f"/sessions/{s}/export").text.replace(s, "new-" + s).splitlines()
    lines = [
        line.split('"data"')[0] + f'"data":{text}}}'
        for line, text in zip(lines, texts, strict=True)
    ]
    body = "\n".join([head, *lines]) + "\n"
    assert ann.post("/sessions/import", content=body).is_success
    items = ann.get(f"/sessions/new-{s}/items?html=true").json()["data"]
    assert [item["type"] for item in items] == ["unreadable"] * 3 + ["message"]
    assert ann.get(f"/sessions/new-{s}/export").text == body
    assert ann.post(f"/sessions/new-{s}/fork").json()["item_count"] == 4


def test_sessions_are_searched(ann: httpx.Client, bob: httpx.Client, s: str) -> None:
    """As they are listed, with what was found in each; those of others never."""
    word = f"w{s[:8]}"
    ask(ann, f"say we talk of {word}", s)
    ask(ann, f"say and of {word} too", f"{s}-2")
    first, page, none = (
        ann.get("/sessions", params={"q": q, "limit": 1}).json()
        for q in (f"{word} talk", word, "zzz")
    )
    [session] = first["data"]
    match = session.pop("match")
    assert session == ann.get(f"/sessions/{s}").json()
    assert (match["seq"], [match["text"][a:b] for a, b in match["marks"]]) == (2, ["talk", word])
    assert (page["has_more"], page["complete"], len(page["data"])) == (True, True, 1)
    assert none == {
        "object": "list",
        "data": [],
        "has_more": False,
        "complete": True,
    } | dict.fromkeys(("first_id", "last_id"))
    assert bob.get("/sessions", params={"q": word}).json() == none
    refused(ann.get("/sessions", params={"q": "x" * 401}), 400, "invalid_value", "q")


def test_an_id_that_can_not_be_is_a_404(bob: httpx.Client) -> None:
    """In every call. Those of somebody else are in test_owners.py."""
    for session_id in ("%00", "x" * 600):
        url = f"/sessions/{session_id}"
        for reply in (
            bob.get(url),
            bob.get(f"{url}/items"),
            bob.patch(url, json={"title": "x", "metadata": {}, "always_approve": []}),
            bob.post(f"{url}/fork"),
            bob.post(f"{url}/fork", json={"up_to": 1}),
            bob.post(f"{url}/rewind", json={"to": 1}),
            bob.get(f"{url}/export"),
            bob.delete(url),
        ):
            refused(reply, 404, "not_found")


def test_what_is_done_at_once_is_done_whole(ann: httpx.Client, app: RunningApp, s: str) -> None:
    """Forks and rewinds beside appends: each fork is the beginning of what was stored, and all that
    a rewind cuts is in its fork."""
    database = app.app.state.database
    store(app, s, [user("0")])

    async def append(number: int) -> None:
        await Session(s, database=database, owner="ann").add_items([user(f"{number}")] * 2)

    async def together() -> list[Any]:
        async with httpx.AsyncClient(base_url=app.url, headers=ANN, timeout=60) as client:
            work: list[Coroutine[Any, Any, Any]] = []
            for number in range(1, 9):
                work += [append(number), client.post(f"/sessions/{s}/fork")]
            work += [client.post(f"/sessions/{s}/rewind", json={"to": 1}) for _ in range(1)]
            return [r for r in await asyncio.gather(*work) if r is not None]

    replies = app.do(together())
    assert all(reply.is_success for reply in replies)
    cut = contents(ann, replies[-1].json()["fork_id"])
    kept = contents(ann, s)
    assert sorted(cut + kept) == sorted(["0"] + [str(n) for n in range(1, 9)] * 2)
    for reply in replies[:-1]:
        assert contents(ann, reply.json()["id"]) in (
            [cut[:n] for n in range(len(cut) + 1)] + [kept[:n] for n in range(len(kept) + 1)]
        )
