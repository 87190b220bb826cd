"""The embedded model itself, talking and killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from agents import (
    Agent,
    Model,
    ModelProvider,
    ModelSettings,
    ModelTracing,
    Runner,
    SQLiteSession,
    TResponseInputItem,
)
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseTextDeltaEvent,
)
from pydantic import BaseModel
from uuid_utils import uuid7

from tests.local_talk import (
    INSTRUCTIONS,
    UNTRACED,
    get_current_time,
    get_weather,
)
from threadkeep import Memory, Session
from threadkeep.connect import connect
from threadkeep.errors import ClosedError
from threadkeep.local import LocalRuntime
from threadkeep.local.errors import (
    InputTooLongError,
    LlamaEndedError,
    LlamaStartError,
)
from threadkeep.memory_extraction import QUIET_MS, extract_next, proposing


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def runtime() -> AsyncIterator[LocalRuntime]:
    """The real model. Where it is missing this fails and says which command brings it."""
    runtime = LocalRuntime(None, on_progress=lambda line: None)
    runtime.check()
    await runtime.start()
    yield runtime
    await runtime.aclose()


def agent(runtime: LocalRuntime, *tools: Any) -> Agent[None]:
    return Agent(
        name="Assistant", instructions=INSTRUCTIONS, model=runtime.model(), tools=list(tools)
    )


def events(
    runtime: LocalRuntime, text: str, *, max_tokens: int, tools: list[Any] | None = None
) -> Any:
    return runtime.model().stream_response(
        None,
        text,
        ModelSettings(max_tokens=max_tokens),
        tools or [],
        None,
        [],
        ModelTracing.DISABLED,
    )


@pytest.mark.asyncio(loop_scope="module")
class TestTheRealModel:
    """Every test here talks with llama.cpp and the real weights."""

    async def test_it_remembers_what_it_was_told(self, runtime: LocalRuntime) -> None:
        """The documented conversation, with a tool present that is not called."""
        session = SQLiteSession("documented")
        assistant = agent(runtime, get_current_time)
        first = await Runner.run(
            assistant, "Hello, I live in SF!", session=session, run_config=UNTRACED
        )
        second = await Runner.run(
            assistant, "What city did I say I live in?", session=session, run_config=UNTRACED
        )
        assert "SF" in second.final_output or "San Francisco" in second.final_output
        kinds = {item.type for item in (*first.new_items, *second.new_items)}
        assert kinds == {"message_output_item"}

    async def test_it_remembers_across_sessions(self, runtime: LocalRuntime) -> None:
        """What was said in one session is heeded in a new one, with the template's own tools; not
        what somebody else has said."""
        database = connect("sqlite://")

        async def say(owner: str, text: str) -> str:
            memory = Memory(owner, database=database)
            session = Session(str(uuid7()), database=database, owner=owner)
            config = memory.run_config(session, UNTRACED, tokens=300)
            assistant = agent(runtime, get_current_time, *memory.tools())
            result = await Runner.run(assistant, text, session=session, run_config=config)
            assert {item.type for item in result.new_items} == {"message_output_item"}
            return str(result.final_output)

        await say("ann", "My name is Ann and I am vegetarian")
        dinner = await say("ann", "Suggest a dinner")
        assert not re.search("(?i)chicken|beef|meat|fish|pork|salmon|shrimp|bacon|turkey", dinner)
        assert "Ann" in await say("ann", "What is my name?")
        assert "Ann" not in await say("bob", "What is my name?")
        await database.close()

    @pytest.mark.prove
    async def test_it_finds_what_is_worth_to_be_remembered(self, runtime: LocalRuntime) -> None:
        """Facts about the user that their words bear out; nothing in questions and small talk."""

        class Models(ModelProvider):
            def get_model(self, model_name: str | None) -> Model:
                return runtime.model()

        database = connect("sqlite://")
        told = ["My name is Ann and I am vegetarian", "I always run on Sundays."]
        others = ["Suggest a dinner", "What is the capital of France?", "Thanks!"]
        for text in (*told, *others):
            session = Session(str(uuid7()), database=database, owner="ann")
            await session.add_items([{"role": "user", "content": text}])
        await asyncio.sleep(QUIET_MS / 1000 + 0.1)
        while await extract_next(database, proposing(Models(), small=True)):
            continue
        memories = await Memory("ann", database=database).page(limit=9)
        found = [memory["description"] for memory in memories]
        assert len(found) == len(told)
        assert any("vegetarian" in description for description in found)
        assert any("run" in description for description in found)
        await database.close()

    async def test_it_calls_a_tool_and_answers_with_its_output(self, runtime: LocalRuntime) -> None:
        """The call is the SDK's own kind of item, and its output reaches the answer."""
        result = await Runner.run(
            agent(runtime, get_current_time), "What time is it?", run_config=UNTRACED
        )
        kinds = [item.type for item in result.new_items]
        assert kinds == ["tool_call_item", "tool_call_output_item", "message_output_item"]
        assert "16:20" in result.final_output or "4:20" in result.final_output

    async def test_it_fills_in_arguments(self, runtime: LocalRuntime) -> None:
        """Arguments are JSON of the tool's own schema, from the user's words."""
        response = await runtime.model().get_response(
            None,
            "What's the weather in Oslo?",
            ModelSettings(tool_choice="required"),
            [get_weather],
            None,
            [],
            ModelTracing.DISABLED,
        )
        (item,) = response.output
        assert isinstance(item, ResponseFunctionToolCall)
        assert json.loads(item.arguments) == {"city": "Oslo"}
        assert str(item.id).startswith("fc_")

    async def test_it_keeps_to_an_output_type(self, runtime: LocalRuntime) -> None:
        """Structured output is valid by grammar, not by luck."""

        class Place(BaseModel):
            city: str
            country: str

        structured: Agent[None] = Agent(
            name="Places", model=runtime.model(), output_type=Place, instructions="Find the place."
        )
        result = await Runner.run(structured, "I was born in Lyon.", run_config=UNTRACED)
        assert result.final_output.city == "Lyon"

    async def test_a_stream_is_whole(self, runtime: LocalRuntime) -> None:
        """Numbered from 0 without a gap; its deltas make its text; its usage is real."""
        seen = [event async for event in events(runtime, "Say hello.", max_tokens=20)]
        kinds = [event.type for event in seen if event.type != "response.output_text.delta"]
        assert kinds == [
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        last = seen[-1]
        assert isinstance(last, ResponseCompletedEvent)
        (message,) = last.response.output
        assert isinstance(message, ResponseOutputMessage)
        deltas = [event.delta for event in seen if isinstance(event, ResponseTextDeltaEvent)]
        assert len(deltas) > 1
        assert message.content[0].to_dict()["text"] == "".join(deltas)
        assert message.id.startswith("msg_")
        assert last.response.id.startswith("resp_")
        assert last.response.usage is not None
        assert 0 < last.response.usage.output_tokens <= 20

    async def test_max_tokens_is_kept(self, runtime: LocalRuntime) -> None:
        """A cut answer is still an answer, marked as incomplete."""
        *_, last = [event async for event in events(runtime, "Count to 100.", max_tokens=5)]
        assert last.response.usage.output_tokens == 5
        assert last.response.output[0].status == "incomplete"

    async def test_a_message_that_is_too_long_is_an_error_of_its_own(
        self, runtime: LocalRuntime
    ) -> None:
        """And the next one is answered as if nothing had been."""
        with pytest.raises(InputTooLongError):
            await Runner.run(agent(runtime), "long " * 5_000, run_config=UNTRACED)
        result = await Runner.run(agent(runtime), "What is 2 plus 2?", run_config=UNTRACED)
        assert "4" in result.final_output

    @pytest.mark.prove
    async def test_a_long_history_is_answered(self, runtime: LocalRuntime) -> None:
        """A thousand turns are no error and no wait: old ones are left out."""
        items: list[TResponseInputItem] = []
        for number in range(1_000):
            items += [
                {"role": "user", "content": f"Note number {number}, please."},
                {"role": "assistant", "content": f"I have note number {number}."},
            ]
        items.append({"role": "user", "content": "What is the capital of France?"})
        result = await Runner.run(agent(runtime), items, run_config=UNTRACED)
        assert "Paris" in result.final_output
        assert result.context_wrapper.usage.input_tokens < 2_000

    @pytest.mark.prove
    async def test_more_requests_than_slots_wait_their_turn(self, runtime: LocalRuntime) -> None:
        """Five at once, two slots: all are answered."""
        capitals = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Peru": "Lima"}
        asked = [
            Runner.run(agent(runtime), f"What is the capital of {country}?", run_config=UNTRACED)
            for country in capitals
        ]
        results = await asyncio.gather(*asked)
        for result, capital in zip(results, capitals.values(), strict=True):
            assert capital in result.final_output

    async def test_closing_a_stream_stops_the_generation(self, runtime: LocalRuntime) -> None:
        """Else the process would work on for an answer that nobody reads."""
        stream = events(runtime, "Write a very long poem about the sea.", max_tokens=1_000)
        async for event in stream:
            if isinstance(event, ResponseTextDeltaEvent):
                break
        assert await busy(runtime)
        await stream.aclose()
        for _ in range(10):
            if not await busy(runtime):
                return
        pytest.fail("the process went on after its stream was closed")

    async def test_a_killed_process_is_replaced_for_the_next_request(
        self, runtime: LocalRuntime
    ) -> None:
        """The connection breaks before a word was said, so the request is simply made again."""
        killed = runtime.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        result = await Runner.run(agent(runtime), "What is 2 plus 2?", run_config=UNTRACED)
        assert "4" in result.final_output
        assert runtime.pid != killed
        assert runtime.state == "ready"

    @pytest.mark.prove
    async def test_a_process_killed_in_mid_answer_is_an_error_of_its_own(
        self, runtime: LocalRuntime
    ) -> None:
        """Words that were streamed can't be taken back; the request after works."""
        stream = events(runtime, "Write a long poem.", max_tokens=1_000)
        async for event in stream:
            if isinstance(event, ResponseTextDeltaEvent):
                break
        assert runtime.pid is not None
        os.kill(runtime.pid, signal.SIGKILL)
        with pytest.raises(LlamaEndedError):
            async for _ in stream:
                pass
        result = await Runner.run(agent(runtime), "What is 2 plus 2?", run_config=UNTRACED)
        assert "4" in result.final_output

    async def test_nobody_without_the_key_is_answered(self, runtime: LocalRuntime) -> None:
        """Other users of the machine can reach the port, but read and ask nothing."""
        assert runtime.pid is not None
        shown = await asyncio.to_thread(ps, runtime.pid, "args")
        async with runtime._server.client() as client:  # noqa: SLF001  # the key is nobody's but its own
            assert client.api_key not in shown
            assert client.base_url.host == "127.0.0.1"
            address = f"{client.base_url}models"
        request = urllib.request.Request(address, headers={"Authorization": "Bearer wrong"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(urllib.request.urlopen, request)
        assert caught.value.code == 401
        caught.value.close()

    @pytest.mark.prove
    async def test_it_says_nothing_to_the_terminal(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """llama.cpp's notes stay away from the user; progress comes as a few lines."""
        lines: list[str] = []
        own = LocalRuntime(None, on_progress=lines.append)
        await own.start()
        await Runner.run(agent(own), "Hello", run_config=UNTRACED)
        await own.aclose()
        printed = capfd.readouterr()
        assert (printed.out, printed.err) == ("", "")
        assert 1 <= len(lines) <= 4
        with pytest.raises(ClosedError):
            await Runner.run(agent(own), "Hello", run_config=UNTRACED)

    async def test_a_file_that_can_not_be_loaded_is_an_error_with_its_reason(
        self, tmp_path: Path
    ) -> None:
        """Every request says so, and tries again: the file may be mended meanwhile."""
        path = tmp_path / "broken.gguf"
        path.write_bytes(b"GGUF" + b"\0" * 100)
        lines: list[str] = []
        broken = LocalRuntime(path, on_progress=lines.append)
        broken.check()
        assert broken.name == "broken"
        await broken.start()
        for _ in range(2):
            with pytest.raises(LlamaStartError):
                await Runner.run(agent(broken), "Hello", run_config=UNTRACED)
            assert broken.state == "failed"
        assert any("GGUF" in line for line in lines)
        await broken.aclose()


async def busy(runtime: LocalRuntime) -> bool:
    """Whether the process works: two threads that generate use seconds of processor time."""
    assert runtime.pid is not None
    before = await asyncio.to_thread(ps, runtime.pid, "time")
    await asyncio.sleep(3)
    return before != await asyncio.to_thread(ps, runtime.pid, "time")


def ps(pid: int, column: str) -> str:
    """A column of the system's list of processes; empty when there is no such process."""
    command = ["ps", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_the_process_ends_with_its_parent() -> None:
    """Even when the parent is killed and can say nothing."""
    code = textwrap.dedent(
        """
        import asyncio
        from threadkeep.local import LocalRuntime

        async def main():
            runtime = LocalRuntime(None, on_progress=lambda line: None)
            await runtime.start()
            while runtime.state == "loading":
                await asyncio.sleep(0.1)
            print(runtime.state, runtime.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    state, pid = parent.stdout.readline().split()
    assert state == "ready"
    assert ps(int(pid), "stat") != ""
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        # A zombie has ended; who adopts it in a container may never ask for it.
        if ps(int(pid), "stat").startswith("Z") or ps(int(pid), "stat") == "":
            return
        time.sleep(0.1)
    os.kill(int(pid), signal.SIGKILL)
    pytest.fail("the process outlived its parent")
