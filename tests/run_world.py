"""Two processes' worth of runs in one event loop, and agents whose every step waits for the test.

Each replica has a database object of its own. It can be killed (nothing it does reaches the
database any more), frozen (nothing does until it is thawed) and replaced.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import asyncpg
import openai
from agents import Agent, Model, ModelResponse, RunConfig, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tool_context import ToolContext

from tests.backends import Backend, Postgres, SQLite
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
        steps: What waits.
        starts: How often a call of a tool began, by its id; each id is given once.
        approved: How often somebody wanted a call to be made again.
        faults: What must never happen, and did.
    """

    peek: Peek
    steps: list[Step] = field(default_factory=list)
    starts: Counter[str] = field(default_factory=Counter)
    approved: Counter[str] = field(default_factory=Counter)
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

    Attributes:
        dead: Whether nothing reaches the database any more.
        running: Not set while the process is frozen.
        calls: How many there were.
        busy: How many are under way.
    """

    def __init__(self, inner: Database) -> None:
        self.inner = inner
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
        self.runs = Runs(database, Limits(600, lost_after_ms=LOST_AFTER_MS), self.restore)
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
            make_agent=self._agent,
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
        run = self.runs.start(request)
        self.made.append(run)
        return run

    async def take_over(self) -> list[Run]:
        """Does what `take_over_all` does."""
        await self.runs.end_lost_turns()
        taken = []
        while (run := await self.runs.take_over()) is not None:
            taken.append(run)
        taken += await self.runs.go_on_with_decided()
        self.made += taken
        return taken

    async def kill(self) -> None:
        """Nothing of it is written from now on."""
        self.database.dead = True
        self.database.running.set()
        for step in [step for step in self.world.steps if step.replica is self]:
            step.let_go("die")
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*(run.wait() for run in self.made))

    def _agent(self) -> Agent[Any]:
        return Agent(name="told", model=ToldModel(self), tools=[self._once(), self._again()])

    def _once(self) -> Any:
        @function_tool
        async def once(context: ToolContext[Any]) -> str:
            """May not run twice."""
            call_id = context.tool_call_id
            self.world.starts[call_id] += 1
            if self.world.starts[call_id] > 1 + self.world.approved[call_id]:
                self.world.faults.append(f"{call_id} was made again and nobody had said so")
            return await self._work(call_id)

        return once

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


class ToldModel(Model):
    """Answers what the test tells it, at the moment that the test chooses.

    say             a message
    speak           a message, which waits once more behind its first word
    call, calls     calls a tool that may not run twice; that, and one that may
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
        number = next(self._replica.world.numbers)
        if how in ("say", "speak"):
            return [assistant_message(f"answer {number}", item_id=f"msg_{number}")]
        if how not in ("call", "calls"):
            raise RuntimeError("The agent has a fault.")
        calls = [function_call("once", {}, call_id=f"once_{number}")]
        if how == "calls":
            calls.append(function_call("again", {}, call_id=f"again_{number}"))
        return calls


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
        async with self._lock:
            if self._connection is None:
                assert isinstance(self._backend, Postgres)
                self._connection = await asyncpg.connect(self._backend.url)
            async with self._connection.transaction(isolation="repeatable_read"):
                found = [await self._connection.fetch(sql) for sql in statements]
        return [[dict(row) for row in rows] for rows in found]

    async def silence(self, run_ids: list[str]) -> None:
        """Makes runs look as if their process had died long ago."""
        names = ", ".join(f"'{run_id}'" for run_id in ["", *run_ids])
        for table, column in (("sessions", "run_alive_at"), ("runs", "alive_at")):
            await self.rows(
                f"UPDATE threadkeep.{table} SET {column} = {self.long_ago} "
                f"WHERE run_id IN ({names})"
            )

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


def new_replica(world: World, backend: Backend) -> Replica:
    """A replica that has just started."""
    inner = connect(DatabaseSettings.read(backend.variables))
    return Replica(world, OwnDatabase(inner))
