"""Servers for test_replicas.py, forked from a parent that has everything imported.

    python -m tests.replica DATABASE_URL MARKS LOST_AFTER_MS

Each line on its standard input is a port; it starts a server there and answers with its process id.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from agents import Agent

from agent_server.agent import get_session_id
from threadkeep.run_request import Limits
from threadkeep.server import AgentContext, create_app
from threadkeep.settings import Settings
from threadkeep.testing.crash_process import warm_up
from threadkeep.testing.crash_world import Marks, Points, World


def serve(port: int, url: str, marks: Path, lost_after_ms: int) -> None:
    """Serves until it is killed."""
    world = World(Marks(marks, os.getpid()), Points(lambda message: None), pace=0.02)

    def create_agent(context: AgentContext) -> Agent[Any]:
        return world.agent()

    settings = Settings.read(
        {"DATABASE_URL": url, "AGENT_MODEL": "fake", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    )
    # Whoever kills a process every second kills one that works on a certain run more than 10 times.
    limits = Limits(settings.task_timeout_seconds, lost_after_ms=lost_after_ms, attempts=1000)
    app = create_app(create_agent, get_session_id, settings, limits=limits)
    uvicorn.run(app, port=port, log_config=None, log_level="error")


def main() -> None:
    url, marks, lost_after_ms = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    logging.getLogger("threadkeep").setLevel(logging.ERROR)  # warnings of lost runs are many here
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(warm_up(Path(folder)))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.buffer.readline():
        pid = os.fork()
        if pid == 0:
            serve(int(line), url, marks, lost_after_ms)
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
