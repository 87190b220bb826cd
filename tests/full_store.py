"""A store with something in every column of every table, and what is in there, read raw."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.run_tables import ORDERS
from threadkeep.connect import connect

HOSTILE = [
    '{"type":"message","content":"\\u0000 \\ud800 \\"\\\\"}',
    '{ "n": 1.0e2, "n": 1e400, "blank" : "\u2028\u00a0" }',
    "\U0001f9f5 ' ; -- $1 :data {} \\ \n\t\r\x7f",
    "",
    "no JSON",
    "[" * 3000,
]
"""Texts that get changed when they are parsed, cut, quoted or ordered by locale."""

OF_ONE_DATABASE = {
    *("call_id", "run_added", "followed_until"),
    *("search_no", "indexed_epoch", "indexed_seq", "path_key", "remembered_until"),
}
"""Columns that mean something there alone, and are not copied."""


def fill(file: Path, sessions: int = 6, items: int = 7) -> None:
    """Makes a store in a file.

    Args:
        file: Where; it is not there yet.
        sessions: How many; of three owners, each with a run, the first with all kinds of them.
        items: How many each has.
    """
    asyncio.run(_make(file))
    with closing(sqlite3.connect(file)) as raw, raw:
        for n, name in enumerate(NAMES[:sessions]):
            _fill_one(raw, n, name, items)
        # A run that waits for a session which is not there, of somebody else than another such one.
        for owner in ("ann", ""):
            _insert(raw, "runs", _run(f"w{owner}", "not yet", owner, status="queued"))
            _insert(raw, "run_events", {"run_id": f"w{owner}", "seq": 0, "data": HOSTILE[1]})
        for n, owner in enumerate(("ann", "ann", "")):
            _fill_memory(raw, n, owner)


_ORDERS = ORDERS | {"memories": "memory_id", "memory_history": "memory_id, version"}

NAMES = ["a", "B", "\u00e4\U0001f9f5", "_", "a-b", "Ab"]
"""Ids that no two locales put in one order."""


async def _make(file: Path) -> None:
    database = connect(f"sqlite:///{file}")
    await database.open()
    await database.close()


def _fill_one(raw: sqlite3.Connection, n: int, name: str, items: int) -> None:
    owner, run_id = ("", "ann", "\u00f6")[n % 3], f"resp_{n}"
    whole: dict[str, Any] = {}
    if n == 0:  # as it is while it is at work, parked and forked: each column has a value
        whole = {
            "run_id": run_id,
            "run_attempt": 3,
            "run_alive_at": 1_700_000_000_123,
            "run_items": 2,
            "open_run_id": f"{run_id}p",
            "open_hash": "h",
            "open_epoch": 2**62,
            "open_seq": items,
            "temporary": 1,
            "set_aside": 1,
            "remembered_seq": 3,
            "remembered_until": 4_000_000_000_001,
            "parent_session_id": "B",
            "expires_at": 4_000_000_000_001,
        }
    session = {
        "session_id": name,
        "owner": owner,
        "title": None if n == 1 else HOSTILE[2][:-4],
        "metadata": HOSTILE[1],
        "epoch": 2**62 + n,
        "seq": items,
        "approved_tools": '["Assistant/pay"]',
        "created_at": 1_600_000_000_001 + n,
        "updated_at": 1_600_000_000_999 + n,
    }
    _insert(raw, "sessions", session | whole)
    for seq in range(1, items + 1):
        item = {"session_id": name, "seq": seq, "data": HOSTILE[seq % len(HOSTILE)]}
        item |= {"run_id": run_id if seq % 2 else None, "created_at": 1_600_000_000_000 + seq}
        _insert(raw, "items", item)
    state = "in_progress" if n == 0 else "completed"
    _insert(raw, "runs", _run(run_id, name, owner, status=state))
    if n == 0:
        parked = {"checkpoint": HOSTILE[0], "checkpoint_version": 5, "checkpoint_run_id": "x"}
        parked |= {"finished_at": 9, "journal_id": run_id, "idempotency_key": None}
        _insert(raw, "runs", _run(f"{run_id}p", name, owner, status="incomplete") | parked)
    for seq in range(5):
        _insert(raw, "run_events", {"run_id": run_id, "seq": seq, "data": HOSTILE[seq]})
        step = {"journal_id": run_id, "key": f"{seq}/\u00e4:B", "response": HOSTILE[seq]}
        _insert(raw, "model_calls", step | {"request_hash": "h"})
        call = {"journal_id": run_id, "key": f"{seq}", "status": "intended", "repeatable": seq % 2}
        call |= {"call": HOSTILE[seq], "output": HOSTILE[1], "approval_id": "x" if seq else None}
        _insert(raw, "tool_calls", call)
    for state in ("pending", "approved", "rejected"):
        approval = {
            "approval_id": f"{state}{n}",
            "run_id": run_id if n else f"{run_id}p",
            "session_id": name,
            "owner": owner,
            "journal_id": run_id,
            "key": "0",
            "call": HOSTILE[0],
            "status": state,
            "reason": {"pending": None, "approved": "", "rejected": HOSTILE[2]}[state],
            "created_at": 1,
            "decided_at": None if state == "pending" else 4,
            "kind": "needs_approval",
            "always": 1,
            "expires_at": 4_000_000_000_001,
            "tell_at": 77 if state == "pending" else None,
            "tell_tries": 6,
        }
        _insert(raw, "approvals", approval)


def _fill_memory(raw: sqlite3.Connection, n: int, owner: str) -> None:
    memory = {
        "memory_id": f"mem_{n}",
        "owner": owner,
        "path_key": f"/memories/{n}.md",
        "path": f"/memories/{n}.md",
        "description": f"Likes plums {HOSTILE[2]}",
        "contents": HOSTILE[n],
        "keywords": '["fruit"]',
        "pinned": n % 2,
        "version": 4,
        "search_no": n,
        "created_at": 1_600_000_000_001 + n,
        "updated_at": 1_600_000_000_999 + n,
        "valid_from": 1_600_000_000_002,
    }
    source = {"source_session": "B", "source_seq": 2, "source_at": 1_600_000_000_002}
    if n == 0:  # it holds no more
        memory |= source | {"valid_to": 1_600_000_001_000, "superseded_by": "mem_1"}
    _insert(raw, "memories", memory)
    for version in (1, 3):
        old = {name: memory[name] for name in ("memory_id", "owner", "description", "contents")}
        old |= {"version": version, "valid_from": version, "valid_to": version + 1}
        old |= {"superseded_by": version + 1} | (source if version == 1 else {})
        _insert(raw, "memory_history", old)


def _run(run_id: str, session_id: str, owner: str, status: str) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "session_id": session_id,
        "owner": owner,
        "status": status,
        "idempotency_key": "\x01k" + run_id,
        "request_hash": "h",
        "request": HOSTILE[1] if status != "completed" else None,
        "journal_id": run_id,
        "attempt": 3,
        "base_seq": 1,
        "input_count": 2,
        "fork_id": "f",
        "made": 1,
        "stop_requested": "cancel",
        "alive_at": 1_700_000_000_321,
        "created_at": 8,
        "finished_at": 9 if status == "completed" else None,
        "approved_tools": "[]",
    }


def _insert(raw: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    marks = ", ".join("?" * len(row))
    raw.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))


def read_all(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of the tables that are copied, with all columns but those of one database."""
    with closing(sqlite3.connect(file)) as raw:
        raw.row_factory = sqlite3.Row
        return {
            table: [
                {name: row[name] for name in set(row.keys()) - OF_ONE_DATABASE}
                for row in raw.execute(f"SELECT * FROM {table} ORDER BY {key}")
            ]
            for table, key in _ORDERS.items()
        }
