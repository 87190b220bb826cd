"""Three replicas on one Postgres, of which one is killed every second while people talk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.backends import new_postgres
from tests.client import Json
from threadkeep.replay import UNKNOWN_OUTCOME
from threadkeep.testing.crash_world import SCENARIOS, Marks, Scenario, plainly

LOST_AFTER_MS = 600
USERS = 8
LONGEST_TURN = 40.0
"""After how many seconds somebody counts as one who waits for ever."""


class Replicas:
    """Servers on ports of their own, each of which can be killed and started again."""

    def __init__(self, parent: asyncio.subprocess.Process) -> None:
        self.ports = [_free_port() for _ in range(3)]
        self.kills = 0
        self._parent = parent
        self._pids: dict[int, int] = {}

    async def start(self, port: int) -> None:
        """Starts the server of a port."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{port}\n".encode())
        self._pids[port] = int(await self._parent.stdout.readline())

    def kill(self, port: int) -> None:
        """Kills it."""
        os.kill(self._pids.pop(port), signal.SIGKILL)

    async def keep_killing(self) -> None:
        """Kills one every second, and starts it again."""
        for port in itertools.cycle(self.ports):
            await asyncio.sleep(1)
            self.kill(port)
            self.kills += 1
            await self.start(port)

    def kill_all(self) -> None:
        """Ends them."""
        for port in list(self._pids):
            self.kill(port)


@contextlib.asynccontextmanager
async def replicas(url: str, marks: Path) -> AsyncIterator[Replicas]:
    """Three of them."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.replica", url, str(marks), str(LOST_AFTER_MS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    running = Replicas(parent)
    try:
        for port in running.ports:
            await running.start(port)
        yield running
    finally:
        running.kill_all()
        parent.kill()
        await parent.wait()


@contextlib.asynccontextmanager
async def round_robin(ports: list[int]) -> AsyncIterator[str]:
    """A proxy that gives each connection to the next server that takes it; its address."""
    turns = itertools.cycle(ports)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in ports:
            try:
                there, back = await asyncio.open_connection("127.0.0.1", next(turns))
            except OSError:
                continue
            await asyncio.gather(pump(reader, back), pump(there, writer))
            return
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@dataclass
class User:
    """Somebody who talks, and does not give up.

    Attributes:
        said: The turns, by what was said.
        told: The events of its streamed turns, by the ids of their responses.
        retries: How often something had to be sent again.
    """

    client: httpx.AsyncClient
    session_id: str
    dice: random.Random
    said: list[Scenario] = field(default_factory=list)
    told: dict[str, list[Json]] = field(default_factory=dict)
    retries: int = 0

    async def talk(self, until: float) -> None:
        """Takes one turn after the other."""
        while time.monotonic() < until:
            scenario = self.dice.choice(list(SCENARIOS.values()))
            self.said.append(scenario)
            async with asyncio.timeout(LONGEST_TURN):
                await self._take_turn(scenario)

    async def _take_turn(self, scenario: Scenario) -> None:
        key = f"{self.session_id} {len(self.said)}"
        body = {"input": scenario.name, "custom_inputs": {"session_id": self.session_id}}
        if scenario.client == "streams":
            response = await self._stream(body | {"stream": True}, key)
        else:
            background = {"background": scenario.client == "polls"}
            response = await self.send("POST", "/responses", json=body | background, key=key)
        while response["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.1)
            response = await self.send("GET", f"/responses/{response['id']}")
        if response["status"] == "incomplete":
            await self._decide(response["id"])
            await self._until_done(scenario)
        else:
            assert response["status"] == "completed", response["error"]

    async def send(self, method: str, path: str, key: str = "", **more: Any) -> Json:
        """Sends a request until it is answered."""
        headers = {"idempotency-key": key} if key else {}
        while True:
            try:
                reply = await self.client.request(method, path, headers=headers, **more)
                if reply.status_code < 500:
                    result: Json = reply.json()
                    return result
            except httpx.TransportError:
                pass
            self.retries += 1
            await asyncio.sleep(0.05)

    async def _stream(self, body: Json, key: str) -> Json:
        """Asks for a stream, and follows it from where it broke off."""
        events: list[Json] = []
        while not (events and "response" in events[-1] and len(events) > 2):
            try:
                if events:
                    path = f"/responses/{events[0]['response']['id']}"
                    after = {"stream": True, "starting_after": events[-1]["sequence_number"]}
                    streaming = self.client.stream("GET", path, params=after)
                else:
                    headers = {"idempotency-key": key}
                    streaming = self.client.stream("POST", "/responses", json=body, headers=headers)
                async with streaming as reply:
                    async for line in reply.aiter_lines():
                        events += _events_of(line)
            except httpx.TransportError:
                self.retries += 1
                await asyncio.sleep(0.05)
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        response: Json = events[-1]["response"]
        self.told[response["id"]] = events
        return response

    async def _decide(self, response_id: str) -> None:
        """Decides about calls in doubt: the one or the other."""
        while True:
            page = await self.send("GET", "/approvals?status=pending&limit=100")
            asked = [a for a in page["data"] if a["previous_response_id"] == response_id]
            if not asked:
                return
            for approval in asked:
                body = {"approve": self.dice.random() < 0.5}
                await self.send("POST", f"/approvals/{approval['id']}", json=body)

    async def _until_done(self, scenario: Scenario) -> None:
        """Waits for the end of a turn that goes on in another response, or asks once more."""
        while not (await self.items())[-1].startswith("assistant: This is the end of"):
            await asyncio.sleep(0.1)
            page = await self.send("GET", "/approvals?status=pending&limit=100")
            for approval in page["data"]:
                if approval["session_id"] == self.session_id:
                    await self._decide(approval["previous_response_id"])

    async def items(self) -> list[str]:
        """What its session holds, plainly."""
        found: list[str] = []
        after, more = 0, True
        while more:
            path = f"/sessions/{self.session_id}/items"
            page = await self.send("GET", path, params={"after": after})
            found += [plainly(item) for item in page["data"]]
            after = page["data"][-1]["seq"] if page["data"] else after
            more = page["has_more"]
        return found


async def check(user: User, approvals: list[Json]) -> list[str]:
    """What is wrong with the session of a user: it must hold the turns in order, once and whole.

    The model gives a call the same id in every turn; from the second time on it is counted.
    """
    items, wrong = await user.items(), list[str]()
    uses = Counter[str]()
    rejected = {a["call_id"] for a in approvals if a["status"] == "rejected"}
    at = 0
    for number, scenario in enumerate(user.said):
        expected = [f"user: {scenario.name}"]
        outputs: list[str] = []
        for step in scenario.steps:
            uses.update(call.call_id for call in step)
            ids = [f"{call.call_id}_{uses[call.call_id]}".removesuffix("_1") for call in step]
            for call, call_id in zip(step, ids, strict=True):
                expected.append(f"call {call_id}: {call.tool} {call.thing}")
            for call, call_id in zip(step, ids, strict=True):
                outputs.append(UNKNOWN_OUTCOME if call_id in rejected else call.output)
                expected.append(f"output {call_id}: {outputs[-1]}")
        expected.append(f"assistant: {scenario.answer(outputs)}")
        if items[at : at + len(expected)] != expected:
            wrong.append(f"{user.session_id}, turn {number}: {items[at:]}, not {expected}")
            break
        at += len(expected)
    if items[at:]:
        wrong.append(f"{user.session_id}: there is more: {items[at:]}")
    for response_id, told in user.told.items():
        async with user.client.stream("GET", f"/responses/{response_id}?stream=true") as reply:
            lines = [line async for line in reply.aiter_lines()]
        if [event for line in lines for event in _events_of(line)] != told:
            wrong.append(f"{response_id} is not stored as it was told")
    return wrong


def check_effects(users: list[User], marks: Marks, approvals: list[Json]) -> list[str]:
    """What is wrong with what the tools did: each call once, but for what was decided."""
    wrong, done = [], dict[str, Counter[str]]()
    for mark in marks.read():
        if "did" in mark:
            done.setdefault(mark["did"], Counter())[mark["key"]] += 1
    calls = [call for u in users for scenario in u.said for step in scenario.steps for call in step]
    for name, count in Counter(f"{call.tool} {call.thing}" for call in calls).items():
        decided = Counter(
            approval["status"]
            for approval in approvals
            if f"{approval['name']} {json.loads(approval['arguments'])['thing']}" == name
        )
        keys = done.get(name, Counter())
        if not count - decided["rejected"] <= len(keys) <= count:
            wrong.append(f"{count} calls {name} were done {len(keys)} times; {decided}")
        if not name.startswith("look") and keys.total() - len(keys) > decided["approved"]:
            wrong.append(f"{name} was done again {keys.total() - len(keys)} times; {decided}")
    return wrong


async def all_approvals(user: User) -> list[Json]:
    """Those of everybody, oldest first."""
    found: list[Json] = []
    while True:
        after = found[-1]["id"] if found else ""
        page = await user.send("GET", "/approvals", params={"limit": 100, "after": after})
        found += page["data"]
        if not page["has_more"]:
            return found


async def test_replicas_are_killed_every_second(postgres: str, tmp_path: Path, prove: bool) -> None:
    """Eight people talk, plainly, streamed and in the background, with tools. Nothing is lost,
    nothing is there twice, no call is repeated unasked, and nobody waits for ever."""
    seed = random.SystemRandom().randrange(1 << 30) if prove else 1
    marks = Marks(tmp_path / "marks", 0)
    async with (
        replicas(new_postgres(postgres).url, tmp_path / "marks") as running,
        round_robin(running.ports) as url,
        httpx.AsyncClient(
            base_url=url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0)
        ) as client,
    ):
        users = [User(client, f"user-{n}", random.Random(f"{seed} {n}")) for n in range(USERS)]
        await users[0].send("GET", "/health")
        until = time.monotonic() + (60 if prove else 8)
        killing = asyncio.create_task(running.keep_killing())
        try:
            await asyncio.gather(*(user.talk(until) for user in users))
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
        approvals = await all_approvals(users[0])
        wrong = check_effects(users, marks, approvals)
        for user in users:
            own = [a for a in approvals if a["session_id"] == user.session_id]
            wrong += await check(user, own)
    turns, retries = sum(len(user.said) for user in users), sum(user.retries for user in users)
    print(f"\nseed {seed}: {turns} turns, {running.kills} replicas killed, {retries} retries,")
    print(f"{len(approvals)} calls in doubt decided")
    assert wrong == []
    assert turns > USERS
    assert running.kills >= (50 if prove else 2)


def _events_of(line: str) -> list[Json]:
    return [json.loads(line.removeprefix("data: "))] if line.startswith("data: {") else []


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
