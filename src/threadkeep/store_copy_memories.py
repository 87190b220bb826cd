"""The memories of a store copied to another database, and compared.

A memory is stored with all that it was in one statement, so it is there whole or not at all. Its
words are put into the search index of the target anew, under a number of its own there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from threadkeep.database import Database
from threadkeep.errors import ConflictError, DatabaseError
from threadkeep.memory_index import write_indexed
from threadkeep.memory_rows import keywords_of
from threadkeep.store_comparison import (
    AHEAD,
    CHANGED,
    DIFFERENT,
    MISSING,
    UNKNOWN,
    Comparison,
    Troubles,
    each,
)

TABLES = ("memories", "memory_history")
"""What is copied."""

PAGE = 100
"""Memories that are read at once."""

AT_ONCE = 8
"""Memories that are copied or compared at the same time."""

_VERSIONS = {
    "versions": "version",
    "was": "description",
    "was_contents": "contents",
    "was_sources": "source_session",
    "was_seqs": "source_seq",
    "was_at": "source_at",
    "was_from": "valid_from",
    "was_to": "valid_to",
    "was_superseded_by": "superseded_by",
}
"""The parameters that hold what a memory was, each with its column."""

_Memory = dict[str, Any]
_Pair = tuple[_Memory, _Memory | None]


async def check_memories(source: Database, target: Database, troubles: Troubles) -> None:
    """Finds what the target holds that is not of the source, or has gone on since."""
    async for pairs in _pairs(target, source):
        for ours, theirs in pairs:
            if theirs is None:
                troubles.add(ours["memory_id"], "memories that FROM does not have")
            elif _is_ahead(ours, theirs):
                what = "memories that have gone on in TO since they were copied"
                troubles.add(ours["memory_id"], what)


async def copy_memories(source: Database, target: Database) -> None:
    """Brings all memories to another store; one that is the same there is left alone.

    Args:
        source: Is only read.
        target: Holds no others (`check_memories`).

    Raises:
        ConflictError: Somebody else is at work in the target.
        DatabaseError: Not all could be copied. Call it again.
    """

    async def bring(pair: _Pair) -> None:
        theirs, ours = pair
        versions = await _versions(source, theirs)
        if ours is not None:
            if ours == theirs and await _versions(target, ours) == versions:
                return
            names = ("memory_id", "owner", "version")
            if not await target.call("uncopy_memory", **{name: ours[name] for name in names}):
                raise _conflict(ours)
        await _store(target, theirs, versions)

    async for pairs in _pairs(source, target):
        await each(bring, pairs, AT_ONCE)
    await _copy_forgotten(source, target)


async def _copy_forgotten(source: Database, target: Database) -> None:
    """Brings along which messages are not recalled any more."""
    last: dict[str, Any] = {"owner": "", "seq": -1, "at": 0}
    while rows := await source.call("list_copied_forgotten", **last, limit=PAGE):
        for owner in {row["owner"] for row in rows}:
            own = [row for row in rows if row["owner"] == owner]
            await target.call(
                "copy_forgotten",
                owner=owner,
                seqs=[str(row["seq"]) for row in own],
                times=[str(row["at"]) for row in own],
            )
        last = dict(rows[-1])


async def compare_memories(source: Database, target: Database, found: Comparison) -> None:
    """Adds to a comparison what memories both have, and which differ."""

    async def compare(pair: _Pair) -> None:
        theirs, ours = pair
        versions, here = await asyncio.gather(_versions(source, theirs), _versions(target, ours))
        found.source.update(memories=1, memory_history=len(versions))
        found.target.update(memories=int(ours is not None), memory_history=len(here))
        if (theirs, versions) != (ours, here):
            found.different.add(theirs["memory_id"], _difference(theirs, ours))

    async for pairs in _pairs(source, target):
        await each(compare, pairs, AT_ONCE)
    async for pairs in _pairs(target, source):
        for ours, theirs in pairs:
            if theirs is None:
                count = len(await _versions(target, ours))
                found.target.update(memories=1, memory_history=count)
                found.different.add(ours["memory_id"], UNKNOWN)


def _difference(theirs: _Memory, ours: _Memory | None) -> str:
    if ours is None:
        return MISSING
    if ours == theirs:
        return DIFFERENT
    return AHEAD if _is_ahead(ours, theirs) else CHANGED


def _is_ahead(ours: _Memory, theirs: _Memory) -> bool:
    return bool(ours["version"] > theirs["version"] or ours["updated_at"] > theirs["updated_at"])


async def _pairs(one: Database, other: Database) -> AsyncIterator[list[_Pair]]:
    """The memories of one store, by pages, each with what the other one has of it."""
    after = ""
    while rows := await one.call("list_copied_memories", after=after, limit=PAGE):
        ids = [row["memory_id"] for row in rows]
        there = await other.call("read_copied_memories", memory_ids=ids)
        known = {row["memory_id"]: dict(row) for row in there}
        yield [(dict(row), known.get(row["memory_id"])) for row in rows]
        after = ids[-1]


async def _versions(database: Database, memory: _Memory | None) -> list[dict[str, Any]]:
    """What a memory was before the version that is known of it."""
    if memory is None or memory["version"] == 1:
        return []
    rows = await database.call(
        "read_copied_versions", memory_id=memory["memory_id"], owner=memory["owner"]
    )
    return [dict(row) for row in rows if row["version"] < memory["version"]]


async def _store(target: Database, memory: _Memory, versions: list[dict[str, Any]]) -> None:
    keywords = keywords_of(memory)
    if keywords is None:
        raise DatabaseError(
            f"Memory {memory['memory_id']!a} of FROM is damaged: it can't be read. Delete it, then "
            "run the copy again."
        )
    columns = memory | {"keywords": keywords}
    history: dict[str, Any] = {
        name: ["" if row[column] is None else str(row[column]) for row in versions]
        for name, column in _VERSIONS.items()
    }
    row = await write_indexed(target, "copy_memory", **columns, **history)
    if row is None:
        raise _conflict(memory)


def _conflict(memory: _Memory) -> ConflictError:
    return ConflictError(
        f"Somebody else is at work in TO: memory {memory['memory_id']!a} was changed there just "
        "now. Stop what uses it, then run the copy again."
    )
