"""The owner's memories: list, find, read, add, change, export, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from threadkeep.errors import InvalidInputError
from threadkeep.history import check_id, json_text
from threadkeep.memory_form import MAX_TIME_MS, Draft
from threadkeep.memory_store import MAX_QUERY, MemoryStore
from threadkeep.server.lists import page_of
from threadkeep.server.paths import MemoryId
from threadkeep.server.responses import MAX_CURSOR, Owner
from threadkeep.server.sessions import JSON_LINES, Body

router = APIRouter(tags=["memories"])

MAX_PAGE = 200
"""Of memories at once, and of what a search finds."""


def _store(request: Request, owner: Owner) -> MemoryStore:
    return MemoryStore(request.app.state.database, owner, request.app.state.run_requests.likeness)


Store = Annotated[MemoryStore, Depends(_store)]
Seconds = Annotated[int, Field(ge=0, le=MAX_TIME_MS // 1000)]


@router.get("/memories")
async def list_memories(
    store: Store,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")] = 30,
    after: Annotated[str, Query(description="Go on behind the memory of this id.")] = "",
    q: Annotated[str, Query(description="What is looked for, in words.")] = "",
) -> dict[str, Any]:
    """The owner's memories, last changed first; with `q` those that fit it and hold now, the best
    first, each with its `score`. `complete` is false when there may be more than were looked at."""
    if after:
        check_id(after, "after")
    if not q.strip():
        return page_of(await store.page(after=after, limit=limit + 1), limit)
    if len(q) > MAX_QUERY:
        raise InvalidInputError(
            f"q must have {MAX_QUERY} characters at most, not {len(q)}.", param="q"
        )
    found, complete = await store.search(q, limit=MAX_PAGE)
    if after:
        ids = [memory["id"] for memory in found]
        found = found[ids.index(after) + 1 :] if after in ids else []
    return page_of(found, limit) | {"complete": complete}


class NewMemory(Body):
    """The body of `POST /memories`."""

    path: str | None = Field(
        default=None,
        description="Where, such as /memories/diet.md; by default made of the description.",
    )
    description: str = Field(description="What is to be remembered, in one line.")
    contents: str = Field(default="", description="More of it, in as many lines as needed.")
    keywords: list[str] = Field(
        default_factory=list, description="Other names for what it is about."
    )
    pinned: bool = Field(
        default=False, description="Whether it is put before the model in every conversation."
    )
    valid_from: Seconds | None = Field(
        default=None, description="Since when it holds, in seconds since 1970; null: from now on."
    )
    valid_to: Seconds | None = Field(
        default=None, description="Until when it holds, in seconds since 1970; null: for good."
    )


@router.post("/memories")
async def add_memory(body: NewMemory, store: Store) -> dict[str, Any]:
    """Stores a memory. It is a 409 (`memory_exists`) when there is one at that path."""
    draft = Draft(
        body.description,
        body.contents,
        body.keywords,
        body.pinned,
        _milliseconds(body.valid_from),
        _milliseconds(body.valid_to),
    )
    return await (store.add(draft) if body.path is None else store.save(body.path, draft))


@router.get(
    "/memories/export",
    response_class=StreamingResponse,
    responses={200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}}},
)
async def export_memories(store: Store) -> Response:
    """All of the owner's memories as JSON Lines, the last changed first, each as
    `GET /memories/{id}` has it."""
    memories = store.export()
    first = await anext(memories, None)

    async def lines() -> AsyncIterator[str]:
        if first is not None:
            yield json_text(first) + "\n"
        async for memory in memories:
            yield json_text(memory) + "\n"

    return StreamingResponse(
        lines(),
        media_type=JSON_LINES,
        headers={"content-disposition": 'attachment; filename="memories.jsonl"'},
    )


@router.get("/memories/{memory_id}", response_class=JSONResponse)
async def get_memory(memory_id: MemoryId, store: Store) -> Response:
    """One memory with its `history`, what it was before, the latest first. Its `source` has the
    `text` of the message that it comes from, for as long as that is there."""
    memory = await store.read(memory_id)
    return Response(json_text(memory), media_type="application/json")


class MemoryChange(Body):
    """The body of `PATCH /memories/{id}`. What is left out stays as it is."""

    description: str = Field(default="", description="What is to be remembered, in one line.")
    contents: str = Field(default="", description="More of it, in as many lines as needed.")
    keywords: list[str] = Field(
        default_factory=list, description="Other names for what it is about, all of them."
    )
    pinned: bool = Field(
        default=False, description="Whether it is put before the model in every conversation."
    )
    valid_from: Seconds = Field(default=0, description="Since when it holds, in seconds.")
    valid_to: Seconds | None = Field(
        default=None, description="Until when it holds, in seconds; null: for good."
    )
    superseded_by: str | None = Field(
        default=None,
        description="The id of the memory that holds in its place. It then holds until now, if "
        "valid_to says nothing else.",
    )
    version: Annotated[int, Field(ge=1, le=MAX_CURSOR)] | None = Field(
        default=None, description="Change it only if it is in this version still."
    )


@router.patch("/memories/{memory_id}")
async def change_memory(memory_id: MemoryId, change: MemoryChange, store: Store) -> dict[str, Any]:
    """Changes a memory; what it said is kept in its history. It is a 409 (`memory_changed`) when it
    is in another version than `version`."""
    given = change.model_dump(exclude_unset=True, exclude={"version"})
    if not given:
        raise InvalidInputError(
            "There is nothing to change: send description, contents, keywords, pinned, valid_from, "
            "valid_to or superseded_by.",
            code="empty",
        )
    if change.superseded_by is not None:
        check_id(change.superseded_by, "superseded_by")
    for name in ("valid_from", "valid_to"):
        if name in given:
            given[name] = _milliseconds(given[name])
    return await store.update(
        memory_id, lambda draft: replace(draft, **given), version=change.version
    )


@router.delete("/memories/{memory_id}")
async def delete_memory(memory_id: MemoryId, store: Store) -> dict[str, Any]:
    """Deletes a memory with all that it was."""
    await store.delete(memory_id)
    return {"id": memory_id, "object": "memory.deleted", "deleted": True}


def _milliseconds(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * 1000
