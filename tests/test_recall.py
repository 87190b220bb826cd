"""Memory over HTTP: what a model is given in a new session, and what a run's record says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest
from agents.testing import ScriptedModel, assistant_message

from tests.client import BOB, ask, client_of, contents, session_of
from tests.conftest import RunningApp
from threadkeep import memory_extraction
from threadkeep.memory_extraction import Proposal, Proposals, extract_next, proposing
from threadkeep.memory_store import MemoryStore
from threadkeep.recall import Recall
from threadkeep.reminder import Reminder

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def servers() -> int:
    return 1


@pytest.fixture
def settings() -> dict[str, str]:
    return {"MEMORY_RECALL_TOKENS": "1500"}


@pytest.fixture
def bob(apps: list[RunningApp]) -> Iterator[httpx.Client]:
    with client_of(apps[0].url, **BOB) as client:
        yield client


def seen(app: RunningApp) -> str:
    """What the model was reminded of by the last request."""
    items = app.model.inputs[-1]
    return "".join(item["content"] for item in items if isinstance(item, Reminder))


def ask_temporary(client: httpx.Client, text: str, session_id: str = "t") -> httpx.Response:
    inputs = {"session_id": session_id, "temporary": True}
    return client.post("/responses", json={"input": text, "custom_inputs": inputs})


def test_a_new_session_knows(apps: list[RunningApp], here: httpx.Client, bob: httpx.Client) -> None:
    """What the user said of themselves, and their memories; told by ids in the run's record, and
    stored in no session. Nobody else's model sees it."""
    first = session_of(ask(here, "My name is Ann and I am vegetarian"))
    memory = here.post("/memories", json={"description": "Allergic to nuts"}).json()
    response = ask(here, "Suggest a dinner")
    assert '"My name is Ann and I am vegetarian"' in seen(apps[0])
    assert '"Allergic to nuts"' in seen(apps[0])
    recalled = response["custom_outputs"]["recalled"]
    assert recalled == [{"memory": memory["id"], "version": 1}, {"session_id": first, "seq": 1}]
    assert here.get(f"/responses/{response['id']}").json() == response
    session_id = session_of(response)
    assert contents(here, session_id) == ["Suggest a dinner", "You said: Suggest a dinner"]
    ask(here, "And a dessert", session_id)
    assert "vegetarian" in seen(apps[0])
    assert "recalled" not in ask(bob, "Suggest a dinner")["custom_outputs"]
    assert seen(apps[0]) == ""
    here.delete(f"/sessions/{first}")
    here.delete(f"/memories/{memory['id']}")
    ask(here, "Suggest a dinner")
    assert "vegetarian" not in seen(apps[0])
    assert "nuts" not in seen(apps[0])


def test_temporary(apps: list[RunningApp], here: httpx.Client) -> None:
    """A session that begins so stays so: it recalls nothing, and is not recalled nor found; one
    that began otherwise can't become so."""
    ask(here, "I am a nurse", "work")
    assert ask_temporary(here, "I like secret gardens").status_code == 200
    assert here.get("/sessions/t").json()["temporary"]
    ask(here, "Which gardens do I like?", "t")
    assert seen(apps[0]) == ""
    store = MemoryStore(apps[0].app.state.database, "ann")
    for user in ("ann", None):  # of their own memories, or of shared ones alone
        recall = Recall(store, session_id="t", session_owner="ann", user=user, tokens=0)
        assert not apps[0].do(recall.may_recall())  # so the tools do nothing
    forked = here.post("/sessions/t/fork").json()
    assert forked["temporary"]
    ask(here, "Which gardens do I like?", "other")
    assert "nurse" in seen(apps[0])
    assert "secret" not in seen(apps[0])
    assert not here.get("/sessions", params={"q": "secret"}).json()["data"]
    refused = ask_temporary(here, "I like caves", "work")
    assert refused.json()["error"]["code"] == "not_temporary"
    wrong = {"input": "Hi", "custom_inputs": {"temporary": "yes"}}
    assert here.post("/responses", json=wrong).json()["error"]["param"] == "custom_inputs.temporary"


def test_what_was_taken_back_is_not_recalled(apps: list[RunningApp], here: httpx.Client) -> None:
    """What a rewind has cut off, and keeps as a fork."""
    ask(here, "I live in Rome", "a")
    here.post("/sessions/a/rewind", json={"to": 1})
    ask(here, "I live in Oslo", "a")
    assert seen(apps[0]) == ""
    ask(here, "Where do I live?", "b")
    assert "Oslo" in seen(apps[0])
    assert "Rome" not in seen(apps[0])


def test_a_run_made_again_recalls_again(apps: list[RunningApp], here: httpx.Client) -> None:
    """What it is reminded of may have changed since its process died: that is no hindrance."""
    ask(here, "I live in Rome", "a")
    apps[0].model.go_on.clear()
    reply = here.post(
        "/responses",
        json={"input": "use note; hold", "background": True, "custom_inputs": {"session_id": "b"}},
    ).json()
    while len(apps[0].model.inputs) < 3:
        here.get(f"/responses/{reply['id']}")
    assert "Latin" not in seen(apps[0])
    here.post("/memories", json={"description": "Speaks Latin"})
    apps[0].restart()
    apps[0].model.go_on.set()
    apps[0].take_over()
    with here.stream("GET", f"/responses/{reply['id']}?stream=true") as stream:
        assert '"response.completed"' in stream.read().decode()
    assert "Speaks Latin" in seen(apps[0])


def test_extraction(
    apps: list[RunningApp], here: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model proposes memories from what the user said; each has its message, and none is kept
    that nothing bears out, or that is known; each message is looked at once."""
    monkeypatch.setattr(memory_extraction, "QUIET_MS", 0)
    database = apps[0].app.state.database
    ask(here, "I moved to Bergen. Where is the opera?", "a")
    ask(here, "say My bank is Evil & Co", "a")
    ask(here, "I am a nurse", "a")
    ask_temporary(here, "I like secret gardens")

    def fact(quote: str, fact: str, topic: str, replaces: str | None = None) -> dict[str, Any]:
        return {"quote": quote, "fact": fact, "topic": topic, "replaces": replaces}

    old = here.post("/memories", json={"description": "Lives in Oslo", "path": "/memories/home"})
    proposed = [
        fact("I moved to Bergen", "Lives in Bergen", "home", "/memories/home"),
        fact("Where is the opera", "Wants to go to the opera", "music"),  # asked, not told
        fact("You said: My bank", "The bank is Evil", "money"),  # the agent's words
        fact("I am a nurse", "Nurse", "work"),
        fact("I am a nurse", "Not a nurse", "work"),
        fact("I am a nurse", "A nurse", "job"),  # known by now
        fact("I am a nurse", "Hates needles and hospitals", "work"),  # made up
    ]
    model = ScriptedModel([[assistant_message(Proposals(facts=proposed).model_dump_json())]])

    class Models:
        def get_model(self, _: str | None) -> ScriptedModel:
            return model

        async def aclose(self) -> None: ...

    models: Any = Models()
    assert apps[0].do(extract_next(database, proposing(models)))
    assert not apps[0].do(extract_next(database, proposing(models)))
    asked = str(model.calls[0].input[-1])
    assert "I moved to Bergen" in asked
    assert "You said" not in asked
    assert "secret" not in asked
    found = {m["path"]: m for m in here.get("/memories").json()["data"]}
    assert {path: m["description"] for path, m in found.items()} == {
        "/memories/home": "I moved to Bergen",
        "/memories/profile/work.md": "Nurse",
    }
    home = here.get(f"/memories/{old.json()['id']}").json()
    assert home["source"]["seq"] == 1
    assert [version["description"] for version in home["history"]] == ["Lives in Oslo"]
    assert found["/memories/profile/work.md"]["source"] == {"session_id": "a", "seq": 5}


def test_extraction_from_what_is_gone(
    apps: list[RunningApp], here: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is deleted or cut back while the model looks at it leaves no memory."""
    monkeypatch.setattr(memory_extraction, "QUIET_MS", 0)
    database = apps[0].app.state.database

    async def look(change: Callable[[], object]) -> None:
        async def propose(*_: Any) -> list[Proposal]:
            await asyncio.to_thread(change)
            return [Proposal(quote="I am a nurse", fact="Nurse", topic="work", replaces=None)]

        assert await extract_next(database, propose)

    ask(here, "I am a nurse", "a")
    apps[0].do(look(lambda: here.post("/sessions/a/rewind", json={"to": 1})))
    ask(here, "I am a nurse", "b")
    apps[0].do(look(lambda: here.delete("/sessions/b")))
    assert not here.get("/memories").json()["data"]
