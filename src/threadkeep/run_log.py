"""What runs store: written in batches, and read by whoever follows from elsewhere.

Writing is a run's sign of life as well. A run that stays silent for too long has lost its process;
whoever looks first says so, and what the process may still write is refused.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from threadkeep.admission import LOST_AFTER_MS
from threadkeep.database import Database, Row
from threadkeep.errors import DatabaseError, ResponseNotFoundError, RunLostError
from threadkeep.failures import STOPPED
from threadkeep.history import json_text
from threadkeep.response_events import Event

FLUSH_SECONDS = 0.1
"""How long an event waits at most before it is stored."""

HEARTBEAT_SECONDS = 2.0
"""How often a run that has nothing to store says that it is alive."""

POLL_SECONDS = 0.2
"""How often a follower asks for the events of another process's run."""

UNFINISHED = {"queued", "in_progress"}

_FINAL_EVENTS = {"response.completed", "response.failed", "response.incomplete"}


class RunLog:
    """What one run of this process has stored: its events, and its items behind the input.

    Items wait until something is written anyway, for a tenth of a second at most, or for the end;
    what waits is stored in one round trip.

    Args:
        database: Where.
        run_id: The run.
        session_id: Its session.
        owner: Whose it is; '' is nobody's.
        events: Its events, numbered from 0; the run appends to the list. The first is stored with
            the run itself.
    """

    def __init__(
        self, database: Database, run_id: str, session_id: str, owner: str, events: list[Event]
    ) -> None:
        self._database = database
        self._where = {"run_id": run_id, "session_id": session_id, "owner": owner}
        self._events = events
        self._events_stored = 1
        self._items: list[str] = []
        self._items_stored = 0
        self._writing = asyncio.Lock()

    def add_items(self, items: Sequence[str]) -> None:
        """Takes items that are to be stored, as JSON."""
        self._items += items

    def drop_items(self) -> None:
        """Forgets items that were not stored yet."""
        del self._items[self._items_stored :]

    async def keep_up(self) -> None:
        """Stores what comes. Returns when the run is to stop: it was asked to, or lost."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            waiting = (
                len(self._events) > self._events_stored or len(self._items) > self._items_stored
            )
            if waiting or time.monotonic() - last >= HEARTBEAT_SECONDS:
                last = time.monotonic()
                try:
                    rows = await self._write()
                except DatabaseError:
                    continue  # the next one tries again; the last one tells
                if not rows or rows[0]["cancel_requested"]:
                    return

    async def flush(self) -> None:
        """Stores what is left.

        Raises:
            RunLostError: The run has lost its session; nothing was written.
        """
        if not await self._write():
            raise RunLostError

    async def finish(self, status: str, final: Event) -> None:
        """Stores what is left, the last event and the end of the run, together.

        Raises:
            RunLostError: The run has lost its session; nothing was written.
        """
        if not await self._write(final, status=status):
            raise RunLostError

    async def _write(self, *more: Event, status: str = "") -> list[Row]:
        async with self._writing:
            until, count = len(self._events), len(self._items)
            events = [*self._events[self._events_stored : until], *more]
            rows = await self._database.call(
                "write_run",
                **self._where,
                first_seq=self._events_stored,
                events=[json_text(event) for event in events],
                first_item=self._items_stored,
                items=self._items[self._items_stored : count],
                status=status,
            )
            if rows:
                self._events_stored, self._items_stored = until, count
            return rows


async def find_run(database: Database, run_id: str, owner: str) -> Row:
    """A stored run. One that lost its process is ended first.

    Raises:
        ResponseNotFoundError: There is no such run of this owner.
    """
    row = await _get(database, run_id, owner)
    if row["lost"]:
        await _end_lost(database, row, owner)
        row = await _get(database, run_id, owner)
    return row


async def follow_stored(
    database: Database, run_id: str, owner: str, after: int
) -> AsyncIterator[Event]:
    """The events of a stored run behind a sequence number, to the last, as they are stored.

    Raises:
        ResponseNotFoundError: There is no such run of this owner.
    """
    while True:
        row = await find_run(database, run_id, owner)
        for event in await read_events(database, run_id, owner, after):
            after = event["sequence_number"]
            yield event
        if row["status"] not in UNFINISHED:
            return
        await asyncio.sleep(POLL_SECONDS)


async def stored_response(database: Database, run_id: str, owner: str) -> dict[str, Any]:
    """A stored run as the Responses API shows it.

    Raises:
        ResponseNotFoundError: There is no such run of this owner.
    """
    row = await find_run(database, run_id, owner)
    events = await read_events(database, run_id, owner, -1)
    return _response(events) | {"status": row["status"]}


async def read_events(database: Database, run_id: str, owner: str, after: int) -> list[Event]:
    """The stored events of a run behind a sequence number."""
    rows = await database.call("read_run_events", run_id=run_id, owner=owner, after=after)
    return [json.loads(row["data"]) for row in rows]


async def _get(database: Database, run_id: str, owner: str) -> Row:
    rows = await database.call("get_run", run_id=run_id, owner=owner, stale_after=LOST_AFTER_MS)
    if not rows:
        raise ResponseNotFoundError
    return rows[0]


async def _end_lost(database: Database, row: Row, owner: str) -> None:
    events = await read_events(database, row["run_id"], owner, -1)
    number = len(events)
    response = _response(events) | {
        "status": "failed",
        "error": {"code": STOPPED.code, "message": STOPPED.message},
    }
    event = {"type": "response.failed", "sequence_number": number, "response": response}
    await database.call(
        "end_lost_run",
        run_id=row["run_id"],
        seq=number,
        event=json_text(event),
        stale_after=LOST_AFTER_MS,
    )


def _response(events: list[Event]) -> dict[str, Any]:
    """What a run's events so far say of it."""
    response: dict[str, Any] = {}
    output: dict[int, Any] = {}
    for event in events:
        if "response" in event:
            response = event["response"]
        elif event["type"] == "response.output_item.done":
            output[event["output_index"]] = event["item"]
    if events and events[-1]["type"] in _FINAL_EVENTS:
        return response
    return response | {"output": [item for _, item in sorted(output.items())]}
