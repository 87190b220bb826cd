"""Old runs are forgotten, what was said in them is not; sessions go when their time is over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.backends import Backend, SQLite
from tests.client import ANN, ask, client_of, contents, follow
from tests.conftest import RunningApp, environment
from tests.test_databricks import user
from threadkeep import Session, retention
from threadkeep.connect import connect
from threadkeep.owners import count_of
from threadkeep.retention import BATCH, delete_expired_sessions, forget_old_runs
from threadkeep.settings import DatabaseSettings
from threadkeep.stored_sessions import Change, change_session


def test_what_ended_long_ago_is_forgotten(backend: Backend) -> None:
    """With its events; runs at work and younger ones stay, and so do the sessions."""
    app = RunningApp(environment(backend))
    with client_of(app.url) as client:
        old = ask(client, "say old", "s")
        young = ask(client, "say young", "s")
        ask(client, "hold", "other", background=True)
        ago = "0" if isinstance(backend, SQLite) else "now() - interval '8 days'"
        backend.execute(
            f"UPDATE threadkeep.runs SET finished_at = {ago} WHERE run_id = '{old['id']}'"
        )

        async def forget() -> int:
            database = connect(DatabaseSettings.read(backend.variables))
            count = await forget_old_runs(database, 7)
            await database.close()
            return count

        assert asyncio.run(forget()) == 1
        assert asyncio.run(forget()) == 0
        assert client.get(f"/responses/{old['id']}").status_code == 404
        assert client.get(f"/responses/{young['id']}").status_code == 200
        assert contents(client, "s") == ["say old", "old", "say young", "young"]
        app.model.go_on.set()
    app.stop()


def test_many_are_forgotten_in_batches(backend: Backend) -> None:
    """All of them, in the end."""
    database = connect(DatabaseSettings.read(backend.variables))

    async def fill() -> int:
        await database.open()
        columns = (
            "run_id, session_id, owner, request_hash, journal_id, status, alive_at, created_at, "
            "finished_at"
        )
        series = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            f"WHERE i < {2 * BATCH + 1}) "
        )
        then = "1" if isinstance(backend, SQLite) else "'2020-01-01'::timestamptz"
        rows = f"SELECT 'r' || i, 's', '', '', '', 'completed', {then}, {then}, {then} FROM n"
        if isinstance(backend, SQLite):
            backend.execute(f"{series} INSERT INTO runs ({columns}) {rows}")
        else:
            backend.execute(f"INSERT INTO threadkeep.runs ({columns}) {series} {rows}")
        count = await forget_old_runs(database, 7)
        await database.close()
        return count

    assert asyncio.run(fill()) == 2 * BATCH + 1


BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


async def expire(backend: Backend, days: float | None) -> int:
    database = connect(DatabaseSettings.read(backend.variables))
    count = await delete_expired_sessions(database, days)
    await database.close()
    return count


async def counts(backend: Backend, owner: str) -> dict[str, int]:
    database = connect(DatabaseSettings.read(backend.variables))
    found = await count_of(database, owner)
    await database.close()
    return found


@BOTH
def test_sessions_go_when_their_time_is_over(backend: Backend) -> None:
    """That is, the time set for them, or so many days after the last change; with all that belongs
    to them, and not before the end of a run at work on them."""
    app = RunningApp(environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1"))
    with client_of(app.url, **ANN) as client:
        for name in ("idle", "idle but wanted", "set"):
            ask(client, "say it", name)
        before = asyncio.run(counts(backend, "ann"))
        ask(client, "say it", "young")
        young = {name: n - before[name] for name, n in asyncio.run(counts(backend, "ann")).items()}
        working = ask(client, "hold", "working", background=True)
        ago = "1" if isinstance(backend, SQLite) else "now() - interval '31 days'"
        backend.execute(
            f"UPDATE threadkeep.sessions SET updated_at = {ago} WHERE session_id LIKE 'idle%'"
        )
        for name, time in (("idle but wanted", 2**33), ("set", 1), ("working", 1)):
            changed = client.patch(f"/sessions/{name}", json={"expires_at": time}).json()
            assert changed["expires_at"] == time
        assert asyncio.run(expire(backend, None)) == 1
        assert asyncio.run(expire(backend, 30)) == 1
        assert ids(client) == {"idle but wanted", "young", "working"}
        client.patch("/sessions/idle but wanted", json={"expires_at": None})
        assert asyncio.run(expire(backend, 30)) == 1
        app.model.go_on.set()
        assert [*follow(client, working["id"])][-1]["type"] == "response.completed"
        assert asyncio.run(expire(backend, None)) == 1
        assert ids(client) == {"young"}
        assert asyncio.run(counts(backend, "ann")) == young
    app.stop()


def ids(client: Any) -> set[str]:
    return {session["id"] for session in client.get("/sessions").json()["data"]}


def test_when_a_session_goes_is_set(tmp_path: Path) -> None:
    """To a time; and a session that is changed in other ways keeps it."""
    app = RunningApp(environment(f"sqlite:///{tmp_path}/t.db", THREADKEEP_TRUST_PROXY_HEADERS="1"))
    with client_of(app.url, **ANN) as ann:
        ask(ann, "say it", "s")
        assert ann.get("/sessions/s").json()["expires_at"] is None
        ann.patch("/sessions/s", json={"expires_at": 2**33})
        for time in (-1, 1.5, "1", True, 10**12):
            assert ann.patch("/sessions/s", json={"expires_at": time}).status_code == 400
        ann.patch("/sessions/s", json={"always_approve": []})
        assert [s["expires_at"] for s in ann.get("/sessions").json()["data"]] == [2**33]
    app.stop()


@BOTH
async def test_a_branch_goes_with_the_time_of_its_session(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cut off from a session stays no longer than it; many go in batches."""
    monkeypatch.setattr(retention, "SESSION_BATCH", 2)
    database = connect(DatabaseSettings.read(backend.variables))
    for number in range(3):
        await Session(f"s{number}", database=database).add_items([user("hello")])
        await change_session(database, f"s{number}", "", Change(timed=True, expires_at=1))
        row = (await database.call("get_session", session_id=f"s{number}", owner=""))[0]
        await database.call(
            "branch_session",
            session_id=f"s{number}",
            owner="",
            fork_id=f"fork{number}",
            fork_epoch=1,
            new_epoch=2,
            epoch=row["epoch"],
            seq=1,
            keep=0,
        )
    assert (await count_of(database, ""))["sessions"] == 6
    assert await delete_expired_sessions(database, None) == 6
    assert set((await count_of(database, "")).values()) == {0}
    await database.close()
