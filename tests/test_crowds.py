"""Two hundred turns at once: of one session under each policy, and of as many sessions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2 as httpx
import pytest

from tests.backends import Backend
from tests.client import Json, client_of, contents, session_of, text_of_response
from tests.conftest import RunningApp, environment

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

MANY = 200


@pytest.fixture
def servers() -> int:
    """How many there are, unless a test says it."""
    return 1


@pytest.fixture
def apps(backend: Backend, servers: int) -> Iterator[list[RunningApp]]:
    """Servers on one database."""
    apps = [RunningApp(environment(backend)) for _ in range(servers)]
    yield apps
    for app in apps:
        app.stop()


@pytest.fixture
def here(apps: list[RunningApp]) -> Iterator[httpx.Client]:
    with client_of(apps[0].url) as client:
        yield client


async def send_all(apps: Sequence[RunningApp], policy: str, session: str) -> list[httpx.Response]:
    """Many turns at once, dealt out over the servers; `session` is their name, or for many."""
    limits = httpx.Limits(max_connections=MANY)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:

        def turn(n: int) -> Any:
            inputs = {"session_id": session.format(n), "concurrency": policy}
            body = {"input": f"say {n} and so on", "custom_inputs": inputs}
            return client.post(f"{apps[n % len(apps)].url}/responses", json=body)

        return await asyncio.gather(*(turn(n) for n in range(MANY)))


def turns_of(items: Sequence[Json]) -> list[tuple[str, str]]:
    """What is stored, as questions and what was answered of each."""
    turns: list[tuple[str, str]] = []
    for item in items:
        if item["role"] == "user":
            turns.append((item["content"], ""))
        else:
            (asked, said), text = turns[-1], "".join(part["text"] for part in item["content"])
            assert said == "", "two answers to one question"
            turns[-1] = (asked, text)
    return turns


def whole_session(client: httpx.Client) -> list[Json]:
    items: list[Json] = []
    while page := client.get(
        "/sessions/s/items", params={"after": items[-1]["seq"] if items else 0, "limit": 100}
    ).json()["data"]:
        items += page
    return items


@pytest.mark.parametrize(
    ("policy", "servers"),
    [("enqueue", 1), ("enqueue", 2), ("reject", 2), ("interrupt", 2), ("rollback", 2)],
)
async def test_turns_of_one_session(
    apps: list[RunningApp], here: httpx.Client, policy: str
) -> None:
    """Each stands once and with its own answer, or was refused; what was told is stored."""
    replies = await send_all(apps, policy, "s")
    codes = Counter(reply.status_code for reply in replies)
    allowed = {"enqueue": {200, 429}, "reject": {200, 409}}.get(policy, {200, 429})
    assert set(codes) <= allowed, [r.text for r in replies if r.status_code not in allowed]
    items = whole_session(here)
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
    turns = turns_of(items)
    assert len(dict(turns)) == len(turns), "a message is stored twice"
    whole = {asked for asked, said in turns if asked == f"say {said}"}
    assert all(asked.startswith(f"say {said}") for asked, said in turns)
    told = [reply.json() for reply in replies if reply.status_code == 200]
    answered = {text_of_response(run) for run in told if run["status"] == "completed"}
    # One that was interrupted behind its last word has said all, and is cancelled.
    unanswered = whole - {f"say {said}" for said in answered}
    assert len(whole) == len(answered) + len(unanswered)
    assert not unanswered or policy == "interrupt"
    assert whole
    if policy == "interrupt":
        assert len(turns) == codes[200]
        assert turns[-1][0] in whole
    else:
        assert len(turns) == len(whole)
    if policy == "enqueue":
        assert len(answered) == codes[200]
    assert here.get("/sessions/s").json()["active_response_id"] is None
    assert all(session_of(run) == "s" for run in told)


async def test_turns_of_many_sessions(apps: list[RunningApp], here: httpx.Client) -> None:
    """Two hundred are all answered, with the ten connections that a server has."""
    replies = await send_all(apps, "enqueue", "s{}")
    said = [text_of_response(reply.json()) for reply in replies]
    assert said == [f"{n} and so on" for n in range(MANY)]
    assert contents(here, "s7") == ["say 7 and so on", "7 and so on"]
