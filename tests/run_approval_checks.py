"""What must hold of approvals, whatever happened: the promises, read from the tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from agents.tool import DEFAULT_APPROVAL_REJECTION_MESSAGE

from tests.run_tables import Row, Tables
from tests.run_world import World
from threadkeep.mend import UNKNOWN_OUTCOME
from threadkeep.turn_end import DECLINED, NOT_MADE

_LATER = {
    "pending": {"pending", "approved", "rejected", "expired", "closed"},
    "approved": {"approved"},
    "rejected": {"rejected"},
    "expired": {"expired", "closed"},
    "closed": {"closed"},
}
"""What may become of an approval."""


class ApprovalChecks:
    """Remembers approvals, and compares them with what was wanted.

    Args:
        world: What happened outside of the database.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[str, Row] = {}
        self._expired: set[str] = set()

    def expired(self, approval_ids: Iterable[str]) -> None:
        """Nobody had decided these in time."""
        self._expired |= set(approval_ids)

    def look(self, tables: Tables, starts: Counter[str], changed: set[str]) -> None:
        """Whether all promises are kept.

        Args:
            tables: All that is stored.
            starts: How often calls had begun before that was read.
            changed: The sessions that others have cut.
        """
        for approval in tables.approvals:
            self._check_change(approval)
            if approval["status"] == "pending":
                self._check_waiting(tables, approval)
            if approval["status"] in ("approved", "rejected"):
                wanted = self._world.verdicts.of(approval["approval_id"])
                assert (approval["status"], approval["reason"]) in wanted, "nobody wanted that"
                if approval["kind"] == "needs_approval" and approval["session_id"] not in changed:
                    self._check_outcome(tables, approval)
            if approval["always"] and approval["session_id"] not in changed:
                self._check_always(tables, approval)
        for run in tables.runs.values():
            self._check_questions(tables, run)
        for session in tables.sessions.values():
            known = session["session_id"] in self._world.verdicts.always
            assert known or session["approved_tools"] == "[]", "nobody wanted not to be asked"
        for step in tables.tools:
            if json.loads(step["call"])["name"] == "ask_first":
                self._check_call(tables, step, starts)

    def _check_change(self, approval: Row) -> None:
        before = self._seen.get(approval["approval_id"], approval)
        status = approval["status"]
        assert status in _LATER[before["status"]], f"{before['status']} became {status}"
        if before["status"] == status:
            for name in ("reason", "always", "kind", "call"):
                assert approval[name] == before[name], f"{name} of a decision was changed"
        assert before["response_id"] in (None, approval["response_id"]), "it goes on twice"
        if approval["approval_id"] in self._expired:
            assert status in ("expired", "closed"), f"it had expired, and is {status}"
        self._seen[approval["approval_id"]] = approval

    def _check_waiting(self, tables: Tables, approval: Row) -> None:
        """It is pending only while its session waits for it."""
        run, session = tables.runs[approval["run_id"]], tables.sessions[approval["session_id"]]
        assert (run["status"], session["run_id"]) == ("incomplete", None)
        assert session["open_run_id"] == run["run_id"]
        last_turn, _ = tables.turns(approval["session_id"])[-1]
        assert last_turn == run["journal_id"], "the session has gone on"
        closed = DECLINED if approval["kind"] == "needs_approval" else UNKNOWN_OUTCOME
        assert outputs(tables, run, approval) == [closed]

    def _check_outcome(self, tables: Tables, approval: Row) -> None:
        """What was decided has happened, once the turn has gone on."""
        run, call_id = tables.runs[approval["run_id"]], call_of(approval)["call_id"]
        next_run = tables.runs.get(approval["response_id"] or "")
        if tables.is_taken(approval["session_id"]) or not tables.of_turn(run):
            return
        (output,) = outputs(tables, run, approval)
        assert next_run is not None or output == DECLINED, "it is not known what goes on with it"
        completed = next_run is not None and next_run["status"] == "completed"
        if approval["status"] == "approved":
            assert not completed or self._world.starts[call_id], f"{call_id} was not made"
            return
        told = approval["reason"] or DEFAULT_APPROVAL_REJECTION_MESSAGE
        if completed:
            assert self._world.told[call_id] == {told}, "the model was not told why"
        assert output == told or (not completed and output in (DECLINED, NOT_MADE))

    def _check_always(self, tables: Tables, approval: Row) -> None:
        assert approval["status"] == "approved"
        if tables.of_turn(tables.runs[approval["run_id"]]):
            approved = tables.sessions[approval["session_id"]]["approved_tools"]
            assert approved == '["told/ask_first"]', "it is asked for again"

    def _check_questions(self, tables: Tables, run: Row) -> None:
        """A run asks for what is listed, and for nothing that needs no approval."""
        listed = [row for row in tables.approvals if row["run_id"] == run["run_id"]]
        output: list[dict[str, Any]] = []
        if run["finished_at"]:
            output = tables.events[run["run_id"]][-1]["response"]["output"]
        asked = [item["id"] for item in output if item["type"] == "mcp_approval_request"]
        assert sorted(asked) == sorted(row["approval_id"] for row in listed)
        assert not asked or run["status"] in ("incomplete", "cancelled")
        if run["approved_tools"] != "[]":
            assert all(row["kind"] == "in_doubt" for row in listed), "it needs no approval"

    def _check_call(self, tables: Tables, step: Row, starts: Counter[str]) -> None:
        """A call is made with its approval, and once; again when that was decided."""
        call_id = json.loads(step["call"])["call_id"]
        approved = Counter(
            row["kind"]
            for row in tables.approvals
            if row["status"] == "approved" and call_of(row)["call_id"] == call_id
        )
        always = any(
            run["approved_tools"] != "[]"
            for run in tables.runs.values()
            if run["journal_id"] == step["journal_id"]
        )
        assert approved["needs_approval"] or always, f"{call_id} was made without its approval"
        most = 1 + approved["in_doubt"]
        assert starts[call_id] <= most, f"{call_id} was made {starts[call_id]} times, not {most}"


def waiting(tables: Tables) -> list[str]:
    """The runs that wait for somebody in time, or were decided about and not gone on with."""
    found = []
    for run_id in {row["run_id"] for row in tables.approvals}:
        rows = [row for row in tables.approvals if row["run_id"] == run_id]
        over = any(row["status"] == "expired" or row["response_id"] for row in rows)
        if tables.is_open(run_id) and not over:
            found.append(run_id)
    return found


def call_of(approval: Row) -> dict[str, Any]:
    """The call that an approval is for."""
    call: dict[str, Any] = json.loads(approval["call"])
    return call


def outputs(tables: Tables, run: Row, approval: Row) -> list[str]:
    """What the session has as the output of a call."""
    call_id = call_of(approval)["call_id"]
    return [
        item["output"]
        for item in tables.of_turn(run)
        if item.get("type") == "function_call_output" and item["call_id"] == call_id
    ]
