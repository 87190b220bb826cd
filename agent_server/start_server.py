"""Puts the agent and the server together."""

import os
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI

from agent_server.agent import create_agent, get_session_id
from threadkeep.server import create_app, serve
from threadkeep.settings import Settings

FOLDER = Path(__file__).parent.parent


def app() -> FastAPI:
    """The API with the page."""
    return create_app(create_agent, get_session_id, Settings.read(os.environ))


def server() -> FastAPI:
    """The API alone."""
    return create_app(create_agent, get_session_id, Settings.read(os.environ), page=False)


def main(arguments: Sequence[str] | None = None, *, page: bool = True) -> None:
    """Serve until stopped; `start-app` and `start-server` call this."""
    serve(__name__, FOLDER, arguments, page=page)
