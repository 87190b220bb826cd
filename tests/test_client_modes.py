"""The official `openai` client in all its documented modes, while servers die in the middle.

Source of the modes: https://platform.openai.com/docs/guides/background
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai.types.responses import Response

from tests.backends import Backend
from tests.client import Json, ask, client_of, contents, follow
from tests.conftest import RunningApp, environment
from tests.workshop import Workshop, move, until

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

TEXT = "use note; hold on"
"""A turn that has called a tool and is speaking when its server dies."""

SAID = "Holding no more."
EXTRA: Any = {"custom_inputs": {"session_id": "s"}}


@pytest.fixture
def shop() -> Workshop:
    """The tools of both servers."""
    return Workshop()


@pytest.fixture
def apps(backend: Backend, shop: Workshop) -> Iterator[list[RunningApp]]:
    """Two servers on one database."""
    apps = [RunningApp(environment(backend), tools=shop.tools()) for _ in range(2)]
    yield apps
    for app in apps:
        app.model.go_on.set()
        app.stop()


@pytest.fixture
def sent() -> list[str]:
    """The requests that `client` has sent, each as its method."""
    return []


@pytest.fixture
def client(apps: list[RunningApp], sent: list[str]) -> Iterator[openai.OpenAI]:
    """Of the server where turns begin."""
    hooks = {"request": [lambda request: sent.append(request.method)]}
    with (
        openai.DefaultHttpxClient(event_hooks=hooks) as http,
        openai.OpenAI(base_url=apps[0].url, api_key="none", http_client=http) as client,
    ):
        yield client


@pytest.fixture
def there(apps: list[RunningApp]) -> Iterator[openai.OpenAI]:
    """Of the other one."""
    with openai.OpenAI(base_url=apps[1].url, api_key="none") as client:
        yield client


class Death:
    """Lets the first server die for a run, once it speaks, and the other one speak to its end."""

    def __init__(self, apps: list[RunningApp], backend: Backend) -> None:
        self._apps, self._backend = apps, backend

    def strike(self) -> None:
        """Takes the run of the session over. Its first process lives on and must be silent."""
        with client_of(self._apps[1].url) as look:
            until(lambda: self._apps[0].model.inputs[1:])
            run_id = look.get("/sessions/s").json()["active_response_id"]
            until_it_speaks(look, run_id)
        move(self._backend, run_id, self._apps[1])
        until(lambda: self._apps[1].model.inputs)
        for app in self._apps:
            app.model.go_on.set()


@pytest.fixture
def death(apps: list[RunningApp], backend: Backend) -> Death:
    return Death(apps, backend)


def until_it_speaks(client: httpx.Client, run_id: str) -> None:
    for event in follow(client, run_id):
        if event["type"] == "response.output_text.delta":
            return


def through(events: Iterator[Any], death: Death) -> list[Any]:
    """All events of a stream, whose server dies at the first word."""
    seen, alive = [], True
    for event in events:
        seen.append(event)
        if alive and event.type == "response.output_text.delta":
            alive = False
            death.strike()
    return seen


def check(events: Sequence[Any], first: int = 0) -> None:
    """One stream: numbered without a gap, resumed once, with one end that sums it up."""
    kinds = [event.type for event in events]
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(first, first + len(events)))
    assert kinds.count("threadkeep.resumed") == 1
    assert kinds.count("response.created") == (first == 0)
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.completed") == 1
    check_answer(events[-1].response)
    void = set(events[kinds.index("threadkeep.resumed")].voided)
    done = {
        event.output_index: event.item.id
        for event in events
        if event.type == "response.output_item.done" and event.output_index not in void
    }
    last = [item.id for item in events[-1].response.output]
    assert [done[index] for index in sorted(done)] == last[-len(done) :]


def check_answer(response: Response) -> None:
    assert (response.status, response.output_text) == ("completed", SAID)
    assert [item.type for item in response.output] == [
        "function_call",
        "function_call_output",
        "message",
    ]


def test_waiting(client: openai.OpenAI, death: Death) -> None:
    """The answer comes from the other server, over the same connection."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.responses.create, model="agent", input=TEXT, extra_body=EXTRA)
        death.strike()
        check_answer(answer.result(30))


def test_streamed(client: openai.OpenAI, death: Death) -> None:
    """The same connection goes on with what the other server says."""
    stream = client.responses.create(model="agent", input=TEXT, stream=True, extra_body=EXTRA)
    check(through(stream, death))


def test_the_stream_helper(client: openai.OpenAI, death: Death) -> None:
    """Its accumulators get through it, with the answer as it is in the end."""
    with client.responses.stream(model="agent", input=TEXT, extra_body=EXTRA) as stream:
        events = through(iter(stream), death)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "threadkeep.resumed" in [event.type for event in events]
    assert final.output_text == SAID
    texts = [event.text for event in events if event.type == "response.output_text.done"]
    assert texts[-1] == SAID


def test_polled(client: openai.OpenAI, there: openai.OpenAI, death: Death) -> None:
    """By its id, at any server, whichever has it."""
    run = client.responses.create(model="agent", input=TEXT, background=True, extra_body=EXTRA)
    assert run.status == "in_progress"
    death.strike()
    for either in (client, there):
        until(lambda c=either: c.responses.retrieve(run.id).status == "completed")
        check_answer(either.responses.retrieve(run.id))


def test_background_and_stream(client: openai.OpenAI, death: Death) -> None:
    """As a stream; its first event tells the id that it is found by."""
    stream = client.responses.create(
        model="agent", input=TEXT, background=True, stream=True, extra_body=EXTRA
    )
    events = through(stream, death)
    check(events)
    check_answer(client.responses.retrieve(events[0].response.id))


@pytest.mark.parametrize("after", [0, 3, 6])
def test_from_a_cursor(
    client: openai.OpenAI, there: openai.OpenAI, death: Death, after: int
) -> None:
    """What comes behind it, whether that was before or after the death, at either server."""
    run = client.responses.create(model="agent", input=TEXT, background=True, extra_body=EXTRA)
    stream = client.responses.retrieve(run.id, stream=True, starting_after=after)
    events = through(stream, death)
    check(events, after + 1)
    again = there.responses.retrieve(run.id, stream=True, starting_after=after)
    assert list(again) == events


def test_the_helper_follows_a_run(
    client: openai.OpenAI, there: openai.OpenAI, death: Death
) -> None:
    """`.stream(response_id)` puts the answer together, also when it begins late."""
    run = client.responses.create(model="agent", input=TEXT, background=True, extra_body=EXTRA)
    death.strike()
    with there.responses.stream(response_id=run.id, starting_after=2) as stream:
        numbers = [event.sequence_number for event in stream]
        assert stream.get_final_response().output_text == SAID
    assert numbers == list(range(3, 3 + len(numbers)))


def test_cancelled(
    client: openai.OpenAI, apps: list[RunningApp], backend: Backend, shop: Workshop
) -> None:
    """By the server that has lost it, at the one that has it."""
    run = client.responses.create(model="agent", input=TEXT, background=True, extra_body=EXTRA)
    with client_of(apps[1].url) as look:
        until_it_speaks(look, run.id)
        move(backend, run.id, apps[1])
        until(lambda: apps[1].model.inputs)
        stopped = client.responses.cancel(run.id)
        assert stopped.status == "cancelled"
        assert shop.done == {"note": 1}
        said = contents(look, "s")
        assert said[:3] == [TEXT, "function_call", "function_call_output"]
        assert said[3:] in ([], ["Holding "])
    assert client.responses.retrieve(run.id).status == "cancelled"


def test_a_server_that_is_started_again(
    client: openai.OpenAI, apps: list[RunningApp], shop: Workshop
) -> None:
    """The stream breaks; a new one from the last number on has the rest, and no tool runs twice."""
    stream = client.responses.create(
        model="agent", input=TEXT, background=True, stream=True, extra_body=EXTRA
    )
    events = []
    for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    stream.close()
    apps[0].restart()
    for app in apps:
        app.model.go_on.set()
    last = events[-1].sequence_number
    run_id = events[0].response.id
    events += client.responses.retrieve(run_id, stream=True, starting_after=last)
    check(events)
    assert shop.done == {"note": 1}


def test_with_cuts_over_a_death(
    client: openai.OpenAI,
    there: openai.OpenAI,
    apps: list[RunningApp],
    backend: Backend,
) -> None:
    """Cut every few events, at either server in turn, it is the stream of who was never cut."""
    text = "use note; linger " + " ".join(map(str, range(600)))  # it is at work until it may end
    run = client.responses.create(model="agent", input=text, background=True, extra_body=EXTRA)
    uncut = client.responses.retrieve(run.id, stream=True)
    seen: list[Any] = []
    for number, either in enumerate(cycle((client, there))):
        if number == 3:
            move(backend, run.id, apps[1])
            apps[1].model.go_on.set()
        after = seen[-1].sequence_number if seen else -1
        following: Any = {"starting_after": after} if seen else {}
        with either.responses.retrieve(run.id, stream=True, **following) as stream:
            seen += islice(stream, 7 if number < 9 else 99)
        if seen[-1].type == "response.completed":
            break
    assert seen == list(uncut)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert [event.type for event in seen].count("threadkeep.resumed") == 1


def test_a_failed_model_is_asked_once(
    client: openai.OpenAI, apps: list[RunningApp], sent: list[str]
) -> None:
    """The client's two retries would pay for the same failure three times."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(model="agent", input="fail", extra_body=EXTRA)
    assert caught.value.status_code == 502
    assert (len(apps[0].model.inputs), sent) == (1, ["POST"])


def test_a_conflict_is_told_once(
    client: openai.OpenAI, apps: list[RunningApp], sent: list[str]
) -> None:
    """A session that is busy stays so for longer than retries last."""
    with client_of(apps[0].url) as other:
        ask(other, "hold", "s", background=True)
        busy: Any = {"custom_inputs": {"session_id": "s", "concurrency": "reject"}}
        with pytest.raises(openai.ConflictError) as caught:
            client.responses.create(model="agent", input="say never", extra_body=busy)
        assert caught.value.code == "session_busy"
        assert sent == ["POST"]
        assert contents(other, "s") == ["hold"]


def test_a_server_that_stops_says_so_once(
    client: openai.OpenAI, there: openai.OpenAI, apps: list[RunningApp], sent: list[str]
) -> None:
    """The run goes on elsewhere, under the id that the error names; a retry would be another."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.responses.create, model="agent", input=TEXT, extra_body=EXTRA)
        until(lambda: apps[0].model.inputs[1:])
        apps[0].do(apps[0].app.state.runs.aclose())
        error = answer.exception(30)
    assert isinstance(error, openai.InternalServerError)
    assert (error.status_code, error.code, sent) == (503, "server_stopped", ["POST"])
    run_id = str(error.message).partition("/responses/")[2].split()[0]
    for app in apps:
        app.model.go_on.set()
    until(lambda: there.responses.retrieve(run_id).status == "completed")
    check_answer(there.responses.retrieve(run_id))
    with client_of(apps[1].url) as look:
        stored: list[Json] = look.get("/sessions/s/items").json()["data"]
    assert [item.get("role") for item in stored] == ["user", None, None, "assistant"]
