"""The runs of a process, and the way to those of others.

A run of this process is followed from memory; one of another process, or of an earlier one, from
the database.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Any

from threadkeep.database import Database
from threadkeep.errors import IdempotencyKeyError, ResponseNotFoundError, ServerStoppingError
from threadkeep.response_events import Event
from threadkeep.run import Run, RunRequest
from threadkeep.run_log import UNFINISHED, find_run, follow_stored, stored_response
from threadkeep.turn_line import TurnLine


class Runs:
    """Starts runs, finds them again, and stops them.

    Args:
        database: Where sessions and runs lie.
        timeout: How long a run may work, in seconds.
    """

    def __init__(self, database: Database, *, timeout: float) -> None:
        self._database = database
        self._timeout = timeout
        self._runs: dict[str, Run] = {}
        self._lines: weakref.WeakValueDictionary[str, TurnLine] = weakref.WeakValueDictionary()
        self._stopping = False

    def start(self, request: RunRequest) -> Run:
        """Starts a run; runs of one session work one after the other, in the order they came.

        Raises:
            ServerStoppingError: Runs are being stopped.
        """
        if self._stopping:
            raise ServerStoppingError
        line = self._lines.setdefault(request.session_id, TurnLine())
        run = Run(request, self._database, line, self._timeout)
        self._runs[run.run_id] = run
        run.on_end(self._forget)
        return run

    async def find(self, owner: str, idempotency_key: str, request_hash: str) -> str | None:
        """The id of the run that an earlier request with this key has started, if there is one.

        Raises:
            IdempotencyKeyError: That was another request.
        """
        rows = await self._database.call(
            "find_run_by_key", owner=owner, idempotency_key=idempotency_key
        )
        if not rows:
            return None
        if rows[0]["request_hash"] != request_hash:
            raise IdempotencyKeyError
        run_id: str = rows[0]["run_id"]
        return run_id

    async def response(self, run_id: str, owner: str) -> dict[str, Any]:
        """A run as the Responses API shows it.

        Raises:
            ResponseNotFoundError: There is no such run of this owner.
        """
        run = self._own(run_id, owner)
        if run is not None:
            return run.response()
        return await stored_response(self._database, run_id, owner)

    async def follow(self, run_id: str, owner: str, after: int) -> AsyncIterator[Event]:
        """A run's events behind a sequence number, to the last, as they come.

        Raises:
            ResponseNotFoundError: There is no such run of this owner; raised before any event.
        """
        run = self._own(run_id, owner)
        if run is not None:
            return run.follow(after)
        await find_run(self._database, run_id, owner)
        return follow_stored(self._database, run_id, owner, after)

    async def ended_at(self, run_id: str, owner: str) -> int | None:
        """The sequence number of the last event of a run that has ended, else None.

        Raises:
            ResponseNotFoundError: There is no such run of this owner.
        """
        if self._own(run_id, owner) is not None:
            return None
        row = await find_run(self._database, run_id, owner)
        return None if row["status"] in UNFINISHED else row["last_seq"]

    async def cancel(self, run_id: str, owner: str) -> dict[str, Any]:
        """Stops a run, wherever it is; what was said stays. One that has ended is left as it is.

        Raises:
            ResponseNotFoundError: There is no such run of this owner.
        """
        run = self._own(run_id, owner)
        if run is not None:
            await run.stop()
            return run.response()
        if await self._database.call("request_cancel", run_id=run_id, owner=owner):
            async for _ in follow_stored(self._database, run_id, owner, -1):
                continue
        return await self.response(run_id, owner)

    async def stop_session(self, session_id: str, owner: str) -> None:
        """Stops the runs of this process that work on a session, or wait for it."""
        runs = [
            run
            for run in self._runs.values()
            if (run.request.session_id, run.request.owner) == (session_id, owner)
        ]
        await asyncio.gather(*(run.stop() for run in runs))

    async def session_of(self, run_id: str, owner: str) -> str:
        """The session of a run.

        Raises:
            ResponseNotFoundError: There is no such run of this owner.
        """
        run = self._own(run_id, owner)
        if run is not None:
            return run.request.session_id
        session_id: str = (await find_run(self._database, run_id, owner))["session_id"]
        return session_id

    async def aclose(self) -> None:
        """Stops all runs of this process, and starts no more; what they said stays."""
        self._stopping = True
        await asyncio.gather(*(run.stop("failed") for run in list(self._runs.values())))

    def _own(self, run_id: str, owner: str) -> Run | None:
        run = self._runs.get(run_id)
        if run is not None and run.request.owner != owner:
            raise ResponseNotFoundError
        return run

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.run_id, None)
