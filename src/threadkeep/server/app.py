"""The app: an agent, a database and a model, put together and served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI

from threadkeep.api_keys import ApiKeys
from threadkeep.approval_webhook import Webhook, keep_telling
from threadkeep.connect import connect
from threadkeep.memory_extraction import keep_extracting, proposing
from threadkeep.migrate import RELEASE
from threadkeep.models import Models
from threadkeep.recall import TOKENS
from threadkeep.retention import keep_forgetting
from threadkeep.run_request import Limits
from threadkeep.runs import Runs
from threadkeep.sealing import check_keys
from threadkeep.search_index import keep_indexing
from threadkeep.server import approvals, health, memories, pages, responses, sessions
from threadkeep.server.errors import add_error_handlers
from threadkeep.server.guard import Guard
from threadkeep.server.openapi import document
from threadkeep.server.run_requests import (
    CreateAgent,
    CreateContext,
    GetSessionId,
    RunRequests,
    SharedMemory,
)
from threadkeep.settings import Settings
from threadkeep.take_over import keep_taking_over

_LOOKS = 5
"""How often a server looks for lost runs, in the time after which a silent one is lost."""


_LOCAL_RECALL_TOKENS = 300
"""The embedded model reads slowly, and has room for little."""


def create_app(
    create_agent: CreateAgent,
    get_session_id: GetSessionId,
    settings: Settings,
    *,
    create_context: CreateContext | None = None,
    shared_memory: SharedMemory | None = None,
    page: bool = True,
    on_progress: Callable[[str], None] = print,
    limits: Limits | None = None,
) -> FastAPI:
    """Makes the app; it opens its database and loads its model when it starts.

    Args:
        create_agent: Makes the agent of a run, from what the run is about.
        get_session_id: Tells the session of a request.
        settings: Read from the environment.
        create_context: Makes what tools are given as the SDK's run context, from what the run is
            about; by default they are given that itself. Says by its annotation what it gives.
        shared_memory: Names the memories that a run shares with those of other users; by default,
            and where it gives None, they are the owner's own.
        page: Whether to serve the chat page.
        on_progress: Told, in a line each, how the loading of the embedded model goes.
        limits: What holds for every run, the same for all replicas; by default what is set.

    Raises:
        SettingsError: A setting can't be used.
        AgentCodeError: What `create_context` gives can't be stored.
        EmbeddedModelUnavailableError: The embedded model is asked for and can't be had.
    """
    models = Models(settings, on_progress)
    app = FastAPI(
        title="Threadkeep",
        version=RELEASE,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.limits = limits or Limits(
        settings.task_timeout_seconds,
        settings.session_queue_limit,
        approval_expiry_ms=int(settings.approval_expiry_days * 24 * 3600 * 1000),
        item_bytes=settings.item_max_bytes,
        session_items=settings.session_max_items,
    )
    app.state.api_keys = ApiKeys.parse(settings.api_keys) if settings.api_keys else None
    app.state.models = models
    app.state.webhook = Webhook.of(settings)
    embeddings = models.embeddings()
    app.state.run_requests = RunRequests(
        create_agent,
        get_session_id,
        models,
        models.name,
        settings.session_concurrency,
        create_context,
        recall_tokens=_recall_tokens(settings, models),
        facts_only=models.is_local,
        shared_memory=shared_memory,
        likeness=embeddings.likeness if embeddings else None,
    )
    for part in (responses, sessions, memories, approvals, health):
        app.include_router(part.router)
    app.include_router(pages.docs_router)
    if page:
        app.include_router(pages.router)
    add_error_handlers(app)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    app.add_middleware(
        Guard,
        names=None if settings.knows_users else {settings.listen_host},
        max_bytes=settings.request_max_bytes,
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    async with AsyncExitStack() as opened:
        database = connect(settings)
        opened.push_async_callback(database.close)
        await database.open()
        await check_keys(database)
        opened.push_async_callback(app.state.models.aclose)
        requests: RunRequests = app.state.run_requests
        requests.database = database
        is_local = app.state.models.is_local
        await app.state.models.start(requests.first_agent() if is_local else None)
        runs = Runs(database, app.state.limits, requests.restore)
        opened.push_async_callback(runs.aclose)
        app.state.database, app.state.runs = database, runs
        loops = {
            "retention": keep_forgetting(
                database, settings.run_retention_days, settings.session_retention_days
            ),
            "search index": keep_indexing(database),
            "take-over": keep_taking_over(runs, app.state.limits.lost_after_ms / 1000 / _LOOKS),
        }
        if settings.memory_extraction == "on":
            loops["memory"] = keep_extracting(database, proposing(app.state.models, small=is_local))
        if app.state.webhook is not None:
            loops["webhook"] = keep_telling(database, app.state.webhook)
        for name, loop in loops.items():
            opened.callback(asyncio.create_task(loop, name=name).cancel)
        yield


def _recall_tokens(settings: Settings, models: Models) -> int:
    if settings.memory_recall_tokens is not None:
        return settings.memory_recall_tokens
    return _LOCAL_RECALL_TOKENS if models.is_local else TOKENS
