"""The world of the crash kit: what is asked, who answers, what tools do, and where a process stops.

The model answers by what it is asked and nothing else, so a turn that is interrupted ends as one
that is not. Whatever is done leaves a mark in a file, and a mark outlasts the process. On its way
a process passes points, such as "before write_run"; at one of them it may kill itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents import Agent, Model, ModelProvider, function_tool
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from threadkeep.database import Database, Row, Signal, Value
from threadkeep.replay import idempotent, tool_key
from threadkeep.titles import text_of

Mark = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A tool call of a scenario: `buy` and `fall` must not happen twice, `look` may."""

    tool: Literal["buy", "look", "fall"]
    thing: str

    @property
    def call_id(self) -> str:
        """As the model gives it."""
        return f"call_{self.thing}"

    @property
    def output(self) -> str:
        """What the model is told of it."""
        if self.tool == "fall":
            return "An error occurred while running the tool. Please try again."
        return f"{self.tool} of {self.thing}"


@dataclass(frozen=True)
class Scenario:
    """A turn: how its client waits for it, and what the model calls before it answers.

    Args:
        name: What the user says.
        client: `waits` for the answer, `streams` it, or `polls` a background run.
        steps: The calls of each answer of the model, but for the last one.
    """

    name: str
    client: Literal["waits", "streams", "polls"]
    steps: tuple[tuple[Call, ...], ...] = ()

    def answer(self, outputs: Sequence[str]) -> str:
        """What the model says in the end."""
        return f"This is the end of {self.name}: {', '.join(outputs) or 'nothing was done'}."


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("plain", "waits"),
        Scenario("tool", "waits", ((Call("buy", "a"),),)),
        Scenario(
            "parallel",
            "waits",
            ((Call("buy", "a"), Call("look", "b"), Call("fall", "c")), (Call("buy", "d"),)),
        ),
        Scenario("streaming", "streams", ((Call("buy", "a"),), (Call("look", "b"),))),
        Scenario("background", "polls", ((Call("look", "a"), Call("buy", "b")),)),
    )
}

FOLLOW_UP = "recall"
"""What the user says in the next turn: the model tells all that it sees."""


class Marks:
    """A file of what was done, by whichever process: a line each, in order.

    Args:
        file: Where they are.
        process: Which process of the case adds to it, from 0.
    """

    def __init__(self, file: Path, process: int) -> None:
        self._file = file
        self._process = process

    def add(self, **mark: Any) -> None:
        """Leaves a mark that outlasts this process."""
        line = json.dumps(mark | {"process": self._process}) + "\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def read(self) -> list[Mark]:
        """All of them, in order."""
        if not self._file.exists():
            return []
        return [json.loads(line) for line in self._file.read_text("utf-8").splitlines()]


class Points:
    """The points that a process passes, in order; at one of them it is killed, or frozen.

    Args:
        tell: Told the name of the point, before.
        stop_at: The number of the point; None: none.
        behind: The name of the point behind which they are counted; '' for all.
        only: The name of those that count; '' for all.
        freeze: Whether it only freezes there, until it is told to go on. It does so at a statement,
            and only those count: elsewhere it may hold a lock on a file, as no dead process does.
    """

    def __init__(
        self,
        tell: Callable[[dict[str, Any]], None],
        stop_at: int | None = None,
        behind: str = "",
        only: str = "",
        freeze: bool = False,
    ) -> None:
        self.passed: list[str] = []
        self._left = stop_at
        self._behind = behind
        self._only = only
        self._freeze = freeze
        self._tell = tell

    def reach(self, name: str) -> None:
        """Passes a point, or does not."""
        self.passed.append(name)
        if self._behind:
            self._behind = "" if name == self._behind else self._behind
            return
        if self._left is None or (self._freeze and not is_statement(name)):
            return
        if self._only not in ("", name):
            return
        self._left -= 1
        if self._left >= 0:
            return
        self._left = None
        self._tell({"stopped": name})
        os.kill(os.getpid(), signal.SIGSTOP if self._freeze else signal.SIGKILL)


def is_statement(point: str) -> bool:
    """Whether a point lies before or after a statement."""
    return point.startswith(("before ", "after "))


class PointedDatabase:
    """A database with a point before and after each statement.

    Args:
        database: The real one.
        points: Those of this process.
    """

    def __init__(self, database: Database, points: Points) -> None:
        self._database = database
        self._points = points

    @property
    def description(self) -> str:
        return self._database.description

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        self._points.reach(f"before {statement}")
        rows = await self._database.call(statement, **parameters)
        self._points.reach(f"after {statement}")
        return rows

    def signals(self, topic: str) -> AbstractAsyncContextManager[Signal]:
        return self._database.signals(topic)

    async def open(self) -> None:
        await self._database.open()

    async def pending(self) -> list[str]:
        return await self._database.pending()

    async def scrub(self) -> bool:
        return await self._database.scrub()

    async def close(self) -> None:
        await self._database.close()


class World(ModelProvider):
    """The model and the tools of one process.

    Args:
        marks: What they do leaves marks there.
        points: What they pass.
        pace: How long a part of an answer takes, in seconds; a tool takes ten times as long.
    """

    def __init__(self, marks: Marks, points: Points, pace: float = 0) -> None:
        self._marks = marks
        self._points = points
        self._pace = pace
        self._model = _Model(marks, points, pace)

    def get_model(self, model_name: str | None) -> Model:
        """The one model there is."""
        return self._model

    def agent(self) -> Agent[Any]:
        """Whoever answers."""
        tools = [
            function_tool(self._tool("buy")),
            idempotent(function_tool(self._tool("look"))),
            function_tool(self._tool("fall")),
        ]
        return Agent(name="Clerk", model=self._model, tools=[*tools])

    def _tool(self, name: str) -> Callable[[str], Any]:
        async def tool(thing: str) -> str:
            self._points.reach("a tool begins")
            self._marks.add(did=f"{name} {thing}", key=tool_key())
            self._points.reach("a tool has done it")
            await asyncio.sleep(0.002 + 10 * self._pace)
            self._points.reach("a tool ends")
            if name == "fall":
                raise ValueError(thing)
            return f"{name} of {thing}"

        tool.__name__ = name
        return tool


class _Model(ScriptedModel):
    """Answers by its input; a text comes in several deltas."""

    def __init__(self, marks: Marks, points: Points, pace: float) -> None:
        super().__init__([ModelStep.respond(self._answer)])
        self._marks = marks
        self._points = points
        self._pace = pace

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The answer, with a point behind each event."""
        self.enqueue(ModelStep.respond(self._answer))  # as often as it is asked
        async for event in super().stream_response(*args, **kwargs):
            for part in _in_parts(event):
                yield part
                self._points.reach("a model speaks")
                await asyncio.sleep(self._pace)

    def _answer(self, asked: Any) -> Any:
        items: list[Any] = list(asked.input)
        said = [index for index, item in enumerate(items) if item.get("role") == "user"]
        name = text_of(items[said[-1]]["content"])
        if name == FOLLOW_UP:
            return [assistant_message(" | ".join(plainly(item) for item in items))]
        scenario = SCENARIOS[name]
        outputs = [item["output"] for item in items[said[-1] :] if "output" in item]
        number, left = 0, len(outputs)
        while number < len(scenario.steps) and left:
            left -= len(scenario.steps[number])
            number += 1
        self._marks.add(asked=number)
        if number == len(scenario.steps):
            return [assistant_message(scenario.answer(outputs))]
        return [
            function_call(call.tool, {"thing": call.thing}, call_id=call.call_id)
            for call in scenario.steps[number]
        ]


def _in_parts(event: Any) -> list[Any]:
    if event.type != "response.output_text.delta":
        return [event]
    texts = [event.delta[at : at + 20] for at in range(0, len(event.delta), 20)]
    return [event.model_copy(update={"delta": text}) for text in texts]


def plainly(item: Any) -> str:
    """What an item says, whatever its ids."""
    if item.get("type") == "function_call":
        thing = json.loads(item["arguments"])["thing"]
        return f"call {item['call_id']}: {item['name']} {thing}"
    if item.get("type") == "function_call_output":
        return f"output {item['call_id']}: {item['output']}"
    if item.get("type", "message") != "message":
        return str(item["type"])
    return f"{item.get('role')}: {text_of(item.get('content'))}"
