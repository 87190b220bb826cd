"""Where a run stops to wait for people: the SDK's RunState, stored, and gone on from anywhere.

It is taken when the Runner stops because tools need approval, in the statement that ends the run,
and given back to the Runner with what was decided. It never leaves the server. With it lie the
items that the turn had added to its session: while it waits they are followed by outputs that
close its open calls, which are cut off again when it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents import Agent, RunResultStreaming, RunState, TResponseInputItem
from agents.items import ToolApprovalItem
from agents.run_state import CURRENT_SCHEMA_VERSION, SUPPORTED_SCHEMA_VERSIONS

from threadkeep.database import Database
from threadkeep.errors import RunLostError
from threadkeep.history import json_text
from threadkeep.response_events import new_id
from threadkeep.run_log import Question
from threadkeep.stored_runs import Answer


def _number(version: str) -> int:
    """A version of the SDK's RunState (`1.21`) as a number that grows with it."""
    major, minor = version.split(".")
    return int(major) * 1000 + int(minor)


VERSION = _number(CURRENT_SCHEMA_VERSION)
"""Of the checkpoints that we write."""

NEWEST_KNOWN = max(map(_number, SUPPORTED_SCHEMA_VERSIONS))
"""Of those that we can go on from."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run has stopped, and what was decided since.

    Args:
        run_id: The run.
        state: The RunState, as JSON.
        items: What its turn had added to the session.
        context: The run context of the user's own type, as JSON text; None when it has none.
        answers: What was decided about its calls, by their keys.
    """

    run_id: str
    state: dict[str, Any]
    items: list[TResponseInputItem]
    context: str | None
    answers: Mapping[str, Answer]

    async def restore(self, agent: Agent[Any], context: Any) -> RunState[Any, Agent[Any]]:
        """The state as the Runner takes it, with all that was decided.

        Args:
            agent: The agent of the run, made anew.
            context: The run context, made anew.
        """
        state = dict(self.state)
        # Tokens of the run that has stopped are counted there.
        state["context"] = state["context"] | {"usage": {}}
        restored = await RunState.from_json(agent, state, context_override=context)
        for place, item in enumerate(restored.get_interruptions()):
            answer = self.answers[str(place)]
            if answer.approved:
                restored.approve(item)
            else:
                restored.reject(item, rejection_message=answer.reason)
        return restored


async def read_checkpoint(
    database: Database, owner: str, run_id: str, answers: Mapping[str, Answer]
) -> Checkpoint:
    """Reads where an owner's run has stopped.

    Raises:
        RunLostError: It is not there any more.
    """
    rows = await database.call("read_checkpoint", run_id=run_id, owner=owner)
    if not rows:
        raise RunLostError
    stored = json.loads(rows[0]["checkpoint"])
    return Checkpoint(run_id, stored["state"], stored["items"], stored["context"], answers)


def take_checkpoint(
    result: RunResultStreaming, items: Sequence[Mapping[str, Any]], context: str | None
) -> tuple[str, list[Question]]:
    """Where a Runner call has stopped, as JSON text, and what has to be decided.

    Args:
        result: Of the call; it has interruptions.
        items: What its turn has added to the session.
        context: The run context of the user's own type, as JSON text.
    """
    state = result.to_state().to_json(context_serializer=lambda _: {})
    text = json_text({"state": state, "items": list(items), "context": context})
    return text, [_question(str(place), item) for place, item in enumerate(result.interruptions)]


def _question(key: str, item: ToolApprovalItem) -> Question:
    origin = item.tool_origin
    call: dict[str, Any] = {
        "call_id": item.call_id,
        "name": item.name or "tool",
        "arguments": item.arguments or "{}",
        "agent": item.agent.name,
        "server": origin.mcp_server_name if origin is not None else None,
    }
    return Question(new_id("mcpr"), "needs_approval", key, call)
