"""Calls that wait for a person: the ways that broke a promise once, and the plain one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends import Backend, SQLite, new_postgres
from tests.run_world import Peek, Replica, Step, World, new_replica
from threadkeep import Session
from threadkeep.approvals import Verdict, decide, list_approvals
from threadkeep.run import Run
from threadkeep.run_request import Concurrency


@pytest.fixture(params=["sqlite", "postgres"])
async def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Replica]]:
    backend: Backend = SQLite(tmp_path / "threadkeep.db")
    if request.param == "postgres":
        backend = new_postgres(request.getfixturevalue("postgres"))
    world = World(Peek(backend))
    replicas = [new_replica(world, backend) for _ in range(2)]
    await replicas[0].database.open()
    yield replicas
    for replica in replicas:
        await replica.kill()
        await replica.database.inner.close()
    await world.peek.close()


async def step(replica: Replica, how: str) -> None:
    """Lets the next step go on."""
    async with asyncio.timeout(5):
        while not (steps := _waiting(replica)):  # noqa: ASYNC110 - it is the step that says so
            await asyncio.sleep(0.01)
    steps[0].let_go(how)


def _waiting(replica: Replica) -> list[Step]:
    steps = replica.world.steps
    return [each for each in steps if each.replica is replica and not each.future.done()]


async def parked(replica: Replica, policy: Concurrency = "enqueue") -> Run:
    """A run that waits for somebody to approve a call."""
    run = replica.start(replica.request("first", "s", "ann", policy))
    await step(replica, "ask")
    async with asyncio.timeout(5):
        await run.wait()
    assert run.status == "incomplete"
    return run


async def pending(replica: Replica) -> list[dict[str, Any]]:
    return await list_approvals(replica.database, "ann", status="pending")


async def outputs(replica: Replica) -> list[object]:
    items: list[Any] = await Session("s", database=replica.database, owner="ann").get_items()
    return [item["output"] for item in items if item.get("type") == "function_call_output"]


async def decided(replica: Replica, approve: bool = True) -> None:
    """Decides all that waits, in a process that others may kill."""
    verdicts = [Verdict(approval["id"], approve) for approval in await pending(replica)]
    await decide(replica.database, replica.runs, "ann", *verdicts)


async def test_parked_here_killed_and_decided_there(replicas: list[Replica]) -> None:
    """The call is made once, by whichever process goes on."""
    here, there = replicas
    await parked(here)
    await here.kill()
    await decided(there)
    await step(there, "return")
    await step(there, "say")
    (run,) = there.made
    await run.wait()
    (call_id,) = here.world.starts
    assert (run.status, here.world.starts[call_id]) == ("completed", 1)
    assert await outputs(there) == [f"{call_id} done"]


@pytest.mark.parametrize("where", [0, 1], ids=["here", "elsewhere"])
async def test_a_run_that_parks_while_it_is_cancelled_waits_for_nobody(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    """It is asked to stop in the moment in which it stores that it waits."""
    here, asked = replicas[0], replicas[where]
    cancelling: list[asyncio.Task[Any]] = []
    call = here.database.call

    async def slow(statement: str, **parameters: Any) -> Any:
        if statement == "write_run" and parameters["approval_ids"]:
            cancelling.append(asyncio.create_task(asked.runs.cancel(run.run_id, "ann")))
            await asyncio.sleep(0.1)
        return await call(statement, **parameters)

    monkeypatch.setattr(here.database, "call", slow)
    run = here.start(here.request("first", "s", "ann"))
    await step(here, "ask")
    await run.wait()
    response = await cancelling[0]
    assert response["status"] == "cancelled"
    assert await pending(here) == []


@pytest.mark.parametrize("policy", ["reject", "interrupt", "rollback"])
async def test_a_decision_pushes_nobody(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch, policy: Concurrency
) -> None:
    """Whatever the message asked for that it goes on with: a newer one has its turn."""
    here, _ = replicas
    await parked(here, policy)
    call, is_decided = here.database.call, asyncio.Event()

    async def slow(statement: str, **parameters: Any) -> Any:
        if statement == "begin_turn":
            await is_decided.wait()
        return await call(statement, **parameters)

    monkeypatch.setattr(here.database, "call", slow)
    newer = here.start(here.request("second", "s", "ann"))
    deciding = asyncio.create_task(decided(here))
    async with asyncio.timeout(5):
        while len(here.made) < 3:  # noqa: ASYNC110 - until the turn is to go on
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    is_decided.set()
    await step(here, "say")
    await newer.wait()
    await deciding
    *_, late = here.made
    await late.wait()
    assert newer.status == "completed"
    assert late.failure is not None
    assert late.failure.code == "turn_gone"


async def test_a_turn_whose_continuation_was_cancelled_is_not_gone_on_with(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision is good for one run: nobody tries to make another one for ever."""
    here, there = replicas
    await parked(here)
    call, may_begin = here.database.call, asyncio.Event()

    async def slow(statement: str, **parameters: Any) -> Any:
        if statement == "begin_turn":
            await may_begin.wait()
        return await call(statement, **parameters)

    monkeypatch.setattr(here.database, "call", slow)
    newer = here.start(here.request("second", "s", "ann"))
    await decided(here)
    *_, waits = here.made
    await waits.stop()
    here.database.dead = True
    may_begin.set()
    await here.kill()
    await here.world.peek.silence([newer.run_id])
    await here.world.peek.rows(
        f"UPDATE threadkeep.approvals SET decided_at = {here.world.peek.long_ago}"
    )
    assert waits.status == "cancelled"
    assert await there.take_over() == []


async def test_what_nobody_decided_in_time_can_be_cancelled(replicas: list[Replica]) -> None:
    """Like all that waits."""
    here, there = replicas
    run = await parked(here)
    peek = here.world.peek
    await peek.rows(f"UPDATE threadkeep.approvals SET expires_at = {peek.long_ago}")
    assert (await there.runs.cancel(run.run_id, "ann"))["status"] == "cancelled"
    shown = await list_approvals(there.database, "ann")
    assert [approval["status"] for approval in shown] == ["closed"]
