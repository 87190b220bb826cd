"""A turn that ended on its way is closed, so that nothing paid for is forgotten.

What was said stays, every call gets an output, and a failure leaves a note: the next turn of the
session finds a history that any model takes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from threadkeep.journal import ToolStep
from threadkeep.mend import UNKNOWN_OUTCOME
from threadkeep.replay_tools import ToolFailedError, decode_outcome
from threadkeep.response_events import new_id

NOT_MADE = "not made: the turn ended before"
"""The output of a call that did not begin."""

DECLINED = "declined: the user went on without approving it"
"""The output of a call that waits for an approval; it is cut off when the turn goes on."""

_SAID = {"message", "reasoning", "function_call", "function_call_output"}

Item = dict[str, Any]


def closing_items(
    said: Sequence[Item],
    kept: Sequence[Item],
    last_call: Callable[[str], ToolStep | None],
    note: str | None,
    of_open_calls: str = NOT_MADE,
) -> list[Item]:
    """What is missing of a turn in its session.

    Args:
        said: The output of its run, in order.
        kept: What the session has of it.
        last_call: What is known of a call, by its id.
        note: Why the turn failed, for the model to know.
        of_open_calls: The output of a call that was not made.
    """
    known = Counter(map(_key, kept))
    closing: list[Item] = []
    for item in said:
        if known[_key(item)]:
            known[_key(item)] -= 1
        elif item.get("type") in _SAID and item.get("content", True):
            closing.append(item)
    while closing and closing[-1].get("type") == "reasoning":  # no model takes it without its item
        closing.pop()
    open_calls = Counter[str]()
    for item in [*kept, *closing]:
        if item.get("type") == "function_call":
            open_calls[item["call_id"]] += 1
        elif item.get("type") == "function_call_output":
            open_calls[item["call_id"]] -= 1
    for call_id, count in open_calls.items():
        step = last_call(call_id)
        closing += [_output(call_id, step, of_open_calls) for _ in range(count)]
    if note is not None:
        closing.append(_note(note))
    return closing


def call_item(step: ToolStep) -> Item:
    """A call as an item, made of what the journal has of it."""
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "call_id": step.call_id,
        "name": step.name,
        "arguments": step.arguments,
        "status": "completed",
    }


def _key(item: Item) -> tuple[Any, ...]:
    kind = item.get("type", "message")
    if "call_id" in item:
        return (kind, item["call_id"])
    if kind == "message":
        return (kind, item.get("role"))
    return (kind,)


def _output(call_id: str, step: ToolStep | None, of_open_calls: str) -> Item:
    return {
        "id": new_id("fco"),
        "type": "function_call_output",
        "call_id": call_id,
        "output": of_open_calls if step is None else _outcome(step),
        "status": "completed" if step is not None and step.status == "done" else "incomplete",
    }


def _outcome(step: ToolStep) -> str:
    """What the model would have seen of a call."""
    if step.status == "intended":
        return UNKNOWN_OUTCOME
    try:
        return str(decode_outcome(step.output).output)
    except (ToolFailedError, asyncio.CancelledError) as error:  # it had cancelled itself
        return f"The tool failed: {error}"


def _note(failure: str) -> Item:
    text = f"(This turn ended before its answer was done: {failure})"
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "content": [part],
    }
