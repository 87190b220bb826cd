"""Memories: kept, changed with what they were, found, and gone for good; each backend the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.backends import Backend
from tests.test_mend import said, user
from threadkeep import Session, memory_store
from threadkeep.connect import connect
from threadkeep.database import Database, Row
from threadkeep.errors import (
    InvalidInputError,
    MemoryChangedError,
    MemoryExistsError,
    MemoryNotFoundError,
)
from threadkeep.memory_form import Draft, Source, check_path, is_profile, path_for, shared_scope
from threadkeep.memory_index import now_ms, scope_of
from threadkeep.memory_store import MemoryStore
from threadkeep.owners import count_of, forget
from threadkeep.retention import delete_expired_sessions
from threadkeep.settings import DatabaseSettings
from threadkeep.stored_sessions import Change, change_session, delete_session

BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

DAY = 24 * 3600 * 1000


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    database = connect(DatabaseSettings.read(backend.variables))
    yield database
    await database.close()


@pytest.fixture
def ann(database: Database) -> MemoryStore:
    return MemoryStore(database, "ann")


async def found(store: MemoryStore, query: str, **options: Any) -> list[str]:
    """The paths of what a search finds."""
    memories, _ = await store.search(query, **{"limit": 9} | options)
    return [memory["path"] for memory in memories]


async def listed(store: MemoryStore) -> list[str]:
    """The paths of all, the last changed first."""
    return [memory["path"] for memory in await store.page(limit=99)]


async def counted(store: MemoryStore) -> dict[str, int]:
    """The rows of an owner, of those tables that have any."""
    counts = await count_of(store.database, store.owner)
    return {name: count for name, count in counts.items() if count}


async def source_of(database: Database, owner: str, session_id: str, seq: int) -> Source:
    """A message of a session, as it is there now."""
    [row] = await database.call(
        "read_first_items", session_id=session_id, owner=owner, after=seq - 1, limit=1
    )
    return Source(session_id, seq, row["created_at"])


def says(description: str, contents: str = "") -> Any:
    """A change to another text."""
    return lambda draft: replace(draft, description=description, contents=contents)


@BOTH
async def test_a_memory_is_kept(ann: MemoryStore) -> None:
    """As it was given, under a path that only one can have."""
    draft = Draft(" Is a\n vegetarian ", "No fish.\n", ("food", "Essen"), pinned=True)
    kept = await ann.save("/memories/diet.md", draft)
    assert kept == await ann.get("/memories/diet.md")
    assert (await ann.read(kept["id"])) == kept | {"history": []}
    told = {name: kept[name] for name in ("description", "contents", "keywords", "pinned")}
    assert told == {
        "description": "Is a vegetarian",
        "contents": "No fish.\n",
        "keywords": ["food", "Essen"],
        "pinned": True,
    }
    assert (kept["version"], kept["source"], kept["valid_to"]) == (1, None, None)
    assert kept["created_at"] == kept["valid_from"] == kept["updated_at"]
    with pytest.raises(MemoryExistsError, match=r"/memories/diet\.md"):
        await ann.save("/memories/diet.md", Draft("other"))
    assert await ann.get("/memories/diet.md") == kept
    bob = MemoryStore(ann.database, "bob")
    for refused in (
        bob.get("/memories/diet.md"),
        bob.read(kept["id"]),
        bob.update(kept["id"], says("x")),
        bob.delete(kept["id"]),
        ann.get("/memories/none.md"),
        ann.get("\ud800"),
    ):
        with pytest.raises(MemoryNotFoundError):
            await refused
    assert await listed(bob) == await found(bob, "vegetarian") == await bob.latest(9) == []
    await bob.save("/memories/diet.md", Draft("Eats all"))
    assert await found(ann, "vegetarian") == await listed(ann) == ["/memories/diet.md"]
    long = "/memories/" + "".join(map(chr, range(0x4E00, 0x4E00 + 1014)))
    assert (await ann.save(long, Draft("long"))) == await ann.get(long)


def test_paths() -> None:
    """What a path may be, what is made of a text, and which ones are always worth to know."""
    for path in (
        "/memories/a",
        "/memories/a/b.md",
        "/memories/\u00e4\U0001f9f5'\"%",
        "/memories/...",
    ):
        assert check_path(path) == path
    for path in (
        *(
            "",
            "/memories",
            "/memories/",
            "memories/a",
            "/Memories/a",
            "/memories/a/",
            "/memories//a",
        ),
        *(
            "/memories/a b",
            "/memories/a\u00a0b",
            "/memories/a\n",
            "/memories/\x00",
            "/memories/\ud800",
        ),
        *("/memories/" + "a" * 1015, None, 1),
    ):
        with pytest.raises(InvalidInputError, match="path must"):
            check_path(path)
    assert check_path("/memories/" + "a" * 1014)
    assert path_for("Is a vegetarian, mostly!") == "/memories/notes/is-a-vegetarian-mostly.md"
    for text, name in [
        ("\u00d6li mag Tee", "\u00f6li-mag-tee"),
        ("O\u0308li", "\u00f6li"),
        ("\u65e5\u672c\u8a9e", "\u65e5\u672c\u8a9e"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
    ]:
        assert check_path(path_for(text)) == f"/memories/notes/{name}.md"
    assert check_path(path_for("?!")) != path_for("?!")
    assert len(path_for("word " * 100)) < 90
    assert [
        is_profile(f"/memories/{at}") for at in ("user.md", "preferences/a", "users.md", "a")
    ] == [
        *(True, True),
        *(False, False),
    ]


@pytest.mark.parametrize(
    "draft",
    [
        *(Draft(" \n"), Draft("a" * 501), Draft("a", "a" * 20_001), Draft("a\x00"), Draft(None)),  # type: ignore[arg-type]
        *(Draft("a", keywords=["a"] * 21), Draft("a", keywords=["a" * 101]), Draft("\ud800")),
        *(Draft("a", valid_from=-1), Draft("a", valid_to=10**15)),
        Draft("a", valid_from=2, valid_to=1),
    ],
)
def test_what_can_not_be_kept(draft: Draft) -> None:
    """Is refused with what is wrong."""
    with pytest.raises(InvalidInputError):
        draft.checked()


@BOTH
async def test_what_it_was_is_kept(ann: MemoryStore) -> None:
    """A change of what is said keeps what was, with both dates; one of how it is found does not,
    and one to the same changes nothing."""
    then = now_ms() - 9 * DAY
    memory = await ann.save("/memories/home.md", Draft("Lives in Rome", valid_from=then))
    memory_id = memory["id"]
    await ann.update(memory_id, says("Lives in Oslo", "Since May."), Source("s", 3))
    now = await ann.read(memory_id)
    [was] = now["history"]
    assert (now["description"], now["version"]) == ("Lives in Oslo", 2)
    assert now["source"] == {"session_id": "s", "seq": 3, "text": None}
    assert was == {
        "version": 1,
        "description": "Lives in Rome",
        "contents": "",
        "source": None,
        "valid_from": then // 1000,
        "valid_to": now["valid_from"],
        "superseded_by": 2,
    }
    assert now["valid_from"] > then // 1000 + 8 * 86400
    for same in (
        lambda draft: draft,
        lambda draft: Draft("Lives  in Oslo", "Since May.", []),
    ):
        assert (await ann.update(memory_id, same))["version"] == 2
    tagged = await ann.update(memory_id, lambda d: replace(d, keywords=["town"], pinned=True))
    assert (tagged["version"], tagged["source"]["seq"]) == (3, 3)
    assert tagged["valid_from"] == now["valid_from"]
    assert await found(ann, "town") == await found(ann, "oslo") == ["/memories/home.md"]
    assert await found(ann, "rome") == []
    moved = await ann.update(
        memory_id, lambda d: replace(says("Lives in Bonn")(d), valid_from=then)
    )
    assert moved["valid_from"] == then // 1000
    history = (await ann.read(memory_id))["history"]
    assert [(one["version"], one["superseded_by"]) for one in history] == [(3, 4), (1, 2)]
    [row] = await ann.latest(9)
    assert (row["was"], row["was_contents"]) == ("Lives in Oslo", "Since May.")
    with pytest.raises(MemoryChangedError):
        await ann.update(memory_id, says("x"), version=3)
    with pytest.raises(InvalidInputError):
        await ann.update(memory_id, says(""))
    assert (await ann.update(memory_id, says("y"), version=4))["version"] == 5


@BOTH
async def test_changed_at_once(ann: MemoryStore) -> None:
    """No change is lost; of those that name a version one is done."""
    memory_id = (await ann.save("/memories/list.md", Draft("list")))["id"]

    def more(n: int) -> Any:
        return lambda draft: replace(draft, contents=f"{draft.contents} apple{n}")

    await asyncio.gather(*(ann.update(memory_id, more(n)) for n in range(30)))
    memory = await ann.read(memory_id)
    assert set(memory["contents"].split()) == {f"apple{n}" for n in range(30)}
    assert [one["version"] for one in memory["history"]] == list(range(30, 0, -1))
    many = (ann.update(memory_id, says(f"only {n}"), version=31) for n in range(4))
    done = await asyncio.gather(*many, return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["MemoryChangedError"] * 3 + ["dict"]
    paths = (ann.save("/memories/new.md", Draft(f"n{n}")) for n in range(3))
    saved = await asyncio.gather(*paths, return_exceptions=True)
    assert sorted(type(one).__name__ for one in saved) == ["MemoryExistsError"] * 2 + ["dict"]
    await asyncio.gather(
        *(ann.update(memory_id, says(f"last {n}")) for n in range(4)),
        ann.delete(memory_id),
        return_exceptions=True,
    )
    assert await found(ann, "last only list apple1") == []
    await ann.delete((await ann.get("/memories/new.md"))["id"])
    assert await counted(ann) == {}


@BOTH
async def test_what_holds_no_more(ann: MemoryStore) -> None:
    """Is not found, and not among the latest; it is listed still, and comes back when it holds."""
    paths = [f"/memories/{name}.md" for name in ("now", "ended", "later", "old", "new")]
    now, ended, later, old, new = paths
    await ann.save(now, Draft("tea now", valid_to=now_ms() + DAY))
    ended_id = (await ann.save(ended, Draft("tea ended", valid_to=now_ms() - 5)))["id"]
    await ann.save(later, Draft("tea later", valid_from=now_ms() + DAY))
    old_id = (await ann.save(old, Draft("tea old")))["id"]
    new_id = (await ann.save(new, Draft("tea new")))["id"]
    with pytest.raises(MemoryNotFoundError):
        await ann.update(old_id, lambda d: replace(d, superseded_by="mem_none"))
    with pytest.raises(InvalidInputError, match="another one"):
        await ann.update(old_id, lambda d: replace(d, superseded_by=old_id))
    gone = await ann.update(old_id, lambda d: replace(d, superseded_by=new_id))
    assert gone["superseded_by"] == new_id
    assert gone["valid_to"] >= gone["valid_from"]
    assert sorted(await found(ann, "tea")) == sorted([new, now])
    assert {row["path"] for row in await ann.latest(9)} == {new, now}
    assert sorted(await listed(ann)) == sorted(paths)
    for path in (later, ended):  # begins when it ends, and can be changed still
        one = await ann.get(path)
        one = await ann.update(one["id"], lambda d: replace(d, superseded_by=new_id))
        assert one["valid_to"] == one["valid_from"]
        assert (await ann.update(one["id"], lambda d: replace(d, pinned=True)))["pinned"]
    first = await ann.update(old_id, lambda d: replace(d, valid_from=0, valid_to=0))
    assert (first["valid_from"], first["valid_to"]) == (0, 0)
    first = await ann.update(old_id, lambda d: replace(d, superseded_by=ended_id))
    assert first["valid_to"] == 0
    again = await ann.update(old_id, lambda d: replace(d, valid_to=None, superseded_by=None))
    assert again["valid_to"] is None
    assert old in await found(ann, "tea")


@BOTH
async def test_what_does_not_hold_takes_no_room(ann: MemoryStore) -> None:
    """However many and well they fit: what holds now is found as if they were not there."""
    await ann.save("/memories/now.md", Draft("Likes tea"))
    later = Draft("Will like tea", keywords=["tea"], valid_from=now_ms() + DAY)
    await asyncio.gather(*(ann.save(f"/memories/later{n}.md", later) for n in range(60)))
    assert await found(ann, "tea") == ["/memories/now.md"]
    assert [row["path"] for row in await ann.find("tea", 9)] == ["/memories/now.md"]


@BOTH
async def test_the_latest_pages_and_export(
    ann: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pinned come first; pages and the export have all of them, the last changed first."""
    monkeypatch.setattr(memory_store, "_PAGE", 2)
    for n in range(5):
        await ann.save(f"/memories/{n}.md", Draft(f"note {n}", pinned=n < 2))
        await asyncio.sleep(0.002)
    await ann.update((await ann.get("/memories/2.md"))["id"], says("note 2, changed"))
    paths = [f"/memories/{n}.md" for n in (2, 4, 3, 1, 0)]
    assert await listed(ann) == paths
    pages, after = [], ""
    while page := await ann.page(after=after, limit=2):
        after = page[-1]["id"]
        pages.append([memory["path"] for memory in page])
    assert pages == [paths[:2], paths[2:4], paths[4:]]
    exported = [memory async for memory in ann.export()]
    assert [memory["path"] for memory in exported] == paths
    assert [len(memory["history"]) for memory in exported] == [1, 0, 0, 0, 0]
    assert [memory["path"] async for memory in ann.all()] == paths
    assert [row["path"][-4] for row in await ann.latest(2)] == ["1", "0", "2", "4"]
    call, gone = ann.database.call, [memory["id"] for memory in exported[1::2]]

    async def called(statement: str, **parameters: Any) -> list[Row]:
        rows = await call(statement, **parameters)
        if gone:
            await ann.delete(gone.pop())
            await ann.update(exported[0]["id"], says(f"{len(gone)} are gone"))
        return rows

    monkeypatch.setattr(ann.database, "call", called)
    left = [memory["path"] async for memory in ann.export()]
    assert set(left) == {paths[0], paths[2], paths[4]}


@BOTH
async def test_a_search(ann: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best first, under some paths only if so wished; it says when it has not seen all."""
    green, day, shop = (f"/memories/{at}.md" for at in ("a/green", "a/day", "b/shop"))
    await ann.save(green, Draft("Likes green tea", keywords=["tea"]))
    await ann.save(day, Draft("Mornings", "A cup of tea at nine, then coffee."))
    await ann.save(shop, Draft("The tea shop", keywords=["tea shop"]))
    assert await found(ann, "is the tea shop open?") == [shop, green]
    assert await found(ann, "coffee cup") == [day]
    assert await found(ann, "is the tea shop open?", under=["/memories/a/", "/memories/c"]) == [
        green
    ]
    memories, complete = await ann.search("tea", limit=1)
    assert ([one["path"] for one in memories], complete) == ([green], True)
    assert memories[0]["score"] > 0
    assert await ann.search("the of", limit=9) == ([], True)
    assert await ann.search("x " * 5000, limit=9) == ([], True)
    behind = "coffee" + " " * 2000 + " ".join(f"other{n}" for n in range(9))
    assert await found(ann, behind) == [row["path"] for row in await ann.find(behind, 9)] == [day]
    monkeypatch.setattr(memory_store, "_FILTERED", 1)
    assert (await ann.search("tea", limit=9, under=["/memories/none"])) == ([], False)
    monkeypatch.setattr(memory_store, "MAX_READ", 2)
    assert not (await ann.search("tea", limit=1))[1]


@BOTH
async def test_it_goes_with_its_conversation(backend: Backend, ann: MemoryStore) -> None:
    """A memory that comes from a session, and what others were by it; by time as well. What it has
    of no session stays, and so does what others share."""
    database = ann.database
    shared = MemoryStore(database, shared_scope("team"))
    for name in ("s", "t"):
        session = Session(name, database=database, owner="ann")
        await session.add_items([user("hello"), said("hi"), user("I moved to Oslo")])
        source = await source_of(database, "ann", name, 3)
        await ann.save(f"/memories/{name}.md", Draft(f"plum {name}"), source)
        changed = await ann.save(f"/memories/then-{name}.md", Draft(f"pear {name}"), source)
        await ann.update(changed["id"], says("apple"))
        late = await ann.save(f"/memories/since-{name}.md", Draft("fig"))
        await ann.update(late["id"], says("date"), source)
        await shared.save(f"/memories/{name}.md", Draft("shared"), source)
    memory_id = (await ann.get("/memories/s.md"))["id"]
    told = (await ann.read(memory_id))["source"]
    assert told == {"session_id": "s", "seq": 3, "text": "I moved to Oslo"}
    [of_s, _] = sorted(await shared.page(limit=9), key=lambda memory: memory["path"])
    assert (await shared.read(of_s["id"]))["source"]["text"] is None
    unknown = await ann.save("/memories/unknown.md", Draft("lime"), Source("s", 3))
    assert (await ann.read(unknown["id"]))["source"]["text"] is None
    session = Session("s", database=database, owner="ann")
    await session.pop_item()
    await asyncio.sleep(0.002)
    await session.add_items([user("something else")])
    for change in (lambda d: replace(d, pinned=True), lambda d: replace(d, keywords=["x"])):
        assert (await ann.update(memory_id, change))["source"]["seq"] == 3
        assert (await ann.read(memory_id))["source"]["text"] is None
    await delete_session(database, "s", "ann")
    await change_session(database, "t", "ann", Change(timed=True, expires_at=1))
    assert await delete_expired_sessions(database, None) == 1
    assert sorted(await listed(ann)) == ["/memories/then-s.md", "/memories/then-t.md"]
    assert [(await ann.read(one["id"]))["history"] for one in await ann.page(limit=9)] == [[], []]
    assert await found(ann, "plum pear fig date") == []
    assert len(await found(ann, "apple")) == len(await listed(shared)) == 2
    assert (await shared.read(of_s["id"]))["source"]["text"] is None
    for row in await ann.page(limit=9):
        await ann.delete(row["id"])
    assert await counted(ann) == {}
    assert (await forget(database, shared.owner)).deleted["memories"] == 2
    terms = {"first": "", "beyond": "~~", "limit": 9}
    for store in (ann, shared):
        assert await database.call("list_terms", scope=scope_of(store.owner), **terms) == []


@BOTH
async def test_what_takes_the_place_of_an_item_is_looked_through(database: Database) -> None:
    """Removed, and something else said: it has not been looked through for memories."""
    session = Session("s", database=database, owner="ann")
    looks = {"recent": DAY, "quiet": -9, "lease": -9}
    for seq in (2, 1):
        await session.add_items([user("hello")] * 2)
        [claimed] = await database.call("claim_session_to_remember", **looks)
        done = {"session_id": "s", "owner": "ann", "epoch": claimed["epoch"], "seq": 2}
        assert await database.call("end_remembering", **done)
        at = {name: done[name] for name in ("session_id", "owner", "epoch", "seq")}
        removed = await database.call("remove_item", **at, item_seq=seq, new_epoch=seq)
        assert removed
        await session.add_items([user("else")])
        [claimed] = await database.call("claim_session_to_remember", **looks)
        assert claimed["remembered_seq"] == seq - 1
        await delete_session(database, "s", "ann")
