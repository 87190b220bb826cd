"""The page, and the reference of the API: files and HTML from this server alone."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

from threadkeep.server.markdown import render

router = APIRouter(include_in_schema=False)
docs_router = APIRouter(include_in_schema=False)

_FOLDER = files("threadkeep.server").joinpath("page")
_TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
}


@router.get("/")
async def index() -> FileResponse:
    """The chat."""
    return _file("index.html")


@docs_router.get("/page/{name}")
async def asset(name: str) -> FileResponse:
    """What the chat is made of."""
    return _file(name)


@router.get("/favicon.ico")
async def favicon() -> FileResponse:
    """The icon, for browsers that ask for it by this name."""
    return _file("favicon.svg")


@docs_router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Every call of the API, from its OpenAPI document."""
    return HTMLResponse(_reference(request.app))


def _file(name: str) -> FileResponse:
    names = {entry.name for entry in _FOLDER.iterdir()}
    kind = _TYPES.get(name.rpartition(".")[2])
    if name not in names or kind is None:
        raise HTTPException(404, "There is no such file")
    # Revalidated each time: an upgrade must not meet yesterday's script.
    return FileResponse(
        str(_FOLDER.joinpath(name)), media_type=kind, headers={"cache-control": "no-cache"}
    )


def _reference(app: FastAPI) -> str:
    document = app.openapi()
    calls = "".join(
        _call(method, path, operation, document["components"]["schemas"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(document['info']['title'])} API</title>"
        '<link rel="stylesheet" href="/page/docs.css"><main>'
        f"<h1>{escape(document['info']['title'])} API</h1>"
        '<p>The machine-readable form is at <a href="/openapi.json">/openapi.json</a>.</p>'
        f"{calls}</main></html>"
    )


def _call(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    fields: list[tuple[str, str, str]] = [
        (p["name"], p["in"], p.get("description", "")) for p in operation.get("parameters", [])
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        references = [s["$ref"] for s in schema.get("anyOf", [schema]) if "$ref" in s]
        for reference in references:  # of a body that may be left out too
            properties = schemas[reference.rpartition("/")[2]]["properties"]
            fields += [(name, "body", p.get("description", "")) for name, p in properties.items()]
        if not references:
            fields.append((kind, "body", "The body as a whole."))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{where}<td>{escape(meaning)}"
        for name, where, meaning in fields
    )
    table = f"<table><tr><th>Parameter<th>In<th>Meaning{rows}</table>" if rows else ""
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"{''.join(render(operation.get('description', '')))}{table}</section>"
    )
