"""What one run has stored: events, items and the steps of its journal, in one write each time.

Writing is a run's sign of life as well, and brings back what others ask of it. Events and items
wait for a twentieth of a second at most; a step of the journal is stored at once, and takes along
what waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

from threadkeep.database import Database
from threadkeep.errors import DatabaseError, RunLostError, RunStoppedError
from threadkeep.history import json_text
from threadkeep.journal import Decision, ModelStep, ToolStep
from threadkeep.response_events import Event, new_id
from threadkeep.stored_runs import Steps

FLUSH_SECONDS = 0.05
"""How long an event waits at most before it is stored."""

LOST_AFTER_MS = 10_000
"""A run without a sign of life for so long has lost its process, in milliseconds."""

_SIGNS_OF_LIFE = 5
"""How many there are in that time, when there is nothing else to store."""


@dataclass(frozen=True)
class RunPlace:
    """Which run writes, and where.

    Args:
        run_id: The run.
        session_id: Its session.
        owner: Whose it is; '' is nobody's.
        attempt: The how manieth process it is that works on it, from 1.
        journal_id: The run whose steps it goes on from; its own id when it began.
    """

    run_id: str
    session_id: str
    owner: str
    attempt: int
    journal_id: str


@dataclass(frozen=True)
class Question:
    """A call that somebody has to decide about.

    Args:
        approval_id: Names it.
        kind: `in_doubt`: it may have happened. `needs_approval`: it was not made.
        key: Its place: in the journal, or among those that the Runner waits for.
        call: Its `call_id`, `name` and `arguments`; of one that needs approval also the `agent`,
            and the MCP `server` it is of.
    """

    approval_id: str
    kind: Literal["in_doubt", "needs_approval"]
    key: str
    call: Mapping[str, Any]

    def item(self) -> dict[str, Any]:
        """It as the Responses API asks for an approval."""
        return {
            "id": self.approval_id,
            "type": "mcp_approval_request",
            "server_label": self.call.get("server") or self.kind,
            "name": self.call["name"],
            "arguments": self.call["arguments"],
        }


@dataclass(frozen=True)
class End:
    """How a run ends.

    Args:
        status: `completed`, `failed`, `cancelled` or `incomplete`.
        open: Whether another run can go on with its turn.
        open_hash: Of the input that does so when it is sent again; None: only a decision does.
        questions: What somebody has to decide, all of one kind.
        expiry_ms: For how long they may, in milliseconds.
        checkpoint: Where the Runner has stopped, as JSON text.
        checkpoint_version: Of that.
        title: Of its session, if that has none.
    """

    status: str
    open: bool = False
    open_hash: str | None = None
    questions: Sequence[Question] = ()
    expiry_ms: int = 0
    checkpoint: str | None = None
    checkpoint_version: int = 0
    title: str | None = None


class RunLog:
    """Stores what a run of this process says and does. It is the journal of its Runner call.

    Args:
        database: Where.
        place: The run.
        events: Its events, numbered from 0; the run appends to the list.
        events_stored: How many of them are stored, or will be with the run itself.
        lost_after_ms: How long it may be silent, in milliseconds.
        on_stored: Called each time that something was stored.

    Attributes:
        events_stored: How many events are stored.
        stop_asked: What somebody elsewhere wants: `cancel`, `interrupt`, `rollback`; '' nothing.
        lost: Whether the run is not ours any more.
        tool_started: Whether a tool was called that can't be called again.
        decisions: What was decided about calls in doubt.
        events_stored: How many events are stored, or will be with the run itself.
    """

    def __init__(
        self,
        database: Database,
        place: RunPlace,
        events: list[Event],
        *,
        events_stored: int = 1,
        lost_after_ms: int = LOST_AFTER_MS,
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        self.stop_asked = ""
        self.lost = False
        self.tool_started = False
        self.decisions: Mapping[str, Decision] = {}
        self._database = database
        self._place = place
        self._events = events
        self.events_stored = events_stored
        self._items: list[str] = []
        self._items_stored = 0
        self._earlier = Steps()
        self._models: list[ModelStep] = []
        self._tools: dict[str, ToolStep] = {}
        self._calls: dict[str, ToolStep] = {}
        self._lost_after_ms = lost_after_ms
        self._on_stored = on_stored
        self._silence = lost_after_ms / 1000 / _SIGNS_OF_LIFE
        self._added = self._stored = 0
        self._last_write = time.monotonic()
        self._writing = asyncio.Lock()
        self._written = asyncio.Event()

    def go_on_from(self, journal_id: str, steps: Steps) -> None:
        """Takes in the steps of earlier attempts, before the Runner begins."""
        self._place = replace(self._place, journal_id=journal_id)
        self._earlier = steps
        self._calls = dict(steps.tools)
        self.tool_started = any(not step.repeatable for step in steps.tools.values())
        self.decisions = steps.decisions()

    def add_items(self, items: Sequence[str]) -> None:
        """Takes items that are to be stored, as JSON."""
        self._items += items

    def drop_items(self) -> None:
        """Forgets items that were not stored yet."""
        del self._items[self._items_stored :]

    def model_step(self, key: str) -> ModelStep | None:
        """What an earlier attempt was answered there."""
        return self._earlier.models.get(key)

    def tool_step(self, key: str) -> ToolStep | None:
        """What an earlier attempt had called there."""
        return self._earlier.tools.get(key)

    def last_call(self, call_id: str) -> ToolStep | None:
        """The newest call with an id, among those of the run's own agent.

        That of an agent has no step before its end, but those of what the agent did.
        """
        for step in reversed(self._calls.values()):
            own, inner = _places(step)
            if own.endswith(f":{quote(call_id, safe=' /')}"):
                return replace(step, status="intended", output="") if inner else step
        return None

    def own_calls(self) -> list[ToolStep]:
        """The calls of the run's own agent, in order."""
        return [step for step in self._calls.values() if not _places(step)[1]]

    async def record_model(self, step: ModelStep, intents: Sequence[ToolStep]) -> None:
        """Stores an answer of a model, and the calls that follow from it.

        Raises:
            RunLostError: The run is another process's now; nothing was written.
            RunStoppedError: It was stored, and the run is to stop before anything follows.
            DatabaseError: It could not be stored.
        """
        self._models.append(step)
        self._added += 1
        for intent in intents:
            self._put(intent)
        await self._store_now()
        self._go_on(intents)

    async def record_tool(self, step: ToolStep) -> None:
        """Stores a call of a tool, or how it ended. Raises as `record_model` does.

        While others of the same answer are at work nobody waits for this one, so what ends at about
        the same time is stored together.
        """
        self._put(step)
        wanted = self._added
        if step.status != "intended" and self._has_siblings(step):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    while self._stored < wanted:
                        await self._written.wait()
        await self._store_now(wanted)
        self._go_on([step] if step.status == "intended" else [])

    def _put(self, step: ToolStep) -> None:
        self._tools[step.key] = self._calls[step.key] = step
        self._added += 1

    def _has_siblings(self, step: ToolStep) -> bool:
        answer = step.key.rpartition(":")[0]
        return any(
            other.status == "intended" and other.key.rpartition(":")[0] == answer
            for other in self._calls.values()
        )

    def _go_on(self, intents: Sequence[ToolStep]) -> None:
        """Lets the calls be made whose intent is stored, unless the run is to stop."""
        if self.must_stop():
            raise RunStoppedError
        self.tool_started = self.tool_started or any(not step.repeatable for step in intents)

    def must_stop(self) -> bool:
        """Whether somebody asked for what can be done still."""
        return self.stop_asked not in ("", "rollback") or (
            self.stop_asked == "rollback" and not self.tool_started
        )

    async def keep_up(self) -> None:
        """Stores what comes. Returns when the run is to stop: it was asked to, or lost."""
        while True:
            await asyncio.sleep(min(FLUSH_SECONDS, self._silence))
            try:
                async with self._writing:
                    if not self._has_news():
                        continue
                    await self._write_locked()
            except RunLostError:
                return
            except DatabaseError:
                continue  # the next one tries again; the last one tells
            if self.must_stop():
                return
            if self.stop_asked:
                await self._refuse_rollback()

    def _has_news(self) -> bool:
        return (
            self._stored < self._added
            or len(self._events) > self.events_stored
            or len(self._items) > self._items_stored
            or time.monotonic() - self._last_write >= self._silence
        )

    async def stop_keeping_up(self, keeping: asyncio.Task[None]) -> None:
        """Ends `keep_up`, but not in the middle of a write, which may be done all the same."""
        async with self._writing:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def flush(self) -> None:
        """Stores what is left.

        Raises:
            RunLostError: The run is another process's now; nothing was written.
        """
        await self._write()

    async def finish(self, end: End, *final: Event) -> None:
        """Stores what is left, the last event and the end of the run, together.

        Raises:
            RunLostError: The run is another process's now; nothing was written.
        """
        await self._write(final, end)

    async def release(self) -> None:
        """Stores what is left, and gives the run to whoever takes it over.

        Raises:
            RunLostError: The run is another process's already.
        """
        await self._write()
        place = self._place
        await self._database.call(
            "release_run",
            run_id=place.run_id,
            session_id=place.session_id,
            owner=place.owner,
            attempt=place.attempt,
            stale_after=self._lost_after_ms,
        )

    async def _refuse_rollback(self) -> None:
        self.stop_asked = ""
        with contextlib.suppress(DatabaseError):  # else it is asked for again
            await self._database.call(
                "refuse_rollback",
                run_id=self._place.run_id,
                owner=self._place.owner,
                attempt=self._place.attempt,
            )

    async def _store_now(self, wanted: int | None = None) -> None:
        """Stores what was added, in one write with what others add meanwhile."""
        wanted = self._added if wanted is None else wanted
        while self._stored < wanted:
            async with self._writing:
                if self._stored < wanted:
                    await self._write_locked()

    async def _write(self, more: Sequence[Event] = (), end: End | None = None) -> None:
        async with self._writing:
            await self._write_locked(more, end)

    async def _write_locked(self, more: Sequence[Event] = (), end: End | None = None) -> None:
        if self.lost:
            raise RunLostError
        self._last_write = time.monotonic()
        added, until, count = self._added, len(self._events), len(self._items)
        models, tools = list(self._models), dict(self._tools)
        events = [*self._events[self.events_stored : until], *more]
        rows = await self._database.call(
            "write_run",
            **asdict(self._place),
            first_seq=self.events_stored,
            events=[json_text(event) for event in events],
            first_item=self._items_stored,
            items=self._items[self._items_stored : count],
            **_model_columns(models),
            **self._tool_columns(tools),
            **_end_columns(end or End("")),
        )
        if not rows:
            self.lost = True
            raise RunLostError
        self.stop_asked = rows[0]["stop_requested"]
        self.events_stored, self._items_stored, self._stored = until, count, added
        del self._models[: len(models)]
        for key, step in tools.items():
            if self._tools[key] is step:
                del self._tools[key]
        self._written.set()
        self._written = asyncio.Event()
        self._on_stored()

    def _tool_columns(self, steps: Mapping[str, ToolStep]) -> dict[str, list[str]]:
        answers = self._earlier.in_doubt
        return {
            "tool_keys": list(steps),
            "tool_states": [step.status for step in steps.values()],
            "tool_repeatable": [str(step.repeatable).lower() for step in steps.values()],
            "tool_calls": [json_text(as_call(step)) for step in steps.values()],
            "tool_outputs": [step.output for step in steps.values()],
            "tool_approvals": [answers[key].approval_id if key in answers else "" for key in steps],
        }


def _places(step: ToolStep) -> tuple[str, str]:
    """Where in the run a call is: at which place of its own agent, and inside of that."""
    segment, _, rest = step.key.partition(">")
    own, _, inner = (segment if "#" in segment else rest).partition(">")
    return own, rest if "#" in segment else inner


def in_doubt(step: ToolStep) -> Question:
    """The question whether a call that may have happened is to be made again."""
    return Question(new_id("mcpr"), "in_doubt", step.key, as_call(step))


def as_call(step: ToolStep) -> dict[str, Any]:
    """What was called, but for its place and how it ended."""
    return {
        "call_id": step.call_id,
        "name": step.name,
        "arguments": step.arguments,
        "repeatable": step.repeatable,
    }


def _model_columns(steps: Sequence[ModelStep]) -> dict[str, list[str]]:
    return {
        "model_keys": [step.key for step in steps],
        "model_requests": [step.request_hash for step in steps],
        "model_responses": [step.response for step in steps],
    }


def _end_columns(end: End) -> dict[str, str | int | list[str] | None]:
    asked = end.questions
    return {
        "status": end.status,
        "title": end.title,
        "open": int(end.open),
        "open_hash": end.open_hash,
        "checkpoint": end.checkpoint,
        "checkpoint_version": end.checkpoint_version,
        "approval_kind": asked[0].kind if asked else "",
        "approval_ids": [question.approval_id for question in asked],
        "approval_keys": [question.key for question in asked],
        "approval_calls": [json_text(dict(question.call)) for question in asked],
        "approval_expiry": end.expiry_ms,
    }
