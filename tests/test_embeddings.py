"""Memories found by an embedding model, where one is set, that share no word with what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.client import ANN, ask, client_of
from tests.conftest import RunningApp, environment
from tests.serving import served
from threadkeep.errors import SettingsError
from threadkeep.models import Models
from threadkeep.reminder import Reminder
from threadkeep.settings import Settings

ABOUT = {"dinner": 0, "meat": 0, "dog": 1, "vet": 1, "train": 2}
"""What each word is about: the dimension of its vector."""

provider = FastAPI()
asked: list[list[str]] = []


@provider.post("/v1/embeddings")
async def embeddings(request: Request) -> Any:
    body = await request.json()
    assert (body["model"], body["encoding_format"]) == ("small", "float")
    asked.append(body["input"])
    if "broken" in body["input"][0]:
        return JSONResponse({"error": {"message": "no"}}, 400)
    vectors = [
        [0.1 + sum(ABOUT.get(word) == at for word in text.lower().split()) for at in range(3)]
        for text in body["input"]
    ]
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return {"object": "list", "model": "small", "data": data, "usage": usage}


@pytest.fixture
def app() -> Iterator[RunningApp]:
    with served(provider) as url:
        server = {"OPENAI_BASE_URL": f"{url}/v1", "EMBEDDING_MODEL": "small"}
        place = environment("sqlite://", MEMORY_RECALL_TOKENS="55", **server)
        app = RunningApp(place | {"THREADKEEP_TRUST_PROXY_HEADERS": "1"})
        yield app
        app.stop()


@pytest.fixture
def ann(app: RunningApp) -> Iterator[httpx.Client]:
    with client_of(app.url, **ANN) as client:
        for said in ("Eats no meat", "Has a dog called Bruno", "Takes the train to work"):
            client.post("/memories", json={"description": said})
        yield client


def found(ann: httpx.Client, query: str) -> list[str]:
    reply = ann.get("/memories", params={"q": query}).json()
    return [memory["description"] for memory in reply["data"]]


def test_what_is_alike_is_found(app: RunningApp, ann: httpx.Client) -> None:
    """In a search and before a turn, of the owner alone; each text is asked for once; when the
    model does not answer, words tell."""
    asked.clear()
    assert found(ann, "Suggest a dinner")[0] == "Eats no meat"
    assert found(ann, "Which vet")[0] == "Has a dog called Bruno"
    assert [len(texts) for texts in asked] == [4, 1]
    ask(ann, "Suggest a dinner", "s")
    reminders = [item["content"] for item in app.model.inputs[-1] if isinstance(item, Reminder)]
    assert "Eats no meat" in reminders[0]
    assert "train" not in reminders[0]
    with client_of(app.url, **{"X-Forwarded-User": "bob"}) as bob:
        assert found(bob, "Suggest a dinner") == []
    assert found(ann, "broken dog") == ["Has a dog called Bruno"]
    assert found(ann, "broken dinner") == []


def test_it_needs_a_server() -> None:
    """Else the settings are refused."""
    models = Models(Settings.read({"AGENT_MODEL": "x", "EMBEDDING_MODEL": "small"}), print)
    with pytest.raises(SettingsError, match="OPENAI_API_KEY or OPENAI_BASE_URL"):
        models.embeddings()
    assert Models(Settings.read({"AGENT_MODEL": "x"}), print).embeddings() is None
