"""The owner's sessions: list, read, delete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from threadkeep.database import Database, Row
from threadkeep.errors import SessionNotFoundError
from threadkeep.history import cache_of, decode_item, report_damage
from threadkeep.replay_tools import tool_id, tool_of
from threadkeep.response_events import PLACEHOLDER_ID
from threadkeep.server.markdown import render
from threadkeep.server.responses import MAX_CURSOR, Owner
from threadkeep.session import NEWEST
from threadkeep.titles import text_of

router = APIRouter(tags=["sessions"])

MAX_TIME = 253_402_300_799
"""The last second of the year 9999."""

Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]


@router.get("/sessions")
async def list_sessions(
    request: Request,
    owner: Owner,
    limit: Limit = 30,
    after: Annotated[str, Query(description="Go on behind the session of this id.")] = "",
) -> dict[str, Any]:
    """The owner's sessions, last changed first."""
    rows = await _database(request).call("list_sessions", owner=owner, after=after, limit=limit + 1)
    return _page([_session(row) for row in rows], limit)


@router.get("/sessions/{session_id}")
async def get_session(session_id: str, request: Request, owner: Owner) -> dict[str, Any]:
    """One session, without its items."""
    rows = await _database(request).call("get_session", session_id=session_id, owner=owner)
    if not rows:
        raise SessionNotFoundError
    return _session(rows[0])


class Tool(BaseModel):
    """A tool of an agent."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    agent: str
    name: str


class SessionChange(BaseModel):
    """The body of `PATCH /sessions/{id}`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    always_approve: list[Tool] | None = Field(
        None,
        description="The tools that need no approval any more. One is added by a decision alone: "
        "here they can be left out.",
    )
    expires_at: int | None = Field(
        None,
        ge=0,
        le=MAX_TIME,
        description="When the session goes, in seconds since 1970; null: as long after its last "
        "change as SESSION_RETENTION_DAYS says, or never.",
    )


@router.patch("/sessions/{session_id}")
async def change_session(
    session_id: str, change: SessionChange, request: Request, owner: Owner
) -> dict[str, Any]:
    """Changes a session: which tools need no approval in it, and when it goes."""
    if change.always_approve is not None:
        await _database(request).call(
            "keep_approved_tools",
            session_id=session_id,
            owner=owner,
            tools=[tool_id(tool.agent, tool.name) for tool in change.always_approve],
        )
    if "expires_at" in change.model_fields_set:
        milliseconds = None if change.expires_at is None else change.expires_at * 1000
        await _database(request).call(
            "expire_session", session_id=session_id, owner=owner, expires_at=milliseconds
        )
    return await get_session(session_id, request, owner)


@router.get("/sessions/{session_id}/items")
async def list_items(
    session_id: str,
    request: Request,
    owner: Owner,
    limit: Limit = 100,
    order: Literal["asc", "desc"] = "asc",
    after: Annotated[
        int | None,
        Query(ge=0, le=MAX_CURSOR, description="Go on behind the item of this seq."),
    ] = None,
    html: Annotated[bool, Query(description="Add how the page shows the agent's words.")] = False,
) -> dict[str, Any]:
    """The items of a session as they were stored, each with its `seq`."""
    database = _database(request)
    if order == "asc":
        rows = await database.call(
            "read_first_items",
            session_id=session_id,
            owner=owner,
            after=after or 0,
            limit=limit + 1,
        )
    else:
        rows = await database.call(
            "read_latest_items",
            session_id=session_id,
            owner=owner,
            before=NEWEST if after is None else after - 1,
            limit=limit + 1,
        )
    if not rows or not rows[0]["owned"]:
        raise SessionNotFoundError
    items = [_item(row, html) for row in rows if row["seq"] is not None]
    report_damage(session_id, [item["seq"] for item in items if item["type"] == "unreadable"])
    return _page(items, limit)


@router.delete("/sessions/{session_id}")
async def delete_session(session_id: str, request: Request, owner: Owner) -> dict[str, Any]:
    """Deletes a session with its items, runs and events. A run at work on it is stopped first."""
    database = _database(request)
    gone = False
    while not gone:  # else it was changed meanwhile
        await request.app.state.runs.stop_session(session_id, owner)
        rows = await database.call("delete_session", session_id=session_id, owner=owner)
        if not rows:
            raise SessionNotFoundError
        gone = bool(rows[0]["gone"])
    cache_of(database).forget(session_id, owner)
    return {"id": session_id, "object": "session.deleted", "deleted": True}


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _page(data: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A list as the API gives it; `data` holds one more than asked for when there are more."""
    shown = data[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(data) > limit,
    }


def _session(row: Row) -> dict[str, Any]:
    return {
        "id": row["session_id"],
        "object": "session",
        "title": row["title"],
        "metadata": json.loads(row["metadata"]),
        "parent_session_id": row["parent_session_id"],
        "active_response_id": row["run_id"],
        "always_approve": [tool_of(tool) for tool in json.loads(row["approved_tools"])],
        "item_count": row["seq"],
        "created_at": row["created_at"] // 1000,
        "updated_at": row["updated_at"] // 1000,
        "expires_at": None if row["expires_at"] is None else row["expires_at"] // 1000,
    }


def _item(row: Row, html: bool) -> dict[str, Any]:
    item = decode_item(row["data"])
    if item is None:
        item = {"type": "unreadable"}
    if item.get("id") in (None, PLACEHOLDER_ID):
        item["id"] = f"item_{row['seq']}"
    if html and item.get("role") == "assistant":
        item["html"] = render(text_of(item.get("content")))
    return (
        {"type": "message"}
        | item
        | {
            "seq": row["seq"],
            "response_id": row["run_id"],
            "created_at": row["created_at"] // 1000,
        }
    )
