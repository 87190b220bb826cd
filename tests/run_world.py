"""Two processes' worth of runs in one event loop, and agents whose every step waits for the test.

Each replica has a database object of its own. It can be killed (nothing it does reaches the
database any more), frozen (nothing does until it is thawed) and replaced.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import asyncpg
import openai
from agents import Agent, Model, ModelResponse, RunConfig, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tool_context import ToolContext

from tests.backends import Backend, Postgres, SQLite
from tests.run_verdicts import Verdicts
from threadkeep.connect import connect
from threadkeep.database import Database, Row, Signal, Value
from threadkeep.errors import DatabaseUnavailableError
from threadkeep.replay import idempotent
from threadkeep.run import Run
from threadkeep.run_request import Concurrency, Limits, OneContext, RunRequest
from threadkeep.runs import Runs, continuation_key
from threadkeep.settings import DatabaseSettings

LOST_AFTER_MS = 1000
"""After how long the runs of these replicas are lost."""

WAIT_SECONDS = 8.0
"""How long anything may take that waits for nobody."""


@dataclass
class Step:
    """A call of a model or a tool that waits to be told how it goes.

    Args:
        kind: `model` or `tool`.
        replica: Where it waits.
        of: What for.
        future: Takes how it goes.
    """

    kind: str
    replica: Replica
    of: str
    future: asyncio.Future[str]

    def let_go(self, how: str) -> None:
        """Says how it goes; what was said first counts."""
        if not self.future.done():
            self.future.set_result(how)


@dataclass
class World:
    """What happened outside of the database.

    Attributes:
        pause: How long the way to the database takes, and the way back, in seconds.
        steps: What waits.
        starts: How often a call of a tool began, by its id; each id is given once.
        told: Which outputs of a call a model has seen, by its id.
        verdicts: What people wanted.
        replicas: Every process that there was.
        faults: What must never happen, and did.
    """

    peek: Peek
    pause: Callable[[], float] = float
    steps: list[Step] = field(default_factory=list)
    starts: Counter[str] = field(default_factory=Counter)
    told: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    verdicts: Verdicts = field(default_factory=Verdicts)
    replicas: list[Replica] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    async def wait(self, kind: str, replica: Replica, of: str) -> str:
        """Waits until the test says how it goes."""
        if replica.database.dead:
            return "die"
        step = Step(kind, replica, of, asyncio.get_running_loop().create_future())
        self.steps.append(step)
        try:
            return await step.future
        finally:
            self.steps.remove(step)


class OwnDatabase:
    """The database as one process has it.

    Args:
        inner: The database.
        pause: How long the way there takes, and the way back, in seconds.

    Attributes:
        dead: Whether nothing reaches the database any more.
        running: Not set while the process is frozen.
        calls: How many there were.
        busy: How many are under way.
    """

    def __init__(self, inner: Database, pause: Callable[[], float] = float) -> None:
        self.inner = inner
        self._pause = pause
        self.dead = False
        self.running = asyncio.Event()
        self.running.set()
        self.calls = self.busy = 0

    @property
    def description(self) -> str:
        return self.inner.description

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        self.calls += 1
        self.busy += 1
        try:
            await self._pass()
            rows = await self.inner.call(statement, **parameters)
            await self._pass()
        finally:
            self.busy -= 1
        return rows

    def signals(self, topic: str) -> AbstractAsyncContextManager[Signal]:
        return self.inner.signals(topic)

    async def open(self) -> None:
        await self.inner.open()

    async def pending(self) -> list[str]:
        return await self.inner.pending()

    async def scrub(self) -> bool:
        return await self.inner.scrub()

    async def close(self) -> None:
        await self.inner.close()

    async def _pass(self) -> None:
        if pause := self._pause():
            await asyncio.sleep(pause)
        await self.running.wait()
        if self.dead:
            raise DatabaseUnavailableError("The process was killed.")


class Replica:
    """A process that works on runs.

    Args:
        world: What its agents act on.
        database: Its own.

    Attributes:
        was_frozen: Whether others may have taken it for dead.
        made: Every run that it had.
    """

    def __init__(self, world: World, database: OwnDatabase) -> None:
        self.world = world
        self.database = database
        self.runs = ToldRuns(database, Limits(600, lost_after_ms=LOST_AFTER_MS), self)
        self.was_frozen = False
        self.made: list[Run] = []

    @property
    def is_at_work(self) -> bool:
        """Whether it answers: it is not frozen, stopped or dead."""
        running = self.database.running.is_set() and not self.runs.is_stopping
        return running and not self.database.dead

    def request(
        self,
        text: str,
        session_id: str,
        owner: str,
        policy: Concurrency = "enqueue",
        key: str | None = None,
        goes_on_from: str = "",
    ) -> RunRequest:
        """The request of a run with one message."""
        source = {"text": text, "policy": policy, "from": goes_on_from}
        return RunRequest(
            session_id=session_id,
            owner=owner,
            items=[{"role": "user", "content": text}],
            make_agent=partial(self._agent, session_id),
            contexts=OneContext(),
            run_config=RunConfig(tracing_disabled=True),
            model="told",
            source=json.dumps(source),
            idempotency_key=key,
            request_hash="" if goes_on_from else text,
            concurrency=policy,
            goes_on_from=goes_on_from,
        )

    def restore(self, session_id: str, owner: str, row: Row) -> RunRequest:
        """The request of a stored run."""
        source, ended = json.loads(row["request"]), row.get("goes_on_from")
        key = continuation_key(ended) if ended else row["idempotency_key"]
        came_from = ended or source["from"]
        return self.request(source["text"], session_id, owner, source["policy"], key, came_from)

    def start(self, request: RunRequest) -> Run:
        """Starts a run."""
        return self.runs.start(request)

    async def take_over(self) -> list[Run]:
        """Does what `take_over_all` does."""
        before = len(self.made)
        await self.runs.end_lost_turns()
        while (run := await self.runs.take_over()) is not None:
            self.made.append(run)
        await self.runs.go_on_with_decided()
        return self.made[before:]

    async def kill(self) -> None:
        """Nothing of it is written from now on."""
        self.database.dead = True
        self.database.running.set()
        for step in [step for step in self.world.steps if step.replica is self]:
            step.let_go("die")
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*(run.wait() for run in self.made))

    def _agent(self, session_id: str) -> Agent[Any]:
        tools = [self._once(), self._again(), self._ask_first(session_id)]
        return Agent(name="told", model=ToldModel(self), tools=tools)

    def _once(self) -> Any:
        @function_tool
        async def once(context: ToolContext[Any]) -> str:
            """May not run twice."""
            call_id = context.tool_call_id
            self.world.starts[call_id] += 1
            if self.world.starts[call_id] > 1 + self.world.verdicts.made_again(call_id):
                self.world.faults.append(f"{call_id} was made again and nobody had said so")
            return await self._work(call_id)

        return once

    def _ask_first(self, session_id: str) -> Any:
        @function_tool(needs_approval=True)
        async def ask_first(context: ToolContext[Any]) -> str:
            """May not run unless somebody approves it, nor twice."""
            call_id, verdicts = context.tool_call_id, self.world.verdicts
            self.world.starts[call_id] += 1
            if not verdicts.allow(session_id, call_id):
                self.world.faults.append(f"{call_id} was made and nobody had said so")
            if self.world.starts[call_id] > 1 + verdicts.made_again(call_id):
                self.world.faults.append(f"{call_id} was made again and nobody had said so")
            return await self._work(call_id)

        return ask_first

    def _again(self) -> Any:
        @idempotent
        @function_tool(failure_error_function=None)
        async def again(context: ToolContext[Any]) -> str:
            """May run twice."""
            call_id = context.tool_call_id
            ended = await self.world.peek.rows(
                f"SELECT key FROM threadkeep.tool_calls WHERE key LIKE '%:{call_id}' "
                "AND status <> 'intended'"
            )
            if ended and not self.was_frozen:
                self.world.faults.append(f"{call_id} was made again after its end")
            return await self._work(call_id)

        return again

    async def _work(self, call_id: str) -> str:
        if await self.world.wait("tool", self, call_id) != "return":
            raise RuntimeError(f"{call_id} failed")
        return f"{call_id} done"


class ToldRuns(Runs):
    """Runs of a replica, which keeps each."""

    def __init__(self, database: Database, limits: Limits, replica: Replica) -> None:
        super().__init__(database, limits, replica.restore)
        self._replica = replica

    def start(self, request: RunRequest) -> Run:
        run = super().start(request)
        self._replica.made.append(run)
        return run


AGENT_FAULT = "The agent has a fault."
TOLD_FAULTS = (AGENT_FAULT, " failed")
"""What an error says by which a run fails that was told to."""

CALLS = {
    "call": ["once"],
    "calls": ["once", "again"],
    "ask": ["ask_first"],
    "asks": ["ask_first", "ask_first"],
    "ask and call": ["ask_first", "once", "again"],
}
"""Answers that call tools: one that may not run twice, one that may, one that needs approval."""


class ToldModel(Model):
    """Answers what the test tells it, at the moment that the test chooses.

    say             a message
    speak           a message, which waits once more behind its first word
    one of `CALLS`  calls these
    fail            fails as a provider does
    anything else   fails as code does
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        raise NotImplementedError("Threadkeep streams every run.")

    async def stream_response(
        self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        world = self._replica.world
        if problem := unpaired(input):
            world.faults.append(f"a model was asked with {problem}")
        for item in input:
            if item.get("type") == "function_call_output":
                world.told[item["call_id"]].add(item["output"])
        last = input[-1]["content"] if "content" in input[-1] else input[-1]["call_id"]
        how = await world.wait("model", self._replica, last)
        if how == "fail":
            raise openai.OpenAIError("overloaded")
        script = ScriptedModel([self._output(how)])
        async for event in script.stream_response(system_instructions, input, *args, **kwargs):
            yield event
            if how == "speak" and event.type == "response.output_text.delta":
                how = await world.wait("model", self._replica, last)
                if how in ("fail", "die"):
                    raise openai.OpenAIError("cut off")

    def _output(self, how: str) -> list[Any]:
        numbers = self._replica.world.numbers
        if how in ("say", "speak"):
            number = next(numbers)
            return [assistant_message(f"answer {number}", item_id=f"msg_{number}")]
        if how not in CALLS:
            raise RuntimeError(AGENT_FAULT)
        return [function_call(name, {}, call_id=f"{name}_{next(numbers)}") for name in CALLS[how]]


def unpaired(items: list[Any]) -> str:
    """Which calls have no output, or several, or outputs no call; '' when all is well."""
    calls: list[str] = []
    for item in items:
        if item.get("type") == "function_call":
            calls.append(item["call_id"])
        elif item.get("type") == "function_call_output":
            if item["call_id"] not in calls:
                return f"an output without its call: {item['call_id']}"
            calls.remove(item["call_id"])
    return f"calls without output: {calls}" if calls else ""


class Peek:
    """Looks into the database, and changes it, behind everybody's back.

    Args:
        backend: Which.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._connection: Any = None
        self._lock = asyncio.Lock()

    @property
    def long_ago(self) -> str:
        """A time in SQL."""
        return "0" if isinstance(self._backend, SQLite) else "'2000-01-01'"

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        """Runs one statement; gives its rows."""
        return (await self.at_once([sql]))[0]

    async def at_once(self, statements: list[str]) -> list[list[dict[str, Any]]]:
        """Runs statements at one moment; gives the rows of each."""
        if isinstance(self._backend, SQLite):
            with closing(sqlite3.connect(self._backend.file)) as raw, raw:
                raw.row_factory = sqlite3.Row
                raw.execute("BEGIN")
                texts = [sql.replace("threadkeep.", "") for sql in statements]
                return [[dict(row) for row in raw.execute(sql)] for sql in texts]
        # A tool that looks may be cancelled, and must leave no transaction open.
        return await asyncio.shield(self._at_once(statements))

    async def _at_once(self, statements: list[str]) -> list[list[dict[str, Any]]]:
        async with self._lock:
            connection = await self._connected()
            async with connection.transaction(isolation="repeatable_read"):
                found = [await connection.fetch(sql) for sql in statements]
        return [[dict(row) for row in rows] for rows in found]

    async def change(self, sql: str) -> list[dict[str, Any]]:
        """Changes what others may be changing at the same time; gives the rows of the statement."""
        if isinstance(self._backend, SQLite):
            return await self.rows(sql)
        async with self._lock:
            return [dict(row) for row in await (await self._connected()).fetch(sql)]

    async def silence(self, run_ids: list[str]) -> None:
        """Makes runs look as if their process had died long ago."""
        names = ", ".join(f"'{run_id}'" for run_id in ["", *run_ids])
        for table, column in (("sessions", "run_alive_at"), ("runs", "alive_at")):
            await self.change(
                f"UPDATE threadkeep.{table} SET {column} = {self.long_ago} "
                f"WHERE run_id IN ({names})"
            )

    async def _connected(self) -> Any:
        if self._connection is None:
            assert isinstance(self._backend, Postgres)
            self._connection = await asyncpg.connect(self._backend.url)
        return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


def new_replica(world: World, backend: Backend) -> Replica:
    """A replica that has just started."""
    inner = connect(DatabaseSettings.read(backend.variables))
    replica = Replica(world, OwnDatabase(inner, world.pause))
    world.replicas.append(replica)
    return replica
