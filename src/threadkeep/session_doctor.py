"""Looks through stored sessions for what is broken, and repairs it when it is told to.

What a model reads is mended on the way (`threadkeep.mend`). This finds what is stored that way, and
what nothing but damage brings about: items that are no JSON, gaps, items of no session. A repair
keeps the session as it was, as a fork, and changes nothing that has changed since it was looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Literal, cast

from agents import TResponseInputItem
from uuid_utils import uuid7

from threadkeep.database import Database, Row
from threadkeep.errors import NotFoundError
from threadkeep.history import decode_item, json_text, new_epoch
from threadkeep.mend import mend
from threadkeep.run_log import LOST_AFTER_MS

PAGE = 500
"""Ids that are listed at once."""

ITEMS = 5_000
"""How many items are read at once, unless a session alone has more."""

_SHOWN = 10
"""Of the items of a trouble, so many are named."""

_MARK = {"kept_by": "threadkeep sessions doctor"}
"""In the metadata of a fork that keeps an original: it is as broken as that was, and stays so."""


@dataclass(frozen=True)
class Checkup:
    """What was found of a session, and what was done.

    Args:
        session_id: The session.
        outcome: `sound`; `broken`; `repaired`: nothing is broken any more; `busy`: a run has it,
            and nobody can tell before that ends.
        troubles: What was broken, a line each; no contents.
        fork_id: Where the original is kept; '' where there was nothing to keep.
    """

    session_id: str
    outcome: Literal["sound", "broken", "repaired", "busy"]
    troubles: tuple[str, ...] = ()
    fork_id: str = ""


@dataclass(frozen=True)
class SilentRun:
    """A run that has not ended, and gave no sign of life for some time, in seconds."""

    run_id: str
    session_id: str
    status: str
    seconds: int


async def examine(
    database: Database, session_id: str | None = None, *, repair: bool = False
) -> AsyncIterator[Checkup]:
    """Looks at all sessions, or at one.

    Originals that a repair has kept are looked at only when they are named.

    Args:
        database: Where they lie.
        session_id: The one to look at, whoever owns it.
        repair: Whether to repair what is broken. A session that a run has is left alone.

    Raises:
        NotFoundError: There is no such session.
        DatabaseError: Not all could be read, or repaired.
    """
    if session_id is not None:
        stored = await _read_one(database, session_id)
        if stored is None:
            raise NotFoundError(f"There is no session {session_id}.")
        yield await _examine(database, stored, repair)
        return
    async for ids in _batches(database):
        for stored in await _read(database, ids):
            yield await _examine(database, stored, repair)


async def silent_runs(
    database: Database, session_id: str | None = None
) -> AsyncIterator[SilentRun]:
    """Runs that have lost their process; each is ended as soon as somebody asks for it.

    Args:
        database: Where they lie.
        session_id: Only those of this one.
    """
    after = ""
    while rows := await database.call(
        "list_silent_runs",
        session_id=session_id or "",
        stale_after=LOST_AFTER_MS,
        after=after,
        limit=PAGE,
    ):
        for row in rows:
            after = row["run_id"]
            yield SilentRun(after, row["session_id"], row["status"], row["silent_for"] // 1000)


@dataclass(frozen=True)
class _Stored:
    """A session as it was found.

    Args:
        row: What is stored beside the items; `epoch` is None when there is no session.
        troubles: What is broken.
        items: How its items are to be: each is the seq of one that stays, or a new one, as JSON.
    """

    row: Row
    troubles: tuple[str, ...]
    items: list[str]

    @property
    def session_id(self) -> str:
        return cast(str, self.row["session_id"])


async def _batches(database: Database) -> AsyncIterator[list[str]]:
    """The ids of all sessions, then those of items that have none; as many as are read at once."""
    after = ""
    while rows := await database.call("list_all_sessions", after=after, limit=PAGE):
        after = rows[-1]["session_id"]
        for batch in _cut([row for row in rows if not _is_original(row["metadata"])]):
            yield batch
    after = ""
    while rows := await database.call("list_item_sessions", after=after, limit=PAGE):
        after = rows[-1]["session_id"]
        for row in rows:
            if not row["known"]:
                yield [row["session_id"]]


def _cut(rows: Sequence[Row]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for row in rows:
        if batch and size + row["seq"] > ITEMS:
            yield batch
            batch, size = [], 0
        batch.append(row["session_id"])
        size += row["seq"]
    if batch:
        yield batch


async def _read(database: Database, ids: list[str]) -> list[_Stored]:
    rows = await database.call("read_whole_sessions", session_ids=ids, stale_after=LOST_AFTER_MS)
    return [_judged(list(of_one)) for _, of_one in groupby(rows, key=lambda r: r["session_id"])]


async def _read_one(database: Database, session_id: str) -> _Stored | None:
    found = await _read(database, [session_id])
    return found[0] if found else None


async def _examine(database: Database, stored: _Stored, repair: bool) -> Checkup:
    """Says what is broken; repairs it, and looks again when it was changed meanwhile."""
    checkup = _checkup(stored)
    if not repair or checkup.outcome != "broken":
        return checkup
    now: _Stored | None = stored
    while now is not None and now.troubles:
        if now.row["busy"]:
            return checkup
        if now.row["epoch"] is None:
            await database.call(
                "adopt_items", session_id=now.session_id, owner="", new_epoch=new_epoch()
            )
        elif fork_id := await _rebuild(database, now):
            return replace(checkup, outcome="repaired", fork_id=fork_id)
        now = await _read_one(database, now.session_id)
    return replace(checkup, outcome="repaired")


def _checkup(stored: _Stored) -> Checkup:
    if stored.row["busy"]:
        return Checkup(stored.session_id, "busy")
    outcome: Literal["broken", "sound"] = "broken" if stored.troubles else "sound"
    return Checkup(stored.session_id, outcome, stored.troubles)


async def _rebuild(database: Database, stored: _Stored) -> str:
    """Makes the items of a session as they are to be.

    Returns:
        The fork that keeps the original; '' when the session was changed, or a run took it.
    """
    fork_id = str(uuid7())
    metadata = decode_item(stored.row["metadata"]) or {}
    rows = await database.call(
        "rebuild_session",
        session_id=stored.session_id,
        owner=stored.row["owner"],
        epoch=stored.row["epoch"],
        seq=stored.row["head"],
        items=stored.items,
        fork_id=fork_id,
        fork_epoch=new_epoch(),
        fork_metadata=json_text(metadata | _MARK),
        new_epoch=new_epoch(),
        stale_after=LOST_AFTER_MS,
    )
    return fork_id if rows else ""


def _is_original(metadata: str) -> bool:
    return _MARK.items() <= (decode_item(metadata) or {}).items()


def _judged(rows: Sequence[Row]) -> _Stored:
    """What is broken in a session, and how it is to be.

    Args:
        rows: As `read_whole_sessions` gives them.
    """
    head = rows[0]
    rows = [row for row in rows if row["seq"] is not None]
    if head["epoch"] is None:
        return _Stored(head, (f"items of no session: {len(rows)}",), [])
    seqs, items, waiting = list[int](), list[TResponseInputItem](), set[int]()
    places: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        item = decode_item(row["data"])
        if item is None:
            places["no readable items"].append(str(row["seq"]))
            continue
        if row["waits"]:
            waiting.add(len(items))
        seqs.append(row["seq"])
        items.append(cast(TResponseInputItem, item))
    found = mend(items, waiting)
    for flaw, place in sorted(found.flaws, key=lambda flaw: flaw[1]):
        places[flaw].append(str(seqs[place]))
    order = [str(seqs[e]) if isinstance(e, int) else json_text(e) for e in found.order]
    troubles = (_told(what, numbers) for what, numbers in places.items())
    return _Stored(head, (*troubles, *_miscounted(head["head"], [r["seq"] for r in rows])), order)


def _miscounted(head: int, seqs: Sequence[int]) -> Iterator[str]:
    """What is wrong with the numbers of items, which are 1 to that of the session's head."""
    gaps = [
        f"{before + 1}" if after == before + 2 else f"{before + 1} to {after - 1}"
        for before, after in pairwise([0, *seqs])
        if after > before + 1
    ]
    if gaps:
        yield _told("missing items", gaps)
    newest = seqs[-1] if seqs else 0
    if head != newest:
        yield f"counts {head} items, and the last one is {newest}"


def _told(what: str, numbers: Sequence[str]) -> str:
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"{what}: {', '.join(numbers[:_SHOWN])}{more}"
