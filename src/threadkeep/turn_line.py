"""Who works on a session next: one run at a time, in the order of their ids. For one event loop."""

from __future__ import annotations

import asyncio
from bisect import insort_left
from typing import Protocol


class Holder(Protocol):
    """A run that has a session, or waits for it."""

    def give_way(self, how: str) -> None:
        """Stops for another: `interrupt` keeps what was said, `rollback` nothing.

        Raises:
            RollbackError: It can't be rolled back.
        """
        ...


class Place:
    """A place in line.

    Args:
        holder: Who has it.
        order: Places are in the order of this.
    """

    def __init__(self, holder: Holder, order: str) -> None:
        self.holder = holder
        self.order = order


class TurnLine:
    """The runs of this process that want one session. An asyncio.Lock would do, were a place in its
    line to be had without waiting for it: what a run does before it waits must not cost its place.

    Attributes:
        moved: Set when somebody leaves. Each time it is another one: take it first, then look.
    """

    def __init__(self) -> None:
        self._places: list[Place] = []
        self.moved = asyncio.Event()

    def enter(self, holder: Holder, order: str) -> Place:
        """Takes the place of a run's id, or with '' the first, for what has the session already.

        Ids grow, so it is the last one, but for what is taken over. The database goes by them too:
        in another order two runs would wait for each other.
        """
        place = Place(holder, order)
        insort_left(self._places, place, key=lambda other: other.order)
        return place

    def leave(self, place: Place) -> None:
        """Gives up a place, wherever in line it is."""
        self._places.remove(place)
        self.moved.set()
        self.moved = asyncio.Event()

    def before(self, place: Place) -> list[Holder]:
        """Who comes before a place."""
        return [other.holder for other in self._places][: self._places.index(place)]
