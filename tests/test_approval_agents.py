"""Approvals in agents of several kinds, and the run context of the user's own type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import pytest
from agents import Agent, RunConfig, RunContextWrapper, Runner, RunResultStreaming, function_tool
from pydantic import BaseModel

from agent_server.agent import get_session_id
from tests.backends import Backend
from tests.client import ask, client_of, post, text_of_response
from tests.conftest import RunningApp, environment
from tests.deciding import asked, decide, end_of, outputs
from tests.fakes import FakeModel
from tests.workshop import Workshop
from threadkeep.errors import AgentCodeError
from threadkeep.server import AgentContext, create_app
from threadkeep.settings import Settings

Start = Callable[..., tuple[httpx.Client, httpx.Client]]


@dataclass
class Basket:
    """A run context: what tools keep for the turn."""

    owner: str
    things: list[str] = field(default_factory=list)


class Trip(BaseModel):
    """A run context as well."""

    stops: dict[str, int] = {}


@pytest.fixture
def shop() -> Workshop:
    return Workshop()


@pytest.fixture
def start(backend: Backend) -> Iterator[Start]:
    """Starts two servers on one database; gives their clients."""
    apps: list[RunningApp] = []

    def start(**agent: Any) -> tuple[httpx.Client, httpx.Client]:
        place = environment(backend)
        apps.extend(RunningApp(dict(place), **agent) for _ in range(2))
        here, there = (clients.enter_context(client_of(app.url)) for app in apps)
        return here, there

    with ExitStack() as clients:
        yield start
    for app in apps:
        app.model.go_on.set()
        app.stop()


@pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("approve", [True, False])
def test_an_agent_as_a_tool_waits_for_its_own_tool(
    start: Start, shop: Workshop, approve: bool
) -> None:
    """The approval names the inner agent; the outer one goes on with what that said."""
    inner = Agent(name="Buyer / 2", model=FakeModel(), tools=shop.tools())
    tool = inner.as_tool("buy", "Buys.", on_stream=lambda _: None)
    here, there = start(tools=[tool, *shop.tools()])
    response = post(here, "use note; use buy; say done", "s").json()
    (approval_id,) = asked(response)
    shown = there.get(f"/approvals/{approval_id}").json()
    assert (shown["agent"], shown["name"]) == ("Buyer / 2", "pay")
    decided = decide(there, approval_id, approve, always_approve=approve)
    ended = end_of(here, decided["response_id"])
    assert (ended["status"], text_of_response(ended)) == ("completed", "done")
    assert (shop.done["note"], shop.done["pay"]) == (1, approve)
    assert len(outputs(here)) == 2
    if approve:
        known = here.get("/sessions/s").json()["always_approve"]
        assert known == [{"agent": "Buyer / 2", "name": "pay"}]
        assert text_of_response(ask(there, "use buy; say more", "s")) == "more"
        asked(ask(there, "use pay; say done", "s"))  # of another agent
    assert shop.done["pay"] == approve * 2


@pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)
def test_an_agent_that_was_handed_the_turn_waits(start: Start, shop: Workshop) -> None:
    """It goes on itself when somebody has decided."""
    other = Agent(name="Other", model=FakeModel(), tools=shop.tools())
    here, there = start(handoffs=[other], tools=shop.tools())
    (approval_id,) = asked(ask(here, "use note; use transfer_to_other; use pay; say done", "s"))
    assert there.get(f"/approvals/{approval_id}").json()["agent"] == "Other"
    decided = decide(there, approval_id, approve=True, always_approve=True)
    assert text_of_response(end_of(here, decided["response_id"])) == "done"
    assert shop.done == {"note": 1, "pay": 1}


@pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)
def test_the_context_of_a_turn_waits_with_it(start: Start, shop: Workshop) -> None:
    """What tools put into it before the approval is there behind it, on another server."""

    @function_tool
    def put(context: RunContextWrapper[Basket]) -> str:
        context.context.things.append("bread")
        return "put"

    @function_tool(needs_approval=True)
    def sell(context: RunContextWrapper[Basket]) -> str:
        return f"{context.context.owner}: {context.context.things}"

    def create_context(context: AgentContext) -> Basket:
        return Basket(context.session_id)

    here, there = start(tools=[put, sell], create_context=create_context)
    (approval_id,) = asked(ask(here, "use put; use sell; say done", "s"))
    decided = decide(there, approval_id, approve=True)
    assert text_of_response(end_of(here, decided["response_id"])) == "done"
    assert outputs(here) == ["put", "s: ['bread']"]


def test_a_context_that_can_not_be_stored_is_refused_at_the_start() -> None:
    """Of the server, not when somebody has approved something days later."""

    class Connection:
        pass

    def of_no_type(context: AgentContext):  # type: ignore[no-untyped-def]
        return Basket("")

    def of_a_connection(context: AgentContext) -> Connection:
        return Connection()

    def of_connections(context: AgentContext) -> dict[str, Connection]:
        return {}

    of_a_connection.__annotations__["return"] = Connection
    of_connections.__annotations__["return"] = dict[str, Connection]
    settings = Settings.read(environment("sqlite:///none.db"))
    for create_context in (of_no_type, of_a_connection, of_connections):
        with pytest.raises(AgentCodeError, match=r"create_context .* must give"):
            create_app(
                lambda _: Agent("Assistant"),
                get_session_id,
                settings,
                create_context=create_context,
            )
    create_app(lambda _: Agent("Assistant"), get_session_id, settings, create_context=of_a_trip)


def of_a_trip(context: AgentContext) -> Trip:
    return Trip()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_context_that_breaks_its_word_is_refused_when_the_turn_begins(start: Start) -> None:
    """Its type can be stored, but not what is in it: no tool was called yet, nothing is kept."""

    def create_context(context: AgentContext) -> dict[str, Any]:
        return {"connection": object()}

    here, _ = start(create_context=create_context)
    reply = post(here, "say hello", "s")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "agent_error")
    assert "create_context" in reply.json()["error"]["message"]
    assert here.get("/sessions/s").status_code == 404


async def test_a_library_does_as_before() -> None:
    """Outside of a server the SDK's own approvals are as they are."""
    shop = Workshop()
    agent = Agent("Assistant", model=FakeModel(), tools=shop.tools())

    async def run(given: Any) -> RunResultStreaming:
        config = RunConfig(tracing_disabled=True)
        result = Runner.run_streamed(agent, given, run_config=config)
        async for _ in result.stream_events():
            continue
        return result

    first = await run("use pay; say done")
    state = first.to_state()
    state.approve(first.interruptions[0])
    assert (await run(state)).final_output == "done"
    assert shop.done == {"pay": 1}
