"""The embedded model as a Model of the OpenAI Agents SDK.

An answer takes up to three requests to llama.cpp: which tool if any, that tool's arguments
(choice.py), or the words, which are plain chat and stream as they grow.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from agents import (
    AgentOutputSchemaBase,
    Handoff,
    Model,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    Tool,
    Usage,
    generation_span,
)
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.tracing import GenerationSpanData, Span
from openai.types.responses import ResponseCompletedEvent
from openai.types.responses.response_prompt_param import ResponsePromptParam

from threadkeep.local.choice import (
    ANSWER,
    PREFIX,
    Option,
    arguing,
    choosing,
    choosing_parameters,
    open_choice,
    options_of,
)
from threadkeep.local.conversation import Conversation, Message, as_chat, read
from threadkeep.local.errors import LlamaError, UnsupportedByEmbeddedModelError
from threadkeep.local.events import Answer
from threadkeep.local.request import MOST_OUTPUT_TOKENS, Requests
from threadkeep.local.server import LlamaServer

OUTPUT_TOKENS = 512
# Turns of talk from which a tool's arguments are taken.
_ARGUED_FROM = 2


@dataclass(frozen=True)
class _Asked:
    """What the SDK asks for, in our terms."""

    instructions: str
    conversation: Conversation
    options: list[Option]
    settings: ModelSettings
    schema: AgentOutputSchemaBase | None


class LocalModel(Model):
    """Answers with the embedded model.

    Args:
        server: llama.cpp's process; it need not be ready yet.
        name: The model's name, as responses and traces give it.
    """

    def __init__(self, server: LlamaServer, name: str) -> None:
        self._server = server
        self._name = name

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        prompt: ResponsePromptParam | None = None,
    ) -> ModelResponse:
        """The whole answer at once, as `agents.Model.get_response` has it.

        Raises:
            UnsupportedByEmbeddedModelError: The request holds what this model can't take in.
            InputTooLongError: The newest turn does not fit.
            LlamaError: llama.cpp failed; twice, where a second try could lose nothing.
            EmbeddedModelUnavailableError: There are no weights, or they can't be used.
        """
        events = self.stream_response(
            system_instructions,
            input,
            model_settings,
            tools,
            output_schema,
            handoffs,
            tracing,
            previous_response_id=previous_response_id,
            conversation_id=conversation_id,
            prompt=prompt,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, ResponseCompletedEvent):
                    return _as_model_response(event)
        raise AssertionError("an answer ends with response.completed or with an error")

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        prompt: ResponsePromptParam | None = None,
    ) -> AsyncGenerator[TResponseStreamEvent, None]:
        """Responses events as they happen, as `agents.Model.stream_response` has it.

        Closing the iterator stops the generation. Raises what `get_response` raises.
        """
        _refuse(previous_response_id, conversation_id, prompt)
        asked = _Asked(
            instructions=system_instructions or "",
            conversation=read(input),
            options=options_of(tools, handoffs),
            settings=model_settings,
            schema=output_schema,
        )
        with generation_span(model=self._name, disabled=tracing.is_disabled()) as span:
            if tracing.include_data():
                span.span_data.input = [dict(message) for message in as_chat(_shown(asked))]
            async with aclosing(self._events(asked)) as events:
                async for event in events:
                    if isinstance(event, ResponseCompletedEvent):
                        _trace(span, event, include_data=tracing.include_data())
                    yield event

    async def warm(self, instructions: str | None, tools: Sequence[Tool]) -> None:
        """Have llama.cpp read what begins an agent's prompts, so that its first turn is quick.

        Args:
            instructions: The agent's instructions.
            tools: The agent's tools.

        Raises:
            LlamaError: llama.cpp failed.
        """
        requests = Requests(self._server)
        begin = [Message("system", instructions)] if instructions else []
        one = {"max_tokens": 1}
        await requests.text(as_chat([*begin, Message("user", "Hello")]), one)
        if options := options_of(tools, ()):
            await requests.text(choosing(options, "Hello"), one)

    async def _events(self, asked: _Asked) -> AsyncGenerator[TResponseStreamEvent, None]:
        answer = Answer(self._name)
        requests = Requests(self._server)
        yield answer.created()
        option = await _choose(requests, asked)
        if option is not None:
            for event in answer.call(option.name, await _arguments(requests, asked, option)):
                yield event
        else:
            for event in answer.message_begins():
                yield event
            words = requests.stream(as_chat(_shown(asked)), _parameters(asked))
            async with aclosing(words):
                async for delta in words:
                    yield answer.text(delta)
            for event in answer.message_ends(cut=requests.was_cut):
                yield event
        yield answer.completed(requests.usage())


async def _choose(requests: Requests, asked: _Asked) -> Option | None:
    """The tool to call; None to answer in words."""
    choice = open_choice(asked.options, asked.conversation.newest, asked.settings)
    name = choice.settled
    if name is None:
        prompt = choosing(choice.options, asked.conversation.newest.user_text)
        reply = await requests.text(prompt, choosing_parameters(choice))
        name = reply.removeprefix(PREFIX).removesuffix('"')
    if name == ANSWER:
        return None
    return next(option for option in choice.options if option.name == name)


async def _arguments(requests: Requests, asked: _Asked, option: Option) -> str:
    if not option.takes_arguments:
        return "{}"
    recent = asked.conversation.turns[-_ARGUED_FROM:]
    shown = [message for turn in recent for message in turn.messages]
    schema = {"name": option.name, "schema": option.parameters, "strict": True}
    parameters = {
        "temperature": 0,
        "max_tokens": OUTPUT_TOKENS,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    arguments = await requests.text(arguing(option, shown), parameters)
    if requests.was_cut:
        raise LlamaError(f"The embedded model found no end of the arguments for {option.name}.")
    return arguments


def _shown(asked: _Asked) -> list[Message]:
    return asked.conversation.shown(asked.instructions)


def _parameters(asked: _Asked) -> dict[str, Any]:
    settings = asked.settings
    parameters: dict[str, Any] = {
        # The likeliest words: a small model wanders off when it may choose.
        "temperature": 0 if settings.temperature is None else settings.temperature,
        "max_tokens": min(settings.max_tokens or OUTPUT_TOKENS, MOST_OUTPUT_TOKENS),
    }
    for name in ("top_p", "frequency_penalty", "presence_penalty"):
        if (value := getattr(settings, name)) is not None:
            parameters[name] = value
    if asked.schema is not None and not asked.schema.is_plain_text():
        schema = {
            "name": asked.schema.name(),
            "schema": asked.schema.json_schema(),
            "strict": asked.schema.is_strict_json_schema(),
        }
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    return parameters


def _refuse(
    previous_response_id: str | None,
    conversation_id: str | None,
    prompt: ResponsePromptParam | None,
) -> None:
    """Refuse what only OpenAI's servers hold."""
    held = {
        "previous_response_id": previous_response_id,
        "conversation_id": conversation_id,
        "prompt": prompt,
    }
    for name, value in held.items():
        if value is not None:
            raise UnsupportedByEmbeddedModelError(f"look up a {name}", param=name)


def _as_model_response(event: ResponseCompletedEvent) -> ModelResponse:
    usage = Usage(requests=1)
    if used := event.response.usage:
        usage = Usage(
            requests=1,
            input_tokens=used.input_tokens,
            input_tokens_details=used.input_tokens_details,
            output_tokens=used.output_tokens,
            output_tokens_details=used.output_tokens_details,
            total_tokens=used.total_tokens,
        )
    return ModelResponse(event.response.output, usage, event.response.id)


def _trace(
    span: Span[GenerationSpanData], event: ResponseCompletedEvent, *, include_data: bool
) -> None:
    if include_data:
        span.span_data.output = [item.model_dump() for item in event.response.output]
    if used := event.response.usage:
        span.span_data.usage = {
            "input_tokens": used.input_tokens,
            "output_tokens": used.output_tokens,
        }
