"""Where a session can be cut: no call is parted from its output, whatever is stored."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_mend import PARTS, call, output, said, thought, user
from threadkeep.mend import Flaw, mend, whole_cuts

HALF = {Flaw.OPEN_CALL, Flaw.LONE_REASONING}


def halves(items: list[Any]) -> set[tuple[Flaw, int]]:
    """What is half in a history, and where."""
    return {(flaw, place) for flaw, place in mend(items).flaws if flaw in HALF}


@given(st.lists(st.sampled_from(PARTS), max_size=14))
@settings(max_examples=300, deadline=None)
def test_a_cut_makes_nothing_half(items: list[Any]) -> None:
    """What is half behind a cut was half before. The places that are named can be had themselves,
    and everything between them can't."""
    whole = halves(items)
    for keep in range(len(items) + 1):
        below, above = whole_cuts(items, keep)
        assert below <= keep
        assert above is None or above >= keep
        assert halves(items[:below]) <= whole
        assert whole_cuts(items, below) == (below, below)
        if above is not None:
            assert halves(items[:above]) <= whole
            assert whole_cuts(items, above) == (above, above)
        for between in range(below + 1, len(items) + 1 if above is None else above):
            assert whole_cuts(items, between) == (below, above)


def test_places_of_a_turn() -> None:
    """Before its reasoning, and behind its last output; between two steps too."""
    talk: list[Any] = [user(), thought(), call("1"), call("2"), output("2"), output("1")]
    talk += [call("3"), output("3"), said()]
    assert [whole_cuts(talk, keep)[0] for keep in range(10)] == [0, 1, 1, 1, 1, 1, 6, 6, 8, 9]
    assert whole_cuts([*talk, call("4")], 10) == (9, None)
    assert whole_cuts([*talk, call("4"), user()], 11) == (11, 11)
