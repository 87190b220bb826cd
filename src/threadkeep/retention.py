"""What is old goes: runs some time after their end, sessions some time after their last change.

Runs go so that their events do not become the database; what was said stays in the sessions. A
session goes with all that belongs to it, at the time that somebody has set for it, or else when
nobody changed it for long; when a run is at work on it, it goes later.
"""

from __future__ import annotations

import asyncio
import logging
import random

from threadkeep.database import Database
from threadkeep.errors import DatabaseError

FIRST_SECONDS = 60.0
"""Before the first look, on average: an app that runs for minutes a day looks too."""

PAUSE_SECONDS = 3600.0
"""Between two looks, on average: replicas do not all look at once."""

BATCH = 500
"""How many runs are forgotten in one statement, so that nobody waits for it for long."""

SESSION_BATCH = 50
"""How many sessions are deleted in one statement."""

_DAY = 24 * 3600 * 1000

_logger = logging.getLogger("threadkeep")


async def forget_old_runs(database: Database, days: float) -> int:
    """Forgets the runs that ended longer ago than so many days.

    Returns:
        How many there were.

    Raises:
        DatabaseError: Not all could be forgotten.
    """
    total, count = 0, BATCH
    while count == BATCH:
        rows = await database.call("forget_old_runs", older_than=int(days * _DAY), limit=BATCH)
        count = rows[0]["count"]
        total += count
    return total


async def delete_expired_sessions(database: Database, days: float | None) -> int:
    """Deletes the sessions whose time is over, but for those that a run is at work on.

    Args:
        database: Where they are.
        days: After how many without a change those go that have no time of their own; None: never.

    Returns:
        How many there were.

    Raises:
        DatabaseError: Not all could be deleted.
    """
    total, count = 0, SESSION_BATCH
    while count == SESSION_BATCH:
        rows = await database.call(
            "delete_sessions",
            owner=None,
            older_than=None if days is None else int(days * _DAY),
            limit=SESSION_BATCH,
        )
        count = next(row["count"] for row in rows if row["name"] == "sessions")
        total += count
    return total


async def keep_forgetting(database: Database, run_days: float, session_days: float | None) -> None:
    """Does both again and again, until it is cancelled."""
    pause = FIRST_SECONDS
    while True:
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        pause = PAUSE_SECONDS
        try:
            await forget_old_runs(database, run_days)
            await delete_expired_sessions(database, session_days)
        except DatabaseError as error:
            _logger.warning("Not all that is old was deleted: %s", error)
