"""The line of a session's runs in one process."""

from __future__ import annotations

import asyncio

from threadkeep.turn_line import TurnLine


class Waiting:
    """Somebody in line."""

    def give_way(self, how: str) -> None:
        raise NotImplementedError


async def test_places_are_in_the_order_of_run_ids() -> None:
    """Also when an older run is taken over later; what has the session already comes first."""
    line, first, second, holder = TurnLine(), Waiting(), Waiting(), Waiting()
    place = line.enter(second, "resp_2")
    line.enter(first, "resp_1")
    line.enter(holder, "")
    assert line.before(place) == [holder, first]


async def test_who_leaves_before_the_wait_begins_is_heard() -> None:
    """Else whoever waits would do so for ever."""
    line = TurnLine()
    place = line.enter(Waiting(), "resp_1")
    moved = line.moved
    line.leave(place)
    assert await asyncio.wait_for(moved.wait(), 1)
