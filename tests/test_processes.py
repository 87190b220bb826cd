"""Two servers on one database, as two processes are: each sees the runs of the other."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tests.backends import Backend
from tests.client import ask, client_of, contents, follow, session_of, text_of_response
from tests.conftest import RunningApp, environment
from tests.workshop import silence


@pytest.fixture
def apps(backend: Backend) -> Iterator[tuple[RunningApp, RunningApp]]:
    apps = RunningApp(environment(backend)), RunningApp(environment(backend))
    yield apps
    for app in apps:
        app.model.go_on.set()
        app.stop()


@pytest.fixture
def here(apps: tuple[RunningApp, RunningApp]) -> Iterator[httpx.Client]:
    with client_of(apps[0].url) as client:
        yield client


@pytest.fixture
def there(apps: tuple[RunningApp, RunningApp]) -> Iterator[httpx.Client]:
    with client_of(apps[1].url) as client:
        yield client


def until_it_speaks(client: httpx.Client, response_id: str) -> None:
    for event in follow(client, response_id):
        if event["type"] == "response.output_text.delta":
            return


def test_a_run_is_polled_followed_and_stopped_from_elsewhere(
    here: httpx.Client, there: httpx.Client
) -> None:
    """It is whole from its first moment on."""
    run = ask(here, "hold", background=True)
    seen = there.get(f"/responses/{run['id']}").json()
    assert (seen["id"], seen["status"]) == (run["id"], "in_progress")
    assert session_of(seen) == session_of(run)
    until_it_speaks(there, run["id"])
    stopped = there.post(f"/responses/{run['id']}/cancel").json()
    assert (stopped["status"], text_of_response(stopped)) == ("cancelled", "Holding ")
    assert list(follow(there, run["id"])) == list(follow(here, run["id"]))
    assert contents(there, session_of(run)) == ["hold", "Holding "]


def test_turns_queue_over_processes_in_their_order(
    apps: tuple[RunningApp, RunningApp], here: httpx.Client, there: httpx.Client
) -> None:
    """A background turn elsewhere is queued at once, and comes before a later one here."""
    ask(here, "hold", "s", background=True)
    second = ask(there, "say second", "s", background=True)
    third = ask(here, "say third", "s", background=True)
    assert (second["status"], third["status"]) == ("queued", "queued")
    assert here.get(f"/responses/{second['id']}").json()["status"] == "queued"
    apps[0].model.go_on.set()
    for run in (second, third):
        *_, last = follow(here, run["id"])
        assert last["type"] == "response.completed"
    said = ["hold", "Holding no more.", "say second", "second", "say third", "third"]
    assert contents(here, "s") == said


def test_what_is_deleted_elsewhere_stays_deleted(here: httpx.Client, there: httpx.Client) -> None:
    """The run notices, stops, and writes nothing more; its followers are told."""
    run = ask(here, "count 2000", "s", background=True)
    events = follow(here, run["id"])
    while next(events)["type"] != "response.output_text.delta":
        continue
    assert there.delete("/sessions/s").status_code == 200
    *_, last = events
    assert last["response"]["status"] in ("failed", "cancelled")
    assert here.get("/sessions/s").status_code == 404


def test_a_run_that_was_taken_for_dead_writes_nothing_more(
    apps: tuple[RunningApp, RunningApp], here: httpx.Client, there: httpx.Client, backend: Backend
) -> None:
    """Another process goes on with it, under the same id; its followers hear of nothing else."""
    run = ask(here, "linger mine", "s", background=True)
    until_it_speaks(here, run["id"])
    while not apps[1].model.inputs:
        silence(backend, run["id"])  # again and again: it does give signs of life
    apps[0].model.go_on.set()
    apps[1].model.go_on.set()
    told = list(follow(here, run["id"]))
    assert told == list(follow(there, run["id"]))
    assert "threadkeep.resumed" in [event["type"] for event in told]
    assert told[-1]["response"]["status"] == "completed"
    assert text_of_response(told[-1]["response"]) == "mine"
    assert contents(there, "s") == ["linger mine", "mine"]


def test_a_run_that_can_not_be_made_again_fails(
    apps: tuple[RunningApp, RunningApp], here: httpx.Client, there: httpx.Client, backend: Backend
) -> None:
    """A request of a release that nobody knows any more; its session is free."""
    run = ask(here, "hold", "s", background=True)
    until_it_speaks(here, run["id"])
    backend.execute("UPDATE threadkeep.runs SET request = '[]'")
    while there.get(f"/responses/{run['id']}").json()["status"] == "in_progress":
        silence(backend, run["id"])
    *_, last = follow(there, run["id"])
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "agent_error")
    assert there.get("/sessions/s").status_code == 404
