"""Tool calls in a run that may be replayed: which are made, and what is stored of each.

A call leaves its intent before and its outcome behind it. On replay an outcome is given again; an
intent without one is in doubt, which ends the run unless the tool may run twice or somebody has
decided. What a tool gave is stored as JSON that comes back as the same value, or as the text that
the model would see of it: only an object that is no JSON comes back as text, for whoever looks at
it beside the model (hooks, guardrails, `tool_use_behavior`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from agents import (
    AgentsException,
    FunctionTool,
    ToolOriginType,
)
from agents.tool import (
    _FunctionToolInvocationResult,  # what the Runner takes from a call; it has no public name
    get_function_tool_origin,
)
from agents.tool_context import ToolContext

from threadkeep.errors import ClosedError, ThreadkeepError
from threadkeep.history import json_text
from threadkeep.journal import Decision, InDoubtError, Journal, ToolStep
from threadkeep.mend import UNKNOWN_OUTCOME
from threadkeep.tool_names import tool_id
from threadkeep.tool_output import bounded, bounded_text, plain


class NotRecordedError(AgentsException):
    """An agent whose outcome is known has come to where it ended."""


ToolResult = _FunctionToolInvocationResult
"""A tool's output, and whether the SDK made it of an error."""

Marked = TypeVar("Marked", bound=Callable[..., Any] | FunctionTool)

_MCP_HINTS = ("read_only_hint", "idempotent_hint", "readOnlyHint", "idempotentHint")
_IDEMPOTENT = "__threadkeep_idempotent__"


class ToolFailedError(ThreadkeepError):
    """The tool had failed before the run was interrupted. The message is what it said then."""


class _SdkToolFailedError(ToolFailedError, AgentsException):
    """An error of the SDK's own kind, which the Runner passes on as it is."""


def idempotent(tool: Marked) -> Marked:
    """Marks a tool that may run again when nobody knows whether a call of it had happened.

    Stands above or below `@function_tool`. Such a tool does no harm when it runs twice: it only
    reads, or it hands `tool_key()` to something that tells a repetition by it.

    Args:
        tool: A function or a `FunctionTool`.

    Returns:
        The same object.
    """
    setattr(tool, _IDEMPOTENT, True)
    return tool


def is_idempotent(tool: FunctionTool) -> bool:
    """Whether the tool says that it may run again: by `@idempotent`, or by its MCP annotations.

    Source: https://modelcontextprotocol.io/specification/2025-06-18/schema#toolannotations
    """
    function = getattr(tool, "__wrapped__", None)
    if getattr(tool, _IDEMPOTENT, False) or getattr(function, _IDEMPOTENT, False):
        return True
    hints = getattr(tool, "mcp_annotations", None)  # the SDK 0.22 keeps none
    return any(getattr(hints, name, None) is True for name in _MCP_HINTS)


def tool_key() -> str | None:
    """What names this call of a tool, the same in every attempt: an idempotency key.

    Returns:
        64 hexadecimal digits; None outside a tool of a journaled run.
    """
    place = current_place.get()
    return place.tool_key() if place is not None else None


def is_agent(tool: FunctionTool) -> bool:
    """Whether it is an agent, made a tool by `as_tool`."""
    origin = get_function_tool_origin(tool)
    return origin is not None and origin.type is ToolOriginType.AGENT_AS_TOOL


def encode_result(result: ToolResult) -> str:
    """What a tool gave, as JSON text."""
    value = plain(result.output)
    stored: dict[str, Any] = {"value": value} if _comes_back(value) else {"text": str(value)}
    if result.is_sdk_generated_error:
        stored["made_of_error"] = True
    return json_text(stored)


def encode_error(error: BaseException, most: int) -> str:
    """What a tool raised, as JSON text: its message, cut to `most` bytes, and how the Runner takes
    it."""
    kind = "error"
    if isinstance(error, asyncio.CancelledError):
        kind = "cancelled"
    elif isinstance(error, AgentsException):
        kind = "sdk"
    return json_text({"error": bounded_text(str(error), most), "kind": kind})


def decode_outcome(text: str) -> ToolResult:
    """What a tool had given.

    Raises:
        ToolFailedError: What it had raised, so that the Runner takes it as it did then.
        CancelledError: The tool, and nobody else, had cancelled itself.
    """
    stored = json.loads(text)
    if "error" not in stored:
        output = stored["value"] if "value" in stored else stored["text"]
        return ToolResult(output, is_sdk_generated_error=stored.get("made_of_error", False))
    if stored["kind"] == "cancelled":
        raise asyncio.CancelledError(stored["error"])
    raise (_SdkToolFailedError if stored["kind"] == "sdk" else ToolFailedError)(stored["error"])


def _comes_back(value: Any) -> bool:
    try:
        decoded = json.loads(json_text(value))
        return bool(decoded == value) and str(decoded) == str(value)
    except (TypeError, ValueError, RecursionError):
        return False


class Attempt:
    """What the parts of one attempt at a run share.

    Attributes:
        failure: The first error that must end the run. Agents as tools, guardrails and tools may
            turn an error into text, so whoever comes by raises it again.
        ended: Whether nothing of it may go on.
        most: How large an item may be, in bytes.
    """

    def __init__(
        self,
        journal: Journal,
        run_id: str,
        decisions: Mapping[str, Decision],
        approved_tools: Collection[str],
        most: int,
    ) -> None:
        self.journal = journal
        self.most = most
        self.decisions = decisions
        self.approved_tools = approved_tools
        self.failure: Exception | None = None
        self.ended = False
        self.loop = asyncio.get_running_loop()
        self.run_id = run_id
        self._tainted: frozenset[str] = frozenset()
        self._broken = False
        self._busy: set[str] = set()
        self._rested = asyncio.Event()

    def fail(self, error: Exception, place: Place) -> None:
        """Ends the run with an error; the tools that it came up in have no outcome."""
        if self.failure is None:
            self.failure, self._tainted = error, place.tools

    async def check(self, place: Place) -> None:
        """Raises when the run must not go on.

        The SDK cancels what goes on beside an error, and a tool that is cancelled is in doubt. So
        this waits until what had begun has ended.
        """
        if self.failure is None and not self.ended:
            return
        self._rest(place.tools)  # they wait for us
        while self._busy and not self._broken and not self.ended:
            self._rested.clear()
            await self._rested.wait()
        raise self.failure or ClosedError("The run has ended. Nothing of it may go on.")

    def is_tainted(self, key: str) -> bool:
        """Whether the error that ends the run came up inside this tool."""
        return key in self._tainted

    @contextmanager
    def busy(self, key: str) -> Iterator[None]:
        """While it lasts, something goes on that an error beside it must not cut off."""
        self._busy.add(key)
        try:
            yield
        finally:
            self._rest({key})

    def _rest(self, keys: Iterable[str]) -> None:
        self._busy.difference_update(keys)
        self._rested.set()

    async def write(self, writing: Awaitable[None], place: Place) -> None:
        """Waits until it is stored, also when the run is cancelled: what happened is known then."""
        task = asyncio.ensure_future(writing)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.gather(task, return_exceptions=True)
            raise
        except Exception as error:  # whatever it is, the run must not go on
            self.fail(error, place)
            self._broken = True
            self._rest(())
            raise


class Place:
    """Where Runner calls can be made: the top, or inside a tool or a Runner call.

    Args:
        attempt: The attempt it belongs to.
        path: Its key.
        tools: The keys of the tools that it is inside of, but for agents.
        only_replay: Whether its outcome is known, so that nothing new may happen in it.
        many: Whether several agents may run in it, in any order, so that they go by their names.
            Where one runs, it may not be another one after the interruption.
    """

    def __init__(
        self,
        attempt: Attempt,
        path: str,
        tools: frozenset[str] = frozenset(),
        *,
        only_replay: bool = False,
        many: bool = False,
    ) -> None:
        self.attempt = attempt
        self.path = path
        self.tools = tools
        self.only_replay = only_replay
        self._many = many
        self._runs: Counter[str] = Counter()

    def tool_key(self) -> str | None:
        """What names the tool that it is, in this run and no other."""
        if self.path not in self.tools:
            return None
        return hashlib.sha256(f"{self.attempt.run_id}\n{self.path}".encode()).hexdigest()

    def path_of_run(self, agent_name: str) -> str:
        """The key of a Runner call that begins here."""
        name = quote(agent_name, safe=" /") if self._many else "main"
        self._runs[name] += 1
        if self._runs[name] > 1:
            name += f"~{self._runs[name]}"
        return f"{self.path}>{name}" if self.path else name


current_place: ContextVar[Place | None] = ContextVar("threadkeep_place", default=None)


@contextmanager
def within(place: Place | None) -> Iterator[None]:
    token = current_place.set(place)
    try:
        yield
    finally:
        current_place.reset(token)


class ToolCalls(Place):
    """One Runner call, and in it the tool calls of the model's last answer.

    Attributes:
        agent_name: Whose turn it is.
        calls: The keys of those that leave a step, and whether each may run again.
        intended: The keys of those whose intent this attempt has stored.
    """

    def __init__(self, parent: Place, agent_name: str) -> None:
        path, only_replay = parent.path_of_run(agent_name), parent.only_replay
        super().__init__(parent.attempt, path, parent.tools, only_replay=only_replay, many=True)
        self.turn = 0
        self.agent_name = agent_name
        self.calls: dict[str, bool] = {}
        self.intended: set[str] = set()

    @property
    def key(self) -> str:
        """The key of the model call at work, and of the tool calls that follow from it."""
        return f"{self.path}#{self.turn}"

    def step(self, call_id: str, tool: FunctionTool, arguments: str) -> ToolStep:
        """A call of the model's last answer."""
        key, again = (
            f"{self.key}:{quote(call_id, safe=' /')}",
            is_agent(tool) or is_idempotent(tool),
        )
        return ToolStep(key, call_id, tool.name, arguments, repeatable=again)

    def needs_no_approval(self, tool_name: str, call_id: str) -> bool:
        """Whether nobody has to be asked: it was called before, or is approved for good."""
        if tool_id(self.agent_name, tool_name) in self.attempt.approved_tools:
            return True
        key = f"{self.key}:{quote(call_id, safe=' /')}"
        return self.attempt.journal.tool_step(key) is not None

    async def call(
        self,
        tool: FunctionTool,
        context: ToolContext[Any],
        arguments: str,
        invoke: Callable[[], Awaitable[ToolResult]],
    ) -> ToolResult:
        """Answers a tool call from the journal, or makes it and stores how it ended."""
        await self.attempt.check(self)
        step = self.step(context.tool_call_id, tool, arguments)
        earlier = self.attempt.journal.tool_step(step.key)
        if is_agent(tool):
            return await self._enter_agent(step, earlier, invoke)
        if earlier is not None and earlier.status == "done":
            return decode_outcome(earlier.output)
        decision = self.attempt.decisions.get(step.key)
        if earlier is not None and earlier.status == "failed" and decision is None:
            return decode_outcome(earlier.output)
        if self.only_replay:
            raise NotRecordedError(f"The tool call {step.key} had not ended.")
        await self._stop_in_doubt(step)
        with self.attempt.busy(step.key):
            if earlier is not None and decision is not None and not decision.run_again:
                why = f": {decision.reason}" if decision.reason else ""
                unknown = ToolResult(UNKNOWN_OUTCOME + why)
                await self._store(step, "done", encode_result(unknown))
                return unknown
            if (earlier is None and step.key not in self.intended) or decision is not None:
                await self.attempt.write(self.attempt.journal.record_tool(step), self)
            return await self._call_tool(step, invoke)

    async def _stop_in_doubt(self, own: ToolStep) -> None:
        """Raises when this call, or one beside it, must not be made.

        Calls of one answer run at once, and the first error cancels the others. So all are looked
        at before any is made.
        """
        attempt = self.attempt
        earlier = []
        for key, again in (self.calls | {own.key: own.repeatable}).items():
            step = None if key in self.intended else attempt.journal.tool_step(key)
            if step is not None and key not in attempt.decisions:
                earlier.append((step, again))
        for step, _ in earlier:
            if step.status == "failed":  # this ended the run then, whatever became of the others
                decode_outcome(step.output)
        in_doubt = [step for step, again in earlier if step.status == "intended" and not again]
        if in_doubt:
            attempt.fail(InDoubtError(in_doubt), self)
            await attempt.check(self)

    async def _call_tool(
        self, step: ToolStep, invoke: Callable[[], Awaitable[ToolResult]]
    ) -> ToolResult:
        attempt = self.attempt
        inside = Place(attempt, step.key, self.tools | {step.key}, many=True)
        try:
            with within(inside):
                result = self._bounded(await invoke())
            outcome = encode_result(result)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the run is cancelled, or a call beside this one failed: it is in doubt
            await self._end(step, "done", encode_error(error, attempt.most), inside)
            raise
        except Exception as error:
            await self._end(step, "failed", encode_error(error, attempt.most), inside)
            raise
        await self._end(step, "done", outcome, inside)
        return result

    def _bounded(self, result: ToolResult) -> ToolResult:
        """What a tool gave, or as much of it as an item may hold."""
        return replace(result, output=bounded(result.output, self.attempt.most))

    async def _end(
        self, step: ToolStep, status: Literal["done", "failed"], output: str, inside: Place
    ) -> None:
        """Stores how a call ended, unless it only tells that the run must end."""
        if self.attempt.is_tainted(step.key) or self.attempt.ended:
            await self.attempt.check(inside)
        await self._store(step, status, output)

    async def _store(self, step: ToolStep, status: Literal["done", "failed"], output: str) -> None:
        ended = replace(step, status=status, output=output)
        await self.attempt.write(self.attempt.journal.record_tool(ended), self)

    async def _enter_agent(
        self,
        step: ToolStep,
        earlier: ToolStep | None,
        invoke: Callable[[], Awaitable[ToolResult]],
    ) -> ToolResult:
        """Runs an agent that is a tool. What it does is in the journal under its own places.

        Its outcome is stored too, because the outer run may have gone on with an error of it. Then
        it is entered again for its usage and for its state that waits for approvals, and does
        nothing new.
        """
        only_replay = self.only_replay or earlier is not None
        result = None
        try:
            with within(Place(self.attempt, step.key, self.tools, only_replay=only_replay)):
                result = self._bounded(await invoke())
        except Exception:
            await self.attempt.check(self)
            if earlier is None:
                raise
        await self.attempt.check(self)
        if earlier is not None:
            return decode_outcome(earlier.output)
        assert result is not None  # noqa: S101 - else it has raised
        if result.output is not None and not only_replay:  # None: it waits for an approval
            await self._store(step, "done", encode_result(result))
        return result
