"""The events of runs in the database: written in batches, read by whoever follows from elsewhere.

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
from threadkeep.errors import DatabaseError, ResponseNotFoundError
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


class EventLog:
    """What one run of this process has stored of its events.

    Args:
        database: Where.
        run_id: The run.
        events: Its events, numbered from 0; the run appends to the list. The first is stored with
            the run itself.
    """

    def __init__(self, database: Database, run_id: str, events: list[Event]) -> None:
        self._database = database
        self._run_id = run_id
        self._events = events
        self._stored = 1

    async def keep_up(self) -> None:
        """Stores events as they come. Returns when the run is to stop: it was asked to, or lost."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            waiting = len(self._events) > self._stored
            if waiting or time.monotonic() - last >= HEARTBEAT_SECONDS:
                last = time.monotonic()
                if await self._flush():
                    return

    async def finish(self, status: str, final: Event) -> None:
        """Stores what is left, the last event and the end of the run, together."""
        await self._write("finish_run", [final], status=status)

    async def _flush(self) -> bool:
        try:
            rows = await self._write("add_run_events")
        except DatabaseError:
            return False  # the next one tries again; the last one tells
        return not rows or bool(rows[0]["cancel_requested"])

    async def _write(self, statement: str, more: Sequence[Event] = (), **values: str) -> list[Row]:
        until = len(self._events)
        events = [*self._events[self._stored : until], *more]
        rows = await self._database.call(
            statement,
            run_id=self._run_id,
            first_seq=self._stored,
            events=[json_text(event) for event in events],
            **values,
        )
        self._stored = until
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
