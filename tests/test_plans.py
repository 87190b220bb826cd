"""How much the database reads when somebody lists, searches and opens, however much there is.

Every statement that is called on the way is explained by the database itself, with what it was
called with. In CI there are 10,000 items, with --prove 1,000,000 of 100,000 sessions.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import asyncpg
import pytest

from tests.backends import Backend, Postgres, SQLite
from threadkeep import memory_store, passages, search, search_index
from threadkeep.connect import connect
from threadkeep.database import Database, load_statements
from threadkeep.memory_index import now_ms, path_key, scope_of
from threadkeep.memory_store import MemoryStore
from threadkeep.passages import search_passages
from threadkeep.postgres import _numbered
from threadkeep.search import search_sessions
from threadkeep.settings import DatabaseSettings
from threadkeep.sqlite import split_script
from threadkeep.stored_sessions import get_session, list_sessions

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

ITEMS = 10
"""Of each session."""

OF_MEMORIES = {"get_memory", "list_memories", "list_versions", "read_latest_memories"} | {
    *("claim_session_to_remember", "list_memory_ids")
}
FEW_STEPS = 5_000
"""Of SQLite's machine, for these: they read a page, or one."""

Call = tuple[str, dict[str, Any]]

# Session n is the n-th by time; its items say what all sessions say, one in ten, and it alone.
NUMBERS = {
    "sqlite": """
      WITH RECURSIVE number (n) AS (
        SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {count})""",
    "postgres": "WITH number AS (SELECT n FROM generate_series(1, {count}) n)",
}
SESSIONS = """
  INSERT INTO threadkeep.sessions (session_id, owner, title, epoch, seq, created_at, updated_at)
  {numbers} SELECT 's' || n, 'ann', 'Session ' || n, n, {items}, {time}, {time} FROM number"""
CONTENTS = """
  INSERT INTO threadkeep.items (session_id, seq, data, created_at)
  {numbers}
  SELECT 's' || n, i.seq,
         '{{"role":"user","content":"common ten' || (n % 10) || ' rare' || n || '"}}', {time}
  FROM number, (VALUES {seqs}) AS i (seq)"""

# Each session has left a memory, which was another one before; one in a hundred is pinned, one in
# ten holds no more.
MEMORIES = """
  INSERT INTO threadkeep.memories
    (memory_id, owner, path_key, path, description, contents, keywords, pinned, version, search_no,
     source_session, source_seq, source_at, created_at, updated_at, valid_from, valid_to)
  {numbers}
  SELECT 'm' || n, 'ann', '/memories/' || n, '/memories/' || n, 'tea', '', '[]',
         CASE WHEN n % 100 = 0 THEN 1 ELSE 0 END, 2, {first} + n, 's' || n, 1, 1000 * n,
         {time}, {time}, {time},
         CASE WHEN n % 10 = 1 THEN {time} END
  FROM number"""
HISTORY = """
  INSERT INTO threadkeep.memory_history
    (memory_id, version, owner, description, contents, source_session, source_seq, valid_from,
     valid_to, superseded_by)
  SELECT memory_id, 1, owner, 'old', '', source_session, 1, valid_from, valid_from, 2
  FROM threadkeep.memories"""
FORGOTTEN = """
  INSERT INTO threadkeep.forgotten (owner, seq, at)
  SELECT owner, source_seq, source_at + 1 FROM threadkeep.memories"""
WORDS = """
  INSERT INTO threadkeep.postings (scope, term, search_no, block, hits)
  SELECT {scope}, 'tea', search_no, 0, '1.0.0;' FROM threadkeep.memories"""
FIRST = 1 << 62
"""The number of the first memory."""


def fill(backend: Backend, sessions: int) -> None:
    """Makes the sessions of one owner, behind the program's back."""
    dialect = "sqlite" if isinstance(backend, SQLite) else "postgres"
    time = "n * 1000" if dialect == "sqlite" else "to_timestamp(n)"
    seqs = ", ".join(f"({seq})" for seq in range(1, ITEMS + 1))
    for sql in (SESSIONS, CONTENTS, MEMORIES, HISTORY, FORGOTTEN, WORDS):
        numbers = NUMBERS[dialect].format(count=sessions)
        of = {"first": FIRST, "scope": scope_of("ann")}
        text = sql.format(numbers=numbers, items=ITEMS, time=time, seqs=seqs, **of)
        if dialect == "sqlite":
            text = text.replace("(VALUES", "(SELECT column1 AS seq FROM (VALUES").replace(
                ") AS i (seq)", ")) AS i"
            )
        backend.execute(text)
    middle = sessions // 2
    backend.execute(
        f"UPDATE threadkeep.memories SET path_key = '{path_key(f'/memories/{middle}')}' "
        f"WHERE memory_id = 'm{middle}'"
    )


@pytest.fixture
async def database(
    backend: Backend, prove: bool, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    """A store that is full and indexed."""
    if not prove:
        monkeypatch.setattr(search, "MAX_READ", 300)
        monkeypatch.setattr(memory_store, "MAX_READ", 600)
        monkeypatch.setattr(passages, "SHARES", (300, 300, 100))
    database = connect(DatabaseSettings.read(backend.variables))
    await database.open()
    fill(backend, 100_000 if prove else 1_000)
    await search_index.catch_up(database, None)
    if isinstance(backend, Postgres):  # which does it by itself; nobody does it for SQLite
        backend.execute("ANALYZE")
    yield database
    await database.close()


async def test_what_is_read_is_bounded(
    backend: Backend, database: Database, prove: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First page, next page, a search for what is everywhere, for what is rare, and for both, the
    beginning of a word, and opening what was found: no table is scanned, nothing sorted but what is
    read, and that is no more than was asked for."""
    sessions = 100_000 if prove else 1_000
    calls: list[Call] = []
    ask = database.call

    async def noted(statement: str, **parameters: Any) -> Any:
        calls.append((statement, parameters))
        return await ask(statement, **parameters)

    monkeypatch.setattr(database, "call", noted)
    await look_at_memories(database, sessions)
    first = await list_sessions(database, "ann", limit=31)
    following = await list_sessions(database, "ann", after=first[-1]["id"], limit=31)
    assert [s["id"] for s in first + following] == [f"s{sessions - n}" for n in range(62)]
    oldest = f"s{sessions // 2 + 3}"
    for query, expected, complete in (
        ("common.", [f"s{sessions - n}" for n in range(31)], False),
        (f"rare{sessions // 2 + 3}.", [oldest], True),
        (f"rare{sessions // 2 + 3} common ten{(sessions // 2 + 3) % 10}.", [oldest], True),
        (f"common rare{sessions // 2 + 3}", [oldest], None),
    ):
        found, is_complete = await search_sessions(database, "ann", query, limit=31)
        assert [one["id"] for one in found][:31] == expected
        assert complete in (None, is_complete)
        best, _ = await search_passages(database, "ann", query, limit=10)
        assert ("rare" in query) == (best[0].session_id == oldest)
    await get_session(database, oldest, "ann")
    for statement, place in (
        ("read_latest_items", {"before": 2**62}),
        ("read_first_items", {"after": 0}),
    ):
        await database.call(statement, session_id=oldest, owner="ann", limit=51, **place)

    assert {statement for statement, _ in calls} >= {
        "read_postings",
        "read_postings_of",
        "read_newest_postings",
        "read_postings_at",
        "list_terms",
        "read_memories",
        *OF_MEMORIES,
    }
    bound = 3 * search.MAX_READ + 200
    if isinstance(backend, SQLite):
        for statement, parameters in calls:
            plan = sqlite_plan(backend, statement, parameters)
            assert not [step for step in plan if is_unbounded(step)], (statement, plan)
            most = FEW_STEPS if statement in OF_MEMORIES else 40 * bound
            assert vm_steps(backend, statement, parameters) < most, statement
    assert isinstance(backend, SQLite | Postgres)
    if isinstance(backend, Postgres):
        for mode in ("force_custom_plan", "force_generic_plan"):
            for statement, parameters in calls:
                nodes = list(await postgres_plan(backend, mode, statement, parameters))
                done = [node for node in nodes if node["Actual Loops"]]
                scans = [node for node in done if node["Node Type"] == "Seq Scan"]
                assert scans == [], (mode, statement, scans)
                assert max(map(rows_of, done)) < bound, (mode, statement)


async def look_at_memories(database: Database, count: int) -> None:
    """First page, next page, the latest, one of them, all by their ids, a search for what all say,
    and the session that comes next to be looked through for memories."""
    store = MemoryStore(database, "ann")
    first = await store.page(limit=31)
    following = await store.page(after=first[-1]["id"], limit=31)
    assert [one["id"] for one in first + following] == [f"m{count - n}" for n in range(62)]
    latest = [row["memory_id"] for row in await store.latest(5)]
    assert latest[:5] == [f"m{count - 100 * n}" for n in range(5)]
    assert latest[5:] == [f"m{count - n}" for n in range(1, 6)]
    middle = f"/memories/{count // 2}"
    assert (await store.read((await store.get(middle))["id"]))["path"] == middle
    assert (await anext(store.export()))["id"] == f"m{count}"
    found, complete = await store.search("tea", limit=31)
    assert (len(found), complete) == (31, False)
    since = {"recent": now_ms() - (count - 9) * 1000, "quiet": 1000, "lease": 1000}
    [claimed] = await database.call("claim_session_to_remember", **since)
    assert claimed["seq"] == ITEMS


def sqlite_plan(backend: SQLite, statement: str, parameters: dict[str, Any]) -> list[str]:
    """What SQLite says it does, step by step."""
    with closing(sqlite3.connect(backend.file)) as raw:
        return [
            row[3]
            for text in split_script(load_statements("sqlite")[statement])
            for row in raw.execute(f"EXPLAIN QUERY PLAN {text}", bound_for_sqlite(parameters))
        ]


def is_unbounded(step: str) -> bool:
    """Whether a step reads a table as a whole."""
    scanned = re.match(r"SCAN (\w+)", step)
    tables = ("sessions", "items", "runs", "postings", "s", "i", "p", "q", "k")
    tables += ("memories", "memory_history", "m", "h", "o", "a")
    return (
        bool(scanned)
        and scanned[1] in tables
        and not step.endswith((" sessions_to_index", " VIRTUAL TABLE INDEX 1:"))
    )


def vm_steps(backend: SQLite, statement: str, parameters: dict[str, Any]) -> int:
    """How many steps of SQLite's machine it takes, in hundreds."""
    hundreds = 0

    def count() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    with closing(sqlite3.connect(backend.file)) as raw:
        raw.set_progress_handler(count, 100)
        for text in split_script(load_statements("sqlite")[statement]):
            raw.execute(text, bound_for_sqlite(parameters)).fetchall()
    return 100 * hundreds


def bound_for_sqlite(parameters: dict[str, Any]) -> dict[str, Any]:
    return {k: json.dumps(v) if isinstance(v, list) else v for k, v in parameters.items()}


async def postgres_plan(
    backend: Postgres, mode: str, statement: str, parameters: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The nodes of the plan that Postgres has made and followed."""
    text, names = _numbered(load_statements("postgres")[statement])
    given = {"retried": False, "call_id": 1, "channel": "x"} | parameters
    values = ", ".join(literal(given[name]) for name in names)
    connection = await asyncpg.connect(backend.url)
    try:
        await connection.execute(f"SET plan_cache_mode = {mode}")
        await connection.execute(f"PREPARE asked AS {text.rstrip().rstrip(';')}")
        said = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked ({values})")
    finally:
        await connection.close()
    return nodes_of(json.loads(said)[0]["Plan"])


def nodes_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes_of(child)


def rows_of(node: dict[str, Any]) -> int:
    """How many rows a node of a plan has read."""
    each = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return int(each * node["Actual Loops"])


def literal(value: Any) -> str:
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(literal, value))}]::text[]"
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else f"'{value}'"
