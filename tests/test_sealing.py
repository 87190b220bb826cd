"""Contents sealed at rest: what lies in the database, who can read it, and when nobody can."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.backends import Backend, SQLite
from tests.client import ANN, ask, client_of, contents
from tests.conftest import RunningApp, environment
from tests.full_store import fill, read_all
from tests.test_forget import MARK, marked, note, pay, recall, remember, scan, tables
from tests.test_mend import user
from threadkeep import Session, sealing
from threadkeep.commands import main
from threadkeep.connect import connect
from threadkeep.database import SEALED, Database, load_statements
from threadkeep.errors import (
    DatabaseUnavailableError,
    InvalidInputError,
    MemoryExistsError,
    SealedError,
    SettingsError,
)
from threadkeep.memory_form import Draft
from threadkeep.memory_store import MemoryStore
from threadkeep.owners import count_of, forget
from threadkeep.sealing import SEALED_COLUMNS, SEALED_PARAMETERS, MasterKeys, new_master
from threadkeep.search import search_sessions
from threadkeep.search_index import catch_up
from threadkeep.settings import DatabaseSettings
from threadkeep.stored_sessions import assign_sessions, get_session
from threadkeep.testing import score

BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

# What is no content: ids, owners, numbers, times, states, names of tools, and hashes. To be looked
# at whenever a statement gets a parameter of another name.
OPEN = """
after at again_after alive_at always approval_expiry approval_id approval_ids approval_keys
approval_kind approved_tools attempt base_seq before beyond blocks checkpoint_run_id
checkpoint_version count created_at decided_at epoch expires_at finished_at first first_item
first_seq fork_epoch fork_id given_up_after hits how idempotency_key indexed_epoch indexed_seq
input_count input_hash item_seq journal_id keep key key_id kind lease limit made master_id
master_ids model_keys model_requests new_epoch new_owner old_master_id older_than open
open_epoch open_hash open_run_id open_seq own owner parent_session_id places repeatable
request_hash
reset_epoch room_until run_alive_at run_attempt run_id run_ids run_items scope search_no
search_nos seq seqs session_id session_ids share size staged_id stale_after status statuses
stop_requested tag tell_at tell_tries timed times titled tool_approvals tool_keys without without_no
tool_repeatable tool_states tools updated_at waits watch_for wrapped
memory_id memory_ids pinned quiet recent remembered_seq source_at source_seq source_session
set_aside superseded_by supersedes temporary valid_from valid_to version versions was_at was_from
was_seqs was_sources was_superseded_by was_to
"""
# Those of the search index, and paths that are looked up, are told by a keyed hash.
HASHED = {"terms", "path_key"}


def test_every_parameter_is_decided_on() -> None:
    """What may hold contents is sealed in every statement."""
    for dialect in ("sqlite", "postgres"):
        texts = "\n".join(load_statements(dialect).values())
        names = set(re.findall(r"(?<![:\w]):(\w+)", re.sub("--.*", "", texts)))
        names -= {"call_id", "channel", "retried"}  # of the driver
        assert names == SEALED_PARAMETERS | {*OPEN.split()} | HASHED, dialect


Opens = Callable[..., Database]


@pytest.fixture
async def sealed(backend: Backend) -> AsyncIterator[Opens]:
    """Opens the database as a process with this ENCRYPTION_KEY does; closed in the end."""
    opened = []

    def opens(*masters: str) -> Database:
        keys = {"ENCRYPTION_KEY": ",".join(masters)} if masters else {}
        opened.append(connect(DatabaseSettings.read(backend.variables | keys)))
        return opened[-1]

    yield opens
    for database in opened:
        await database.close()


@pytest.fixture
def master() -> str:
    return new_master()


@pytest.fixture
def app(backend: Backend, master: str) -> Iterator[RunningApp]:
    """A server behind a proxy that says who asks."""
    place = environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1", ENCRYPTION_KEY=master)
    app = RunningApp(place, tools=[recall, note, pay])
    yield app
    app.model.go_on.set()
    app.stop()


@BOTH
def test_nothing_said_lies_there_plain(backend: Backend, app: RunningApp) -> None:
    """No message, title, metadata, tool call, output, event or journal; and all of it works, over a
    restart too."""
    with client_of(app.url, **ANN) as client:
        said = ask(client, f"use recall; say {MARK} is my word", "s", metadata={"of": MARK})
        waits = ask(client, f"use pay; say paid for {MARK}", "waits")
        assert client.patch("/sessions/s", json={"metadata": {"of": MARK}}).status_code == 200
        fork = client.post("/sessions/s/fork").json()
    app.restart()
    with client_of(app.url, **ANN) as client:
        [asked] = [i["id"] for i in waits["output"] if i["type"] == "mcp_approval_request"]
        decided = {"approve": False, "reason": f"{MARK} is too dear"}
        assert client.post(f"/approvals/{asked}", json=decided).status_code == 200
        until(lambda: contents(client, "waits")[-1] == f"paid for {MARK}")
        assert client.get(f"/responses/{said['id']}").json()["output"] == said["output"]
        assert client.get("/approvals").json()["data"][0]["reason"] == decided["reason"]
        assert f"{MARK} output" in client.get("/sessions/s/export").text
        sessions = client.get("/sessions", params={"q": f"my word {MARK}"}).json()["data"]
        assert {session["id"] for session in sessions} == {"s", fork["id"]}
        assert MARK in sessions[0]["title"]
        assert MARK in sessions[0]["match"]["text"]
        assert sessions[0]["metadata"] == {"of": MARK}
        database = app.app.state.database
        app.do(remember(database, "ann", MARK))
        found, _ = app.do(MemoryStore(database, "ann").search(MARK, limit=9))
        assert [memory["contents"] for memory in found] == [f"{MARK} now"]
        deleted = client.delete("/sessions/waits")
        assert deleted.status_code == 200
    assert {table: marked(backend, table) for table in tables(backend)} == dict.fromkeys(
        tables(backend), 0
    )
    assert scan(backend) == 0


def until(done: Any) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@BOTH
async def test_a_sealed_session_conforms(sealed: Opens, master: str) -> None:
    """On each database, through two connections to it, as two processes have."""
    databases = [sealed(master) for _ in range(2)]
    made = iter(range(10**6))

    async def make(session_id: str) -> Session:
        return Session(session_id, database=databases[next(made) % 2])

    report = await score(make)
    assert report.failures == {}


@BOTH
async def test_masters_change(
    backend: Backend, sealed: Opens, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one first, beside the old one; then without that. No other one opens anything."""
    monkeypatch.setattr(sealing, "KEY_SECONDS", 0)
    one, new = sealed(master), new_master()
    for owner in ("ann", "bob"):
        await Session("s" + owner, database=one, owner=owner).add_items([user(f"{MARK} 1")])
    for name, value in (backend.variables | {"ENCRYPTION_KEY": f"{new}, {master}"}).items():
        monkeypatch.setenv(name, value)
    both = sealed(new, master)
    await Session("scy", database=both, owner="cy").add_items([user(f"{MARK} 1")])
    assert len(await Session("sann", database=both, owner="ann").get_items()) == 1
    for count in (2, 0):
        done = await asyncio.to_thread(CliRunner().invoke, main, ["encryption", "rotate"])
        assert done.output == f"Wrapped by the first key: {count} that another one had wrapped.\n"
    after = sealed(new)
    for owner in ("ann", "bob", "cy"):
        items = await Session("s" + owner, database=after, owner=owner).get_items()
        assert items == [user(f"{MARK} 1")]
    for left in (sealed(master), sealed(new_master())):
        with pytest.raises(DatabaseUnavailableError, match="another master key"):
            await left.open()
        with pytest.raises(SealedError, match="another master key"):
            await Session("sann", database=left, owner="ann").get_items()


@BOTH
async def test_without_the_key(backend: Backend, sealed: Opens, master: str) -> None:
    """Nothing is read as if it were what was said; server and commands say what is missing."""
    database, bare = sealed(master), sealed()
    session = Session("s", database=bare)
    await session.add_items([user("plain")])
    await Session("s", database=database).add_items([user(MARK)])
    assert await Session("s", database=database).get_items() == [user("plain"), user(MARK)]
    with pytest.raises(SealedError, match="Set ENCRYPTION_KEY"):
        await session.get_items()
    with pytest.raises(DatabaseUnavailableError, match="sealed"):
        await sealing.check_keys(bare)
    done = await asyncio.to_thread(
        CliRunner().invoke, main, ["sessions", "show", "s"], env=backend.variables
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert "another master key" in done.stderr


@BOTH
async def test_forgotten_with_the_key(
    backend: Backend, sealed: Opens, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a backup brings back can't be opened; what was written meanwhile is gone too, and the
    owner may begin anew. What was given to somebody else stays theirs."""
    monkeypatch.setattr(sealing, "KEY_SECONDS", 0.5)
    monkeypatch.setattr("threadkeep.owners.KEY_SECONDS", 0.6)
    one, other, bare = sealed(master), sealed(master), sealed()
    for owner in ("ann", "bob"):
        await Session(owner, database=one, owner=owner).add_items([user(MARK)])
        await Session(f"{owner}s-gift", database=one, owner=owner).add_items([user(f"for {owner}")])
    backup = (await bare.call("read_first_items", session_id="ann", owner="ann", after=0, limit=9))[
        0
    ]
    assert backup["data"].startswith(SEALED)
    await assign_sessions(one, ["bobs-gift"], owner="bob", new_owner="cy")

    forgetting = asyncio.create_task(forget(one, "ann"))
    late = Session("late", database=other, owner="ann")
    while not forgetting.done():  # a process that knows the key yet
        await late.add_items([user("late")])
        await asyncio.sleep(0.2)
        if await bare.call("get_owner_key", owner="ann") == []:
            break
    receipt = await forgetting
    assert receipt.deleted["owner_keys"]
    assert receipt.left == {}
    assert not any((await count_of(bare, "ann")).values())
    await Session("ann", database=bare, owner="ann").add_items([])
    backend.execute(
        "INSERT INTO threadkeep.items (session_id, seq, data, created_at) SELECT 'ann', 1, "
        f"'{backup['data']}', created_at FROM threadkeep.sessions LIMIT 1"
    )
    with pytest.raises(SealedError, match="destroyed"):
        await one.call("read_whole_sessions", session_ids=["ann"], stale_after=0)
    await Session("new", database=other, owner="ann").add_items([user("again")])
    assert await Session("new", database=one, owner="ann").get_items() == [user("again")]

    assert (await forget(one, "bob")).left == {}
    assert await Session("bobs-gift", database=other, owner="cy").get_items() == [user("for bob")]


@BOTH
async def test_a_copy_is_sealed(
    backend: Backend, sealed: Opens, master: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threadkeep copy` seals what was plain; without the key it copies nothing that is sealed."""
    plain, back = SQLite(tmp_path / "plain.db"), SQLite(tmp_path / "back.db")
    await asyncio.to_thread(fill, plain.file)
    places = [place.variables["DATABASE_URL"] for place in (plain, backend, back)]
    monkeypatch.setenv("ENCRYPTION_KEY", master)
    for pair in (places[:2], places[1:]):
        done = await asyncio.to_thread(CliRunner().invoke, main, ["copy", *pair])
        assert (done.exit_code, done.output.splitlines()[-1][:9]) == (0, "Verified:")
    for url in places[1:]:
        copied = connect(url)
        memories, _ = await MemoryStore(copied, "ann").search("plums", limit=9)
        assert [memory["id"] for memory in memories] == ["mem_1"]
        assert (await MemoryStore(copied, "ann").get("/memories/1.md"))["id"] == "mem_1"
        await copied.close()
    key = await sealed().call("get_owner_key", owner="ann")
    texts = [
        row[name]
        for t in read_all(back.file).values()
        for row in t
        for name in row
        if name in SEALED_COLUMNS
    ]
    assert key
    assert [text for text in texts if text and not text.startswith(SEALED)] == []
    monkeypatch.delenv("ENCRYPTION_KEY")
    refused = await asyncio.to_thread(CliRunner().invoke, main, ["copy", *places[1:]])
    assert (refused.exit_code, "another master key" in refused.stderr) == (2, True)


@BOTH
async def test_a_search_tells_owners_apart(backend: Backend, sealed: Opens, master: str) -> None:
    """Whole words are found, beginnings of words are not; the index has neither."""
    database = sealed(master)
    for owner in ("ann", "bob"):
        await Session(owner, database=database, owner=owner).add_items([user(f"{MARK} sushi")])
    assert [s["id"] for s in (await search_sessions(database, "ann", "sushi", limit=9))[0]] == [
        "ann"
    ]
    assert await search_sessions(database, "ann", "sus", limit=9) == ([], True)
    assert await search_sessions(database, "cy", "sushi", limit=9) == ([], True)
    assert (await get_session(database, "ann", "ann"))["title"] == f"{MARK} sushi"


@BOTH
async def test_memories_tell_owners_apart(backend: Backend, sealed: Opens, master: str) -> None:
    """By their paths too, which lie there as no two owners' do; what was plain is read as it is."""
    database, bare = sealed(master), sealed()
    plain = await MemoryStore(bare, "cy").save("/memories/plain.md", Draft("plain"))
    assert await MemoryStore(database, "cy").read(plain["id"])
    for owner in ("ann", "bob"):
        await MemoryStore(database, owner).save("/memories/a.md", Draft(f"sushi of {owner}"))
    keys = [
        (await bare.call("list_memories", owner=o, after="", limit=9))[0] for o in ("ann", "bob")
    ]
    assert all(row["path"].startswith(SEALED) for row in keys)
    for owner in ("ann", "bob"):
        store = MemoryStore(database, owner)
        assert (await store.get("/memories/a.md"))["description"] == f"sushi of {owner}"
        assert len((await store.search("sushi", limit=9))[0]) == 1
        with pytest.raises(MemoryExistsError):
            await store.save("/memories/a.md", Draft("again"))


@BOTH
async def test_a_damaged_memory(backend: Backend, sealed: Opens, master: str) -> None:
    """Is shown as one that can't be read, and can be deleted; others are as they were, and a model
    is told nothing of it."""
    store = MemoryStore(sealed(master), "ann")
    whole = (await store.save("/memories/whole.md", Draft("tea")))["id"]
    draft = Draft("tea", "at nine", ["tea"], pinned=True)
    for column in ("path", "description", "contents", "keywords"):
        memory_id = (await store.save("/memories/damaged.md", draft))["id"]
        backend.execute(
            f"UPDATE threadkeep.memories SET {column} = substr({column}, 1, 60) "
            f"WHERE memory_id = '{memory_id}'"
        )
        page = await store.page(limit=9)
        assert [one["id"] for one in page] == [memory_id, whole]
        assert [one["id"] async for one in store.export()] == [memory_id, whole]
        told = [page[0][name] for name in ("description", "contents", "keywords")]
        assert told == ["(can't be read)", "", []]
        assert [one["id"] for one in (await store.search("tea", limit=9))[0]] == [whole]
        for rows in (await store.find("tea", 9), await store.latest(9)):
            assert [row["memory_id"] for row in rows] == [whole]
        with pytest.raises(InvalidInputError, match="Delete it"):
            await store.update(memory_id, lambda _: draft)
        await store.delete(memory_id)
    await store.update(whole, lambda _: Draft("coffee"))
    backend.execute("UPDATE threadkeep.memory_history SET description = substr(description, 1, 60)")
    assert (await store.read(whole))["history"][0]["description"] == "(can't be read)"
    assert [row["was"] for row in await store.latest(9)] == [None]


@BOTH
async def test_what_can_not_be_opened(backend: Backend, sealed: Opens, master: str) -> None:
    """A damaged item is left out, as a plain one is; what is sealed by a key that is gone is no
    hindrance to the index of others."""
    database = sealed(master)
    for owner in ("ann", "bob"):
        session = Session(owner, database=database, owner=owner)
        await session.add_items([user("one"), user("two")])
    backend.execute(
        "UPDATE threadkeep.items SET data = substr(data, 1, 40) "
        "WHERE session_id = 'bob' AND seq = 1"
    )
    backend.execute("DELETE FROM threadkeep.owner_keys WHERE owner = 'ann'")
    later = sealed(master)
    assert await Session("bob", database=later, owner="bob").get_items() == [user("two")]
    with pytest.raises(SealedError, match="destroyed"):
        await Session("ann", database=later, owner="ann").get_items()
    assert await catch_up(later, None)
    assert [s["id"] for s in (await search_sessions(later, "bob", "two", limit=9))[0]] == ["bob"]
    assert await later.call("list_to_index", owner=None, without="", limit=9) == []


@pytest.mark.parametrize(
    ("setting", "file", "words"),
    [
        ("short", None, "ENCRYPTION_KEY must hold keys of 32 bytes"),
        (",", None, "ENCRYPTION_KEY holds no key"),
        ("", "nowhere", "ENCRYPTION_KEY_FILE: the file can't be read"),
        ("A" * 43 + "=", "nowhere", "not both"),
    ],
)
def test_a_key_that_can_not_be_used(
    setting: str, file: str | None, words: str, tmp_path: Path
) -> None:
    """Is told without being told."""
    with pytest.raises(SettingsError, match=words) as caught:
        MasterKeys.read(setting or None, tmp_path / file if file else None)
    assert "short" not in str(caught.value)


def test_a_key_from_a_file(tmp_path: Path) -> None:
    """As commands make it."""
    key = CliRunner().invoke(main, ["encryption", "new-key"]).output
    (tmp_path / "key").write_text(key)
    masters = MasterKeys.read(None, tmp_path / "key")
    assert masters is not None
    assert len(masters.by_id) == 1
    assert key.strip() not in repr(masters)
