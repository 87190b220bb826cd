"""All that is stored, as the checks read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tests.run_world import Peek

Row = dict[str, Any]
Rows = list[Row]


@dataclass
class Tables:
    """All that is stored. An item has the columns of its row beside its own fields."""

    sessions: dict[str, Row]
    items: dict[str, Rows]
    runs: dict[str, Row]
    events: dict[str, Rows]
    tools: Rows
    approvals: Rows
    journals: set[str]

    def contents(self, name: str) -> Rows:
        """The items of a session."""
        return self.items.get(name, [])

    def turns(self, name: str) -> list[tuple[str, Rows]]:
        """The items of a session by turn, each by the run that it began with; notes left out."""
        own = [item for item in self.contents(name) if item["run_id"]]
        return [(turn, list(rows)) for turn, rows in groupby(own, self._turn)]

    def of_turn(self, run: Row) -> Rows:
        """The items of the turn of a run."""
        rows = [rows for turn, rows in self.turns(run["session_id"]) if turn == run["journal_id"]]
        return rows[0] if rows else []

    def is_open(self, run_id: str) -> bool:
        """Whether the turn of a run that has ended can be gone on with."""
        session = self.sessions.get(self.runs[run_id]["session_id"])
        if session is None or session["open_run_id"] != run_id:
            return False
        place = session["open_epoch"], session["open_seq"]
        return place == (session["epoch"], session["seq"])

    def is_taken(self, name: str) -> bool:
        """Whether a run has the session."""
        return name in self.sessions and self.sessions[name]["run_id"] is not None

    def _turn(self, item: Row) -> str:
        turn: str = self.runs[item["run_id"]]["journal_id"]
        return turn


ORDERS = {
    "sessions": "session_id",
    "items": "session_id, seq",
    "runs": "run_id",
    "run_events": "run_id, seq",
    "model_calls": "journal_id, key",
    "tool_calls": "journal_id, key",
    "approvals": "approval_id",
}
"""The tables, and how to read each."""


async def read_tables(peek: Peek) -> Tables:
    """Reads all that is stored."""
    names = {name: name for name in ORDERS} | {"approvals": "approvals_now"}
    read = [f"SELECT * FROM threadkeep.{names[n]} ORDER BY {key}" for n, key in ORDERS.items()]
    sessions, rows, runs, told, models, tools, approvals = await peek.at_once(read)
    items: dict[str, Rows] = {}
    for row in rows:
        place = {"seq": row["seq"], "run_id": row["run_id"]}
        items.setdefault(row["session_id"], []).append(json.loads(row["data"]) | place)
    events: dict[str, Rows] = {}
    for row in told:
        events.setdefault(row["run_id"], []).append(json.loads(row["data"]))
    return Tables(
        {row["session_id"]: row for row in sessions},
        items,
        {row["run_id"]: row for row in runs},
        events,
        tools,
        approvals,
        {row["journal_id"] for row in tools + models},
    )
