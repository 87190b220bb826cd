"""`threadkeep owners forget`: nothing of an owner is left, neither in a row nor in a file."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agents import function_tool
from click.testing import CliRunner

from tests.backends import Backend, Postgres, SQLite
from tests.client import ask, client_of, contents
from tests.conftest import RunningApp, environment
from tests.test_commands import Folder, settings_of
from tests.test_databricks import user
from threadkeep import Session, owners, sqlite
from threadkeep.commands import main
from threadkeep.connect import connect
from threadkeep.database import Database, Row, Value
from threadkeep.errors import DatabaseUnavailableError
from threadkeep.memory_form import Draft, Source
from threadkeep.memory_store import MemoryStore
from threadkeep.owners import count_of, forget
from threadkeep.search_index import catch_up
from threadkeep.settings import DatabaseSettings

BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

MARK = "planted1"  # as the search index has it, too
OWNER = f"{MARK}-ann"
OF_NOBODY = {"schema_migrations", "owner_keys"}
"""Tables that hold nothing of an owner here: for keys see test_sealing.py. All others must be
covered."""


@function_tool
def recall() -> str:
    """Gives what must not be found later."""
    return f"{MARK} output"


@function_tool
def note() -> str:
    """Gives what others may have."""
    return "noted"


@function_tool(needs_approval=True)
def pay() -> str:
    """Waits for somebody."""
    return "paid"


@pytest.fixture
def app(backend: Backend) -> Iterator[RunningApp]:
    """A server behind a proxy that says who asks."""
    more = {"THREADKEEP_TRUST_PROXY_HEADERS": "1", "REQUESTS_PER_MINUTE": "6000"}
    app = RunningApp(environment(backend, **more), tools=[recall, note, pay])
    yield app
    app.model.go_on.set()
    app.stop()


def database_of(backend: Backend) -> Database:
    return connect(DatabaseSettings.read(backend.variables))


def read(backend: Backend, sql: str) -> list[str]:
    """The first column of what a query gives."""
    if isinstance(backend, SQLite):
        with closing(sqlite3.connect(backend.file)) as raw:
            return [str(row[0]) for row in raw.execute(sql.replace("threadkeep.", ""))]
    assert isinstance(backend, Postgres)
    command = ["psql", "-qAt", "-v", "ON_ERROR_STOP=1", backend.url, "-c", sql]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def tables(backend: Backend) -> set[str]:
    """Those of the schema, whichever there are, that must be covered."""
    if isinstance(backend, SQLite):
        found = read(backend, "SELECT name FROM sqlite_master WHERE type = 'table'")
    else:
        found = read(backend, "SELECT tablename FROM pg_tables WHERE schemaname = 'threadkeep'")
    return {name for name in found if not name.startswith("sqlite_")} - OF_NOBODY


def marked(backend: Backend, table: str) -> int:
    """How many rows of a table have a marker in them."""
    if isinstance(backend, SQLite):
        with closing(sqlite3.connect(backend.file)) as raw:
            rows = raw.execute(f"SELECT * FROM {table}").fetchall()
        return sum(MARK in repr(row) for row in rows)
    sql = f"SELECT count(*) FROM threadkeep.{table} AS t WHERE t::text LIKE '%{MARK}%'"
    return int(read(backend, sql)[0])


def scan(backend: Backend) -> int:
    """How many markers are in the bytes of the files, or in a dump."""
    if isinstance(backend, SQLite):
        files = [f"{backend.file}{end}" for end in ("", "-wal", "-shm")]
        # Not in this process: closing a file gives up the locks that SQLite has on it here.
        found = subprocess.run(["grep", "-aos", MARK, *files], capture_output=True, check=False)
        return len(found.stdout.splitlines())
    assert isinstance(backend, Postgres)
    dump = subprocess.run(["pg_dump", backend.url], check=True, capture_output=True).stdout
    assert b"COPY threadkeep.items" in dump
    return dump.count(MARK.encode())


def here(backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it the database of commands that run in this process."""
    monkeypatch.setenv("DATABASE_URL", backend.variables["DATABASE_URL"])
    monkeypatch.chdir(folder)


async def talk(backend: Backend, owner: str, text: str, sessions: int = 40) -> None:
    """Fills sessions in turns with items of many lengths, between those of others: so pages of a
    file split, rows move and leave copies, and the pages are still needed when they are deleted."""
    database = database_of(backend)
    made = [Session(f"{n}-{owner}", database=database, owner=owner) for n in range(sessions)]
    for length in (10, 900, 100, 3000, 30, 400):
        await asyncio.gather(*(s.add_items([user(text + "." * length)] * 3) for s in made))
    for session in made[::3]:
        await session.pop_item()
    await catch_up(database, owner)
    await remember(database, owner, text)
    await database.close()


async def remember(database: Database, owner: str, text: str) -> None:
    """Has a memory, and what it was before."""
    store = MemoryStore(database, owner)
    memory = await store.save(f"/memories/{text}.md", Draft(text, f"{text} then", [text]))
    await store.update(memory["id"], lambda draft: replace(draft, contents=f"{text} now"))
    gone = await store.save(f"/memories/{text}-old.md", Draft(text), Source(f"0-{owner}", 1, 1))
    await store.delete(gone["id"])


def live(app: RunningApp, owner: str, text: str, tool: str = "recall") -> str:
    """Has something of an owner in every table; gives the session of a run that is at work."""
    with client_of(app.url, **{"X-Forwarded-User": owner, "Idempotency-Key": text}) as client:
        ask(client, f"use {tool}; say {text}", f"{text}-tools", metadata={"of": text})
    with client_of(app.url, **{"X-Forwarded-User": owner}) as client:
        waiting = ask(client, f"use {tool} pay; say {text}", f"{text}-waits")
        assert waiting["incomplete_details"]["reason"] == "approval_required"
        ask(client, f"hold {text}", f"{text}-works", background=True)
    return f"{text}-works"


@BOTH
def test_nothing_is_found_afterwards(
    backend: Backend, app: RunningApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a server that works for the owner: each table of the schema is on the receipt, no row,
    file or dump holds a marker, and what others have stays."""
    working = live(app, OWNER, f"{MARK}-text")
    held = live(app, "bob", "bobs", "note")
    asyncio.run(talk(backend, OWNER, MARK))
    asyncio.run(talk(backend, "bob", "bobs"))
    assert all(marked(backend, table) for table in tables(backend))
    assert scan(backend) > 1000
    of_bob = asyncio.run(counted(backend, "bob"))

    here(backend, tmp_path, monkeypatch)
    done = CliRunner().invoke(main, ["owners", "forget", OWNER])
    would = f"Would be deleted of {OWNER} (--yes does it):"
    assert (done.exit_code, done.output.splitlines()[0]) == (0, would)
    assert all(marked(backend, table) for table in tables(backend))
    folder = Folder(tmp_path / "folder", **settings_of(backend))
    code, told, err = folder.run("owners", "forget", OWNER, "--yes")
    assert (code, err) == (0, ""), told
    receipt = {line.split()[0]: int(line.split()[1]) for line in told.splitlines()[1:]}
    assert receipt.pop("owner_keys") == 0
    assert receipt.keys() == tables(backend)
    assert (receipt["sessions"], receipt["runs"], receipt["approvals"]) == (43, 3, 1)
    assert all(receipt.values())

    assert {table: marked(backend, table) for table in tables(backend)} == dict.fromkeys(receipt, 0)
    assert scan(backend) == 0
    with client_of(app.url, **{"X-Forwarded-User": OWNER}) as client:
        assert client.get("/sessions").json()["data"] == []
        assert client.get(f"/sessions/{working}").status_code == 404
    app.model.go_on.set()
    with client_of(app.url, **{"X-Forwarded-User": "bob"}) as client:
        ask(client, "say again", held)
        assert contents(client, held)[1:] == ["Holding no more.", "say again", "again"]
    assert asyncio.run(counted(backend, "bob"))["approvals"] == of_bob["approvals"] == 1
    assert scan(backend) == 0, "the run that was stopped wrote again"


async def counted(backend: Backend, owner: str) -> dict[str, int]:
    database = database_of(backend)
    try:
        return await count_of(database, owner)
    finally:
        await database.close()


class Failing:
    """A database that fails after some calls of a statement.

    Args:
        inner: The real one.
        statement: Which.
        calls: How many of them are done.
    """

    def __init__(self, inner: Database, statement: str, calls: int) -> None:
        self._inner, self._statement, self._calls = inner, statement, calls

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        if statement == self._statement:
            self._calls -= 1
        if self._calls < 0:
            raise DatabaseUnavailableError("It was interrupted.")
        return await self._inner.call(statement, **parameters)


@BOTH
async def test_interrupted_and_gone_on_with(
    backend: Backend, app: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is whole; the next time it goes, with a run that lost its process."""
    monkeypatch.setattr(owners, "_BATCH", 2)
    await asyncio.to_thread(live, app, OWNER, "text")
    await asyncio.to_thread(app.stop)
    await talk(backend, OWNER, "text", 6)
    await talk(backend, "bob", "bobs", 3)
    database: Any = database_of(backend)
    whole = {row["session_id"]: row["seq"] for row in await sessions_of(database)}
    for interrupted in (
        Failing(database, "delete_sessions", 2),
        Failing(database, "stop_owner", 0),
    ):
        with pytest.raises(DatabaseUnavailableError):
            await forget(interrupted, OWNER)  # type: ignore[arg-type]
        left = {row["session_id"]: row["seq"] for row in await sessions_of(database)}
        assert len(left) == 5
        assert left.items() <= whole.items()
        assert (await count_of(database, OWNER))["items"] == sum(left.values())
    receipt = await forget(database, OWNER)
    assert (receipt.deleted["sessions"], receipt.left, receipt.at_work) == (5, {}, 0)
    assert set((await count_of(database, OWNER)).values()) == {0}
    assert (await count_of(database, "bob"))["sessions"] == 3
    await database.close()
    app.start()


async def sessions_of(database: Database) -> list[Row]:
    return await database.call("list_sessions", owner=OWNER, after="", limit=100)


@BOTH
async def test_what_does_not_stop_is_left_and_told(backend: Backend) -> None:
    """A turn of a library can't be stopped from elsewhere: all else goes, and later that too."""
    database = database_of(backend)
    await talk(backend, OWNER, "text", 3)
    session = Session("at work", database=database, owner=OWNER)
    async with session.turn():
        await session.add_items([user("hello")])
        receipt = await forget(database, OWNER, wait_seconds=0.3)
        assert (receipt.deleted["sessions"], receipt.at_work) == (3, 1)
        assert (receipt.left["sessions"], receipt.left["runs"]) == (1, 1)
    assert await session.get_items() == [user("hello")]
    receipt = await forget(database, OWNER)
    assert (receipt.deleted["sessions"], receipt.deleted["items"], receipt.left) == (1, 1, {})
    await database.close()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_reader_keeps_the_file_from_being_overwritten(
    backend: SQLite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is deleted, and the command says that it can still be found; when the reader has gone, the
    same command does the rest."""
    monkeypatch.setattr(sqlite, "SCRUB_SECONDS", 0.2)
    here(backend, tmp_path, monkeypatch)
    asyncio.run(talk(backend, OWNER, MARK, 3))
    command = ["owners", "forget", OWNER, "--yes"]
    with closing(sqlite3.connect(backend.file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM items").fetchone()
        done = CliRunner().invoke(main, command)
        assert (done.exit_code, marked(backend, "items")) == (1, 0)
        assert "another program reads or writes it" in done.output
        assert scan(backend) > 0
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, scan(backend)) == (0, 0)
