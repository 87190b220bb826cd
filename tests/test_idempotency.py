"""A request with an Idempotency-Key is done once, however often and wherever it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from openai import OpenAI

from tests.backends import Backend
from tests.client import ask, client_of, contents, events_of, follow, session_of
from tests.conftest import RunningApp, backends, environment

backend = backends("sqlite", "postgres")


@pytest.fixture
def apps(backend: Backend) -> Iterator[list[RunningApp]]:
    """Two servers on each kind of database in turn, behind a proxy that says who asks."""
    place = environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1")
    apps = [RunningApp(dict(place)) for _ in range(2)]
    yield apps
    for app in apps:
        app.model.go_on.set()
        app.stop()


@pytest.fixture
def clients(apps: list[RunningApp]) -> Iterator[list[httpx.Client]]:
    """Of one user, one for each server."""
    headers = {"X-Forwarded-User": "ann"}
    clients = [httpx.Client(base_url=app.url, timeout=60, headers=headers) for app in apps]
    yield clients
    for client in clients:
        client.close()


def send(client: httpx.Client, key: str, text: str, **more: Any) -> httpx.Response:
    return client.post("/responses", json={"input": text} | more, headers={"Idempotency-Key": key})


def test_a_repeat_is_given_the_first_run(clients: list[httpx.Client]) -> None:
    """Waiting, streamed or in background, on any server; nothing is stored again."""
    here, there = clients
    first = send(here, "k", "say hello").json()
    for client in clients:
        assert send(client, "k", "say hello").json()["id"] == first["id"]
        assert send(client, "k", "say hello", background=True).json()["status"] == "completed"
    with there.stream(
        "POST",
        "/responses",
        json={"input": "say hello", "stream": True},
        headers={"Idempotency-Key": "k"},
    ) as reply:
        events = list(events_of(reply))
    assert events == list(follow(here, first["id"]))
    assert contents(here, session_of(first)) == ["say hello", "hello"]


def test_another_request_with_the_key_is_a_conflict(clients: list[httpx.Client]) -> None:
    """That no client repeats by itself; other users' keys are others."""
    here, there = clients
    first = send(here, "k", "say hello").json()
    for different in ({"metadata": {"a": "b"}}, {"custom_inputs": {"session_id": "other"}}):
        reply = send(there, "k", "say hello", **different)
        assert (reply.status_code, reply.json()["error"]["type"]) == (409, "conflict_error")
        assert reply.headers["x-should-retry"] == "false"
    with client_of(str(there.base_url), **{"X-Forwarded-User": "bob"}) as bob:
        assert send(bob, "k", "say other").json()["id"] != first["id"]
    assert send(here, "k\x7f", "say hello").status_code == 400


def test_many_at_once_are_one_run(clients: list[httpx.Client]) -> None:
    """On two servers; each is given the same answer."""
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda n: send(clients[n % 2], "k", "say hello"), range(12)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert len(clients[0].get("/sessions").json()["data"]) == 1


def test_a_repeat_while_it_runs(apps: list[RunningApp], clients: list[httpx.Client]) -> None:
    """Waits for the answer of the first, also from another server."""
    here, there = clients
    first = send(here, "k", "hold", background=True).json()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(send, client, "k", "hold") for client in clients]
        while there.get(f"/responses/{first['id']}").json()["status"] != "in_progress":
            pass
        apps[0].model.go_on.set()
        assert {reply.result().json()["id"] for reply in waiting} == {first["id"]}


def test_a_failure_is_told_again(clients: list[httpx.Client]) -> None:
    """As it was told the first time, wherever it is asked for."""
    here, there = clients
    first, second = send(here, "k", "fail"), send(there, "k", "fail")
    assert (first.status_code, second.status_code) == (502, 502)
    assert first.json() == second.json()
    assert second.headers["x-should-retry"] == "false"


def test_what_was_refused_does_not_use_up_the_key(clients: list[httpx.Client]) -> None:
    """Nor does what was not to be stored."""
    here, _ = clients
    assert send(here, "k", "say hello", custom_inputs={"session_id": ""}).status_code == 400
    first = send(here, "k", "say hello", store=False).json()
    second = send(here, "k", "say hello").json()
    assert first["id"] != second["id"]
    assert second["status"] == "completed"


def test_the_official_client_sends_it(apps: list[RunningApp], clients: list[httpx.Client]) -> None:
    """As an extra header, with its own retries."""
    openai = OpenAI(base_url=apps[0].url, api_key="none", max_retries=2)
    headers = {"Idempotency-Key": "k", "X-Forwarded-User": "ann"}
    asked = [
        openai.responses.create(model="agent", input="say hello", extra_headers=headers)
        for _ in range(2)
    ]
    assert asked[0].id == asked[1].id
    assert ask(clients[1], "say hello")["id"] != asked[0].id
