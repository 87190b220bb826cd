"""A whole store copied to another database, and two stores compared.

The unit is what lies under the id of a session: its items, its runs with all that belongs to them,
and its row, which is written last: a session that is there is whole. What a copy that died has left
behind lies under no session, is shown by nothing, and is removed before that id is copied again. So
a copy is gone on with by making it again: what is the same already is left alone. Memories come
after the sessions (`store_copy_memories`).

Two backends sort text differently. So ids are listed in the order of the side that is gone through,
and looked up on the other one by themselves; checksums do not depend on any order.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from threadkeep import store_copy_memories
from threadkeep.database import Database, Row, Value
from threadkeep.errors import ConflictError, DatabaseError
from threadkeep.store_comparison import (
    AHEAD,
    CHANGED,
    DIFFERENT,
    MISSING,
    SHOWN,
    UNKNOWN,
    Comparison,
    Troubles,
    each,
)

TABLES = (
    "sessions",
    "items",
    "runs",
    "run_events",
    "model_calls",
    "tool_calls",
    "approvals",
    *store_copy_memories.TABLES,
)
"""What is copied."""

IDS = 200
"""Ids that are listed at once, and looked up."""

AT_ONCE = 8
"""Ids that are copied or compared at the same time, so that a distant database costs no waiting."""

PAGE_ROWS, PAGE_CHARACTERS = 1_000, 2 * 1024 * 1024
"""What is read and stored at once, unless one row alone has more."""

REMOVED = 10_000
"""Items that are removed at once, at most."""

Told = Callable[[int], object]
"""Is told how many more items were copied, or compared."""


def nobody(count: int) -> None:
    """Is told, and does nothing."""


async def is_same(one: Database, other: Database) -> bool:
    """Whether two databases are one, however they were named."""
    places = [(await database.call("copy_place"))[0]["place"] for database in (one, other)]
    return bool(places[0] == places[1])


async def count_items(database: Database) -> int:
    """How many items the sessions of a store have."""
    total: int = (await database.call("count_copied"))[0]["items"]
    return total


async def copy_store(source: Database, target: Database, told: Told = nobody) -> None:
    """Brings all of a store to another one, which may hold what came from there before.

    A session that is the same there is left alone; one that has changed since is removed there, and
    copied anew. One that is changed while it is copied is left out: `compare_stores` tells of it.

    Args:
        source: Is only read.
        target: Nobody else is at work there.
        told: Hears of each page of items.

    Raises:
        ConflictError: The target holds what is not of the source, or newer; nothing was changed.
        DatabaseError: Not all could be copied. Call it again.
    """
    await _check(source, target)
    await _remove_remains(target)
    copy = _Copy(source, target, told)
    async for ids in _listed(source):
        await each(copy.bring, await _pairs(source, target, ids), AT_ONCE)
    await store_copy_memories.copy_memories(source, target)


async def compare_stores(source: Database, target: Database, told: Told = nobody) -> Comparison:
    """Reads all of both, and says whether they are equal. Neither is changed.

    Args:
        source: The one that was copied.
        target: Its copy.
        told: Hears of the items of both.
    """
    found = Comparison()

    async def sum_both(pair: tuple[Row, Row]) -> tuple[_Sum, _Sum]:
        theirs, ours = pair
        return await asyncio.gather(_sum(source, theirs, told), _sum(target, ours, told))

    async for ids in _listed(source):
        pairs = await _pairs(source, target, ids)
        for (theirs, ours), sums in zip(pairs, await each(sum_both, pairs, AT_ONCE), strict=True):
            found.source.update(sums[0].counts)
            found.target.update(sums[1].counts)
            if sums[0] != sums[1]:
                found.different.add(theirs["session_id"], _difference(theirs, ours))
    async for ids in _listed(target):
        for theirs, ours in await _pairs(source, target, ids):
            if _is_there(ours) and not _is_there(theirs):
                found.target.update((await _sum(target, ours, told)).counts)
                found.different.add(ours["session_id"], UNKNOWN)
    await store_copy_memories.compare_memories(source, target, found)
    return found


def _difference(theirs: Row, ours: Row) -> str:
    if not _is_there(ours):
        return MISSING
    if _without_tag(theirs) == _without_tag(ours):
        return DIFFERENT
    return AHEAD if _is_ahead(ours, theirs) else CHANGED


async def _check(source: Database, target: Database) -> None:
    """Refuses a target that holds what is not of the source, or has gone on since."""
    troubles = Troubles()
    async for ids in _listed(target):
        for theirs, ours in await _pairs(source, target, ids):
            if theirs["owner"] is None and (ours["owner"] is not None or not theirs["runs"]):
                troubles.add(ours["session_id"], "that FROM does not have")
            elif _is_ahead(ours, theirs) or _has_parted(ours, theirs):
                troubles.add(ours["session_id"], "that have gone on in TO since they were copied")
    if not troubles:
        await _check_runs(source, target, troubles)
    await store_copy_memories.check_memories(source, target, troubles)
    if troubles:
        counts = ", and ".join(f"{count} {what}" for what, count in troubles.counts.items())
        raise ConflictError(
            f"TO holds sessions, runs or memories of its own: {counts} "
            f"({', '.join(ascii(name) for name, _ in troubles.examples)}"
            f"{', ...' if len(troubles) > SHOWN else ''}). Nothing was changed. Copy into an empty "
            "database, or delete them there first."
        )


async def _check_runs(source: Database, target: Database, troubles: Troubles) -> None:
    """As `_check`, of runs: what was taken over, or decided, in the target, does not show in the
    rows of its sessions at once. Runs that have ended go from the source after a while."""
    after = ""
    while rows := await target.call("list_run_states", after=after, limit=IDS):
        after = rows[-1]["run_id"]
        ids = [row["run_id"] for row in rows]
        known = {row["run_id"]: row for row in await source.call("read_run_states", run_ids=ids)}
        for row in rows:
            there = known.get(row["run_id"])
            if there is None:
                if not row["finished"]:
                    troubles.add(row["run_id"], "runs that FROM does not have")
            elif any(row[name] > there[name] for name in ("attempt", "finished", "decided")):
                troubles.add(row["run_id"], "runs that have gone on in TO since they were copied")


def _is_ahead(ours: Row, theirs: Row) -> bool:
    """Whether a session has gone on since it was what its original is, or was before."""
    if ours["owner"] is None or theirs["owner"] is None:
        return False
    same_line = ours["epoch"] == theirs["epoch"]
    return bool(
        ours["updated_at"] > theirs["updated_at"] or (same_line and ours["seq"] > theirs["seq"])
    )


def _has_parted(ours: Row, theirs: Row) -> bool:
    """Whether two sessions went on from the same items with others; their tags are of one seq."""
    return bool(ours["epoch"] == theirs["epoch"] and ours["tag"] != theirs["tag"])


async def _remove_remains(target: Database) -> None:
    """Removes items of no session: a copy that died has left them behind, or an import."""
    after = ""
    while rows := await target.call("list_item_sessions", after=after, limit=IDS):
        after = rows[-1]["session_id"]
        for row in rows:
            if not row["known"]:
                await _clear(target, row["session_id"])


async def _clear(target: Database, session_id: str) -> None:
    """Removes all that lies under an id that no session has."""
    count = 1
    while count:
        rows = await target.call("remove_copied_items", session_id=session_id, limit=REMOVED)
        count = rows[0]["count"]
    await target.call("remove_copied_runs", session_id=session_id)


@dataclass(frozen=True)
class _Copy:
    source: Database
    target: Database
    told: Told

    async def bring(self, pair: tuple[Row, Row]) -> None:
        """Copies what lies under an id, unless it is the same there.

        Args:
            pair: What is known of it, here and there.
        """
        theirs, ours = pair
        session_id = theirs["session_id"]
        if _is_there(ours):
            if await self._is_same(theirs, ours):
                self.told(theirs["seq"] or 0)
                return
            if ours["owner"] is not None:
                names = ("session_id", "owner", "epoch", "seq")
                if not await self.target.call("uncopy_session", **{n: ours[n] for n in names}):
                    raise ConflictError(
                        f"Somebody else is at work in TO: session {session_id!a} was changed there "
                        "just now. Stop what uses it, then run the copy again."
                    )
            await _clear(self.target, session_id)
        try:
            await self._copy(theirs)
        except DatabaseError as error:
            if type(error) is not DatabaseError:  # it is down, busy, …
                raise
            raise DatabaseError(f"Session {session_id!a} can't be copied: {error}") from error

    async def _is_same(self, theirs: Row, ours: Row) -> bool:
        if _without_tag(theirs) != _without_tag(ours):
            return False
        one, other = await asyncio.gather(_sum(self.source, theirs), _sum(self.target, ours))
        return one == other

    async def _copy(self, head: Row) -> None:
        before = await _session_row(self.source, head)
        async for part in _parts(self.source, head):
            if part.table == "sessions" and part.rows != before:
                return  # what was read may be of two moments
            await self._store(part)
            if part.table == "items":
                self.told(len(part.rows))

    async def _store(self, part: _Part) -> None:
        statement = f"copy_{_WORDS[part.table]}"
        if part.table in ("sessions", "runs", "approvals"):
            for row in part.rows:
                await self.target.call(statement, **row)
            return
        columns: dict[str, Value] = {
            name: ["" if row[name] is None else str(row[name]) for row in part.rows]
            for name in part.rows[0]
        }
        await self.target.call(statement, **part.of, **columns)


_WORDS = {
    "sessions": "session",
    "items": "items",
    "runs": "run",
    "run_events": "events",
    "model_calls": "model_calls",
    "tool_calls": "tool_calls",
    "approvals": "approval",
}
"""What a statement that stores rows of a table is called by."""


@dataclass(frozen=True)
class _Part:
    """Rows of a table, in the form that both dialects have in common.

    Args:
        table: One of `TABLES`.
        of: What all the rows belong to, beside their own columns.
        rows: Values by the names of columns.
    """

    table: str
    of: dict[str, str]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class _Sum:
    """Rows, counted by table, with a checksum. No order of them means anything to it."""

    counts: Counter[str]
    checksum: int


async def _sum(database: Database, head: Row, told: Told = nobody) -> _Sum:
    """Of all that lies under an id."""
    counts, checksum = Counter[str](), 0
    async for part in _parts(database, head):
        counts[part.table] += len(part.rows)
        for row in part.rows:
            text = json.dumps([part.table, sorted(part.of.items()), sorted(row.items())])
            checksum += int.from_bytes(sha256(text.encode()).digest())
        if part.table == "items":
            told(len(part.rows))
    return _Sum(counts, checksum % 2**256)


async def _parts(database: Database, head: Row) -> AsyncIterator[_Part]:
    """All that lies under an id, page by page; the row of its session comes last."""
    session_id, owner = head["session_id"], head["owner"]
    if owner is not None:
        of = {"session_id": session_id, "owner": owner}
        async for rows in _pages(database, "read_copied_items", "seq", 0, **of):
            yield _Part("items", of, rows)
    journals: set[str] = set()
    after = "" if head["runs"] else None
    while after is not None:
        runs = await database.call(
            "list_copied_runs", session_id=session_id, after=after, limit=PAGE_ROWS
        )
        for run in runs:
            async for part in _parts_of_run(database, run, run["journal_id"] not in journals):
                yield part
            journals.add(run["journal_id"])
        after = runs[-1]["run_id"] if len(runs) == PAGE_ROWS else None
    if rows := await _session_row(database, head):
        yield _Part("sessions", {}, rows)


async def _parts_of_run(database: Database, run: Row, with_journal: bool) -> AsyncIterator[_Part]:
    """A run, and what belongs to it; a journal that several share comes with the first of them."""
    of = {"run_id": run["run_id"], "owner": run["owner"]}
    rows = [dict(row) for row in await database.call("read_copied_run", **of)]
    yield _Part("runs", {}, rows)
    async for rows in _pages(database, "read_copied_events", "seq", -1, **of):
        yield _Part("run_events", of, rows)
    if with_journal:
        journal = of | {"journal_id": run["journal_id"]}
        for table in ("model_calls", "tool_calls"):
            async for rows in _pages(database, f"read_copied_{table}", "key", "", **journal):
                yield _Part(table, journal, rows)
    async for rows in _pages(database, "read_copied_approvals", "approval_id", "", **of):
        yield _Part("approvals", {}, rows)


async def _pages(
    database: Database, statement: str, place: str, after: str | int, **of: str
) -> AsyncIterator[list[dict[str, Any]]]:
    """Rows from behind a place on, as many at once as are read at once."""
    while True:
        found = await database.call(
            statement, **of, after=after, limit=PAGE_ROWS, size=PAGE_CHARACTERS
        )
        rows = [dict(row) for row in found]
        size = sum(row.pop("size") for row in rows)
        if rows:
            after = rows[-1][place]
            yield rows
        if len(rows) < PAGE_ROWS and size < PAGE_CHARACTERS:
            return


async def _session_row(database: Database, head: Row) -> list[dict[str, Any]]:
    if head["owner"] is None:
        return []
    rows = await database.call(
        "read_copied_session", session_id=head["session_id"], owner=head["owner"]
    )
    return [dict(row) for row in rows]


async def _listed(database: Database) -> AsyncIterator[list[Row]]:
    """The ids under which there is something, with the seq of their sessions, by pages."""
    after = ""
    while rows := await database.call("list_copied", after=after, limit=IDS):
        after = rows[-1]["session_id"]
        yield rows


async def _pairs(
    source: Database, target: Database, listed: Sequence[Row]
) -> list[tuple[Row, Row]]:
    """What both sides know of ids."""
    theirs, ours = await asyncio.gather(_heads(source, listed), _heads(target, listed))
    return list(zip(theirs, ours, strict=True))


async def _heads(database: Database, listed: Sequence[Row]) -> list[Row]:
    """What is known of ids without reading contents, in their order, there or not."""
    return await database.call(
        "read_copied_heads",
        session_ids=[row["session_id"] for row in listed],
        seqs=[str(row["seq"] or 0) for row in listed],
    )


def _is_there(head: Row) -> bool:
    return head["owner"] is not None or head["runs"] > 0


def _without_tag(head: Row) -> dict[str, Any]:
    return {name: value for name, value in head.items() if name != "tag"}
