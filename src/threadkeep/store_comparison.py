"""Two stores compared: what differs, and how; and work on many of their things at the same time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

SHOWN = 10
"""Of ids that something is wrong with, so many are named."""

MISSING = "not in TO: run the copy again"
CHANGED = "changed in FROM while it was copied, or since: run the copy again"
DIFFERENT = "not the same in TO: run the copy again, which brings what FROM has"
AHEAD = "has gone on in TO since it was copied"
UNKNOWN = "not in FROM"


@dataclass
class Troubles:
    """Ids with what is wrong with each: all are counted, and the first of them kept."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, an_id: str, what: str) -> None:
        """Takes one more."""
        self.counts[what] += 1
        if len(self.examples) < SHOWN:
            self.examples.append((an_id, what))

    def __len__(self) -> int:
        return self.counts.total()


@dataclass
class Comparison:
    """What came of comparing two stores.

    Attributes:
        source: Rows of the one, by table.
        target: Rows of the other.
        different: The ids that differ; see the constants above.
    """

    source: Counter[str] = field(default_factory=Counter)
    target: Counter[str] = field(default_factory=Counter)
    different: Troubles = field(default_factory=Troubles)


async def each(work: Callable[[S], Awaitable[T]], of: Sequence[S], at_once: int) -> list[T]:
    """Does work for all, several at the same time; none goes on when one has failed."""
    limit = asyncio.Semaphore(at_once)

    async def do(one: S) -> T:
        async with limit:
            return await work(one)

    tasks = [asyncio.create_task(do(one)) for one in of]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
