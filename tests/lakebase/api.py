"""The workspace API over HTTP, as databricks-sdk calls it; errors have Databricks' shape too."""

from __future__ import annotations

import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests import fake_openai
from tests.lakebase.workspace import BRANCH, Part, Workspace

_ERROR_CODES = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
}


class _Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def workspace_api(workspace: Workspace) -> FastAPI:
    """The app of a workspace."""

    async def seen(request: Request) -> None:
        workspace.calls.append((request.method, request.url.path))

    app = FastAPI(dependencies=[Depends(seen)], openapi_url=None)
    app.add_exception_handler(_Refusal, _refused)
    _add_sign_in(app, workspace)
    _add_lakebase(app, workspace)
    _add_chat(app, workspace)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def unknown(path: str, request: Request) -> None:
        raise _Refusal(404, f"No API found for '{request.method} /{path}'")

    return app


def _add_sign_in(app: FastAPI, workspace: Workspace) -> None:
    @app.get("/.well-known/databricks-config")
    async def config(request: Request) -> dict[str, str]:
        return {
            "oidc_endpoint": f"{request.base_url}oidc",
            "account_id": "11111111-2222-3333-4444-555555555555",
            "workspace_id": "1234567890123456",
            "cloud": "AWS",
        }

    @app.get("/oidc/.well-known/oauth-authorization-server")
    async def discovery(request: Request) -> dict[str, str]:
        return {
            "issuer": f"{request.base_url}oidc",
            "authorization_endpoint": f"{request.base_url}oidc/v1/authorize",
            "token_endpoint": f"{request.base_url}oidc/v1/token",
        }

    @app.post("/oidc/v1/token")
    async def token(request: Request) -> Response:
        form = await request.body()
        if b"grant_type=client_credentials" not in form or b"scope=" not in form:
            return JSONResponse({"error": "invalid_request"}, 400)
        if status := workspace.refusal("oauth"):
            return JSONResponse({"error": "access_denied"}, status)
        secret = workspace.sign_in(_basic(request))
        if secret is None:
            why = "Client authentication failed"
            return JSONResponse({"error": "invalid_client", "error_description": why}, 401)
        life = int(workspace.workspace_token_seconds)
        return JSONResponse(
            {
                "access_token": secret,
                "token_type": "Bearer",
                "expires_in": life,
                "scope": "all-apis",
            }
        )

    whoever = _caller(workspace, "me")

    @app.get("/api/2.0/preview/scim/v2/Me")
    async def me(caller: str = whoever) -> dict[str, Any]:
        return {"id": "1", "userName": caller, "displayName": caller, "active": True}


def _add_lakebase(app: FastAPI, workspace: Workspace) -> None:
    lists_instances = [_caller(workspace, "instances")]
    lists_endpoints = [_caller(workspace, "endpoints")]
    minter = _caller(workspace, "credentials")

    @app.get("/api/2.0/database/instances", dependencies=lists_instances)
    async def instances(page_size: int = 2, page_token: str = "0") -> dict[str, Any]:
        return _page("database_instances", workspace.instances, page_size, page_token)

    @app.get("/api/2.0/database/instances/{name}", dependencies=lists_instances)
    async def instance(name: str) -> dict[str, Any]:
        return _named(name, workspace.instances)

    @app.post("/api/2.0/database/credentials")
    async def credential(request: Request, caller: str = minter) -> dict[str, str]:
        body = await _body(request, "instance_names", "request_id")
        if not body.get("instance_names"):
            raise _Refusal(400, "At least one of instance_names or claims must be specified.")
        for name in body["instance_names"]:
            _named(name, workspace.instances)
        secret, expires = await workspace.mint(caller)
        return {"token": secret, "expiration_time": _rfc3339(expires)}

    @app.get(f"/api/2.0/postgres/{BRANCH}/endpoints", dependencies=lists_endpoints)
    async def endpoints(page_size: int = 1, page_token: str = "0") -> dict[str, Any]:
        return _page("endpoints", workspace.endpoints, page_size, page_token)

    @app.get("/api/2.0/postgres/projects/{rest:path}", dependencies=lists_endpoints)
    async def endpoint(rest: str) -> dict[str, Any]:
        return _named(f"projects/{rest}", workspace.endpoints)

    @app.post("/api/2.0/postgres/credentials")
    async def endpoint_credential(request: Request, caller: str = minter) -> dict[str, str]:
        body = await _body(request, "endpoint")
        _named(body.get("endpoint", ""), workspace.endpoints)
        secret, expires = await workspace.mint(caller)
        return {"token": secret, "expire_time": _rfc3339(expires)}


def _add_chat(app: FastAPI, workspace: Workspace) -> None:
    @app.post("/serving-endpoints/chat/completions", dependencies=[_caller(workspace, "chat")])
    async def chat(request: Request) -> Response:
        answer = await fake_openai.chat_completions(request)
        if (await request.json()).get("stream"):
            return answer
        chunks = [
            json.loads(str(line).removeprefix("data: "))
            async for line in answer.body_iterator
            if "[DONE]" not in str(line)
        ]
        said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(chunks[-1] | {"object": "chat.completion", "choices": [choice]})


def _caller(workspace: Workspace, part: Part) -> Any:
    """Whose token comes with a request; refused without one, or when the part is."""

    async def known(request: Request) -> str:
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        caller = workspace.caller(bearer) if scheme == "Bearer" else None
        if caller is None:
            raise _Refusal(
                401, "Credential was not sent or was of an unsupported type for this API."
            )
        if status := workspace.refusal(part):
            raise _Refusal(status, f"{caller} is refused {part}.")
        return caller

    return Depends(known)


def _basic(request: Request) -> tuple[str, str]:
    encoded = request.headers.get("Authorization", "").removeprefix("Basic ")
    client_id, _, secret = b64decode(encoded).decode().partition(":")
    return client_id, secret


def _page(field: str, items: list[dict[str, Any]], size: int, token: str) -> dict[str, Any]:
    if not 1 <= size <= 100 or not token.isdecimal():
        raise _Refusal(400, "page_size or page_token is invalid.")
    end = int(token) + size
    page: dict[str, Any] = {field: items[int(token) : end]}
    return page | ({"next_page_token": str(end)} if end < len(items) else {})


def _named(name: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    for item in items:
        if item.get("name") == name:
            return item
    raise _Refusal(404, f"'{name}' not found.")


async def _body(request: Request, *known: str) -> dict[str, Any]:
    body: dict[str, Any] = await request.json()
    if strange := body.keys() - set(known):
        raise _Refusal(400, f"The stand-in does not know {', '.join(sorted(strange))}.")
    return body


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, _Refusal)
    code = _ERROR_CODES.get(error.status, "INTERNAL_ERROR")
    return JSONResponse({"error_code": code, "message": str(error)}, error.status)
