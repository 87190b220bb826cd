"""What runs of the SDK's Runner may count on: a history that a model takes, and turns in one piece.

A Session can't know by itself where a turn begins and ends. One that can be told has a method
`turn()` that gives an async context manager; where there is one, each run is made inside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from agents import (
    Agent,
    Model,
    ModelResponse,
    RunConfig,
    Runner,
    SessionSettings,
    TResponseInputItem,
    Usage,
    function_tool,
)
from agents.items import TResponseOutputItem, TResponseStreamEvent
from agents.memory import Session
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from threadkeep.testing.check import CheckList, Trial, expect, expect_items, outcome_of, user

checks = CheckList()
damage_checks = CheckList()

PATIENCE = 100
"""How many reads a run takes that waits for another one to get on. One that is not held up needs a
few; counted in reads and not in seconds, so that a slow store has the time it needs."""

Step = list[TResponseOutputItem] | Exception | Callable[[], Awaitable[list[TResponseOutputItem]]]

CALL: Any = {
    "id": "fc_old",
    "type": "function_call",
    "call_id": "call_old",
    "name": "look_up",
    "arguments": "{}",
    "status": "completed",
}
OUTPUT: Any = {"type": "function_call_output", "call_id": "call_old", "output": "found"}
ANSWER: Any = {
    "id": "msg_old",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "old answer", "annotations": []}],
}


class ScriptedModel(Model):
    """Says what it is told to. The SDK has one of its own, but not in releases before 0.22.

    Args:
        steps: What it does at each call: items it says, an error it raises, or a function to ask.

    Attributes:
        given: The input of each call so far.
    """

    def __init__(self, *steps: Step) -> None:
        self.given: list[list[Any]] = []
        self._steps = list(steps)

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        self.given.append([user(input)] if isinstance(input, str) else list(input))
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        output = await step() if callable(step) else step
        return ModelResponse(output=output, usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        raise NotImplementedError("No check streams.")


@checks.add("repair")
async def a_model_gets_no_call_without_output(trial: Trial) -> None:
    """After a crash in the middle of a tool call, and in the turns after that, a model is given no
    call without its output, which no provider takes."""
    session = await trial.session()
    await session.add_items([user("old question"), CALL])
    await _expect_usable(trial, ["old question"])


@checks.add("repair")
async def a_model_gets_no_output_without_call(trial: Trial) -> None:
    """A tool's output whose call is gone, as after a clear while the tool ran, is not given to a
    model, which would refuse it in every turn to come."""
    session = await trial.session()
    await session.add_items([OUTPUT, user("old question")])
    await _expect_usable(trial, ["old question"])


@checks.add("repair")
async def a_limit_leaves_no_half_of_a_call(trial: Trial) -> None:
    """A limit that falls between a call and its output gives neither to a model."""
    session = await trial.session()
    await session.add_items([user("old question"), CALL, OUTPUT, ANSWER])
    session.session_settings = SessionSettings(limit=2)
    model = ScriptedModel([_message("new")])
    await _turn(session, model, "new question")
    _expect_pairs(model.given[0])
    expect("old answer" in json.dumps(model.given[0]), "the model is not given the newest items")


@damage_checks.add("repair")
async def a_damaged_item_hides_nothing_else(trial: Trial) -> None:
    """An item that can't be read is left out; those before and behind it are read, with a limit
    too, and the session goes on."""
    session = await trial.session()
    await session.add_items([user("1"), user("2")])
    await trial.add_damaged(user("3"))
    reader = await trial.session()
    expect_items(await reader.get_items(), [user("1"), user("2")])
    await session.add_items([user("4")])
    reader = await trial.session()
    expect_items(await reader.get_items(limit=1), [user("4")], "get_items(limit=1)")
    expect_items(await reader.get_items(limit=2), [user("2"), user("4")], "get_items(limit=2)")
    expect_items(await reader.get_items(), [user("1"), user("2"), user("4")])


@damage_checks.add("repair")
async def pop_passes_over_a_damaged_item(trial: Trial) -> None:
    """`pop_item()` gives the newest item that can be read, and None only when there is none."""
    await (await trial.session()).add_items([user("1"), user("2")])
    await trial.add_damaged(user("3"))
    session = await trial.session()
    taken = [await session.pop_item() for _ in range(3)]
    expect_items(taken, [user("2"), user("1"), None], "what was popped")
    await session.add_items([user("4")])
    expect_items(await session.get_items(), [user("4")])


@damage_checks.add("repair")
async def a_damaged_call_hides_its_output_from_models(trial: Trial) -> None:
    """When a call can't be read, its output is not given to a model, which would refuse it in every
    turn to come."""
    session = await trial.session()
    await session.add_items([user("old question")])
    await trial.add_damaged(CALL)
    await session.add_items([OUTPUT, ANSWER])
    await _expect_usable(trial, ["old question", "old answer"])


@checks.add("turns")
async def a_run_is_given_the_turns_before(trial: Trial) -> None:
    """A run stores its question, its call, the output and its answer, and the next run is given
    them, in this order."""
    await _turn(await trial.session(), _with_tool("first"), "question of first")
    second = ScriptedModel([_message("second")])
    await _turn(await trial.session(), second, "question of second")
    stored = await (await trial.session()).get_items()
    kinds = ["message", "function_call", "function_call_output", "message", "message", "message"]
    expect_items(_kinds(stored), kinds, "the kinds of the items stored")
    expect_items(_kinds(second.given[0]), kinds[:5], "the kinds of the items given")


@checks.add("turns")
async def turns_at_once_stay_in_one_piece(trial: Trial) -> None:
    """Of two runs at once on one session, both turns are stored whole, one behind the other; or one
    run is refused, and stores nothing."""
    refused, _ = await _two_runs(trial)
    stored = [json.dumps(item) for item in await (await trial.session()).get_items()]
    owners = ["first" if "first" in text else "second" for text in stored]
    wanted = [["first"] * 4, ["second"] * 4]
    if refused:
        expect(owners == wanted[0], f"a run was refused, and {len(owners)} items are stored, not 4")
    else:
        in_order = (wanted[0] + wanted[1], wanted[1] + wanted[0])
        expect(owners in in_order, f"the items stored are of {', '.join(owners)}")


@checks.add("turns")
async def a_run_is_given_whole_turns(trial: Trial) -> None:
    """A run that begins in the middle of another one's turn is given all of that turn or nothing of
    it, never a question that is just being answered."""
    _, given = await _two_runs(trial)
    for items in given:
        count = sum("first" in json.dumps(item) for item in items)
        expect(count in (0, 4), f"a run is given {count} of the 4 items of another one's turn")


@checks.add("turns")
async def a_failed_turn_is_stored_once_when_sent_again(trial: Trial) -> None:
    """When a model fails and the user's message is sent again, the message is in the session once,
    and the model is given it once."""
    model = ScriptedModel(ConnectionError("the model is away"), [_message("first")])
    outcome = await outcome_of(_turn(await trial.session(), model, "question of first"))
    expect(isinstance(outcome, ConnectionError), f"the run did not fail but gave {outcome!r}")
    await _turn(await trial.session(), model, "question of first")
    for where, items in (
        ("in the session", await (await trial.session()).get_items()),
        ("given to the model", model.given[-1]),
    ):
        count = sum("question of first" in json.dumps(item) for item in items)
        expect(count == 1, f"the user's message is {count} times {where}")


async def _two_runs(trial: Trial) -> tuple[bool, list[list[Any]]]:
    """Begins a second run while the model of the first one thinks, and lets both end.

    Returns:
        Whether the second one was refused, and what its model was given at each call.
    """
    elsewhere = await trial.session("-elsewhere")
    other = await trial.session()
    model = _with_tool("second")
    second: list[asyncio.Future[None]] = []

    async def think() -> list[TResponseOutputItem]:
        second.append(asyncio.ensure_future(_turn(other, model, "question of second")))
        for _ in range(PATIENCE):
            if model.given or second[0].done():
                break
            await elsewhere.get_items()
            await asyncio.sleep(0)
        return [_call("first")]

    first = ScriptedModel(think, [_message("first")])
    try:
        await _turn(await trial.session(), first, "question of first")
    finally:
        outcome = await outcome_of(asyncio.gather(*second))
    return isinstance(outcome, BaseException), model.given


async def _expect_usable(trial: Trial, kept: Sequence[str]) -> None:
    """Expects that two turns can be made, and that the texts are still given to the model."""
    model = ScriptedModel([_message("1")], [_message("2")])
    for number in range(2):
        await _turn(await trial.session(), model, f"new question {number}")
        _expect_pairs(model.given[number])
        given = json.dumps(model.given[number])
        for text in (*kept, f"new question {number}"):
            expect(text in given, f"the model is not given {text!r}")
    expect("answer of 1" in json.dumps(model.given[1]), "the model is not given its first answer")


def _expect_pairs(items: Sequence[Any]) -> None:
    """Expects an output behind every call, and a call before every output."""
    calls = [item["call_id"] for item in items if item.get("type") == "function_call"]
    open_calls: list[str] = []
    for item in items:
        if item.get("type") == "function_call":
            open_calls.append(item["call_id"])
        if item.get("type") == "function_call_output":
            expect(item["call_id"] in open_calls, "the model is given an output without its call")
            open_calls.remove(item["call_id"])
    expect(not open_calls, f"the model is given {len(open_calls)} of {len(calls)} calls alone")


async def _turn(session: Session, model: Model, text: str) -> None:
    """One run, inside the Session's `turn()` where it has one."""
    agent = Agent(name="conformance", model=model, tools=[look_up])
    turn = getattr(session, "turn", None)
    async with turn() if callable(turn) else contextlib.nullcontext() as given:
        inside = given if isinstance(given, Session) else session
        config = RunConfig(tracing_disabled=True)
        await Runner.run(agent, text, session=inside, run_config=config)


@function_tool
async def look_up() -> str:
    """Finds what it is asked for."""
    return "found"


def _with_tool(name: str) -> ScriptedModel:
    """A model that calls the tool, then answers; `name` is in all it says."""
    return ScriptedModel([_call(name)], [_message(name)])


def _call(name: str) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id=f"fc_{name}",
        call_id=f"call_{name}",
        type="function_call",
        name="look_up",
        arguments="{}",
        status="completed",
    )


def _message(name: str) -> ResponseOutputMessage:
    text = ResponseOutputText(type="output_text", text=f"answer of {name}", annotations=[])
    return ResponseOutputMessage(
        id=f"msg_{name}", type="message", role="assistant", status="completed", content=[text]
    )


def _kinds(items: Sequence[Any]) -> list[str]:
    return [item.get("type", "message") for item in items]
