"""Tools in a run that may be replayed: which may run twice, and what is stored of how they ended.

What a tool gave is stored as JSON that comes back as the same value, or as the text the model would
see of it. So a replayed output makes the same item; only an object that is no JSON comes back as
its text, for whoever looks at it beside the model: hooks, guardrails, `tool_use_behavior`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from agents import (
    AgentsException,
    FunctionTool,
    ToolOriginType,
    ToolOutputFileContent,
    ToolOutputImage,
    ToolOutputText,
)
from agents.tool import (
    _FunctionToolInvocationResult,  # what the Runner takes from a call; it has no public name
    get_function_tool_origin,
)

from threadkeep.errors import ThreadkeepError
from threadkeep.history import json_text

ToolResult = _FunctionToolInvocationResult
"""A tool's output, and whether the SDK made it of an error."""

UNKNOWN_OUTCOME = "outcome unknown"
"""The output of a call of which nobody can say whether it happened."""

Marked = TypeVar("Marked", bound=Callable[..., Any] | FunctionTool)

_STRUCTURED = (ToolOutputText, ToolOutputImage, ToolOutputFileContent)
_MCP_HINTS = ("read_only_hint", "idempotent_hint", "readOnlyHint", "idempotentHint")
_IDEMPOTENT = "__threadkeep_idempotent__"

_key: ContextVar[str | None] = ContextVar("threadkeep_tool_key", default=None)


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
    return _key.get()


@contextmanager
def under_key(key: str) -> Iterator[None]:
    """While it lasts, `tool_key()` gives this key."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


def is_agent(tool: FunctionTool) -> bool:
    """Whether it is an agent, made a tool by `as_tool`."""
    origin = get_function_tool_origin(tool)
    return origin is not None and origin.type is ToolOriginType.AGENT_AS_TOOL


def encode_result(result: ToolResult) -> str:
    """What a tool gave, as JSON text.

    Raises:
        Exception: It is an object that can't even be shown as text.
    """
    value = _plain(result.output)
    stored: dict[str, Any] = {"value": value} if _comes_back(value) else {"text": str(value)}
    if result.is_sdk_generated_error:
        stored["made_of_error"] = True
    return json_text(stored)


def decode_result(text: str) -> ToolResult:
    """What a tool had given."""
    stored = json.loads(text)
    output = stored["value"] if "value" in stored else stored["text"]
    return ToolResult(output, is_sdk_generated_error=stored.get("made_of_error", False))


def encode_error(error: BaseException) -> str:
    """What a tool raised, as JSON text: its message, and how the Runner takes it."""
    kind = "error"
    if isinstance(error, asyncio.CancelledError):
        kind = "cancelled"
    elif isinstance(error, AgentsException):
        kind = "sdk"
    return json_text({"error": str(error), "kind": kind})


def decode_error(text: str) -> BaseException:
    """An error that the Runner takes as it took the one that was stored."""
    stored = json.loads(text)
    if stored["kind"] == "cancelled":
        return asyncio.CancelledError(stored["error"])
    return (_SdkToolFailedError if stored["kind"] == "sdk" else ToolFailedError)(stored["error"])


def _plain(value: Any) -> Any:
    """The SDK's images, files and texts as the dictionaries that mean the same to it."""
    if isinstance(value, _STRUCTURED):
        return value.model_dump(exclude_none=True)
    if isinstance(value, (list, tuple)) and all(isinstance(v, (*_STRUCTURED, dict)) for v in value):
        return [_plain(part) for part in value]
    return value


def _comes_back(value: Any) -> bool:
    try:
        decoded = json.loads(json_text(value))
        return bool(decoded == value) and str(decoded) == str(value)
    except (TypeError, ValueError, RecursionError):
        return False
