"""What Postgres alone makes of memories: lost answers, and statements that wait for a lock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from tests.backends import new_postgres
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.test_memories import counted, found, says
from tests.test_mend import user
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.database import Database, Row, load_statements
from threadkeep.memory_form import Draft, Source
from threadkeep.memory_store import MemoryStore
from threadkeep.owners import forget
from threadkeep.postgres import _numbered
from threadkeep.stored_sessions import delete_session

WRITING = {"save_memory", "update_memory", "delete_memory"}


@pytest.fixture
def proxy(postgres: str) -> Iterator[PostgresProxy]:
    with postgres_proxy(new_postgres(postgres).url) as proxy:
        yield proxy


async def test_lost_answers(proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement whose connection died is made again, and done once."""
    database = connect(proxy.url)
    call = database.call

    async def called(statement: str, **parameters: Any) -> list[Row]:
        if statement in WRITING:
            proxy.lose_answers(2)
        return await call(statement, **parameters)

    ann = MemoryStore(database, "ann")
    await ann.page(limit=1)  # so that it is connected
    monkeypatch.setattr(database, "call", called)
    memory = await ann.save("/memories/a.md", Draft("tea"))
    assert (await ann.update(memory["id"], says("coffee")))["version"] == 2
    assert len((await ann.read(memory["id"]))["history"]) == 1
    assert await found(ann, "coffee") == ["/memories/a.md"]
    assert await found(ann, "tea") == []
    await ann.delete(memory["id"])
    assert await counted(ann) == {}
    await database.close()


async def test_made_again_while_the_first_attempt_waits(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that one does at last is what was done, and it is done once."""
    backend = new_postgres(postgres)
    database = connect(backend.url)
    connection = await asyncpg.connect(backend.url)
    call = database.call

    async def called(statement: str, **parameters: Any) -> list[Row]:
        if statement not in WRITING:
            return await call(statement, **parameters)
        text, names = _numbered(load_statements("postgres")[statement])
        database.define(f"{statement} again", text_again(statement))  # type: ignore[attr-defined]
        async with connection.transaction():
            given = parameters | {"retried": False}
            await connection.fetch(text, *(given[name] for name in names))
            again = asyncio.create_task(call(f"{statement} again", **parameters))
            await asyncio.sleep(0.1)
            assert not again.done()
        return await again

    monkeypatch.setattr(database, "call", called)
    ann = MemoryStore(database, "ann")
    memory = await ann.save("/memories/a.md", Draft("tea"))
    assert (await ann.update(memory["id"], says("coffee")))["version"] == 2
    assert len((await ann.read(memory["id"]))["history"]) == 1
    assert await found(ann, "tea coffee") == ["/memories/a.md"]
    await ann.delete(memory["id"])
    assert await counted(ann) == {}
    await connection.close()
    await database.close()


def text_again(statement: str) -> str:
    """A statement as it is when it is made again."""
    return load_statements("postgres")[statement].replace(":retried::boolean", "true")


async def test_deleted_while_it_is_changed(postgres: str) -> None:
    """Alone, or with its session: what is added during the wait goes too."""
    backend = new_postgres(postgres)
    database = connect(backend.url)
    ann = MemoryStore(database, "ann")
    connection = await asyncpg.connect(backend.url)
    for deletes in (
        lambda memory_id: ann.delete(memory_id),
        lambda memory_id: delete_whole(database),
    ):
        session = Session("s", database=database, owner="ann")
        await session.add_items([user("hello")])
        memory_id = (await ann.save("/memories/a.md", Draft("tea"), Source("s", 1)))["id"]
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO threadkeep.memory_history SELECT memory_id, version, owner, '', '', "
                "'s', 1, 1, valid_from, now(), 2 FROM threadkeep.memories"
            )
            await connection.execute("UPDATE threadkeep.memories SET version = 2")
            deleting = asyncio.create_task(deletes(memory_id))
            await asyncio.sleep(0.1)
            assert not deleting.done()
        await deleting
        assert {"memories", "memory_history"}.isdisjoint(await counted(ann))
    assert (await forget(database, "ann")).left == {}
    await connection.close()
    await database.close()


async def test_deleted_beside_an_extraction(postgres: str) -> None:
    """What one has remembered of a session during the wait goes with it, alone or with others."""
    backend = new_postgres(postgres)
    database = connect(backend.url)
    connection = await asyncpg.connect(backend.url)
    for deletes in (delete_whole, delete_twice):
        session = Session("s", database=database, owner="ann")
        await session.add_items([user("hello")])
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO threadkeep.memories (memory_id, owner, path_key, path, description, "
                "contents, keywords, pinned, version, search_no, source_session, created_at, "
                "updated_at, valid_from) VALUES ('m', 'ann', '', '', '', '', '[]', 0, 1, 1, 's', "
                "now(), now(), now())"
            )
            await connection.execute("UPDATE threadkeep.sessions SET remembered_seq = 1")
            deleting = asyncio.create_task(deletes(database))
            await asyncio.sleep(0.1)
            assert not deleting.done()
        await deleting
        assert await counted(MemoryStore(database, "ann")) == {}
    await connection.close()
    await database.close()


async def delete_whole(database: Database) -> None:
    while not await delete_session(database, "s", "ann"):
        pass


async def delete_twice(database: Database) -> None:
    for _ in range(2):
        await database.call("delete_sessions", owner="ann", older_than=None, limit=9)
