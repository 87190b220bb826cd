"""The statements of runs on Postgres: none is done twice, and runs that have ended cost nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from tests.backends import Postgres, new_postgres
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from threadkeep.connect import connect
from threadkeep.database import Database

IN_DOUBT = {"call_id": "c", "name": "f", "arguments": "{}", "repeatable": False}


@pytest.fixture
def place(postgres: str) -> Postgres:
    return new_postgres(postgres)


@pytest.fixture
def proxy(place: Postgres) -> Iterator[PostgresProxy]:
    with postgres_proxy(place.url) as proxy:
        yield proxy


@pytest.fixture
async def database(proxy: PostgresProxy) -> AsyncIterator[Database]:
    database = connect(proxy.url)
    await database.open()
    yield database
    await database.close()


def entrant(run_id: str, *, waits: bool = False) -> dict[str, Any]:
    who = {"run_id": run_id, "session_id": "s", "owner": "", "attempt": 1, "waits": waits}
    return who | {"request": "{}", "request_hash": "", "idempotency_key": None, "created": "{}"}


def begin(run_id: str, *, waits: bool = False) -> dict[str, Any]:
    item = json.dumps({"role": "user", "content": run_id})
    known = {"epoch": 0, "seq": 0, "tag": 0, "new_epoch": 7}
    more = {"items": [item], "input_hash": run_id, "title": None, "fork_id": ""}
    more |= {"room_until": 9, "temporary": 0}
    return entrant(run_id, waits=waits) | known | more


def write(run_id: str, attempt: int = 1, **more: Any) -> dict[str, Any]:
    who = {"run_id": run_id, "session_id": "s", "owner": "", "attempt": attempt}
    lists = ["events", "items", "model_keys", "model_requests", "model_responses", "tool_keys"]
    lists += ["tool_states", "tool_repeatable", "tool_calls", "tool_outputs", "tool_approvals"]
    lists += ["approval_ids", "approval_keys", "approval_calls"]
    rest = {"journal_id": run_id, "first_seq": 1, "first_item": 0, "status": "", "open": 0}
    end = {"open_hash": None, "title": None, "checkpoint": None, "checkpoint_version": 0}
    asked = {"approval_kind": "in_doubt", "approval_expiry": 60_000}
    return who | {name: [] for name in lists} | rest | end | asked | more


async def test_what_a_run_has_done_is_not_done_again(
    database: Database, proxy: PostgresProxy
) -> None:
    """The answer to each statement is lost, and the connection with it; nobody notices."""

    async def call(statement: str, **parameters: Any) -> Any:
        proxy.lose_answers()
        return await database.call(statement, **parameters)

    queue = entrant("r0")
    del queue["attempt"], queue["waits"]
    assert (await call("queue_run", **queue, limit=1))[0]["stored"]
    assert not (await call("begin_turn", **begin("r0", waits=True)))[0]["busy"]
    step = {"tool_keys": ["k"], "tool_states": ["intended"], "tool_repeatable": ["false"]}
    step |= {"tool_calls": [json.dumps(IN_DOUBT)], "tool_outputs": [""], "tool_approvals": [""]}
    assert await call("write_run", **write("r0", events=["{}"], items=["{}"], **step))
    asked = {"approval_ids": ["a"], "approval_keys": ["k"], "approval_calls": ["{}"]}
    end = {"first_seq": 2, "first_item": 1, "items": ["{}"], "status": "incomplete", "open": 1}
    assert await call("write_run", **write("r0", **asked, **end))
    decision = {"approval_ids": ["a"], "statuses": ["approved"], "reasons": [""]}
    decision |= {"run_id": "r0", "owner": "", "tools": ["A/b"]}
    decided = [dict(row) for row in await call("decide_approvals", **decision)]
    assert decided == [{"approval_id": "a"}]
    assert not await database.call("decide_approvals", **decision)
    resumed = await call("resume_turn", **entrant("r1"), open_run_id="r0", new_epoch=8)
    assert [row["journal_id"] for row in resumed] == ["r0"]
    assert await call("request_stop", run_id="r1", owner="", how="cancel")
    held = {"run_id": "r1", "session_id": "s", "owner": "", "attempt": 1, "stale_after": 1000}
    await call("release_run", **held)
    await database.call("claim_lost_run", stale_after=1000, checkpoint_version=0, own=[])
    rows = await database.call("get_session", session_id="s", owner="")
    assert (rows[0]["run_id"], rows[0]["seq"]) == ("r1", 1)
    back = {"session_id": "s", "owner": "", "run_id": "r1", "attempt": 2, "fork_id": ""}
    back |= {"epoch": 8, "seq": 1, "keep": 0, "made": 1, "new_epoch": 9}
    assert await call("take_back_turn", **back)
    assert await call("write_run", **write("r1", 2, status="failed", journal_id="r0"))
    assert await database.call("get_session", session_id="s", owner="") == []
    await call("end_lost_turns", session_id="", stale_after=0, given_up_after=0)
    await call("forget_old_runs", older_than=0, limit=9)
    assert await database.call("read_journal", journal_id="r0", owner="") == []


async def test_what_waits_is_parked_and_cancelled_once(
    database: Database, proxy: PostgresProxy
) -> None:
    """When the answer to that is lost, and the connection with it."""
    await database.call("begin_turn", **begin("r0"))
    parked = {"checkpoint": "{}", "checkpoint_version": 5, "approval_kind": "needs_approval"}
    parked |= {"approval_ids": ["a"], "approval_keys": ["0"], "approval_calls": ["{}"]}
    proxy.lose_answers()
    assert await database.call("write_run", **write("r0", status="incomplete", open=1, **parked))
    waiting = (await database.call("get_approval", approval_id="a", owner=""))[0]
    assert (waiting["status"], waiting["checkpoint_version"]) == ("pending", 5)
    proxy.lose_answers()
    closed = await database.call("close_approvals", run_id="r0", owner="")
    assert [row["run_id"] for row in closed] == ["r0"]
    assert (await database.call("get_approval", approval_id="a", owner=""))[0]["status"] == "closed"
    assert not await database.call("close_approvals", run_id="r0", owner="")


async def test_ended_runs_cost_nothing(database: Database, place: Postgres) -> None:
    """What looks for runs at work, or that wait, passes over those that have ended."""
    place.execute(
        "INSERT INTO threadkeep.sessions (session_id, owner, epoch, created_at, updated_at) "
        "SELECT 's' || n % 1000, '', 1, now(), now() FROM generate_series(1, 1000) n;"
        "INSERT INTO threadkeep.runs (run_id, session_id, owner, status, request_hash, request, "
        "journal_id, alive_at, created_at, finished_at) "
        "SELECT 'r' || n, 's' || n % 1000, '', 'failed', '', '{}', 'r' || n, now(), now(), now() "
        "FROM generate_series(1, 50000) n; ANALYZE threadkeep.runs, threadkeep.sessions"
    )
    reads = (
        "SELECT seq_tup_read + idx_tup_fetch AS count FROM pg_stat_user_tables "
        "WHERE relname = 'runs'"
    )
    other = await asyncpg.connect(place.url)

    async def read() -> int:
        await asyncio.sleep(1.2)  # until the server has counted
        return int(await other.fetchval(reads))

    before = await read()
    await database.call("claim_lost_run", stale_after=1000, checkpoint_version=9, own=[])
    await database.call("list_decided_runs", stale_after=1000, checkpoint_version=9, limit=20)
    await database.call("end_lost_turns", session_id="", stale_after=1000, given_up_after=None)
    await database.call("begin_turn", **begin("z0"))
    await database.call("write_run", **write("z0", status="completed"))
    after = await read()
    await other.close()
    assert after - before < 100, f"{after - before} rows of runs were read"


async def test_a_run_that_is_lost_just_while_somebody_looks_can_still_be_written(
    database: Database, place: Postgres
) -> None:
    """One is lost at each moment of a look, when its session may have been looked at already: both
    are of the same attempt all the same, or else nobody could write it ever again."""

    async def look() -> int:
        return len(
            await database.call("claim_lost_run", stale_after=60_000, checkpoint_version=0, own=[])
        )

    for _ in range(10):  # Postgres makes its plan, which it keeps, while there are no runs
        assert await look() == 0
    place.execute(
        "INSERT INTO threadkeep.sessions (session_id, owner, epoch, run_id, run_attempt, "
        "run_alive_at, created_at, updated_at) "
        "SELECT n, '', 1, n, 1, now() - interval '59 s' + n * interval '1 ms', now(), now() "
        "FROM generate_series(1, 2000) n;"
        "INSERT INTO threadkeep.runs (run_id, session_id, owner, status, request_hash, request, "
        "journal_id, alive_at, created_at) "
        "SELECT run_id, session_id, '', 'in_progress', '', '{}', run_id, run_alive_at, created_at "
        "FROM threadkeep.sessions"
    )
    claimed = 0
    while claimed < 100:
        claimed += await look()
    other = await asyncpg.connect(place.url)
    both = "threadkeep.runs r JOIN threadkeep.sessions s USING (run_id)"
    assert await other.fetchval(f"SELECT sum(attempt - 1) FROM {both}") == claimed > 0
    assert await other.fetchval(f"SELECT count(*) FROM {both} WHERE attempt <> run_attempt") == 0
    await other.close()
