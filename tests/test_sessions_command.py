"""`threadkeep sessions`: what the API does, in a shell, and what only who runs a server may."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from click.testing import CliRunner

from tests.backends import Backend
from tests.client import ANN, BOB, ask, client_of, contents
from tests.conftest import RunningApp, environment
from tests.test_commands import Done
from tests.workshop import Workshop
from threadkeep.commands import main

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def app(backend: Backend) -> Iterator[RunningApp]:
    """A server of one user, on whose database others come later."""
    app = RunningApp(environment(backend), tools=Workshop().tools())
    yield app
    app.model.go_on.set()
    app.stop()


@pytest.fixture
def client(app: RunningApp) -> Iterator[httpx.Client]:
    with client_of(app.url) as client:
        yield client


class Shell:
    """Runs `threadkeep sessions` in this process: starting another one takes most of its time."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables

    def run(self, *arguments: str) -> Done:
        done = CliRunner().invoke(main, ["sessions", *arguments], env=self._variables)
        return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def shell(tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Of somebody with the settings of the server's database, in a folder without any."""
    monkeypatch.chdir(tmp_path)
    for logger in (logging.getLogger(), logging.getLogger("threadkeep")):
        monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    return Shell(backend.variables)


def test_looked_at_copied_and_deleted(client: httpx.Client, shell: Shell, tmp_path: Path) -> None:
    """As the API has it; what was said can't command a terminal."""
    ask(client, "use note; say \x1b[2Jdone", "s")
    session = client.get("/sessions/s").json()
    listed, as_json = shell.run("list"), shell.run("list", "--json")
    shown, exported = shell.run("show", "s"), shell.run("export", "s")
    others = [
        shell.run(*command, "--owner", "ann")
        for command in (("show", "s"), ("export", "s"), ("fork", "s"), ("delete", "s", "--yes"))
    ]
    found, nothing = shell.run("search", "note", "2jdone"), shell.run("search", "zebra")
    forked, asked = shell.run("fork", "s", "--up-to", "1"), shell.run("delete", "s")
    assert listed[0] == 0
    assert listed[1].startswith("s  20")
    assert listed[1].endswith("4 items  use note; say [2Jdone\n")
    assert json.loads(as_json[1]) == session
    assert shown[1].splitlines()[1:] == [
        "1  user  use note; say \\x1b[2Jdone",
        "2  function_call  note({})",
        "3  function_call_output  note 1",
        "4  assistant  \\x1b[2Jdone",
    ]
    passage = "  1  use note; say \\x1b[2Jdone\n"
    assert (found, nothing) == ((0, listed[1] + passage, ""), (1, "", ""))
    assert exported == (0, client.get("/sessions/s/export").text, "")
    for code, out, error in others:
        assert (code, out) == (2, "")
        assert error.startswith("threadkeep: No such session for this owner.")
    assign = shell.run("assign", "s", "--from", "ann", "--to", "bob")
    assert assign[:2] == (1, "s: no such session of ann\n")
    assert contents(client, forked[1].strip()) == ["use note; say \x1b[2Jdone"]
    assert asked[0] != 0
    assert client.get("/sessions/s").json() == session
    assert shell.run("delete", "s", "--yes") == (0, "Deleted: s\n", "")
    assert client.get("/sessions/s").status_code == 404
    (tmp_path / "s.jsonl").write_text(exported[1])
    command = ("import", str(tmp_path / "s.jsonl"), "--owner", "ann")
    assert shell.run(*command) == (0, "Imported: s, 4 items\n", "")
    assert shell.run("export", "s", "--owner", "ann") == exported
    again = shell.run(*command)
    assert (again[:2], again[2].count("\n")) == ((2, ""), 1)
    assert "The id of this session is taken" in again[2]


def test_assigned(app: RunningApp, client: httpx.Client, shell: Shell, backend: Backend) -> None:
    """With its runs and what waits for a decision, which its new owner takes; others stay. What is
    at work is left alone."""
    done = ask(client, "say hi", "done", background=False)
    waits = ask(client, "use pay; say paid", "waits")
    [approval_id] = [i["id"] for i in waits["output"] if i["type"] == "mcp_approval_request"]
    ask(client, "hold", "busy", background=True)
    ask(client, "say hi", "other")
    code, out, _ = shell.run("assign", "done", "waits", "busy", "none", "--to", "ann")
    assert code == 1
    assert sorted(out.splitlines()) == [
        "busy: a turn is at work, left alone",
        "done: ann's now, with 2 items, 1 runs, 0 approvals",
        "none: no such session of nobody",
        "waits: ann's now, with 3 items, 1 runs, 1 approvals",
    ]
    app.model.go_on.set()
    place = environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1")
    shared = RunningApp(place, tools=Workshop().tools())
    with client_of(shared.url, **ANN) as ann, client_of(shared.url, **BOB) as bob:
        assert {s["id"] for s in ann.get("/sessions").json()["data"]} == {"done", "waits"}
        assert ann.get(f"/responses/{done['id']}").json()["output"] == done["output"]
        reply = ann.post(f"/approvals/{approval_id}", json={"approve": True})
        assert reply.is_success
        assert contents(ann, "done") == ["say hi", "hi"]
        assert bob.get("/sessions/done").status_code == 404
        moved = shell.run("assign", "done", "--from", "ann", "--to", "bob")
        assert moved == (0, "done: bob's now, with 2 items, 1 runs, 0 approvals\n", "")
        assert ann.get("/sessions/done").status_code == 404
        assert ann.get(f"/responses/{done['id']}").status_code == 404
        assert contents(bob, "done") == ["say hi", "hi"]
    shared.stop()
    assert client.get("/sessions/done").status_code == 404
    assert {s["id"] for s in client.get("/sessions").json()["data"]} == {"busy", "other"}


def test_keys_of_requests_do_not_collide(
    client: httpx.Client, shell: Shell, backend: Backend
) -> None:
    """Two who used the same Idempotency-Key may come to have the same owner."""
    key = {"Idempotency-Key": "k"}
    client.headers.update(key)
    ask(client, "say hi", "s")
    assert shell.run("assign", "s", "--to", "ann")[0] == 0
    ask(client, "say hi", "t")
    code, out, _ = shell.run("assign", "t", "--to", "ann")
    assert (code, out) == (0, "t: ann's now, with 2 items, 1 runs, 0 approvals\n")
