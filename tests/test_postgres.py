"""What Postgres alone has: round trips, connections that die, migrations, roles and poolers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from agents import Agent, RunConfig, Runner
from agents.testing import ScriptedModel, assistant_message, function_call

from agent_server.agent import get_current_time
from tests.backends import Lakebase, Postgres, new_postgres, transaction_pooler
from tests.client import ask, client_of, contents, follow, post, text_of_response
from tests.conftest import RunningApp, environment
from tests.lakebase import LakebaseStandIn
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from threadkeep import Session
from threadkeep.connect import connect, connect_postgres
from threadkeep.errors import (
    DatabaseBusyError,
    DatabasePermissionError,
    DatabaseUnavailableError,
    SettingsError,
)
from threadkeep.postgres import PostgresDatabase
from threadkeep.postgres_schema import grants
from threadkeep.postgres_server import UrlServer
from threadkeep.run_request import Limits, OneContext, RunRequest
from threadkeep.runs import Runs
from threadkeep.settings import DatabaseSettings


@pytest.fixture
def database(request: pytest.FixtureRequest, postgres: str) -> Postgres:
    return new_postgres(postgres, bare=hasattr(request, "param"))


without_tables = pytest.mark.parametrize("database", ["bare"], indirect=True)


@pytest.fixture
def proxy(database: Postgres) -> Iterator[PostgresProxy]:
    with postgres_proxy(database.url) as proxy:
        yield proxy


@pytest.fixture
def pooled(database: Postgres) -> Iterator[str]:
    with transaction_pooler(database) as url:
        yield url


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


@pytest.mark.parametrize(("calls", "most", "length"), [(0, 3, 10), (1, 5, 10), (3, 5, 2_000)])
async def test_round_trips_of_a_run(
    proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch, calls: int, most: int, length: int
) -> None:
    """Admit, journal the answer, finish: 3; for a step of tools the intents, and the outcomes.

    Events are stored by the clock as well, in runs that take longer.
    """
    monkeypatch.setattr("threadkeep.run_log.FLUSH_SECONDS", 60)
    database = connect(proxy.url)
    await Session("s", database=database).add_items([user(str(n)) for n in range(length)])
    step = [function_call("get_current_time", {}, call_id=f"call_{n}") for n in range(calls)]
    answer: list[Any] = [[assistant_message("ok")]]
    model = ScriptedModel(([step, *answer] if calls else answer) * 17)
    agent = Agent(name="a", model=model, tools=[get_current_time])
    request = RunRequest(
        session_id="s",
        owner="",
        items=[user("hello")],
        make_agent=lambda: agent,
        contexts=OneContext(),
        run_config=RunConfig(tracing_disabled=True),
        model="scripted",
    )
    runs = Runs(database, Limits(60), lambda *_: request)

    async def count() -> int:
        before = proxy.round_trips
        run = runs.start(request)
        await run.wait()
        assert run.status == "completed"
        return proxy.round_trips - before

    for _ in range(12):  # every connection of the pool may have to prepare each statement
        await count()
    assert min([await count() for _ in range(5)]) == most
    await database.close()


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


@without_tables
async def test_ten_replicas_start_at_once_on_an_empty_database(database: Postgres) -> None:
    """The migrations run once, and everybody finds them done."""
    replicas = [connect(database.url) for _ in range(10)]
    await asyncio.gather(*(replica.open() for replica in replicas))
    assert await replicas[0].pending() == []
    await asyncio.gather(*(replica.close() for replica in replicas))


@pytest.fixture
def role(database: Postgres) -> Iterator[str]:
    """A role that has nothing but what everybody has."""
    name = f"reader of {database.name}"
    database.execute(f'CREATE ROLE "{name}" LOGIN')
    yield name
    database.execute(f'DROP OWNED BY "{name}"')
    database.execute(f'DROP ROLE "{name}"')


def url_of(database: Postgres, role: str) -> str:
    return database.url.replace("postgres@", f"{quote(role)}@", 1)


@without_tables
async def test_a_role_without_ddl_rights(database: Postgres, role: str) -> None:
    """Is told which grant it lacks, and with that starts on a current schema."""
    weak, owner = connect_postgres(url_of(database, role)), connect_postgres(database.url)
    with pytest.raises(DatabasePermissionError, match="GRANT CREATE ON DATABASE"):
        await weak.open()
    await owner.open()
    with pytest.raises(DatabasePermissionError, match=f'GRANT USAGE ON SCHEMA .* TO "{role}"'):
        await weak.open()
    for sql in await weak.missing_grants():
        database.execute(sql)
    session = Session("s", database=weak)
    await session.add_items([user("1")])
    assert texts(await session.get_items()) == ["1"]
    database.execute(f'REVOKE INSERT ON threadkeep.items FROM "{role}"')
    with pytest.raises(DatabasePermissionError, match="GRANT SELECT, INSERT"):
        await session.add_items([user("2")])
    await weak.close()
    await owner.close()


async def test_a_role_that_may_not_migrate(database: Postgres, role: str) -> None:
    """Says who can."""
    owner, weak = connect_postgres(database.url), connect(url_of(database, role))
    await owner.open()
    for sql in grants(role, database.name, "threadkeep"):
        await owner.execute(sql)
    await owner.execute("DELETE FROM threadkeep.schema_migrations")
    with pytest.raises(DatabasePermissionError, match="threadkeep migrate"):
        await weak.open()
    not_asked = PostgresDatabase(UrlServer(database.url), migrates=False)
    with pytest.raises(DatabaseUnavailableError, match="threadkeep migrate"):
        await not_asked.open()
    for each in (owner, weak, not_asked):
        await each.close()


async def test_the_schema_is_a_setting(database: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any name; what is in another one is not seen."""
    async with Session.from_url("s", url=database.url) as session:
        await session.add_items([user("1")])
    monkeypatch.setenv("LAKEBASE_AGENT_MEMORY_SCHEMA", 'agent\'s "own" threadkeep.')
    async with Session.from_url("s", url=database.url) as session:
        assert await session.get_items() == []
        await session.add_items([user("2")])
        assert texts(await session.get_items()) == ["2"]


@without_tables
async def test_a_schema_of_another_program_is_left_alone(database: Postgres) -> None:
    """Its tables are not touched."""
    database.execute("CREATE SCHEMA threadkeep")
    database.execute("CREATE TABLE threadkeep.sessions (id int)")
    other = connect(database.url)
    with pytest.raises(DatabaseUnavailableError, match="LAKEBASE_AGENT_MEMORY_SCHEMA"):
        await other.open()
    await other.close()


async def test_a_schema_that_is_dropped_under_us(database: Postgres) -> None:
    """Is told once, and made anew."""
    async with Session.from_url("s", url=database.url) as session:
        await session.add_items([user("1")])
        database.execute("DROP SCHEMA threadkeep CASCADE")
        with pytest.raises(DatabaseUnavailableError, match="have gone"):
            await session.get_items()
        assert await session.get_items() == []


async def test_behind_a_transaction_pooler(pooled: str) -> None:
    """Sessions of many at once, on two connections that every statement may change."""
    database = connect(f"{pooled}?prepared_statements=off")
    sessions = [Session(f"s{n}", database=database) for n in range(20)]

    async def talk(session: Session) -> None:
        for n in range(5):
            await session.add_items([user(str(n))])
            await session.get_items()
        await session.pop_item()

    await asyncio.gather(*map(talk, sessions))
    assert [texts(await s.get_items()) for s in sessions] == [["0", "1", "2", "3"]] * 20
    await database.close()
    unaware = connect(pooled)
    with pytest.raises(DatabaseUnavailableError, match="prepared_statements=off"):
        await asyncio.gather(*(talk(Session(f"t{n}", database=unaware)) for n in range(20)))
    await unaware.close()


async def test_waiting_for_a_connection_is_bounded(database: Postgres) -> None:
    """Who waits for too long is told that the database is busy."""
    narrow = PostgresDatabase(UrlServer(database.url), pool_size=1, wait_seconds=0.2)
    await narrow.open()
    long_one = asyncio.create_task(narrow.execute("SELECT pg_sleep(1)"))
    await asyncio.sleep(0.05)
    with pytest.raises(DatabaseBusyError, match="free within"):
        await narrow.call("get_session", session_id="s", owner="")
    await long_one
    await narrow.close()


async def test_a_server_that_does_not_answer(
    workspace: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement is given up, with a clear error, and the next one works."""
    monkeypatch.setattr("threadkeep.postgres.STATEMENT_SECONDS", 0.3)
    settings = Lakebase(workspace, workspace.new_database()).variables
    database = connect(DatabaseSettings.read(settings))
    session = Session("s", database=database)
    await session.add_items([user("1")])
    workspace.pause()
    with pytest.raises(DatabaseUnavailableError, match="did not answer"):
        await session.get_items()
    workspace.resume()
    assert texts(await session.get_items()) == ["1"]
    await database.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u@127.0.0.1:9/x", "can't be reached"),
        ("postgresql://u@no-such-host.invalid/x", "no host of the name"),
        ("{server}/nowhere", "no such database"),
    ],
)
async def test_what_is_wrong_with_a_url_is_told(postgres: str, url: str, words: str) -> None:
    """In words of its own, without the address."""
    server = UrlServer(url.replace("{server}", postgres))
    database = PostgresDatabase(server, wait_seconds=0.3)
    with pytest.raises(DatabaseUnavailableError, match=words) as caught:
        await database.open()
    assert "127.0.0.1" not in str(caught.value)
    await database.close()


@pytest.mark.parametrize(
    "url", ["postgresql://u:p/w@host/x", "postgresql://h/x?prepared_statements=no"]
)
def test_a_url_that_can_not_be_used(url: str) -> None:
    """Says how to write it; never with the password."""
    with pytest.raises(SettingsError, match="DATABASE_URL") as caught:
        connect(url)
    assert "p/w" not in str(caught.value)


async def test_who_goes_away_breaks_nothing(database: Postgres) -> None:
    """Calls are cancelled while they wait for the server; the connections stay good."""
    one = PostgresDatabase(UrlServer(database.url), pool_size=2)
    await one.open()
    for _ in range(5):
        sleeping = [asyncio.create_task(one.execute("SELECT pg_sleep(5)")) for _ in range(2)]
        await asyncio.sleep(0.05)
        for task in sleeping:
            task.cancel()
        await asyncio.gather(*sleeping, return_exceptions=True)
    assert await one.call("get_session", session_id="s", owner="") == []
    await one.close()


async def test_who_goes_away_while_a_connection_opens_leaves_no_error(database: Postgres) -> None:
    """At whichever step of that: asyncio would log what nobody looks at."""
    logged: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, what: logged.append(what))
    for steps in range(50):
        one = PostgresDatabase(UrlServer(database.url), migrates=False)
        opening = asyncio.create_task(one.open())
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await one.close()
    await asyncio.sleep(0.1)
    gc.collect()
    assert logged == []
