"""One run as one Responses stream: the SDK's events of many model calls, made into one answer.

The SDK passes on what each model call says: every call begins and ends a response of its own and
counts its output from 0, and some models leave out ids and closing events. Clients of the
Responses API expect one beginning, one end, one growing output and closed items; this makes them.

Source of the shapes: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agents import StreamEvent, Usage
from uuid_utils import uuid7

Event = dict[str, Any]
"""A streamed event as JSON; `sequence_number` is given by the run."""

PLACEHOLDER_ID = "__fake_id__"
"""What the SDK's chat-completions models give as an id; the Responses API refuses it."""

RESUMED = "threadkeep.resumed"
"""The event that says that another process goes on: outputs at the indexes `voided` are void, and
those that were open are closed before it; what follows is counted on behind them."""

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

    Args:
        told: The events of earlier attempts at the run. What is said again is not told again; with
            the first new event it is told what of them is void.

    Attributes:
        tool_started: Whether a tool was called: then the turn can't be taken back.
        incomplete_reason: Why the last model call stopped early, else None.
    """

    def __init__(self, told: Iterable[Event] = ()) -> None:
        self.tool_started = False
        self.incomplete_reason: str | None = None
        self._output: dict[int, dict[str, Any]] = {}
        self._items: dict[int, _Item] = {}
        self._told: deque[tuple[int, dict[str, Any]]] = deque()
        self._open: dict[int, dict[str, Any]] = {}
        self._open_texts: dict[int, dict[int, str]] = {}
        self._next_index = 0
        self._resumes = False
        for event in told:
            self._take_in(event)

    @property
    def output(self) -> list[dict[str, Any]]:
        """The output items so far, in order, as the response carries them."""
        return [item for _, item in sorted(self._output.items())]

    def convert(self, event: StreamEvent) -> Iterator[Event]:
        """The events of the response that one event of the SDK makes: none, one or several."""
        for made in self._convert(event):
            yield from self._resumption()
            yield made

    def add(self, item: dict[str, Any]) -> Iterator[Event]:
        """Puts an item of our own into the output."""
        yield from self._resumption()
        yield from self._whole_item(item)

    def stop(self) -> Iterator[Event]:
        """Closes messages that are being said, with their text so far; other open items go.

        What earlier attempts had told, and this one has not come to, stands.
        """
        yield from self._stand_by_what_was_told()
        for local, state in self._items.items():
            if not state.done and any(state.texts.values()):
                so_far = _with_texts(self._output[state.index], state.texts)
                yield from self._item_done(local, so_far)
        for state in self._items.values():
            if not state.done:
                self._output.pop(state.index, None)

    def _convert(self, event: StreamEvent) -> Iterator[Event]:
        if event.type == "raw_response_event":
            # A provider may say what the client library has no type for; it is passed on.
            data = event.data.model_dump(mode="json", exclude_unset=True, warnings=False)
            yield from self._model_event(_finite(data))
        elif event.type == "run_item_stream_event" and event.item.type in _LOCAL_OUTPUTS:
            item = dict(event.item.to_input_item())
            if not self._was_told(item):
                yield from self._whole_item(item | {"id": new_id("fco"), "status": "completed"})

    def _take_in(self, event: Event) -> None:
        """Learns what an earlier attempt has told."""
        self._resumes = True
        index = event.get("output_index")
        if event["type"] == RESUMED:
            void = set(event["voided"])
            self._told = deque(known for known in self._told if known[0] not in void)
            self._open = {at: item for at, item in self._open.items() if at not in void}
        elif event["type"] == "response.output_item.added":
            self._open[event["output_index"]] = event["item"]
            self._open_texts[event["output_index"]] = {}
            self._next_index = max(self._next_index, event["output_index"] + 1)
        elif event["type"] == "response.output_text.delta" and index in self._open:
            texts, part = self._open_texts[index], event.get("content_index", 0)
            texts[part] = texts.get(part, "") + event["delta"]
        elif event["type"] == "response.output_item.done" and index is not None:
            self._open.pop(index, None)
            self._told.append((index, event["item"]))

    def _was_told(self, item: dict[str, Any]) -> bool:
        """Whether an earlier attempt has told the same; then that stands."""
        if not self._told or not _same(self._told[0][1], item):
            return False
        index, told = self._told.popleft()
        self._output[index] = told
        return True

    def _stand_by_what_was_told(self) -> Iterator[Event]:
        if not self._resumes:
            return  # what this attempt said instead has made it void
        for index, item in self._told:
            self._output[index] = item
            self.tool_started = self.tool_started or item.get("type") == "function_call"
        self._told.clear()
        for index in list(self._open):
            if texts := self._open_texts[index]:
                item = self._output[index] = _with_texts(self._open.pop(index), texts)
                yield {"type": "response.output_item.done", "output_index": index, "item": item}
        if self._open:
            yield from self._resumption()

    def _resumption(self) -> Iterator[Event]:
        """Before the first new event of another attempt: what the earlier ones did not end."""
        if self._resumes:
            self._resumes = False
            void = self._open.keys() | {index for index, _ in self._told}
            self._told.clear()
            for index, item in self._open.items():  # the client library wants each to have an end
                item = item | {"status": "incomplete"}
                yield {"type": "response.output_item.done", "output_index": index, "item": item}
            yield {"type": RESUMED, "voided": sorted(void)}

    def _new_index(self, item: dict[str, Any]) -> int:
        index = self._next_index
        self._next_index += 1
        self._output[index] = item
        return index

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
        state = self._items[local] = _Item(self._new_index(item), item["id"])
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
            if self._was_told(item):
                self._items[local] = _Item(-1, "", done=True)
                self.tool_started = self.tool_started or item.get("type") == "function_call"
                return
            yield self._item_added(local, item)
        state = self._items[local]
        if state.done:
            return
        state.done = True
        item = {"status": "completed"} | item | {"id": state.item_id}
        yield from self._close_parts(state, item.get("content") or [])
        self._output[state.index] = item
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

    def _whole_item(self, item: dict[str, Any]) -> Iterator[Event]:
        """An item that no model streamed: made here, by a tool or hand-off or by ourselves."""
        index = self._new_index(item)
        yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _with_texts(item: dict[str, Any], texts: dict[int, str]) -> dict[str, Any]:
    """A message that was not said to its end."""
    content = [
        {"type": "output_text", "text": text, "annotations": []}
        for _, text in sorted(texts.items())
    ]
    return item | {"status": "incomplete", "content": content}


def _same(told: dict[str, Any], item: dict[str, Any]) -> bool:
    """Whether two items say the same; ids may have been made anew."""
    if told.get("type") != item.get("type"):
        return False
    if "call_id" in told:
        return bool(told["call_id"] == item.get("call_id"))
    return _texts(told) == _texts(item)


def _texts(item: dict[str, Any]) -> list[Any]:
    return [part.get("text", part.get("refusal")) for part in item.get("content") or []]


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
