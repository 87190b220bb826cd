"""`threadkeep sessions doctor`: what it finds of each kind of damage, and what a repair leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends import Backend, Postgres, SQLite, new_postgres
from tests.conftest import backends
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.test_commands import Folder, settings_of
from tests.test_mend import PARTS, call, closing, output, said, thought, user
from threadkeep import Session, session_doctor
from threadkeep.connect import connect
from threadkeep.database import Database, Row, Value
from threadkeep.errors import NotFoundError
from threadkeep.history import encode_items, new_epoch
from threadkeep.mend import mended
from threadkeep.session_doctor import Checkup, SilentRun, examine, silent_runs
from threadkeep.settings import DatabaseSettings

backend = backends("sqlite", "postgres")


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    database = connect(DatabaseSettings.read(backend.variables))
    await database.open()
    yield database
    await database.close()


async def checkups(database: Database, session_id: str | None = None, **how: Any) -> list[Checkup]:
    return [checkup async for checkup in examine(database, session_id, **how)]


async def items_of(database: Database, session_id: str, owner: str = "") -> list[tuple[int, str]]:
    """What is stored, row by row."""
    rows = await database.call(
        "read_first_items", session_id=session_id, owner=owner, after=0, limit=99
    )
    return [(row["seq"], row["data"]) for row in rows if row["seq"] is not None]


def now_of(backend: Backend) -> str:
    return "(SELECT now FROM clock)" if isinstance(backend, SQLite) else "clock_timestamp()"


TALK = [user("a"), thought(), call("1"), output("1"), said(), user("b")]


@pytest.mark.parametrize(
    ("items", "sql", "troubles", "repaired"),
    [
        ([*TALK, call("2")], [], ["calls without output: 7"], [*TALK, call("2"), closing("2")]),
        ([output("0"), *TALK], [], ["outputs without call: 1"], TALK),
        ([*TALK[:4], *TALK[3:]], [], ["second outputs of a call: 5"], TALK),
        (
            [*TALK[:3], said("x"), user("c"), output("1")],
            [],
            ["outputs away from their call: 6"],
            [*TALK[:3], said("x"), output("1"), user("c")],
        ),
        ([thought(), *TALK, thought()], [], ["reasoning that leads to nothing: 1, 8"], TALK),
        (
            TALK,
            ["UPDATE threadkeep.items SET data = '{\"x' WHERE seq IN (1, 3)"],
            ["no readable items: 1, 3", "outputs without call: 4"],
            [thought(), said(), user("b")],
        ),
        (
            TALK,
            ["DELETE FROM threadkeep.items WHERE seq IN (1, 3, 4)"],
            ["missing items: 1, 3 to 4"],
            [thought(), said(), user("b")],
        ),
        (
            TALK,
            ["DELETE FROM threadkeep.items WHERE seq = 6"],
            ["counts 6 items, and the last one is 5"],
            TALK[:5],
        ),
        (
            TALK,
            ["UPDATE threadkeep.sessions SET seq = 4"],
            ["counts 4 items, and the last one is 6"],
            TALK,
        ),
        (
            TALK,
            ["DELETE FROM threadkeep.items"],
            ["counts 6 items, and the last one is 0"],
            [],
        ),
    ],
)
async def test_each_damage_is_found_and_repaired(
    database: Database,
    backend: Backend,
    items: list[Any],
    sql: list[str],
    troubles: list[str],
    repaired: list[Any],
) -> None:
    """It is told by the numbers of items; only when it is asked for is it repaired, and then there
    is a fork that holds all that there was."""
    session = Session("s", database=database, owner="ann")
    await session.add_items(items)
    assert await session.get_items() == items
    for change in sql:
        backend.execute(change)
    before = await items_of(database, "s", "ann")
    assert await checkups(database) == [Checkup("s", "broken", tuple(troubles))]
    assert await items_of(database, "s", "ann") == before
    (done,) = await checkups(database, repair=True)
    assert done == Checkup("s", "repaired", tuple(troubles), done.fork_id)
    assert await session.get_items() == repaired
    stored = await items_of(database, "s", "ann")
    assert stored == list(enumerate(encode_items(repaired), 1))
    (fork,) = await database.call("get_session", session_id=done.fork_id, owner="ann")
    assert fork["parent_session_id"] == "s"
    assert await items_of(database, done.fork_id, "ann") == before
    assert await checkups(database) == [Checkup("s", "sound")]
    (kept,) = await checkups(database, done.fork_id)
    assert kept.troubles == tuple(troubles)
    await session.add_items([user("on")])
    assert (await session.get_items())[-1] == user("on")


async def test_what_stays_keeps_its_time_and_its_run(database: Database, backend: Backend) -> None:
    """And the session its title, its place in the list and its own metadata."""
    session = Session("s", database=database)
    await session.add_items([output("0"), *TALK])
    backend.execute("UPDATE threadkeep.items SET run_id = 'r' WHERE seq = 3")
    backend.execute("UPDATE threadkeep.sessions SET metadata = '{\"a\":1}'")
    (before,) = await database.call("get_session", session_id="s", owner="")
    old = await database.call("read_first_items", session_id="s", owner="", after=1, limit=9)
    (done,) = await checkups(database, repair=True)
    (after,) = await database.call("get_session", session_id="s", owner="")
    (fork,) = await database.call("get_session", session_id=done.fork_id, owner="")
    same = ("title", "created_at", "updated_at")
    assert [[row[name] for name in same] for row in (after, fork)] == 2 * [
        [before[name] for name in same]
    ]
    assert (after["metadata"], after["seq"]) == ('{"a":1}', 6)
    assert '"a":1' in fork["metadata"]
    new = await database.call("read_first_items", session_id="s", owner="", after=0, limit=9)
    fields = ("data", "run_id", "created_at")
    assert [[row[name] for name in fields] for row in new] == [
        [row[name] for name in fields] for row in old
    ]


async def test_items_of_no_session_get_one(database: Database, backend: Backend) -> None:
    """Of nobody's, and are repaired there like any others."""
    for name in ("s", "t"):
        await Session(name, database=database, owner="ann").add_items([user(), call("1")])
    backend.execute("DELETE FROM threadkeep.sessions WHERE session_id = 's'")
    stray = Checkup("s", "broken", ("items of no session: 2",))
    assert [c for c in await checkups(database) if c.session_id == "s"] == [stray]
    assert await checkups(database, "s") == [stray]
    (done,) = await checkups(database, "s", repair=True)
    assert (done.outcome, done.troubles) == ("repaired", stray.troubles)
    assert await Session("s", database=database).get_items() == [user(), call("1"), closing("1")]
    assert await Session("t", database=database, owner="ann").get_items() == [user(), call("1")]
    with pytest.raises(NotFoundError, match="no session u"):
        await checkups(database, "u")


class Meddling:
    """A database where something happens just before the first repair.

    Args:
        database: The real one.
        meddle: What happens.
    """

    def __init__(self, database: Database, meddle: Any) -> None:
        self._database = database
        self._meddle = meddle
        self.description = database.description
        self.open, self.pending, self.close = database.open, database.pending, database.close

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        if statement == "rebuild_session" and self._meddle is not None:
            meddle, self._meddle = self._meddle, None
            await meddle()
        return await self._database.call(statement, **parameters)


async def test_what_was_changed_meanwhile_is_looked_at_again(database: Database) -> None:
    """An append that came first is not lost, and takes part in the repair."""
    session = Session("s", database=database)
    await session.add_items([user("a"), call("1")])

    async def meddle() -> None:
        await session.add_items([output("1"), said(), user("b"), call("2")])

    (done,) = await checkups(Meddling(database, meddle), repair=True)
    whole = [user("a"), call("1"), output("1"), said(), user("b"), call("2")]
    assert done.outcome == "repaired"
    assert await session.get_items() == [*whole, closing("2")]
    assert await Session(done.fork_id, database=database).get_items() == whole


async def test_appends_beside_a_repair_are_kept(database: Database) -> None:
    """Whichever the database takes first."""
    for number in range(8):
        session = Session(f"s{number}", database=database)
        await session.add_items([user("a"), call("1")])
        texts = [f"{n}" for n in range(6)]
        appends = [session.add_items([user(text)]) for text in texts]
        (done,), *_ = await asyncio.gather(
            checkups(database, session.session_id, repair=True), *appends
        )
        items: list[Any] = await session.get_items()
        assert done.outcome == "repaired"
        assert items[:3] == [user("a"), call("1"), closing("1")]
        assert sorted(item["content"] for item in items[3:]) == texts
        assert await checkups(database, session.session_id) == [
            Checkup(session.session_id, "sound")
        ]


async def test_what_heals_or_goes_meanwhile_is_left_as_it_is(database: Database) -> None:
    """No fork is made of it."""
    session = Session("s", database=database)
    await session.add_items([user("a"), call("1")])

    async def heal() -> None:
        await session.add_items([output("1")])

    async def delete() -> None:
        await database.call("delete_session", session_id="s", owner="")

    (healed,) = await checkups(Meddling(database, heal), repair=True)
    assert (healed.outcome, healed.fork_id) == ("repaired", "")
    assert await session.get_items() == [user("a"), call("1"), output("1")]
    await session.add_items([call("2")])
    (gone,) = await checkups(Meddling(database, delete), repair=True)
    assert (gone.outcome, gone.fork_id) == ("repaired", "")
    assert await checkups(database) == []


async def test_a_session_at_work_is_left_alone(database: Database, backend: Backend) -> None:
    """What looks broken may only be unfinished; also when a run takes it at the last moment. A run
    that was lost does not count, and can't write any more."""
    session = Session("s", database=database)
    await session.add_items([user("a"), call("1")])

    async def take() -> None:
        alive = f"run_id = 'r', run_alive_at = {now_of(backend)}"
        await asyncio.to_thread(backend.execute, f"UPDATE threadkeep.sessions SET {alive}")

    (late,) = await checkups(Meddling(database, take), repair=True)
    assert late == Checkup("s", "broken", ("calls without output: 2",))
    for repair in (False, True):
        assert await checkups(database, repair=repair) == [Checkup("s", "busy")]
    assert await session.get_items() == [user("a"), call("1")]
    ago = "0" if isinstance(backend, SQLite) else "'2020-01-01'"
    backend.execute(f"UPDATE threadkeep.sessions SET run_alive_at = {ago}")
    (done,) = await checkups(database, repair=True)
    assert done.outcome == "repaired"
    (row,) = await database.call("get_session", session_id="s", owner="")
    assert row["run_id"] is None


async def started(database: Database, backend: Backend, run_id: str, status: str) -> None:
    """A run that has stored a call, and has gone to sleep then."""
    await database.call(
        "begin_turn",
        run_id=run_id,
        session_id=f"of {run_id}",
        owner="ann",
        idempotency_key=None,
        request_hash="",
        request="{}",
        attempt=1,
        waits=False,
        temporary=0,
        input_hash="",
        fork_id="",
        created="{}",
        items=encode_items([user("a"), call("1")]),
        title=None,
        room_until=9,
        epoch=0,
        seq=0,
        tag=0,
        new_epoch=new_epoch(),
    )
    then = "0" if isinstance(backend, SQLite) else "'2020-01-01'"
    backend.execute(
        f"UPDATE threadkeep.runs SET status = '{status}', alive_at = {then} "
        f"WHERE run_id = '{run_id}'"
    )
    backend.execute("UPDATE threadkeep.sessions SET run_id = NULL")


async def test_a_call_that_waits_for_a_decision_is_not_broken(
    database: Database, backend: Backend
) -> None:
    """Until a message comes behind it."""
    await started(database, backend, "r", "incomplete")
    assert await checkups(database, repair=True) == [Checkup("of r", "sound")]
    await Session("of r", database=database, owner="ann").add_items([user("b"), output("0")])
    (done,) = await checkups(database, repair=True)
    assert done.troubles == ("calls without output: 2", "outputs without call: 4")


async def test_silent_runs_are_reported(
    database: Database, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have not ended, of all sessions or of one; page by page."""
    monkeypatch.setattr(session_doctor, "PAGE", 1)
    for run_id, status in (("r1", "queued"), ("r2", "completed"), ("r3", "in_progress")):
        await started(database, backend, run_id, status)
    found = [run async for run in silent_runs(database)]
    assert [(r.run_id, r.session_id, r.status) for r in found] == [
        ("r1", "of r1", "queued"),
        ("r3", "of r3", "in_progress"),
    ]
    assert all(run.seconds > 10**8 for run in found)
    assert [run async for run in silent_runs(database, "of r3")] == [
        SilentRun("r3", "of r3", "in_progress", pytest.approx(found[1].seconds, abs=60))
    ]


async def test_all_are_looked_at_in_batches(
    database: Database, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each, whatever they hold, and with those that have no session."""
    monkeypatch.setattr(session_doctor, "PAGE", 2)
    monkeypatch.setattr(session_doctor, "ITEMS", 3)
    names = [f"s{n}" for n in range(9)]
    for n, name in enumerate(names):
        items = [user(str(k)) for k in range(n % 4 + 1)]
        await Session(name, database=database, owner=f"o{n}").add_items(items)
    await Session("s4", database=database, owner="o4").clear_session()
    backend.execute("DELETE FROM threadkeep.sessions WHERE session_id IN ('s0', 's5', 's8')")
    found = {c.session_id: c.outcome for c in await checkups(database)}
    assert found == {n: "broken" if n in ("s0", "s5", "s8") else "sound" for n in names}
    assert len(await checkups(database)) == 9


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.lists(st.integers(1, 12)))
@settings(max_examples=60, deadline=None)
def test_a_repaired_session_is_what_a_model_sees(items: list[Any], lost: list[int]) -> None:
    """Whatever was stored, and whichever items are lost of it."""

    async def check(folder: str) -> None:
        file = SQLite(Path(folder) / "threadkeep.db")
        database = connect(DatabaseSettings.read(file.variables))
        session = Session("s", database=database)
        await session.add_items([user(), *items])
        for seq in lost:
            file.execute(f"DELETE FROM items WHERE seq = {seq}")
        await checkups(database, repair=True)
        left = [item for seq, item in enumerate([user(), *items], 1) if seq not in lost]
        assert await session.get_items() == mended(left)
        assert all(c.outcome == "sound" for c in await checkups(database))
        await database.close()

    with TemporaryDirectory() as folder:
        asyncio.run(check(folder))


@pytest.fixture
def proxy(postgres: str) -> Iterator[PostgresProxy]:
    with postgres_proxy(new_postgres(postgres).url) as proxy:
        yield proxy


async def test_a_repair_whose_answer_is_lost_is_done_once(proxy: PostgresProxy) -> None:
    """On Postgres a statement is made again when its connection dies."""
    database = connect(proxy.url)
    session = Session("s", database=database)
    await session.add_items([user("a"), call("1")])

    async def lose() -> None:
        proxy.lose_answers(2)

    (done,) = await checkups(Meddling(database, lose), repair=True)
    assert done.outcome == "repaired"
    assert await session.get_items() == [user("a"), call("1"), closing("1")]
    assert await Session(done.fork_id, database=database).get_items() == [user("a"), call("1")]
    rows = await database.call("list_sessions", owner="", after="", limit=9)
    assert len(rows) == 2
    await database.close()


async def test_the_command(tmp_path: Path, backend: Backend, database: Database) -> None:
    """A dry run first; then the repair; then nothing is left to do. It tells no contents."""
    folder = Folder(tmp_path / "folder", **settings_of(backend))
    await Session("s", database=database, owner="ann").add_items([user("secret"), call("1")])
    await Session("t", database=database).add_items([user("a")])
    await started(database, backend, "r", "in_progress")
    before = await items_of(database, "s", "ann")
    code, out, err = folder.run("sessions", "doctor")
    lines = out.splitlines()
    assert (code, err) == (1, "")
    assert lines[:2] == ["of r: calls without output: 2", "s: calls without output: 2"]
    assert lines[2].startswith("of r: run r is in_progress, and gave no sign of life for ")
    assert lines[3:] == ["1 sound, 2 broken, 0 repaired, 0 at work and left alone"]
    assert await items_of(database, "s", "ann") == before
    code, out, err = folder.run("sessions", "doctor", "s", "--repair")
    assert (code, err) == (0, "")
    told, done, counts = out.splitlines()
    assert told == "s: calls without output: 2"
    assert done.startswith("s: repaired; the original is ")
    assert counts == "0 sound, 0 broken, 1 repaired, 0 at work and left alone"
    well, nowhere = folder.run_each("sessions doctor t", "sessions doctor u")
    assert well == (0, "1 sound, 0 broken, 0 repaired, 0 at work and left alone\n", "")
    assert nowhere == (2, "", "threadkeep: There is no session u.\n")


def test_a_database_that_is_not_up_to_date_is_left_alone(tmp_path: Path, postgres: str) -> None:
    """A dry run makes no tables, and no file."""
    place: Postgres = new_postgres(postgres, bare=True)
    for number, url in enumerate(("sqlite:///app.db", place.url)):
        folder = Folder(tmp_path / str(number), DATABASE_URL=url)
        code, out, err = folder.run("sessions", "doctor")
        assert (code, out) == (2, "")
        assert "Run first: threadkeep migrate" in err
    assert not (tmp_path / "0" / "app.db").exists()
