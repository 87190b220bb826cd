"""Runs that lost their process are found and taken over, by whichever process looks first."""

from __future__ import annotations

import asyncio
import logging
import random

from threadkeep.errors import ConflictError, DatabaseError
from threadkeep.failures import log_fault
from threadkeep.runs import Runs

_logger = logging.getLogger("threadkeep")


async def take_over_all(runs: Runs) -> int:
    """Takes over the runs that lost their process, and goes on with turns that are decided.

    Returns:
        How many runs were taken over.

    Raises:
        DatabaseError: It could not be done.
    """
    await runs.end_lost_turns()
    count = 0
    while (run := await runs.take_over()) is not None:
        _logger.warning("Run %s lost its process, and goes on here.", run.run_id)
        count += 1
    await runs.go_on_with_decided()
    return count


async def keep_taking_over(runs: Runs, pause_seconds: float) -> None:
    """Looks now and then, until it is cancelled.

    Args:
        runs: Of this process.
        pause_seconds: Between two looks, on average: replicas do not all look at once.
    """
    while True:
        try:
            await take_over_all(runs)
        except (DatabaseError, ConflictError) as error:
            _logger.warning("Lost runs were not looked for: %s", error)
        except Exception as error:  # noqa: BLE001 - the agent's code is made anew here
            log_fault("Taking over a run", error)
        await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
