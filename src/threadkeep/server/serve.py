"""From the command line to a server: settings, checks, a banner, and uvicorn."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import uvicorn
from fastapi import FastAPI

from threadkeep.connect import connect
from threadkeep.errors import SettingsError, ThreadkeepError
from threadkeep.migrate import RELEASE
from threadkeep.server.identity import check_exposure
from threadkeep.settings import Settings, load_env

STOP_SECONDS = 5
"""How long requests may go on when the server is told to stop."""


def serve(
    module: str, folder: Path, arguments: Sequence[str] | None = None, *, page: bool = True
) -> None:
    """Runs a server until it is stopped. Exits with 2 and one line when it can't start.

    Args:
        module: Holds `app` and `server`, functions that make the app with and without the page;
            named, because `--reload` and `--workers` import it in other processes.
        folder: Of the app: its `.env` is read, and it is watched by `--reload`.
        arguments: Of the command line.
        page: False: as if `--no-ui` was given.
    """
    options = _options(arguments)
    try:
        load_env(folder)
    except ThreadkeepError as error:
        _give_up(error)
    for variable in ("host", "port", "workers"):
        if getattr(options, variable) is not None:
            os.environ[variable.upper()] = str(getattr(options, variable))
    if options.port is not None:
        os.environ.pop("DATABRICKS_APP_PORT", None)
    page = page and not options.no_ui
    name = "app" if page else "server"
    try:
        settings = Settings.read(os.environ)
        check_exposure(settings)
        asyncio.run(_check_database(settings))
        app: FastAPI = getattr(importlib.import_module(module), name)()
        listener = _listen(settings)
    except ThreadkeepError as error:
        _give_up(error)
    _set_up_logs(settings)
    _print_banner(settings, app, listener, page)
    with listener:
        _run(app, f"{module}:{name}", folder, options.reload, settings, listener)


def _give_up(error: ThreadkeepError) -> NoReturn:
    print(f"start-app: {error}", file=sys.stderr)
    sys.exit(2)


def _set_up_logs(settings: Settings) -> None:
    """Ours as set; of others only what goes wrong, for they may tell hosts and contents."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in ("threadkeep", "agent_server", "uvicorn.access"):
        logging.getLogger(name).setLevel(settings.log_level)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serves the agent in agent_server/agent.py.")
    parser.add_argument("--host", help="address to listen on (HOST)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for any (PORT)")
    parser.add_argument("--workers", type=int, help="how many processes (WORKERS)")
    parser.add_argument("--no-ui", action="store_true", help="serve the API without the page")
    parser.add_argument("--reload", action="store_true", help="start anew when a file changes")
    return parser.parse_args(arguments)


async def _check_database(settings: Settings) -> None:
    database = connect(settings)
    try:
        await database.open()
    finally:
        await database.close()


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.listen_host, settings.listen_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # asyncio sees to it for sockets that it binds. Else a reply waits for 40 ms behind its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"Can't listen on {host} port {port}: {error.strerror}. "
            "Choose another with --port, or --port 0 for any."
        ) from error
    listener.set_inheritable(True)
    return listener


def _print_banner(settings: Settings, app: FastAPI, listener: socket.socket, page: bool) -> None:
    host, port = settings.listen_host, listener.getsockname()[1]
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host  # noqa: S104
    print(
        f"Threadkeep {RELEASE}\n"
        f"  {'Page ' if page else 'API  '}     http://{shown}:{port}\n"
        f"  Database  {connect(settings).description}\n"
        f"  Model     {app.state.models.name}",
        flush=True,
    )


class _Server(uvicorn.Server):
    """Ends running answers first when it is told to stop, so that their clients are told."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops runs, then connections."""
        await cast(FastAPI, self.config.app).state.runs.aclose(STOP_SECONDS)
        await super().shutdown(sockets)


def _run(
    app: FastAPI,
    import_name: str,
    folder: Path,
    reload: bool,
    settings: Settings,
    listener: socket.socket,
) -> None:
    options: dict[str, Any] = {
        "log_config": None,
        "log_level": logging.WARNING,
        "access_log": settings.log_level == "DEBUG",
        "timeout_graceful_shutdown": STOP_SECONDS,
        "server_header": False,
    }
    if reload or settings.workers > 1:
        uvicorn.run(
            import_name,
            factory=True,
            fd=listener.fileno(),
            reload=reload,
            reload_dirs=[str(folder)] if reload else None,
            workers=settings.workers,
            **options,
        )
        return
    server = _Server(uvicorn.Config(app, **options))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return
    except SystemExit:
        if not server.started:
            raise
        # A tool that calls sys.exit() ends the event loop, but not the process, whose other threads
        # would keep it and its port for ever.
        logging.getLogger("threadkeep").exception("Something called sys.exit(); the server ends")
        logging.shutdown()
        os._exit(1)
