"""Tools whose effects are counted, over all servers of a test.

note      has an effect, and must not have it twice
look      only reads, and says so: it may run again
work      as `note`, and takes until the test lets it
search    as `look`, and takes until the test lets it
crash     raises
pay       as `note`, and somebody has to approve it
haul      as `work`, and somebody has to approve it
lend      as `note`, and somebody has to approve it while the workshop is strict
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agents import FunctionTool, function_tool

from tests.backends import Backend, SQLite
from threadkeep.replay import idempotent

if TYPE_CHECKING:
    from tests.conftest import RunningApp

PATIENCE = 60.0
"""How long a test waits for what must come, in seconds."""


class Workshop:
    """The tools of one test.

    Attributes:
        begun: How often each was begun.
        done: How often each has come to its end.
        go_on: Lets `work`, `search` and `haul` come to theirs.
        strict: Whether `lend` needs approval.
    """

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.go_on = threading.Event()
        self.strict = True

    def tools(self) -> list[FunctionTool]:
        """For an agent."""
        return [
            self._tool("note"),
            idempotent(self._tool("look")),
            self._tool("work", waits=True),
            idempotent(self._tool("search", waits=True)),
            self._tool("crash", raises=True),
            self._tool("pay", needs_approval=True),
            self._tool("haul", waits=True, needs_approval=True),
            self._tool("lend", needs_approval=self._is_strict),
        ]

    async def _is_strict(self, _context: Any, _arguments: Any, _call_id: str) -> bool:
        return self.strict

    def until_begun(self, name: str, times: int = 1) -> None:
        """Returns when a tool was begun so often."""
        until(lambda: self.begun[name] >= times)

    def _tool(
        self, name: str, *, waits: bool = False, raises: bool = False, needs_approval: Any = False
    ) -> FunctionTool:
        @function_tool(
            name_override=name, failure_error_function=None, needs_approval=needs_approval
        )
        async def tool() -> str:
            """Does it."""
            self.begun[name] += 1
            while waits and not self.go_on.is_set():  # noqa: ASYNC110 - by another thread
                await asyncio.sleep(0.01)
            if raises:
                raise RuntimeError("the tool is broken")
            self.done[name] += 1
            return f"{name} {self.done[name]}"

        return tool


def until(holds: Callable[[], object]) -> None:
    """Returns when it holds."""
    waited, deadline = threading.Event(), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come")


def silence(backend: Backend, run_id: str) -> None:
    """Makes a run look as if its process had died long ago, until it gives a sign of life again."""
    long_ago = "0" if isinstance(backend, SQLite) else "'2000-01-01'"
    backend.execute(f"UPDATE threadkeep.runs SET alive_at = {long_ago} WHERE run_id = '{run_id}'")
    backend.execute(
        f"UPDATE threadkeep.sessions SET run_alive_at = {long_ago} WHERE run_id = '{run_id}'"
    )


def move(backend: Backend, run_id: str, to: RunningApp) -> None:
    """Lets a server take a run over, as if the one that has it had died."""

    def taken() -> bool:
        silence(backend, run_id)  # again and again: it does give signs of life
        # Its own loop may have been faster.
        return to.take_over() > 0 or run_id in to.app.state.runs.ids

    until(taken)
