"""One run: the execution of one turn, in a task of its own.

It takes its session, stores the input, lets the SDK's Runner work, and turns what happens into one
numbered stream of events. Whoever asked only follows: a client that goes away stops nothing. Events
are stored in batches, and always before anybody is told that the run has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from agents import Agent, RunConfig, Runner, RunResultStreaming, TResponseInputItem, Usage
from agents.run_error_handlers import RunErrorHandlerInput, RunErrorHandlerResult

from threadkeep.admission import Admitted, admit, look, take_back
from threadkeep.database import Database
from threadkeep.errors import (
    DatabaseError,
    ModelError,
    RunLostError,
    RunTimeoutError,
    SessionNotFoundError,
)
from threadkeep.failures import STOPPED, Failure, describe, log_fault
from threadkeep.history import json_text
from threadkeep.response_events import Event, ResponseEvents, new_id, usage_json
from threadkeep.run_log import RunLog
from threadkeep.session import Session
from threadkeep.turn import TurnSession
from threadkeep.turn_line import TurnLine

_logger = logging.getLogger("threadkeep")

_END_EVENTS = {
    "completed": "response.completed",
    "failed": "response.failed",
    "cancelled": "response.incomplete",
    "incomplete": "response.incomplete",
}


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do.

    Args:
        session_id: The conversation it belongs to.
        owner: Whose it is; '' is nobody's.
        items: The input, in Responses form.
        agent: Who answers.
        context: The SDK's context, for tools and instructions.
        run_config: The SDK's settings of the run.
        model: The name of the model, for the reply.
        store: False: nothing of it is written anywhere.
        background: Whether the client said that it comes back for the answer.
        metadata: The client's own, given back in the reply.
        previous_response_id: The response it follows, given back in the reply.
        idempotency_key: What the client names the request by, so that a repeat does nothing.
        request_hash: Of all that the client has sent.
    """

    session_id: str
    owner: str
    items: list[TResponseInputItem]
    agent: Agent[Any]
    context: Any
    run_config: RunConfig
    model: str
    store: bool = True
    background: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    previous_response_id: str | None = None
    idempotency_key: str | None = None
    request_hash: str = ""


class Run:
    """A run of this process: its state, its events, and those who follow them.

    Args:
        request: What to do.
        database: Where the session lies.
        line: The runs of this process that want the session.
        timeout: How long it may work, in seconds.

    Attributes:
        run_id: `resp_…`, as the Responses API calls it.
        status: `queued`, `in_progress`, `completed`, `failed`, `cancelled` or `incomplete`.
        failure: Why it failed.
        finished: Whether its last event was given out.
        received: Done when it works or waits in the queue; holds the error when it was refused.
    """

    def __init__(
        self, request: RunRequest, database: Database, line: TurnLine, timeout: float
    ) -> None:
        self.request = request
        self.run_id = new_id("resp")
        self.status = "queued"
        self.failure: Failure | None = None
        self.received: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._database = database
        self._timeout = timeout
        self._created_at = int(time.time())
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._log = RunLog(database, self.run_id, request.session_id, request.owner, self._events)
        self._converter = ResponseEvents()
        self._usage: Usage | None = None
        self._admitted: Admitted | None = None
        self._session: TurnSession | None = None
        self._end_asked: str | None = None
        self._storing: asyncio.Task[None] | None = None
        self.finished = False
        self._emit({"type": "response.created", "response": self.response()})
        self._line = line
        self._place = line.enter()
        self._turn_task = asyncio.create_task(self._take_turn(), name=f"turn of {self.run_id}")
        self._task = asyncio.create_task(self._work(), name=self.run_id)

    def response(self) -> dict[str, Any]:
        """The run as the Responses API shows it."""
        request, failure = self.request, self.failure
        reason = self._converter.incomplete_reason if self.status == "incomplete" else None
        return {
            "id": self.run_id,
            "object": "response",
            "created_at": self._created_at,
            "status": self.status,
            "background": request.background,
            "error": failure and {"code": failure.code, "message": failure.message},
            "incomplete_details": reason and {"reason": reason},
            "instructions": None,
            "metadata": request.metadata,
            "model": request.model,
            "output": list(self._converter.output),
            "parallel_tool_calls": True,
            "previous_response_id": request.previous_response_id,
            "conversation": {"id": request.session_id},
            "store": request.store,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": usage_json(self._usage) if self._usage else None,
            "custom_outputs": {"session_id": request.session_id},
        }

    async def follow(self, after: int = -1) -> AsyncIterator[Event]:
        """Its events behind a sequence number, to the last, as they come."""
        position = after + 1
        while True:
            news = self._news
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self.finished:
                return
            await news.wait()

    def on_end(self, callback: Callable[[Run], None]) -> None:
        """Calls back when it has ended and everything was told."""
        self._task.add_done_callback(lambda _: callback(self))

    async def wait(self) -> None:
        """Returns when the run has ended, however."""
        await asyncio.shield(self._task)

    async def stop(self, status: str = "cancelled") -> None:
        """Ends it now; what was said stays. `failed` when it is the server that stops."""
        self._ask_to_stop(status)
        await self.wait()

    def _ask_to_stop(self, status: str) -> None:
        if self._end_asked is None:
            self._end_asked = status
            self._turn_task.cancel()

    def _emit(self, *events: Event) -> None:
        for event in events:
            self._events.append(event | {"sequence_number": len(self._events)})
        self._news.set()
        self._news = asyncio.Event()

    async def _work(self) -> None:
        """Watches over the turn. Only the turn is ever cancelled: its end is always told."""
        try:
            await asyncio.wait({self._turn_task})
            await self._stop_storing()
            await self._end(await self._outcome())
        finally:
            self._line.leave(self._place)
            if not self.finished:  # a fault of ours; nobody must wait for ever on top of it
                self.failure = self.failure or describe(RuntimeError())
                self._tell_end("failed")

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                if not self._place.done():
                    await self._tell_that_it_waits()
                await self._place
                await self._admit()
                await self._answer()
        except TimeoutError as error:
            if limit.expired():
                raise RunTimeoutError from error
            raise

    async def _outcome(self) -> str:
        """The status that the turn ended with; what it leaves behind is put in order."""
        if self._turn_task.cancelled():
            if self._end_asked != "cancelled":
                self.failure = STOPPED
            self._keep_what_was_said()
            return "failed" if self.failure else "cancelled"
        error = self._turn_task.exception()
        if error is not None:
            self._fail(error)
            await self._take_back()
            return "failed"
        return "incomplete" if self._converter.incomplete_reason else "completed"

    def _start_storing(self) -> None:
        if self.request.store and self._storing is None:
            self._storing = asyncio.create_task(self._log.keep_up())
            self._storing.add_done_callback(self._storing_ended)

    async def _stop_storing(self) -> None:
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)

    def _storing_ended(self, storing: asyncio.Task[None]) -> None:
        """The log ends by itself only when somebody else ended this run."""
        if not storing.cancelled():
            self._ask_to_stop("cancelled")

    async def _tell_that_it_waits(self) -> None:
        """Makes a run that has to wait known to other processes, and its client go on."""
        if self.received.done():
            return
        request = self.request
        if not request.store:
            await look(self._database, request.session_id, request.owner, request.items)
        elif await self._database.call(
            "queue_run",
            run_id=self.run_id,
            session_id=request.session_id,
            owner=request.owner,
            idempotency_key=request.idempotency_key,
            request_hash=request.request_hash,
            created=json_text(self._events[0]),
        ):
            self._start_storing()
        else:
            raise SessionNotFoundError
        self.received.set_result(None)

    async def _admit(self) -> None:
        request = self.request
        where = (self._database, request.session_id, request.owner)
        if request.store:
            self._admitted = await admit(
                *where,
                self.run_id,
                request.items,
                idempotency_key=request.idempotency_key,
                request_hash=request.request_hash,
                created=json_text(self._events[0]),
                on_busy=self._tell_that_it_waits,
            )
        else:
            self._admitted = await look(*where, request.items)
        self._session = TurnSession(
            Session(request.session_id, database=self._database, owner=request.owner or None),
            self._admitted.base,
            self._log if request.store else None,
        )
        self._start_storing()
        self.status = "in_progress"
        self._emit({"type": "response.in_progress", "response": self.response()})
        if not self.received.done():
            self.received.set_result(None)

    async def _answer(self) -> None:
        assert self._admitted is not None  # noqa: S101 - admitted before
        agent = self.request.agent
        result = Runner.run_streamed(
            agent,
            self._admitted.input,
            context=self.request.context,
            run_config=self.request.run_config,
            session=self._session,
            error_handlers=None if agent.output_type else {"model_refusal": _refusal},
        )
        try:
            async for event in result.stream_events():
                self._emit(*self._converter.convert(event))
        except BaseException:
            await _stop_runner(result)
            raise
        finally:
            self._usage = result.context_wrapper.usage
        if result.interruptions:
            self._converter.incomplete_reason = "approval_required"
        elif not self._converter.output:
            raise ModelError("The model gave no answer.")

    def _keep_what_was_said(self) -> None:
        """A turn that was stopped keeps what the agent had said and the Runner had not stored."""
        self._emit(*self._converter.stop())
        if self._session is None or not self.request.store:
            return
        self._session.append(self._converter.messages()[self._session.messages_added :])

    async def _take_back(self) -> None:
        """A turn that failed before a tool had started leaves the session as it was."""
        self._emit(*self._converter.stop())
        if self._admitted is None or self._converter.tool_started or not self.request.store:
            return
        request = self.request
        self._log.drop_items()
        try:
            await take_back(
                self._database, request.session_id, request.owner, self.run_id, self._admitted
            )
        except DatabaseError as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = describe(error)
        if not self.received.done():
            self.received.set_exception(error)
            self.received.exception()  # seen: it is the failure too, and nobody may be waiting
        _logger.warning("Run %s failed: %s", self.run_id, self.failure.code)
        if self.failure.status == 500:
            log_fault(f"The agent of run {self.run_id}", error)

    async def _end(self, status: str) -> None:
        """Stores the end, then tells it."""
        if self.request.store:
            self.status = status
            final = self._final() | {"sequence_number": len(self._events)}
            try:
                await self._log.finish(status, final)
            except (DatabaseError, RunLostError) as error:
                self._fail(error)
                status = "failed"
        self._tell_end(status)

    def _tell_end(self, status: str) -> None:
        self.status = status
        if not self.received.done():
            self.received.set_result(None)
        self.finished = True
        self._emit(self._final())

    def _final(self) -> Event:
        return {"type": _END_EVENTS[self.status], "response": self.response()}


async def _stop_runner(result: RunResultStreaming) -> None:
    """Ends the Runner's own tasks, and waits until they are gone."""
    result.cancel()
    # What it raises is known already, or is of no use to anybody any more.
    await asyncio.gather(_drain(result), return_exceptions=True)


async def _drain(result: RunResultStreaming) -> None:
    async for _ in result.stream_events():
        continue


def _refusal(data: RunErrorHandlerInput[Any]) -> RunErrorHandlerResult:
    """A refusal is an answer like any other: the user is told, and the session keeps it."""
    return RunErrorHandlerResult(getattr(data.error, "refusal", None), include_in_history=False)
