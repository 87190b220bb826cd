"""A model that does what the last message of the user says, so that tests can read like a talk.

say TEXT          answers TEXT
count N           counts to N, a word at a time
hold              says "Holding" and goes on when the test lets it
linger TEXT       answers TEXT, and ends the answer when the test lets it
refuse            refuses to answer
time              calls get_current_time and tells what it said
fail              fails as a provider does
time and fail     calls get_current_time, then fails
use A B           calls the tools A and B at once; `buy`, an agent, is told "use pay; say bought"
stumble TEXT      fails as a provider does; answers TEXT when the test lets it
X; Y              does X, which uses tools, and Y when they have answered
What city …?      looks for "I live in CITY" in what the user said before
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import openai
from agents import Model, ModelResponse
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseCreatedEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputRefusal,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from threadkeep.titles import text_of

PLACEHOLDER = "__fake_id__"


class FakeModel(Model):
    """Streams as the SDK's chat-completions model does: placeholder ids, no `output_text.done`.

    Args:
        go_on: Set by the test to let `hold` go on.
    """

    def __init__(self, go_on: threading.Event | None = None) -> None:
        self.go_on = go_on or threading.Event()
        self.inputs: list[list[Any]] = []

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        raise NotImplementedError("Threadkeep streams every run.")

    async def stream_response(
        self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        items = [{"role": "user", "content": input}] if isinstance(input, str) else list(input)
        self.inputs.append(items)
        said = [text_of(i.get("content")) for i in items if i.get("role") == "user"] or [""]
        said[-1] = _part(said[-1], items)
        number = 0

        def numbered(event_type: Any, **values: Any) -> Any:
            nonlocal number
            number += 1
            return event_type(sequence_number=number - 1, **values)

        yield numbered(ResponseCreatedEvent, type="response.created", response=_response([]))
        if names := _tools(said[-1], items):
            calls = [_call(name, f"call_{len(items)}_{at}") for at, name in enumerate(names)]
            for at, call in enumerate(calls):
                yield numbered(
                    ResponseOutputItemAddedEvent,
                    type="response.output_item.added",
                    item=call,
                    output_index=at,
                )
                yield numbered(
                    ResponseOutputItemDoneEvent,
                    type="response.output_item.done",
                    item=call,
                    output_index=at,
                )
            yield numbered(
                ResponseCompletedEvent, type="response.completed", response=_response(calls)
            )
            return
        if "fail" in said[-1] or (said[-1].startswith("stumble ") and not self.go_on.is_set()):
            raise openai.APIConnectionError(request=cast(Any, None))
        yield numbered(
            ResponseOutputItemAddedEvent,
            type="response.output_item.added",
            item=_message("").model_copy(update={"content": [], "status": "in_progress"}),
            output_index=0,
        )
        yield numbered(
            ResponseContentPartAddedEvent,
            type="response.content_part.added",
            item_id=PLACEHOLDER,
            output_index=0,
            content_index=0,
            part=ResponseOutputText(annotations=[], text="", type="output_text"),
        )
        text = ""
        async for word in self._words(said, items):
            text += word
            yield numbered(
                ResponseTextDeltaEvent,
                type="response.output_text.delta",
                item_id=PLACEHOLDER,
                output_index=0,
                content_index=0,
                delta=word,
                logprobs=[],
            )
        message = _message(text, refused=said[-1] == "refuse")
        yield numbered(
            ResponseOutputItemDoneEvent,
            type="response.output_item.done",
            item=message,
            output_index=0,
        )
        if said[-1].startswith("linger"):
            await self._until_let_go()
        yield numbered(
            ResponseCompletedEvent, type="response.completed", response=_response([message])
        )

    async def _until_let_go(self) -> None:
        while not self.go_on.is_set():  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0.01)

    async def _words(self, said: list[str], items: list[Any]) -> AsyncIterator[str]:
        last = said[-1]
        if "time" in last and items[-1].get("type") == "function_call_output":
            yield f"It is {items[-1]['output']}"
        elif match := re.match(r"count (\d+)", last):
            for number in range(1, int(match[1]) + 1):
                await asyncio.sleep(0.005)
                yield f"{number} "
        elif last.startswith("hold"):
            yield "Holding "
            await self._until_let_go()
            yield "no more."
        elif last == "refuse":
            return
        elif last.startswith(("say ", "linger ", "stumble ")):
            for word in re.findall(r"\S+\s*|\s+", last.partition(" ")[2]):
                yield word
        elif "What city" in last:
            found = re.search(r"I live in (\w+)", " ".join(said))
            yield f"You live in {found[1]}." if found else "You did not say."
        else:
            yield f"You said: {last}"


def _part(said: str, items: list[Any]) -> str:
    """The part of "X; Y" that comes next, by the outputs of tools that are there."""
    turn = max((at for at, item in enumerate(items) if item.get("role") == "user"), default=0)
    outputs = sum(item.get("type") == "function_call_output" for item in items[turn:])
    *first, last = said.split("; ")
    for part in first:
        if outputs <= 0:
            return part
        outputs -= len(part.split()) - 1
    return last


def _tools(part: str, items: list[Any]) -> list[str]:
    """The tools that are to be called now."""
    if part.startswith("use "):
        return part.split()[1:]
    answered = items[-1].get("type") == "function_call_output"
    return ["get_current_time"] if "time" in part and not answered else []


def _call(name: str, call_id: str) -> ResponseFunctionToolCall:
    arguments = '{"input": "use pay; say bought"}' if name == "buy" else "{}"
    return ResponseFunctionToolCall(
        id=PLACEHOLDER, call_id=call_id, name=name, arguments=arguments, type="function_call"
    )


def _message(text: str, *, refused: bool = False) -> ResponseOutputMessage:
    said = ResponseOutputText(annotations=[], text=text, type="output_text")
    refusal = ResponseOutputRefusal(refusal="I'd rather not.", type="refusal")
    return ResponseOutputMessage(
        id=PLACEHOLDER,
        content=[refusal if refused else said],
        role="assistant",
        status="completed",
        type="message",
    )


def _response(output: list[Any]) -> Response:
    return Response(
        id=PLACEHOLDER,
        created_at=0,
        model="fake",
        object="response",
        output=output,
        tool_choice="auto",
        tools=[],
        parallel_tool_calls=False,
        usage=ResponseUsage(
            input_tokens=3,
            output_tokens=5,
            total_tokens=8,
            input_tokens_details=InputTokensDetails.model_construct(cached_tokens=0),
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        ),
    )
