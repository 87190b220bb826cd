"""Single messages found by what they say and what is said around them, on each backend the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.backends import Backend, SQLite
from tests.test_mend import call, output, said
from tests.test_search import store
from threadkeep import passages
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.migrate import load_migrations
from threadkeep.passages import MAX_READ, MAX_TEXT, find_passages, search_passages
from threadkeep.sealing import new_master
from threadkeep.search_index import LAYOUT, catch_up, scope_of
from threadkeep.session_branch import fork_session
from threadkeep.settings import DatabaseSettings
from threadkeep.stored_sessions import delete_session

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    database = connect(DatabaseSettings.read(backend.variables))
    yield database
    await database.close()


@pytest.fixture
async def sealed(backend: Backend) -> AsyncIterator[Database]:
    variables = backend.variables | {"ENCRYPTION_KEY": new_master()}
    database = connect(DatabaseSettings.read(variables))
    yield database
    await database.close()


async def texts(database: Database, query: str, owner: str = "ann", **options: Any) -> list[str]:
    """What the passages of a search say."""
    found, _ = await search_passages(database, owner, query, **{"limit": 10} | options)
    return [passage.text for passage in found]


async def test_what_is_found(database: Database, backend: Backend) -> None:
    """Messages of the owner's sessions that say a word, in whatever form, or lie beside one; what
    is said again in a fork once; nothing that is gone, damaged or in the session left out."""
    one = await store(
        database,
        "Where did I buy the tent?",
        call("c1", "lookup"),
        output("c1", "tent zebras"),
        said("At Kestrel's, you told me."),
        "Thanks",
    )
    two = await store(database, "We went camping", said("Did the tents leak?"))
    await store(database, "My tent is red", owner="bob")
    await fork_session(database, one, "ann")
    found, complete = await search_passages(database, "ann", "tents", limit=2)
    assert complete
    assert {(p.seq, p.role) for p in found} == {(1, "user"), (2, "assistant")}
    assert {p.session_id for p in found if p.role == "assistant"} == {two}
    assert all(p.created_at > 1_700_000_000_000 and p.score > 0 for p in found)
    assert "At Kestrel's, you told me." in await texts(database, "tent buying")
    assert await texts(database, "going") == ["We went camping", "Did the tents leak?"]
    assert await texts(database, "zebras") == await texts(database, "the of") == []
    assert await texts(database, "tent", owner="bob") == ["My tent is red"]
    assert await texts(database, "camping", without=two) == []
    backend.execute("UPDATE threadkeep.items SET data = '{' WHERE data LIKE '%camping%'")
    assert await texts(database, "camping") == ["Did the tents leak?"]
    await delete_session(database, two, "ann")
    assert await texts(database, "camping") == []


async def test_an_answer_is_found_by_its_question(database: Database) -> None:
    """However many calls lie between, and before what lies further off."""
    calls = [item for n in range(20) for item in (call(f"c{n}", "look"), output(f"c{n}", "x"))]
    await store(database, "Shall we talk?", "Which colour has the bicycle?", said("Green."), "Nice")
    await store(database, "I saw a bicycle", *calls, said("Good for you"), said("Well"))
    assert await texts(database, "bicycle colour") == [
        "Which colour has the bicycle?",
        "Green.",
        "Shall we talk?",
        "Nice",
        "I saw a bicycle",
        "Good for you",
        "Well",
    ]


async def test_who_is_named_comes_first(sealed: Database) -> None:
    """In a chat of several, also when contents are sealed; a word before a colon is no author."""
    chat = ["Ann: I baked bread", "Mary Lee: I like bread", "Bob: bread!", "Note: bread is cheap"]
    chat += [f"{name}: hm {n}" for n in range(4) for name in ("Bob", "Mary Lee", "Ann")]
    await store(sealed, *chat)
    everything = await texts(sealed, "bread")
    assert (await texts(sealed, "Does Mary like bread?"))[0] == "Mary Lee: I like bread"
    assert (await texts(sealed, "bread, Bob's"))[0] == "Bob: bread!"
    assert (await texts(sealed, "bread of Ann"))[0] == "Ann: I baked bread"
    assert set(await texts(sealed, "bread note")) == set(everything)


async def test_a_long_message_is_cut_to_where_it_fits(database: Database) -> None:
    """It may be of any length."""
    await store(database, f"{'lorem ' * 900}the needle is here {'ipsum ' * 900}")
    (text,) = await texts(database, "needle")
    assert len(text) <= MAX_TEXT
    assert "the needle is here" in text
    assert text.startswith("…")
    assert text.endswith("…")


async def test_a_search_reads_no_more_than_it_says(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in hits; of what is said everywhere the newest, and that is told. What has a rarer
    word is found wherever it lies."""
    assert sum(passages.SHARES) + passages.MAX_WORDS * passages.PART <= MAX_READ
    monkeypatch.setattr(passages, "SHARES", (120, 120, 40))
    for n in range(12):
        await store(database, *(f"common thing {n} {m}" for m in range(40)))
        if n == 3:
            await store(database, "common rare")
    read = 0
    ask = database.call

    async def counted(statement: str, **parameters: Any) -> Any:
        nonlocal read
        rows = await ask(statement, **parameters)
        if "postings" in statement:
            read += sum(len(row["hits"].split(",")) for row in rows if row["hits"])
        return rows

    monkeypatch.setattr(database, "call", counted)
    for query, best in (("common", "common thing 11"), ("common rare", "common rare")):
        read = 0
        found, complete = await search_passages(database, "ann", query, limit=5)
        assert found[0].text.startswith(best)
        assert not complete
        assert 60 < read <= 120 + 120 + 40
    found, complete = await search_passages(database, "ann", "rare", limit=5)
    assert ([passage.text for passage in found], complete) == (["common rare"], True)


async def test_what_users_say_of_themselves(
    sealed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest, and no more entries than that takes; nothing the agent says."""
    other = await store(sealed, "I'm allergic to nuts", said("I am a computer"), "Ann: I'm tall")
    for n in range(30):
        await store(sealed, f"I like number {n}", "What do I like?")
    last = await store(sealed, "I live in Leeds", "My name is Ann")
    await store(sealed, "I live in Rome", owner="bob")
    found = (await find_passages(sealed, "ann", "", limit=0, statements=3)).statements
    assert [p.text for p in found] == ["My name is Ann", "I live in Leeds", "I like number 29"]
    assert [p.session_id for p in found][:2] == [last, last]
    found = (await find_passages(sealed, "ann", "", limit=0, statements=2, without=last)).statements
    assert [p.text for p in found] == ["I like number 29", "I like number 28"]
    everything = (await find_passages(sealed, "ann", "", limit=0, statements=99)).statements
    assert [p.text for p in everything if p.session_id == other] == [
        "Ann: I'm tall",
        "I'm allergic to nuts",
    ]
    assert len(everything) == 34


async def test_an_older_index_is_made_anew(database: Database, backend: Backend) -> None:
    """By the migration: each message is in it once, in its order."""
    await store(database, *(f"tea {n}?" for n in range(300)))
    await catch_up(database, "ann")
    dialect = "sqlite" if isinstance(backend, SQLite) else "postgres"
    (migration,) = (m for m in load_migrations(dialect) if m.name == "passages")
    backend.execute(migration.sql)
    await catch_up(database, "ann")
    rows = await database.call(
        "read_newest_postings",
        scope=scope_of("ann"),
        terms=[LAYOUT, "tea"],
        without_no=-1,
        limit=999,
    )
    entries = sorted((row["place"], row["block"], row["hits"]) for row in rows)
    layout = ",".join(hits for place, _, hits in entries if place == 0)
    tea = ",".join(hits for place, _, hits in entries if place == 1)
    assert layout == ",".join(f"{seq}:2?" for seq in range(1, 301))
    assert tea == ",".join(map(str, range(301)))  # 0 is the title
