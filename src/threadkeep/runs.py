"""The runs of a process, and the way to those of others.

A run of this process is followed from memory; one of another process, or of an earlier one, from
the database. Runs that lost their process are taken over, and made again from their journals.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any, NoReturn

from agents import RunConfig

from threadkeep.checkpoint import NEWEST_KNOWN
from threadkeep.database import Database, Row
from threadkeep.errors import (
    ConflictError,
    DuplicateError,
    IdempotencyKeyError,
    NewerCheckpointError,
    ResponseNotFoundError,
    ServerStoppingError,
)
from threadkeep.failures import log_fault
from threadkeep.response_events import Event
from threadkeep.run import Run
from threadkeep.run_request import Limits, OneContext, RunRequest, TakenOver
from threadkeep.stored_runs import (
    UNFINISHED,
    find_run,
    follow_stored,
    read_events,
    stored_response,
)
from threadkeep.turn_line import TurnLine

Restore = Callable[[str, str, Row], RunRequest]
"""Makes the request of a stored run again: of which session and owner, and the run's row."""

_DECIDED_BATCH = 20

_DECIDED_MS = 2_000
"""After how long a turn is gone on with by anybody that whoever decided has not gone on with, since
it has died or is a command. When both do at once, one of them finds that it is done."""


def continuation_key(run_id: str) -> str:
    """The Idempotency-Key of the run that takes up another one's turn, which is done once.

    No client can send it.
    """
    return f"\x01{run_id}"


class Runs:
    """Starts runs, finds them again, and stops them.

    Args:
        database: Where sessions and runs lie.
        limits: What holds for every run.
        restore: Makes the request of a run again that another process had begun.
    """

    def __init__(self, database: Database, limits: Limits, restore: Restore) -> None:
        self._database = database
        self._limits = limits
        self._restore = restore
        self._runs: dict[str, Run] = {}
        self._lines: weakref.WeakValueDictionary[tuple[str, str], TurnLine] = (
            weakref.WeakValueDictionary()
        )
        self._stopping = False

    @property
    def ids(self) -> list[str]:
        """The runs that are at work here, or wait."""
        return list(self._runs)

    @property
    def is_stopping(self) -> bool:
        """Whether no more runs are started, and those at work are handed over."""
        return self._stopping

    def start(self, request: RunRequest) -> Run:
        """Starts a run; runs of one session work one after the other, in the order they came.

        Raises:
            ServerStoppingError: Runs are being stopped.
        """
        if self._stopping:
            raise ServerStoppingError
        return self._start(request, None)

    def _start(self, request: RunRequest, taken_over: TakenOver | None) -> Run:
        # A stranger who names the session must not stand in line with its owner, nor push.
        line = self._lines.setdefault((request.owner, request.session_id), TurnLine())
        run = Run(request, self._database, line, self._limits, taken_over)
        self._runs[run.run_id] = run
        run.on_end(self._forget)
        return run

    async def take_over(self) -> Run | None:
        """Takes over a run that lost its process, if there is one.

        Raises:
            DatabaseError: It could not be done.
        """
        if self._stopping:
            return None
        rows = await self._database.call(
            "claim_lost_run",
            stale_after=self._limits.lost_after_ms,
            checkpoint_version=NEWEST_KNOWN,
            own=self.ids,
        )
        if not rows:
            return None
        row = rows[0]
        events = await read_events(self._database, row["run_id"], row["owner"], -1)
        return self._start(self._restored(row), TakenOver(row, events))

    def _restored(self, row: Row) -> RunRequest:
        try:
            return self._restore(row["session_id"], row["owner"], row)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run fails by it
            log_fault(f"Making run {row['run_id']} again", error)
            return _unmakable(row, error)

    async def end_lost_turns(self) -> None:
        """Frees sessions of what only a process that has died could have gone on with.

        Raises:
            DatabaseError: It could not be done.
        """
        await self._database.call(
            "end_lost_turns",
            session_id="",
            stale_after=self._limits.lost_after_ms,
            given_up_after=None,
        )

    async def go_on_with_decided(self) -> list[Run]:
        """Goes on with turns whose approvals are all decided, and nobody went on with.

        Raises:
            DatabaseError: It could not be done.
        """
        rows = await self._database.call(
            "list_decided_runs",
            stale_after=min(_DECIDED_MS, self._limits.lost_after_ms),
            checkpoint_version=NEWEST_KNOWN,
            limit=_DECIDED_BATCH,
        )
        runs = []
        for row in rows:
            with contextlib.suppress(ConflictError, DuplicateError):  # somebody else was faster
                runs.append(await self.go_on_with(row["run_id"], row["owner"]))
        return runs

    async def go_on_with(self, run_id: str, owner: str) -> Run:
        """Takes up the turn of a run that has ended before the turn was done, in a new run.

        Raises:
            ResponseNotFoundError: There is no such run of this owner.
            TurnGoneError: Its session has gone on.
            DuplicateError: Somebody went on with it already.
            NewerCheckpointError: A newer release has stopped it.
        """
        row = await find_run(self._database, run_id, owner)
        if row["checkpoint_version"] > NEWEST_KNOWN:
            raise NewerCheckpointError
        request = self._restore(row["session_id"], owner, dict(row) | {"goes_on_from": run_id})
        run = self.start(request)
        await asyncio.shield(run.received)
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
        if run is not None and run.ending:
            await run.wait()  # whoever asks may have seen its end in the database
        if run is not None and not run.left:
            return run.response()
        return await stored_response(self._database, run_id, owner)

    async def follow(self, run_id: str, owner: str, after: int) -> AsyncGenerator[Event, None]:
        """A run's events behind a sequence number, to the last, as they come.

        Raises:
            ResponseNotFoundError: There is no such run of this owner; raised before any event.
        """
        run = self._own(run_id, owner)
        if run is not None:
            return run.follow(after)
        await find_run(self._database, run_id, owner)
        return follow_stored(self._database, run_id, owner, after, lambda: self._stopping)

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
        """Stops a run, wherever it is; what was said stays. One that has ended is left as it is,
        but nobody can decide any more what it waits for.

        Raises:
            ResponseNotFoundError: There is no such run of this owner.
        """
        run = self._own(run_id, owner)
        if run is not None:
            await run.stop()
            waits = run.status == "incomplete" and run.request.store
            if not run.left and not waits:
                return run.response()
        while True:
            if await self._database.call("request_stop", run_id=run_id, owner=owner, how="cancel"):
                async for _ in follow_stored(self._database, run_id, owner, -1):
                    continue
            # It may have begun to wait for somebody just as it was to stop.
            await self._database.call("close_approvals", run_id=run_id, owner=owner)
            response = await stored_response(self._database, run_id, owner)
            if response["status"] not in UNFINISHED:  # else it was stored just now
                return response

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

    async def aclose(self, grace_seconds: float = 0) -> None:
        """Starts no more runs, lets those of this process end, and hands over what is left then.

        Args:
            grace_seconds: How long they may take.
        """
        self._stopping = True
        runs = list(self._runs.values())
        if runs and grace_seconds:
            ends = {asyncio.ensure_future(run.wait()) for run in runs}
            await asyncio.wait(ends, timeout=grace_seconds)
        await asyncio.gather(*(run.hand_over() for run in list(self._runs.values())))

    def _own(self, run_id: str, owner: str) -> Run | None:
        run = self._runs.get(run_id)
        if run is not None and run.request.owner != owner:
            raise ResponseNotFoundError
        return run

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]


def _unmakable(row: Row, error: Exception) -> RunRequest:
    """The request of a run that can't be made again, so that it ends as failed."""

    def raise_it() -> NoReturn:
        raise error

    return RunRequest(
        session_id=row["session_id"],
        owner=row["owner"],
        items=[],
        make_agent=raise_it,
        contexts=OneContext(),
        run_config=RunConfig(tracing_disabled=True),
        model="",
        source=row["request"],
        request_hash=row["request_hash"],
        idempotency_key=row["idempotency_key"],
    )
