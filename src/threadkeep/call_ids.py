"""Call ids that no other call has.

Models repeat the ids of their calls: weak ones by mistake, others because somebody talks them into
it. But to everybody behind the model a call id stands for one call. The SDK keeps approvals by it,
folds the items that share it in a model's input, and passes over a call that it seems to know, or
fails; the journal has its steps under it. So an id that is taken is replaced in every new answer,
before that is stored or told. From then on it is the call's id, for the model as well.

Ids that are unique stay as they are. In a stream a call keeps the id that it got with its first
event. The whole answer may have its items in other places than the stream; so there a call is known
by the id that the model gave it, and by its order among those with the same.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agents.items import TResponseStreamEvent
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
)
from pydantic import BaseModel

_LONGEST = 64
"""Characters of a call id. https://platform.openai.com/docs/api-reference/responses/create"""

_PROGRAM = "program"
"""A provider's own call. Those that it makes name it, and it may be told of again as it goes on."""


def call_ids(items: str | Iterable[Any]) -> set[str]:
    """The ids of all calls that the items are, or belong to.

    Args:
        items: The input of a model, or its output.
    """
    found = () if isinstance(items, str) else (_field(item, "call_id") for item in items)
    return {call_id for call_id in found if isinstance(call_id, str)}


class CallIds:
    """Makes the call ids of one answer unique. What it is given stays as it was.

    Args:
        taken: The ids that other calls have.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {"", *taken}
        self._numbers: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(2))
        self._streamed: dict[tuple[str, int], str] = {}  # by the model's id and the item's place
        self._latest: dict[str, str] = {}

    def in_event(self, event: TResponseStreamEvent) -> TResponseStreamEvent:
        """The next event of the stream with the ids that its calls have."""
        if isinstance(event, (ResponseOutputItemAddedEvent, ResponseOutputItemDoneEvent)):
            item = self._in_stream(event.item, event.output_index)
            return event if item is event.item else event.model_copy(update={"item": item})
        if isinstance(
            event, (ResponseCompletedEvent, ResponseIncompleteEvent, ResponseFailedEvent)
        ):
            output = self.in_answer(event.response.output)
            if output is not event.response.output:
                response = event.response.model_copy(update={"output": output})
                return event.model_copy(update={"response": response})
        return event

    def in_answer(self, output: list[Any]) -> list[Any]:
        """The whole answer with the ids that its calls have: those they were streamed with.

        Returns:
            The same list where nothing changes.
        """
        streamed: dict[str, list[str]] = defaultdict(list)
        for (given, _), new in sorted(self._streamed.items(), key=lambda entry: entry[0][1]):
            streamed[given].append(new)
        changed = []
        for item in output:
            call_id = _call_id(item)
            if call_id is not None:
                known = streamed[call_id]
                self._latest[call_id] = known.pop(0) if known else self._free(call_id)
            changed.append(self._with_id(item))
        same = all(new is old for new, old in zip(changed, output, strict=True))
        return output if same else changed

    def _in_stream(self, item: Any, place: int) -> Any:
        call_id = _call_id(item)
        if call_id is not None:
            if (call_id, place) not in self._streamed:
                begun = self._streamed.pop(("", place), None)  # it had no id when it began
                self._streamed[call_id, place] = begun or self._free(call_id)
            self._latest[call_id] = self._streamed[call_id, place]
        return self._with_id(item)

    def _free(self, call_id: str) -> str:
        new = call_id
        if new in self._taken:
            start = re.sub(r"[^A-Za-z0-9_-]", "_", call_id) or "call"
            ends = (f"_{number}" for number in self._numbers[call_id])
            counted = (start[: _LONGEST - len(end)] + end for end in ends)
            new = next(one for one in counted if one not in self._taken)
        self._taken.add(new)
        return new

    def _with_id(self, item: Any) -> Any:
        """A call with its id; an output of a call in this answer with the id of that."""
        call_id = _field(item, "call_id")
        if not isinstance(call_id, str) or _field(item, "type") == _PROGRAM:
            return item
        new = self._latest.get(call_id, call_id)
        if new == call_id:
            return item
        if isinstance(item, BaseModel):
            return item.model_copy(update={"call_id": new})
        return {**item, "call_id": new}


def _call_id(item: Any) -> str | None:
    """The id that a model gave a call; None for what is no call of its own."""
    kind, call_id = str(_field(item, "type")), _field(item, "call_id")
    is_call = isinstance(call_id, str) and not kind.endswith("_output") and kind != _PROGRAM
    return call_id if is_call else None


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
