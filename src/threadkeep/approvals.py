"""Tool calls that wait for a person: listed, decided once, and then gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from threadkeep.checkpoint import NEWEST_KNOWN
from threadkeep.database import Database, Row
from threadkeep.errors import (
    ApprovalDecidedError,
    ApprovalExpiredError,
    ApprovalNotFoundError,
    DuplicateError,
    InvalidInputError,
    NewerCheckpointError,
    TurnGoneError,
)
from threadkeep.runs import Runs, continuation_key
from threadkeep.tool_names import tool_id

Status = Literal["pending", "approved", "rejected", "expired", "closed"]
"""`closed`: the session has gone on without it, or its run was cancelled."""

_MOST = 1000
"""How many calls of one answer are looked at."""

_MESSAGES = {
    "in_doubt": (
        "The process that made this answer ended in the middle of {name}. The call may have "
        "happened. Run it again?"
    ),
    "needs_approval": "{agent} asks to call {name}.",
}


@dataclass(frozen=True)
class Verdict:
    """What somebody decided about one call.

    Args:
        approval_id: Its approval.
        approve: Whether the call is to be made.
        reason: Why, in their words; the model is told when it is not made.
    """

    approval_id: str
    approve: bool
    reason: str | None = None


async def list_approvals(
    database: Database,
    owner: str,
    *,
    status: str = "",
    session_id: str = "",
    after: str = "",
    limit: int = 100,
) -> list[dict[str, Any]]:
    """An owner's approvals, in the order they came.

    Args:
        database: Where they lie.
        owner: Whose.
        status: One of `Status`; '' for all.
        session_id: Of which session; '' for all.
        after: The id of the one behind which to begin; '' for the start.
        limit: How many at most.
    """
    rows = await database.call(
        "list_approvals",
        owner=owner,
        status=status,
        session_id=session_id,
        after=after,
        limit=limit,
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
    runs: Runs | None,
    owner: str,
    *verdicts: Verdict,
    always: bool = False,
) -> str | None:
    """Decides approvals of one run, all or none; with its last one, goes on with the turn.

    Args:
        database: Where they lie.
        runs: Those of this process; None: a server goes on with the turn by and by.
        owner: Whose they are.
        verdicts: At least one.
        always: Whether the tools that are approved need no approval any more in this session,
            neither now nor later.

    Returns:
        The run that goes on; None while others are pending, or when there are no `runs`.

    Raises:
        ApprovalNotFoundError: There is no such approval of this owner.
        ApprovalDecidedError: One was decided before.
        ApprovalExpiredError: One was not decided in time.
        TurnGoneError: The session has gone on without it.
        NewerCheckpointError: Only a newer release can go on with the turn.
        InvalidInputError: They are not of one run, one is there twice, or `always` makes no
            sense.
    """
    if len({verdict.approval_id for verdict in verdicts}) < len(verdicts):
        raise InvalidInputError("Decide about each approval once.")
    found = [await _find(database, verdict.approval_id, owner) for verdict in verdicts]
    for row in found:
        _check_pending(row)
    if len({row["run_id"] for row in found}) > 1:
        raise InvalidInputError("Decide about the approvals of one response at a time.")
    run_id: str = found[0]["run_id"]
    tools: list[str] = []
    if always:
        tools = _tools(found, verdicts)
        verdicts = (*verdicts, *await _others(database, found[0], owner, tools, verdicts))
    rows = await database.call(
        "decide_approvals",
        run_id=run_id,
        owner=owner,
        approval_ids=[verdict.approval_id for verdict in verdicts],
        statuses=["approved" if verdict.approve else "rejected" for verdict in verdicts],
        reasons=[verdict.reason or "" for verdict in verdicts],
        tools=tools,
    )
    if not rows:  # somebody was faster
        for verdict in verdicts:
            _check_pending(await _find(database, verdict.approval_id, owner))
        raise TurnGoneError
    left = await database.call("count_pending_approvals", run_id=run_id, owner=owner)
    if left[0]["count"] or runs is None:
        return None
    return await _go_on(runs, run_id, owner)


async def repeated(database: Database, owner: str, verdicts: Sequence[Verdict]) -> str | None:
    """The run that went on after just these decisions, when they were made before.

    Raises:
        ApprovalNotFoundError: There is no such approval of this owner.
    """
    rows = [await _find(database, verdict.approval_id, owner) for verdict in verdicts]
    wanted = ["approved" if verdict.approve else "rejected" for verdict in verdicts]
    response_id: str | None = rows[0]["response_id"]
    return response_id if [row["status"] for row in rows] == wanted else None


def _check_pending(row: Row) -> None:
    if row["status"] in ("approved", "rejected"):
        raise ApprovalDecidedError
    if row["status"] == "expired":
        raise ApprovalExpiredError
    if row["status"] == "closed":
        raise TurnGoneError
    if row["checkpoint_version"] > NEWEST_KNOWN:
        raise NewerCheckpointError


def _tool(row: Row) -> str:
    call = json.loads(row["call"])
    return tool_id(call["agent"], call["name"])


def _tools(found: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    """The tools that need no approval any more."""
    if not all(verdict.approve for verdict in verdicts):
        raise InvalidInputError(
            "always_approve goes with approve: true alone.", param="always_approve"
        )
    if not all(row["kind"] == "needs_approval" for row in found):
        raise InvalidInputError(
            "always_approve is for tools that need an approval: whether a call that may have "
            "happened is made again has to be decided each time.",
            param="always_approve",
        )
    return sorted({_tool(row) for row in found})


async def _others(
    database: Database, row: Row, owner: str, tools: Sequence[str], verdicts: Sequence[Verdict]
) -> list[Verdict]:
    """The other calls of these tools that the same run waits for."""
    rows = await database.call(
        "list_approvals",
        owner=owner,
        status="pending",
        session_id=row["session_id"],
        after="",
        limit=_MOST,
    )
    known = {verdict.approval_id for verdict in verdicts}
    return [
        Verdict(other["approval_id"], approve=True)
        for other in rows
        if other["run_id"] == row["run_id"]
        and other["approval_id"] not in known
        and _tool(other) in tools
    ]


async def _go_on(runs: Runs, run_id: str, owner: str) -> str:
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
        "kind": row["kind"],
        "status": row["status"],
        "agent": call.get("agent"),
        "name": call["name"],
        "arguments": call["arguments"],
        "call_id": call["call_id"],
        "message": _MESSAGES[row["kind"]].format(name=call["name"], agent=call.get("agent")),
        "reason": row["reason"],
        "always_approve": bool(row["always"]),
        "session_id": row["session_id"],
        "previous_response_id": row["run_id"],
        "response_id": row["response_id"],
        "created_at": row["created_at"] // 1000,
        "decided_at": row["decided_at"] and row["decided_at"] // 1000,
        "expires_at": row["expires_at"] // 1000,
    }
