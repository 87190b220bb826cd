"""Runs as the database knows them: of other processes, of earlier ones, and of those that died."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from threadkeep.database import Database, Row
from threadkeep.errors import ResponseNotFoundError, ServerStoppingError
from threadkeep.journal import Decision, ModelStep, ToolStep
from threadkeep.response_events import RESUMED, Event

LOOK_SECONDS = 1.0
"""How often a follower looks for events of another process's run that it heard nothing of."""

WATCH_SECONDS = 30.0
"""How long a run tells of its events after somebody elsewhere asked it to."""

UNFINISHED = {"queued", "in_progress"}

FINAL_EVENTS = {"response.completed", "response.failed", "response.incomplete"}
"""The types of a run's last event."""


@dataclass(frozen=True)
class Answer:
    """What somebody decided about a call.

    Args:
        approval_id: The approval.
        approved: Whether the call is to be made.
        reason: Why, in their words.
    """

    approval_id: str
    approved: bool
    reason: str | None


@dataclass(frozen=True)
class Steps:
    """What is stored of a journal.

    Args:
        models: The answers of models, by their keys.
        tools: The calls of tools, by their keys.
        made_again_by: The approval by which a call was made again, by its key.
        in_doubt: The newest decision about a call in doubt, by its key.
        answers: What was decided about the calls of the checkpoint that the run goes on from.
    """

    models: dict[str, ModelStep] = field(default_factory=dict)
    tools: dict[str, ToolStep] = field(default_factory=dict)
    made_again_by: dict[str, str] = field(default_factory=dict)
    in_doubt: dict[str, Answer] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)

    def decisions(self) -> dict[str, Decision]:
        """What is to become of calls in doubt. A decision is good for making a call once."""
        decisions: dict[str, Decision] = {}
        for key, answer in self.in_doubt.items():
            is_open = key in self.tools and self.tools[key].status == "intended"
            if is_open and self.made_again_by.get(key) != answer.approval_id:
                decisions[key] = Decision(answer.approved, answer.reason)
        return decisions


async def read_steps(
    database: Database, owner: str, journal_id: str, checkpoint_run_id: str
) -> Steps:
    """What an owner's journal holds, and what was decided about its calls or a checkpoint's."""
    steps = Steps()
    for row in await database.call("read_journal", journal_id=journal_id, owner=owner):
        key = row["key"]
        if row["kind"] == "model":
            steps.models[key] = ModelStep(key, row["request_hash"], row["response"])
        else:
            call = json.loads(row["call"])
            steps.tools[key] = ToolStep(key, status=row["status"], output=row["response"], **call)
            if row["approval_id"]:
                steps.made_again_by[key] = row["approval_id"]
    if checkpoint_run_id or any(step.status == "intended" for step in steps.tools.values()):
        decided = await database.call("read_decisions", journal_id=journal_id, owner=owner)
        for row in decided:
            answer = Answer(row["approval_id"], row["status"] == "approved", row["reason"])
            if row["kind"] == "in_doubt":
                steps.in_doubt[row["key"]] = answer
            elif row["run_id"] == checkpoint_run_id:
                steps.answers[row["key"]] = answer
    return steps


async def find_run(database: Database, run_id: str, owner: str) -> Row:
    """A stored run.

    Raises:
        ResponseNotFoundError: There is no such run of this owner.
    """
    rows = await database.call("get_run", run_id=run_id, owner=owner)
    if not rows:
        raise ResponseNotFoundError
    return rows[0]


async def follow_stored(
    database: Database,
    run_id: str,
    owner: str,
    after: int,
    is_stopping: Callable[[], bool] = bool,
) -> AsyncGenerator[Event, None]:
    """The events of a stored run behind a sequence number, to the last, as they are stored.

    Args:
        database: Where it is stored.
        run_id: The run.
        owner: Whose it is; '' is nobody's.
        after: The sequence number.
        is_stopping: Whether this process stops, so that nobody can be waited for.

    Raises:
        ResponseNotFoundError: There is no such run of this owner.
        ServerStoppingError: This process stops.
    """
    watched_until = 0.0
    async with database.signals(run_id) as signal:
        while True:
            if time.monotonic() > watched_until:
                watched_until = time.monotonic() + WATCH_SECONDS / 2
                await database.call(
                    "watch_run", run_id=run_id, owner=owner, watch_for=int(WATCH_SECONDS * 1000)
                )
            row = await find_run(database, run_id, owner)
            for event in await read_events(database, run_id, owner, after):
                after = event["sequence_number"]
                yield event
            if row["status"] not in UNFINISHED:
                return
            await signal.wait(LOOK_SECONDS)
            if is_stopping():
                raise ServerStoppingError


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


def _response(events: list[Event]) -> dict[str, Any]:
    """What a run's events so far say of it."""
    response: dict[str, Any] = {}
    output: dict[int, Any] = {}
    for event in events:
        if "response" in event:
            response = event["response"]
        elif event["type"] == "response.output_item.done":
            output[event["output_index"]] = event["item"]
        elif event["type"] == RESUMED:
            for index in event["voided"]:
                output.pop(index, None)
    if events and events[-1]["type"] in FINAL_EVENTS:
        return response
    return response | {"output": [item for _, item in sorted(output.items())]}
