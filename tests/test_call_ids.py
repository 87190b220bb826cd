"""A model may repeat the ids of its calls; nobody behind it sees one twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import agents
import pytest
from agents import Agent, Runner
from agents.extensions import handoff_filters
from agents.testing import assistant_message, function_call
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseCustomToolCall,
    ResponseFunctionShellToolCall,
    ResponseFunctionShellToolCallOutput,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
)

from tests.test_replay import (
    ForgetfulModel,
    KilledError,
    Store,
    StoreJournal,
    World,
    call,
    inner,
    journaled,
    main,
    make,
)
from threadkeep.call_ids import CallIds, call_ids
from threadkeep.replay import journaling

VALID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world where nothing happened yet."""
    return World(tmp_path / "notes")


def calls(*ids: str) -> list[Any]:
    """Calls of one answer, each with arguments of its own."""
    return [call("a", str(number), call_id) for number, call_id in enumerate(ids)]


def ids_of(items: Sequence[Any]) -> list[str]:
    """The call ids of items, in order; of models as of dictionaries."""
    plain = [item if isinstance(item, dict) else item.model_dump() for item in items]
    return [item["call_id"] for item in plain if "call_id" in item]


def unique(output: Sequence[Any], *taken: str) -> list[str]:
    return ids_of(CallIds(taken).in_answer(output))


def added(index: int, item: Any) -> ResponseOutputItemAddedEvent:
    item = item.model_copy(update={"status": "in_progress"})
    return ResponseOutputItemAddedEvent(
        type="response.output_item.added", item=item, output_index=index, sequence_number=0
    )


def done(index: int, item: Any) -> ResponseOutputItemDoneEvent:
    return ResponseOutputItemDoneEvent(
        type="response.output_item.done", item=item, output_index=index, sequence_number=0
    )


def completed(output: Sequence[Any]) -> ResponseCompletedEvent:
    response = Response.model_construct(id="r", output=list(output), usage=None, tools=[])
    return ResponseCompletedEvent(type="response.completed", response=response, sequence_number=0)


def through(ids: CallIds, *events: Any) -> list[list[str]]:
    """The call ids of events, as they are passed on."""
    seen = []
    for event in map(ids.in_event, events):
        ends = isinstance(event, ResponseCompletedEvent)
        seen.append(ids_of(event.response.output if ends else [event.item]))
    return seen


def test_a_repeated_id_is_counted_on() -> None:
    """Whether the answer repeats its own or one that was there before, and when that is so too."""
    assert unique(calls("a", "b", "a", "a")) == ["a", "b", "a_2", "a_3"]
    assert unique(calls("a", "b"), "a", "a_2") == ["a_3", "b"]
    assert unique(calls("a", "a_2", "a")) == ["a", "a_2", "a_3"]
    assert unique(calls("a", "a", "a_2")) == ["a", "a_2", "a_2_2"]


def test_a_new_id_is_one_that_the_responses_api_takes() -> None:
    """It has 64 characters at most; a call without an id gets one."""
    long = "call-" + "x" * 59
    assert unique(calls(long), long) == [long[:62] + "_2"]
    assert unique(calls("é 1"), "é 1") == ["__1_2"]
    nameless = calls("a", "b")
    for item in nameless:
        item.call_id = ""
    assert unique(nameless) == ["call_2", "call_3"]
    assert unique(calls("é" * 70)) == ["é" * 70], "what is unique is not ours to mend"


def test_calls_of_all_kinds_count_and_outputs_follow_them() -> None:
    """A provider that runs a tool gives the call and its output in one answer."""
    custom = ResponseCustomToolCall(call_id="1", input="", name="c", type="custom_tool_call")
    shell = ResponseFunctionShellToolCall.model_construct(type="shell_call", call_id="1")
    output = ResponseFunctionShellToolCallOutput.model_construct(
        type="shell_call_output", call_id="1"
    )
    late = {"type": "function_call_output", "call_id": "9", "output": ""}
    answer = [*calls("1"), custom, shell, output, late, {"type": "function_call", "call_id": "9"}]
    assert unique(answer, "9") == ["1", "1_2", "1_3", "1_3", "9", "9_2"]


def test_a_program_keeps_its_id() -> None:
    """Its calls name it, and it may be told of again as it goes on."""
    program = {"type": "program", "call_id": "1"}
    assert CallIds(["1"]).in_answer([program]) == [program]


def test_the_ids_of_an_input_are_taken() -> None:
    """Calls and outputs, whatever else is in it; a text has none."""
    output = {"type": "function_call_output", "call_id": "2", "output": ""}
    search = {"type": "tool_search_call", "call_id": None}
    assert call_ids([*calls("1"), output, search, {"role": "user", "content": "3"}]) == {"1", "2"}
    assert call_ids("call_1") == set()


def test_what_a_model_gave_is_left_as_it_was() -> None:
    """It may give the same object again; and what is unique is not even copied."""
    first, second = calls("a", "a")
    changed = CallIds([]).in_answer([first, second])
    assert (changed[0], second.call_id) == (first, "a")
    output = calls("a", "b")
    assert CallIds([]).in_answer(output) is output
    for event in (added(0, first), done(0, first), completed([first])):
        assert CallIds([]).in_event(event) is event
        before = event.model_copy(deep=True)
        assert CallIds(["a"]).in_event(event) != event == before


def test_all_events_of_a_stream_give_a_call_the_same_id() -> None:
    """Also where items come side by side, or stand elsewhere in the whole answer."""
    x, y, z = calls("a", "a", "a")
    nested = [added(0, x), added(1, y), done(1, y), done(0, x), completed([x, y])]
    assert through(CallIds(["a"]), *nested) == [["a_2"], ["a_3"], ["a_3"], ["a_2"], ["a_2", "a_3"]]
    text = assistant_message("behind them in the stream, and before them in the whole")
    moved = [done(0, x), done(1, y), completed([text, x, y, z])]
    assert through(CallIds([]), *moved) == [["a"], ["a_2"], ["a", "a_2", "a_3"]]
    swapped = calls("a", "b")
    events = [done(0, swapped[0]), done(1, swapped[1]), completed(swapped[::-1])]
    assert through(CallIds([]), *events) == [["a"], ["b"], ["b", "a"]]


def test_an_item_that_gets_its_id_late_keeps_the_one_it_was_given() -> None:
    """Some models begin a call before they have an id for it."""
    (item,) = calls("a")
    events = [added(0, item.model_copy(update={"call_id": ""})), done(0, item), completed([item])]
    assert through(CallIds([]), *events) == [["call_2"], ["call_2"], ["call_2"]]


IDS = st.sampled_from(["", "a", "a_2", "a_2_2", "call", "call_2", "é", "x" * 64, "x" * 62 + "_2"])


@given(st.lists(IDS), st.lists(IDS | st.text(max_size=70)), st.data())
@settings(deadline=None)
def test_ids_are_unique_whatever_they_were(
    taken: list[str], given_ids: list[str], data: st.DataObject
) -> None:
    """The same input gives the same; in a stream each call keeps the id that it began with."""
    output: list[Any] = [
        ResponseFunctionToolCall(call_id=given_id, name="f", arguments="", type="function_call")
        for given_id in given_ids
    ]
    ids = unique(output, *taken)
    assert ids == unique(output, *taken)
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {"", *taken}
    for number, (old, new) in enumerate(zip(given_ids, ids, strict=True)):
        assert new == old or VALID.fullmatch(new)
        assert new == old or old in {"", *taken, *ids[:number]}, "what is free stays"

    streamed = CallIds(taken)
    begun = {
        index: through(streamed, added(index, output[index]))[0]
        for index in data.draw(st.permutations(range(len(output))))
    }
    ended = through(streamed, *(done(index, item) for index, item in enumerate(output)))
    (whole,) = through(streamed, completed(output))
    assert [begun[index] for index in range(len(output))] == ended == [[one] for one in whole]


class CompletedOnly(ForgetfulModel):
    """Says only how its stream ends."""

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for event in agents.testing.ScriptedModel.stream_response(self, *args, **kwargs):
            if event.type == "response.completed":
                yield event


def repeating(world: World) -> Agent[Any]:
    """Repeats ids within an answer, of the answer before, and both."""
    world.script = {"main 0": [call("a", "1", "c"), call("b", "1", "c"), call("b", "2", "d")]}
    world.script |= {"main 3": [call("a", "2", "c")], "main 4": [*calls("c", "d", "d")]}
    return main(tools=[world.tool("a"), world.tool("b")])


async def run_of(agent: Agent[Any], world: World, streamed: bool, **options: Any) -> Any:
    """Makes a run; returns its result."""
    if not streamed:
        return await Runner.run(agent, "Go", run_config=world.config, **options)
    result = Runner.run_streamed(agent, "Go", run_config=world.config, **options)
    assert [event async for event in result.stream_events()]
    return result


HAPPENED = Counter(["a(1)", "b(1)", "b(2)", "a(2)", "a(0)", "a(1)", "a(2)"])
GIVEN = ["c", "c_2", "d", "c_3", "c_4", "d_2", "d_3"]


def use(world: World, kind: Callable[..., Any]) -> None:
    """Makes the world's model one of another kind."""
    world.model = kind([agents.testing.ModelStep.respond(world.answer)] * 99)


@pytest.mark.parametrize("kind", [ForgetfulModel, agents.testing.ScriptedModel, CompletedOnly])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_every_call_is_made_and_stays_in_the_history(
    kind: Callable[..., Any], streamed: bool, world: World
) -> None:
    """The SDK refuses such an answer, or folds what has the same id."""
    use(world, kind)
    store = Store()
    with journaled(store):
        left = await make(repeating(world), world, streamed)
    assert world.happened() == HAPPENED
    assert [step.call_id for step in store.tools.values()] == GIVEN
    assert store.in_doubt() == []
    stored = [item for item in left[-1] if item.get("type") == "function_call"]
    outputs = [item for item in left[-1] if item.get("type") == "function_call_output"]
    assert ids_of(stored) == ids_of(outputs) == GIVEN
    assert [item["output"] for item in outputs][:4] == ["a of 1", "b of 1", "b of 2", "a of 2"]
    assert ids_of(world.model.calls[-1].input) == ids_of(left[-1]), "the model is given the same"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_the_ids_of_earlier_turns_are_taken(streamed: bool, world: World) -> None:
    """A model that counts its calls anew in each turn has its history all the same."""
    world.model = ForgetfulModel([calls("c"), [assistant_message("Ok")]] * 2)
    agent, session = main(tools=[world.tool("a")]), agents.SQLiteSession("s")
    for _ in range(2):
        with journaled(Store()):
            await run_of(agent, world, streamed, session=session)
    assert ids_of(await session.get_items()) == ["c", "c", "c_2", "c_2"]
    assert ids_of(world.model.calls[-1].input) == ["c", "c", "c_2", "c_2"]
    assert world.happened() == {"a(0)": 2}


async def test_followers_are_told_the_ids_that_are_stored(world: World) -> None:
    """In the events of items, and in the end of each answer."""
    told: dict[str, list[str]] = {}
    with journaled(Store()):
        result = Runner.run_streamed(repeating(world), "Go", run_config=world.config)
        async for event in result.stream_events():
            if event.type != "raw_response_event":
                continue
            if event.data.type == "response.completed":
                told.setdefault("completed", []).extend(ids_of(event.data.response.output))
            elif event.data.type.startswith("response.output_item."):
                told.setdefault(event.data.type, []).extend(ids_of([event.data.item]))
    assert len(told) == 3
    assert all(ids == GIVEN for ids in told.values()), told


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_run_cut_at_any_write_gives_the_same_ids(streamed: bool, world: World) -> None:
    """What an answer had got is in the journal; what is asked anew is given the same again."""
    journal = StoreJournal(Store())
    with journaling(journal, "resp_1"):
        expected = await make(repeating(world), world, streamed)
    assert journal.writes > len(GIVEN)
    for cut, stored in [(n, s) for n in range(journal.writes) for s in (False, True)]:
        again, store = World(world.notes, may_repeat=True), Store()
        with pytest.raises(KilledError), journaled(store, cut, stored):
            await make(repeating(again), again, streamed)
        with journaled(store):
            assert await make(repeating(again), again, streamed) == expected
        assert store.models.keys() == journal.store.models.keys()
        assert store.tools.keys() == journal.store.tools.keys()


async def test_what_a_handoff_hides_from_the_model_is_taken_too(world: World) -> None:
    """The SDK still knows the calls that the next agent is not told of."""
    transfer = function_call("transfer_to_inner", {}, call_id="t")
    world.script = {"main 0": [call("a", "1", "c")], "main 1": [transfer]}
    world.script |= {"inner 0": [call("a", "2", "c")], "inner 1": "Done."}
    tools = [world.tool("a")]
    agent = main(
        tools=tools,
        handoffs=[
            agents.handoff(inner(tools=tools), input_filter=handoff_filters.remove_all_tools)
        ],
    )
    for store in [Store()] * 2:
        with journaled(store):
            result = await Runner.run(agent, "Go", run_config=world.config)
        assert result.final_output == "Done."
        assert [step.call_id for step in store.tools.values()] == ["c", "c_2"]
    assert world.happened() == {"a(1)": 1, "a(2)": 1}


async def test_a_call_does_not_inherit_an_approval(world: World) -> None:
    """Approved was the call before, which had the same id and the same arguments."""
    world.script = {f"main {number}": [call("a", "1", "c")] for number in (0, 1)}
    agent = main(tools=[world.tool("a", needs_approval=True)])
    with journaled(Store()):
        first = await Runner.run(agent, "Go", run_config=world.config)
    state = first.to_state()
    state.approve(first.interruptions[0])
    with journaled(Store(), segment="2"):
        second = await Runner.run(agent, state, run_config=world.config)
    assert [item.raw_item.call_id for item in second.interruptions] == ["c_2"]
    assert world.happened() == {"a(1)": 1}
    assert world.asked.total() == 2, "the SDK did not pass over it as a call that it knows"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kept", ["previous_response_id", "conversation_id"])
async def test_a_conversation_that_a_server_keeps_has_the_servers_ids(
    kept: Any, streamed: bool, world: World
) -> None:
    """It would not know another one. What the Runner passes over then is not in doubt."""
    again = call("a", "1", "c")
    world.model = ForgetfulModel([[again], [again, call("a", "2", "d")], [assistant_message("Ok")]])
    agent, store = main(tools=[world.tool("a")]), Store()
    with journaled(store):
        result = await run_of(agent, world, streamed, **{kept: "1"})
    assert result.final_output == "Ok"
    assert [step.call_id for step in store.tools.values()] == ["c", "d"]
    assert store.in_doubt() == []


async def test_a_journal_from_before_is_given_as_it_is(world: World) -> None:
    """What another version had stored is not changed under a run that goes on with it."""
    world.script = {"main 0": calls("c", "d")}
    agent, store = main(tools=[world.tool("a")]), Store()
    with journaled(store):
        await make(agent, world)
    step = store.models["main#1"]
    store.models["main#1"] = replace(step, response=step.response.replace('"d"', '"c"'))
    with journaled(store), pytest.raises(agents.ModelBehaviorError, match="reused a tool call ID"):
        await make(agent, world)


async def test_a_run_without_a_journal_is_left_alone(world: World) -> None:
    """Then the ids, and what the SDK makes of them, are as ever."""
    world.script = {"main 0": calls("c", "c")}
    agent = main(tools=[world.tool("a")])
    with pytest.raises(agents.ModelBehaviorError):
        await Runner.run(agent, "Go", run_config=world.config)
