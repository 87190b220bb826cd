"""The owner's sessions: list, read, change, fork, rewind, export, import, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from threadkeep import search, session_branch, session_export, stored_sessions
from threadkeep.database import Database, Row
from threadkeep.errors import InvalidInputError, SessionNotFoundError
from threadkeep.history import check_id, decode_item, json_text, report_damage
from threadkeep.response_events import PLACEHOLDER_ID
from threadkeep.server.lists import page_of
from threadkeep.server.markdown import render
from threadkeep.server.paths import SessionId
from threadkeep.server.responses import MAX_CURSOR, Owner
from threadkeep.session import NEWEST
from threadkeep.settings import Settings
from threadkeep.stored_sessions import Change
from threadkeep.titles import text_of
from threadkeep.tool_names import tool_id

router = APIRouter(tags=["sessions"])

MAX_TIME = 253_402_300_799
"""The last second of the year 9999."""

JSON_LINES = "application/jsonl"

Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]


class Body(BaseModel):
    """A body that holds what is named, in its own type, and no more."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


@router.get("/sessions")
async def list_sessions(
    request: Request,
    owner: Owner,
    limit: Limit = 30,
    after: Annotated[str, Query(description="Go on behind the session of this id.")] = "",
    q: Annotated[
        str, Query(description="Words that are all said in a session, or stand in its title.")
    ] = "",
) -> dict[str, Any]:
    """The owner's sessions, last changed first; with `q` those that fit it, the best first.

    Each that was found has a `match`: the `seq` of the item that fits best, a passage of its
    `text`, and its `marks`, the words found there as [start, end]. `complete` is false when there
    may be more than were looked at."""
    if after:
        check_id(after, "after")
    if q.strip():
        found, complete = await search.search_sessions(
            _database(request), owner, q, after=after, limit=limit + 1
        )
        return page_of(found, limit) | {"complete": complete}
    return page_of(
        await stored_sessions.list_sessions(
            _database(request), owner, after=after, limit=limit + 1
        ),
        limit,
    )


@router.get("/sessions/{session_id}")
async def get_session(session_id: SessionId, request: Request, owner: Owner) -> dict[str, Any]:
    """One session, without its items."""
    return await stored_sessions.get_session(_database(request), session_id, owner)


class Tool(Body):
    """A tool of an agent."""

    agent: str
    name: str


class SessionChange(Body):
    """The body of `PATCH /sessions/{id}`. What is left out stays as it is."""

    title: str | None = Field(
        default=None,
        description="Up to 200 characters; null: untitled until the next message, which gives one.",
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict,
        description="Any object of at most 64 KiB. It takes the place of what is there.",
    )
    always_approve: list[Tool] = Field(
        default_factory=list,
        description="The tools that need no approval any more. One is added by a decision alone: "
        "here they can be left out.",
    )
    expires_at: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TIME,
        description="When the session goes, in seconds since 1970; null: as long after its last "
        "change as SESSION_RETENTION_DAYS says, or never.",
    )


@router.patch("/sessions/{session_id}")
async def change_session(
    session_id: SessionId, change: SessionChange, request: Request, owner: Owner
) -> dict[str, Any]:
    """Changes a session: its title, its metadata, which tools need no approval in it, or when it
    goes. It keeps its place in the list."""
    given = change.model_fields_set
    if not given:
        raise InvalidInputError(
            "There is nothing to change: send title, metadata, always_approve or expires_at.",
            code="empty",
        )
    for index, tool in enumerate(change.always_approve):
        check_id(tool.agent, f"always_approve[{index}].agent")
        check_id(tool.name, f"always_approve[{index}].name")
    tools = [tool_id(tool.agent, tool.name) for tool in change.always_approve]
    return await stored_sessions.change_session(
        _database(request),
        session_id,
        owner,
        Change(
            titled="title" in given,
            title=change.title,
            metadata=change.metadata if "metadata" in given else None,
            tools=tools if "always_approve" in given else None,
            timed="expires_at" in given,
            expires_at=change.expires_at,
        ),
    )


Seq = Annotated[int, Field(ge=1, le=MAX_CURSOR)]


class ForkRequest(Body):
    """The body of `POST /sessions/{id}/fork`."""

    up_to: Seq | None = Field(
        default=None, description="The seq of the last item that comes along; by default all do."
    )


@router.post("/sessions/{session_id}/fork")
async def fork_session(
    session_id: SessionId, request: Request, owner: Owner, body: ForkRequest | None = None
) -> dict[str, Any]:
    """Makes a new session of the items up to a given one, with the title and the metadata. What is
    stored counts: a turn at work is no hindrance. Between a call and its output is no place to end:
    `half_turn` names the nearest that are."""
    return await session_branch.fork_session(
        _database(request), session_id, owner, up_to=body.up_to if body else None
    )


class RewindRequest(Body):
    """The body of `POST /sessions/{id}/rewind`."""

    to: Seq = Field(description="The seq of the first item that goes.")


@router.post("/sessions/{session_id}/rewind")
async def rewind_session(
    session_id: SessionId, body: RewindRequest, request: Request, owner: Owner
) -> dict[str, Any]:
    """Cuts a session back to before an item, to edit a message or to ask again. All that it was is
    kept as a fork, `fork_id`. While a turn is at work it is a 409 (`session_busy`)."""
    session, fork_id = await session_branch.rewind_session(
        _database(request), session_id, owner, to=body.to
    )
    return session | {"fork_id": fork_id}


@router.get(
    "/sessions/{session_id}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}}},
)
async def export_session(session_id: SessionId, request: Request, owner: Owner) -> Response:
    """A session as JSON Lines, with ids, times and the very text of each item: for
    `POST /sessions/import`, here or elsewhere."""
    lines = session_export.export_session(_database(request), session_id, owner)
    first = await anext(lines)

    async def all_lines() -> AsyncIterator[str]:
        yield first
        async for more in lines:
            yield more

    return StreamingResponse(
        all_lines(),
        media_type=JSON_LINES,
        headers={"content-disposition": 'attachment; filename="session.jsonl"'},
    )


@router.post(
    "/sessions/import",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON_LINES: {"schema": {"type": "string"}}},
        }
    },
)
async def import_session(request: Request, owner: Owner) -> dict[str, Any]:
    """Makes a session of what was exported, all or nothing; whoever sends it owns it. It is a 409
    when its id is taken (`session_exists`). A body has REQUEST_MAX_BYTES at most, 8 MiB by default:
    `threadkeep sessions import` takes more."""
    lines = session_export.split_lines(request.stream())
    settings: Settings = request.app.state.settings
    return await session_export.import_session(
        _database(request),
        owner,
        lines,
        item_bytes=settings.item_max_bytes,
        session_items=settings.session_max_items,
    )


@router.get("/sessions/{session_id}/items", response_class=JSONResponse)
async def list_items(
    session_id: SessionId,
    request: Request,
    owner: Owner,
    limit: Limit = 100,
    order: Literal["asc", "desc"] = "asc",
    after: Annotated[
        int | None,
        Query(ge=0, le=MAX_CURSOR, description="Go on behind the item of this seq."),
    ] = None,
    html: Annotated[bool, Query(description="Add how the page shows the agent's words.")] = False,
) -> Response:
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
    return Response(json_text(page_of(items, limit)), media_type="application/json")


@router.delete("/sessions/{session_id}")
async def delete_session(session_id: SessionId, request: Request, owner: Owner) -> dict[str, Any]:
    """Deletes a session with its items, runs and events. A run at work on it is stopped first."""
    database = _database(request)
    gone = False
    while not gone:  # else it was changed meanwhile
        await request.app.state.runs.stop_session(session_id, owner)
        gone = await stored_sessions.delete_session(database, session_id, owner)
    return {"id": session_id, "object": "session.deleted", "deleted": True}


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _item(row: Row, html: bool) -> dict[str, Any]:
    item = decode_item(row["data"])
    if item is None or not _can_be_told(item):
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


def _can_be_told(item: dict[str, Any]) -> bool:
    """Whether JSON's readers take it: what comes from elsewhere may hold what Python alone reads,
    or be nested too deeply to be put into a list."""
    try:
        json_text([[[[item]]]])
    except (ValueError, RecursionError):
        return False
    return True
