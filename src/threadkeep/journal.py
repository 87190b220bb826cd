"""The journal of a run: what its models answered and what its tools did, step by step.

A step has a key, which is its place in the run: see replay.py. Whoever makes the run again is given
the steps that are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agents import AgentsException

from threadkeep.errors import ThreadkeepError


@dataclass(frozen=True)
class Decision:
    """What becomes of a call in doubt.

    Args:
        run_again: Whether it is made again; else the model is told that nobody knows its outcome.
        reason: What the model is told besides.
    """

    run_again: bool
    reason: str | None = None


@dataclass(frozen=True)
class ModelStep:
    """What a model answered.

    Args:
        key: Its place in the run.
        request_hash: What the request was, part by part.
        response: The answer, as JSON text.
    """

    key: str
    request_hash: str
    response: str


@dataclass(frozen=True)
class ToolStep:
    """A call of a function tool, or of an agent as a tool.

    Args:
        key: Its place in the run.
        call_id: As the model gave it; models give the same one twice.
        name: The tool.
        arguments: As the model gave them, JSON text.
        status: `intended` (it may have happened), `done`, or `failed` (it raised).
        output: How it ended, as JSON text; '' while it is intended.
        repeatable: Whether the tool may run again when nobody knows how it ended.
    """

    key: str
    call_id: str
    name: str
    arguments: str
    status: Literal["intended", "done", "failed"] = "intended"
    output: str = ""
    repeatable: bool = False


class Journal(Protocol):
    """Where the steps of one run are stored. An error of it ends the run."""

    def model_step(self, key: str) -> ModelStep | None:
        """What an earlier attempt stored; it is loaded before the run begins."""
        ...

    def tool_step(self, key: str) -> ToolStep | None:
        """What an earlier attempt stored; it is loaded before the run begins."""
        ...

    async def record_model(self, step: ModelStep, intents: Sequence[ToolStep]) -> None:
        """Stores an answer and the calls that follow from it, all or nothing, and durably."""
        ...

    async def record_tool(self, step: ToolStep) -> None:
        """Stores a call over what is stored under its key, durably. Many come at once.

        A call that is made again because somebody decided so comes as `intended` once more.
        """
        ...


class InDoubtError(ThreadkeepError, AgentsException):
    """The run stopped in the middle of a tool call, which may have happened. Say what to do.

    Resume it with a decision for the key of each call.

    Args:
        calls: Those in doubt, of one answer of the model.
    """

    def __init__(self, calls: Sequence[ToolStep]) -> None:
        names = ", ".join(f"{call.name} ({call.call_id})" for call in calls)
        super().__init__(
            f"The run was interrupted in the middle of {names}. Nobody knows whether it happened. "
            "Decide whether it is to run again, or mark the tool with @idempotent."
        )
        self.calls = tuple(calls)
