"""Memories over HTTP: added, found, changed, exported and deleted, each by its owner alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tests.backends import Backend
from tests.client import ANN, ask, client_of, session_of
from tests.conftest import RunningApp, environment, new_backend
from tests.test_memories import source_of
from tests.test_sessions_api import refused
from threadkeep.memory_form import Draft
from threadkeep.memory_store import MemoryStore


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return new_backend(request, tmp_path_factory.mktemp("memories"))


@pytest.fixture(scope="module")
def app(place: Backend) -> Iterator[RunningApp]:
    """One server for all tests, behind a proxy that says who asks."""
    app = RunningApp(environment(place, THREADKEEP_TRUST_PROXY_HEADERS="1"))
    yield app
    app.stop()


@pytest.fixture
def ann(app: RunningApp) -> Iterator[httpx.Client]:
    """Ann, without memories."""
    with client_of(app.url, **ANN) as client:
        yield client
        for memory in client.get("/memories?limit=200").json()["data"]:
            client.delete(f"/memories/{memory['id']}")


def test_added_listed_and_found(ann: httpx.Client) -> None:
    """At a path of one's own, or at one that is made; last changed first, page by page; by words,
    the best first."""
    whole = {
        "path": "/memories/diet.md",
        "description": "Ann is a vegetarian",
        "contents": "No fish.",
        "keywords": ["food"],
        "pinned": True,
        "valid_from": 1_700_000_000,
        "valid_to": 4_000_000_000,
    }
    diet = ann.post("/memories", json=whole).json()
    fixed = {"object": "memory", "version": 1, "source": None, "superseded_by": None}
    assert diet == diet | whole | fixed
    first, second = (ann.post("/memories", json={"description": "Likes tea"}) for _ in "12")
    assert first.json()["path"] == "/memories/notes/likes-tea.md"
    assert second.json()["path"].startswith("/memories/notes/likes-tea-")
    assert "/memories/diet.md" in refused(ann.post("/memories", json=whole), 409, "memory_exists")
    page = ann.get("/memories?limit=2").json()
    assert [memory["id"] for memory in page["data"]] == [second.json()["id"], first.json()["id"]]
    rest = ann.get(f"/memories?after={page['last_id']}").json()
    assert (page["has_more"], rest["data"], rest["has_more"]) == (True, [diet], False)
    found = ann.get("/memories?q=vegetarian food").json()
    assert found["complete"] is True
    assert [memory | {"score": 0} for memory in found["data"]] == [diet | {"score": 0}]
    assert found["data"][0]["score"] > 0
    one = ann.get("/memories?q=tea&limit=1").json()
    other = ann.get(f"/memories?q=tea&limit=1&after={one['last_id']}").json()
    assert (one["has_more"], other["has_more"]) == (True, False)
    assert one["last_id"] != other["last_id"]
    refused(ann.get("/memories", params={"q": "tea " * 501}), 400, "invalid_value", "q")


def test_changed_with_a_history(app: RunningApp, ann: httpx.Client) -> None:
    """Only in the version that somebody has seen; its source and what it was are told."""
    said = ask(ann, "say I like it. I moved to Bern.")
    session_id = session_of(said)
    store = MemoryStore(app.app.state.database, "ann")
    source = app.do(source_of(store.database, "ann", session_id, 1))
    made = app.do(store.save("/memories/home.md", Draft("Lives in Bern"), source))
    address = f"/memories/{made['id']}"
    whole = ann.get(address).json()
    words = {"session_id": session_id, "seq": 1, "text": "say I like it. I moved to Bern."}
    assert whole == made | {"source": words, "history": []}
    change = {"description": "Lives in Basel", "version": 1}
    changed = ann.patch(address, json=change).json()
    assert (changed["version"], changed["description"]) == (2, "Lives in Basel")
    refused(ann.patch(address, json=change), 409, "memory_changed")
    refused(ann.patch(address, json={"version": 2}), 400, "empty")
    run = ann.post("/responses", json={"input": "hi", "temperature": 1})
    assert "agent.py" in refused(run, 400, "extra_forbidden", "temperature")
    unknown = refused(ann.patch(address, json={"text": "a"}), 400, "extra_forbidden", "text")
    assert unknown == "text is no field here: leave it out."
    refused(ann.patch(address, json={"description": " "}), 400, "empty", "description")
    refused(ann.patch(address, json={"contents": "a\0"}), 400, "invalid_value", "contents")
    before = ann.get(address).json()["history"]
    assert [(old["version"], old["description"]) for old in before] == [(1, "Lives in Bern")]
    assert before[0]["source"] == {"session_id": session_id, "seq": 1}
    assert ann.patch(address, json={"valid_to": 4_000_000_000}).json()["valid_to"] == 4_000_000_000
    assert ann.patch(address, json={"pinned": True, "valid_to": None}).json()["pinned"] is True
    other = ann.post("/memories", json={"description": "Lives in Basel, by the Rhine"}).json()
    replaced = ann.patch(address, json={"superseded_by": other["id"]}).json()
    assert (replaced["superseded_by"], replaced["valid_to"] is None) == (other["id"], False)
    assert [m["id"] for m in ann.get("/memories?q=Basel").json()["data"]] == [other["id"]]


def test_exported_and_deleted(ann: httpx.Client) -> None:
    """All of them as lines; what is deleted is gone."""
    assert ann.get("/memories/export").text == ""
    ids = [ann.post("/memories", json={"description": f"Öl {n}"}).json()["id"] for n in "12"]
    exported = ann.get("/memories/export")
    assert exported.headers["content-disposition"] == 'attachment; filename="memories.jsonl"'
    lines = [json.loads(line) for line in exported.text.splitlines()]
    assert lines == [ann.get(f"/memories/{memory_id}").json() for memory_id in ids[::-1]]
    gone = ann.delete(f"/memories/{ids[0]}")
    assert gone.json() == {"id": ids[0], "object": "memory.deleted", "deleted": True}
    for method in ("GET", "DELETE"):
        refused(ann.request(method, f"/memories/{ids[0]}"), 404, "not_found")
