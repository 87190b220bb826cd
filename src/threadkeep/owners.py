"""All of an owner, counted and forgotten.

Forgetting goes in batches, each of them sessions with all that belongs to them, so one that is
interrupted is gone on with by the next. Runs at work are asked to stop and waited for; those that
lost their process are ended. At last the key that sealed it all is destroyed, and what is left of
the deleted rows in the database's own files is overwritten.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from threadkeep.database import Database, Value
from threadkeep.run_log import LOST_AFTER_MS
from threadkeep.sealing import KEY_SECONDS

WAIT_SECONDS = 30.0
"""How long runs at work are waited for. More than it takes to lose a process (LOST_AFTER_MS)."""

_LOOK_SECONDS = 0.2
_BATCH = 50


@dataclass(frozen=True)
class Receipt:
    """What came of forgetting an owner.

    Attributes:
        deleted: How many rows went, by table.
        left: How many are still there, by table: of runs that did not stop, or begun meanwhile.
        at_work: How many runs did not stop.
    """

    deleted: Mapping[str, int]
    left: Mapping[str, int]
    at_work: int


async def count_of(database: Database, owner: str) -> dict[str, int]:
    """How many rows there are of an owner, by table.

    Args:
        owner: Whose; '' is nobody.
    """
    return {row["name"]: row["count"] for row in await database.call("count_owner", owner=owner)}


async def forget(database: Database, owner: str, wait_seconds: float = WAIT_SECONDS) -> Receipt:
    """Deletes all of an owner, and stops what is at work for them before that.

    Args:
        owner: Whose; '' is nobody.
        wait_seconds: How long runs may take to stop.

    Raises:
        DatabaseError: Not all could be deleted; call it again.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_seconds
    deleted: Counter[str] = Counter(dict.fromkeys(await count_of(database, owner), 0))
    while True:
        stopped = await database.call("stop_owner", owner=owner, stale_after=LOST_AFTER_MS)
        at_work: int = stopped[0]["at_work"]
        deleted.update(
            await _delete(database, "delete_sessions", "sessions", owner=owner, older_than=None)
        )
        deleted.update(await _delete(database, "delete_stray_runs", "runs", owner=owner))
        deleted.update(await _delete(database, "delete_memories", "memories", owner=owner))
        left = {name: count for name, count in (await count_of(database, owner)).items() if count}
        if left.keys() == {"owner_keys"}:
            # What others have sealed with it meanwhile goes with the next look.
            deleted["owner_keys"] += await _take_key(database, owner)
            await asyncio.sleep(KEY_SECONDS)
            deadline = max(deadline, clock() + KEY_SECONDS)
            continue
        if not left or clock() > deadline:
            return Receipt(deleted, left, at_work)
        await asyncio.sleep(_LOOK_SECONDS)


async def _take_key(database: Database, owner: str) -> int:
    """Destroys the key of an owner, or takes it away from them when it has sealed what is others'
    now; gives how many keys are gone."""
    gone = await database.call("destroy_owner_key", owner=owner)
    await database.call("leave_owner_key", owner=owner)
    return len(gone)


async def _delete(
    database: Database, statement: str, table: str, **parameters: Value
) -> Counter[str]:
    """Calls a statement until it finds no more for its table."""
    total: Counter[str] = Counter()
    while True:
        rows = await database.call(statement, limit=_BATCH, **parameters)
        counts = {row["name"]: row["count"] for row in rows}
        total.update(counts)
        if not counts[table]:
            return total
