"""`start-app` as a process: banner, options, restart, and one clear line when it can't start."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.client import (
    ask,
    client_of,
    contents,
    follow,
    session_of,
    stream,
    text_of_response,
)
from tests.fake_openai import fake_openai
from threadkeep.server.serve import _listen
from threadkeep.settings import Settings

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with fake_openai() as url:
        yield url


def variables(
    folder: Path, model_url: str = "http://127.0.0.1:9/v1", **more: str
) -> dict[str, str]:
    """The environment of a process that must not see that of the machine."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return (
        kept
        | {
            "DATABASE_URL": f"sqlite:///{folder}/app.db",
            "OPENAI_BASE_URL": model_url,
            "AGENT_MODEL": "fake",
        }
        | more
    )


@contextmanager
def started(
    *arguments: str, env: dict[str, str], command: str = "start-app", cwd: Path = ROOT
) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """Runs the command until the block ends; gives its address, its banner and the process."""
    process = subprocess.Popen(
        [BIN / command, "--port", "0", *arguments],
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        banner = ""
        while "Model" not in banner:
            line = process.stdout.readline()
            assert line, banner
            banner += line
        address = re.search(r"http://localhost:\d+", banner)
        assert address is not None, banner
        wait_until_healthy(address[0], process)
        yield address[0], banner, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def wait_until_healthy(url: str, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server ended")


def wait_until_gone(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(f"{url}/health", timeout=1)
        except httpx.TransportError:
            return
        time.sleep(0.1)
    raise AssertionError("the server did not notice")


def test_the_conversation_survives_a_kill(tmp_path: Path, model_url: str) -> None:
    """SIGKILL after the first answer; the restarted server knows what was said. Streamed too."""
    env = variables(tmp_path, model_url)
    with started(env=env) as (url, banner, process):
        assert "app.db (SQLite)" in banner
        with client_of(url) as client:
            session_id = session_of(ask(client, "Hello, I live in SF!"))
        process.kill()
        process.wait()
    with started(env=env) as (url, _, process), client_of(url) as client:
        assert "SF" in text_of_response(ask(client, "What city did I say I live in?", session_id))
        last = stream(client, "What city did I say I live in?", session_id)[-1]
        assert "SF" in text_of_response(last["response"])
        assert client.get("/").headers["content-type"].startswith("text/html")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)


def test_stopping_is_quick_and_the_next_server_goes_on(tmp_path: Path, model_url: str) -> None:
    """SIGTERM in mid-answer: the stream is cut without an end, and nothing is on stderr."""
    env = variables(tmp_path, model_url)
    with started(env=env) as (url, _, process), client_of(url) as client:
        body = {"input": "slow", "stream": True}
        with client.stream("POST", "/responses", json=body) as reply:
            lines = reply.iter_lines()
            assert next(lines) == "id: 0"
            run = json.loads(next(lines).removeprefix("data: "))["response"]
            process.send_signal(signal.SIGTERM)
            told = list(lines)
        assert not [line for line in told if "completed" in line or "DONE" in line]
        assert process.wait(20) in (0, -signal.SIGTERM)
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()
    with started(env=env) as (url, _, _), client_of(url) as client:
        *_, last = follow(client, run["id"])
        assert last["type"] == "response.completed"


def test_start_server_has_no_page(tmp_path: Path, model_url: str) -> None:
    """Nor has `start-app --no-ui`; the API is all there."""
    for command, arguments in (("start-server", ()), ("start-app", ("--no-ui",))):
        env = variables(tmp_path, model_url)
        with started(*arguments, env=env, command=command) as (url, banner, _):
            assert "API" in banner
            assert httpx.get(f"{url}/").status_code == 404
            assert httpx.get(f"{url}/docs").status_code == 200


def test_no_reply_is_held_back() -> None:
    """By the system, until more is to be sent: that takes 40 ms, of each reply and each event."""
    settings = Settings.read({"AGENT_MODEL": "x", "PORT": "0"})
    with _listen(settings) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_workers_share_sessions_and_runs(tmp_path: Path, model_url: str) -> None:
    """Whichever process a request meets: sessions go on, runs are polled, followed and queued."""
    env = variables(tmp_path, model_url)
    with started("--workers", "2", env=env) as (url, _, _process):
        session_id = "shared"
        for _ in range(6):  # new connections meet either worker
            with client_of(url) as client:
                run = ask(client, "Hello, I live in SF!", session_id, background=True)
            with client_of(url) as client:
                events = list(follow(client, run["id"]))
            assert [e["sequence_number"] for e in events] == list(range(len(events)))
            assert events[-1]["type"] == "response.completed"
            with client_of(url) as client:
                assert client.get(f"/responses/{run['id']}").json()["status"] == "completed"
        with client_of(url) as client:
            assert len(contents(client, session_id)) == 12


def test_reload_starts_anew_when_a_file_changes(tmp_path: Path, model_url: str) -> None:
    """The agent that is edited is the one that answers."""
    package = tmp_path / "agent_server"
    package.mkdir()
    for file in (ROOT / "agent_server").glob("*.py"):
        (package / file.name).write_text(file.read_text())
    env = variables(tmp_path, model_url)
    with started("--reload", env=env, cwd=tmp_path) as (url, _, process):
        agent = package / "agent.py"
        agent.write_text(agent.read_text() + "\nraise SystemExit('edited')\n")
        wait_until_gone(url)
        process.send_signal(signal.SIGTERM)


def fails(*arguments: str, env: dict[str, str], cwd: Path = ROOT) -> str:
    """Runs a command that can't start; gives the one line it says."""
    done = subprocess.run(
        [BIN / "start-app", *arguments],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_taken_port(tmp_path: Path) -> None:
    """With a way out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}" in fails("--port", port, env=variables(tmp_path))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"PORT": "http"}, "PORT"),
        ({"WORKERS": "0"}, "WORKERS"),
        ({"OPENAI_API": "telegraph"}, "OPENAI_API"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        ({"TASK_TIMEOUT_SECONDS": "-1"}, "TASK_TIMEOUT_SECONDS"),
        ({"DATABASE_URL": "mysql://u:s3cret@host/db"}, "DATABASE_URL"),
        ({"AGENT_MODEL": "local:/no/such.gguf"}, "such.gguf"),
        ({"AGENT_MODEL": "databricks/"}, "AGENT_MODEL"),
        ({"HOST": "0.0.0.0"}, "THREADKEEP_TRUST_PROXY_HEADERS"),
    ],
    ids=str,
)
def test_a_bad_setting(tmp_path: Path, setting: dict[str, str], said: str) -> None:
    """Each is named, none is printed with its secrets."""
    line = fails(env=variables(tmp_path, **setting))
    assert said in line
    assert "s3cret" not in line


def test_an_unreadable_database(tmp_path: Path) -> None:
    """A file of another kind, a folder that is not there, a schema from the future."""
    notes = tmp_path / "notes.txt"
    notes.write_text("no database" * 500)
    assert "notes.txt" in fails(env=variables(tmp_path, DATABASE_URL=f"sqlite:///{notes}"))
    nowhere = f"sqlite:///{tmp_path}/no/app.db"
    assert "folder" in fails(env=variables(tmp_path, DATABASE_URL=nowhere))
    with sqlite3.connect(tmp_path / "app.db") as future:
        future.execute("CREATE TABLE schema_migrations (version INTEGER)")
        future.execute("INSERT INTO schema_migrations VALUES (99)")
    future.close()
    assert "newer" in fails(env=variables(tmp_path))


def test_the_env_file_beside_the_app_is_read(tmp_path: Path, model_url: str) -> None:
    """The real environment comes first."""
    package = tmp_path / "agent_server"
    package.mkdir()
    for file in (ROOT / "agent_server").glob("*.py"):
        (package / file.name).write_text(file.read_text())
    (tmp_path / ".env").write_text("AGENT_MODEL=from-the-file\nWORKERS=many\n")
    env = variables(tmp_path, model_url, WORKERS="1")
    del env["AGENT_MODEL"]
    with started(env=env, cwd=tmp_path) as (_, banner, _process):
        assert "from-the-file" in banner
