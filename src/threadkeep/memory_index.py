"""Memories stored together with their words in the search index: each version under its number."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence

from threadkeep.database import Database, Row, Value
from threadkeep.errors import DuplicateError
from threadkeep.history import json_text
from threadkeep.memory_ranking import entries

_FIRST_NUMBER = 1 << 62
"""Behind those of sessions."""

_TRIES = 10


def scope_of(owner: str) -> int:
    """The number of an owner's memories in the search index, of 63 bits."""
    digest = hashlib.sha256(b"threadkeep memories " + owner.encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def path_key(path: str) -> str:
    """A path as it is looked up: of one length, since an index takes no long texts."""
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()


async def write_indexed(
    database: Database,
    statement: str,
    *,
    owner: str,
    path: str,
    description: str,
    contents: str,
    keywords: Sequence[str],
    valid_to: int | None,
    **more: Value,
) -> Row | None:
    """Calls a statement that stores a memory. One that does not hold any more has no words.

    Args:
        database: Where.
        statement: Which.
        owner: Whose it is.
        path, description, contents, keywords: What it says.
        valid_to: Until when it holds, in ms since 1970; None: for good.
        more: The statement's other parameters.

    Returns:
        What the statement gives, if it does.

    Raises:
        DatabaseError: Nothing was stored.
    """
    words: dict[str, str] = {}
    if valid_to is None or valid_to > now_ms():
        words = await asyncio.to_thread(entries, path, description, contents, keywords)
    tries = _TRIES
    while True:
        try:
            rows = await database.call(
                statement,
                owner=owner,
                scope=scope_of(owner),
                path_key=path_key(path),
                path=path,
                description=description,
                contents=contents,
                keywords=json_text(list(keywords)),
                valid_to=valid_to,
                search_no=_FIRST_NUMBER + (now_ms() << 20) + secrets.randbits(20),
                terms=list(words),
                hits=list(words.values()),
                **more,
            )
        except DuplicateError:  # somebody has taken that number in this millisecond
            tries -= 1
            if not tries:
                raise
            continue
        return rows[0] if rows else None


def now_ms() -> int:
    """The time, in ms since 1970."""
    return time.time_ns() // 1_000_000
