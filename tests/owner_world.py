"""What Ann has, of each kind, and all that is stored of anybody but Bob, who tries to get at it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx2 as httpx

from tests.backends import Backend, Postgres, SQLite
from tests.client import ANN, Json, ask, client_of, follow, session_of
from tests.conftest import RunningApp, environment
from tests.deciding import asked, decide, end_of
from tests.run_tables import ORDERS
from tests.workshop import Workshop
from threadkeep.api_keys import ANY, new_key
from threadkeep.memory_form import Draft, Source
from threadkeep.memory_store import MemoryStore

MARK = "PLANTED"
"""In every text of Ann's."""

KEYS = {owner: new_key(owner) for owner in ("bob", ANY)}

CLOCKS = {("sessions", "run_alive_at"), ("runs", "alive_at")}
"""What a run at work renews by itself."""

INDEXED = {("sessions", name) for name in ("search_no", "indexed_epoch", "indexed_seq")}
"""What the server's loop brings up to date, beside the postings. It has done with Ann's."""

_NOT_BOBS = {
    "sessions": "owner <> 'bob'",
    "items": "session_id NOT IN (SELECT session_id FROM threadkeep.sessions WHERE owner = 'bob')",
    "runs": "owner <> 'bob'",
    "run_events": "run_id NOT IN (SELECT run_id FROM threadkeep.runs WHERE owner = 'bob')",
    "model_calls": "journal_id NOT IN (SELECT run_id FROM threadkeep.runs WHERE owner = 'bob')",
    "tool_calls": "journal_id NOT IN (SELECT run_id FROM threadkeep.runs WHERE owner = 'bob')",
    "approvals": "owner <> 'bob'",
    "owner_keys": "coalesce(owner, '') <> 'bob'",
    "request_rates": "owner NOT IN ('bob', 'eve')",
    "memories": "owner <> 'bob'",
    "memory_history": "owner <> 'bob'",
    "forgotten": "owner <> 'bob'",
    "postings": "search_no NOT IN (SELECT search_no FROM threadkeep.sessions "
    "WHERE owner = 'bob' AND search_no IS NOT NULL UNION ALL "
    "SELECT search_no FROM threadkeep.memories WHERE owner = 'bob')",
}
"""Which rows of a table are not Bob's."""

_ORDERS = ORDERS | {
    "memories": "memory_id",
    "memory_history": "memory_id, version",
    "forgotten": "owner, seq",
    "owner_keys": "key_id",
    "postings": "scope, term, search_no, block",
    "request_rates": "owner",
}

_TABLES = {
    SQLite: "SELECT name FROM sqlite_master WHERE type = 'table'",
    Postgres: "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'threadkeep'",
}

Rows = list[dict[str, Any]]


@dataclass
class World:
    """A server, and what Ann has there.

    Args:
        app: The server. It knows who asks by a key, or by a proxy.
        place: Its database.

    Attributes:
        ids: Hers, by their kind: `session`, `response`, `approval`, `key`, `memory`, `path`.
        exported: Her first session, as lines.
        bobs: One id of Bob's, by its kind.
    """

    app: RunningApp
    place: Backend
    ids: dict[str, list[str]] = field(default_factory=dict)
    exported: str = ""
    bobs: dict[str, str] = field(default_factory=dict)

    @property
    def hers(self) -> list[str]:
        """All her ids."""
        return [an_id for ids in self.ids.values() for an_id in ids]

    def stored(self, *, of_bob: bool = False) -> dict[str, Rows]:
        """All rows of all tables but for `CLOCKS`. They are without Bob's; or, `of_bob`, with his
        and without the search index."""
        where = {name: "true" if of_bob else rule for name, rule in _NOT_BOBS.items()}
        read = {
            name: f"SELECT * FROM threadkeep.{name} WHERE {where[name]} ORDER BY {order}"
            for name, order in _ORDERS.items()
        }
        found = self._read(read)
        for name, column in CLOCKS | (INDEXED if of_bob else set()):
            for row in found[name]:
                del row[column]
        if of_bob:
            del found["postings"]
        return found

    def read(self, sql: str) -> Rows:
        """The rows of a query."""
        return self._read({"": sql})[""]

    def _read(self, queries: dict[str, str]) -> dict[str, Rows]:
        if isinstance(self.place, SQLite):
            with closing(sqlite3.connect(self.place.file)) as raw:
                raw.row_factory = sqlite3.Row
                texts = {name: sql.replace("threadkeep.", "") for name, sql in queries.items()}
                return {n: [dict(row) for row in raw.execute(sql)] for n, sql in texts.items()}
        assert isinstance(self.place, Postgres)
        return asyncio.run(_fetched(self.place.url, queries))


async def _fetched(url: str, queries: dict[str, str]) -> dict[str, Rows]:
    connection = await asyncpg.connect(url)
    try:
        return {name: [dict(r) for r in await connection.fetch(q)] for name, q in queries.items()}
    finally:
        await connection.close()


@contextmanager
def world_on(place: Backend) -> Iterator[World]:
    """Makes Ann's things by requests: sessions with items, metadata and a fork; runs that are done,
    at work and waiting; calls that wait for her, are decided and in doubt; a key, an export, and
    a memory that was changed."""
    shop = Workshop()
    settings = environment(
        place,
        THREADKEEP_TRUST_PROXY_HEADERS="1",
        THREADKEEP_API_KEYS=" ".join(entry for _, entry in KEYS.values()),
    )
    world = World(RunningApp(settings, tools=shop.tools()), place)
    try:
        with client_of(world.app.url, **ANN) as ann:
            _fill(world, ann)
        with client_of(world.app.url, **{"X-Forwarded-User": "bob"}) as bob:
            own = ask(bob, "use pay; say paid")
            kinds = {"session": session_of(own), "response": own["id"], "approval": asked(own)[0]}
            memory = bob.post("/memories", json={"description": "mine"}).json()
            world.bobs = kinds | {"key": "bob's key", "memory": memory["id"]}
        yield world
    finally:
        shop.go_on.set()
        world.app.model.go_on.set()
        world.app.stop()


def _fill(world: World, ann: httpx.Client) -> None:
    def turn(text: str, **more: Any) -> Json:
        return ask(ann, f"{text} {MARK}", **more)

    key = f"{MARK} key"
    ann.headers["Idempotency-Key"] = key
    talk = turn("use note; say")
    del ann.headers["Idempotency-Key"]
    first = session_of(talk)
    ann.patch(f"/sessions/{first}", json={"title": MARK, "metadata": {"of": MARK}})
    fork = ann.post(f"/sessions/{first}/fork").json()["id"]
    world.exported = ann.get(f"/sessions/{first}/export").text
    says = dict.fromkeys(("description", "contents"), f"{MARK} before")
    path = f"/memories/{MARK}.md"
    memory = ann.post("/memories", json=says | {"path": path, "keywords": [MARK]}).json()
    ann.patch(f"/memories/{memory['id']}", json={"contents": MARK})
    old = MemoryStore(world.app.app.state.database, "ann")
    draft, source = Draft(f"{MARK} old"), Source(first, 1, 1)
    gone = world.app.do(old.save(f"/memories/{MARK}-old.md", draft, source))
    world.app.do(old.delete(gone["id"]))
    waiting, in_doubt, decided = (turn("use pay; say") for _ in range(3))
    gone_on = end_of(ann, decide(ann, asked(decided)[0], True)["response_id"])
    # As one whose process has ended in the middle of a call: nothing else of it is another.
    world.place.execute(
        "UPDATE threadkeep.approvals SET kind = 'in_doubt' "
        f"WHERE approval_id = '{asked(in_doubt)[0]}'"
    )
    held = turn("hold", background=True)
    queued = turn("say", session_id=session_of(held), background=True)
    for event in follow(ann, held["id"]):
        if event["type"] == "response.output_text.delta":
            break
    responses = [talk, waiting, in_doubt, decided, gone_on, held, queued]
    sessions = [first, fork, *map(session_of, (waiting, in_doubt, decided, held))]
    world.ids = {
        "session": sessions,
        "response": [response["id"] for response in responses],
        "approval": [asked(response)[0] for response in (waiting, in_doubt, decided)],
        "key": [key],
        "memory": [memory["id"]],
        "path": [memory["path"]],
    }
    statuses = [ann.get(f"/responses/{r['id']}").json()["status"] for r in (held, queued)]
    assert statuses == ["in_progress", "queued"]
    owner_key = {"owner": "ann", "key_id": f"{MARK} key", "wrapped": MARK, "master_id": "none"}
    world.app.do(world.app.app.state.database.call("add_owner_key", **owner_key))
    world.app.do(world.app.app.state.database.call("take_request", owner="ann", share=600))
    assert ann.get("/sessions", params={"q": MARK}).json()["data"]  # so all is in the index
    tables = {row["name"] for row in world.read(_TABLES[type(world.place)])}
    assert tables - {"schema_migrations"} == {*_NOT_BOBS}, (
        "Say in _NOT_BOBS of tests/owner_world.py which rows of a new table are Bob's, and in "
        "_ORDERS by what they are sorted; and let _fill make some of Ann's."
    )
    _settle(world)


def _settle(world: World) -> None:
    """Waits until the run at work has stored what it has said."""
    before = None
    while before != (before := world.stored()):
        world.app.do(asyncio.sleep(0.3))
