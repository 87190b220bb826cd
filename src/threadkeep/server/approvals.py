"""The inbox of an owner: tool calls that wait for a decision."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from threadkeep.approvals import decide, get_approval, list_approvals
from threadkeep.history import check_id
from threadkeep.server.identity import owner_of

router = APIRouter(tags=["approvals"])

MAX_REASON = 2_000
"""Of a reason, in characters."""

Owner = Annotated[str, Depends(owner_of)]


class Decision(BaseModel):
    """The body of `POST /approvals/{id}`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    approve: bool = Field(description="true: make the call again. false: its outcome is unknown.")
    reason: str | None = Field(default=None, max_length=MAX_REASON, description="Why.")


@router.get("/approvals")
async def get_approvals(
    request: Request,
    owner: Owner,
    status: Annotated[
        Literal["pending", "approved", "rejected"] | None, Query(description="Only these.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="How many at most.")] = 20,
    after: Annotated[str, Query(description="The `last_id` of the page before.")] = "",
) -> dict[str, Any]:
    """The owner's approvals, in the order they came, a page at a time."""
    if after:
        check_id(after, "after")
    database = request.app.state.database
    found = await list_approvals(database, owner, status=status or "", after=after, limit=limit + 1)
    page = found[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > limit,
    }


@router.get("/approvals/{approval_id}")
async def get_one(approval_id: str, request: Request, owner: Owner) -> dict[str, Any]:
    """One approval."""
    return await get_approval(request.app.state.database, approval_id, owner)


@router.post("/approvals/{approval_id}")
async def decide_one(
    approval_id: str, decision: Decision, request: Request, owner: Owner
) -> dict[str, Any]:
    """Decides an approval, once.

    With the last one of its run the turn goes on, in another response: `response_id`.
    """
    state = request.app.state
    return await decide(
        state.database,
        state.runs,
        approval_id,
        owner,
        approve=decision.approve,
        reason=decision.reason,
    )
