"""Errors as clients see them: `{"error": {"type", "code", "message", "param"}}`, never a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from threadkeep.errors import ConflictError, QueueFullError, RateLimitError, ThreadkeepError
from threadkeep.failures import Failure, describe

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "model_error",
    503: "service_unavailable",
}

RETRY_SECONDS = "5"
"""When to come back to a session that too many turns wait for."""

_SENTENCES = {
    "missing": "is missing",
    "extra_forbidden": "is no field here: leave it out",
    "json_invalid": "is not valid JSON",
    "model_attributes_type": "must be a JSON object",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "list_type": "must be a list",
}

_AGENTS_OWN = "is not supported here: set it in agent_server/agent.py, or leave it out"
_RUNS_AN_AGENT = ("/responses", "/invocations")

_FORMS = {
    "input": "must be a string or a list of items",
    "conversation": "must be an id or an object with an id",
}

_ALTERNATIVES = {"str", "ConversationRef"}


class RunFailedError(ThreadkeepError):
    """The run that a client waited for has failed.

    Args:
        failure: Why.
        run_id: The run, so that it can be looked up.
    """

    def __init__(self, failure: Failure, run_id: str) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.run_id = run_id


def error_response(failure: Failure, **headers: str) -> JSONResponse:
    """An error in the shape that all have."""
    kind = _TYPES.get(failure.status)
    kind = kind or ("invalid_request_error" if failure.status < 500 else "server_error")
    error = {
        "type": kind,
        "code": failure.code,
        "message": failure.message,
        "param": failure.param,
    }
    return JSONResponse({"error": error}, failure.status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of an app come in that shape."""
    app.add_exception_handler(ThreadkeepError, _threadkeep_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _threadkeep_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, RunFailedError):
        # The official client would ask again by itself, and pay for the same failure three times.
        named = f"{error.failure.message} ({error.run_id})"
        return error_response(replace(error.failure, message=named), **{"x-should-retry": "false"})
    if isinstance(error, QueueFullError):
        return error_response(describe(error), **{"retry-after": RETRY_SECONDS})
    if isinstance(error, RateLimitError):
        return error_response(describe(error), **{"retry-after": str(error.retry_after)})
    if isinstance(error, ConflictError):
        return error_response(describe(error), **{"x-should-retry": "false"})
    return error_response(describe(error))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    # Of a value that may be one of several things, the one that fits furthest tells most.
    problem: dict[str, Any] = dict(max(error.errors(), key=lambda e: len(_fields(e["loc"]))))
    param = "" if problem["type"] == "json_invalid" else _dotted(_fields(problem["loc"]))
    sentence = _SENTENCES.get(problem["type"]) or f"can't be used: {problem['msg']}"
    if problem["type"] == "extra_forbidden" and request.scope["route"].path in _RUNS_AN_AGENT:
        sentence = _AGENTS_OWN
    if problem["type"] != "missing":
        sentence = _FORMS.get(param, sentence)
    message = f"{param or 'The body'} {sentence}."
    return error_response(Failure(400, problem["type"], message, param or None))


def _fields(loc: Sequence[str | int]) -> list[str | int]:
    """The path to a field, without where it was sent and which of its forms was tried."""
    return [
        part
        for part in loc[1:]
        if isinstance(part, int) or (part.isidentifier() and part not in _ALTERNATIVES)
    ]


def _dotted(path: Sequence[str | int]) -> str:
    """`input[0].role`"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    codes = {401: "unknown_user", 404: "no_such_route", 405: "method_not_allowed", 413: "too_large"}
    code = codes.get(error.status_code, "http_error")
    return error_response(
        Failure(error.status_code, code, f"{error.detail}."), **(error.headers or {})
    )
