"""Tool calls that wait for a person: listed, decided once, and then gone on with."""

from __future__ import annotations

import json
from typing import Any

from threadkeep.database import Database, Row
from threadkeep.errors import (
    ApprovalDecidedError,
    ApprovalNotFoundError,
    DuplicateError,
    TurnGoneError,
)
from threadkeep.runs import Runs, continuation_key


async def list_approvals(
    database: Database, owner: str, *, status: str, after: str, limit: int
) -> list[dict[str, Any]]:
    """An owner's approvals, in the order they came.

    Args:
        database: Where they lie.
        owner: Whose.
        status: `pending`, `approved` or `rejected`; '' for all.
        after: The id of the one behind which to begin; '' for the start.
        limit: How many at most.
    """
    rows = await database.call(
        "list_approvals", owner=owner, status=status, after=after, limit=limit
    )
    return [_shown(row) for row in rows]


async def get_approval(database: Database, approval_id: str, owner: str) -> dict[str, Any]:
    """One approval; `response_id` is the run that goes on with its turn, or None.

    Raises:
        ApprovalNotFoundError: There is no such approval of this owner.
    """
    return _shown(await _find(database, approval_id, owner))


async def decide(
    database: Database,
    runs: Runs,
    approval_id: str,
    owner: str,
    *,
    approve: bool,
    reason: str | None,
) -> dict[str, Any]:
    """Decides an approval; with the last one of its run, goes on with the turn.

    Args:
        database: Where it lies.
        runs: Those of this process.
        approval_id: Which.
        owner: Whose it is.
        approve: Whether the call in doubt is to be made again; else the model is told that its
            outcome is unknown.
        reason: Why, in the words of whoever decides.

    Returns:
        The approval; `response_id` is the run that goes on, or None while others are pending.

    Raises:
        ApprovalNotFoundError: There is no such approval of this owner.
        ApprovalDecidedError: It was decided before.
        TurnGoneError: The session has gone on without it.
    """
    await _find(database, approval_id, owner)
    rows = await database.call(
        "decide_approval",
        approval_id=approval_id,
        owner=owner,
        status="approved" if approve else "rejected",
        reason=reason,
    )
    if not rows:
        found = await _find(database, approval_id, owner)
        raise TurnGoneError if found["status"] == "pending" else ApprovalDecidedError
    run_id: str = rows[0]["run_id"]
    left = await database.call("count_pending_approvals", run_id=run_id)
    response_id = None if left[0]["count"] else await _go_on(runs, run_id, owner)
    return await get_approval(database, approval_id, owner) | {"response_id": response_id}


async def _go_on(runs: Runs, run_id: str, owner: str) -> str | None:
    try:
        return (await runs.go_on_with(run_id, owner)).run_id
    except (DuplicateError, TurnGoneError):
        # Who decided another one at the same moment may have been faster.
        found = await runs.find(owner, continuation_key(run_id), "")
        if found is None:
            raise
        return found


async def _find(database: Database, approval_id: str, owner: str) -> Row:
    rows = await database.call("get_approval", approval_id=approval_id, owner=owner)
    if not rows:
        raise ApprovalNotFoundError
    return rows[0]


def _shown(row: Row) -> dict[str, Any]:
    call = json.loads(row["call"])
    return {
        "id": row["approval_id"],
        "object": "approval",
        "kind": "in_doubt",
        "status": row["status"],
        "name": call["name"],
        "arguments": call["arguments"],
        "call_id": call["call_id"],
        "message": (
            f"The process that made this answer ended in the middle of {call['name']}. The call "
            "may have happened. Run it again?"
        ),
        "reason": row["reason"],
        "session_id": row["session_id"],
        "previous_response_id": row["run_id"],
        "response_id": row["response_id"],
        "created_at": row["created_at"] // 1000,
        "decided_at": row["decided_at"] and row["decided_at"] // 1000,
    }
