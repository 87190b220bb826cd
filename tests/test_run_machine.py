"""Any sequence of what people and processes do to runs keeps what users are promised.

Two replicas work on one database. By chance, from a seed, runs are started, their steps go on or
fail, runs are cancelled, replicas killed, frozen and replaced, approvals decided, and sessions
changed and deleted. After each of these, and when all is let go in the end, `Checks` compares what
is stored with what was promised. A failure tells the seed and what was done.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.backends import Backend, SQLite, new_postgres
from tests.run_approval_checks import call_of
from tests.run_checks import SESSIONS, Checks, Known
from tests.run_verdicts import Wish
from tests.run_world import TOLD_FAULTS, WAIT_SECONDS, Peek, Replica, World, new_replica
from threadkeep import Session
from threadkeep.approvals import Verdict, decide
from threadkeep.errors import (
    ApprovalDecidedError,
    ApprovalExpiredError,
    ConflictError,
    NotFoundError,
)
from threadkeep.history import cache_of
from threadkeep.run_request import Concurrency

POLICIES = [*get_args(Concurrency), "enqueue"]
OUTCOMES = ["return", "return", "raise"]


Doing = Callable[["Machine"], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Plan:
    """What a machine does.

    Args:
        likely: How likely it is that each is done.
        answers: What models answer, one as likely as the other.
        pauses: How long the ways to and from the database take, in seconds, likewise.
        calm: How likely it is that all come to rest before the next thing is done.
    """

    likely: Mapping[Doing, int]
    answers: Sequence[str]
    pauses: Sequence[float] = (0,)
    calm: float = 0.7


class Machine:
    """What may happen, one thing after the other.

    Args:
        seed: Of the chance by which it does.
        backend: The database.
        plan: What of all that.
    """

    def __init__(self, seed: int, backend: Backend, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(seed)
        self._backend = backend
        self._peek = Peek(backend)
        self._world = World(self._peek, lambda: random.choice(plan.pauses))
        self._replicas = [new_replica(self._world, backend) for _ in range(2)]
        self._checks = Checks(self._peek, self._world)
        self._tasks: list[asyncio.Task[None]] = []
        self._texts: dict[str, str] = {}
        self.story: list[str] = []

    async def run(self, steps: int) -> None:
        """Does so many things, then lets all go."""
        doings, weights = list(self._plan.likely), list(self._plan.likely.values())
        try:
            async with asyncio.timeout(steps + 5 * WAIT_SECONDS):
                await self._replicas[0].database.open()
                await self._checks.clear()
                while len(self.story) < steps:
                    told = len(self.story)
                    await self._chance.choices(doings, weights)[0](self)
                    if len(self.story) == told:
                        await asyncio.sleep(0.003)  # nothing was there to do it with
                    elif self._chance.random() < self._plan.calm:
                        await self._settle()
                await self._end()
        finally:
            await self._close()

    async def _settle(self) -> None:
        """Lets everybody go on as far as they come, and looks."""
        for _ in range(12):
            before = sum(replica.database.calls for replica in self._world.replicas)
            await asyncio.sleep(0.015)
            busy = any(
                replica.database.busy for replica in self._world.replicas if replica.is_at_work
            )
            if not busy and before == sum(
                replica.database.calls for replica in self._world.replicas
            ):
                break
        await self._checks.look()

    def _any(self) -> Replica:
        """A replica that answers; one always does."""
        return self._chance.choice([each for each in self._replicas if each.is_at_work])

    def _tell(self, what: str, replica: Replica | None = None) -> None:
        where = f"at {self._world.replicas.index(replica)}: " if replica else ""
        self.story.append(where + what)

    async def start(self) -> None:
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

    async def answer(self) -> None:
        self._let_go("model", self._chance.choice(self._plan.answers))

    async def end_tool(self) -> None:
        self._let_go("tool", self._chance.choice(OUTCOMES))

    def _let_go(self, kind: str, how: str) -> None:
        steps = [s for s in self._world.steps if s.kind == kind and s.replica.is_at_work]
        if steps:
            step = self._chance.choice(steps)
            self._tell(f"the {kind} of {step.of}: {how}", step.replica)
            step.let_go(how)

    async def cancel(self) -> None:
        """Also of what waits for somebody to decide."""
        replica, known = self._any(), self._checks.unfinished()
        waiting = {row["run_id"] for row in await self._approvals() if row["status"] == "pending"}
        known += [self._checks.run(run_id) for run_id in sorted(waiting)]
        if known:
            self._cancel(replica, self._chance.choice(known))

    def _cancel(self, replica: Replica, known: Known) -> None:
        self._tell(f"cancel {known.run_id}", replica)
        self._checks.cancelled(known)

        async def cancel() -> None:
            try:
                response = await replica.runs.cancel(known.run_id, known.owner)
            except NotFoundError:
                return  # it was deleted, or never stored
            assert response["status"] not in ("queued", "in_progress"), "cancelled, and goes on"
            open_ones = await self._approvals(f"run_id = '{known.run_id}' AND status = 'pending'")
            assert not open_ones, "cancelled, and waits for somebody to decide"

        self._later(replica, cancel())

    async def kill(self) -> None:
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

    async def hand_over(self) -> None:
        replica = self._any()
        self._tell("hand over", replica)
        async with asyncio.timeout(WAIT_SECONDS):
            await replica.runs.aclose()
        assert all(run.finished for run in replica.made), "it was stopped, and somebody waits"
        self._replace(replica)

    def _replace(self, replica: Replica) -> None:
        new = new_replica(self._world, self._backend)
        self._replicas[self._replicas.index(replica)] = new

    async def take_over(self) -> None:
        replica = self._any()
        self._tell("take over", replica)
        await self._checks.take_over(replica)

    async def freeze(self) -> None:
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

    async def thaw(self) -> None:
        for replica in self._replicas:
            if not replica.database.running.is_set():
                self._tell("thaw", replica)
                replica.database.running.set()

    async def _approvals(self, where: str = "true") -> list[dict[str, Any]]:
        sql = f"SELECT * FROM threadkeep.approvals_now WHERE {where} ORDER BY approval_id"
        return await self._peek.rows(sql)

    async def decide(self) -> None:
        """About one call, or all of an answer; now and then twice, too late, or as a stranger."""
        rows = await self._approvals()
        waiting = [row for row in rows if row["status"] == "pending"]
        if waiting and self._chance.random() < 0.9:
            rows = waiting
        if rows:
            chosen = self._chance.choice(rows)
            group = [row for row in rows if row["run_id"] == chosen["run_id"]]
            self._decide(group if self._chance.random() < 0.5 else [chosen], rows)

    def _decide(self, chosen: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        replica, how = self._any(), self._chance.random()
        row, always = chosen[0], chosen[0]["kind"] == "needs_approval" and how < 0.1
        wishes = [self._wish(each, always) for each in chosen]
        told = ", ".join(f"{wish.call_id} {wish.status}" for wish in wishes)
        self._tell(f"decide {told}{', always' if always else ''}", replica)
        if 0.1 <= how < 0.2:
            self.story[-1] += ", as somebody else"
            other = "bob" if row["owner"] == "ann" else "ann"
            self._later(replica, self._decide_as_a_stranger(replica, other, wishes))
            return
        self._later(replica, self._deciding(replica, row, wishes, rows if always else []))
        if how > 0.85:
            other_replica = self._any()
            self._tell("and once more", other_replica)
            again = self._deciding(other_replica, row, wishes, rows if always else [])
            self._later(other_replica, again)

    def _wish(self, row: dict[str, Any], always: bool) -> Wish:
        approve = always or self._chance.random() < 0.6
        reason = self._chance.choice([None, f"reason {next(self._world.numbers)}"])
        return Wish(row["approval_id"], call_of(row)["call_id"], row["kind"], approve, reason)

    async def _decide_as_a_stranger(
        self, replica: Replica, owner: str, wishes: Sequence[Wish]
    ) -> None:
        with pytest.raises(NotFoundError):
            await decide(replica.database, replica.runs, owner, *verdicts(wishes))

    async def _deciding(
        self,
        replica: Replica,
        row: dict[str, Any],
        wishes: Sequence[Wish],
        always_with: Sequence[dict[str, Any]],
    ) -> None:
        """Decides; with `always_with`, these calls of the same run need no approval either."""
        known = {wish.approval_id for wish in wishes}
        others = [
            replace(wishes[0], approval_id=other["approval_id"], call_id=call_of(other)["call_id"])
            for other in always_with
            if other["run_id"] == row["run_id"] and other["approval_id"] not in known
        ]
        wanted = [*wishes, *(replace(other, reason=None) for other in others)]
        self._world.verdicts.want(wanted, row["session_id"] if always_with else "")
        where, always = (replica.database, replica.runs, row["owner"]), bool(always_with)
        try:
            await decide(*where, *verdicts(wishes), always=always)
        except (ApprovalDecidedError, ApprovalExpiredError, NotFoundError):
            self._world.verdicts.take_back(wanted)
        except ConflictError:
            return  # the session has gone on: before it was decided, or just then
        else:
            self._world.verdicts.made(sorted(known))

    async def expire(self) -> None:
        """Nobody has decided in time about the calls of a run."""
        waiting = [row for row in await self._approvals() if row["status"] == "pending"]
        if not waiting:
            return
        run_id = self._chance.choice(waiting)["run_id"]
        self._tell(f"expire what {run_id} waits for")
        for row in waiting:
            if row["run_id"] == run_id:
                gone = await self._peek.change(
                    f"UPDATE threadkeep.approvals SET expires_at = {self._peek.long_ago} WHERE "
                    f"approval_id = '{row['approval_id']}' AND status = 'pending' "
                    "RETURNING approval_id"
                )
                self._checks.approvals.expired(each["approval_id"] for each in gone)

    async def append(self) -> None:
        await self._settle()
        replica, name = self._any(), self._chance.choice(sorted(SESSIONS))
        note = f"note {next(self._world.numbers)}"
        self._tell(f"append '{note}' to {name}", replica)
        session = Session(name, database=replica.database, owner=SESSIONS[name])
        await session.add_items([{"role": "user", "content": note}])
        self._checks.appended(name, note)

    async def pop(self) -> None:
        """Takes back the end of a turn that is over, where that is no call's."""
        await self._settle()
        replica, name = self._any(), self._chance.choice(sorted(SESSIONS))
        session = Session(name, database=replica.database, owner=SESSIONS[name])
        items = await session.get_items() if await self._checks.is_idle(name) else []
        if items and "call_id" not in items[-1]:
            self._tell(f"pop from {name}", replica)
            self._checks.popped(name, await session.pop_item())

    async def clear(self) -> None:
        """Takes back all of a session that nobody works on."""
        await self._settle()
        replica, name = self._any(), self._chance.choice(sorted(SESSIONS))
        if await self._checks.is_idle(name):
            self._tell(f"clear {name}", replica)
            session = Session(name, database=replica.database, owner=SESSIONS[name])
            await session.clear_session()
            self._checks.cleared(name)

    async def delete(self) -> None:
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
        await self.thaw()
        for _ in range(200):
            for step in list(self._world.steps):
                step.let_go("say" if step.kind == "model" else "return")
            await self._peek.change(
                f"UPDATE threadkeep.approvals SET decided_at = {self._peek.long_ago} "
                "WHERE decided_at IS NOT NULL"
            )
            await self._checks.take_over(self._replicas[0])
            for row in await self._approvals("status = 'pending'"):
                wish = replace(self._wish(row, always=False), approve=True)
                await self._deciding(self._replicas[0], row, [wish], [])
            await asyncio.sleep(0.02)
            await self._checks.look()
            if self._checks.is_done and all(task.done() for task in self._tasks):
                break
        await self._checks.end(self._tasks)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for replica in self._world.replicas:
            await replica.kill()
            await replica.database.inner.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._peek.close()


def verdicts(wishes: Sequence[Wish]) -> list[Verdict]:
    """What is wanted, as it is asked for."""
    return [Verdict(wish.approval_id, wish.approve, wish.reason) for wish in wishes]


ANYTHING: dict[Doing, int] = {
    Machine.start: 20,
    Machine.answer: 24,
    Machine.end_tool: 12,
    Machine.cancel: 6,
    Machine.take_over: 6,
    Machine.kill: 5,
    Machine.hand_over: 2,
    Machine.freeze: 5,
    Machine.thaw: 3,
    Machine.decide: 10,
    Machine.expire: 1,
    Machine.append: 4,
    Machine.pop: 2,
    Machine.clear: 1,
    Machine.delete: 2,
}
SAYINGS = ["say", "say", "speak", "call", "call", "calls", "ask", "ask and call", "fail", "break"]

APPROVALS: dict[Doing, int] = {
    Machine.start: 12,
    Machine.answer: 60,
    Machine.end_tool: 40,
    Machine.decide: 60,
    Machine.kill: 6,
    Machine.freeze: 3,
    Machine.thaw: 3,
    Machine.take_over: 8,
    Machine.cancel: 3,
    Machine.expire: 3,
    Machine.hand_over: 1,
    Machine.append: 1,
    Machine.clear: 1,
    Machine.delete: 1,
}
QUESTIONS = ["ask", "ask", "ask", "ask", "asks", "asks", "ask and call", "ask and call"]
QUESTIONS += ["call", "say", "say", "fail"]
PAUSES = [0, 0, 0, 0, 0, 0, 0, 0, 0.002, 0.015]


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


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Errors by which runs failed, and which are neither the model's nor what the test told."""
    found: list[BaseException] = []

    def log_fault(where: str, error: BaseException) -> None:
        if not any(told in str(error) for told in TOLD_FAULTS):
            found.append(error)

    monkeypatch.setattr("threadkeep.run.log_fault", log_fault)
    return found


async def machines(seeds: int, faults: list[BaseException], make: Callable[[int], Machine]) -> None:
    """Lets machines of the first seeds run."""
    for seed in range(seeds):
        machine = make(seed)
        try:
            await machine.run(steps=40)
            assert not faults, repr(faults)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(machine.story)) from error


@pytest.mark.usefixtures("quick")
async def test_whatever_happens_the_promises_are_kept(
    place: Backend, prove: bool, faults: list[BaseException]
) -> None:
    """The seeds are always the same, but what goes on at the same time is not."""
    seeds = 300 if prove else 2
    await machines(seeds, faults, lambda seed: Machine(seed, place, Plan(ANYTHING, SAYINGS)))


@pytest.mark.usefixtures("quick")
async def test_approvals_are_kept_by_any_interleaving(
    place: Backend, prove: bool, faults: list[BaseException]
) -> None:
    """Of decisions, kills, cancelling, new messages and expiry: what was approved is made once."""
    seeds = 500 if prove else 2
    plan = Plan(APPROVALS, QUESTIONS, PAUSES, calm=0.4)
    await machines(seeds, faults, lambda seed: Machine(seed, place, plan))
