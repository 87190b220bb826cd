"""The official `openai` client drives the server, keeping its session through `extra_body`."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.conftest import RunningApp


@pytest.fixture
def client(running_app: RunningApp) -> Any:
    with openai.OpenAI(base_url=running_app.url, api_key="none") as client:
        yield client


def extra(session_id: str) -> dict[str, Any]:
    return {"custom_inputs": {"session_id": session_id}}


def test_create_keeps_the_session(client: openai.OpenAI) -> None:
    """Two turns, one session, and the reply is the client's own Response."""
    first = client.responses.create(model="agent", input="I live in SF")
    session_id = first.model_extra["custom_outputs"]["session_id"]
    second = client.responses.create(
        model="agent", input="What city?", extra_body=extra(session_id)
    )
    assert second.output_text == "You live in SF."
    assert second.usage is not None
    assert second.usage.total_tokens == 8


def test_create_with_stream(client: openai.OpenAI) -> None:
    """Events are typed, and a tool's steps are in them."""
    events = list(
        client.responses.create(model="agent", input="time", stream=True, extra_body=extra("s"))
    )
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text.startswith("It is ")
    again = client.responses.create(model="agent", input="say hi", extra_body=extra("s"))
    assert again.output_text == "hi"


def test_the_stream_helper_puts_the_answer_together(client: openai.OpenAI) -> None:
    """Its accumulator insists on items that are opened and closed in order."""
    with client.responses.stream(model="agent", input="say one two three") as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "one two three"


def test_background_retrieve_cancel_and_cursor(
    client: openai.OpenAI, running_app: RunningApp
) -> None:
    """A run goes on without its client, and is found again by its id."""
    run = client.responses.create(model="agent", input="hold", background=True)
    assert run.status == "in_progress"
    assert client.responses.retrieve(run.id).status == "in_progress"
    running_app.model.go_on.set()
    events = list(client.responses.retrieve(run.id, stream=True, starting_after=1))
    assert [event.sequence_number for event in events] == list(range(2, 2 + len(events)))
    assert client.responses.retrieve(run.id).output_text == "Holding no more."
    running_app.model.go_on.clear()
    run = client.responses.create(model="agent", input="hold", background=True)
    assert client.responses.cancel(run.id).status == "cancelled"


def test_a_failure_is_not_retried(client: openai.OpenAI, running_app: RunningApp) -> None:
    """The client's default of two retries would pay for the same failure three times."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(model="agent", input="fail")
    assert caught.value.status_code == 502
    assert len(running_app.model.inputs) == 1
