"""`async with session.turn()`: a turn has its session for itself, and is stored whole or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner
from agents.testing import ScriptedModel, assistant_message

from tests.backends import Backend, SQLite
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import InvalidInputError, RunLostError, SessionNotFoundError
from threadkeep.settings import DatabaseSettings

NewDatabase = Callable[[], Database]


def user(text: str) -> Any:
    return {"role": "user", "content": text}


@pytest.fixture
async def new_database(backend: Backend) -> AsyncIterator[NewDatabase]:
    """Each is what another process has."""
    opened: list[Database] = []

    def new() -> Database:
        opened.append(connect(DatabaseSettings.read(backend.variables)))
        return opened[-1]

    yield new
    for database in opened:
        await database.close()


async def test_a_turn_is_stored_when_it_ends(new_database: NewDatabase) -> None:
    """All at once; while it lasts it sees what it has added, and nobody else does."""
    here, there = Session("s", database=new_database()), Session("s", database=new_database())
    await here.add_items([user("0")])
    async with here.turn():
        await here.add_items([user("1"), user("2")])
        await here.add_items([user("3")])
        assert await here.get_items() == [user(str(n)) for n in range(4)]
        assert await here.get_items(limit=2) == [user("2"), user("3")]
        assert await here.get_items(limit=4) == [user(str(n)) for n in range(4)]
        assert await here.pop_item() == user("3")
        assert await there.get_items() == [user("0")]
    assert await there.get_items() == await here.get_items() == [user("0"), user("1"), user("2")]


async def test_a_turn_that_raises_leaves_nothing(new_database: NewDatabase) -> None:
    """Neither items, nor a session that was not there before."""
    database = new_database()
    session = Session("s", database=database)

    async def fail() -> None:
        async with session.turn():
            await session.add_items([user("1")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await session.get_items() == []
    assert await database.call("get_session", session_id="s", owner="") == []
    async with session.turn():
        await session.add_items([user("2")])
    assert await session.get_items() == [user("2")]
    (row,) = await database.call("get_session", session_id="s", owner="")
    assert (row["title"], row["run_id"]) == ("2", None)


async def test_turns_come_one_after_the_other(new_database: NewDatabase) -> None:
    """In this process and in others; each sees all that came before."""
    sessions = [Session("s", database=database) for database in (new_database(), new_database())]

    async def turn(number: int) -> None:
        session = sessions[number % 2]
        async with session.turn():
            before = len(await session.get_items())
            await session.add_items([user(f"{number}")])
            await asyncio.sleep(0.001)
            await session.add_items([user(f"{number} of {before}")])

    await asyncio.gather(*(turn(number) for number in range(20)))
    items = [item["content"] for item in await sessions[0].get_items()]  # type: ignore[typeddict-item]
    assert len(items) == 40
    for place in range(0, 40, 2):
        assert items[place + 1] == f"{items[place]} of {place}"


async def test_the_runner_works_in_a_turn(new_database: NewDatabase) -> None:
    """A model that fails leaves the session as it was."""
    model = ScriptedModel([[assistant_message("Hi.")], RuntimeError("overloaded")])
    agent = Agent(name="A", model=model)
    session = Session("s", database=new_database())
    config = RunConfig(tracing_disabled=True)
    async with session.turn():
        await Runner.run(agent, "Hello", session=session, run_config=config)
    stored = await session.get_items()
    assert len(stored) == 2
    with pytest.raises(RuntimeError, match="overloaded"):
        async with session.turn():
            await Runner.run(agent, "Again", session=session, run_config=config)
    assert await session.get_items() == stored


async def test_who_has_died_holds_up_nobody(new_database: NewDatabase, backend: Backend) -> None:
    """The turn is given up, and writes nothing when its process was only asleep."""
    asleep, other = Session("s", database=new_database()), Session("s", database=new_database())
    long_ago = "0" if isinstance(backend, SQLite) else "'2000-01-01'"

    async def take() -> None:
        async with other.turn():
            await other.add_items([user("2")])

    async def sleep() -> None:
        async with asleep.turn():
            await asleep.add_items([user("1")])
            taking = asyncio.create_task(take())
            while not taking.done():  # again and again: it does give signs of life
                for table, at_work in (
                    ("sessions SET run_", "run_id IS NOT NULL"),
                    ("runs SET ", "status = 'in_progress'"),
                ):
                    sql = f"UPDATE threadkeep.{table}alive_at = {long_ago} WHERE {at_work}"
                    await asyncio.to_thread(backend.execute, sql)
                await asyncio.sleep(0.05)
            await taking

    with pytest.raises(RunLostError):
        await sleep()
    assert await other.get_items() == [user("2")]


async def test_a_turn_that_is_cancelled_frees_its_place(new_database: NewDatabase) -> None:
    """Whether it has the session or waits for it."""
    sessions = [Session("s", database=new_database()) for _ in range(3)]
    began = asyncio.Event()

    async def hold(session: Session) -> None:
        async with session.turn():
            began.set()
            await asyncio.sleep(60)

    holding = asyncio.create_task(hold(sessions[0]))
    await began.wait()
    waiting = asyncio.create_task(hold(sessions[1]))
    await asyncio.sleep(0.2)
    for task in (waiting, holding):
        task.cancel()
        await asyncio.wait({task})
    async with asyncio.timeout(5), sessions[2].turn():
        await sessions[2].add_items([user("1")])
    assert await sessions[0].get_items() == [user("1")]


async def test_what_can_not_be_a_turn(new_database: NewDatabase) -> None:
    """One within another of the same session, and one of somebody else's session."""
    database = new_database()
    session = Session("s", database=database)
    async with session.turn():
        await session.add_items([user("1")])
        with pytest.raises(InvalidInputError, match="nested"):
            async with Session("s", database=database).turn():
                pass
        async with Session("t", database=database).turn() as other:
            await other.add_items([user("2")])
    with pytest.raises(SessionNotFoundError):
        async with Session("s", database=database, owner="eve").turn():
            pass
    assert await session.get_items() == [user("1")]
