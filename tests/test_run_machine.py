"""Any sequence of what people and processes do to runs keeps what users are promised.

Two replicas work on one database. Hypothesis starts runs, lets their steps go on or fail, cancels,
kills, freezes and replaces replicas, decides approvals, and changes and deletes sessions. After
each of these, and when all is let go in the end, `Checks` (run_checks.py) looks at what is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.backends import Backend, SQLite, new_postgres
from tests.run_checks import SESSIONS, Checks
from tests.run_world import WAIT_SECONDS, Peek, Replica, World, new_replica
from threadkeep import Session
from threadkeep.approvals import decide
from threadkeep.errors import ConflictError, NotFoundError
from threadkeep.history import cache_of

T = TypeVar("T")

WHICH = st.integers(0, 1)
NTH = st.integers(0, 5)
NAMES = st.sampled_from(sorted(SESSIONS))
POLICIES = st.sampled_from(["enqueue", "enqueue", "reject", "interrupt", "rollback"])
ANSWERS = st.sampled_from(["say", "speak", "call", "call", "calls", "fail", "break"])
OUTCOMES = st.sampled_from(["return", "return", "raise"])
KEYS = st.sampled_from([None, None, None, "k1", "k2"])


class RunMachine(RuleBasedStateMachine):
    """The rules: what may happen."""

    backend: Backend

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.Runner()
        self.peek = Peek(self.backend)
        self.world = World(self.peek)
        self.replicas = [new_replica(self.world, self.backend) for _ in range(2)]
        self.all = list(self.replicas)
        self.checks = Checks(self.peek, self.world)
        self.waiting: list[asyncio.Task[Any]] = []
        self.texts: dict[str, str] = {}
        self.do(self.replicas[0].database.open(), settle=False)
        self.do(self.checks.clear(), settle=False)

    def do(self, work: Coroutine[Any, Any, T], *, settle: bool = True) -> T:
        """Does it, and lets everybody go on as far as they come."""

        self.changed = True

        async def doing() -> T:
            async with asyncio.timeout(2 * WAIT_SECONDS):
                result = await work
                if settle:
                    await self.settle()
                return result

        return self.loop.run(doing())

    async def settle(self) -> None:
        for _ in range(12):
            before = sum(replica.database.calls for replica in self.all)
            await asyncio.sleep(0.015)
            live = [replica.database for replica in self.all if replica.is_at_work]
            now = sum(replica.database.calls for replica in self.all)
            if now == before and not any(database.busy for database in live):
                return

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Does what may have to wait for other things to happen."""

        async def begin() -> None:
            self.waiting.append(asyncio.create_task(work))

        self.do(begin())

    def live(self, which: int) -> Replica | None:
        """A replica, or the other one where that does not answer."""
        for replica in (self.replicas[which], self.replicas[1 - which]):
            if replica.is_at_work:
                return replica
        return None

    @rule(which=WHICH, name=NAMES, policy=POLICIES, key=KEYS, again=st.integers(0, 5))
    def start(self, which: int, name: str, policy: Any, key: str | None, again: int) -> None:
        replica = self.live(which)
        if replica is None:
            return
        text = self.texts.get(name) if again == 0 else None
        text = text or f"text {next(self.world.numbers)}"
        self.texts[name] = text

        async def begin() -> None:
            request = replica.request(text, name, SESSIONS[name], policy, key)
            run = replica.start(request)
            following = self.checks.follow(self.checks.started(run, replica))
            self.waiting.append(asyncio.create_task(self.checks.unless_lost(replica, following)))

        self.do(begin())

    @rule(nth=NTH, answer=ANSWERS)
    def answer(self, nth: int, answer: str) -> None:
        self.let_go("model", nth, answer)

    @rule(nth=NTH, outcome=OUTCOMES)
    def end_tool(self, nth: int, outcome: str) -> None:
        self.let_go("tool", nth, outcome)

    def let_go(self, kind: str, nth: int, how: str) -> None:
        """Tells one of the steps that wait how it goes."""
        steps = [
            step
            for step in self.world.steps
            if step.kind == kind and step.replica.is_at_work and not step.future.done()
        ]
        if not steps:
            return

        async def tell() -> None:
            steps[nth % len(steps)].future.set_result(how)

        self.do(tell())

    @rule(which=WHICH, nth=NTH)
    def cancel(self, which: int, nth: int) -> None:
        replica, unfinished = self.live(which), self.checks.unfinished()
        if replica is None or not unfinished:
            return
        run = unfinished[nth % len(unfinished)]
        self.checks.cancelled(run)

        async def cancelling() -> None:
            try:
                response = await replica.runs.cancel(run.run_id, run.owner)
            except NotFoundError:
                return  # it was deleted, or never stored
            status = response["status"]
            if status in ("queued", "in_progress") and not replica.database.dead:
                self.world.faults.append(f"{run.run_id} was cancelled and is {status}")

        self.later(self.checks.unless_lost(replica, cancelling()))

    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        self.do(self.kill_now(which))

    async def kill_now(self, which: int) -> None:
        replica = self.replicas[which]
        lost = [run.run_id for run in replica.made if not run.finished]
        await replica.kill()
        await self.peek.silence(lost)
        self.replace(which)

    @rule(which=WHICH)
    def hand_over(self, which: int) -> None:
        replica = self.replicas[which]
        if not replica.is_at_work:
            return
        self.do(replica.runs.aclose())
        assert all(run.finished for run in replica.made), "it was stopped, and somebody waits"
        self.replace(which)

    def replace(self, which: int) -> None:
        self.replicas[which] = new_replica(self.world, self.backend)
        self.all.append(self.replicas[which])

    @rule(which=WHICH)
    def take_over(self, which: int) -> None:
        replica = self.live(which)
        if replica is not None:
            self.do(self.checks.take_over(replica))

    @rule(which=WHICH)
    def freeze(self, which: int) -> None:
        frozen, other = self.replicas[which], self.replicas[1 - which]
        if not frozen.is_at_work or not other.is_at_work:
            return

        async def freeze() -> None:
            frozen.database.running.clear()
            frozen.was_frozen = True
            await asyncio.sleep(0.03)
            await self.peek.silence([run.run_id for run in frozen.made if not run.finished])
            await self.checks.take_over(other)

        self.do(freeze())

    @rule()
    def thaw(self) -> None:
        if not all(replica.is_at_work for replica in self.replicas):
            self.do(self.thaw_now())

    async def thaw_now(self) -> None:
        for replica in self.replicas:
            replica.database.running.set()

    @rule(which=WHICH, nth=NTH, approve=st.booleans())
    def decide(self, which: int, nth: int, approve: bool) -> None:
        replica = self.live(which)
        if replica is None:
            return

        async def deciding() -> None:
            pending = await self.peek.rows(
                "SELECT a.approval_id, a.owner, a.key FROM threadkeep.approvals a "
                "WHERE a.status = 'pending' ORDER BY a.approval_id"
            )
            if not pending:
                return
            chosen = pending[nth % len(pending)]
            self.world.approved[chosen["key"].rpartition(":")[2]] += approve
            here = (replica.database, replica.runs, chosen["approval_id"], chosen["owner"])
            try:
                decided = await decide(*here, approve=approve, reason=None)
            except (ConflictError, NotFoundError):
                return
            self.checks.went_on(decided["response_id"], replica)

        self.later(self.checks.unless_lost(replica, deciding()))

    @rule(which=WHICH, name=NAMES)
    def append(self, which: int, name: str) -> None:
        replica = self.live(which)
        if replica is None:
            return
        session = Session(name, database=replica.database, owner=SESSIONS[name])
        text = f"note {next(self.world.numbers)}"
        self.do(session.add_items([{"role": "user", "content": text}]))
        self.checks.appended(name, text)

    @rule(which=WHICH, name=NAMES)
    def pop(self, which: int, name: str) -> None:
        """Only a note of our own, or the end of a turn that is over."""
        replica = self.live(which)
        if replica is None or not self.do(self.checks.is_idle(name)):
            return
        session = Session(name, database=replica.database, owner=SESSIONS[name])

        async def pop() -> None:
            items = await session.get_items()
            if items and "call_id" not in items[-1]:
                self.checks.popped(name, await session.pop_item())

        self.do(pop())

    @rule(which=WHICH, name=NAMES)
    def delete(self, which: int, name: str) -> None:
        """As the server does."""
        replica = self.live(which)
        if replica is None:
            return

        async def delete() -> None:
            gone = False
            while not gone:
                await replica.runs.stop_session(name, SESSIONS[name])
                before = await self.checks.ids_of(name)
                rows = await replica.database.call(
                    "delete_session", session_id=name, owner=SESSIONS[name]
                )
                if not rows:
                    return
                gone = bool(rows[0]["gone"])
            cache_of(replica.database).forget(name, SESSIONS[name])
            self.checks.deleted(name, before)

        self.do(delete())

    @invariant()
    def promises(self) -> None:
        if self.changed:
            self.do(self.checks.look(), settle=False)
            self.changed = False

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.do(self.end(), settle=False)
        finally:
            self.loop.run(self.close())
            self.loop.close()

    async def end(self) -> None:
        """Lets all go; then nobody may wait any more."""
        await self.thaw_now()
        for _ in range(300):
            for step in list(self.world.steps):
                if not step.future.done():
                    step.future.set_result("say" if step.kind == "model" else "return")
            await self.checks.take_over(self.replicas[0])
            await asyncio.sleep(0.02)
            await self.checks.look()
            if not self.checks.unfinished() and all(task.done() for task in self.waiting):
                break
        await self.checks.end(self.all, self.waiting)

    async def close(self) -> None:
        for task in self.waiting:
            task.cancel()
        for step in list(self.world.steps):
            step.future.cancel()
        for replica in self.all:
            replica.database.running.set()
            await replica.kill()
            await replica.database.inner.close()
        await self.peek.close()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty database, of each kind in turn."""
    if request.param == "postgres":
        return new_postgres(request.getfixturevalue("postgres"))
    return SQLite(tmp_path / "threadkeep.db")


def test_whatever_happens_the_promises_are_kept(
    place: Backend, prove: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by Hypothesis, if there is a sequence of what may happen after which they are not."""
    monkeypatch.setattr("threadkeep.run_log.FLUSH_SECONDS", 0.01)
    monkeypatch.setattr("threadkeep.sqlite.LOOK_SECONDS", 0.02)
    for module in ("run", "stored_runs"):
        monkeypatch.setattr(f"threadkeep.{module}.LOOK_SECONDS", 0.1)

    class Machine(RunMachine):
        backend = place

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=1000 if prove else 20,
            stateful_step_count=30 if prove else 20,
            derandomize=not prove,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
