"""Old runs are forgotten; what was said in them is not."""

from __future__ import annotations

import asyncio

from tests.backends import Backend, SQLite
from tests.client import ask, client_of, contents
from tests.conftest import RunningApp, environment
from threadkeep.connect import connect
from threadkeep.retention import BATCH, forget_old_runs
from threadkeep.settings import DatabaseSettings


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
