"""A turn of a session in a library: it has the session for itself, and is stored whole or not.

What the turn adds waits in memory and is stored with its end, in one write. While it lasts its
process gives signs of life; without them the session is free after a while, and nothing of the turn
is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field

from agents import TResponseInputItem

from threadkeep.database import Database, Row
from threadkeep.errors import (
    InvalidInputError,
    RunLostError,
    SessionFullError,
    SessionNotFoundError,
)
from threadkeep.history import absorb, cache_of, new_epoch
from threadkeep.limits import MAX_SESSION_ITEMS
from threadkeep.response_events import new_id
from threadkeep.run_log import LOST_AFTER_MS, End, RunLog, RunPlace
from threadkeep.stored_runs import LOOK_SECONDS
from threadkeep.titles import title_of

GIVEN_UP_AFTER_MS = 60_000
"""After how long without a sign of life the run of a server counts as one that no server takes up,
in milliseconds."""

MAX_WAITING = 10_000
"""How many turns may wait for one session."""


@dataclass
class Turn:
    """A turn at work.

    Args:
        database: Where its session lies.
        session_id: The session.
        owner: Whose it is; '' is nobody's.
        added: What it has added so far, as JSON.
    """

    database: Database
    session_id: str
    owner: str
    added: list[str] = field(default_factory=list)

    def items(self) -> list[TResponseInputItem]:
        """What it has added so far; fresh objects."""
        return [json.loads(text) for text in self.added]


_turns: ContextVar[tuple[Turn, ...]] = ContextVar("threadkeep_turns", default=())


def current_turn(database: Database, session_id: str, owner: str) -> Turn | None:
    """The turn of a session in which this code runs."""
    for turn in _turns.get():
        if (turn.database, turn.session_id, turn.owner) == (database, session_id, owner):
            return turn
    return None


@asynccontextmanager
async def hold_turn(database: Database, session_id: str, owner: str) -> AsyncIterator[Turn]:
    """Takes a session, waiting for whoever has it; stores what the turn has added at its end.

    Raises:
        InvalidInputError: This code runs in a turn of the session already.
        SessionNotFoundError: The session is another owner's.
        SessionFullError: The session has as many items as it may.
        RunLostError: The process gave no sign of life for too long, or the session was deleted;
            nothing was stored.
    """
    if current_turn(database, session_id, owner) is not None:
        raise InvalidInputError("A turn of this session is at work here. Turns can't be nested.")
    turn = Turn(database, session_id, owner)
    run_id = new_id("turn")
    log = RunLog(database, RunPlace(run_id, session_id, owner, 1, run_id), [], events_stored=0)
    taking = _Taking(turn, run_id, log)
    living = asyncio.create_task(_stay_alive(log, taking), name=run_id)
    status, begun = "failed", None
    try:
        begun = await taking.begin()
        token = _turns.set((*_turns.get(), turn))
        try:
            yield turn
        finally:
            _turns.reset(token)
        status = "completed"
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
        if begun is not None and status == "completed":
            log.add_items(turn.added)
            await log.finish(End(status, title=title_of(turn.items())))
        elif taking.is_stored:
            with contextlib.suppress(RunLostError):  # there is nothing to undo then
                await _undo(turn, run_id, begun)
                await log.finish(End(status))


async def _stay_alive(log: RunLog, taking: _Taking) -> None:
    await taking.stored.wait()
    await log.keep_up()


async def _undo(turn: Turn, run_id: str, begun: Row | None) -> None:
    """Removes the session again that the turn had made."""
    if begun is not None:
        await turn.database.call(
            "take_back_turn",
            session_id=turn.session_id,
            owner=turn.owner,
            run_id=run_id,
            attempt=1,
            epoch=begun["epoch"],
            seq=begun["head"],
            keep=begun["head"],
            fork_id="",
            made=int(begun["made"]),
            new_epoch=new_epoch(),
        )


class _Taking:
    """How a turn gets its session.

    Attributes:
        stored: Set when other processes know of it.
    """

    def __init__(self, turn: Turn, run_id: str, log: RunLog) -> None:
        self.stored = asyncio.Event()
        self._turn = turn
        self._log = log
        self._run = {
            "run_id": run_id,
            "session_id": turn.session_id,
            "owner": turn.owner,
            "request": None,
            "request_hash": "",
            "idempotency_key": None,
            "created": "",
        }

    @property
    def is_stored(self) -> bool:
        """Whether other processes know of it."""
        return self.stored.is_set()

    async def begin(self) -> Row:
        """Waits until the session is free, and takes it."""
        begun = await self._try()
        if begun is None:
            async with self._turn.database.signals(self._turn.session_id) as freed:
                while begun is None:
                    await self._queue()
                    begun = await self._try()
                    if self._log.lost:  # this process was silent for too long
                        raise RunLostError
                    if begun is None:
                        await freed.wait(LOOK_SECONDS)
        self.stored.set()
        return begun

    async def _try(self) -> Row | None:
        turn, first_epoch = self._turn, new_epoch()
        known = cache_of(turn.database).get(turn.session_id, turn.owner)
        rows = await turn.database.call(
            "begin_turn",
            **self._run,
            attempt=1,
            waits=self.is_stored,
            temporary=0,
            items=[],
            input_hash="",
            title=None,
            fork_id="",
            room_until=MAX_SESSION_ITEMS - 1,
            **asdict(known.position),
            new_epoch=first_epoch,
        )
        row = rows[0]
        if not row["owned"]:
            raise SessionNotFoundError
        if row["busy"] and row["full"]:
            raise SessionFullError(MAX_SESSION_ITEMS)
        if row["busy"]:
            return None
        if len(rows) == row["head"] - row["base"]:  # else it could not see what came meanwhile
            absorb(turn.database, turn.session_id, turn.owner, known, rows)
        return {"epoch": row["epoch"], "head": row["head"], "made": row["epoch"] == first_epoch}

    async def _queue(self) -> None:
        """Takes a place in the queue, and sees that nobody who has died stands before it."""
        await self._turn.database.call(
            "end_lost_turns",
            session_id=self._turn.session_id,
            stale_after=LOST_AFTER_MS,
            given_up_after=GIVEN_UP_AFTER_MS,
        )
        if not self.is_stored:
            if not await self._turn.database.call("queue_run", **self._run, limit=MAX_WAITING):
                raise SessionNotFoundError
            self.stored.set()
