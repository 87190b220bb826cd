"""Turns per second of a Session, beside the SDK's own SQLiteSession in the same run.

    uv run --group dev python benchmarks/sessions.py

A turn is what the Runner makes of one: read the history, store the input, store the answer. Rounds
alternate between the two, and each figure is a median; what counts is the ratio.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents import SQLiteSession

from threadkeep import Session
from threadkeep.connect import connect

ROUNDS = 5
SECONDS = 1.5

MESSAGE: Any = {"role": "user", "content": "What city did I say I live in, and since when? " * 3}
ANSWER: Any = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "In San Francisco. " * 12, "annotations": []}],
}


async def main() -> None:
    """Measures and prints."""
    print("history  at once   SQLiteSession   threadkeep   ratio")
    with tempfile.TemporaryDirectory() as folder:
        database = connect(f"sqlite:///{folder}/ours.db")
        for history in (10, 1000):
            for at_once in (1, 64):
                ours, peer = [], []
                for number in range(ROUNDS):
                    name = f"{history}-{at_once}-{number}"
                    peer.append(await turns_per_second(peers(folder, name), history, at_once))
                    ours.append(
                        await turns_per_second(
                            lambda n, name=name: Session(f"{name}-{n}", database=database),
                            history,
                            at_once,
                        )
                    )
                ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
                print(
                    f"{history:7}  {at_once:7}   {statistics.median(peer):13.0f}"
                    f"   {statistics.median(ours):10.0f}   {ratio:5.1f}",
                    flush=True,
                )
        await database.close()


def peers(folder: str, name: str) -> Callable[[int], Any]:
    """The SDK's sessions of one round, in a file as ours are."""
    return lambda n: SQLiteSession(f"{name}-{n}", Path(folder) / "peer.db")


async def turns_per_second(session_of: Callable[[int], Any], history: int, at_once: int) -> float:
    """Runs turns on so many sessions at once, each with a history of so many items."""
    sessions = [session_of(n) for n in range(at_once)]
    for session in sessions:
        await session.add_items([MESSAGE, ANSWER] * (history // 2))
    end = time.perf_counter() + SECONDS
    done = 0

    async def work(session: Any) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await session.get_items()
            await session.add_items([MESSAGE])
            await session.add_items([ANSWER])
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(work(session) for session in sessions))
    took = time.perf_counter() - began
    for session in sessions:
        closed = session.close()
        if closed is not None:
            await closed
    return done / took


if __name__ == "__main__":
    asyncio.run(main())
