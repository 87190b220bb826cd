"""The commands. `start-app` and `start-server` serve the `agent_server` of the working folder."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys


def start_app() -> None:
    """Serves the agent with its page."""
    _start(page=True)


def start_server() -> None:
    """Serves the agent without the page."""
    _start(page=False)


def _start(*, page: bool) -> None:
    sys.path.insert(0, os.getcwd())
    if importlib.util.find_spec("agent_server") is None:
        print(
            "start-app: there is no agent_server/ in this folder. Change to the folder of your "
            "app, or clone the project to start one.",
            file=sys.stderr,
        )
        sys.exit(2)
    importlib.import_module("agent_server.start_server").main(page=page)
