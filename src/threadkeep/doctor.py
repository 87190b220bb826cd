"""Looks at all that an app needs, one thing after the other; says what to do about each failure.

What rests on something that failed is skipped. Nothing is changed, but that the turn of the app
brings the schema up to date, as every start does, and makes a session, which it deletes again.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openai
import uvicorn
from agents import Agent, RunConfig, Runner
from fastapi import FastAPI
from uuid_utils import uuid7

from threadkeep.approval_webhook import Webhook
from threadkeep.connect import connect, unsealed
from threadkeep.database import Database
from threadkeep.errors import ThreadkeepError
from threadkeep.failures import describe
from threadkeep.lakebase import Lakebase
from threadkeep.lakebase_place import LakebasePlace
from threadkeep.models import Models
from threadkeep.postgres import PostgresDatabase
from threadkeep.server.identity import check_exposure
from threadkeep.settings import Settings
from threadkeep.workspace import GRANT

PROMPT = "Reply with the one word: ok"
"""What the model is asked."""

TURN_SECONDS = 120
"""How long an answer may take."""

_LAKEBASE_STEPS = ("workspace", "instance", "token")


@dataclass(frozen=True)
class Finding:
    """What came of one check.

    Args:
        name: Of the check.
        outcome: Whether it is well; `skipped` where something before it failed, or is not there.
        message: What was found; when it failed, what to do. SQL to run follows in lines of its own.
    """

    name: str
    outcome: Literal["ok", "failed", "skipped"]
    message: str


async def examine(
    environment: Mapping[str, str], *, with_turn: bool = True
) -> AsyncIterator[Finding]:
    """Checks settings, login, database, rights, agent and model, in this order.

    Args:
        environment: The settings.
        with_turn: Whether to ask the model, and to make a turn of the app in this folder.

    Yields:
        What was found, as it is found.
    """
    try:
        settings = Settings.read(environment)
        check_exposure(settings)
        database = connect(settings)
        models = Models(settings, lambda line: None)
        Webhook.of(settings)
    except ThreadkeepError as error:
        yield Finding("settings", "failed", str(error))
        return
    yield Finding("settings", "ok", f"{database.description}; model {models.name}")
    well = True
    try:
        async for finding in _look_at_all(settings, database):
            well = well and finding.outcome == "ok"
            yield finding
    finally:
        await database.close()
    finding, app = _look_at_agent(database)
    yield finding
    if not with_turn:
        return
    try:
        answer = await _ask(models)
        yield answer
        if app and well and answer.outcome == "ok":
            yield await _turn(app, models)
        elif finding.outcome != "skipped":
            yield _skipped("turn")
    finally:
        await models.aclose()


async def _look_at_all(settings: Settings, database: Database) -> AsyncIterator[Finding]:
    well = True
    if settings.uses_lakebase:
        async for finding in _look_at_lakebase(Lakebase(LakebasePlace.of(settings))):
            well = well and finding.outcome == "ok"
            yield finding
    if not well:
        yield _skipped("database")
    elif isinstance(plain := unsealed(database), PostgresDatabase):
        async for finding in _look_at_postgres(plain, settings.uses_lakebase):
            yield finding
    else:
        yield await _look_at_sqlite(database)


async def _look_at_lakebase(lakebase: Lakebase) -> AsyncIterator[Finding]:
    left = list(_LAKEBASE_STEPS)
    try:
        async for message in lakebase.inspect():
            yield Finding(left.pop(0), "ok", message)
    except ThreadkeepError as error:
        yield Finding(left.pop(0), "failed", str(error))
        for name in left:
            yield _skipped(name)


async def _look_at_postgres(
    database: PostgresDatabase, is_lakebase: bool
) -> AsyncIterator[Finding]:
    try:
        who, grants = await database.whoami(), await database.missing_grants()
    except ThreadkeepError as error:
        yield Finding("database", "failed", str(error))
        return
    tls = "with TLS" if who["tls"] else "without TLS"
    yield Finding("database", "ok", f"Postgres {who['version']} {tls}, as {who['role']}")
    if grants:
        remedy = f"{GRANT}. Let an owner run:" if is_lakebase else "Let an owner run:"
        lines = [f"Permission denied: the role lacks a right. {remedy}", *grants]
        yield Finding("grants", "failed", "\n".join(lines))
        yield _skipped("schema")
        return
    yield Finding("grants", "ok", "the role has all that it needs")
    yield await _look_at_schema(database, who["may_change"])


async def _look_at_schema(database: PostgresDatabase, may_change: bool) -> Finding:
    try:
        missing = await database.pending()
    except ThreadkeepError as error:
        return Finding("schema", "failed", str(error))
    if not missing:
        return Finding("schema", "ok", f"{database.schema} is up to date")
    message = f"not up to date ({', '.join(missing)})"
    if may_change:
        return Finding("schema", "ok", f"{message}; start-app does that, or: threadkeep migrate")
    remedy = "this role may not change it. Let its owner run: threadkeep migrate"
    return Finding("schema", "failed", f"{message}, and {remedy}")


async def _look_at_sqlite(database: Database) -> Finding:
    try:
        await database.open()
    except ThreadkeepError as error:
        return Finding("database", "failed", str(error))
    return Finding("database", "ok", "can be read and written")


def _look_at_agent(database: Database) -> tuple[Finding, FastAPI | None]:
    """Makes the app in this folder, and its agent; tells where the code of either fails."""
    if sys.path[0] != os.getcwd():
        sys.path.insert(0, os.getcwd())
    if importlib.util.find_spec("agent_server") is None:
        return Finding("agent", "skipped", "there is no agent_server/ in this folder"), None
    try:
        app: FastAPI = importlib.import_module("agent_server.start_server").app()
        app.state.run_requests.database = database  # which an agent may keep, and does not ask
        agent: object = app.state.run_requests.first_agent()
    except ThreadkeepError as error:
        return Finding("agent", "failed", str(error)), None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever their code raises
        return Finding("agent", "failed", _place_of(error)), None
    if not isinstance(agent, Agent):
        message = f"create_agent must return an Agent, not {type(agent).__name__}."
        return Finding("agent", "failed", message), None
    return Finding("agent", "ok", f"agent_server makes {agent.name}"), app


def _place_of(error: BaseException) -> str:
    """Where in the app it went wrong, without its words, which may hold anything."""
    folder = Path.cwd() / "agent_server"
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    where = "agent_server"
    for file, line in places:
        if Path(file).is_relative_to(folder):
            where = f"{Path(file).relative_to(folder.parent)}, line {line}"
    kind = type(error).__name__
    if isinstance(error, ImportError) and error.name:
        kind += f" of {error.name}"
    return f"{where}: {kind}. Mend it there."


async def _ask(models: Models) -> Finding:
    """One question to the model, streamed as in every turn, without an app around it."""
    config = RunConfig(model_provider=models, tracing_disabled=True)
    try:
        await models.start()
        async with asyncio.timeout(TURN_SECONDS):
            result = Runner.run_streamed(Agent(name="Doctor"), PROMPT, run_config=config)
            async for _ in result.stream_events():
                continue
    except Exception as error:  # noqa: BLE001 - whatever a model's client raises
        return Finding("model", "failed", describe(error).message)
    return Finding("model", "ok", f"{models.name} answers")


async def _turn(app: FastAPI, models: Models) -> Finding:
    """One turn of the app, over HTTP, in a session that is deleted afterwards."""
    # Which is loaded, and says nothing of it.
    app.state.models = app.state.run_requests.models = models
    try:
        async with _serving(app) as url, _client(url) as client:
            await _make_turn(client)
    except openai.APIStatusError as error:
        body: Any = error.body
        return Finding("turn", "failed", str(body["message"]))
    except (ThreadkeepError, openai.OpenAIError, TimeoutError) as error:
        return Finding("turn", "failed", describe(error).message)
    return Finding("turn", "ok", "was made, stored, and deleted again")


async def _make_turn(client: openai.AsyncOpenAI) -> None:
    session_id = str(uuid7())

    async def delete() -> None:
        await client.delete(f"/sessions/{session_id}", cast_to=object)

    try:
        async with asyncio.timeout(TURN_SECONDS):
            await client.responses.create(
                model="agent",
                input=PROMPT,
                extra_body={"custom_inputs": {"session_id": session_id}},
            )
    except BaseException:  # Ctrl-C too
        with suppress(openai.OpenAIError):  # it may not be there
            await delete()
        raise
    await delete()


def _client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url,
        api_key="none",
        max_retries=0,
        default_headers={"X-Forwarded-User": "threadkeep-doctor"},  # read only behind a proxy
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),  # no proxy to this machine
    )


class _Server(uvicorn.Server):
    """Leaves Ctrl-C to whoever runs the doctor."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


@asynccontextmanager
async def _serving(app: FastAPI) -> AsyncIterator[str]:
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = _Server(config)
    # Not by the server, which would keep to itself why the app does not start.
    async with app.router.lifespan_context(app):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await serving


def _skipped(name: str) -> Finding:
    return Finding(name, "skipped", "rests on what failed before")
