"""One check of a Session: what it claims, how it is run, and what checks are written with.

A check gets a `Trial`: a session id of its own, and as many Session objects over the same store as
it asks for. It passes when it returns, and fails by whatever it raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from inspect import cleandoc, isawaitable
from typing import Any
from uuid import uuid4

from agents import TResponseInputItem
from agents.memory import Session

from threadkeep.errors import NonconformanceError

SessionFactory = Callable[[str], Awaitable[Session]]
"""Makes a new Session object by its id, over the same store each time, as another process does."""

Damage = Callable[[str], Awaitable[None]]
"""Makes the newest stored item of a session unreadable, behind the Session's back."""

_SHOWN = 80


class Trial:
    """One check under way.

    Args:
        make: Makes a Session by its id.
        damage: Damages what is stored, for the checks that need it.
        running: Closes the Sessions that were made, where they have a `close`.

    Attributes:
        session_id: The session of this check, which nobody has used before.
    """

    def __init__(
        self, make: SessionFactory, damage: Damage | None, running: AsyncExitStack
    ) -> None:
        self.session_id = f"conformance-{uuid4()}"
        self._make = make
        self._damage = damage
        self._running = running

    async def session(self, suffix: str = "") -> Session:
        """A new Session object.

        Args:
            suffix: Makes it another session: it is put behind the session id.
        """
        session = await self._make(self.session_id + suffix)
        close = getattr(session, "close", None)
        if callable(close):
            self._running.push_async_callback(_close, close)
        return session

    async def add_damaged(self, item: TResponseInputItem) -> None:
        """Stores an item that can't be read again."""
        if self._damage is None:
            raise TypeError("This check needs `damage`.")
        await (await self.session()).add_items([item])
        await self._damage(self.session_id)


@dataclass(frozen=True)
class Check:
    """Something that every Session should do.

    Args:
        name: In a few words; no two are the same.
        area: What it is about: one word or two.
        claim: What the Session should do, in a sentence or two.
        function: Tries it; raises when it is not so.
        rounds: How often it is tried, each time with a session of its own.
    """

    name: str
    area: str
    claim: str
    function: Callable[[Trial], Awaitable[None]]
    rounds: int = 1

    def __str__(self) -> str:
        return self.name

    async def run(self, make: SessionFactory, *, damage: Damage | None = None) -> None:
        """Puts Sessions to this check, and closes those that were made for it.

        Args:
            make: Makes a Session by its id.
            damage: Makes the newest stored item of a session unreadable; for `damage_checks`.

        Raises:
            NonconformanceError: It is not as claimed. What a Session raises itself is let through.
        """
        for _ in range(self.rounds):
            async with AsyncExitStack() as running:
                await self.function(Trial(make, damage, running))


class CheckList(list[Check]):
    """The checks of a module, in the order they are written."""

    def add(
        self, area: str, *, rounds: int = 1
    ) -> Callable[[Callable[[Trial], Awaitable[None]]], Check]:
        """Makes a check of a function: its name becomes the name, its docstring the claim."""

        def make(function: Callable[[Trial], Awaitable[None]]) -> Check:
            claim = " ".join(cleandoc(function.__doc__ or "").split())
            check = Check(function.__name__.replace("_", " "), area, claim, function, rounds)
            self.append(check)
            return check

        return make


def expect(holds: bool, otherwise: str) -> None:
    """Fails a check, with a line that says what is the case, unless it holds."""
    if not holds:
        raise NonconformanceError(otherwise)


def expect_items(
    found: Sequence[object], wanted: Sequence[object], where: str = "get_items()"
) -> None:
    """Fails unless the items are equal, 1 and 1.0 and True told apart.

    Args:
        found: What the Session gave.
        wanted: What it should have given.
        where: What gave it.
    """
    if len(found) != len(wanted):
        raise NonconformanceError(f"{where} has {len(found)} items, not {len(wanted)}")
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if _text(one) != _text(other):
            raise NonconformanceError(f"{where}[{index}] is {_short(one)}, not {_short(other)}")


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Awaits all at once, every one to its end.

    Returns:
        Their results, in order.

    Raises:
        BaseException: The first of what they raised.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def outcome_of(work: Awaitable[Any]) -> Any:
    """What the work returns, or what it raises, whatever that is."""
    return (await asyncio.gather(work, return_exceptions=True))[0]


def user(text: str) -> TResponseInputItem:
    """A message of a user."""
    return {"role": "user", "content": text}


def numbered(name: str, count: int) -> list[TResponseInputItem]:
    """A batch of messages that tell which batch they are of, and where they stand in it."""
    return [user(f"{name} {number}") for number in range(count)]


def expect_whole(found: Sequence[object], batches: Sequence[list[TResponseInputItem]]) -> None:
    """Fails unless the items found are all these batches, each in one piece, in any order."""
    texts = [_text(item) for item in found]
    for batch in batches:
        wanted = [_text(item) for item in batch]
        expect(wanted[0] in texts, f"a batch is lost that was added: {_short(batch[0])}")
        start = texts.index(wanted[0])
        expect(
            texts[start : start + len(wanted)] == wanted,
            f"the batch that begins with {_short(batch[0])} is not in one piece",
        )
    count = sum(len(batch) for batch in batches)
    expect(len(texts) == count, f"there are {len(texts)} items where {count} were added")


async def _close(close: Callable[[], object]) -> None:
    """Calls the `close` of a Session, which may be a coroutine function or not."""
    closing = close()
    if isawaitable(closing):
        await closing


def _text(item: object) -> str:
    return json.dumps(item, sort_keys=True)


def _short(item: object) -> str:
    text = json.dumps(item)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
