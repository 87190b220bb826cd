"""Sessions as the database has them: listed, read, changed, deleted, given to somebody else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from threadkeep.database import Database, Row
from threadkeep.errors import InvalidInputError, SessionNotFoundError
from threadkeep.history import UNSTORABLE, cache_of, check_json, decode_item, json_text
from threadkeep.tool_names import tool_of

MAX_TITLE = 200
"""Of a session, in characters."""

MAX_METADATA = 64 * 1024
"""Of a session, as JSON, in bytes."""


@dataclass(frozen=True)
class Assigned:
    """A session that has another owner now, with so many items, runs and approvals."""

    session_id: str
    items: int
    runs: int
    approvals: int


def session_object(row: Row) -> dict[str, Any]:
    """A session as the API gives it; times in seconds.

    Args:
        row: As the statements of sessions return them.
    """
    return {
        "id": row["session_id"],
        "object": "session",
        "title": row["title"],
        "metadata": decode_item(row["metadata"]) or {},
        "parent_session_id": row["parent_session_id"],
        "active_response_id": row["run_id"],
        "always_approve": [tool_of(tool) for tool in json.loads(row["approved_tools"])],
        "item_count": row["seq"],
        "temporary": bool(row["temporary"]),
        "created_at": row["created_at"] // 1000,
        "updated_at": row["updated_at"] // 1000,
        "expires_at": None if row["expires_at"] is None else row["expires_at"] // 1000,
    }


async def list_sessions(
    database: Database, owner: str, *, after: str = "", limit: int
) -> list[dict[str, Any]]:
    """An owner's sessions, last changed first, from behind the one of an id."""
    rows = await database.call("list_sessions", owner=owner, after=after, limit=limit)
    return [session_object(row) for row in rows]


async def get_session(database: Database, session_id: str, owner: str) -> dict[str, Any]:
    """One session, without its items.

    Raises:
        SessionNotFoundError: There is none of this owner.
    """
    rows = await database.call("get_session", session_id=session_id, owner=owner)
    return session_object(_found(rows))


@dataclass(frozen=True)
class Change:
    """What is to be another in a session.

    Args:
        titled: Whether the title is.
        title: None: it is untitled, until the next turn.
        metadata: As a whole; None: as it is.
        tools: Of those that need no approval these still need none (`tool_id`); None: all of them.
        timed: Whether the time is when it goes.
        expires_at: When, in seconds since 1970; None: when its owner's others do.
    """

    titled: bool = False
    title: str | None = None
    metadata: dict[str, Any] | None = None
    tools: Sequence[str] | None = None
    timed: bool = False
    expires_at: int | None = None


async def change_session(
    database: Database, session_id: str, owner: str, change: Change
) -> dict[str, Any]:
    """Changes a session, and not its place in the list.

    Returns:
        The session.

    Raises:
        InvalidInputError: The title or the metadata can't be used; nothing was changed.
        SessionNotFoundError: There is none of this owner.
    """
    rows = await database.call(
        "change_session",
        session_id=session_id,
        owner=owner,
        titled=int(change.titled),
        title=check_title(change.title),
        metadata=None if change.metadata is None else check_metadata(change.metadata),
        tools=change.tools,
        timed=int(change.timed),
        expires_at=None if change.expires_at is None else change.expires_at * 1000,
    )
    return session_object(_found(rows))


async def delete_session(database: Database, session_id: str, owner: str) -> bool:
    """Deletes a session with its items, runs, events and approvals.

    Returns:
        False when it was changed meanwhile, and is there as it was.

    Raises:
        SessionNotFoundError: There is none of this owner.
    """
    rows = await database.call("delete_session", session_id=session_id, owner=owner)
    cache_of(database).forget(session_id, owner)
    return bool(_found(rows)["gone"])


async def assign_sessions(
    database: Database, session_ids: Sequence[str], *, owner: str, new_owner: str
) -> list[Assigned]:
    """Gives sessions of an owner to another one, with their runs and approvals.

    Args:
        owner: Whose they are; '' is nobody's.
        new_owner: Whose they are to be.

    Returns:
        Those that were given; not those that a run has, or waits for.
    """
    await database.call("share_owner_key", owner=owner)
    rows = await database.call(
        "assign_sessions", session_ids=session_ids, owner=owner, new_owner=new_owner
    )
    return [Assigned(row["session_id"], row["seq"], row["runs"], row["approvals"]) for row in rows]


def check_title(title: object, param: str = "title") -> str | None:
    """Returns a title that can be stored, or says what is wrong with it.

    Raises:
        InvalidInputError: It is no text, or an empty one, or too long, or not one line of text.
    """
    if title is None:
        return None
    if not isinstance(title, str):
        raise InvalidInputError(
            f"{param} must be a string, or null.", param=param, code="invalid_type"
        )
    if not 0 < len(title) <= MAX_TITLE:
        raise InvalidInputError(
            f"{param} must have 1 to {MAX_TITLE} characters, not {len(title)}; null: untitled.",
            param=param,
        )
    if UNSTORABLE.search(title):
        raise InvalidInputError(
            f"{param} must have no control characters and no lone surrogates.", param=param
        )
    return title


def check_metadata(metadata: object, param: str = "metadata") -> str:
    """Returns metadata as it is stored, or says what is wrong with it.

    Raises:
        InvalidInputError: It is no object, or no JSON that everybody takes, or too large.
    """
    if not isinstance(metadata, dict):
        raise InvalidInputError(f"{param} must be an object.", param=param, code="invalid_type")
    check_json(metadata, param)
    text = json_text(metadata)
    if (size := len(text.encode())) > MAX_METADATA:
        raise InvalidInputError(
            f"{param} must have {MAX_METADATA // 1024} KiB at most as JSON, not {size} bytes.",
            param=param,
        )
    return text


def _found(rows: Sequence[Row]) -> Row:
    if not rows:
        raise SessionNotFoundError
    return rows[0]
