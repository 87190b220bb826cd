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
from threadkeep import search
from threadkeep.connect import connect
from threadkeep.database import Database, load_statements
from threadkeep.postgres import _numbered
from threadkeep.search import search_sessions
from threadkeep.settings import DatabaseSettings
from threadkeep.sqlite import split_script
from threadkeep.stored_sessions import get_session, list_sessions

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

ITEMS = 10
"""Of each session."""

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


def fill(backend: Backend, sessions: int) -> None:
    """Makes the sessions of one owner, behind the program's back."""
    dialect = "sqlite" if isinstance(backend, SQLite) else "postgres"
    time = "n * 1000" if dialect == "sqlite" else "to_timestamp(n)"
    seqs = ", ".join(f"({seq})" for seq in range(1, ITEMS + 1))
    for sql in (SESSIONS, CONTENTS):
        numbers = NUMBERS[dialect].format(count=sessions)
        text = sql.format(numbers=numbers, items=ITEMS, time=time, seqs=seqs)
        if dialect == "sqlite":
            text = text.replace("(VALUES", "(SELECT column1 AS seq FROM (VALUES").replace(
                ") AS i (seq)", ")) AS i"
            )
        backend.execute(text)


@pytest.fixture
async def database(
    backend: Backend, prove: bool, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    """A store that is full and indexed."""
    if not prove:
        monkeypatch.setattr(search, "MAX_READ", 300)
    database = connect(DatabaseSettings.read(backend.variables))
    await database.open()
    fill(backend, 100_000 if prove else 1_000)
    await search.catch_up(database, None)
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
    await get_session(database, oldest, "ann")
    for statement, place in (
        ("read_latest_items", {"before": 2**62}),
        ("read_first_items", {"after": 0}),
    ):
        await database.call(statement, session_id=oldest, owner="ann", limit=51, **place)

    assert {statement for statement, _ in calls} >= {
        "read_postings",
        "read_postings_of",
        "list_terms",
    }
    bound = 3 * search.MAX_READ + 200
    if isinstance(backend, SQLite):
        for statement, parameters in calls:
            plan = sqlite_plan(backend, statement, parameters)
            assert not [step for step in plan if is_unbounded(step)], (statement, plan)
            assert vm_steps(backend, statement, parameters) < 40 * bound, statement
    assert isinstance(backend, SQLite | Postgres)
    if isinstance(backend, Postgres):
        for mode in ("force_custom_plan", "force_generic_plan"):
            for statement, parameters in calls:
                nodes = list(await postgres_plan(backend, mode, statement, parameters))
                done = [node for node in nodes if node["Actual Loops"]]
                scans = [node for node in done if node["Node Type"] == "Seq Scan"]
                assert scans == [], (mode, statement, scans)
                assert max(map(rows_of, done)) < bound, (mode, statement)


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
