"""A process of the crash kit: a client and a server in one, which may be killed at any moment.

It asks what its case asks, or goes on with what an earlier process was told; it looks for lost runs
as a server does; and it says down a pipe whatever its client is told, as soon as that is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agents import Agent

from threadkeep.approvals import Verdict, decide, list_approvals
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import ConflictError, DatabaseError, DuplicateError, ThreadkeepError
from threadkeep.run_request import Limits
from threadkeep.runs import Runs, continuation_key
from threadkeep.server.requests import ResponsesRequest, input_items
from threadkeep.server.run_requests import AgentContext, RunRequests
from threadkeep.session import Session
from threadkeep.settings import DatabaseSettings
from threadkeep.take_over import take_over_all
from threadkeep.testing.crash_world import (
    SCENARIOS,
    Marks,
    PointedDatabase,
    Points,
    Scenario,
    World,
)

LOST_AFTER_MS = 150
"""After how long a silent run has lost its process here, in milliseconds."""

_LOOK_SECONDS = 0.03
_GIVE_UP_SECONDS = 20.0

Message = dict[str, Any]
Tell = Callable[[Message], None]

EARLIER = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]},
]
"""What the session of some cases holds before the turn."""


@dataclass(frozen=True)
class Fate:
    """How a process ends; by itself when neither is given.

    Args:
        point: The number of the point at which it stops.
        seconds: After how long it is killed.
        behind: The name of the point behind which they are counted; '' for all.
        only: The name of those that count; '' for all.
        freeze: Whether it only freezes at the point, and goes on later.
    """

    point: int | None = None
    seconds: float | None = None
    behind: str = ""
    only: str = ""
    freeze: bool = False


@dataclass(frozen=True)
class Case:
    """A turn, and what happens to the processes that work on it.

    Args:
        name: Names its session, its owner and its Idempotency-Key.
        scenario: What is asked.
        fates: Of each process in turn; behind them comes one that lives.
        earlier: Whether the session has items before it.
        seed: Decides about calls in doubt.
    """

    name: str
    scenario: str
    fates: tuple[Fate, ...] = ()
    earlier: bool = False
    seed: int = 0


@dataclass
class Known:
    """What the client of a case was told, over all processes.

    Attributes:
        run_id: The run it waits for.
        last: The number of the last event it was told of that run.
    """

    run_id: str | None = None
    last: int = -1


@dataclass(frozen=True)
class Place:
    """Where the cases of one worker are kept.

    Args:
        settings: Of its database.
        folder: Of its marks.
    """

    settings: DatabaseSettings
    folder: Path

    def marks(self, case: Case, process: int) -> Marks:
        """The marks of a case."""
        return Marks(self.folder / f"{case.name}.marks", process)


@dataclass
class Server:
    """The core of a server: the runs of this process, and how requests are made."""

    database: Database
    requests: RunRequests
    runs: Runs = field(init=False)

    def __post_init__(self) -> None:
        limits = Limits(timeout=_GIVE_UP_SECONDS, lost_after_ms=LOST_AFTER_MS)
        self.runs = Runs(self.database, limits, self.requests.restore)

    @classmethod
    def of(cls, place: Place, world: World, points: Points) -> Server:
        """A server on a place's database."""

        def create_agent(context: AgentContext) -> Agent[Any]:
            return world.agent()

        def get_session_id(request: ResponsesRequest) -> str:
            return str((request.custom_inputs or {})["session_id"])

        requests = RunRequests(
            create_agent, get_session_id, world, "scripted", "enqueue", recall_tokens=0
        )
        requests.database = PointedDatabase(connect(place.settings), points)
        return cls(requests.database, requests)

    async def ask(self, text: str, session_id: str, key: str, *, background: bool) -> str:
        """Sends a request, or sends it again: gives the run of the first one."""
        first = await self.runs.find(session_id, key, text)
        if first is not None:
            return first
        body = ResponsesRequest(
            input=text, background=background, custom_inputs={"session_id": session_id}
        )
        request = self.requests.make(
            body,
            session_id,
            session_id,
            input_items(text),
            idempotency_key=key,
            request_hash=text,
        )
        try:
            run = self.runs.start(request)
            await asyncio.shield(run.received)
        except DuplicateError:  # a process that was frozen goes on beside us
            first = await self.runs.find(session_id, key, text)
            if first is None:
                raise
            return first
        return run.run_id

    async def keep_looking(self, tell: Tell) -> None:
        """Takes over what was lost, again and again."""
        while True:
            try:
                await take_over_all(self.runs)
            except (DatabaseError, ConflictError):
                await asyncio.sleep(0)
            except ThreadkeepError as error:
                tell({"fault": f"taking over: {error}"})
            await asyncio.sleep(_LOOK_SECONDS)


class Client:
    """The client of a case, in one process.

    Args:
        server: What it asks.
        case: What it asks for.
        known: What earlier processes have told it.
        marks: Its decisions leave marks there.
        points: What it passes.
        tell: What it is told goes there.
    """

    def __init__(
        self, server: Server, case: Case, known: Known, marks: Marks, points: Points, tell: Tell
    ) -> None:
        self._server = server
        self._case = case
        self._known = known
        self._marks = marks
        self._points = points
        self._tell = tell
        self._scenario: Scenario = SCENARIOS[case.scenario]

    async def converse(self) -> None:
        """Asks or goes on, decides what it is asked in turn, and returns when the turn is done."""
        name, last = self._case.name, self._known.last
        run_id = self._known.run_id
        if run_id is None:
            background = self._scenario.client == "polls"
            run_id = await self._server.ask(self._case.scenario, name, name, background=background)
        while True:
            self._told({"run": run_id})
            response = await self._see(run_id, last)
            if response["status"] != "incomplete":
                return
            run_id, last = await self._decide(run_id), -1

    def _told(self, message: Message) -> None:
        self._tell(message)
        self._points.reach("its client was told")

    async def _see(self, run_id: str, last: int) -> Message:
        runs, owner = self._server.runs, self._case.name
        if self._scenario.client == "polls":
            while (response := await runs.response(run_id, owner))["status"] in (
                "queued",
                "in_progress",
            ):
                self._told({"seen": response, "of": run_id})
                await asyncio.sleep(0.02)
        else:
            async for event in await runs.follow(run_id, owner, last):
                if self._scenario.client == "streams":
                    self._told({"event": event, "of": run_id})
            response = await runs.response(run_id, owner)
        self._told({"seen": response, "of": run_id})
        if response["status"] in ("queued", "in_progress"):
            self._tell({"fault": "a run that has ended was shown at work"})
        return response

    async def _decide(self, run_id: str) -> str:
        """Decides about the calls in doubt, and gives the run that goes on."""
        server, owner = self._server, self._case.name
        found = await list_approvals(server.database, owner, status="", after="", limit=100)
        for approval in found:
            if approval["previous_response_id"] == run_id and approval["status"] == "pending":
                approve = random.Random(f"{self._case.seed} {approval['id']}").random() < 0.5  # noqa: S311 - no secret
                self._marks.add(asks_about=approval["call_id"])
                with contextlib.suppress(ConflictError):  # a process beside us was faster
                    verdict = Verdict(approval["id"], approve)
                    await decide(server.database, server.runs, owner, verdict)
        while True:
            follower = await server.runs.find(owner, continuation_key(run_id), "")
            if follower is not None:
                return follower
            await asyncio.sleep(0.02)


class _Faults(logging.Handler):
    """Faults that the core logs are told as well."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            text += f" {record.exc_info[1]!r}"
        self._tell({"fault": text})


def report_faults(tell: Tell) -> None:
    """Tells of what the core, or asyncio, logs as an error; and logs nothing else."""
    for name in ("threadkeep", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Faults(tell)], False
        logger.setLevel(logging.ERROR)


@contextlib.asynccontextmanager
async def serving(place: Place, world: World, points: Points, tell: Tell) -> AsyncIterator[Server]:
    """A server that looks for lost runs while the block lasts."""
    server = Server.of(place, world, points)
    looking = asyncio.create_task(server.keep_looking(tell))
    try:
        yield server
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await server.runs.aclose()
        await server.database.close()


async def live(place: Place, case: Case, number: int, known: Known, tell: Tell) -> None:
    """The life of one process of a case: to the end of the turn, unless it is killed before."""
    fate = case.fates[number] if number < len(case.fates) else Fate()
    points = Points(tell, fate.point, fate.behind, fate.only, fate.freeze)
    marks = place.marks(case, number)
    started = time.monotonic()
    try:
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            if number == 0:  # nothing was lost yet, so nobody looks: its points are always the same
                server = Server.of(place, World(marks, points), points)
                await Client(server, case, known, marks, points, tell).converse()
            else:
                async with serving(place, World(marks, points), points, tell) as server:
                    await Client(server, case, known, marks, points, tell).converse()
    except TimeoutError:
        tell({"fault": "its client waits for ever"})
    tell({"passed": points.passed, "seconds": time.monotonic() - started})


async def warm_up(folder: Path) -> None:
    """Plays a turn in memory, so that processes that are forked later need not learn it all."""
    place = Place(DatabaseSettings.read({"DATABASE_URL": "sqlite://"}), folder)
    await live(place, Case("warm", "streaming"), 1, Known(), lambda message: None)


async def prepare(place: Place, case: Case) -> None:
    """Brings the session to where the turn begins."""
    database = connect(place.settings)
    await database.open()
    if case.earlier:
        session = Session(case.name, database=database, owner=case.name)
        await session.add_items([*EARLIER])  # type: ignore[list-item]
    await database.close()


def in_child(descriptor: int, work: Callable[[Tell], None]) -> None:
    """Does the work of a process that was just forked, and ends it. A pipe takes what it tells."""
    tell = partial(_send, descriptor)
    report_faults(tell)
    try:
        work(tell)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
        tell({"fault": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _send(descriptor: int, message: Message) -> None:
    data = (json.dumps(message) + "\n").encode()
    while data:
        data = data[os.write(descriptor, data) :]
