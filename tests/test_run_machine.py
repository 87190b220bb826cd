"""Any sequence of what people and processes do to runs keeps what users are promised.

Two replicas work on one database. By chance, from a seed, runs are started, their steps go on or
fail, runs are cancelled, replicas killed, frozen and replaced, approvals decided, and sessions
changed and deleted. After each of these, and when all is let go in the end, `Checks` compares what
is stored with what was promised. A failure tells the seed and what was done.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.backends import Backend, SQLite, new_postgres
from tests.run_checks import SESSIONS, Checks
from tests.run_world import WAIT_SECONDS, Peek, Replica, World, new_replica
from threadkeep import Session
from threadkeep.approvals import Verdict, decide
from threadkeep.errors import ConflictError, NotFoundError
from threadkeep.history import cache_of
from threadkeep.run_request import Concurrency

POLICIES = [*get_args(Concurrency), "enqueue"]
ANSWERS = ["say", "say", "speak", "call", "call", "calls", "fail", "break"]
OUTCOMES = ["return", "return", "raise"]


class Machine:
    """What may happen, one thing after the other.

    Args:
        seed: Of the chance by which it does.
        backend: The database.
    """

    def __init__(self, seed: int, backend: Backend) -> None:
        self._chance = random.Random(seed)
        self._backend = backend
        self._peek = Peek(backend)
        self._world = World(self._peek)
        self._replicas = [new_replica(self._world, backend) for _ in range(2)]
        self._all = list(self._replicas)
        self._checks = Checks(self._peek, self._world)
        self._tasks: list[asyncio.Task[None]] = []
        self._texts: dict[str, str] = {}
        self.story: list[str] = []

    async def run(self, steps: int) -> None:
        """Does so many things, then lets all go."""
        likely: dict[Callable[[], Awaitable[object]], int] = {
            self._start: 20,
            self._answer: 24,
            self._end_tool: 12,
            self._cancel: 6,
            self._take_over: 6,
            self._kill: 5,
            self._hand_over: 2,
            self._freeze: 5,
            self._thaw: 3,
            self._decide: 8,
            self._append: 4,
            self._pop: 2,
            self._delete: 2,
        }
        try:
            async with asyncio.timeout(steps + 5 * WAIT_SECONDS):
                await self._replicas[0].database.open()
                await self._checks.clear()
                for _ in range(steps):
                    told = len(self.story)
                    await self._chance.choices(list(likely), list(likely.values()))[0]()
                    if len(self.story) > told and self._chance.random() < 0.7:
                        await self._settle()
                await self._end()
        finally:
            await self._close()

    async def _settle(self) -> None:
        """Lets everybody go on as far as they come, and looks."""
        for _ in range(12):
            before = sum(replica.database.calls for replica in self._all)
            await asyncio.sleep(0.015)
            busy = any(replica.database.busy for replica in self._all if replica.is_at_work)
            if not busy and before == sum(replica.database.calls for replica in self._all):
                break
        await self._checks.look()

    def _any(self) -> Replica:
        """A replica that answers; one always does."""
        return self._chance.choice([each for each in self._replicas if each.is_at_work])

    def _tell(self, what: str, replica: Replica | None = None) -> None:
        where = f"at {self._all.index(replica)}: " if replica else ""
        self.story.append(where + what)

    async def _start(self) -> None:
        await self._settle()
        replica, name = self._any(), self._chance.choice(sorted(SESSIONS))
        policy: Any = self._chance.choice(POLICIES)
        key = self._chance.choice([None] * 6 + ["k1", "k2"])
        text = self._texts.get(name) if self._chance.random() < 0.2 else None
        text = self._texts[name] = text or f"text {next(self._world.numbers)}"
        self._tell(f"start '{text}' in {name}, {policy}, {key}", replica)
        run = replica.start(replica.request(text, name, SESSIONS[name], policy, key))
        self.story[-1] += f": {run.run_id}"
        known = self._checks.started(run, replica)
        self._later(replica, self._checks.follow(known))

    def _later(self, replica: Replica, work: Any) -> None:
        """Does what may have to wait for other things to happen."""
        self._tasks.append(asyncio.create_task(self._checks.unless_lost(replica, work)))

    async def _answer(self) -> None:
        self._let_go("model", self._chance.choice(ANSWERS))

    async def _end_tool(self) -> None:
        self._let_go("tool", self._chance.choice(OUTCOMES))

    def _let_go(self, kind: str, how: str) -> None:
        steps = [s for s in self._world.steps if s.kind == kind and s.replica.is_at_work]
        if steps:
            step = self._chance.choice(steps)
            self._tell(f"the {kind} of {step.of}: {how}", step.replica)
            step.let_go(how)

    async def _cancel(self) -> None:
        replica, unfinished = self._any(), self._checks.unfinished()
        if not unfinished:
            return
        known = self._chance.choice(unfinished)
        self._tell(f"cancel {known.run_id}", replica)
        self._checks.cancelled(known)

        async def cancel() -> None:
            try:
                response = await replica.runs.cancel(known.run_id, known.owner)
            except NotFoundError:
                return  # it was deleted, or never stored
            assert response["status"] not in ("queued", "in_progress"), "cancelled, and goes on"

        self._later(replica, cancel())

    async def _kill(self) -> None:
        replica = self._chance.choice(self._replicas)
        if replica is self._any() and not self._others_work(replica):
            return
        self._tell("kill", replica)
        lost = [run.run_id for run in replica.made if not run.finished]
        await replica.kill()
        await self._peek.silence(lost)
        self._replace(replica)

    def _others_work(self, replica: Replica) -> bool:
        return any(each.is_at_work for each in self._replicas if each is not replica)

    async def _hand_over(self) -> None:
        replica = self._any()
        self._tell("hand over", replica)
        async with asyncio.timeout(WAIT_SECONDS):
            await replica.runs.aclose()
        assert all(run.finished for run in replica.made), "it was stopped, and somebody waits"
        self._replace(replica)

    def _replace(self, replica: Replica) -> None:
        new = new_replica(self._world, self._backend)
        self._replicas[self._replicas.index(replica)] = new
        self._all.append(new)

    async def _take_over(self) -> None:
        replica = self._any()
        self._tell("take over", replica)
        await self._checks.take_over(replica)

    async def _freeze(self) -> None:
        replica = self._any()
        if not self._others_work(replica):
            return
        await self._settle()
        self._tell("freeze", replica)
        replica.database.running.clear()
        replica.was_frozen = True
        await asyncio.sleep(0.03)
        await self._peek.silence([run.run_id for run in replica.made if not run.finished])
        await self._checks.take_over(self._any())

    async def _thaw(self) -> None:
        for replica in self._replicas:
            if not replica.database.running.is_set():
                self._tell("thaw", replica)
                replica.database.running.set()

    async def _decide(self) -> None:
        pending = await self._peek.rows(
            "SELECT approval_id, owner, key FROM threadkeep.approvals "
            "WHERE status = 'pending' ORDER BY approval_id"
        )
        if not pending:
            return
        replica, chosen = self._any(), self._chance.choice(pending)
        approve = self._chance.random() < 0.5
        self._tell(f"decide {chosen['key']}: {approve}", replica)
        self._world.approved[chosen["key"].rpartition(":")[2]] += approve

        async def deciding() -> None:
            verdict = Verdict(chosen["approval_id"], approve)
            try:
                went_on = await decide(replica.database, replica.runs, chosen["owner"], verdict)
            except (ConflictError, NotFoundError):
                return
            self._checks.went_on(went_on, replica)

        self._later(replica, deciding())

    async def _append(self) -> None:
        await self._settle()
        replica, name = self._any(), self._chance.choice(sorted(SESSIONS))
        note = f"note {next(self._world.numbers)}"
        self._tell(f"append '{note}' to {name}", replica)
        session = Session(name, database=replica.database, owner=SESSIONS[name])
        await session.add_items([{"role": "user", "content": note}])
        self._checks.appended(name, note)

    async def _pop(self) -> None:
        """Takes back the end of a turn that is over, where that is no call's."""
        await self._settle()
        replica, name = self._any(), self._chance.choice(sorted(SESSIONS))
        session = Session(name, database=replica.database, owner=SESSIONS[name])
        items = await session.get_items() if await self._checks.is_idle(name) else []
        if items and "call_id" not in items[-1]:
            self._tell(f"pop from {name}", replica)
            self._checks.popped(name, await session.pop_item())

    async def _delete(self) -> None:
        """Does as the server does."""
        await self._settle()
        replica, name = self._any(), self._chance.choice(sorted(SESSIONS))
        self._tell(f"delete {name}", replica)
        gone = False
        while not gone:
            await replica.runs.stop_session(name, SESSIONS[name])
            run_ids = await self._checks.ids_of(name)
            rows = await replica.database.call(
                "delete_session", session_id=name, owner=SESSIONS[name]
            )
            if not rows:
                return
            gone = bool(rows[0]["gone"])
        cache_of(replica.database).forget(name, SESSIONS[name])
        self._checks.deleted(name, run_ids)

    async def _end(self) -> None:
        """Lets all go; then nobody may wait any more."""
        await self._thaw()
        for _ in range(200):
            for step in list(self._world.steps):
                step.let_go("say" if step.kind == "model" else "return")
            await self._checks.take_over(self._replicas[0])
            await asyncio.sleep(0.02)
            await self._checks.look()
            if not self._checks.unfinished() and all(task.done() for task in self._tasks):
                break
        await self._checks.end(self._all, self._tasks)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for replica in self._all:
            await replica.kill()
            await replica.database.inner.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._peek.close()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty database, of each kind in turn."""
    if request.param == "postgres":
        return new_postgres(request.getfixturevalue("postgres"))
    return SQLite(tmp_path / "threadkeep.db")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long until they look, or write."""
    monkeypatch.setattr("threadkeep.run_log.FLUSH_SECONDS", 0.01)
    monkeypatch.setattr("threadkeep.sqlite.LOOK_SECONDS", 0.02)
    for module in ("run_entry", "stored_runs"):
        monkeypatch.setattr(f"threadkeep.{module}.LOOK_SECONDS", 0.1)


@pytest.mark.usefixtures("quick")
async def test_whatever_happens_the_promises_are_kept(place: Backend, prove: bool) -> None:
    """The seeds are always the same, but what goes on at the same time is not."""
    for seed in range(1000 if prove else 4):
        machine = Machine(seed, place)
        try:
            await machine.run(steps=40)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(machine.story)) from error
