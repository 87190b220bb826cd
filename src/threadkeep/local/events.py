"""The Responses API's events of one answer, numbered, with ids of our own.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from agents.items import TResponseStreamEvent
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseUsage,
)


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


class Answer:
    """Makes the events of one response, which holds one message or one function call.

    Args:
        model: The model's name, as the response gives it.
    """

    def __init__(self, model: str) -> None:
        self._number = -1
        self._text = ""
        self._message_id = _new_id("msg")
        self.response = Response(
            id=_new_id("resp"),
            created_at=time.time(),
            model=model,
            object="response",
            output=[],
            parallel_tool_calls=False,
            status="in_progress",
            tool_choice="auto",
            tools=[],
        )

    def created(self) -> TResponseStreamEvent:
        """The first event."""
        return ResponseCreatedEvent(
            response=self.response.model_copy(),
            sequence_number=self._next(),
            type="response.created",
        )

    def message_begins(self) -> Iterator[TResponseStreamEvent]:
        """The events before the first text."""
        yield ResponseOutputItemAddedEvent(
            item=ResponseOutputMessage(
                id=self._message_id,
                content=[],
                role="assistant",
                status="in_progress",
                type="message",
            ),
            output_index=0,
            sequence_number=self._next(),
            type="response.output_item.added",
        )
        yield ResponseContentPartAddedEvent(
            content_index=0,
            item_id=self._message_id,
            output_index=0,
            part=ResponseOutputText(annotations=[], text="", type="output_text"),
            sequence_number=self._next(),
            type="response.content_part.added",
        )

    def text(self, delta: str) -> TResponseStreamEvent:
        """More of the message's text."""
        self._text += delta
        return ResponseTextDeltaEvent(
            content_index=0,
            delta=delta,
            item_id=self._message_id,
            logprobs=[],
            output_index=0,
            sequence_number=self._next(),
            type="response.output_text.delta",
        )

    def message_ends(self, *, cut: bool) -> Iterator[TResponseStreamEvent]:
        """The events after the last text.

        Args:
            cut: Whether it ended because no more tokens were allowed.
        """
        part = ResponseOutputText(annotations=[], text=self._text, type="output_text")
        yield ResponseTextDoneEvent(
            content_index=0,
            item_id=self._message_id,
            logprobs=[],
            output_index=0,
            sequence_number=self._next(),
            text=self._text,
            type="response.output_text.done",
        )
        yield ResponseContentPartDoneEvent(
            content_index=0,
            item_id=self._message_id,
            output_index=0,
            part=part,
            sequence_number=self._next(),
            type="response.content_part.done",
        )
        message = ResponseOutputMessage(
            id=self._message_id,
            content=[part],
            role="assistant",
            status="incomplete" if cut else "completed",
            type="message",
        )
        yield self._done(message)

    def call(self, name: str, arguments: str) -> Iterator[TResponseStreamEvent]:
        """All events of a function call.

        Args:
            name: The tool's name.
            arguments: A JSON object.
        """
        item_id = _new_id("fc")
        call = ResponseFunctionToolCall(
            id=item_id,
            arguments="",
            call_id=_new_id("call"),
            name=name,
            status="in_progress",
            type="function_call",
        )
        yield ResponseOutputItemAddedEvent(
            item=call.model_copy(),
            output_index=0,
            sequence_number=self._next(),
            type="response.output_item.added",
        )
        yield ResponseFunctionCallArgumentsDeltaEvent(
            delta=arguments,
            item_id=item_id,
            output_index=0,
            sequence_number=self._next(),
            type="response.function_call_arguments.delta",
        )
        yield ResponseFunctionCallArgumentsDoneEvent(
            arguments=arguments,
            item_id=item_id,
            output_index=0,
            sequence_number=self._next(),
            type="response.function_call_arguments.done",
        )
        yield self._done(call.model_copy(update={"arguments": arguments, "status": "completed"}))

    def completed(self, usage: ResponseUsage) -> TResponseStreamEvent:
        """The last event."""
        self.response.status = "completed"
        self.response.usage = usage
        return ResponseCompletedEvent(
            response=self.response, sequence_number=self._next(), type="response.completed"
        )

    def _done(
        self, item: ResponseOutputMessage | ResponseFunctionToolCall
    ) -> ResponseOutputItemDoneEvent:
        self.response.output.append(item)
        return ResponseOutputItemDoneEvent(
            item=item,
            output_index=0,
            sequence_number=self._next(),
            type="response.output_item.done",
        )

    def _next(self) -> int:
        self._number += 1
        return self._number
