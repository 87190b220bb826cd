"""Half turns: what of them a model sees, through the Runner and the server; what stays stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import chain, pairwise
from typing import Any

import httpx2 as httpx
import pytest
from agents import (
    Agent,
    ModelSettings,
    RunConfig,
    RunContextWrapper,
    Runner,
    RunState,
    SessionSettings,
    Usage,
    function_tool,
)
from agents.models.chatcmpl_converter import Converter
from agents.retry import ModelRetrySettings
from agents.run_internal.session_persistence import rewind_session_items
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends import Backend
from tests.client import ask, client_of, text_of_response
from tests.conftest import RunningApp, backends, run_app
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import DatabaseBusyError
from threadkeep.history import encode_items, new_epoch
from threadkeep.mend import UNKNOWN_OUTCOME, Flaw, mend, mended
from threadkeep.settings import DatabaseSettings

backend = backends("sqlite", "postgres")

QUIET = RunConfig(tracing_disabled=True)


def user(text: str = "hi") -> Any:
    return {"role": "user", "content": text}


def said(text: str = "well") -> Any:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "id": "m", "status": "x", "content": [part]}


def call(call_id: str = "1", kind: str = "function_call", **more: Any) -> Any:
    return {"type": kind, "call_id": call_id, "name": "f", "arguments": "{}"} | more


def output(call_id: str = "1", text: str = "done", kind: str = "function_call_output") -> Any:
    return {"type": kind, "call_id": call_id, "output": text}


def closing(call_id: str = "1") -> Any:
    return output(call_id, UNKNOWN_OUTCOME)


def thought(number: int = 1) -> Any:
    return {"type": "reasoning", "id": f"rs_{number}", "summary": []}


SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed"}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param([user(), call()], [user(), call(), closing()], id="died in a tool"),
        pytest.param(
            [user(), call("1"), call("2"), output("2"), user()],
            [user(), call("1"), call("2"), output("2"), closing("1"), user()],
            id="died in one of two tools",
        ),
        pytest.param(
            [user(), call("1"), call("2"), output("1"), said()],
            [user(), call("1"), call("2"), output("1"), closing("2"), said()],
            id="went on without one of two",
        ),
        pytest.param(
            [call("1"), said(), SEARCH, user()],
            [call("1"), said(), SEARCH, closing("1"), user()],
            id="behind all of the answer",
        ),
        pytest.param([user(), output(), said()], [user(), said()], id="an output alone"),
        pytest.param([output(), call()], [call(), closing()], id="an output before its call"),
        pytest.param(
            [call(), output(), output(text="again"), said()],
            [call(), output(), said()],
            id="an output twice",
        ),
        pytest.param(
            [user("a"), call("1"), user("b"), call("2"), output("1"), output("2"), said("B")],
            [user("a"), call("1"), output("1"), user("b"), call("2"), output("2"), said("B")],
            id="two turns at once",
        ),
        pytest.param(
            [call("1"), call("2"), output("1"), said(), output("2")],
            [call("1"), call("2"), output("1"), output("2"), said()],
            id="an output behind the next answer",
        ),
        pytest.param(
            [user(), call("1"), user(), call("1"), output("1"), said()],
            [user(), call("1"), closing("1"), user(), call("1"), output("1"), said()],
            id="the same id again",
        ),
        pytest.param(
            [user(), call("1"), user(), call("1"), output("1"), output("1")],
            [user(), call("1"), closing("1"), user(), call("1"), output("1")],
            id="the second output is not that of an earlier call",
        ),
        pytest.param([user(), thought(1), thought(2)], [user()], id="died in thought"),
        pytest.param([thought(), user()], [user()], id="thought before a message"),
        pytest.param([call(), thought(), output()], [call(), output()], id="thought in between"),
        pytest.param(
            [call("1"), user(), thought(), output("1"), said()],
            [call("1"), output("1"), user(), thought(), said()],
            id="thought before an output that moves",
        ),
        pytest.param(
            [user(), thought(), call(kind="computer_call"), user()],
            [user(), user()],
            id="a click, whose output would be a picture",
        ),
        pytest.param([thought(), call(call_id=None), said()], [said()], id="a call without id"),
        pytest.param(
            [call(caller={"type": "program", "caller_id": "p"})],
            [
                call(caller={"type": "program", "caller_id": "p"}),
                closing() | {"caller": {"type": "program", "caller_id": "p"}},
            ],
            id="a call of a program",
        ),
        pytest.param(
            [call(kind="custom_tool_call")],
            [
                call(kind="custom_tool_call"),
                output("1", UNKNOWN_OUTCOME, "custom_tool_call_output"),
            ],
            id="a custom tool",
        ),
        pytest.param(
            [call(kind="apply_patch_call")],
            [
                call(kind="apply_patch_call"),
                output("1", UNKNOWN_OUTCOME, "apply_patch_call_output") | {"status": "failed"},
            ],
            id="a patch",
        ),
        pytest.param(
            [call(kind="shell_call"), output()],
            [
                call(kind="shell_call"),
                {
                    "type": "shell_call_output",
                    "call_id": "1",
                    "output": [
                        {
                            "stdout": "",
                            "stderr": UNKNOWN_OUTCOME,
                            "outcome": {"type": "exit", "exit_code": 1},
                        }
                    ],
                },
            ],
            id="a shell, and the output of a function",
        ),
    ],
)
def test_what_is_broken_is_mended(items: list[Any], expected: list[Any]) -> None:
    """With as little change as there can be, and once for all."""
    assert mended(items) == expected
    assert mended(expected) == expected
    assert mend(items).flaws
    assert not mend(expected).flaws


@pytest.mark.parametrize(
    "items",
    [
        [],
        [user(), said()],
        [user(), thought(), call("1"), call("2"), output("2"), output("1"), thought(2), said()],
        [user(), call("1"), said(), output("1"), call("1"), output("1"), said(), user()],
        [user(), call("1"), call("1"), output("1"), output("1")],
        [thought(), SEARCH, said()],
        [{"type": "mcp_approval_request", "id": "a"}, {"type": "mcp_list_tools", "id": "l"}],
        [{"type": "tool_search_call", "call_id": None}, {"type": "tool_search_output"}],
        [{"type": "function_call_output", "call_id": None, "output": "by name", "name": "f"}],
        [{}, {"type": ["function_call"]}, {"role": {}}, {"type": {}, "call_id": "1"}],
    ],
)
def test_what_is_right_stays(items: list[Any]) -> None:
    """Also where no output is called for, and what we do not know."""
    assert mended(items) == items
    assert mended(items) is not items


def test_who_waits_for_a_decision_may_be_left_alone() -> None:
    """Only at the end: a message behind it means that nobody waits any more."""
    items = [call("1"), user(), call("2"), call("3"), output("3")]
    assert mend(items, waiting={0, 2}).flaws == [(Flaw.OPEN_CALL, 0)]


PARTS = [
    user(),
    said(),
    call("1"),
    call("2"),
    output("1"),
    output("2"),
    thought(),
    SEARCH,
    call("1", "computer_call"),
    output("1", kind="computer_call_output"),
]


@st.composite
def answers(draw: st.DrawFn) -> list[Any]:
    """Reasoning, text, tool calls and their outputs, as one answer of a model leaves them."""
    ids = draw(st.lists(st.sampled_from("123"), unique=True))
    calls = [call(call_id) for call_id in ids]
    outputs = [output(call_id) for call_id in draw(st.permutations(ids))]
    before = draw(st.sampled_from([[], [thought()], [said()], [thought(), SEARCH]]))
    if not calls:
        return [thought(), said()]
    return [*before, *calls, *outputs]


def joined(lists: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


TALKS = st.lists(st.lists(answers()).map(lambda turn: [user(), *joined(turn)])).map(joined)


@given(st.lists(st.sampled_from(PARTS), max_size=14))
@settings(max_examples=1000, deadline=None)
def test_anything_is_mended_once_for_all(items: list[Any]) -> None:
    """It is valid then, and mending that changes nothing; messages and answers are all there."""
    result = mended(items)
    check(result)
    assert mended(result) == result
    others = (user(), said(), SEARCH, call("1"), call("2"))
    assert [i for i in result if i in others] == [i for i in items if i in others]
    assert (result == items) == (not mend(items).flaws)


@given(TALKS, st.data())
@settings(deadline=None)
def test_a_valid_history_is_unchanged(items: list[Any], data: st.DataObject) -> None:
    """And one that was cut anywhere keeps all but the reasoning that was cut off."""
    check(items)
    assert mended(items) == items
    cut = items[: data.draw(st.integers(0, len(items)))]
    result = mended(cut)
    assert [i for i in result if i != thought() and i not in map(closing, "123")] == [
        i for i in cut if i != thought()
    ]


@given(st.lists(st.sampled_from([*PARTS[:1], *PARTS[2:7]]), max_size=12))
@settings(deadline=None)
def test_chat_completions_takes_it(items: list[Any]) -> None:
    """There the outputs of an answer's calls follow it at once."""
    messages = Converter.items_to_messages(mended(items))
    while messages:
        message: Any = messages.pop(0)
        assert message["role"] != "tool"
        for _ in calls_of(message):
            answer: Any = messages.pop(0)
            assert answer["tool_call_id"] in [c["id"] for c in calls_of(message)]


def calls_of(message: Any) -> list[Any]:
    return list(message.get("tool_calls", []))


def check(items: list[Any]) -> None:
    """That each call has its output, as the APIs ask for it, and reasoning its item."""
    missing: Counter[tuple[str, str]] = Counter()
    answered = False
    for item, following in pairwise([*items, user()]):
        kind = item.get("type", "message")
        if kind.endswith("call_output"):
            missing[kind, item["call_id"]] -= 1
            assert missing[kind, item["call_id"]] >= 0
            answered = True
            continue
        if missing.total() == 0:
            answered = False
        assert missing.total() == 0 or not (answered or item == user())
        if kind in ("function_call", "computer_call"):
            missing[f"{kind}_output", item["call_id"]] += 1
        if kind == "reasoning":
            assert following != user()
            assert not following["type"].endswith("call_output")
    assert missing.total() == 0


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    database = connect(DatabaseSettings.read(backend.variables))
    yield database
    await database.close()


def given_to(model: ScriptedModel) -> list[Any]:
    """What the model was asked last."""
    assert model.last_call is not None
    return list(model.last_call.input)


BROKEN = [user("a"), thought(), call("1"), user("b"), output("2"), said()]


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_model_sees_no_half_turn_and_a_reader_does(
    database: Database, streamed: bool
) -> None:
    """The Runner passes its context when it reads; who reads without gets what is stored."""
    session = Session("s", database=database)
    await session.add_items(BROKEN)
    model = ScriptedModel([[assistant_message("ok")]])
    agent = Agent(name="a", model=model)
    if streamed:
        result = Runner.run_streamed(agent, "c", session=session, run_config=QUIET)
        _ = [event async for event in result.stream_events()]
    else:
        await Runner.run(agent, "c", session=session, run_config=QUIET)
    seen = [user("a"), thought(), call("1"), closing("1"), user("b"), said(), user("c")]
    assert given_to(model) == seen
    assert (await session.get_items())[:-1] == [*BROKEN, user("c")]


@pytest.mark.parametrize("merges", [False, True])
async def test_a_limit_cuts_no_turn_in_half(database: Database, merges: bool) -> None:
    """Also where the SDK itself leaves what was merged as it is."""
    session = Session("s", database=database, session_settings={"limit": 3})
    await session.add_items([user("a"), call("1"), output("1"), said(), call("2")])
    model = ScriptedModel([[assistant_message("ok")]])
    merge = (lambda old, new: old + new) if merges else None
    config = RunConfig(tracing_disabled=True, session_input_callback=merge)
    await Runner.run(Agent(name="a", model=model), "b", session=session, run_config=config)
    assert given_to(model) == [said(), call("2"), closing("2"), user("b")]


async def test_a_limit_of_the_run_cuts_no_turn_in_half(database: Database) -> None:
    """The SDK sees to that."""
    session = Session("s", database=database)
    await session.add_items([user("a"), call("1"), output("1"), said(), thought(), call("2")])
    model = ScriptedModel([[assistant_message("ok")]])
    config = RunConfig(tracing_disabled=True, session_settings=SessionSettings(limit=4))
    await Runner.run(Agent(name="a", model=model), "b", session=session, run_config=config)
    assert given_to(model) == [said(), user("b")]


async def test_an_output_that_comes_with_the_input_is_the_one(database: Database) -> None:
    """Who runs tools by themselves sends the output as the next input."""
    session = Session("s", database=database)
    await session.add_items([user("a"), call("1"), call("2")])
    model = ScriptedModel([[assistant_message("ok")]])
    agent = Agent(name="a", model=model)
    await Runner.run(agent, [output("1"), output("2")], session=session, run_config=QUIET)
    assert given_to(model) == [user("a"), call("1"), call("2"), output("1"), output("2")]


async def test_a_model_call_is_made_again_on_a_broken_session(database: Database) -> None:
    """The second time it gets the same, and the turn is stored once."""
    session = Session("s", database=database, session_settings={"limit": 9})
    await session.add_items(BROKEN)
    model = ScriptedModel([ModelStep.raise_error(OSError()), [assistant_message("ok")]])
    retry = ModelRetrySettings(max_retries=1, policy=lambda _: True)
    agent = Agent(name="a", model=model, model_settings=ModelSettings(retry=retry))
    await Runner.run(agent, "c", session=session, run_config=QUIET)
    first, second = (call.input for call in model.calls)
    assert first == second
    assert closing("1") in first
    assert (await session.get_items())[:-1] == [*BROKEN, user("c")]


async def test_the_runner_finds_what_it_takes_back(database: Database) -> None:
    """It compares the newest items with those it has stored, which may be half a turn."""
    session = Session("s", database=database)
    await session.add_items([*BROKEN, call("3"), user("c")])
    wrapper = RunContextWrapper(None, turn_input=[user("c")])
    await rewind_session_items(session, [call("3"), user("c")], wrapper=wrapper)
    assert await session.get_items() == BROKEN


class Flaky(Session):
    """Tells of its next append that it failed; `stores` says whether it did."""

    stores: bool | None = None

    async def add_items(self, items: Any, *, wrapper: Any = None) -> None:
        fails, stores = self.stores is not None, self.stores
        self.stores = None
        if stores is not False:
            await super().add_items(items)
        if fails:
            raise DatabaseBusyError


@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize("used", [Usage(), Usage(requests=1)], ids=["no usage", "usage"])
async def test_a_resumed_run_finds_what_it_has_stored(
    database: Database, stores: bool, used: Usage
) -> None:
    """A call that waited for its approval has no output; the append of that one fails, and is
    settled when the run is resumed once more."""
    done: list[str] = []

    @function_tool(needs_approval=True)
    def pay() -> str:
        done.append("paid")
        return "paid"

    session = Flaky("s", database=database, session_settings={"limit": 2})
    model = ScriptedModel([[function_call("pay", {}, call_id="1")], [assistant_message("ok")]])
    model.set_default_usage(used)
    agent = Agent(name="a", model=model, tools=[pay])
    asked = await Runner.run(agent, "pay", session=session, run_config=QUIET)
    state = await RunState.from_json(agent, asked.to_state().to_json())
    state.approve(state.get_interruptions()[0])
    session.stores = stores
    with pytest.raises(DatabaseBusyError):
        await Runner.run(agent, state, session=session, run_config=QUIET)
    state = await RunState.from_json(agent, state.to_json())
    result = await Runner.run(agent, state, session=session, run_config=QUIET)
    assert (result.final_output, done) == ("ok", ["paid"])
    items: list[Any] = await session.get_items(limit=9)
    kinds = ["message", "function_call", "function_call_output", "message"]
    assert [item.get("type", "message") for item in items] == kinds


@pytest.fixture
def app(backend: Backend) -> Iterator[RunningApp]:
    yield from run_app(backend)


@pytest.fixture
def client(app: RunningApp) -> Iterator[httpx.Client]:
    with client_of(app.url) as client:
        yield client


async def store(database: Database, items: list[Any]) -> None:
    """Stores them as somebody's who died then."""
    await database.call(
        "append_items",
        session_id="s",
        owner="",
        items=encode_items(items),
        title=None,
        room_until=9,
        new_epoch=new_epoch(),
    )


async def test_a_server_goes_on_with_a_broken_session(
    app: RunningApp, client: httpx.Client, database: Database
) -> None:
    """The model sees whole turns; what is stored stays."""
    await store(database, [user("I live in SF"), thought(), call("1"), call("2"), output("2")])
    assert text_of_response(ask(client, "What city?", "s")) == "You live in SF."
    (seen,) = app.model.inputs
    assert seen[2:6] == [call("1"), call("2"), output("2"), closing("1")]
    kinds = [item["type"] for item in client.get("/sessions/s/items").json()["data"]]
    assert kinds.count("function_call_output") == 1


async def test_a_client_may_answer_a_call_that_a_server_left_open(
    app: RunningApp, client: httpx.Client, database: Database
) -> None:
    """The output that it sends is the one that the model sees."""
    await store(database, [user("time"), call("1")])
    body = {
        "input": [user("time"), call("1"), output("1", "noon")],
        "custom_inputs": {"session_id": "s"},
    }
    reply = client.post("/responses", json=body)
    assert text_of_response(reply.json()) == "It is noon"
    assert app.model.inputs == [[user("time"), call("1"), output("1", "noon")]]
