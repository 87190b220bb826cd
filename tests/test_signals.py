"""Signals: whoever waits for changes hears of them at once, whichever process makes them."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.backends import Backend, Lakebase, new_postgres, transaction_pooler
from tests.lakebase import LakebaseStandIn
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.database import Database, Signal
from threadkeep.errors import ClosedError
from threadkeep.postgres import PostgresDatabase
from threadkeep.postgres_server import UrlServer
from threadkeep.settings import DatabaseSettings

TELL = "SELECT pg_notify(:channel, :topic)"
LISTENERS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'
"""
KILL = "SELECT pg_terminate_backend(:pid)"


@pytest.fixture
async def here(backend: Backend) -> AsyncIterator[Database]:
    """A database in which somebody waits."""
    database = connected(backend)
    yield database
    await database.close()


@pytest.fixture
async def there(backend: Backend) -> AsyncIterator[Database]:
    """The same one, as another process has it."""
    database = connected(backend)
    await database.open()
    yield database
    await database.close()


@pytest.fixture(params=["postgres", "lakebase"])
def server(request: pytest.FixtureRequest) -> Backend:
    """An empty database on each kind of Postgres."""
    if request.param == "lakebase":
        stand_in: LakebaseStandIn = request.getfixturevalue("workspace")
        return Lakebase(stand_in, stand_in.new_database())
    return new_postgres(request.getfixturevalue("postgres"))


@pytest.fixture
async def database(server: Backend) -> AsyncIterator[PostgresDatabase]:
    """A database on each kind of Postgres."""
    database = connected(server)
    assert isinstance(database, PostgresDatabase)
    await database.open()
    yield database
    await database.close()


def connected(backend: Backend) -> Database:
    return connect(DatabaseSettings.read(backend.variables))


async def tell(database: Database, topic: str) -> None:
    """Makes a change, and tells of it."""
    await Session("s", database=database).add_items([{"role": "user", "content": "hi"}])
    if isinstance(database, PostgresDatabase):
        database.define("tell", TELL)
        await database.call("tell", topic=topic)


async def changes(database: Database) -> int:
    return len(await Session("s", database=database).get_items())


async def listening(signal: Signal, database: Database) -> None:
    """Waits for the signal that says: from now on all is heard."""
    if isinstance(database, PostgresDatabase):
        assert await signal.wait(10)


async def listeners(database: PostgresDatabase) -> list[int]:
    """The numbers of the server's processes that somebody listens to."""
    database.define("listeners", LISTENERS)
    return [row["pid"] for row in await database.call("listeners")]


async def until_listeners(database: PostgresDatabase, count: int) -> list[int]:
    until = time.monotonic() + 10
    while len(pids := await listeners(database)) != count:
        assert time.monotonic() < until, pids
    return pids


async def test_a_change_from_elsewhere_is_heard_at_once(here: Database, there: Database) -> None:
    """By all who wait for it."""
    async with here.signals("t") as one, here.signals("t") as two:
        await listening(one, here)
        await listening(two, here)
        waits = [asyncio.create_task(signal.wait(30)) for signal in (one, two)]
        await asyncio.sleep(0.05)
        told = time.monotonic()
        await tell(there, "t")
        assert await asyncio.gather(*waits) == [True, True]
        assert time.monotonic() - told < 3


async def test_a_change_from_here_is_heard_as_well(here: Database) -> None:
    """By another event loop, and by the same."""

    async def hear() -> bool:
        async with here.signals("t") as signal:
            await listening(signal, here)
            started.set()
            return await signal.wait(30)

    await here.open()
    for run in (asyncio.create_task, lambda work: asyncio.to_thread(asyncio.run, work)):
        started = threading.Event()
        heard = asyncio.ensure_future(run(hear()))
        assert await asyncio.to_thread(started.wait, 10)
        await tell(here, "t")
        assert await heard


@pytest.mark.parametrize("idle_seconds", [0, 30])
async def test_whoever_looks_and_then_waits_misses_nothing(
    here: Database, there: Database, idle_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the change comes, also while the connection that listens is being opened."""
    monkeypatch.setattr("threadkeep.postgres_signals.IDLE_SECONDS", idle_seconds)
    dice = random.Random(1)

    async def change(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await tell(there, "t")

    for count in range(1, 21):
        changing = asyncio.create_task(change(dice.random() * 0.05))
        async with here.signals("t") as signal:
            while await changes(here) < count:
                assert await signal.wait(10)
        await changing


async def test_signals_before_a_wait_are_kept_as_one(here: Database, there: Database) -> None:
    """And are over with it."""
    async with here.signals("t") as signal:
        await listening(signal, here)
        for _ in range(3):
            await tell(there, "t")
        await asyncio.sleep(0.5)
        assert await signal.wait(10)
        assert not await signal.wait(0.3)


async def test_a_wait_ends_after_its_time(here: Database) -> None:
    """Not much before, not much after."""
    async with here.signals("t") as signal:
        await listening(signal, here)
        for seconds in (0.0, 0.3):
            began = time.monotonic()
            assert not await signal.wait(seconds)
            assert seconds <= time.monotonic() - began + 0.01 < seconds + 2


async def test_a_wait_may_be_cancelled(here: Database, there: Database) -> None:
    """The next one hears what is told."""
    async with here.signals("t") as signal:
        await listening(signal, here)
        waiting = asyncio.create_task(signal.wait(30))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await tell(there, "t")
        assert await signal.wait(10)


async def test_closing_ends_the_waits(here: Database) -> None:
    """With an error, in whichever event loop; and nobody may start to wait."""
    started = threading.Barrier(2)

    async def hear() -> None:
        async with here.signals("t") as signal:
            await listening(signal, here)
            await asyncio.to_thread(started.wait, 10)
            with pytest.raises(ClosedError):
                await signal.wait(30)
            with pytest.raises(ClosedError):
                await signal.wait(30)

    near = asyncio.create_task(hear())
    await asyncio.to_thread(started.wait, 10)
    far = asyncio.create_task(asyncio.to_thread(asyncio.run, hear()))
    await asyncio.to_thread(started.wait, 10)
    await here.close()
    async with asyncio.timeout(5):
        await asyncio.gather(near, far)
    with pytest.raises(ClosedError):
        async with here.signals("t"):
            pass


# What Postgres alone has


async def test_nothing_else_is_heard(server: Backend, database: PostgresDatabase) -> None:
    """Neither of another topic nor of another schema, whatever that is called."""
    name = {"LAKEBASE_AGENT_MEMORY_SCHEMA": 'agent\'s "own" threadkeep.'}
    other = connect(DatabaseSettings.read(server.variables | name))
    async with database.signals("t") as signal, other.signals("t") as others:
        await listening(signal, database)
        await listening(others, other)
        await tell(database, "u")
        await tell(other, "t")
        assert await others.wait(10)
        assert not await signal.wait(0.3)
    await other.close()


async def test_all_of_an_event_loop_share_a_connection(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays for a while after the last of them, and then it is closed."""
    monkeypatch.setattr("threadkeep.postgres_signals.IDLE_SECONDS", 1)
    async with database.signals("t"), database.signals("u") as signal:
        await listening(signal, database)
        pids = await listeners(database)
        assert len(pids) == 1
    async with database.signals("t") as signal:
        assert not await signal.wait(1.5)  # so it was never gone
        assert await listeners(database) == pids
    assert await listeners(database) == pids
    await until_listeners(database, 0)
    async with database.signals("t") as signal:
        await listening(signal, database)
        await tell(database, "t")
        assert await signal.wait(10)


async def test_a_connection_that_is_killed_is_opened_again(
    database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """What may have been missed counts as a signal; nobody is bothered with it."""
    database.define("kill", KILL)
    async with database.signals("t") as signal:
        await listening(signal, database)
        for _ in range(3):
            [pid] = await until_listeners(database, 1)
            await database.call("kill", pid=pid)
            assert await signal.wait(10)
            assert await listeners(database) != [pid]
            assert not await signal.wait(0.2)
            await tell(database, "t")
            assert await signal.wait(10)
    assert not caplog.records


async def test_a_server_that_is_away(
    workspace: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Waits last as long as they shall, and then all is heard again, with another token."""
    monkeypatch.setattr("threadkeep.postgres_signals.CHECK_SECONDS", 0.2)
    monkeypatch.setattr("threadkeep.postgres_signals._ANSWER_SECONDS", 1)
    database = connected(Lakebase(workspace, workspace.new_database()))
    await database.open()
    async with database.signals("t") as signal:
        await listening(signal, database)
        await asyncio.sleep(0.5)
        assert not await signal.wait(0)
        for leave, come_back in (
            (workspace.stop, workspace.start),
            (workspace.pause, workspace.resume),
        ):
            await asyncio.to_thread(leave)
            workspace.expire_tokens()
            async with database.signals("u") as another:
                assert not await another.wait(0.5)
            assert not await signal.wait(2)
            await asyncio.to_thread(come_back)
            assert await signal.wait(20)
            await tell(database, "t")
            assert await signal.wait(10)
            assert not await signal.wait(0.2)
    await database.close()
    assert not caplog.records


async def test_an_old_connection_is_renewed(postgres: str) -> None:
    """Where connections may not grow old."""
    server = UrlServer(new_postgres(postgres).url)
    server.recycle_seconds = 0.5
    database = PostgresDatabase(server)
    async with database.signals("t") as signal:
        await listening(signal, database)
        old = await listeners(database)
        assert await signal.wait(10)
        assert await until_listeners(database, 1) != old
        await tell(database, "t")
        assert await signal.wait(10)
    await database.close()


async def test_behind_a_transaction_pooler_nothing_is_heard(postgres: str) -> None:
    """A wait lasts its time, and a statement may tell all the same."""
    backend = new_postgres(postgres)
    with transaction_pooler(backend) as url:
        database = connect(f"{url}?prepared_statements=off")
        async with database.signals("t") as signal:
            await tell(database, "t")
            began = time.monotonic()
            assert not await signal.wait(0.5)
            assert time.monotonic() - began > 0.4
        await database.close()


async def test_an_event_loop_that_ends_leaves_no_connection(postgres: str) -> None:
    """And no warning, also when somebody had not gone."""
    database = PostgresDatabase(UrlServer(new_postgres(postgres).url))
    held = []

    async def hear() -> None:
        held.append(database.signals("t"))
        await listening(await held[0].__aenter__(), database)

    await asyncio.to_thread(asyncio.run, hear())
    held.clear()
    gc.collect()
    await until_listeners(database, 0)
    await database.close()


FORGETFUL = """
import asyncio, sys
from threadkeep.connect import connect_postgres

async def hear():
    async with database.signals("t") as signal:
        assert await signal.wait(10)

async def until_nobody_listens():
    database.define("listeners", sys.argv[2])
    while await database.call("listeners"):
        pass
    await database.close()

database = connect_postgres(sys.argv[1])
loop = asyncio.new_event_loop()
loop.run_until_complete(hear())
loop.close()
asyncio.run(until_nobody_listens())
"""


async def test_an_event_loop_that_was_closed_as_it_was(postgres: str) -> None:
    """Its connection ends when another one uses the database; Python itself warns of the rest."""
    command = [sys.executable, "-c", FORGETFUL, new_postgres(postgres).url, LISTENERS]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=20, capture_output=True)


# What SQLite alone has


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[tuple[Path, Database]]:
    """A file, and the database in it."""
    path = tmp_path / "a.db"
    database = connect(f"sqlite:///{path}")
    await database.open()
    yield path, database
    await database.close()


WRITER = """
import sqlite3, sys
raw = sqlite3.connect(sys.argv[1])
with raw:
    raw.execute("INSERT INTO sessions (session_id, owner, epoch, created_at, updated_at) "
                "VALUES ('t', '', 1, 1, 1)")
raw.close()
"""


async def test_a_process_that_knows_nothing_of_signals_is_heard(
    file: tuple[Path, Database],
) -> None:
    """Whatever it commits."""
    path, database = file
    async with database.signals("t") as signal:
        assert not await signal.wait(0.3)
        command = [sys.executable, "-c", WRITER, str(path)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        assert await signal.wait(10)
        assert not await signal.wait(0.3)


async def test_a_database_in_memory_signals() -> None:
    """To who shares it."""
    database = connect("sqlite://")
    async with database.signals("t") as signal:
        assert not await signal.wait(0.3)
        await tell(database, "t")
        assert await signal.wait(10)
    await database.close()


async def test_who_reads_signals_nothing(file: tuple[Path, Database]) -> None:
    """Nor does a statement that finds nothing to change."""
    database = file[1]
    async with database.signals("t") as signal:
        await database.call("get_session", session_id="s", owner="")
        await database.call("delete_session", session_id="s", owner="")
        assert not await signal.wait(0.3)


async def test_a_wait_is_not_held_up(file: tuple[Path, Database]) -> None:
    """By another process that has the file for itself."""
    path, database = file
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        async with database.signals("t") as signal:
            raw.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(tell(database, "t"))
            began = time.monotonic()
            assert not await signal.wait(0.5)
            assert time.monotonic() - began < 3
            raw.execute("COMMIT")
            await writing
            assert await signal.wait(10)


async def test_a_database_that_can_not_be_opened_leaves_it_to_the_reader(tmp_path: Path) -> None:
    """A wait ends at once, for who reads is told why."""
    database = connect(f"sqlite:///{tmp_path}/no/such/folder/a.db")
    async with database.signals("t") as signal:
        assert await signal.wait(10)
    await database.close()
