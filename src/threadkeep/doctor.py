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
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import openai
import uvicorn
from agents import Agent, RunConfig, Runner
from uuid_utils import uuid7

from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import ThreadkeepError
from threadkeep.failures import describe
from threadkeep.lakebase import Lakebase
from threadkeep.lakebase_place import LakebasePlace
from threadkeep.models import Models
from threadkeep.postgres import PostgresDatabase
from threadkeep.settings import Settings

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
        outcome: Whether it is well; `skipped` where something before it failed.
        message: What was found; when it failed, what to do.
    """

    name: str
    outcome: Literal["ok", "failed", "skipped"]
    message: str


async def examine(
    environment: Mapping[str, str], *, with_turn: bool = True
) -> AsyncIterator[Finding]:
    """Checks settings, login, database, rights and model, in this order.

    Args:
        environment: The settings.
        with_turn: Whether to ask the model, and to make a turn of the app in this folder.

    Yields:
        What was found, as it is found.
    """
    try:
        settings = Settings.read(environment)
        database = connect(settings)
        models = Models(settings, lambda line: None)
    except ThreadkeepError as error:
        yield Finding("settings", "failed", str(error))
        return
    yield Finding("settings", "ok", f"{database.description}; model {models.name}")
    well = True
    async for finding in _look_at_all(settings, database):
        well = well and finding.outcome == "ok"
        yield finding
    await database.close()
    if with_turn:
        finding = await _ask(models)
        await models.aclose()
        yield finding
        yield await _turn() if well and finding.outcome == "ok" else _skipped("turn")


async def _look_at_all(settings: Settings, database: Database) -> AsyncIterator[Finding]:
    well = True
    if settings.uses_lakebase:
        async for finding in _look_at_lakebase(Lakebase(LakebasePlace.of(settings))):
            well = well and finding.outcome == "ok"
            yield finding
    if not well:
        yield _skipped("database")
    elif isinstance(database, PostgresDatabase):
        async for finding in _look_at_postgres(database):
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


async def _look_at_postgres(database: PostgresDatabase) -> AsyncIterator[Finding]:
    try:
        who = await database.whoami()
        missing, grants = await database.pending(), await database.missing_grants()
    except ThreadkeepError as error:
        yield Finding("database", "failed", str(error))
        return
    tls = "with TLS" if who["tls"] else "without TLS"
    yield Finding("database", "ok", f"Postgres {who['version']} {tls}, as {who['role']}")
    if grants:
        yield Finding("grants", "failed", f"Let an owner run: {' '.join(grants)}")
        yield _skipped("schema")
        return
    yield Finding("grants", "ok", "the role has all that it needs")
    if missing:
        message = (
            f"not up to date ({', '.join(missing)}); start-app does that, or: threadkeep migrate"
        )
    else:
        message = f"{database.schema} is up to date"
    yield Finding("schema", "ok", message)


async def _look_at_sqlite(database: Database) -> Finding:
    try:
        await database.open()
    except ThreadkeepError as error:
        return Finding("database", "failed", str(error))
    return Finding("database", "ok", "can be read and written")


async def _ask(models: Models) -> Finding:
    """One question to the model, without an app around it."""
    config = RunConfig(model_provider=models, tracing_disabled=True)
    try:
        await models.start()
        async with asyncio.timeout(TURN_SECONDS):
            await Runner.run(Agent(name="Doctor"), PROMPT, run_config=config)
    except Exception as error:  # noqa: BLE001 - whatever a model's client raises
        return Finding("model", "failed", describe(error).message)
    return Finding("model", "ok", f"{models.name} answers")


async def _turn() -> Finding:
    """One turn of the app in this folder, over HTTP, in a session that is deleted afterwards."""
    sys.path.insert(0, os.getcwd())
    if importlib.util.find_spec("agent_server") is None:
        return Finding("turn", "skipped", "there is no agent_server/ in this folder")
    try:
        app = importlib.import_module("agent_server.start_server").app()
        async with _serving(app) as url, _client(url) as client, asyncio.timeout(TURN_SECONDS):
            session_id = str(uuid7())
            await client.responses.create(
                model="agent",
                input=PROMPT,
                extra_body={"custom_inputs": {"session_id": session_id}},
            )
            await client.delete(f"/sessions/{session_id}", cast_to=object)
    except openai.APIStatusError as error:
        body: Any = error.body
        return Finding("turn", "failed", str(body["message"]))
    except (ThreadkeepError, openai.OpenAIError, TimeoutError) as error:
        return Finding("turn", "failed", describe(error).message)
    return Finding("turn", "ok", "a turn was made, stored and deleted")


def _client(url: str) -> openai.AsyncOpenAI:
    headers = {"X-Forwarded-User": "threadkeep-doctor"}  # read only behind a proxy
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, default_headers=headers)


@asynccontextmanager
async def _serving(app: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(app, log_config=None, log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - all that it tells
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


def _skipped(name: str) -> Finding:
    return Finding(name, "skipped", "rests on what failed before")
