"""A session that is exported and imported, here or elsewhere, is the same to the last byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backends import Backend, Postgres, SQLite, new_postgres
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.test_mend import call, output, user
from threadkeep import Session, session_export
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import ConflictError, InvalidInputError, SessionExistsError
from threadkeep.session_branch import fork_session, rewind_session
from threadkeep.session_doctor import examine
from threadkeep.session_export import export_session, import_session, split_lines
from threadkeep.stored_sessions import Change, assign_sessions, change_session, get_session

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
HOSTILE = st.sampled_from(
    ["\0", "\u2028\u2029\x85", "\ud800", "\n\r\n", "\ufeff", "𐀀\ufffe", '"\\']
)
ITEMS = st.lists(st.dictionaries(st.text() | HOSTILE, ANYTHING | HOSTILE, max_size=4), max_size=8)


def nested(depth: int) -> Any:
    """A list in a list, and so on."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


EXTREME: list[Any] = [
    user("a"),
    {"n": [10**4000, -(10**300), 5e-324, 1.7976931348623157e308, -0.0, 1e16]},
    {"depth": nested(98)},
    {"depth": nested(99)},
    {"depth": nested(400)},
    {"object": "item", "data": {"seq": 7}, "": {"": ""}},
]
"""At the limits of what others read, and behind them."""

TEXTS = [
    '{ "pretty":\n 1 }',
    '{"spaced": 1 , "spaced": 2}',
    ' {"a":1}',
    '{"a":1}\u2028',
    '{"a":NaN}',
    '{"cut off":"',
    '"{}"',
    "",
    "\\ua\ttab",
    f'{{"n":{"9" * 5000}}}',
    f'{{"a":{"[" * 3000}{"]" * 3000}}}',
    '{"a":1e999,"b":1.000,"c":"\\u00e4"}',
]
"""What no Session writes, but may lie there all the same."""


@pytest.fixture
def places(postgres: str, tmp_path: Path) -> list[Backend]:
    return [SQLite(tmp_path / "threadkeep.db"), new_postgres(postgres)]


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Runs something on one loop for the whole test."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(params=["sqlite", "postgres"])
async def database(
    request: pytest.FixtureRequest, places: list[Backend]
) -> AsyncIterator[Database]:
    place = places[request.param == "postgres"]
    database = connect(place.variables["DATABASE_URL"])
    await database.open()
    yield database
    await database.close()


async def exported(database: Database, session_id: str, owner: str = "ann") -> str:
    return "".join([lines async for lines in export_session(database, session_id, owner)])


async def imported(database: Database, text: str, owner: str = "ann") -> Any:
    """It comes in pieces that end anywhere."""

    async def chunks() -> AsyncIterator[bytes]:
        data = text.encode()
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    return await import_session(database, owner, split_lines(chunks()))


async def count_items(database: Database) -> int:
    """Of all sessions, and of none."""
    rows = await database.call("list_item_sessions", after="", limit=999)
    whole = await database.call(
        "read_whole_sessions", session_ids=[row["session_id"] for row in rows], stale_after=0
    )
    return len([row for row in whole if row["seq"] is not None])


def test_a_round_trip_changes_no_byte(
    places: list[Backend], run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    """Whatever was stored, from either kind of database to the other and back. What the session
    gives is the same as well."""
    databases = [connect(place.variables["DATABASE_URL"]) for place in places]

    async def go_round(items: list[Any], title: str | None, metadata: dict[str, Any]) -> None:
        here, there = databases
        session_id = f"s{uuid4()}"
        session = Session(session_id, database=here, owner="ann")
        await session.add_items([*items, user("last")])
        change = Change(titled=True, title=title, metadata=metadata)
        await change_session(here, session_id, "ann", change)
        told = await get_session(here, session_id, "ann")
        text = await exported(here, session_id)
        for database in (there, here):
            await here.call("delete_session", session_id=session_id, owner="ann")
            assert await imported(database, text) == told
            assert await exported(database, session_id) == text
            again = Session(session_id, database=database, owner="ann")
            assert await again.get_items() == [*items, user("last")]
        assert "\r" not in text
        for line in text.split("\n")[:-1]:
            assert line.endswith("}")
            json.loads(line)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        ITEMS,
        st.none() | st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1),
        st.dictionaries(st.text(), st.text() | st.integers(), max_size=3),
    )
    def anything(items: list[Any], title: str | None, metadata: dict[str, Any]) -> None:
        run(go_round(items, title, metadata))

    anything()
    run(go_round(EXTREME, None, {}))
    for database in databases:
        run(database.close())


async def test_what_is_damaged_comes_back_as_it_was(places: list[Backend]) -> None:
    """As text, which is stored as it is, also where JSON would be another one."""
    databases = [connect(place.variables["DATABASE_URL"]) for place in places]
    here, there = databases
    await Session("s", database=here, owner="ann").add_items([user("a")] * len(TEXTS))
    for seq, stored in enumerate(TEXTS, 1):
        text = stored.replace("'", "''")
        places[0].execute(f"UPDATE items SET data = '{text}' WHERE seq = {seq}")
    text = await exported(here, "s")
    for line in text.split("\n")[:-1]:
        json.loads(line, parse_constant=pytest.fail)
    await imported(there, text)
    rows = await there.call("read_first_items", session_id="s", owner="ann", after=0, limit=99)
    assert [row["data"] for row in rows] == TEXTS
    assert await exported(there, "s") == text
    for database in databases:
        await database.close()


async def test_many_items_go_by_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the last page is a full one; each keeps its own time and run."""
    monkeypatch.setattr(session_export, "PAGE", 4)
    monkeypatch.setattr(session_export, "BATCH_ITEMS", 3)
    for count in (1, 4, 5, 12):
        session = Session(f"s{count}", database=database, owner="ann")
        await session.add_items([user(str(n)) for n in range(count)])
        text = await exported(database, f"s{count}")
        copy = text.replace(f'"s{count}"', f'"t{count}"')
        lines = copy.splitlines()
        for n in range(1, len(lines)):
            lines[n] = lines[n].replace('"response_id":null', f'"response_id":"r{n}"')
            lines[n] = lines[n].replace('"created_at":1', f'"created_at":{n}')
        copy = "\n".join(lines) + "\n"
        assert (await imported(database, copy))["item_count"] == count
        assert await exported(database, f"t{count}") == copy
    outcomes = {checkup.outcome async for checkup in examine(database)}
    assert outcomes == {"sound"}


async def test_a_temporary_session_comes_back_so(database: Database) -> None:
    """Its first line says it; one that says nothing is kept for good."""
    await Session("s", database=database, owner="ann").add_items([user("a")])
    text = await exported(database, "s")
    assert "temporary" not in text
    copy = text.replace('"s"', '"t"', 1).replace(',"metadata"', ',"temporary":true,"metadata"', 1)
    assert (await imported(database, copy))["temporary"] is True
    assert await exported(database, "t") == copy
    with pytest.raises(InvalidInputError, match="Line 1 must have true or false as its temporary"):
        await imported(database, copy.replace("true", "1", 1))


async def test_an_import_is_all_or_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a late line is bad, when the id is taken, and when it is given up: no item is left."""
    monkeypatch.setattr(session_export, "BATCH_ITEMS", 2)
    await Session("s", database=database, owner="bob").add_items([user(str(n)) for n in range(9)])
    text = await exported(database, "s", "bob")
    with pytest.raises(SessionExistsError):
        await imported(database, text)
    other = text.replace('"s"', '"t"', 1)
    with pytest.raises(InvalidInputError, match="Line 10 is no JSON object"):
        await imported(database, other.rstrip()[:-1])

    async def stopping() -> AsyncIterator[bytes]:
        for line in other.splitlines()[:-1]:
            yield line.encode()
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await import_session(database, "ann", stopping())
    assert await count_items(database) == 9
    assert await database.call("list_sessions", owner="ann", after="", limit=9) == []
    both = await asyncio.gather(
        imported(database, other), imported(database, other, "bob"), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in both) == ["SessionExistsError", "dict"]
    assert await count_items(database) == 18


async def test_what_changes_while_it_is_exported(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added is not part of it; when an item goes, the rest can't be told any more."""
    monkeypatch.setattr(session_export, "PAGE", 2)
    session = Session("s", database=database, owner="ann")
    await session.add_items([user(str(n)) for n in range(5)])
    before = await exported(database, "s")
    parts = export_session(database, "s", "ann")
    first = await anext(parts)
    await session.add_items([user("new")])
    assert first + "".join([part async for part in parts]) == before
    parts = export_session(database, "s", "ann")
    await anext(parts)
    await session.pop_item()
    with pytest.raises(ConflictError, match="Export it again"):
        assert [part async for part in parts] == []


async def test_what_is_staged_is_kept_from_sessions(database: Database) -> None:
    """The statements that store what is imported never touch the items of one."""
    session = Session("s", database=database, owner="ann")
    await session.add_items([user("a"), user("b")])
    before = await exported(database, "s")
    await database.call(
        "stage_items", staged_id="s", first_seq=3, items=["{}"], run_ids=[""], times=["0"]
    )
    await database.call("unstage_items", staged_id="s")
    assert await exported(database, "s") == before
    assert await count_items(database) == 2


@pytest.fixture
def proxy(places: list[Backend]) -> Iterator[PostgresProxy]:
    place = places[1]
    assert isinstance(place, Postgres)
    with postgres_proxy(place.url) as proxy:
        yield proxy


async def test_each_is_done_once_when_its_answer_is_lost(
    proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Postgres a statement is made again when its connection dies."""
    monkeypatch.setattr(session_export, "BATCH_ITEMS", 2)
    database = connect(proxy.url)
    await database.open()
    proxy.lose_every = 2
    session = Session("s", database=database, owner="ann")
    await session.add_items([user(str(n)) for n in range(5)])
    text = await exported(database, "s")
    for up_to in (3, 4):
        assert (await fork_session(database, "s", "ann", up_to=up_to))["item_count"] == up_to
    for number in range(3):
        copy = text.replace('"s"', f'"t{number}"', 1)
        assert (await imported(database, copy))["item_count"] == 5
        assert await exported(database, f"t{number}") == copy
        given = await assign_sessions(
            database, [f"t{number}", "s"], owner="ann", new_owner=f"o{number}"
        )
        assert [one.items for one in sorted(given, key=lambda one: one.session_id)] == [5, 5]
        await assign_sessions(database, ["s"], owner=f"o{number}", new_owner="ann")
        change = Change(titled=True, title=f"t{number}")
        assert (await change_session(database, "s", "ann", change))["title"] == f"t{number}"
    assert (await rewind_session(database, "s", "ann", to=2))[0]["item_count"] == 1
    proxy.lose_every = 0
    assert await count_items(database) == 1 + 5 + 3 + 4 + 3 * 5
    await database.close()


async def test_the_round_trips(proxy: PostgresProxy) -> None:
    """Of a fork: what is new of the session, and the copy. Of an import: its items, and the
    session."""
    database = connect(proxy.url)
    session = Session("s", database=database, owner="ann")
    await session.add_items([user("a"), call("1"), output("1")] * 300)
    text = await exported(database, "s")
    before = proxy.round_trips
    await fork_session(database, "s", "ann", up_to=4)
    assert proxy.round_trips - before == 2
    before = proxy.round_trips
    await imported(database, text.replace('"s"', '"t"', 1))
    assert proxy.round_trips - before == 2
    await database.close()
