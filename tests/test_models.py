"""Which model answers, by the settings."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
)
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from agent_server.agent import get_current_time
from tests import fake_openai
from tests.serving import served
from threadkeep.errors import ModelError, SettingsError
from threadkeep.local import LocalModel
from threadkeep.models import Models
from threadkeep.settings import Settings


def models(**environment: str) -> Models:
    return Models(Settings.read(environment), on_progress=print)


def test_the_embedded_model_is_the_default() -> None:
    """Where neither a key nor a server is set."""
    assert isinstance(models().get_model(None), LocalModel)
    assert isinstance(models(AGENT_MODEL="local").get_model("local"), LocalModel)


def test_a_key_makes_it_openai() -> None:
    """Over the Responses API, with the SDK's own default model."""
    assert isinstance(models(OPENAI_API_KEY="k").get_model(None), OpenAIResponsesModel)


def test_a_base_url_makes_it_chat_completions() -> None:
    """Which every compatible server has; OPENAI_API says otherwise."""
    url = "http://127.0.0.1:9/v1"
    model = models(OPENAI_BASE_URL=url, AGENT_MODEL="m").get_model(None)
    assert isinstance(model, OpenAIChatCompletionsModel)
    assert model.model == "m"
    model = models(OPENAI_BASE_URL=url, OPENAI_API="responses").get_model("other")
    assert isinstance(model, OpenAIResponsesModel)


def test_an_agent_may_name_a_model_of_its_own() -> None:
    """It needs a server, and says so when there is none."""
    assert isinstance(models(OPENAI_API_KEY="k").get_model("gpt-x"), OpenAIResponsesModel)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        models().get_model("gpt-x")


class Workspace(FastAPI):
    """A Databricks workspace: logs a service principal in, and asks a model.

    Attributes:
        asked: The Authorization header and the body of every request to the model.
        logging_in: Set while a login waits for `go_on`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.logins = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.logging_in = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.get("/.well-known/databricks-config")(self.config)
        self.get("/oidc/.well-known/oauth-authorization-server")(self.oauth)
        self.post("/oidc/v1/token")(self.token)
        self.post("/serving-endpoints/chat/completions")(self.chat_completions)

    def config(self) -> dict[str, str]:
        return {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": "1"}

    def oauth(self) -> dict[str, str]:
        oidc = f"{self.url}/oidc/v1"
        return {"authorization_endpoint": f"{oidc}/authorize", "token_endpoint": f"{oidc}/token"}

    def token(self, request: Request) -> Response:
        """A token that has expired by the next request."""
        self.logging_in.set()
        secret = b64encode(b"principal:secret").decode()
        if request.headers.get("Authorization") != f"Basic {secret}" or not self.go_on.wait(10):
            return JSONResponse({"error": "invalid_client", "error_description": "secret"}, 401)
        self.logins += 1
        token = f"token-{self.logins}"
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": 1})

    async def chat_completions(self, request: Request) -> StreamingResponse:
        self.asked.append((request.headers["Authorization"], await request.json()))
        return await fake_openai.chat_completions(request)


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace, and the login of a service principal to it in the environment."""
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", "principal")
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "secret")
    workspace = Workspace()
    with served(workspace) as workspace.url:
        yield workspace


async def ask(models: Models, question: Any, agent: Agent[Any] | None = None) -> str:
    """Asks the default model, or the agent's own."""
    config = RunConfig(model_provider=models, tracing_disabled=True)
    result = Runner.run_streamed(agent or Agent(name="A"), question, run_config=config)
    async for _ in result.stream_events():
        pass
    return str(result.final_output)


async def test_databricks_renews_its_login_for_every_request(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the default where its host is set. A token that expired is not sent again, and none is
    in the logs.
    """
    caplog.set_level(logging.DEBUG)
    databricks = models(DATABRICKS_HOST=workspace.url, OPENAI_API_KEY="k")
    assert databricks.name == "databricks/databricks-gpt-5-2"
    assert await ask(databricks, "I live in SF. What city do I live in?") == "You live in SF."
    assert await ask(databricks, "Hello") == "Hello to you."
    (first, body), (second, _) = workspace.asked
    assert {first, second} == {f"Bearer token-{n}" for n in range(workspace.logins, 0, -1)[:2]}
    assert body["model"] == "databricks-gpt-5-2"
    assert not {"reasoning_effort", "verbosity"} & body.keys()
    assert "HTTP" in caplog.text
    assert "token-" not in caplog.text
    assert "secret" not in caplog.text.replace("client_secret", "")
    await databricks.aclose()


async def test_databricks_takes_its_time_without_holding_others_up(workspace: Workspace) -> None:
    """The event loop goes on while a login waits; here it is what lets the login go on."""
    workspace.go_on.clear()
    databricks = models(DATABRICKS_HOST=workspace.url)
    answer = asyncio.create_task(ask(databricks, "Hello"))
    await asyncio.to_thread(workspace.logging_in.wait, 10)
    workspace.go_on.set()
    assert await answer == "Hello to you."
    await databricks.aclose()


async def test_an_agent_may_name_an_endpoint_of_databricks(workspace: Workspace) -> None:
    """What its maker's models refuse is left out; settings of the agent stay."""
    others = models(OPENAI_API_KEY="k", DATABRICKS_HOST=workspace.url, AGENT_MODEL="gpt-x")
    agent = Agent[Any](
        name="A",
        model="databricks/my-claude",
        model_settings=ModelSettings(verbosity="low"),
        tools=[get_current_time],
    )
    await ask(others, "Hello", agent)
    call = {"type": "function_call", "call_id": "c", "name": "get_current_time", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "now"}
    await ask(others, [{"role": "user", "content": "Hello"}, call, output], agent)
    body = workspace.asked[-1][1]
    assert body["model"] == "my-claude"
    assert body["verbosity"] == "low"
    assert body["tools"][0]["function"].keys() == {"name", "description", "parameters"}
    assert [m["content"] for m in body["messages"] if m["role"] == "assistant"] == [" "]
    await others.aclose()


@pytest.mark.parametrize("secret", ["wrong", None])
async def test_without_a_login_databricks_says_how_to_get_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, secret: str | None
) -> None:
    """At the first question, without telling what the login is; the next one tries again."""
    if secret:
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", secret)
    else:
        monkeypatch.delenv("DATABRICKS_CLIENT_SECRET")
    databricks = models(AGENT_MODEL="databricks/x", DATABRICKS_HOST=workspace.url)
    with pytest.raises(ModelError, match="databricks auth login") as failed:
        await ask(databricks, "Hello")
    assert "secret" not in str(failed.value)
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "secret")
    assert await ask(databricks, "Hello") == "Hello to you."
    await databricks.aclose()


def test_databricks_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the server starts, or when an agent names such a model."""
    monkeypatch.setitem(sys.modules, "databricks.sdk", None)
    with pytest.raises(SettingsError, match="--extra databricks"):
        models(AGENT_MODEL="databricks/x")
    with pytest.raises(ModelError, match="--extra databricks"):
        models(OPENAI_API_KEY="k").get_model("databricks/x")
    monkeypatch.undo()
    with pytest.raises(SettingsError, match="name of a serving endpoint"):
        models(AGENT_MODEL="databricks/")
