"""Sessions found by what was said in them, on each backend the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from uuid_utils import uuid7

from tests.backends import Backend, Postgres
from tests.test_mend import call, output, said, user
from threadkeep import Session, search, search_index
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import InvalidInputError, SessionNotFoundError
from threadkeep.search import search_sessions
from threadkeep.session_branch import fork_session, rewind_session
from threadkeep.session_export import export_session, import_session
from threadkeep.settings import DatabaseSettings
from threadkeep.stored_sessions import (
    Change,
    assign_sessions,
    change_session,
    delete_session,
)

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    database = connect(DatabaseSettings.read(backend.variables))
    yield database
    await database.close()


async def store(
    database: Database, *items: Any, owner: str = "ann", session_id: str | None = None
) -> str:
    """Adds items to a session, or makes one of them; texts are a user's."""
    await asyncio.sleep(0.002)  # those that are made in the same ms have no order
    session = Session(session_id or str(uuid7()), database=database, owner=owner)
    await session.add_items([user(item) if isinstance(item, str) else item for item in items])
    return session.session_id


async def found(database: Database, query: str, owner: str = "ann", **options: Any) -> list[str]:
    """The ids of what a search finds."""
    sessions, _ = await search_sessions(database, owner, query, **{"limit": 100} | options)
    return [session["id"] for session in sessions]


async def test_what_is_found(database: Database) -> None:
    """All words, in whatever form, said by the user or the agent, or in the title; no tool's."""
    one = await store(
        database,
        "Hello, I am Ann.",
        call("c1", "lookup"),
        output("c1", "secret zebras"),
        said("Nice to meet you, Ann! Do you like cafés\n in Zürich?"),
    )
    two = await store(database, "We went running in zurich with Bob", said("How far?"))
    await change_session(database, one, "ann", Change(titled=True, title="My plans for Easter"))
    await store(database, "Zürich and running", owner="bob")
    assert await found(database, "ZURICH") == [two, one]
    assert await found(database, "zürich cafe") == [one]
    assert await found(database, "runs Zurich bob") == [two]
    assert await found(database, "easter plan") == [one]
    assert await found(database, "zur") == [two, one]
    assert await found(database, "run zebras") == await found(database, "zebras") == []
    assert await found(database, "the of") == await found(database, "!?") == []
    assert len(await found(database, "zurich", owner="bob")) == 1
    assert await found(database, "zurich", owner="") == []


async def test_what_a_match_tells(database: Database) -> None:
    """Which item fits best, and a passage of it with the words marked."""
    long = f"{'lorem ' * 50}my  favourite\nsushi place is Kiku, with sushi {'ipsum ' * 50}"
    session_id = await store(database, "Where is sushi?", said(long), said("Kiku it is."))
    [one], complete = await search_sessions(database, "ann", "Kiku sushi", limit=5)
    match = one["match"]
    marked = [match["text"][start:end] for start, end in match["marks"]]
    assert (one["id"], match["seq"], complete) == (session_id, 2, True)
    assert marked == ["sushi", "Kiku", "sushi"]
    assert match["text"].startswith("…lorem ")
    assert "my favourite sushi place is Kiku, with sushi ipsum" in match["text"]
    assert match["text"].endswith("ipsum…")
    assert len(match["text"]) < 200
    await change_session(database, session_id, "ann", Change(titled=True, title="Dinner in Rome"))
    [one], _ = await search_sessions(database, "ann", "rome", limit=5)
    assert one["match"] == {"seq": None, "text": "", "marks": []}


async def test_the_best_come_first_by_pages(database: Database) -> None:
    """A title counts more than a text, more often more than once, then the newest; both backends
    have one order."""
    often = await store(database, "hello", said("tea, tea and more tea"))
    once = [await store(database, "hello", said(f"tea number {n}")) for n in range(5)]
    titled = await store(database, "Tea for two", said("yes"))
    both = await store(database, "hello", said("tea in the garden"))
    everything = [titled, often, both, *once[::-1]]
    assert await found(database, "tea") == everything
    assert await found(database, "garden tea") == [both]
    pages = [await found(database, "tea", limit=3)]
    while len(pages[-1]) == 3:
        pages.append(await found(database, "tea", limit=3, after=pages[-1][-1]))
    assert [session_id for page in pages for session_id in page] == everything
    assert await found(database, "tea", after=str(uuid7())) == []
    with pytest.raises(InvalidInputError, match="400 characters"):
        await found(database, "x" * 401)


async def test_a_search_reads_no_more_than_it_says(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a word that is said everywhere the newest are looked at; beside a rarer one all are."""
    monkeypatch.setattr(search, "MAX_READ", 8)
    ids = [
        await store(database, "chat", said("rare" if n < 2 else "common thing")) for n in range(20)
    ]
    both, everything = ids[0], ids[::-1]
    await store(database, said("common"), session_id=both)
    read = []
    ask = database.call

    async def counted(statement: str, **parameters: Any) -> Any:
        rows = await ask(statement, **parameters)
        read.extend(rows if statement.startswith("read_postings") else [])
        return rows

    monkeypatch.setattr(database, "call", counted)
    for query, expected in (("chat!", (everything[:8], False)), ("rare common.", ([both], True))):
        read.clear()
        sessions, complete = await search_sessions(database, "ann", query, limit=50)
        assert ([one["id"] for one in sessions], complete) == expected
        assert len(read) <= 2 * 8 + len(query.split())


async def test_the_index_follows_whatever_happens(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search finds what is there, and nothing that is gone, whatever was done in between."""
    monkeypatch.setattr(search_index, "_BATCH", 3)
    monkeypatch.setattr(search_index, "BLOCK", 4)
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    words = ["apple", "bread", "cheese", "dates", "eggs"]
    owners = ["ann", "bob"]
    owner_of: dict[str, str] = {}

    async def add() -> None:
        session_id = dice.choice([*owner_of, str(uuid7())])
        owner = owner_of.setdefault(session_id, dice.choice(owners))
        texts = [" ".join(dice.choices(words, k=2)) for _ in range(dice.randint(1, 7))]
        await store(database, *texts, owner=owner, session_id=session_id)

    async def change() -> None:
        session_id = dice.choice(list(owner_of))
        owner = owner_of[session_id]
        session = Session(session_id, database=database, owner=owner)
        count = len(await session.get_items())
        kind = dice.randrange(8)
        if kind < 2:
            await session.pop_item()
        elif kind == 2:
            title = dice.choice([None, *words])
            await change_session(database, session_id, owner, Change(titled=True, title=title))
        elif kind == 3:
            del owner_of[session_id]
            await delete_session(database, session_id, owner)
        elif kind == 4 and count:
            forked = await fork_session(database, session_id, owner, up_to=dice.randint(1, count))
            owner_of[forked["id"]] = owner
        elif kind == 5 and count:
            _, fork_id = await rewind_session(
                database, session_id, owner, to=dice.randint(1, count)
            )
            owner_of[fork_id] = owner
        elif kind == 6:
            lines = [line async for line in export_session(database, session_id, owner)]
            await delete_session(database, session_id, owner)
            await import_session(database, owner, as_bytes(lines))
        elif kind == 7:
            other = owners[owners.index(owner) - 1]
            await assign_sessions(database, [session_id], owner=owner, new_owner=other)
            owner_of[session_id] = other

    async def as_bytes(lines: list[str]) -> AsyncIterator[bytes]:
        for line in "".join(lines).splitlines(keepends=True):
            yield line.encode()

    async def said_in(session_id: str) -> set[str]:
        owner = owner_of[session_id]
        title = (await database.call("get_session", session_id=session_id, owner=owner))[0]["title"]
        items: Any = await Session(session_id, database=database, owner=owner).get_items()
        return {*(title or "").split(), *(w for item in items for w in item["content"].split())}

    for _ in range(40):
        await add()
        for _ in range(dice.randint(0, 2)):
            if owner_of:
                await change()
        query = dice.sample(words, dice.randint(1, 2))
        for owner in owners:
            expected = {
                session_id
                for session_id in owner_of
                if owner_of[session_id] == owner and set(query) <= await said_in(session_id)
            }
            assert set(await found(database, " ".join(query) + ".", owner)) == expected, seed
    for session_id, owner in owner_of.items():
        await delete_session(database, session_id, owner)
    scope = search_index.scope_of("ann")
    assert not await database.call("list_terms", scope=scope, first="", beyond="~", limit=9)


async def test_many_that_were_made_at_once(
    database: Database, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an import may bring them: each gets a number of its own."""
    monkeypatch.setattr(search_index.secrets, "randbits", lambda bits: 1)
    ids = {await store(database, f"tea {n}") for n in range(5)}
    time = "'2026-01-01'" if isinstance(backend, Postgres) else "1700000000000"
    backend.execute(f"UPDATE threadkeep.sessions SET created_at = {time}")
    assert set(await found(database, "tea")) == ids


async def test_several_index_at_once(database: Database) -> None:
    """Nothing is in the index twice."""
    session_id = await store(database, *(f"tea {n}" for n in range(300)))
    await asyncio.gather(*(search_index.catch_up(database, None) for _ in range(5)))
    [entry, *more] = sorted(
        await database.call(
            "read_postings", scope=search_index.scope_of("ann"), terms=["tea"], limit=9
        ),
        key=lambda row: row["block"],
    )
    assert len(more) == 1
    # Titled "tea 0", so seq 0 is one of them.
    assert entry["hits"] == ",".join(map(str, range(256)))
    assert more[0]["hits"] == ",".join(map(str, range(256, 301)))
    await Session(session_id, database=database, owner="ann").clear_session()
    assert await found(database, "tea") == []
    with pytest.raises(SessionNotFoundError):
        await delete_session(database, session_id, "bob")
