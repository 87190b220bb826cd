"""Runs are forgotten some time after their end, so that their events do not become the database.

What was said stays in the sessions; only the run itself, its events and its Idempotency-Key go.
"""

from __future__ import annotations

import asyncio
import logging
import random

from threadkeep.database import Database
from threadkeep.errors import DatabaseError

PAUSE_SECONDS = 3600.0
"""Between two looks, on average: replicas do not all look at once."""

BATCH = 500
"""How many runs are forgotten in one statement, so that nobody waits for it for long."""

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


async def keep_forgetting(database: Database, days: float) -> None:
    """Does so again and again, until it is cancelled."""
    while True:
        await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        try:
            await forget_old_runs(database, days)
        except DatabaseError as error:
            _logger.warning("Old runs were not forgotten: %s", error)
