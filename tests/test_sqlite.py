"""What is SQLite's own: one file, several processes, damage, and its place in the file system."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.errors import DatabaseError, DatabaseUnavailableError, SettingsError

WRITER = """
import asyncio, sys
from threadkeep import Session

async def main(url, name):
    async with Session.from_url("shared", url=url) as session:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(100):
            await session.add_items([{"writer": name, "n": n}, {"writer": name, "n": n}])

asyncio.run(main(*sys.argv[1:]))
"""


def writers(url: str, count: int) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0


async def test_processes_share_a_new_file(tmp_path: Path) -> None:
    """Three processes that start at once make the schema once, and no batch is lost or torn."""
    url = f"sqlite:///{tmp_path}/shared.db"
    processes = writers(url, 3)
    await asyncio.to_thread(finish, processes)
    async with Session.from_url("shared", url=url) as session:
        items = await session.get_items()
    assert len(items) == 600
    assert all(items[i] == items[i + 1] for i in range(0, 600, 2))
    for name in "012":
        assert [item["n"] for item in items[::2] if item["writer"] == name] == list(range(100))


def run_and_kill(script: str, url: str) -> int:
    """Runs a writer until it has told 50 times what is stored; gives the last it told."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, url, "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(50)]
    process.kill()
    rest = process.stdout.readlines()  # not communicate(): that misses what readline() has buffered
    process.communicate(timeout=60)
    return int((lines + rest)[-1])


async def test_what_was_added_outlives_the_process_killed(tmp_path: Path) -> None:
    """SIGKILL at any time: what add_items returned from is there, and nothing is half there."""
    url = f"sqlite:///{tmp_path}/killed.db"
    script = WRITER.replace("range(100)", "range(10**9)").replace(
        '"n": n}])', '"n": n}]); print(n, flush=True)'
    )
    told = await asyncio.to_thread(run_and_kill, script, url)
    async with Session.from_url("shared", url=url) as session:
        items = await session.get_items()
    assert len(items) in (2 * told + 2, 2 * told + 4)
    assert items[2 * told] == items[2 * told + 1] == {"writer": "0", "n": told}


async def test_a_forked_child_opens_its_own(tmp_path: Path) -> None:
    """The connection of the parent is never used by the child."""
    session = Session.from_url("s", url=f"sqlite:///{tmp_path}/fork.db")
    await session.add_items([{"from": "parent"}])
    child = await asyncio.to_thread(_fork, session)
    assert child == 0
    assert await session.get_items() == [{"from": "parent"}, {"from": "child"}]
    await session.close()


def _fork(session: Session) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(session.add_items([{"from": "child"}]))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """The error names the file and the setting."""
    file = tmp_path / "notes.txt"
    file.write_text("dear diary, " * 100)
    with pytest.raises(DatabaseUnavailableError, match=r"notes\.txt is not a SQLite database"):
        await connect(f"sqlite:///{file}").open()
    assert file.read_text() == "dear diary, " * 100


async def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """And what to check."""
    with pytest.raises(DatabaseUnavailableError, match="Check that its folder exists"):
        await connect(f"sqlite:///{tmp_path}/no/such/folder/a.db").open()


async def test_tables_of_another_program_are_left_alone(tmp_path: Path) -> None:
    """A file that has its own `sessions` is refused, not built into."""
    with sqlite3.connect(tmp_path / "app.db") as raw:
        raw.execute("CREATE TABLE sessions (mine)")
    raw.close()
    with pytest.raises(DatabaseUnavailableError, match="tables of another program"):
        await connect(f"sqlite:///{tmp_path}/app.db").open()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """An older release must not write into what it does not know."""
    url = f"sqlite:///{tmp_path}/a.db"
    database = connect(url)
    await database.open()
    await database.close()
    with sqlite3.connect(tmp_path / "a.db") as raw:
        raw.execute("INSERT INTO schema_migrations (version, name, release) VALUES (99, 'x', '9')")
    raw.close()
    with pytest.raises(DatabaseUnavailableError, match="newer Threadkeep"):
        await connect(url).open()


async def test_a_job_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    """What is queued together is committed together, each on its own."""
    database = connect(f"sqlite:///{tmp_path}/a.db")
    session = Session("s", database=database)
    results = await asyncio.gather(
        session.add_items([{"n": 1}]),
        database.call("get_session", session_id="s"),  # a parameter is missing
        database.call("get_session", session_id="\ud800", owner=""),  # can't be bound
        session.add_items([{"n": 2}]),
        return_exceptions=True,
    )
    assert isinstance(results[1], DatabaseError)
    assert isinstance(results[2], UnicodeEncodeError)
    assert await session.get_items() == [{"n": 1}, {"n": 2}]
    await database.close()


async def test_a_caller_that_goes_away_harms_nobody(tmp_path: Path) -> None:
    """A cancelled call may still have happened; the next one works."""
    database = connect(f"sqlite:///{tmp_path}/a.db")
    session = Session("s", database=database)
    task = asyncio.create_task(session.add_items([{"n": 1}]))
    await asyncio.sleep(0)
    task.cancel()
    await session.add_items([{"n": 2}])
    assert (await session.get_items())[-1] == {"n": 2}
    await database.close()


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "threadkeep.db", "sqlite://host/file.db", "sqlite:///a.db?mode=ro"]
)
def test_other_urls_are_refused(url: str) -> None:
    """With the form that is right."""
    with pytest.raises(SettingsError, match="sqlite:///path"):
        connect(url)


async def test_a_database_set_back_in_time_is_reread(tmp_path: Path) -> None:
    """After a restore, a cached history that has the same epoch and length is not believed."""
    file, copy = tmp_path / "a.db", tmp_path / "copy.db"
    database = connect(f"sqlite:///{file}")
    session = Session("s", database=database)
    await session.add_items([{"n": 1}])
    await database.close()
    shutil.copy(file, copy)

    database = connect(f"sqlite:///{file}")
    session = Session("s", database=database)
    await session.add_items([{"n": "old"}])
    assert await session.get_items() == [{"n": 1}, {"n": "old"}]
    with sqlite3.connect(copy) as backup, sqlite3.connect(file) as live:
        backup.backup(live)
    backup.close()
    live.close()
    other = connect(f"sqlite:///{file}")
    await Session("s", database=other).add_items([{"n": "new"}])
    await other.close()
    assert await session.get_items() == [{"n": 1}, {"n": "new"}]
    await database.close()


async def test_deleted_items_are_wiped_from_the_file(tmp_path: Path) -> None:
    """Deleted means gone: free pages are overwritten, and the log ends with the last connection."""
    async with Session.from_url("s", url=f"sqlite:///{tmp_path}/a.db") as session:
        await session.add_items([{"role": "user", "content": "the launch code is 8264"}])
        await session.clear_session()
        await session.add_items([{"role": "user", "content": "hi"}])
    left = (tmp_path / "a.db").read_bytes()
    assert b"8264" not in left


async def test_a_run_and_its_session_are_claimed_together(tmp_path: Path) -> None:
    """Also where time goes on between the parts of the statement: here it jumps about."""
    database = connect(f"sqlite:///{tmp_path}/claims.db")
    await database.open()
    with closing(sqlite3.connect(tmp_path / "claims.db", isolation_level=None)) as raw:
        raw.execute("DROP VIEW clock")
        raw.execute("CREATE VIEW clock AS SELECT 1000 + abs(random()) % 100 AS now")
        raw.execute(
            "INSERT INTO sessions (session_id, owner, epoch, run_id, run_attempt, created_at, "
            "updated_at) VALUES ('s', '', 1, 'r', 1, 0, 0)"
        )
        raw.execute(
            "INSERT INTO runs (run_id, session_id, owner, status, request_hash, request, "
            "journal_id, alive_at, created_at) "
            "VALUES ('r', 's', '', 'in_progress', '', '{}', 'r', 0, 0)"
        )
        claims = 0
        for _ in range(100):
            raw.execute("UPDATE runs SET alive_at = 950")
            rows = await database.call(
                "claim_lost_run", stale_after=100, checkpoint_version=0, own=[]
            )
            if rows:
                claims += 1
                attempt = raw.execute("SELECT run_attempt FROM sessions").fetchone()[0]
                assert attempt == rows[0]["attempt"]
        assert 0 < claims < 100
    await database.close()
