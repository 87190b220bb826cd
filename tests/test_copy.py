"""A store moves to another database, whole: there and back, interrupted, changed, and refused."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.backends import Backend, SQLite, new_postgres
from tests.client import ANN, ask, client_of, text_of_response
from tests.conftest import RunningApp, environment
from tests.deciding import asked, decide, end_of
from tests.full_store import fill, read_all
from tests.postgres_proxy import postgres_proxy
from tests.test_commands import Done
from tests.workshop import Workshop
from threadkeep import copy_command, store_comparison, store_copy, store_copy_memories
from threadkeep.commands import main
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import ConflictError
from threadkeep.memory_store import MemoryStore
from threadkeep.session_export import export_session
from threadkeep.store_copy import compare_stores, copy_store

BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def source(tmp_path: Path) -> SQLite:
    """A store with something in every column."""
    source = SQLite(tmp_path / "source.db")
    fill(source.file)
    return source


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small store has many."""
    for name, value in {"IDS": 2, "PAGE_ROWS": 3, "PAGE_CHARACTERS": 40}.items():
        monkeypatch.setattr(store_copy, name, value)
    monkeypatch.setattr(store_copy_memories, "PAGE", 2)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` of this machine is read, and no handler of a log is left."""
    monkeypatch.chdir(tmp_path)
    for logger in (logging.getLogger(), logging.getLogger("threadkeep")):
        monkeypatch.setattr(logger, "handlers", list(logger.handlers))


@pytest.fixture
async def stores(source: SQLite, backend: Backend) -> AsyncIterator[tuple[Database, Database]]:
    """The store, and an empty one."""
    databases = connect(url(source)), connect(url(backend))
    await databases[1].open()
    yield databases
    for database in databases:
        await database.close()


def url(backend: Backend) -> str:
    return backend.variables["DATABASE_URL"]


def copy(*arguments: str, **variables: str) -> Done:
    """Runs `threadkeep copy` in this process."""
    done = CliRunner().invoke(main, ["copy", *arguments], env=variables)
    assert "secret" not in done.output
    return done.exit_code, done.stdout, done.stderr


async def troubles(stores: tuple[Database, Database]) -> dict[str, str]:
    """What differs, and how."""
    return dict((await compare_stores(*stores)).different.examples)


@pytest.mark.usefixtures("small_pages")
def test_there_and_back(source: SQLite, postgres: str, tmp_path: Path) -> None:
    """All rows of all owners come back as they were, through Postgres; twice is once."""
    there, back = new_postgres(postgres), SQLite(tmp_path / "back.db")
    for _ in range(2):
        code, out, err = copy(url(source), url(there))
        assert (code, err) == (0, "")
        assert [line.split() for line in out.splitlines()[:3]] == [
            ["table", "FROM", "TO"],
            ["sessions", "6", "6"],
            ["items", "42", "42"],
        ]
        assert out.endswith("\nVerified: 6 sessions, 42 items, 3 memories, equal.\n")
    assert copy(url(there), url(back))[0] == 0
    before = read_all(source.file)
    assert read_all(back.file) == before
    assert all(len(rows) > 1 for rows in before.values())
    filled = {(table, name) for table, rows in before.items() for name in rows[0]}
    for table, name in filled:
        assert any(row[name] not in (None, "", 0) for row in before[table]), f"{table}.{name}"
    assert asyncio.run(exported(source)) == asyncio.run(exported(there))
    for place in (there, back):
        assert asyncio.run(remembered(place)) == ["mem_1"]


async def exported(place: Backend) -> str:
    database = connect(url(place))
    try:
        return "".join([part async for part in export_session(database, "B", "ann")])
    finally:
        await database.close()


async def remembered(place: Backend) -> list[str]:
    """What a search finds: not what holds no more, nor what is others'."""
    database = connect(url(place))
    try:
        found, _ = await MemoryStore(database, "ann").search("plums", limit=9)
        return [memory["id"] for memory in found]
    finally:
        await database.close()


KILLED = """
import asyncio, json, os, signal, sys
from threadkeep import store_copy, store_copy_memories
from threadkeep.connect import connect

store_copy.PAGE_ROWS, store_copy.AT_ONCE, store_copy_memories.AT_ONCE = 3, 1, 1

async def copy(place=None):
    source, target = (connect(url) for url in sys.argv[1:])
    call, counts = target.call, {}
    async def counted(name, **parameters):
        counts[name] = counts.get(name, 0) + 1
        here = place is not None and place[:2] == [name, counts[name]]
        if here and place[2] == "meanwhile":
            asyncio.get_running_loop().call_later(0.001, os.kill, os.getpid(), signal.SIGKILL)
        if here and place[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rows = await call(name, **parameters)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows
    target.call = counted
    if place != []:
        await store_copy.copy_store(source, target)
    found = await store_copy.compare_stores(source, target)
    for database in (source, target):
        await database.close()
    return found.different.counts

for line in sys.stdin:
    child = os.fork()
    if not child:
        asyncio.run(copy(json.loads(line)))
        os._exit(0)
    ended = os.WTERMSIG(os.waitpid(child, 0)[1])
    print(json.dumps([ended, asyncio.run(copy([]))]), flush=True)
print(json.dumps(asyncio.run(copy())))
"""


@BOTH
def test_killed_and_gone_on_with(source: SQLite, backend: Backend) -> None:
    """At any place: what TO shows is whole, the rest is not there, and comes with the next copy."""
    command = [sys.executable, "-c", KILLED, url(source), url(backend)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin
    assert child.stdout
    not_there = {store_comparison.MISSING, store_comparison.CHANGED}
    places = [
        ("copy_items", 2, "meanwhile"),
        ("copy_events", 2, "after"),
        ("copy_session", 2, "before"),
        ("remove_copied_runs", 1, "before"),
        ("copy_session", 1, "after"),
        ("copy_memory", 2, "before"),
        ("copy_memory", 1, "after"),
    ]
    for place in places:
        child.stdin.write(json.dumps(place) + "\n")
        child.stdin.flush()
        ended, different = json.loads(child.stdout.readline())
        assert ended == 9, place
        assert different.keys() <= not_there, place
        assert different
    # It shows the old state, or nothing.
    for table in ("sessions", "memories"):
        source.execute(f"UPDATE threadkeep.{table} SET updated_at = updated_at + 1")
    for place in [
        ("uncopy_session", 1, "before"),
        ("uncopy_session", 1, "after"),
        ("uncopy_memory", 1, "after"),
    ]:
        child.stdin.write(json.dumps(place) + "\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())[0] == 9
    rest, _ = child.communicate()
    assert json.loads(rest) == {}
    assert child.returncode == 0


@BOTH
async def test_only_what_is_new_is_copied_again(
    stores: tuple[Database, Database], source: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has changed in FROM: one more item, fewer of them, a title, a decision, an event."""
    one, other = stores
    await copy_store(one, other)
    for sql in (
        "INSERT INTO items VALUES ('a', 8, '{}', NULL, 7)",
        "UPDATE sessions SET seq = 8, updated_at = updated_at + 1 WHERE session_id = 'a'",
        "DELETE FROM items WHERE session_id = 'B' AND seq > 2",
        "UPDATE sessions SET seq = 2, epoch = 5, updated_at = 4e12 WHERE session_id = 'B'",
        "UPDATE sessions SET title = 'new' WHERE session_id = '_'",
        "UPDATE approvals SET status = 'approved' WHERE approval_id = 'pending4'",
        "DELETE FROM run_events WHERE run_id = 'wann'",
        "UPDATE memories SET description = 'x', version = 5 WHERE memory_id = 'mem_2'",
        "UPDATE memories SET source_session = NULL WHERE memory_id = 'mem_0'",
    ):
        source.execute(sql)
    changed = {"a", "B", "_", "a-b", "not yet", "mem_0", "mem_2"}
    assert (await troubles(stores)).keys() == changed
    copied: set[str] = set()
    call = type(other).call

    async def watched(self: Database, statement: str, **parameters: str) -> object:
        if statement in ("copy_items", "copy_run"):
            copied.add(parameters["session_id"])
        if statement == "copy_memory":
            copied.add(parameters["memory_id"])
        return await call(self, statement, **parameters)

    monkeypatch.setattr(type(other), "call", watched)
    await copy_store(one, other)
    assert copied == changed
    assert await troubles(stores) == {}


@BOTH
async def test_refused(stores: tuple[Database, Database], source: SQLite, backend: Backend) -> None:
    """What TO has of its own, or has gone on with, is not written over; nothing is changed."""
    await copy_store(*stores)
    source.execute("UPDATE sessions SET title = 'news'")
    for sql, said in (
        ("runs SET attempt = 4 WHERE session_id = 'not yet'", "2 runs that have gone on in TO"),
        ("approvals SET status = 'approved'", "8 runs that have gone on in TO"),
        ("runs SET run_id = 'x' WHERE run_id = 'wann'", "1 runs that FROM does not have"),
        ("items SET created_at = created_at + DAY WHERE session_id = 'a'", "1 that have gone on"),
        ("sessions SET seq = seq + 1 WHERE session_id = 'B'", "2 that have gone on in TO"),
        ("sessions SET updated_at = updated_at + DAY, epoch = 7", "6 that have gone on in TO"),
        ("sessions SET session_id = 'x' WHERE session_id = 'a'", "1 that FROM does not have"),
        (
            "memories SET version = 5 WHERE memory_id = 'mem_1'",
            "1 memories that have gone on in TO",
        ),
        ("memories SET memory_id = 'x' WHERE memory_id = 'mem_0'", "1 memories that FROM does not"),
    ):
        day = "86400000" if isinstance(backend, SQLite) else "interval '1 day'"
        backend.execute(f"UPDATE threadkeep.{sql.replace('DAY', day)}")
        before = await compare_stores(*stores)
        with pytest.raises(ConflictError, match=rf"{said}.* Nothing was changed"):
            await copy_store(*stores)
        assert await compare_stores(*stores) == before
    assert store_comparison.AHEAD in (await troubles(stores)).values()


@BOTH
async def test_what_changes_while_it_is_copied(
    stores: tuple[Database, Database], source: SQLite, small_pages: None
) -> None:
    """Is left out, or found afterwards, and comes with the next copy."""
    changes = iter(
        [
            "UPDATE sessions SET seq = 8, updated_at = updated_at + 1 WHERE session_id = 'Ab'",
            "INSERT INTO items VALUES ('Ab', 8, '{}', NULL, 7)",
            "UPDATE sessions SET updated_at = updated_at + 1 WHERE session_id = 'B'",
        ]
    )

    def told(count: int) -> None:
        if change := next(changes, None):
            source.execute(change)

    await copy_store(*stores, told)
    found = await troubles(stores)
    assert found
    assert set(found.values()) <= {store_comparison.CHANGED, store_comparison.MISSING}
    await copy_store(*stores)
    assert await troubles(stores) == {}


@BOTH
def test_a_difference_is_found(source: SQLite, backend: Backend) -> None:
    """In any table, by `--verify` too, with exit code 1; that changes nothing."""
    assert copy(url(source), url(backend))[0] == 0
    for sql in (
        "UPDATE threadkeep.items SET data = '{}' WHERE session_id = 'a' AND seq = 3",
        "DELETE FROM threadkeep.run_events WHERE run_id = 'resp_1' AND seq = 4",
        "DELETE FROM threadkeep.sessions WHERE session_id = '_'",
        "UPDATE threadkeep.model_calls SET response = 'x' WHERE journal_id = 'resp_4'",
        "UPDATE threadkeep.memory_history SET contents = 'x' WHERE memory_id = 'mem_0'",
        "DELETE FROM threadkeep.memories WHERE memory_id = 'mem_1'",
        "DELETE FROM threadkeep.memory_history WHERE memory_id = 'mem_1'",
    ):
        backend.execute(sql)
    for _ in range(2):
        code, out, err = copy("--verify", url(source), url(backend))
        assert (code, err) == (1, "")
        title, *named = out.splitlines()[10:]
        assert title == "Different: 6 sessions and memories."
        assert sorted(named) == [
            f"  B: {store_comparison.DIFFERENT}",
            f"  _: {store_comparison.CHANGED}",
            f"  a-b: {store_comparison.DIFFERENT}",
            f"  a: {store_comparison.DIFFERENT}",
            f"  mem_0: {store_comparison.DIFFERENT}",
            f"  mem_1: {store_comparison.MISSING}",
        ]
        assert out.splitlines()[1].split() == ["sessions", "6", "5"]
    assert copy(url(source), url(backend))[0] == 0


def test_what_was_under_way_goes_on_in_the_copy(tmp_path: Path, postgres: str) -> None:
    """A call that waits is decided there, and a run that had not ended is taken over."""
    old, new, shop = SQLite(tmp_path / "old.db"), new_postgres(postgres), Workshop()
    app = RunningApp(environment(old, THREADKEEP_TRUST_PROXY_HEADERS="1"), tools=shop.tools())
    with client_of(app.url, **ANN) as ann:
        (approval_id,) = asked(ask(ann, "use pay; say paid", "parked"))
        run_id = ask(ann, "use search; say found", "cut off", background=True)["id"]
        shop.until_begun("search")
    app.stop()
    assert copy(url(old), url(new))[0] == 0
    shop.go_on.set()
    place = environment(new, THREADKEEP_TRUST_PROXY_HEADERS="1")
    app = RunningApp(place, tools=shop.tools())
    with client_of(app.url, **ANN) as ann:
        app.take_over()
        decided = decide(ann, approval_id, True)
        assert text_of_response(end_of(ann, decided["response_id"])) == "paid"
        assert text_of_response(end_of(ann, run_id)) == "found"
    app.stop()
    assert shop.done == {"pay": 1, "search": 1}
    code, out, _ = copy(url(old), url(new))
    assert (code, out) == (2, "")


async def test_lost_answers(source: SQLite, postgres: str) -> None:
    """A statement whose connection died is made again, and done once."""
    with postgres_proxy(new_postgres(postgres).url) as proxy:
        stores = connect(url(source)), connect(proxy.url)
        await stores[1].open()
        proxy.lose_every = 7
        for change in ("title = 'x'", "title = 'y'"):
            await copy_store(*stores)
            source.execute(f"UPDATE sessions SET {change}, updated_at = updated_at + 1")
            source.execute("UPDATE memories SET version = version + 1, updated_at = updated_at + 1")
        await copy_store(*stores)
        proxy.lose_every = 0
        assert await troubles(stores) == {}
        for database in stores:
            await database.close()


@pytest.mark.parametrize("backend", ["lakebase"], indirect=True)
def test_lakebase(source: SQLite, backend: Backend) -> None:
    """Is named by the environment."""
    code, out, _ = copy(url(source), "lakebase", **backend.variables)
    assert (code, out.splitlines()[-1]) == (
        0,
        "Verified: 6 sessions, 42 items, 3 memories, equal.",
    )


def test_what_can_not_be_copied(source: SQLite, postgres: str, tmp_path: Path) -> None:
    """Says which side it is, and what to do; nothing is made, and no password told."""
    there = new_postgres(postgres, bare=True)
    none = tmp_path / "none.db"
    unknown = f"{there.url}_unknown".replace("postgres@", "postgres:secret@")
    for arguments, said in (
        ((url(source), f"sqlite:///{source.file.parent}/./source.db"), "are the same database"),
        ((url(there), url(there)), "FROM holds no store"),
        ((f"sqlite:///{none}", url(there)), "FROM holds no store, or is not up to date"),
        (("--verify", url(source), f"sqlite:///{none}"), "TO holds no store, or is not up to"),
        ((url(source), "mysql://me:secret@h/db"), "TO: DATABASE_URL must be of the form"),
        ((url(source), "lakebase"), "TO: `lakebase` is the one that the environment names"),
        ((unknown, url(there)), "FROM: There is no such database"),
    ):
        code, out, err = copy(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert not none.exists()


def test_progress_without_a_terminal(
    source: SQLite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pages: None
) -> None:
    """A line now and then, to stderr."""
    monkeypatch.setattr(copy_command, "LINE_SECONDS", 0)
    _, _, err = copy(url(source), f"sqlite:///{tmp_path}/other.db")
    lines = err.splitlines()
    assert lines[-1] == "Comparing: 84 of 84 items"
    assert "Copying: 42 of 42 items" in lines
