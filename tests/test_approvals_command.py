"""`threadkeep approvals`: calls that wait, seen and decided in a shell beside a running server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.backends import Backend, Postgres, SQLite, new_postgres
from tests.client import Json, ask, client_of, follow, text_of_response
from tests.conftest import RunningApp, environment
from tests.test_commands import Folder, settings_of
from tests.workshop import Workshop, until
from threadkeep.run_log import LOST_AFTER_MS

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

GOES_ON = "A running server goes on with its turn, within a few seconds.\n"


@pytest.fixture
def shop() -> Workshop:
    return Workshop()


@pytest.fixture
def app(backend: Backend, shop: Workshop) -> Iterator[RunningApp]:
    """A server behind a proxy that says who asks."""
    app = RunningApp(environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1"), tools=shop.tools())
    yield app
    app.stop()


@pytest.fixture
def ann(app: RunningApp) -> Iterator[httpx.Client]:
    with client_of(app.url, **{"X-Forwarded-User": "ann"}) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path, backend: Backend) -> Folder:
    """Of somebody with a shell and the settings of the server's database."""
    return Folder(tmp_path / "folder", **settings_of(backend))


def wait(client: httpx.Client, text: str = "use pay; say done", session_id: str = "s") -> list[str]:
    """Has calls wait for their approval; gives the approvals' ids."""
    output = ask(client, text, session_id)["output"]
    return [item["id"] for item in output if item["type"] == "mcp_approval_request"]


def end_of_turn(client: httpx.Client, approval_id: str) -> Json:
    """What the server makes of the turn, by itself."""

    def gone_on() -> str | None:
        run_id: str | None = client.get(f"/approvals/{approval_id}").json()["response_id"]
        return run_id

    until(gone_on)
    *_, last = follow(client, gone_on() or "")
    response: Json = last["response"]
    return response


def outputs(client: httpx.Client) -> list[str]:
    items = client.get("/sessions/s/items").json()["data"]
    return [item["output"] for item in items if item["type"] == "function_call_output"]


def test_listed_and_approved(ann: httpx.Client, folder: Folder, shop: Workshop) -> None:
    """What waits is listed, and what GET shows; the server goes on with what is approved."""
    [approval_id] = wait(ann)
    listed, as_json, nobodys, over = folder.run_each(
        "approvals list --owner ann",
        "approvals list --owner ann --json",
        "approvals list",
        "approvals list --owner ann --status approved",
    )
    assert (listed[0], listed[2], listed[1].count("\n")) == (0, "", 1)
    assert listed[1].startswith(f"{approval_id}  pending  pay({{}})  session s  until 20")
    assert json.loads(as_json[1]) == ann.get(f"/approvals/{approval_id}").json()
    assert nobodys == (0, "None is pending.\n", "")
    assert over == (0, "None is approved.\n", "")
    said = folder.run("approvals", "approve", approval_id, "--owner", "ann", "--reason", "fine")
    assert said == (0, f"Approved: pay\n{GOES_ON}", "")
    began = time.monotonic()
    ended = end_of_turn(ann, approval_id)
    assert time.monotonic() - began < LOST_AFTER_MS / 1000, "as if its server had been lost"
    assert (ended["status"], text_of_response(ended)) == ("completed", "done")
    assert shop.done == {"pay": 1}
    assert ann.get(f"/approvals/{approval_id}").json()["reason"] == "fine"
    everything = folder.run("approvals", "list", "--owner", "ann", "--status", "all")
    assert everything[1].startswith(f"{approval_id}  approved  ")


def test_rejected(ann: httpx.Client, folder: Folder, shop: Workshop) -> None:
    """The model is told why, and goes on."""
    [approval_id] = wait(ann)
    said = folder.run("approvals", "reject", approval_id, "--owner", "ann", "--reason", "too much")
    assert said == (0, f"Rejected: pay\n{GOES_ON}", "")
    assert text_of_response(end_of_turn(ann, approval_id)) == "done"
    assert outputs(ann) == ["too much"]
    assert shop.done == {}


def test_the_turn_waits_for_all_its_calls(
    ann: httpx.Client, folder: Folder, shop: Workshop
) -> None:
    """So the command says which are left."""
    first, second = wait(ann, "use pay lend; say done")
    said = folder.run("approvals", "approve", first, "--owner", "ann")
    assert said == (
        0,
        f"Approved: pay\nIts turn waits for a decision about {second} as well.\n",
        "",
    )
    assert shop.done == {}
    assert folder.run("approvals", "reject", second, "--owner", "ann")[1].endswith(GOES_ON)
    assert text_of_response(end_of_turn(ann, first)) == "done"
    assert shop.done == {"pay": 1}


def test_always(ann: httpx.Client, folder: Folder, shop: Workshop) -> None:
    """Neither now nor later is anybody asked for that tool in that session."""
    first, _ = wait(ann, "use pay pay; use pay; say done")
    said = folder.run("approvals", "approve", first, "--owner", "ann", "--always")
    assert said == (0, f"Approved: pay\n{GOES_ON}", "")
    assert text_of_response(end_of_turn(ann, first)) == "done"
    assert shop.done == {"pay": 3}
    assert wait(ann, "use pay; say done") == []


def test_what_can_not_be_decided(backend: Backend, ann: httpx.Client, folder: Folder) -> None:
    """Says why in a line, with exit code 2."""
    [decided] = wait(ann, session_id="decided")
    [closed] = wait(ann, session_id="closed")
    [expired] = wait(ann, session_id="expired")
    assert ann.post(f"/approvals/{decided}", json={"approve": False}).is_success
    ask(ann, "say else", "closed")
    then = "0" if isinstance(backend, SQLite) else "now()"
    backend.execute(
        f"UPDATE threadkeep.approvals SET expires_at = {then} WHERE approval_id = '{expired}'"
    )
    unknown, others, *said = folder.run_each(
        "approvals approve nothing --owner ann",
        f"approvals approve {decided}",
        f"approvals approve {decided} --owner ann",
        f"approvals approve {closed} --owner ann",
        f"approvals reject {expired} --owner ann",
        f"approvals approve {decided} --reason {'x' * 2001} --owner ann",
    )
    assert unknown == others
    for outcome, words in zip(
        [unknown, *said],
        ["No such approval", "decided before", "has gone on", "in time", "2000 characters"],
        strict=True,
    ):
        assert (outcome[:2], outcome[2].count("\n")) == ((2, ""), 1)
        assert outcome[2].startswith("threadkeep: ")
        assert words in outcome[2]


def test_what_a_model_wrote_stays_off_the_terminal(
    backend: Backend, ann: httpx.Client, folder: Folder
) -> None:
    """As commands to it: it is shown as what it is."""
    [approval_id] = wait(ann)
    call = json.dumps({"agent": "A", "name": "pay", "call_id": "c", "arguments": "\x1b[2J\n\u202e"})
    backend.execute(f"UPDATE threadkeep.approvals SET call = '{call}'")
    code, out, _ = folder.run("approvals", "list", "--owner", "ann")
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith(f"{approval_id}  pending  pay(\\x1b[2J\\n\\u202e)  session s")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, backend: Backend) -> None:
    """Nor one changed that is not up to date."""
    if isinstance(backend, Postgres):
        backend = new_postgres(backend.server, bare=True)
    folder = Folder(tmp_path / "other", **settings_of(backend))
    for outcome in folder.run_each("approvals list", "approvals approve x"):
        assert outcome[:2] == (2, "")
        assert "Run first: threadkeep migrate" in outcome[2]
    if isinstance(backend, SQLite):
        assert not backend.file.exists()
