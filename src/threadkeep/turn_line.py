"""Who works on a session next: one run at a time, in the order they came. For one event loop."""

from __future__ import annotations

import asyncio
from collections import deque

Place = asyncio.Future[None]
"""A place in line; done when its turn has come."""


class TurnLine:
    """The runs of this process that want one session. An asyncio.Lock would do, were a place in its
    line to be had without waiting for it: what a run does before it waits must not cost its place.
    """

    def __init__(self) -> None:
        self._places: deque[Place] = deque()

    def enter(self) -> Place:
        """Takes the last place."""
        place: Place = asyncio.get_running_loop().create_future()
        self._places.append(place)
        self._call_first()
        return place

    def leave(self, place: Place) -> None:
        """Gives up a place, wherever in line it is."""
        self._places.remove(place)
        self._call_first()

    def _call_first(self) -> None:
        if self._places and not self._places[0].done():
            self._places[0].set_result(None)
