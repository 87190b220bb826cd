"""Sequences that broke a promise once, as the machine test found them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.backends import SQLite
from tests.run_world import Peek, Replica, World, new_replica
from threadkeep import Session
from threadkeep.database import Database


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[Replica]]:
    backend = SQLite(tmp_path / "threadkeep.db")
    world = World(Peek(backend))
    replicas = [new_replica(world, backend) for _ in range(2)]
    yield replicas
    for replica in replicas:
        await replica.kill()
        await replica.database.inner.close()


async def texts(database: Database) -> list[object]:
    session = Session("s", database=database, owner="ann")
    return [item.get("content") for item in await session.get_items()]


async def until_asked(replica: Replica) -> None:
    while not replica.world.steps:  # noqa: ASYNC110 - it is the model that says so
        await asyncio.sleep(0.01)


async def test_what_others_wrote_in_a_turn_outlives_its_rollback(replicas: list[Replica]) -> None:
    """The turn then stays as well: it can't be taken out from under what came after."""
    here, _ = replicas
    first = here.start(here.request("first", "s", "ann"))
    await until_asked(here)
    session = Session("s", database=here.database, owner="ann")
    await session.add_items([{"role": "user", "content": "note"}])
    second = here.start(here.request("second", "s", "ann", "rollback"))
    await first.wait()
    await asyncio.wait_for(second.received, 5)
    assert await texts(here.database) == ["first", "note", "second"]


async def test_a_queued_run_goes_with_its_session(replicas: list[Replica]) -> None:
    """It does not make the session anew when it is its turn."""
    here, there = replicas
    first = here.start(here.request("first", "s", "ann"))
    await until_asked(here)
    second = there.start(there.request("second", "s", "ann"))
    await asyncio.wait_for(second.received, 5)
    await here.database.call("delete_session", session_id="s", owner="ann")
    await asyncio.wait_for(asyncio.gather(first.wait(), second.wait()), 5)
    assert (first.status, second.status) == ("failed", "failed")
    assert await texts(here.database) == []


async def test_a_run_that_is_stopped_while_it_enters_is_ended(replicas: list[Replica]) -> None:
    """Its session is free at once, and nobody makes the run later."""
    here, there = replicas
    run = here.start(here.request("first", "s", "ann"))
    while not here.database.busy:  # noqa: ASYNC110 - until its admission is under way
        await asyncio.sleep(0)
    await run.stop()
    assert (await there.runs.response(run.run_id, "ann"))["status"] == "cancelled"
    rows = await there.database.call("get_session", session_id="s", owner="ann")
    assert [row["run_id"] for row in rows] in ([], [None])


@pytest.mark.parametrize("calls", range(6))
async def test_a_run_that_is_stopped_before_it_caught_up_keeps_what_was_done(
    replicas: list[Replica], calls: int
) -> None:
    """Also when it is asked to before its new process knows what that was."""
    here, there = replicas
    lost = here.start(here.request("first", "s", "ann"))
    for how in ("call", "return", "call"):
        await until_asked(here)
        here.world.steps[0].let_go(how)
        await asyncio.sleep(0.1)
    await here.kill()
    await here.world.peek.silence([lost.run_id])
    before = there.database.calls
    (run,) = await there.take_over()
    while there.database.calls < before + 4 + calls and not run.finished:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await run.stop()
    items = await Session("s", database=there.database, owner="ann").get_items()
    calls_made = [item["call_id"] for item in items if item.get("type") == "function_call"]
    assert calls_made == list(here.world.starts)
    outputs = {item["call_id"]: item["output"] for item in items if "output" in item}
    done, in_doubt = calls_made
    assert outputs == {done: f"{done} done", in_doubt: "outcome unknown"}
    assert run.response()["status"] in ("cancelled", "incomplete")


async def test_a_run_that_is_stopped_before_it_caught_up_keeps_what_was_said(
    replicas: list[Replica],
) -> None:
    """As far as its client has heard it."""
    here, there = replicas
    lost = here.start(here.request("first", "s", "ann"))
    await until_asked(here)
    here.world.steps[0].let_go("speak")
    told = ""
    async with aclosing(lost.follow()) as events:
        async for event in events:
            told += event.get("delta", "")
            if told:
                break
    await here.kill()
    await here.world.peek.silence([lost.run_id])
    (run,) = await there.take_over()
    await run.stop()
    items = await Session("s", database=there.database, owner="ann").get_items()
    assert items[-1]["content"][0]["text"] == told
    assert run.response()["output"][0]["content"][0]["text"] == told


async def test_a_run_that_is_stored_while_it_is_cancelled_is_cancelled(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the database did not know of a moment before is asked to stop once more."""
    here, there = replicas
    here.database.running.clear()
    run = here.start(here.request("first", "s", "ann"))
    ask = there.database.call

    async def call(statement: str, **parameters: Any) -> Any:
        rows = await ask(statement, **parameters)
        if statement == "request_stop" and not here.database.running.is_set():
            here.database.running.set()
            await run.received
        return rows

    monkeypatch.setattr(there.database, "call", call)
    async with asyncio.timeout(5):
        response = await there.runs.cancel(run.run_id, "ann")
    assert response["status"] == "cancelled"


async def test_a_rollback_does_not_make_a_run_forget_that_it_is_cancelled(
    replicas: list[Replica],
) -> None:
    """A rollback may be refused, and then nothing else would stop the run."""
    here, there = replicas
    run = here.start(here.request("first", "s", "ann"))
    await until_asked(here)
    here.database.running.clear()
    for how in ("rollback", "cancel", "rollback"):
        await there.database.call("request_stop", run_id=run.run_id, owner="ann", how=how)
    rows = await there.database.call("get_run", run_id=run.run_id, owner="ann")
    assert rows[0]["stop_requested"] == "cancel"
