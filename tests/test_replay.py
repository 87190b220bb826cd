"""A run that is cut at any write of its journal and made again ends as it would have ended."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import agents
import pytest
from agents import Agent, FunctionTool, ModelSettings, RunConfig, Runner, UserError, function_tool
from agents.mcp import MCPServerStdio
from agents.retry import ModelRetrySettings
from agents.testing import ModelStep as Told
from agents.testing import ScriptedModel, assistant_message, function_call

from threadkeep.journal import Decision, ModelStep, ToolStep
from threadkeep.replay import InDoubtError, NotDeterministicError, idempotent, journaling, tool_key
from threadkeep.replay_tools import ToolResult, decode_outcome, encode_result

MCP_SERVER = """
import sys
from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("notes")

@server.tool(annotations=ToolAnnotations(idempotentHint=sys.argv[2] == "True"))
def note(x: str) -> str:
    print(f"note({x})", file=open(sys.argv[1], "a"), flush=True)
    return f"note of {x}"

server.run()
"""


class KilledError(Exception):
    """The process is no more."""


@dataclass
class Store:
    """What is durable of one run."""

    models: dict[str, ModelStep] = field(default_factory=dict)
    tools: dict[str, ToolStep] = field(default_factory=dict)

    def in_doubt(self) -> list[ToolStep]:
        """The calls of which only the intent is stored."""
        return [step for step in self.tools.values() if step.status == "intended"]


class StoreJournal:
    """A Journal over a Store, whose process dies at a write, before or after that is durable."""

    def __init__(self, store: Store, cut: int | None = None, stored: bool = False) -> None:
        self.store = store
        self.earlier = Store(dict(store.models), dict(store.tools))
        self.writes = 0
        self.answers: list[str] = []
        self.cut, self.stored, self.dead, self.delay = cut, stored, False, 0.0

    def model_step(self, key: str) -> ModelStep | None:
        return self.earlier.models.get(key)

    def tool_step(self, key: str) -> ToolStep | None:
        return self.earlier.tools.get(key)

    async def record_model(self, step: ModelStep, intents: Sequence[ToolStep]) -> None:
        assert step.key not in self.store.models, "asked twice"
        self.answers.append(step.key)
        await self._write({step.key: step}, {intent.key: intent for intent in intents})

    async def record_tool(self, step: ToolStep) -> None:
        before = self.store.tools.get(step.key)
        assert before is None or before.status != "done", "called twice"
        await self._write({}, {step.key: step})

    async def _write(self, models: dict[str, ModelStep], tools: dict[str, ToolStep]) -> None:
        cut_here = self.writes == self.cut
        self.writes += 1
        await asyncio.sleep(self.delay)
        if not self.dead and (self.stored or not cut_here):
            self.store.models |= models
            self.store.tools |= tools
        if cut_here or self.dead:
            self.dead = True
            await asyncio.sleep(0.015)  # what goes on beside it comes to its end, or to a write
            raise KilledError


def journaled(store: Store, *cut: Any, **options: Any) -> AbstractContextManager[None]:
    """Journals a run into a store, until it dies."""
    return journaling(StoreJournal(store, *cut), "resp_1", **options)


class ForgetfulModel(ScriptedModel):
    """Ends its stream with an empty answer, as some providers do."""

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for event in super().stream_response(*args, **kwargs):
            if event.type == "response.completed":
                event.response.output = []
            yield event


class World(agents.ModelProvider):
    """What lies outside of a run, and outlasts it: models, tools and what they did.

    The model answers by its instructions and how many tool outputs it sees: `script`, or a text.
    """

    def __init__(self, notes: Path, may_repeat: bool = False, mcp_server: Any = None) -> None:
        self.notes, self.may_repeat, self.mcp_server = notes, may_repeat, mcp_server
        notes.write_text("")
        self.script: dict[str, Any] = {}
        self.asked: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.keys: dict[str, set[str | None]] = {}
        usage = agents.Usage(requests=1, input_tokens=2, output_tokens=3, total_tokens=5)
        self.model = ForgetfulModel([Told.respond(self.answer)] * 99, default_usage=usage)
        self.config = RunConfig(model_provider=self, tracing_disabled=True)

    def get_model(self, model_name: str | None) -> ForgetfulModel:
        return self.model

    def answer(self, asked: Any) -> Any:
        """What the model says to a request."""
        outputs = [i["output"] for i in asked.input if i.get("type") == "function_call_output"]
        key = f"{asked.system_instructions} {len(outputs)}"
        self.asked[f"{key} {asked.input[0]['content']}"] += 1
        answer = self.script.get(key, f"{key}: {outputs}")
        return [assistant_message(answer)] if isinstance(answer, str) else answer

    def tool(
        self, name: str, *, delay: float = 0, error: str = "", result: Any = None, **options: Any
    ) -> FunctionTool:
        """A tool that leaves its mark."""

        async def body(x: str) -> Any:
            self.effects[f"{name}({x})"] += 1
            self.keys.setdefault(f"{name}({x})", set()).add(tool_key())
            await asyncio.sleep(delay)
            if error:
                raise ValueError(error)
            return f"{name} of {x}" if result is None else result

        function = idempotent(body) if self.may_repeat else body
        return function_tool(function, name_override=name, **options)

    def happened(self) -> Counter[str]:
        """How often each call took effect."""
        return self.effects + Counter(self.notes.read_text().split())


def call(name: str, x: str, call_id: str = "", argument: str = "x") -> Any:
    """A call of a tool, as a model makes it."""
    return function_call(name, {argument: x}, call_id=call_id or f"call_{name}_{x}")


ask = partial(call, "ask", argument="input")
main = partial(Agent[Any], "Main", instructions="main")
inner = partial(Agent[Any], "Inner", instructions="inner")


def plain(world: World) -> Agent[Any]:
    return main()


def one_tool(world: World) -> Agent[Any]:
    world.script = {"main 0": [call("a", "1")], "main 1": [call("a", "2")]}
    return main(tools=[world.tool("a")])


def parallel_tools(world: World) -> Agent[Any]:
    calls = [call("a", "1"), call("b", "1"), call("a", "2"), call("sync", "1")]
    world.script = {"main 0": [assistant_message("Wait."), *calls]}

    def sync(x: str) -> dict[str, Any]:
        world.effects[f"sync({x})"] += 1
        world.keys[f"sync({x})"] = {tool_key()}
        return {"x": x, "n": [1, 2.0, None]}

    image = agents.ToolOutputImage(image_url="https://example.com/i.png")
    last = idempotent(function_tool(sync)) if world.may_repeat else function_tool(sync)
    tools = [world.tool("a", delay=0.005), world.tool("b", result=image), last]
    return main(tools=tools, model=world.model)


def tools_that_fail(world: World) -> Agent[Any]:
    world.script = {"main 0": [call("bad", "1"), call("slow", "1")]}
    return main(tools=[world.tool("bad", error="no"), world.tool("slow", delay=9, timeout=0.01)])


def tool_that_ends_the_run(world: World) -> Agent[Any]:
    world.script = {"main 0": [call("a", "1")], "main 1": [call("bad", "1")]}
    return main(tools=[world.tool("a"), world.tool("bad", error="no", failure_error_function=None)])


def guarded_tool(world: World) -> Agent[Any]:
    """Whether these are called is decided after the answer is stored."""
    world.script = {"main 0": [call("a", "no"), call("a", "yes"), call("b", "yes")]}

    def refuse(data: Any) -> agents.ToolGuardrailFunctionOutput:
        if '"no"' in data.context.tool_arguments:
            return agents.ToolGuardrailFunctionOutput.reject_content("Refused.")
        return agents.ToolGuardrailFunctionOutput.allow()

    async def approve(_context: Any, _arguments: Any, _call_id: str) -> bool:
        return False

    guarded = world.tool("a", tool_input_guardrails=[agents.ToolInputGuardrail(refuse)])
    return main(tools=[guarded, world.tool("b", needs_approval=approve)])


def handoff(world: World) -> Agent[Any]:
    transfer = function_call("transfer_to_other", {}, call_id="call_t")
    world.script = {"main 0": [call("a", "1")], "main 1": [transfer], "other 2": [call("b", "1")]}
    other = Agent("Other", instructions="other", tools=[world.tool("b")], model=world.model)
    return main(tools=[world.tool("a")], handoffs=[other])


def agent_as_tool(world: World) -> Agent[Any]:
    world.script = {"main 0": [ask("why")], "inner 0": [call("a", "1")]}
    return main(tools=[inner(tools=[world.tool("a")]).as_tool("ask", None)])


def agents_as_tools(world: World) -> Agent[Any]:
    """The same agent twice at once, and again; its calls have the same ids each time."""
    world.script = {"inner 0": [call("a", "1", "call_0"), call("b", "2", "call_1")]}
    world.script |= {"main 0": [ask("why"), ask("how"), call("b", "1")], "main 3": [ask("when")]}
    tools = [world.tool("a", delay=0.002), world.tool("b")]
    asked = inner(tools=tools, model=world.model).as_tool("ask", None, on_stream=lambda _: None)
    return main(tools=[asked, tools[1]])


def agent_as_tool_that_fails(world: World) -> Agent[Any]:
    """The outer run goes on with an error that is gone when the run is made again."""
    error = "Well." if world.effects["b(1)"] else RuntimeError("overloaded")
    world.script = {"main 0": [ask("why")], "main 1": [call("b", "1")]}
    world.script |= {"inner 0": [call("a", "1")], "inner 1": error}
    return main(tools=[inner(tools=[world.tool("a")]).as_tool("ask", None), world.tool("b")])


def agents_inside_functions(world: World) -> Agent[Any]:
    world.script = {"main 0": [call("think", "1")], "inner 0": [call("a", "1")]}
    agent = inner(tools=[world.tool("a")])

    async def think(x: str) -> Any:
        return (await Runner.run(agent, x, run_config=world.config)).final_output

    async def check(_context: Any, _agent: Any, _input: Any) -> agents.GuardrailFunctionOutput:
        await Runner.run(agent, "check", run_config=world.config)
        return agents.GuardrailFunctionOutput(None, tripwire_triggered=False)

    guardrail: agents.InputGuardrail[Any] = agents.InputGuardrail(check, run_in_parallel=False)
    tool = function_tool(idempotent(think) if world.may_repeat else think)
    return main(tools=[tool], input_guardrails=[guardrail])


def mcp_tool(world: World) -> Agent[Any]:
    world.script = {"main 0": [call("note", "1"), call("note", "2")]}
    return main(mcp_servers=[world.mcp_server])


async def make(agent: Agent[Any], world: World, streamed: bool = False, text: str = "Go") -> Any:
    """Makes a run; returns what it leaves behind for whoever looks at it."""
    session = agents.SQLiteSession("s")
    await session.add_items([{"role": "user", "content": "Hi"}])
    run = Runner.run_streamed if streamed else Runner.run
    result: Any = run(agent, text, session=session, run_config=world.config)
    try:
        if not streamed:
            result = await result
        else:
            assert [event async for event in result.stream_events()]
    except UserError as error:  # a tool of the agent ended it
        return str(error), await session.get_items()
    usage = result.context_wrapper.usage
    return result.final_output, usage.requests, usage.total_tokens, await session.get_items()


async def take_over(build: Any, world: World, store: Store, streamed: bool) -> Any:
    """Makes a dead run again. Calls in doubt are found, and made again."""
    decisions: dict[str, Any] = {}
    while True:
        doubts = {step.key: step for step in store.in_doubt() if step.key not in decisions}
        try:
            with journaled(store, decisions=decisions):
                left = await make(build(world), world, streamed)
        except InDoubtError as error:
            calls = error.calls
        else:
            assert world.may_repeat or not doubts, "no call in doubt is made unasked"
            return left
        assert not world.may_repeat
        assert [doubts[step.key] for step in calls] == list(calls) != []
        decisions |= {step.key: Decision(run_again=True) for step in calls}


SCENARIOS = [plain, one_tool, parallel_tools, tools_that_fail, tool_that_ends_the_run]
SCENARIOS += [guarded_tool, handoff, agent_as_tool, agents_as_tools, agent_as_tool_that_fails]
SCENARIOS += [agents_inside_functions, mcp_tool]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("may_repeat", [False, True], ids=["in doubt", "idempotent"])
@pytest.mark.parametrize("build", SCENARIOS, ids=lambda build: build.__name__)
async def test_a_run_cut_at_any_write_ends_as_if_nothing_had_happened(
    build: Callable[[World], Agent[Any]], may_repeat: bool, streamed: bool, tmp_path: Path
) -> None:
    """What is stored is not done again; output, usage and the session are as ever."""
    if not hasattr(FunctionTool, "mcp_annotations"):  # this SDK drops what a tool says of itself
        may_repeat = may_repeat and build is not mcp_tool
    async with AsyncExitStack() as stack:
        server, notes = None, tmp_path / "notes"
        if build is mcp_tool:
            command = ["-c", MCP_SERVER, str(notes), str(may_repeat)]
            process = MCPServerStdio({"command": sys.executable, "args": command})
            server = await stack.enter_async_context(process)

        world = World(notes, may_repeat, server)
        expected = await make(build(world), world, streamed)
        happened, asked = world.happened(), world.asked

        world, store = World(notes, may_repeat, server), Store()
        journal = StoreJournal(store)
        with journaling(journal, "resp_1"):
            assert await make(build(world), world, streamed) == expected
        assert world.happened() == happened
        assert store.in_doubt() == []

        for cut, stored in [(n, s) for n in range(journal.writes) for s in (False, True)]:
            world, store = World(notes, may_repeat, server), Store()
            first = StoreJournal(store, cut, stored)
            with pytest.raises(KilledError), journaling(first, "resp_1"):
                await make(build(world), world, streamed)
            lost = [key for key in first.answers if key not in store.models]
            again = Counter(f"{t.name}({json.loads(t.arguments)['x']})" for t in store.in_doubt())
            assert await take_over(build, world, store, streamed) == expected
            assert not happened - world.happened()
            assert not world.happened() - happened - again, "only what was in doubt is made again"
            limit = len(lost) + (build is agent_as_tool_that_fails)
            assert (world.asked - asked).total() <= limit, "only what was not stored"
            for effect, keys in world.keys.items():
                assert len(keys - {None}) == happened[effect], "a call keeps its key"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world where nothing happened yet."""
    return World(tmp_path / "notes")


@pytest.mark.parametrize("build", [parallel_tools, agent_as_tool])
async def test_calls_in_doubt_end_the_run_until_somebody_decides(
    build: Callable[[World], Agent[Any]], world: World
) -> None:
    """No tool, and no agent as a tool, turns that into text; "unknown" is told to the model."""
    store = Store()
    writes = 0 if build is parallel_tools else 1
    with pytest.raises(KilledError), journaled(store, writes, True):
        await make(build(world), world)
    with pytest.raises(InDoubtError) as caught, journaled(store):
        await make(build(world), world)
    first = caught.value.calls[0]
    assert (first.name, first.call_id, first.arguments) == ("a", "call_a_1", '{"x":"1"}')
    assert len(caught.value.calls) == (4 if build is parallel_tools else 1)
    unknown: dict[str, Any] = {step.key: Decision(run_again=False) for step in caught.value.calls}
    with journaled(store, decisions=unknown):
        left = await make(build(world), world)
    assert "outcome unknown" in json.dumps(left)
    assert world.effects.total() == 0
    with journaled(store):
        assert await make(build(world), world) == left, "the decision is remembered"


@pytest.mark.parametrize("part", ["agent", "instructions", "input", "tools", "handoffs"])
async def test_a_run_that_asks_something_else_is_not_deterministic(part: str, world: World) -> None:
    """It ends, and says what differs, without asking the model or trying again."""
    changes: dict[str, Any] = {"instructions": {"instructions": "It is 12:03."}, "input": {}}
    changes |= {"agent": {"name": "Maine"}, "tools": {"tools": []}}
    changes |= {"handoffs": {"handoffs": [inner()]}}
    agent, store = one_tool(world), Store()
    retry = ModelRetrySettings(max_retries=2, policy=lambda _: True)
    agent.model_settings = ModelSettings(retry=retry)
    with journaled(store):
        await make(agent, world)
    asked = world.asked.total()
    changed = agent.clone(**changes[part])
    with pytest.raises(NotDeterministicError) as caught, journaled(store):
        await make(changed, world, text="Come" if part == "input" else "Go")
    assert caught.value.parts == (part,)
    assert world.asked.total() == asked


async def test_deltas_come_at_once_and_the_end_when_it_is_stored(world: World) -> None:
    """Nobody waits for the journal but for the end of an answer."""
    store, seen = Store(), set()
    journal = StoreJournal(store)
    journal.delay = 0.05
    with journaling(journal, "resp_1"):
        result = Runner.run_streamed(main(), "Go", run_config=world.config)
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                seen.add((event.data.type, len(store.models)))
    assert {("response.output_text.delta", 0), ("response.completed", 1)} <= seen


async def test_runs_at_once_do_not_mix_and_others_are_left_alone(world: World) -> None:
    """Each has its own journal, and tools their own keys; a run without one has none."""
    agent, stores = parallel_tools(world), [Store(), Store()]

    async def run(number: int) -> None:
        with journaling(StoreJournal(stores[number]), f"resp_{number}"):
            await make(agent, world, streamed=True)

    await asyncio.gather(run(0), run(1), make(agent, world))
    assert [(len(s.models), len(s.tools)) for s in stores] == [(2, 4), (2, 4)]
    assert stores[0].tools.keys() == stores[1].tools.keys()
    assert (world.effects["a(1)"], len(world.keys["a(1)"])) == (3, 3)
    assert None in world.keys["a(1)"]


@pytest.mark.parametrize("at", ["tool", "write"])
async def test_a_cancelled_call_is_in_doubt_unless_it_had_ended(at: str, world: World) -> None:
    """What a tool has done is still stored when the run is cancelled meanwhile."""
    world.script = {"main 0": [call("a", "1")]}
    agent, store = main(tools=[world.tool("a", delay=9 if at == "tool" else 0)]), Store()

    journal = StoreJournal(store)
    journal.delay = 0.05

    async def work() -> None:
        with journaling(journal, "resp_1"):
            await make(agent, world)

    run = asyncio.create_task(work())
    while not world.effects:  # noqa: ASYNC110 - it is the tool that says so
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    run.cancel()
    await asyncio.wait({run})
    await asyncio.sleep(0.1)
    assert run.cancelled()
    assert [s.status for s in store.tools.values()] == ["intended" if at == "tool" else "done"]


async def test_an_approved_call_is_a_segment_of_its_own(world: World) -> None:
    """A call that waits for a person was never in doubt; the Runner call after it is replayed."""
    world.script = {"main 0": [call("a", "1")]}
    agent, store = main(tools=[world.tool("a", needs_approval=True)]), Store()
    with journaled(store):
        waiting = await Runner.run(agent, "Go", run_config=world.config)
    assert store.tools == {}
    state = waiting.to_state().to_json()

    async def approved(journal: StoreJournal) -> Any:
        resumed = await agents.RunState.from_json(agent, state)
        resumed.approve(resumed.get_interruptions()[0])
        with journaling(journal, "resp_1", segment="2"):
            return (await Runner.run(agent, resumed, run_config=world.config)).final_output

    with pytest.raises(KilledError):
        await approved(StoreJournal(store, cut=2))
    assert await approved(StoreJournal(store)) == "main 1: ['a of 1']"
    assert world.effects == {"a(1)": 1}


async def test_a_model_call_that_is_retried_is_one_step(world: World) -> None:
    """The answer is found again under the same key."""
    world.model = ForgetfulModel([RuntimeError("overloaded"), [assistant_message("Ok")]])
    retry = ModelRetrySettings(max_retries=2, policy=lambda _: True)
    agent, store = main(model_settings=ModelSettings(retry=retry)), Store()
    for _ in range(2):
        with journaled(store):
            assert (await make(agent, world))[0] == "Ok"
    assert list(store.models) == ["main#1"]


def test_a_tools_output_comes_back_as_it_was() -> None:
    """Whatever is JSON keeps its value; anything else keeps the text that the model sees."""
    for output in ("", "\x00 \ud800 é", 1, 1.5, None, True, {"a": [1, {"b": None}]}, [{}]):
        assert decode_outcome(encode_result(ToolResult(output))).output == output
    for other in (date(2026, 1, 2), (1, 2), {1: 2}, float("nan"), b"x"):
        assert decode_outcome(encode_result(ToolResult(other))).output == str(other)
