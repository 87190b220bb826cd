"""Whose it is: every route of the app, with every id of somebody else's in every place for one.

The routes, and what each takes, come from the app. What this file does not know fails here, and
says which table is to have it. The statements are in test_owner_statements.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args
from uuid import uuid4

import httpx2 as httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from tests.client import client_of
from tests.conftest import new_backend
from tests.owner_world import KEYS, MARK, World, world_on
from threadkeep.api_keys import ANY
from threadkeep.errors import ResponseNotFoundError, SessionNotFoundError
from threadkeep.server.identity import owner_of
from threadkeep.server.responses import Owner

WITHOUT_OWNER = {
    "GET /",
    "GET /agent/info",
    "GET /docs",
    "GET /favicon.ico",
    "GET /health",
    "GET /openapi.json",
    "GET /page/{name}",
    "GET /ready",
    "HEAD /health",
    "HEAD /openapi.json",
    "HEAD /ready",
}
"""Routes that hold nothing of anybody."""

UNKNOWN = "01900000-0000-7000-8000-000000000000"
"""An id that never was."""


@dataclass(frozen=True)
class Id:
    """A place for an id.

    Args:
        kind: Of what: `session`, `response`, `approval`, `key`, `memory` or its `path`.
        reply: What comes of one of Ann's. `missing`: the same as of one that never was, which is a
            404, or 200 and an empty list where it only narrows one. `taken`: a client may choose
            it, so one that never was makes a session; hers is a 404. `exists`: the same, and a 409.
            `own`: it is what Bob calls something of his own.
    """

    kind: str
    reply: str = "missing"


@dataclass(frozen=True)
class Plain:
    """A place for anything else.

    Args:
        values: What is sent, first of all; then each of the others in turn. None: nothing.
    """

    values: tuple[Any, ...] = (None,)


PLACES: dict[str, Id | Plain] = {
    "path session_id": Id("session"),
    "path response_id": Id("response"),
    "path approval_id": Id("approval"),
    "path memory_id": Id("memory"),
    "query session_id": Id("session", "narrows"),
    "query after": Id("session", "narrows"),
    "GET /approvals query after": Id("approval", "narrows"),
    "GET /memories query after": Id("memory", "narrows"),
    "GET /sessions/{session_id}/items query after": Plain((None, 1)),
    "query limit": Plain(),
    "query q": Plain((None, MARK)),
    "query order": Plain((None, "desc")),
    "query html": Plain((None, "true")),
    "query status": Plain((None, "pending")),
    "query stream": Plain((None, "true")),
    "query starting_after": Plain((None, 0, 10**6)),
    "header last-event-id": Plain((None, "0")),
    "header idempotency-key": Id("key", "own"),
    "body input": Plain(("say mine",)),
    "body input[].approval_request_id": Id("approval"),
    "body stream": Plain((None, True)),
    "body background": Plain((None, True)),
    "body custom_inputs": Plain(),
    "body custom_inputs.session_id": Id("session", "taken"),
    "body custom_inputs.concurrency": Plain((None, "reject", "interrupt", "rollback")),
    "body context.conversation_id": Id("session", "taken"),
    "body context.user_id": Plain((None, "ann")),
    "body conversation": Id("session", "taken"),
    "body conversation.id": Id("session", "taken"),
    "body previous_response_id": Id("response"),
    "body model": Plain(),
    "body metadata": Plain((None, {})),
    "body store": Plain((None, False)),
    "body user": Plain((None, "ann")),
    "body title": Plain(("mine",)),
    "body always_approve": Plain((None, [{"agent": "Assistant", "name": "pay"}])),
    "body expires_at": Plain((None, 1)),
    "body up_to": Plain((None, 1)),
    "body to": Plain((1,)),
    "body approve": Plain((True, False)),
    "body reason": Plain((None, "mine")),
    "POST /approvals/{approval_id} body always_approve": Plain((None, True)),
    "body path": Id("path", "own"),
    "body description": Plain(("mine",)),
    "body contents": Plain((None, "mine")),
    "body keywords": Plain((None, ["mine"])),
    "body pinned": Plain((None, True)),
    "body valid_from": Plain((None, 1)),
    "body valid_to": Plain((None, 10**10)),
    "body superseded_by": Id("memory"),
    "body version": Plain((None, 1)),
    "lines id": Id("session", "exists"),
    "lines parent_session_id": Id("session", "own"),
    "lines response_id": Id("response", "own"),
}
"""What each parameter is. A name in front of it says the one route that it is so of."""

INSIDE = {
    "body input": ["input[].approval_request_id"],
    "body custom_inputs": ["custom_inputs.session_id", "custom_inputs.concurrency"],
}
"""Parts that a schema does not tell, since it takes any object there."""

NO_IDS = {"body metadata", "body always_approve"}
"""Objects that hold none, so that nobody looks into them."""

MADE = {
    "lines parent_session_id": "sessions",
    "lines response_id": "sessions",
    "body path": "memories",
}
"""Places for what Bob may call something of his own, and where what he then makes is deleted."""

LINES = {"application/jsonl": ["id", "parent_session_id", "response_id"]}
"""Bodies that a handler reads by itself, by their media type, and where ids lie in them."""


@dataclass
class Call:
    """A route, and the places that it has. Some share an endpoint."""

    name: str
    has_owner: bool
    endpoint: Any
    places: dict[str, Id | Plain] = field(default_factory=dict)

    @property
    def ids(self) -> dict[str, Id]:
        """The places for ids."""
        return {name: place for name, place in self.places.items() if isinstance(place, Id)}

    def variants(self) -> Iterator[dict[str, Any]]:
        """Requests without their ids: one as plain as can be, and one for each other value."""
        plain = {name: p.values for name, p in self.places.items() if isinstance(p, Plain)}
        first = {name: values[0] for name, values in plain.items()}
        yield first
        for name, values in plain.items():
            yield from (first | {name: value} for value in values[1:])


def calls_of(app: FastAPI) -> list[Call]:
    """Every call of an app. What can't be filled in fails, and says what to do."""
    calls = []
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or {"?"}):
            name = f"{method} {route.path}"
            root = getattr(route, "dependant", None)
            parts = list(_flat(root)) if root is not None else []
            call = Call(name, any(part.call is owner_of for part in parts), route.endpoint)
            if call.has_owner:
                call.places = dict(_place(name, at) for at in _parameters(route, parts))
            calls.append(call)
    return calls


def _flat(dependant: Any) -> Iterator[Any]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _flat(inner)


def _place(call: str, at: str) -> tuple[str, Id | Plain]:
    place = PLACES.get(f"{call} {at}") or PLACES.get(at)
    assert place is not None, (
        f"{call} takes {at!r}, which is new here. Add it to PLACES in tests/test_owners.py: "
        "Id(kind) if somebody else's id can be sent there, Plain() if none can."
    )
    return at, place


def _parameters(route: Any, parts: list[Any]) -> Iterator[str]:
    for part in parts:
        for where in ("path", "query", "header", "cookie"):
            for parameter in getattr(part, f"{where}_params"):
                name = parameter.alias
                yield f"{where} {name.replace('_', '-') if where == 'header' else name}"
        for body in part.body_params:
            models = _models(body.field_info.annotation)
            assert models, f"{route.path}: say in _parameters of tests/test_owners.py what this is"
            for model in models:
                yield from _fields(model, "body ")
    for kind in (route.openapi_extra or {}).get("requestBody", {}).get("content", {}):
        assert kind in LINES, (
            f"{route.path} reads a body of {kind} by itself. Say in LINES of tests/test_owners.py "
            "where ids lie in it, and in _send how it is made."
        )
        yield from (f"lines {name}" for name in LINES[kind])


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _fields(model: type[BaseModel], before: str) -> Iterator[str]:
    for name, inner in model.model_fields.items():
        at, models = before + name, _models(inner.annotation)
        if at not in NO_IDS:
            for below in models:
                yield from _fields(below, f"{at}.")
        if not models or at in PLACES:
            yield at
        yield from (f"body {part}" for part in INSIDE.get(at, ()))


def _send(bob: httpx.Client, call: Call, values: dict[str, Any], world: World) -> httpx.Response:
    """Makes a request of values by their places."""
    method, _, path = call.name.partition(" ")
    query: dict[str, Any] = {}
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    lines = [json.loads(line) for line in world.exported.replace(MARK, "mine").splitlines()]
    lines[0] |= {"id": str(uuid4()), "parent_session_id": None}
    for line in lines[1:]:
        line["response_id"] = None
    for at, value in values.items():
        where, _, name = at.partition(" ")
        if value is None:
            continue
        if where == "path":
            path = path.replace(f"{{{name}}}", value)
        elif where == "query":
            query[name] = value
        elif where == "header":
            headers[name] = value
        elif where == "lines":
            for line in lines[1:] if name == "response_id" else lines[:1]:
                line[name] = value
        elif name == "input[].approval_request_id":
            decision = {"type": "mcp_approval_response", "approval_request_id": value}
            body["input"] = [decision | {"approve": True}]
        else:
            outer, _, inner = name.partition(".")
            body[outer] = {**body.get(outer, {}), inner: value} if inner else value
    if any(at.startswith("lines ") for at in call.places):
        content = "\n".join(json.dumps(line) for line in lines)
        return bob.request(method, path, content=content)
    has_body = any(at.startswith("body ") for at in call.places)
    return bob.request(method, path, params=query, headers=headers, json=body if has_body else None)


def _told(reply: httpx.Response, an_id: str) -> tuple[int, dict[str, str], str]:
    """All that a reply tells, but for the id that was sent."""
    left_out = {"date", "content-length"}
    headers = {name: value for name, value in reply.headers.items() if name not in left_out}
    return reply.status_code, headers, reply.text.replace(an_id, "ID")


def check(world: World, bob: httpx.Client, call: Call, *, briefly: bool = False) -> None:
    """Tries a call with every id of Ann's in each of its places; and, if not `briefly`, with one of
    them beside each value of the others."""
    variants = list(call.variants())[: 1 if briefly else None]
    own = {at: world.bobs[place.kind] for at, place in call.ids.items() if at.startswith("path ")}
    if not own:
        reply = _send(bob, call, variants[0], world)
        _tells_nothing(world, call, "", reply, "")
    for at, place in call.ids.items():
        hers = world.ids[place.kind]
        before = world.stored(of_bob=place.reply != "own")
        for number, values in enumerate(variants[:1] if place.reply == "own" else variants):
            wanted = None
            if place.reply in ("missing", "narrows"):
                reply = _send(bob, call, values | own | {at: UNKNOWN}, world)
                wanted = _told(reply, UNKNOWN)
            for an_id in hers if number == 0 else hers[-1:]:
                reply = _send(bob, call, values | own | {at: an_id}, world)
                _is_right(call, at, place, values, reply, an_id, wanted)
                _tells_nothing(world, call, at, reply, an_id)
                if place.reply == "own" and at in MADE:  # Bob's now, and holds what he sent
                    bob.delete(f"/{MADE[at]}/{reply.json()['id']}")
        after = world.stored(of_bob=place.reply != "own")
        assert after == before, f"{call.name}: an id of Ann's in {at!r} has changed what is stored"


def _is_right(
    call: Call,
    at: str,
    place: Id,
    values: dict[str, Any],
    reply: httpx.Response,
    an_id: str,
    wanted: tuple[int, dict[str, str], str] | None,
) -> None:
    sent = {name: value for name, value in values.items() if value is not None}
    where = f"{call.name}, Ann's {place.kind} in {at!r}, beside {sent}: {reply.text[:300]}"
    statuses = {"missing": 404, "taken": 404, "exists": 409, "narrows": 200, "own": 200}
    assert reply.status_code == statuses[place.reply], where
    if reply.status_code == 404:
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("not_found_error", "not_found"), where
        assert {*error} == {"type", "code", "message", "param"}, where
    if wanted is not None:
        assert _told(reply, an_id) == wanted, f"not as of one that never was: {where}"


def _tells_nothing(world: World, call: Call, at: str, reply: httpx.Response, sent: str) -> None:
    text = f"{reply.headers} {reply.text}"
    if sent:
        text = text.replace(sent, "ID")
    for secret in [MARK, *world.hers]:
        assert secret not in text, (
            f"{call.name} tells of Ann's {secret!r} (by {at!r}): {text[:500]}"
        )


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with world_on(new_backend(request, tmp_path_factory.mktemp("owners"))) as world:
        yield world


WAYS = {
    "by a proxy": {"X-Forwarded-User": "bob"},
    "by a key": {"Authorization": f"Bearer {KEYS['bob'][0]}"},
    "by a key of anybody": {
        "Authorization": f"Bearer {KEYS[ANY][0]}",
        "X-Threadkeep-Owner": "bob",
    },
}
"""How Bob says who he is."""


@pytest.mark.parametrize(
    ("world", "way"),
    [("sqlite", "by a key"), ("sqlite", "by a key of anybody"), ("postgres", "by a proxy")],
    indirect=["world"],
    scope="module",
)
def test_every_route_with_ids_of_somebody_else(world: World, way: str) -> None:
    """Nothing is told of them, not even that they are there, and nothing is changed."""
    calls = calls_of(world.app.app)
    assert {call.name for call in calls if not call.has_owner} == WITHOUT_OWNER, (
        "A route asks nobody who they are. Let it depend on Owner (server/responses.py); or, when "
        "it holds nothing of anybody, add it to WITHOUT_OWNER in tests/test_owners.py."
    )
    seen: set[Any] = set()
    with client_of(world.app.url, **WAYS[way]) as bob:
        for call in calls:
            if call.has_owner:
                briefly = call.endpoint in seen or way == "by a key of anybody"
                check(world, bob, call, briefly=briefly)
                seen.add(call.endpoint)


class Note(BaseModel):
    """A body that nobody has heard of."""

    note_id: str


@pytest.fixture
def app(world: World) -> Iterator[FastAPI]:
    """The app, whose routes a test may add to."""
    routes = world.app.app.router.routes
    before = list(routes)
    yield world.app.app
    routes[:] = before


@pytest.mark.parametrize("world", ["sqlite"], indirect=True, scope="module")
def test_what_is_new_must_be_known_here(world: World, app: FastAPI) -> None:
    """A route that looks at no owner, or not well, is found; so is one that takes something new."""

    async def title(request: Request, session_id: str) -> str | None:
        found = await request.app.state.database.call(
            "get_session", session_id=session_id, owner="ann"
        )
        return found[0]["title"] if found else None

    @app.get("/open/{session_id}")
    async def open_to_all(request: Request, session_id: str) -> str | None:
        return await title(request, session_id)

    assert "GET /open/{session_id}" in {c.name for c in calls_of(app) if not c.has_owner}

    @app.get("/careless/{session_id}")
    async def careless(request: Request, session_id: str, owner: Owner) -> str | None:
        return await title(request, session_id)

    @app.get("/oracle/{session_id}")
    async def oracle(request: Request, session_id: str, owner: Owner) -> None:
        if await title(request, session_id):
            raise SessionNotFoundError
        raise ResponseNotFoundError

    @app.delete("/vandal/{session_id}")
    async def vandal(request: Request, session_id: str, owner: Owner) -> None:
        change = {"titled": 1, "title": "x", "metadata": None, "tools": None}
        await request.app.state.database.call(
            "change_session", session_id=session_id, owner="ann", timed=0, expires_at=None, **change
        )
        raise SessionNotFoundError

    with client_of(world.app.url, **WAYS["by a proxy"]) as bob:
        for name, wrong in {
            "GET /careless/{session_id}": "Ann's session in 'path session_id'",
            "GET /oracle/{session_id}": "not as of one that never was",
            "DELETE /vandal/{session_id}": "has changed what is stored",
        }.items():
            call = next(call for call in calls_of(app) if call.name == name)
            with pytest.raises(AssertionError, match=wrong):
                check(world, bob, call)

    @app.post("/notes")
    async def remember(owner: Owner, new: Note) -> None:
        """Takes what nobody has heard of."""

    with pytest.raises(
        AssertionError,
        match="'body note_id', which is new here. Add it to PLACES",  # noqa: RUF043
    ):
        calls_of(app)
