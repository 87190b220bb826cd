"""One run as one Responses stream: the SDK's events of many model calls, made into one answer.

The SDK passes on what each model call says: every call begins and ends a response of its own and
counts its output from 0, and some models leave out ids and closing events. Clients of the
Responses API expect one beginning, one end, one growing output and closed items; this makes them.

Source of the shapes: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from agents import StreamEvent, TResponseInputItem, Usage
from uuid_utils import uuid7

Event = dict[str, Any]
"""A streamed event as JSON; `sequence_number` is given by the run."""

PLACEHOLDER_ID = "__fake_id__"
"""What the SDK's chat-completions models give as an id; the Responses API refuses it."""

_BEGINNINGS = {"response.created", "response.queued", "response.in_progress"}
_ENDS = {"response.completed", "response.failed", "response.incomplete"}
_LOCAL_OUTPUTS = {"tool_call_output_item", "handoff_output_item"}
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def new_id(prefix: str) -> str:
    """A unique id that sorts by the time it was made."""
    return f"{prefix}_{uuid7().hex}"


@dataclass
class _Item:
    """An output item of the model call at work: its place in the output, and its texts so far."""

    index: int
    item_id: str
    done: bool = False
    texts: dict[int, str] = field(default_factory=dict)
    closed_texts: set[int] = field(default_factory=set)
    closed_parts: set[int] = field(default_factory=set)


class ResponseEvents:
    """Turns the SDK's stream events into those of one response, and keeps its output.

    Attributes:
        output: The output items so far, in order, as the response carries them.
        tool_started: Whether a tool was called: then the turn can't be taken back.
        incomplete_reason: Why the last model call stopped early, else None.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self.tool_started = False
        self.incomplete_reason: str | None = None
        self._items: dict[int, _Item] = {}

    def convert(self, event: StreamEvent) -> Iterator[Event]:
        """The events of the response that one event of the SDK makes: none, one or several."""
        if event.type == "raw_response_event":
            # A provider may say what the client library has no type for; it is passed on.
            data = event.data.model_dump(mode="json", exclude_unset=True, warnings=False)
            yield from self._model_event(_finite(data))
        elif event.type == "run_item_stream_event" and event.item.type in _LOCAL_OUTPUTS:
            yield from self._local_output(dict(event.item.to_input_item()))

    def stop(self) -> Iterator[Event]:
        """Closes messages that are being said, with their text so far; other open items go."""
        for local, state in self._items.items():
            if not state.done and any(state.texts.values()):
                yield from self._item_done(local, self._so_far(state))
        open_items = {state.index for state in self._items.values() if not state.done}
        self.output = [item for i, item in enumerate(self.output) if i not in open_items]

    def messages(self) -> list[TResponseInputItem]:
        """What the agent said so far, as items for the session."""
        return [
            cast(TResponseInputItem, item)
            for item in self.output
            if item.get("type") == "message" and item.get("content")
        ]

    def _so_far(self, state: _Item) -> dict[str, Any]:
        content = [
            {"type": "output_text", "text": text, "annotations": []}
            for _, text in sorted(state.texts.items())
        ]
        return self.output[state.index] | {"status": "incomplete", "content": content}

    def _model_event(self, data: Event) -> Iterator[Event]:
        kind, local = data["type"], data.get("output_index")
        if kind in _BEGINNINGS:
            self._items = {}
        elif kind in _ENDS:
            yield from self._model_end(data["response"])
        elif kind == "response.output_item.added":
            yield self._item_added(data["output_index"], data["item"])
        elif kind == "response.output_item.done":
            yield from self._item_done(data["output_index"], data["item"])
        elif local in self._items:
            yield from self._item_event(self._items[local], data)
        else:
            yield data

    def _model_end(self, response: dict[str, Any]) -> Iterator[Event]:
        """Says what the end of a model call holds and was not streamed before."""
        details = response.get("incomplete_details") or {}
        self.incomplete_reason = details.get("reason")
        for local, item in enumerate(response.get("output") or []):
            yield from self._item_done(local, item)
        self._items = {}

    def _item_added(self, local: int, item: dict[str, Any]) -> Event:
        item = with_id(item)
        state = self._items[local] = _Item(len(self.output), item["id"])
        self.output.append(item)
        self.tool_started = self.tool_started or item.get("type") == "function_call"
        return {
            "type": "response.output_item.added",
            "output_index": state.index,
            "item": item,
        }

    def _item_event(self, state: _Item, data: Event) -> Iterator[Event]:
        kind, part = data["type"], data.get("content_index", 0)
        if kind == "response.output_text.delta":
            state.texts[part] = state.texts.get(part, "") + data["delta"]
        elif kind == "response.output_text.done":
            state.closed_texts.add(part)
        elif kind == "response.content_part.done":
            yield from self._close_text(state, part)
            state.closed_parts.add(part)
        yield data | {"output_index": state.index, "item_id": state.item_id}

    def _item_done(self, local: int, item: dict[str, Any]) -> Iterator[Event]:
        if local not in self._items:
            yield self._item_added(local, item)
        state = self._items[local]
        if state.done:
            return
        state.done = True
        item = {"status": "completed"} | item | {"id": state.item_id}
        yield from self._close_parts(state, item.get("content") or [])
        self.output[state.index] = item
        yield {"type": "response.output_item.done", "output_index": state.index, "item": item}

    def _close_parts(self, state: _Item, content: list[dict[str, Any]]) -> Iterator[Event]:
        """Ends the parts that the model left open; several of the SDK's models do."""
        for index, part in enumerate(content):
            if index in state.texts and index not in state.closed_parts:
                yield from self._close_text(state, index)
                yield {
                    "type": "response.content_part.done",
                    "item_id": state.item_id,
                    "output_index": state.index,
                    "content_index": index,
                    "part": part,
                }

    def _close_text(self, state: _Item, index: int) -> Iterator[Event]:
        if index in state.texts and index not in state.closed_texts:
            state.closed_texts.add(index)
            yield {
                "type": "response.output_text.done",
                "item_id": state.item_id,
                "output_index": state.index,
                "content_index": index,
                "text": state.texts[index],
                "logprobs": [],
            }

    def _local_output(self, item: dict[str, Any]) -> Iterator[Event]:
        """The output of a tool or hand-off, which the SDK made here and no model streamed."""
        item |= {"id": new_id("fco"), "status": "completed"}
        index = len(self.output)
        self.output.append(item)
        yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _finite(value: Any) -> Any:
    """The value without numbers that JSON can't hold, such as a log probability of -inf."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return value


def with_id(item: dict[str, Any]) -> dict[str, Any]:
    """The item with an id of its own, where it has none or the SDK's placeholder."""
    if item.get("id") not in (None, "", PLACEHOLDER_ID):
        return item
    return item | {"id": new_id(_PREFIXES.get(item.get("type", ""), "item"))}


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage as the Responses API gives it, in tokens over all model calls of a run."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.input_tokens_details.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.output_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
