"""Threadkeep beside the original, databricks-openai: the same history, the same code, how fast.

    uv run --group dev python benchmarks/interop.py

The original runs in an environment of its own (databricks_openai/), both on a Lakebase of this
machine. The same program runs on both sides: on ours with one import changed. Exits with 1 when
something is not as it should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the Lakebase of the tests

from tests.fake_openai import fake_openai  # noqa: E402
from tests.lakebase import lakebase_stand_in  # noqa: E402
from threadkeep.adoption import Adoption, PeerTables  # noqa: E402
from threadkeep.connect import connect_postgres  # noqa: E402

PROJECT = Path(__file__).parent / "databricks_openai"
UV = os.environ.get("UV") or shutil.which("uv") or "uv"
THEIRS = "from databricks_openai.agents import AsyncDatabricksSession\n"
OURS = "from threadkeep.databricks import AsyncDatabricksSession\n"
ROUNDS = 5
SECONDS = 1.5
AT_ONCE, RACES = 8, 4

HELLO: Any = {"role": "user", "content": "Hello, I live in SF!"}
ANSWER: Any = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hi! 🌉", "annotations": [], "logprobs": []}],
}
CALL = {
    "id": "fc_1",
    "type": "function_call",
    "call_id": "call_1",
    "name": "get_weather",
    "arguments": '{"city": "São Paulo", "role": "user"}',
    "status": "completed",
}
OUTPUT = {
    "type": "function_call_output",
    "call_id": "call_1",
    "output": '{"role":"user","°C":-0.5}',
}
REASONING = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "They greet."}],
    "content": None,
    "encrypted_content": "gAAAA" * 400,
}
UNICODE = [
    {
        "role": "user",
        "content": "Grüße, 你好, שלום, \U0001f469\u200d\U0001f467, e\u0301, \u2028, \x00",
    },
    {"role": "user", "content": "half of a character: \ud83d"},
    {"role": "user", "content": [{"type": "input_text", "text": "\\ \" ' %s :name $1 {}\r\n\t"}]},
    {"role": "assistant", "content": "", "extra": [2**70, -0.0, 1e-300, 1.0, True, None, {}, []]},
]

Items = list[dict[str, Any]]
SESSIONS: list[tuple[str, dict[str, str], Items]] = [
    # Its schema comes first, so that its tables are in there: `in a late schema` has none, since
    # the original makes no tables where it sees those of `public`.
    ("in a schema", {"schema": "Crew-Memory"}, [HELLO, ANSWER]),
    ("messages", {}, [HELLO, ANSWER, {"role": "user", "content": "Thanks."}]),
    ("a tool", {}, [HELLO, CALL, OUTPUT, ANSWER]),
    ("unicode", {}, UNICODE),
    ("reasoning", {}, [HELLO, REASONING, ANSWER]),
    ("1,000 items", {}, [{"role": "user", "content": f"Item {n}"} for n in range(1000)]),
    ("a strange id; '💬'", {}, [HELLO, ANSWER]),
    ("in a late schema", {"schema": "late"}, [HELLO, ANSWER]),
    (
        "in own tables",
        {"sessions_table": "CrewSessions", "messages_table": "crew messages"},
        [HELLO, ANSWER],
    ),
    (
        "in own tables of a schema",
        {"schema": "Crew-Memory", "sessions_table": "talks", "messages_table": "talk_items"},
        [HELLO, ANSWER],
    ),
]


class Side:
    """A process that runs a program of `databricks_openai/`, on one side or the other.

    Args:
        command: Starts it.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        """The answer to a command of original.py."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({"do": what} | arguments), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the process ended ({self._process.wait()}); see above"
        return json.loads(line)

    def read(self, session: dict[str, str], times: int = 1) -> list[str]:
        """What so many readers at once get, as text, so that 1 is not 1.0 nor True."""
        return [json.dumps(items) for items in self.ask("read", session=session, times=times)]

    def close(self) -> None:
        """Lets it end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


class Interop:
    """Both sides, and whether all was as it should be.

    Args:
        folder: Holds the programs with our import.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.as_expected = True

    def check(self, what: str, holds: bool) -> None:
        """Reports one thing."""
        self.as_expected &= holds
        print(f"  {'as expected' if holds else 'NOT AS EXPECTED':15}  {what}", flush=True)

    @contextlib.contextmanager
    def side(self, *, ours: bool) -> Iterator[Side]:
        """original.py on one side, until the block ends."""
        side = Side(self._command("original.py", ours=ours))
        try:
            yield side
        finally:
            side.close()

    def turn(self, *arguments: str, ours: bool) -> dict[str, str]:
        """What documented.py answers on one side."""
        command = [*self._command("documented.py", ours=ours), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        answer: dict[str, str] = json.loads(done.stdout)
        return answer

    def _command(self, program: str, *, ours: bool) -> list[str]:
        file = PROJECT / program
        if not ours:
            return [UV, "run", "--quiet", "--project", str(PROJECT), "python", str(file)]
        source = file.read_text()
        assert source.count(THEIRS) == 1
        changed = self._folder / program
        changed.write_text(source.replace(THEIRS, OURS))
        return [sys.executable, str(changed)]


def main() -> int:
    """Runs all of it and reports.

    Returns:
        The exit code.
    """
    with contextlib.ExitStack() as running:
        lakebase = running.enter_context(lakebase_stand_in())
        enter(
            lakebase.environment(
                OPENAI_BASE_URL=running.enter_context(fake_openai()),
                OPENAI_API_KEY="none",
                OPENAI_AGENTS_DISABLE_TRACING="1",
                PYTHONPATH=str(ROOT),  # for agent_server
            )
        )
        interop = Interop(Path(running.enter_context(tempfile.TemporaryDirectory())))
        theirs = running.enter_context(interop.side(ours=False))
        ours = running.enter_context(interop.side(ours=True))
        same_history(interop, theirs, ours)
        same_code(interop, theirs, ours)
        asyncio.run(imported(interop, theirs, ours))
        side_by_side(theirs, ours)
    print("\nAll as expected." if interop.as_expected else "\nNot all as expected.")
    return 0 if interop.as_expected else 1


def enter(environment: dict[str, str]) -> None:
    """Gives this process and those that it starts the variables, and no others of their kind."""
    foreign = ("DATABRICKS_", "LAKEBASE_", "PG", "OPENAI_", "DATABASE_URL")
    of_uv = ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")  # they would lead the original into ours
    for name in [name for name in os.environ if name.startswith((*foreign, *of_uv))]:
        del os.environ[name]
    os.environ.update(environment)


def same_history(interop: Interop, theirs: Side, ours: Side) -> None:
    """What the original wrote is read here, from the first touch on, and stays what it was."""
    print("The original writes, both read:")
    write(theirs, "touched")
    for what, place, items in SESSIONS:
        session = {"session_id": f"touched: {what}"} | place
        wanted = json.dumps(items)
        here = ours.read(session) + ours.read(session)
        there = theirs.read(session)
        interop.check(what, [wanted] * 3 == here + there)
    print("The first touch of a session:")
    for what, touch in (("add", {"items": [HELLO]}), ("pop", {})):
        session = {"session_id": f"first touch: {what}"}
        theirs.ask("add", session=session, items=[HELLO, ANSWER])
        ours.ask(what, session=session, **touch)
        wanted = json.dumps([HELLO, ANSWER, HELLO] if what == "add" else [HELLO])
        interop.check(f"is to {what}", ours.read(session) == [wanted])
    wanted = json.dumps([HELLO, ANSWER])
    got = []
    for number in range(RACES):  # since at first there are too few connections for a race
        session = {"session_id": f"first touch: read at once, {number}"}
        theirs.ask("add", session=session, items=[HELLO, ANSWER])
        got += ours.read(session, AT_ONCE)
    empty = sum(read != wanted for read in got)
    interop.check(
        f"is to read by {AT_ONCE} at once, {RACES} times: {empty} of {len(got)} miss the history",
        not empty,
    )


def same_code(interop: Interop, theirs: Side, ours: Side) -> None:
    """The documented code, as it is and with one import changed."""
    print("The documented code, one import changed:")
    hello, question = "Hello, I live in SF!", "What city did I say I live in?"
    wanted = "You live in SF."
    for name, begins_here in (("begun by the original", False), ("begun here", True)):
        talk = interop.turn(hello, ours=begins_here)["session_id"]
        if not begins_here:
            reply = interop.turn(question, talk, ours=False)["reply"]
            assert reply == wanted, f"the original itself says {reply}"
        before = json.loads((ours if begins_here else theirs).read({"session_id": talk})[0])
        reply = interop.turn(question, talk, ours=True)["reply"]
        after = json.loads(ours.read({"session_id": talk})[0])
        goes_on = after[: len(before)] == before and len(after) == len(before) + 2
        interop.check(f"a talk that was {name} goes on: {reply}", goes_on and reply == wanted)


async def imported(interop: Interop, theirs: Side, ours: Side) -> None:
    """Everything is adopted at once; a second time changes nothing."""
    print("Import of all that the original has stored:")
    write(theirs, "left")
    emptied = {"session_id": "emptied"}
    theirs.ask("add", session=emptied, items=[HELLO])
    theirs.ask("pop", session=emptied)
    # And of the first touches those that added or read, and of the talks the original's.
    known = Counter(same=len(SESSIONS) + 1 + RACES + 1, different=1)
    await expect(interop, "first", known + Counter(adopted=len(SESSIONS), empty=1))
    for what, peer, items in SESSIONS:
        session = {"session_id": f"left: {what}"} | peer
        if ours.read(session) != [json.dumps(items)]:
            interop.check(f"{what} is the same here after the import", False)
    await expect(interop, "again", known + Counter(same=len(SESSIONS), empty=1))
    ours.ask("add", session={"session_id": "left: messages"}, items=[HELLO])
    await expect(interop, "ours has gone on in one", known + Counter(same=len(SESSIONS), empty=1))
    theirs.ask("add", session={"session_id": "left: a tool"}, items=[HELLO])
    wanted = known + Counter(same=len(SESSIONS) - 1, different=1, empty=1)
    await expect(interop, "the original has gone on in one", wanted)


async def expect(interop: Interop, what: str, wanted: Counter[str]) -> None:
    """Imports from all tables there are, and reports what came of the sessions."""
    found: Counter[str] = Counter()
    settings = {json.dumps(peer): peer for _, peer, _ in SESSIONS if peer != {"schema": "late"}}
    for peer in settings.values():
        database = connect_postgres()
        tables = PeerTables(
            peer.get("schema"),
            peer.get("sessions_table", "agent_sessions"),
            peer.get("messages_table", "agent_messages"),
        )
        adoption = Adoption(database, tables)
        count = await adoption.count()
        outcomes = Counter([done.outcome async for done in adoption.adopt_all()])
        assert outcomes.total() == count, f"{outcomes} of {count}"
        found += outcomes
        await database.close()
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))
    interop.check(f"{what}: {told}", found == wanted)


def write(theirs: Side, prefix: str) -> None:
    """Lets the original store all the sessions: half their items, then the others."""
    for what, place, items in SESSIONS:
        session = {"session_id": f"{prefix}: {what}"} | place
        half = len(items) // 2
        for part in (items[:half], items[half:]):
            theirs.ask("add", session=session, items=part)


def side_by_side(theirs: Side, ours: Side) -> None:
    """Turns per second: rounds alternate, each figure is a median; what counts is the ratio."""
    print("\nTurns per second        history  at once   original   threadkeep   ratio (range)")
    for anew in (True, False):
        for history in (10, 1000):
            for at_once in (1, 16):
                rates: dict[Side, list[float]] = {theirs: [], ours: []}
                for number in range(ROUNDS):
                    for side in (theirs, ours) if number % 2 else (ours, theirs):
                        rate = side.ask(
                            "turns",
                            name=f"turns {anew} {history} {at_once} {number} {side is ours}",
                            history=history,
                            at_once=at_once,
                            seconds=SECONDS,
                            anew=anew,
                        )
                        rates[side].append(rate)
                ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
                print(
                    f"{'a session per request' if anew else 'sessions kept':21}"
                    f"   {history:7}  {at_once:7}   {statistics.median(rates[theirs]):8.1f}"
                    f"   {statistics.median(rates[ours]):10.1f}"
                    f"   {statistics.median(ratios):5.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
