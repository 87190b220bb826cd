"""The inbox of an owner: tool calls that wait for a decision."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from threadkeep.approvals import Status, Verdict, decide, get_approval, list_approvals
from threadkeep.history import check_id, check_text
from threadkeep.server.identity import owner_of
from threadkeep.server.lists import page_of
from threadkeep.server.paths import ApprovalId
from threadkeep.server.requests import MAX_REASON

router = APIRouter(tags=["approvals"])

Owner = Annotated[str, Depends(owner_of)]


class Decision(BaseModel):
    """The body of `POST /approvals/{id}`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    approve: bool = Field(description="Whether the call is made: now, or once more if in doubt.")
    reason: str | None = Field(
        default=None, max_length=MAX_REASON, description="Why. The model is told when it is not."
    )
    always_approve: bool = Field(
        default=False, description="With approve: this tool needs no approval in this session."
    )


@router.get("/approvals")
async def get_approvals(
    request: Request,
    owner: Owner,
    status: Annotated[Status | None, Query(description="Only these.")] = None,
    session_id: Annotated[str, Query(description="Only those of this session.")] = "",
    limit: Annotated[int, Query(ge=1, le=100, description="How many at most.")] = 20,
    after: Annotated[str, Query(description="The `last_id` of the page before.")] = "",
) -> dict[str, Any]:
    """The owner's approvals, in the order they came, a page at a time."""
    if after:
        check_id(after, "after")
    database = request.app.state.database
    if session_id:
        check_id(session_id, "session_id")
    found = await list_approvals(
        database,
        owner,
        status=status or "",
        session_id=session_id,
        after=after,
        limit=limit + 1,
    )
    return page_of(found, limit)


@router.get("/approvals/{approval_id}")
async def get_one(approval_id: ApprovalId, request: Request, owner: Owner) -> dict[str, Any]:
    """One approval."""
    return await get_approval(request.app.state.database, approval_id, owner)


@router.post("/approvals/{approval_id}")
async def decide_one(
    approval_id: ApprovalId, decision: Decision, request: Request, owner: Owner
) -> dict[str, Any]:
    """Decides an approval, once.

    With the last one of its run the turn goes on, in another response: `response_id`.
    """
    state = request.app.state
    check_text(decision.reason, "reason")
    verdict = Verdict(approval_id, decision.approve, decision.reason)
    await decide(state.database, state.runs, owner, verdict, always=decision.always_approve)
    return await get_approval(state.database, approval_id, owner)
