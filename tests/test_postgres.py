"""What Postgres alone has: round trips, connections that die, migrations, roles and poolers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message

from tests.backends import Postgres, new_postgres
from tests.client import ask, client_of, contents, follow, post, text_of_response
from tests.conftest import RunningApp, environment
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.errors import (
    DatabaseBusyError,
    DatabasePermissionError,
    DatabaseUnavailableError,
    SettingsError,
)


@pytest.fixture
def database(postgres: str) -> Postgres:
    return new_postgres(postgres)


@pytest.fixture
def proxy(database: Postgres) -> Iterator[PostgresProxy]:
    with postgres_proxy(database.url) as proxy:
        yield proxy


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def texts(items: list[Any]) -> list[str]:
    return [item["content"] for item in items]


@pytest.mark.parametrize("length", [10, 10_000])
async def test_round_trips(proxy: PostgresProxy, length: int) -> None:
    """One to read, one to append, three for a turn; however long the history is."""
    async with Session.from_url("s", url=proxy.url) as session:
        await session.add_items([user(str(n)) for n in range(length)])
        agent = Agent(name="a", model=ScriptedModel([[assistant_message("ok")]] * 2))
        await Runner.run(agent, "prepare each statement once", session=session)

        async def count(work: Any) -> int:
            before = proxy.round_trips
            await work
            return proxy.round_trips - before

        assert await count(session.get_items()) == 1
        assert await count(session.get_items(limit=3)) == 1
        assert await count(session.add_items([user("a"), user("b")])) == 1
        assert await count(Runner.run(agent, "hello", session=session)) == 3
        assert len(await session.get_items()) == length + 6


def test_round_trips_of_a_turn_over_http(proxy: PostgresProxy) -> None:
    """Begin, append, finish; a pooled connection costs none."""
    app = RunningApp(environment(proxy.url))
    with client_of(app.url) as client:
        for _ in range(12):  # every connection of the pool may have to prepare each statement
            ask(client, "say hello", "s")
        counts = []
        for _ in range(5):
            before = proxy.round_trips
            ask(client, "say hello", "s")
            counts.append(proxy.round_trips - before)
    app.stop()
    assert min(counts) <= 3


@pytest.mark.parametrize("lose_every", [2, 3])
def test_turns_over_connections_that_die(proxy: PostgresProxy, lose_every: int) -> None:
    """Turns, edited messages, failures and deletions are what they were without that."""
    app = RunningApp(environment(proxy.url))
    with client_of(app.url) as client:
        proxy.lose_every = lose_every
        for number in range(4):
            ask(client, f"say {number}", "s")
        assert contents(client, "s") == ["say 0", "0", "say 1", "1", "say 2", "2", "say 3", "3"]
        view = [
            {"role": role, "content": text}
            for role, text in (("user", "say 0"), ("assistant", "0"), ("user", "say again"))
        ]
        assert (
            client.post(
                "/responses", json={"input": view, "custom_inputs": {"session_id": "s"}}
            ).status_code
            == 200
        )
        assert contents(client, "s") == ["say 0", "0", "say again", "again"]
        assert post(client, "fail", "s").status_code == 502
        assert contents(client, "s") == ["say 0", "0", "say again", "again"]
        second = ask(client, "hold", "s", background=True)
        third = ask(client, "say third", "s", background=True)
        client.post(f"/responses/{second['id']}/cancel")
        *_, last = follow(client, third["id"])
        assert text_of_response(last["response"]) == "third"
        assert contents(client, "s")[4:] in (
            ["hold", "Holding ", "say third", "third"],
            ["hold", "say third", "third"],
        )
        assert client.delete("/sessions/s").status_code == 200
        assert client.get("/sessions/s").status_code == 404
        proxy.lose_every = 0
    app.stop()


async def test_what_was_done_is_not_done_again(proxy: PostgresProxy) -> None:
    """The answer to each statement is lost, and the connection with it; nobody notices."""
    session = Session.from_url("s", url=proxy.url)
    await session.add_items([user("1"), user("2")])
    proxy.lose_answers()
    await session.add_items([user("3"), user("4")])
    proxy.lose_answers(3)
    assert texts(await session.get_items()) == ["1", "2", "3", "4"]
    proxy.lose_answers(2)
    assert await session.pop_item() == user("4")
    proxy.lose_answers(2)
    assert texts(await session.get_items()) == ["1", "2", "3"]
    proxy.lose_answers(2)
    await session.clear_session()
    proxy.lose_answers()
    await session.add_items([user("5")])
    assert texts(await session.get_items()) == ["5"]
    await session.close()
