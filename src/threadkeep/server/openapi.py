"""The OpenAPI document: what FastAPI makes of the routes, with what they answer in earnest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from threadkeep.approvals import Status

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_NUMBER: Schema = {"type": "integer"}
_NUMBER_OR_NULL: Schema = {"type": ["integer", "null"]}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_EVENT: Schema = {
    "type": "object",
    "properties": {"id": _TEXT, "data": _TEXT},
    "required": ["data"],
}
_RUN_STATUS = ["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]


def _object(kind: str | None = None, /, **fields: Schema) -> Schema:
    """An object that has all of these fields; `kind` is what its `object` says."""
    if kind is not None:
        fields = {"object": {"const": kind}} | fields
    return {"type": "object", "properties": fields, "required": list(fields)}


def _list(of: str) -> Schema:
    data = {"type": "array", "items": _ref(of)}
    ends = {"first_id": _TEXT_OR_NULL, "last_id": _TEXT_OR_NULL, "has_more": _FLAG}
    return _object("list", data=data, **ends)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_SESSION = _object(
    "session",
    id=_TEXT,
    title=_TEXT_OR_NULL,
    metadata=_OBJECT,
    parent_session_id=_TEXT_OR_NULL,
    active_response_id=_TEXT_OR_NULL,
    always_approve={"type": "array", "items": _OBJECT},
    item_count=_NUMBER,
    temporary=_FLAG,
    created_at=_NUMBER,
    updated_at=_NUMBER,
    expires_at=_NUMBER_OR_NULL,
)

_SOURCE = _object(session_id=_TEXT, seq=_NUMBER_OR_NULL)

_MEMORY = _object(
    "memory",
    id=_TEXT,
    path=_TEXT,
    description=_TEXT,
    contents=_TEXT,
    keywords={"type": "array", "items": _TEXT},
    pinned=_FLAG,
    version=_NUMBER,
    source={"anyOf": [_SOURCE, {"type": "null"}]},
    created_at=_NUMBER,
    updated_at=_NUMBER,
    valid_from=_NUMBER,
    valid_to=_NUMBER_OR_NULL,
    superseded_by=_TEXT_OR_NULL,
)

_MEMORY_VERSION = _object(
    version=_NUMBER,
    description=_TEXT,
    contents=_TEXT,
    source={"anyOf": [_SOURCE, {"type": "null"}]},
    valid_from=_NUMBER,
    valid_to=_NUMBER,
    superseded_by=_NUMBER,
)

_SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        error=_object(type=_TEXT, code=_TEXT, message=_TEXT, param=_TEXT_OR_NULL),
    ),
    "Response": _object(
        "response",
        id=_TEXT,
        created_at=_NUMBER,
        status={"enum": _RUN_STATUS},
        background=_FLAG,
        error={"type": ["object", "null"]},
        incomplete_details={"type": ["object", "null"]},
        metadata=_OBJECT,
        model=_TEXT,
        output={"type": "array", "items": _OBJECT},
        previous_response_id=_TEXT_OR_NULL,
        conversation=_object(id=_TEXT),
        store=_FLAG,
        usage={"type": ["object", "null"]},
        custom_outputs=_object(session_id=_TEXT),
    ),
    "Session": _SESSION,
    "SessionList": _list("Session"),
    "RewoundSession": {"allOf": [_ref("Session"), _object(fork_id=_TEXT)]},
    "DeletedSession": _object("session.deleted", id=_TEXT, deleted=_FLAG),
    "Item": _object(
        id=_TEXT, type=_TEXT, seq=_NUMBER, response_id=_TEXT_OR_NULL, created_at=_NUMBER
    ),
    "ItemList": _list("Item"),
    "Memory": _MEMORY,
    "MemoryList": _list("Memory"),
    "MemoryWithHistory": {
        "allOf": [_ref("Memory"), _object(history={"type": "array", "items": _MEMORY_VERSION})]
    },
    "DeletedMemory": _object("memory.deleted", id=_TEXT, deleted=_FLAG),
    "Approval": _object(
        "approval",
        id=_TEXT,
        kind={"enum": ["in_doubt", "needs_approval"]},
        status={"enum": list(get_args(Status))},
        agent=_TEXT_OR_NULL,
        name=_TEXT,
        arguments=_TEXT,
        call_id=_TEXT_OR_NULL,
        message=_TEXT,
        reason=_TEXT_OR_NULL,
        always_approve=_FLAG,
        session_id=_TEXT,
        previous_response_id=_TEXT,
        response_id=_TEXT_OR_NULL,
        created_at=_NUMBER,
        decided_at=_NUMBER_OR_NULL,
        expires_at=_NUMBER,
    ),
    "ApprovalList": _list("Approval"),
    "State": _object(status=_TEXT, model=_TEXT, message=_TEXT),
}

_RESULTS = {  # by path, or by method and path where one differs
    "/invocations": "Response",
    "/responses": "Response",
    "/responses/{response_id}": "Response",
    "/responses/{response_id}/cancel": "Response",
    "/sessions": "SessionList",
    "/sessions/{session_id}": "Session",
    "DELETE /sessions/{session_id}": "DeletedSession",
    "/sessions/{session_id}/fork": "Session",
    "/sessions/{session_id}/rewind": "RewoundSession",
    "/sessions/import": "Session",
    "/sessions/{session_id}/items": "ItemList",
    "/memories": "MemoryList",
    "POST /memories": "Memory",
    "/memories/{memory_id}": "MemoryWithHistory",
    "PATCH /memories/{memory_id}": "Memory",
    "DELETE /memories/{memory_id}": "DeletedMemory",
    "/approvals": "ApprovalList",
    "/approvals/{approval_id}": "Approval",
    "/ready": "State",
}
_STREAMED = {"/invocations", "/responses", "/responses/{response_id}"}
_OPEN = {"/health", "/ready", "/agent/info"}

_MEANINGS = {
    400: "Something in the request can't be used; `param` says what.",
    401: "Nothing says who asks.",
    403: "Another site, or another name than this server's.",
    404: "There is no such thing of this owner.",
    409: "Something else came first, or is at work.",
    413: "The request, a message or an item is too large.",
    422: "It can't be done as things are: the session is full, or half of a turn is missing.",
    429: "Too many at once. `Retry-After` says when to come back.",
    500: "The agent's code failed.",
    502: "The model failed; the message names the response.",
    503: "The database, or the server, is not there for now.",
    504: "The answer took too long.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an app, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = made["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas.update(_SCHEMAS)
        for path, operations in made["paths"].items():
            for method, operation in operations.items():
                _describe(path, method, operation)
        app.openapi_schema = made
    return app.openapi_schema


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    content = responses["200"].setdefault("content", {})
    result = _RESULTS.get(f"{method.upper()} {path}", _RESULTS.get(path))
    if result is not None:
        content["application/json"] = {"schema": _ref(result)}
    if path in _STREAMED:
        content["text/event-stream"] = {"schema": _EVENT}
    if path == "/responses/{response_id}":
        responses["204"] = {"description": "There are no more events."}
    for status in sorted(set(_errors(path, method, operation))):
        shape = "State" if (path, status) == ("/ready", 503) else "Error"
        schema = _ref(shape) if shape == "Error" else {"anyOf": [_ref(shape), _ref("Error")]}
        responses[str(status)] = {
            "description": _MEANINGS[status],
            "content": {"application/json": {"schema": schema}},
        }


def _errors(path: str, method: str, operation: dict[str, Any]) -> Iterator[int]:
    """What can go wrong."""
    yield 403
    yield 413  # a body is counted, wanted or not
    if path in _OPEN:
        if path == "/ready":
            yield 503
        return
    yield from (400, 401, 503)
    if "{" in path:
        yield 404
    if path in ("/responses", "/invocations"):
        yield from (404, 409, 422, 429, 500, 502, 504)
    elif method == "post" or (path, method) == ("/memories/{memory_id}", "patch"):
        yield 409
    if path == "/sessions/import":
        yield 422
    if path == "/approvals/{approval_id}" and method == "post":
        yield from (429, 500)
