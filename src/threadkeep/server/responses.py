"""The Responses API: ask, follow, poll, stop. MLflow calls the same thing `/invocations`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from threadkeep.approvals import Verdict, decide, get_approval, repeated
from threadkeep.database import Database
from threadkeep.errors import DuplicateError, InvalidInputError, RateLimitError
from threadkeep.failures import recalled, stopped
from threadkeep.history import check_id, check_json
from threadkeep.run import Run
from threadkeep.server.errors import RunFailedError
from threadkeep.server.identity import owner_of
from threadkeep.server.paths import ResponseId
from threadkeep.server.requests import ResponsesRequest, check_sizes, input_items, verdicts
from threadkeep.server.sse import event_stream, with_html
from threadkeep.settings import Settings

router = APIRouter(tags=["responses"])

MAX_CURSOR = 2**53
"""Of a number that says how far a client is: what JSON's readers hold exactly."""

Owner = Annotated[str, Depends(owner_of)]


@dataclass(frozen=True)
class Key:
    """What a client names a request by, and what it asked then.

    Args:
        name: Its Idempotency-Key.
        owner: Whose it is: keys of others are others.
        request_hash: Of the body, but for how the answer is to be sent.
    """

    name: str
    owner: str
    request_hash: str

    @classmethod
    def of(cls, body: ResponsesRequest, owner: str, name: str | None) -> Key | None:
        """The key of a request; None when it has none, or keeps nothing.

        Raises:
            InvalidInputError: It can't be a key.
        """
        if name is None or not body.store:
            return None
        asked = body.model_dump(mode="json", exclude={"stream", "background"})
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return cls(check_id(name, "Idempotency-Key"), owner, digest)

    async def first_run(self, request: Request) -> str | None:
        """The run of the first request with this key."""
        run_id: str | None = await request.app.state.runs.find(
            self.owner, self.name, self.request_hash
        )
        return run_id


@router.post("/responses", response_model=None)
@router.post("/invocations", response_model=None)
async def create_response(
    body: ResponsesRequest,
    request: Request,
    owner: Owner,
    idempotency_key: Annotated[
        str | None, Header(description="Names the request: a repeat is given the first one's run.")
    ] = None,
) -> Response | dict[str, Any]:
    """Runs a turn: waits for the answer, streams it (`stream`), or returns at once (`background`).

    The session is that of `custom_inputs.session_id`, `context.conversation_id`, `conversation` or
    `previous_response_id`, else a new one; the reply names it in `custom_outputs.session_id`.
    """
    key = Key.of(body, owner, idempotency_key)
    decided = verdicts(body.input)
    if decided:
        run_id = await _decide(decided, body, request, owner, is_named=key is not None)
        return await _repeat(run_id, body, request, owner)
    first = await key.first_run(request) if key else None
    if first is not None:
        return await _repeat(first, body, request, owner)
    try:
        run = await _start(body, request, owner, key)
    except DuplicateError:  # of two at once, this one came second
        first = await key.first_run(request) if key else None
        if first is None:
            raise
        return await _repeat(first, body, request, owner)
    if body.stream:
        return event_stream(run.follow())
    if body.background:
        return run.response()
    await run.wait()
    if run.failure is not None:
        raise RunFailedError(run.failure, run.run_id)
    if run.left:
        if request.app.state.runs.is_stopping:
            raise RunFailedError(stopped(run.run_id), run.run_id)
        return await _repeat(run.run_id, body, request, owner)
    return JSONResponse(run.response())


@router.get("/responses/{response_id}", response_model=None)
async def get_response(
    response_id: ResponseId,
    request: Request,
    owner: Owner,
    stream: Annotated[bool, Query(description="Follow its events.")] = False,
    starting_after: Annotated[
        int | None,
        Query(ge=0, le=MAX_CURSOR, description="Leave out events up to this sequence number."),
    ] = None,
    html: Annotated[bool, Query(description="Add to text deltas how the page shows them.")] = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response | dict[str, Any]:
    """The run as it stands, or its events from any point on. After the last event: 204."""
    runs = request.app.state.runs
    if not stream:
        return JSONResponse(await runs.response(response_id, owner))
    after = -1 if starting_after is None else starting_after
    if last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 16:
        after = int(last_event_id)
    ended_at = await runs.ended_at(response_id, owner)
    if ended_at is not None and after >= ended_at:
        return Response(status_code=204)
    if html:
        return event_stream(with_html(await runs.follow(response_id, owner, -1), after))
    return event_stream(await runs.follow(response_id, owner, after))


@router.post("/responses/{response_id}/cancel", response_model=None)
async def cancel_response(
    response_id: ResponseId, request: Request, owner: Owner
) -> dict[str, Any]:
    """Stops a run. What was said stays in its session; one that has ended stays as it is."""
    response: dict[str, Any] = await request.app.state.runs.cancel(response_id, owner)
    return response


async def _repeat(
    run_id: str, body: ResponsesRequest, request: Request, owner: str
) -> Response | dict[str, Any]:
    """Another look at a run, in the way that was asked for."""
    runs = request.app.state.runs
    if body.stream:
        return event_stream(await runs.follow(run_id, owner, -1))
    if not body.background:
        async for _ in await runs.follow(run_id, owner, -1):
            continue
    response: dict[str, Any] = await runs.response(run_id, owner)
    if response["status"] == "failed" and not body.background:
        raise RunFailedError(recalled(response["error"]), run_id)
    return JSONResponse(response)


async def _decide(
    decided: list[Verdict], body: ResponsesRequest, request: Request, owner: str, *, is_named: bool
) -> str:
    """Takes decisions: the run that goes on, or still waits for others.

    A request that is named by an Idempotency-Key may come again, and decides nothing then.
    """
    state = request.app.state
    approval = await get_approval(state.database, decided[0].approval_id, owner)
    waiting: str = approval["previous_response_id"]
    if body.previous_response_id not in (None, waiting):
        raise InvalidInputError(
            "previous_response_id is not the response that asked for this approval.",
            param="previous_response_id",
        )
    went_on = await repeated(state.database, owner, decided) if is_named else None
    went_on = went_on or await decide(state.database, state.runs, owner, *decided)
    return went_on or waiting


async def _start(body: ResponsesRequest, request: Request, owner: str, key: Key | None) -> Run:
    state = request.app.state
    settings: Settings = state.settings
    items = input_items(body.input)
    check_sizes(items, settings.message_max_chars, settings.item_max_bytes)
    check_json(body.metadata, "metadata")
    if body.background and not body.store:
        raise InvalidInputError(
            "background needs store: an answer that is not kept can't be fetched later.",
            param="store",
        )
    if body.previous_response_id is not None and body.conversation is None:
        response_id = check_id(body.previous_response_id, "previous_response_id")
        body.conversation = await state.runs.session_of(response_id, owner)
    session_id = state.run_requests.session_id(body)
    run_request = state.run_requests.make(
        body,
        session_id,
        owner,
        items,
        idempotency_key=key.name if key else None,
        request_hash=key.request_hash if key else "",
    )
    if run_request.temporary:
        await _check_temporary(state.database, session_id, owner)
    if settings.requests_per_minute is not None:
        await _take_request(state.database, owner, settings.requests_per_minute)
    run: Run = state.runs.start(run_request)
    await asyncio.shield(run.received)
    return run


async def _check_temporary(database: Database, session_id: str, owner: str) -> None:
    """Refuses to make a session temporary that is there and is not.

    Raises:
        InvalidInputError: What was said in it is remembered already.
    """
    rows = await database.call("get_session", session_id=session_id, owner=owner)
    if rows and not rows[0]["temporary"]:
        raise InvalidInputError(
            "This session is not temporary: what was said in it may be remembered already. Begin "
            "a new session, or delete this one.",
            param="custom_inputs.temporary",
            code="not_temporary",
        )


async def _take_request(database: Database, owner: str, per_minute: int) -> None:
    """Counts a request, for all processes together.

    Raises:
        RateLimitError: There is none left.
    """
    rows = await database.call("take_request", owner=owner, share=60_000 // per_minute)
    if rows[0]["wait_ms"]:
        raise RateLimitError(per_minute, rows[0]["wait_ms"])
