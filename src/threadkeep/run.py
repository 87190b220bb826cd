"""One run: the execution of one turn, in a task of its own.

It takes its session, stores the input, lets the SDK's Runner work, and turns what happens into one
numbered stream of events. Whoever asked only follows: a client that goes away stops nothing. Events
are stored in batches, and always before anybody is told that the run has ended.

The Runner works from a journal (replay.py), so a run whose process died can be made again by
another one, with the same id, and goes on where the first one was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from agents import Usage

from threadkeep.admission import Entrant
from threadkeep.checkpoint import VERSION
from threadkeep.database import Database
from threadkeep.errors import (
    AttemptsError,
    DatabaseError,
    ModelError,
    NeedsStoreError,
    NotFoundError,
    RollbackError,
    RunLostError,
    RunStoppedError,
    RunTimeoutError,
    ServerStoppingError,
)
from threadkeep.failures import Failure, describe, is_passing, log_fault
from threadkeep.history import json_text
from threadkeep.journal import InDoubtError
from threadkeep.open_turn import OpenTurn
from threadkeep.replay import journaling
from threadkeep.response_events import Event, ResponseEvents, new_id, usage_json
from threadkeep.run_entry import Entry
from threadkeep.run_log import End, Question, RunLog, RunPlace, in_doubt
from threadkeep.run_request import Limits, RunRequest, TakenOver
from threadkeep.runner_call import RunnerCall
from threadkeep.stored_runs import UNFINISHED, find_run, follow_stored
from threadkeep.turn_line import TurnLine

_logger = logging.getLogger("threadkeep")

_END_EVENTS = {
    "completed": "response.completed",
    "failed": "response.failed",
    "cancelled": "response.incomplete",
    "incomplete": "response.incomplete",
}


class Run:
    """A run of this process: its state, its events, and those who follow them.

    Args:
        request: What to do.
        database: Where the session lies.
        line: The runs of this process that want the session.
        limits: What holds for every run.
        taken_over: What another process had done of it.

    Attributes:
        run_id: `resp_…`, as the Responses API calls it.
        status: `queued`, `in_progress`, `completed`, `failed`, `cancelled` or `incomplete`.
        failure: Why it failed.
        ending: Whether its end is about to be stored: others may know of it before we do.
        finished: Whether its last event was given out.
        left: Whether it goes on, or will, in another process.
        received: Done when it works or waits in the queue; holds the error when it was refused.
    """

    def __init__(
        self,
        request: RunRequest,
        database: Database,
        line: TurnLine,
        limits: Limits,
        taken_over: TakenOver | None = None,
    ) -> None:
        row = taken_over.row if taken_over else {}
        self.request = request
        self.run_id: str = row.get("run_id") or new_id("resp")
        self.status = row.get("status", "queued")
        self.failure: Failure | None = None
        self.left = self.finished = self.ending = False
        self.received: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._database = database
        self._limits = limits
        self._taken_over = taken_over
        self._attempt: int = row.get("attempt", 1)
        self._created_at = row["created_at"] // 1000 if row else int(time.time())
        self._events: list[Event] = list(taken_over.events) if taken_over else []
        self._news = asyncio.Event()
        place = RunPlace(
            self.run_id,
            request.session_id,
            request.owner,
            self._attempt,
            row.get("journal_id") or self.run_id,
        )
        self._log = RunLog(
            database,
            place,
            self._events,
            events_stored=max(1, len(self._events)),
            lost_after_ms=limits.lost_after_ms,
            on_stored=self._wake_followers,
        )
        self._converter = ResponseEvents(self._events)
        self._usage: Usage | None = None
        self._stopped_at: RunnerCall | None = None
        self._end_asked: str | None = None
        self._way_asked = False
        self._storing: asyncio.Task[None] | None = None
        if not self._events:
            self._emit({"type": "response.created", "response": self.response()})
        self._entry = Entry(self, request, self._entrant(), taken_over, database, line, limits)
        self._turn = OpenTurn(request, place, database, self._entry, self._log, self._converter)
        self._turn_task = asyncio.create_task(self._take_turn(), name=f"turn of {self.run_id}")
        self._task = asyncio.create_task(self._work(), name=self.run_id)

    def response(self) -> dict[str, Any]:
        """The run as the Responses API shows it; its end, and why, only when that is stored."""
        return self._shown(self.status)

    def _shown(self, status: str) -> dict[str, Any]:
        request = self.request
        failure = self.failure if status == "failed" else None
        reason = self._converter.incomplete_reason if status == "incomplete" else None
        references = request.recalled()
        recalled = {"recalled": references} if references else {}
        return {
            "id": self.run_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": request.background,
            "error": failure and {"code": failure.code, "message": failure.message},
            "incomplete_details": reason and {"reason": reason},
            "instructions": None,
            "metadata": request.metadata,
            "model": request.model,
            "output": self._converter.output,
            "parallel_tool_calls": True,
            "previous_response_id": request.previous_response_id,
            "conversation": {"id": request.session_id},
            "store": request.store,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": usage_json(self._usage) if self._usage else None,
            "custom_outputs": {"session_id": request.session_id} | recalled,
        }

    async def follow(self, after: int = -1) -> AsyncGenerator[Event, None]:
        """Its events behind a sequence number, to the last, each as soon as it is stored.

        Raises:
            ServerStoppingError: It was handed over, and goes on elsewhere.
        """
        position = after + 1
        while True:
            news = self._news
            while position < self._tellable():
                yield self._events[position]
                position += 1
            if self.finished:
                break
            await news.wait()
        if self._end_asked == "left":
            raise ServerStoppingError
        if self.left:
            where = (self._database, self.run_id, self.request.owner)
            async with aclosing(follow_stored(*where, position - 1)) as stored:
                async for event in stored:
                    yield event

    def _tellable(self) -> int:
        """How many events may be told: another attempt would number others like those lost."""
        if not self.request.store or (self.finished and not self.left):
            return len(self._events)
        return self._log.events_stored

    def on_end(self, callback: Callable[[Run], None]) -> None:
        """Calls back when it has ended and everything was told."""
        self._task.add_done_callback(lambda _: callback(self))

    async def wait(self) -> None:
        """Returns when the run has ended here, however."""
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Ends it now; what was said stays."""
        self._ask_to_stop("cancelled")
        await self.wait()

    async def hand_over(self) -> None:
        """Leaves it to another process, which goes on with it."""
        self._ask_to_stop("left")
        await self.wait()

    def give_way(self, how: str) -> None:
        """Stops for another run: `interrupt` keeps what was said, `rollback` nothing.

        Raises:
            RollbackError: It has called a tool that can't be called again.
        """
        if how == "rollback":
            if self._log.tool_started:
                raise RollbackError
            self._ask_to_stop("rolled back")
        elif self._entry.admitted is not None:
            self._ask_to_stop("cancelled")
        else:
            self._way_asked = True  # its message is kept first

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether somebody wants it to stop."""
        return self._end_asked is not None

    def tell_that_it_waits(self) -> None:
        """Lets its client go on, if that has to wait for no more."""
        if not self.received.done():
            self.received.set_result(None)

    def _ask_to_stop(self, status: str) -> None:
        if self._end_asked is None:
            self._end_asked = status
            if not self._entry.is_under_way:
                self._turn_task.cancel()

    def _emit(self, *events: Event) -> None:
        for event in events:
            self._events.append(event | {"sequence_number": len(self._events)})
        self._wake_followers()

    def _wake_followers(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _work(self) -> None:
        """Watches over the turn. Only the turn is ever cancelled: its end is always told."""
        try:
            await asyncio.wait({self._turn_task})
            if self._storing is not None:
                await self._log.stop_keeping_up(self._storing)
            await self._end(await self._outcome())
        finally:
            self._entry.leave()
            if not self.finished:  # a fault of ours; nobody must wait for ever on top of it
                self.failure = self.failure or describe(RuntimeError())
                self._tell_end("failed")

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(self._limits.timeout) as limit:
                await self._entry.enter()
                self._begin()
                await self._answer()
        except TimeoutError as error:
            if limit.expired():
                raise RunTimeoutError from error
            raise

    async def _outcome(self) -> End | None:
        """How the turn ended; what it leaves behind is put in order. None: it goes on elsewhere."""
        error: BaseException | None = None
        if not self._turn_task.cancelled():
            error = self._turn_task.exception()
        if self._log.lost:
            return None
        try:
            await self._entry.catch_up()
        except DatabaseError:
            return None
        self._turn.begin()
        if self._turn_task.cancelled() or isinstance(error, RunStoppedError):
            return await self._stopped()
        if isinstance(error, InDoubtError):
            return self._park([in_doubt(call) for call in error.calls])
        if error is None and self._stopped_at is not None:
            try:
                checkpoint, questions = self._stopped_at.checkpoint()
            except Exception as fault:  # noqa: BLE001 - the agent's code has a part in it
                return await self._failed(fault)
            return self._park(questions, checkpoint)
        if error is not None:
            return await self._failed(error)
        return End("incomplete" if self._converter.incomplete_reason else "completed")

    async def _stopped(self) -> End | None:
        how = self._end_asked or "cancelled"
        rolls_back = self._log.stop_asked == "rollback" and self._log.must_stop()
        if rolls_back and how == "cancelled":
            how = "rolled back"
        if how == "left":
            return None
        self._emit(*self._converter.stop())
        if how != "rolled back" or not await self._take_back(with_what_was_stored=True):
            self._turn.close()
        return End("cancelled")

    def _park(self, questions: list[Question], checkpoint: str | None = None) -> End:
        """Waits for somebody to decide about calls: in no queue, and with no session."""
        self._emit(*self._converter.stop())
        self._converter.incomplete_reason = "approval_required"
        for question in questions:
            self._emit(*self._converter.add(question.item()))
        self._turn.close(waits_for_approval=checkpoint is not None)
        return End(
            "incomplete",
            open=True,
            questions=questions,
            expiry_ms=self._limits.approval_expiry_ms,
            checkpoint=checkpoint,
            checkpoint_version=VERSION,
        )

    async def _failed(self, error: BaseException) -> End:
        self._fail(error)
        self._emit(*self._converter.stop())
        admitted = self._entry.admitted
        if admitted is None or not self.request.store:
            return End("failed")
        if self._turn.may_be_taken_back and await self._take_back(with_what_was_stored=False):
            return End("failed")
        assert self.failure is not None  # noqa: S101 - set by _fail
        self._turn.close(self.failure.message)
        again = admitted.input_hash if is_passing(error) else None
        return End("failed", open=again is not None, open_hash=again)

    def keep_storing(self) -> None:
        """Begins to store what it says, and to give signs of life."""
        if self.request.store and self._storing is None:
            self._storing = asyncio.create_task(self._log.keep_up())
            self._storing.add_done_callback(self._storing_ended)

    def _storing_ended(self, storing: asyncio.Task[None]) -> None:
        """The log ends by itself when somebody else wants the run to stop, or has taken it over."""
        if not storing.cancelled():
            self._ask_to_stop("cancelled")

    def _entrant(self) -> Entrant:
        request = self.request
        return Entrant(
            run_id=self.run_id,
            session_id=request.session_id,
            owner=request.owner,
            attempt=self._attempt,
            request=request.source,
            request_hash=request.request_hash,
            idempotency_key=request.idempotency_key,
            created=json_text(self._events[0]),
            waits=self._taken_over is not None,
            temporary=int(request.temporary),
        )

    def _begin(self) -> None:
        """Tells that it works."""
        self._turn.begin()
        self.keep_storing()
        self.status = "in_progress"
        if not any(event["type"] == "response.in_progress" for event in self._events):
            self._emit({"type": "response.in_progress", "response": self.response()})
        self.tell_that_it_waits()
        if self._way_asked:
            self._ask_to_stop("cancelled")
        if self._end_asked is not None:
            raise RunStoppedError

    async def _answer(self) -> None:
        if not self.request.store:
            await self._make()
            return
        admitted = self._turn.admitted
        with journaling(
            self._log,
            admitted.journal_id or self.run_id,
            segment=admitted.checkpoint.run_id if admitted.checkpoint else "",
            decisions=self._log.decisions,
            approved_tools=admitted.approved_tools,
            item_bytes=self._limits.item_bytes,
        ):
            await self._make()

    async def _make(self) -> None:
        if self._attempt > self._limits.attempts:
            raise AttemptsError(self._limits.attempts)
        call = await RunnerCall.begin(self.request, self._turn.admitted, self._turn.session)
        try:
            async with aclosing(call.events()) as events:
                async for event in events:
                    self._emit(*self._converter.convert(event))
        finally:
            self._usage = call.usage
        if call.is_interrupted:
            if not self.request.store:
                raise NeedsStoreError
            self._stopped_at = call
        elif not self._converter.output:
            raise ModelError("The model gave no answer.")

    async def _take_back(self, *, with_what_was_stored: bool) -> bool:
        try:
            return await self._turn.take_back(with_what_was_stored=with_what_was_stored)
        except DatabaseError as error:
            self._fail(error)
            return False

    def _fail(self, error: BaseException) -> None:
        self.failure = describe(error)
        if not self.received.done():
            self.received.set_exception(error)
            self.received.exception()  # seen: it is the failure too, and nobody may be waiting
        _logger.warning("Run %s failed: %s", self.run_id, self.failure.code)
        if self.failure.status == 500:
            log_fault(f"The agent of run {self.run_id}", error)

    async def _end(self, end: End | None) -> None:
        """Stores the end, then tells it."""
        if not self._entry.is_stored and not self._entry.may_be_stored:
            if end is None:
                self._fail(ServerStoppingError())
            self._tell_end(end.status if end else "failed")
            return
        try:
            if end is None:
                await self._log.release()
            else:
                self.ending = True
                last = self._final(end.status) | {"sequence_number": len(self._events)}
                await self._log.finish(end, last)
                self._tell_end(end.status)
                return
        except RunLostError as error:
            if not self._entry.is_stored and end is not None:
                self._tell_end(end.status)
                return
            if not await self._goes_on_elsewhere():
                self._fail(error)
                self._tell_end("failed")
                return
            self.failure = None  # that was ours; how it ends is told where it goes on
        except DatabaseError as error:
            self._fail(error)
        self._leave()

    async def _goes_on_elsewhere(self) -> bool:
        try:
            row = await find_run(self._database, self.run_id, self.request.owner)
        except (DatabaseError, NotFoundError):
            return False
        return row["status"] in UNFINISHED or row["finished_at"] is not None

    def _leave(self) -> None:
        """It has not ended, only here: whoever follows it goes on by what is stored."""
        self.left = self.finished = True
        self.status = "in_progress"
        if not self.received.done():
            self.received.set_result(None)
        self._emit()

    def _tell_end(self, status: str) -> None:
        self.status = status
        if not self.received.done():
            self.received.set_result(None)
        self.finished = True
        self._emit(self._final(status))

    def _final(self, status: str) -> Event:
        return {"type": _END_EVENTS[status], "response": self._shown(status)}
