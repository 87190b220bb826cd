"""Durable runs by replay: the same Runner call again, answered from a journal as far as it goes.

Inside `journaling`, every answer of a model is stored before the Runner sees it, and every call of
a function tool leaves its intent before and its outcome behind. A run that died is made again, by
whichever process: what is in the journal is not asked or called again, so it arrives where the
first one died, and goes on. The journal is checked on the way: a request that differs from the one
that was answered ends the run. What is new gets call ids that are unique (call_ids.py).

The SDK's hooks only observe, so its own functions are replaced, once in a process: where a run
begins (`AgentRunner`), where its model is chosen, where a function tool is invoked, and where it is
asked whether a call is approved. A context variable says which journal a run belongs to; without
one everything is as it was. Replacing them there, and not the tools, leaves the tools' identity
alone, by which the SDK finds approvals.

Keys are places: `main#2` is the second model call of the run, `main#2:c7` a tool call of its
answer, and `main#2:c7>main#1` the first model call of the agent that this tool is. Agents as tools
are entered again on replay: their own calls are in the journal.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import inspect
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from agents import (
    Agent,
    AgentsException,
    FunctionTool,
    Model,
    ModelResponse,
    RunConfig,
    RunContextWrapper,
    Usage,
)
from agents.items import TResponseStreamEvent
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from agents.run import AgentRunner
from agents.run_internal import run_loop, tool_execution
from agents.tool_context import ToolContext
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemDoneEvent,
)
from pydantic import BaseModel, TypeAdapter

from threadkeep.call_ids import CallIds, call_ids
from threadkeep.errors import ClosedError, ThreadkeepError
from threadkeep.history import json_text
from threadkeep.journal import Decision, InDoubtError, Journal, ModelStep, ToolStep
from threadkeep.limits import MAX_ITEM_BYTES
from threadkeep.mend import UNKNOWN_OUTCOME
from threadkeep.reminder import Reminder
from threadkeep.replay_tools import (
    Attempt,
    NotRecordedError,
    Place,
    ToolCalls,
    ToolFailedError,
    ToolResult,
    current_place,
    idempotent,
    is_agent,
    tool_key,
    within,
)

__all__ = [
    "UNKNOWN_OUTCOME",
    "Decision",
    "InDoubtError",
    "Journal",
    "JournaledModel",
    "ModelStep",
    "NotDeterministicError",
    "ToolFailedError",
    "ToolStep",
    "idempotent",
    "journaling",
    "tool_key",
]


class NotDeterministicError(ThreadkeepError, AgentsException):
    """The run does not ask what it asked before, so it can't be resumed. Start it anew.

    Args:
        key: The model call.
        parts: What of the request differs.
    """

    def __init__(self, key: str, parts: Sequence[str]) -> None:
        super().__init__(
            f"The model call {key} has other {', '.join(parts)} than before the interruption, so "
            "the run can't be resumed. Keep what changes by itself, such as the time, out of them."
        )
        self.key = key
        self.parts = tuple(parts)


@contextmanager
def journaling(
    journal: Journal,
    run_id: str,
    *,
    segment: str = "",
    decisions: Mapping[str, Decision] | None = None,
    approved_tools: Collection[str] = (),
    item_bytes: int = MAX_ITEM_BYTES,
) -> Iterator[None]:
    """Journals the Runner call made within it, and answers it from what the journal holds.

    Args:
        journal: The steps of earlier attempts, and where new ones go.
        run_id: Makes the keys that tools see unlike those of other runs.
        segment: Tells apart several Runner calls of one run, such as those before and after an
            approval.
        decisions: What to do with calls in doubt, by their keys.
        approved_tools: Those that need no approval, as `tool_id` names them.
        item_bytes: How large an item may be: what a tool gives is cut to that.

    Raises:
        InDoubtError: A call may have happened, its tool is not idempotent, and nobody decided.
        NotDeterministicError: A request is not the one that the journal has the answer of.
        Exception: What the journal raised, whatever the SDK made of it.
    """
    _replace_functions()
    attempt = Attempt(journal, run_id, decisions or {}, approved_tools, item_bytes)
    try:
        with within(Place(attempt, quote(segment, safe=" /"))):
            yield
    except Exception as error:
        if attempt.failure is not None and error is not attempt.failure:
            raise attempt.failure  # noqa: B904 - its own cause says more than what the SDK made
        raise
    finally:
        attempt.ended = True
    if attempt.failure is not None:
        raise attempt.failure


_Asked = Mapping[str, Any]
"""What a model is asked, by the SDK's names of the arguments."""


class _Run(ToolCalls):
    """One Runner call, and in it the calls of models."""

    def __init__(self, parent: Place, agent_name: str) -> None:
        super().__init__(parent, agent_name)
        self._models: dict[int, JournaledModel] = {}
        self._called: set[str] = set()
        self._call_ids: set[str] = set()

    def begin_turn(self, agent_name: str, model: Model) -> JournaledModel:
        """The model for the next call; when the SDK retries that, it is the same call."""
        self.turn += 1
        self.agent_name = agent_name
        return self._models.setdefault(id(model), JournaledModel(model, self))

    def new_call_ids(self, asked: _Asked) -> CallIds | None:
        """The ids for a new answer; None where a server keeps the conversation, with its own ids.

        A handoff or a filter may hide from the model what the Runner still knows of this run.
        """
        if asked["previous_response_id"] or asked["conversation_id"]:
            return None
        return CallIds(self._call_ids | call_ids(asked["input"]))

    async def answered(self, request: Mapping[str, str]) -> str | None:
        """The answer that an earlier attempt got to the same request."""
        await self.attempt.check(self)
        step = self.attempt.journal.model_step(self.key)
        if step is not None and step.request_hash == json_text(request):
            return step.response
        if self.only_replay:
            raise NotRecordedError(f"The model call {self.key} had not been answered.")
        if step is not None:
            before = json.loads(step.request_hash)
            parts = [name for name in request if request[name] != before.get(name)]
            self.attempt.fail(NotDeterministicError(self.key, parts), self)
            await self.attempt.check(self)
        return None

    async def record(
        self, request: Mapping[str, str], response: str, output: Sequence[Any], asked: _Asked
    ) -> None:
        """Stores a new answer, with the calls that the Runner makes of it for certain.

        Calls that somebody has to approve leave their intent when they are made.
        """
        intents = {
            step.key: step
            for step, tool in self._function_calls(output, asked)
            if tool.needs_approval is False and not tool.tool_input_guardrails
        }
        step = ModelStep(self.key, json_text(request), response)
        writing = self.attempt.journal.record_model(step, list(intents.values()))
        await self.attempt.write(writing, self)
        self.expect(output, asked, set(intents))

    def expect(self, output: Sequence[Any], asked: _Asked, intended: set[str]) -> None:
        """Takes in what an answer calls, and of what this attempt has stored the intent."""
        calls = self._function_calls(output, asked)
        self.calls = {step.key: step.repeatable for step, _ in calls}
        self._called |= {step.call_id for step, _ in calls}
        self._call_ids |= call_ids(output)
        self.intended = intended

    def _function_calls(
        self, output: Sequence[Any], asked: _Asked
    ) -> list[tuple[ToolStep, FunctionTool]]:
        """The calls of function tools; the Runner passes over ids that it has seen in this run."""
        functions = [tool for tool in asked["tools"] if isinstance(tool, FunctionTool)]
        names = Counter(tool.name for tool in functions)
        by_name = {t.name: t for t in functions if names[t.name] == 1 and not is_agent(t)}
        return [
            (self.step(call.call_id, by_name[call.name], call.arguments), by_name[call.name])
            for call in output
            if isinstance(call, ResponseFunctionToolCall)
            and call.name in by_name
            and call.call_id not in self._called
        ]


class JournaledModel(Model):
    """A model whose answers are stored before anybody sees them, and not asked for twice.

    Args:
        model: The model that answers what the journal does not.
        run: The run that asks.
    """

    def __init__(self, model: Model, run: _Run) -> None:
        self._model = model
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """The answer as a whole; the arguments are those of the model."""
        asked = _asked(args, kwargs)
        request = self._request("whole", asked)
        stored = await self._run.answered(request)
        if stored is not None:
            response = _decode_answer(stored)
            self._run.expect(response.output, asked, set())
            return response
        with self._run.attempt.busy(self._run.key):
            response = await self._model.get_response(*args, **kwargs)
            if ids := self._run.new_call_ids(asked):
                response = copy.copy(response)
                response.output = ids.in_answer(response.output)
            encoded = _encode_answer(response)
            await self._run.record(request, encoded, response.output, asked)
        return response

    async def stream_response(
        self, *args: Any, **kwargs: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        """The answer as it comes, its end only when it is stored; a stored one is only an end."""
        asked = _asked(args, kwargs)
        request = self._request("streamed", asked)
        stored = await self._run.answered(request)
        if stored is not None:
            response = _decode_response(stored)
            self._run.expect(response.output, asked, set())
            yield ResponseCompletedEvent(
                type="response.completed", response=response, sequence_number=0
            )
            return
        events = self._model.stream_response(*args, **kwargs)
        output = []  # as the model gives it
        ids = self._run.new_call_ids(asked)
        try:
            with self._run.attempt.busy(self._run.key):
                async for event in events:
                    if isinstance(event, ResponseOutputItemDoneEvent):
                        output.append(event.item)
                    elif isinstance(event, ResponseCompletedEvent):
                        response = event.response
                        response.output = response.output or output  # some send it empty
                    if ids is not None:
                        event = ids.in_event(event)
                    if isinstance(event, ResponseCompletedEvent):
                        encoded = _encode_response(event.response)
                        await self._run.record(request, encoded, event.response.output, asked)
                    yield event
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        """What the model advises; but what the journal refused is not tried again."""
        if request.error is self._run.attempt.failure or isinstance(
            request.error, (NotRecordedError, ClosedError)
        ):
            return ModelRetryAdvice(suggested=False, replay_safety="unsafe")
        return self._model.get_retry_advice(request)

    async def close(self) -> None:
        """Closes the model."""
        await self._model.close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._model._cleanup_on_run_end(owner)  # noqa: SLF001 - the SDK calls it on us

    def _request(self, form: str, asked: _Asked) -> dict[str, str]:
        """The parts of a request, each as a hash. Settings are none: they may change meanwhile; so
        may what the model is reminded of."""
        schema = asked["output_schema"]
        ids = [asked[name] for name in ("previous_response_id", "conversation_id", "prompt")]
        parts = {
            "agent": [self._run.agent_name, form],
            "instructions": asked["system_instructions"],
            "input": [item for item in asked["input"] if not isinstance(item, Reminder)],
            "tools": sorted(getattr(tool, "qualified_name", tool.name) for tool in asked["tools"]),
            "handoffs": sorted(handoff.tool_name for handoff in asked["handoffs"]),
            "output type": schema and schema.name(),
            "conversation": ids,
        }
        return {name: _hash(part) for name, part in parts.items()}


_SIGNATURE = inspect.signature(Model.get_response)


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Asked:
    return _SIGNATURE.bind(None, *args, **kwargs).arguments


def _hash(part: object) -> str:
    text = json.dumps(part, sort_keys=True, default=_comparable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _comparable(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True, warnings=False)
    return type(value).__name__


_usage = TypeAdapter(Usage)


def _encode_answer(answer: ModelResponse) -> str:
    return _json(
        {
            "output": [_item_json(item) for item in answer.output],
            "usage": _usage.dump_python(answer.usage, mode="json"),
            "response_id": answer.response_id,
            "request_id": answer.request_id,
            "raw_usage": answer.raw_usage,
        }
    )


def _decode_answer(text: str) -> ModelResponse:
    stored = json.loads(text)
    output = Response.model_construct(output=stored.pop("output")).output
    return ModelResponse(output=output, usage=_usage.validate_python(stored.pop("usage")), **stored)


def _encode_response(response: Response) -> str:
    echo = {"instructions", "tools"}  # of the request: nobody needs it, and it is long
    data = response.model_dump(mode="json", exclude_unset=True, exclude=echo, warnings=False)
    return _json({"response": data, "marks": [_marks(response), _marks(response.usage)]})


def _decode_response(text: str) -> Response:
    stored = json.loads(text)
    response = Response.model_construct(**{"tools": []} | stored["response"])
    for marked, marks in zip((response, response.usage), stored["marks"], strict=True):
        if marked is not None:
            vars(marked).update(marks)
    return response


def _marks(marked: object) -> dict[str, int]:
    """How many requests the SDK counts for an answer, which it writes beside the fields."""
    values = vars(marked) if marked is not None else {}
    return {
        name: value
        for name, value in values.items()
        if name.startswith("_agents_sdk_") and isinstance(value, int)
    }


def _item_json(item: Any) -> Any:
    if isinstance(item, BaseModel):
        return item.model_dump(mode="json", exclude_unset=True, warnings=False)
    return item


def _json(data: object) -> str:
    """JSON text, with null for numbers it can't hold, such as a log probability of -inf."""
    try:
        return json_text(data)
    except ValueError:
        return json_text(json.loads(json.dumps(data), parse_constant=lambda _: None))


_replacing = threading.Lock()


def _replace_functions() -> None:
    """Puts ourselves into the SDK, once. Outside `journaling` all of it does what it did."""
    with _replacing:
        _replace_once()


@functools.cache
def _replace_once() -> None:
    _replace(AgentRunner, "run", _journaled_run)
    _replace(AgentRunner, "run_streamed", _journaled_run_streamed)
    _replace(run_loop, "get_model", _journaled_get_model)
    _replace(tool_execution, "_invoke_function_tool_with_metadata", _journaled_invoke)
    _replace(RunContextWrapper, "get_approval_status", _known_approval_status)


def _replace(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(around(original)))


def _place_of_run(agent: Agent[Any]) -> Place | None:
    place = current_place.get()
    if place is None or place.attempt.ended or place.attempt.loop is not asyncio.get_running_loop():
        return None  # the journal is closed, or belongs to another loop
    return _Run(place, agent.name)


def _journaled_run(original: Any) -> Any:
    async def run(self: Any, starting_agent: Agent[Any], *args: Any, **kwargs: Any) -> Any:
        with within(_place_of_run(starting_agent)):
            return await original(self, starting_agent, *args, **kwargs)

    return run


def _journaled_run_streamed(original: Any) -> Any:
    def run_streamed(self: Any, starting_agent: Agent[Any], *args: Any, **kwargs: Any) -> Any:
        with within(_place_of_run(starting_agent)):
            return original(self, starting_agent, *args, **kwargs)

    return run_streamed


def _journaled_get_model(original: Any) -> Any:
    def get_model(agent: Agent[Any], run_config: RunConfig) -> Model:
        model: Model = original(agent, run_config)
        place = current_place.get()
        return place.begin_turn(agent.name, model) if isinstance(place, _Run) else model

    return get_model


def _known_approval_status(original: Any) -> Any:
    def get_approval_status(self: Any, tool_name: str, call_id: str, **kwargs: Any) -> bool | None:
        status: bool | None = original(self, tool_name, call_id, **kwargs)
        place = current_place.get()
        if status is None and isinstance(place, _Run):
            return place.needs_no_approval(tool_name, call_id) or None
        return status

    return get_approval_status


def _journaled_invoke(original: Any) -> Any:
    async def invoke(
        *, function_tool: FunctionTool, context: ToolContext[Any], arguments: str
    ) -> ToolResult:
        call = functools.partial(
            original, function_tool=function_tool, context=context, arguments=arguments
        )
        place = current_place.get()
        if not isinstance(place, _Run):
            return await call()  # type: ignore[no-any-return]
        return await place.call(function_tool, context, arguments, call)

    return invoke
