"""How a run gets into its session: behind the runs of its process, and past those of others.

While a statement that stores the run is under way nothing may cancel it: it may be done all the
same, and then nobody would know of a run that is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

from threadkeep.admission import Admitted, Entrant, admit, go_on, look, queue, readmit
from threadkeep.database import Database, Signal
from threadkeep.errors import (
    DatabaseError,
    DuplicateError,
    NotFoundError,
    RollbackError,
    RunLostError,
    RunStoppedError,
    SessionBusyError,
)
from threadkeep.run_request import Limits, RunRequest, TakenOver
from threadkeep.stored_runs import LOOK_SECONDS, find_run
from threadkeep.turn_line import Holder, TurnLine


class Entering(Holder, Protocol):
    """The run that gets in."""

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether it is not to get in any more."""
        ...

    def keep_storing(self) -> None:
        """Begins to give signs of life: others know of it now."""
        ...

    def tell_that_it_waits(self) -> None:
        """Lets its client go on."""
        ...


class Entry:
    """The way of one run into its session.

    Args:
        run: The run.
        request: What it is asked to do.
        entrant: How the database knows it.
        taken_over: What another process had done of it.
        database: Where the session lies.
        line: The runs of this process that want the session.
        limits: What holds for every run.

    Attributes:
        is_stored: Whether the database knows the run.
        may_be_stored: Whether it failed to say so.
        is_under_way: Whether nothing may cancel it now.
        admitted: The turn, once it has begun.
    """

    def __init__(
        self,
        run: Entering,
        request: RunRequest,
        entrant: Entrant,
        taken_over: TakenOver | None,
        database: Database,
        line: TurnLine,
        limits: Limits,
    ) -> None:
        self.is_stored = taken_over is not None
        self.may_be_stored = self.is_under_way = False
        self.admitted: Admitted | None = None
        self._run = run
        self._request = request
        # Whoever decides about a call has sent no message: that pushes nobody.
        self._how = "enqueue" if request.goes_on_from else request.concurrency
        self._entrant = entrant
        self._taken_over = taken_over
        self._database = database
        self._limits = limits
        self._line = line
        self._place = line.enter(run, "" if self._was_at_work else entrant.run_id)
        self._queued = False
        self._freed: Signal | None = None
        self._listening = AsyncExitStack()

    @property
    def _was_at_work(self) -> bool:
        """Whether its turn had begun in another process."""
        return self._taken_over is not None and self._taken_over.row["status"] == "in_progress"

    async def enter(self) -> Admitted:
        """Waits for its turn, and begins it.

        Raises:
            RunStoppedError: It is not to get in any more.
            SessionBusyError: The session is another run's, and this one does not wait.
            RollbackError: That one can't be rolled back.
            QueueFullError: Too many wait already.
            SessionFullError: The session has no room for the input.
            RunLostError: It was taken over, and its session has gone.
        """
        await self._wait_in_line()
        async with self._listening:
            with self._under_way():
                self.admitted = await self._admitted()
                self.is_stored = self._request.store
        return self.admitted

    async def catch_up(self) -> None:
        """Reads the turn of a run that was at work before, and was stopped before it knew.

        Raises:
            DatabaseError: It could not be read.
        """
        if self.admitted is None and self._taken_over is not None and self._was_at_work:
            row = self._taken_over.row
            with contextlib.suppress(RunLostError):  # nothing is there any more
                where = (self._database, self._request.session_id, self._request.owner)
                self.admitted = await readmit(*where, row) if row["has_session"] else None

    def leave(self) -> None:
        """Lets the next run of this process in."""
        self._line.leave(self._place)

    @contextmanager
    def _under_way(self, under_way: bool = True) -> Iterator[None]:
        before, self.is_under_way = self.is_under_way, under_way
        try:
            yield
        except DuplicateError:
            raise
        except DatabaseError:
            self.may_be_stored = self._request.store
            raise
        finally:
            self.is_under_way = before
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._run.is_asked_to_stop:
            raise RunStoppedError

    async def _wait_in_line(self) -> None:
        """Waits for the runs of this process that came before."""
        how, moved = self._how, self._line.moved
        while self._line.before(self._place):
            if how == "reject":
                raise SessionBusyError
            await self._queue()
            if how != "enqueue":
                for holder in self._line.before(self._place):
                    holder.give_way(how)
            self._run.tell_that_it_waits()
            await moved.wait()
            moved = self._line.moved

    async def _queue(self) -> None:
        """Stores a run that has to wait. Only then may it push: what is refused stops nobody."""
        if self._queued:
            return
        request = self._request
        if not request.store:
            await look(self._database, request.session_id, request.owner, request.items)
        elif not self._taken_over:
            with self._under_way():
                await queue(self._database, self._entrant, self._limits.queue)
                self.is_stored = True
        self._queued = True
        self._run.keep_storing()

    async def _on_busy(self, holder: str | None) -> None:
        """Another process has the session, or a run there came before."""
        self._stop_if_asked()
        how = self._how
        if how == "reject":
            raise SessionBusyError
        with self._under_way(False):
            await self._queue()
            if how != "enqueue" and holder is not None and holder != self._entrant.run_id:
                await self._push(holder, how)
            self._run.tell_that_it_waits()
            if self._freed is None:  # listen first, then look once more
                where = self._database.signals(self._request.session_id)
                self._freed = await self._listening.enter_async_context(where)
            else:
                await self._freed.wait(LOOK_SECONDS)

    async def _push(self, holder: str, how: str) -> None:
        """Asks a run of another process to give way.

        Raises:
            RollbackError: It can't be rolled back.
        """
        owner = self._request.owner
        if not await self._database.call("request_stop", run_id=holder, owner=owner, how=how):
            try:
                row = await find_run(self._database, holder, owner)
            except NotFoundError:
                return  # it was deleted meanwhile
            if row["status"] == "in_progress":
                raise RollbackError

    async def _admitted(self) -> Admitted:
        request = self._request
        where = (self._database, request.session_id, request.owner)
        if not request.store:
            return await look(*where, request.items)
        if self._taken_over is not None and self._was_at_work:
            if not self._taken_over.row["has_session"]:
                raise RunLostError
            self._run.keep_storing()
            return await readmit(*where, self._taken_over.row)
        entrant = replace(self._entrant, waits=self.is_stored)
        if request.goes_on_from:
            return await go_on(self._database, entrant, request.goes_on_from, self._on_busy)
        most_items = self._limits.session_items
        return await admit(self._database, entrant, request.items, most_items, self._on_busy)
