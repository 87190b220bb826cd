"""The conformance suite: all checks, and a report of how Sessions do in them.

Run it from a script with `score`, or from pytest by parametrizing a test over `checks`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from threadkeep.testing import callers, contents, one_caller, runs
from threadkeep.testing.check import Check, Damage, SessionFactory

SECONDS = 60.0
"""How long a check may take. It is there for what hangs; no check is about speed."""

GRACE_SECONDS = 5.0
"""How long a check that took too long has to clear up."""

checks: tuple[Check, ...] = (
    *callers.checks,  # it comes first: the store is new only once
    *one_caller.checks,
    *contents.checks,
    *runs.checks,
)
"""What every Session should do, and needs nothing but Sessions to be tried."""

damage_checks: tuple[Check, ...] = tuple(runs.damage_checks)
"""What every Session should do when a stored item is damaged; these need `damage`."""

_REASON_LENGTH = 200


@dataclass(frozen=True)
class Result:
    """How Sessions did in one check.

    Args:
        check: Which.
        reason: Why it failed, on one line; '' when it passed.
    """

    check: Check
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the Sessions do what the check claims."""
        return not self.reason


@dataclass(frozen=True)
class Report:
    """How Sessions did in all checks, in the order they were made. As text it is a table."""

    results: tuple[Result, ...]

    @property
    def failures(self) -> dict[str, str]:
        """The reason of each check that failed, by its name."""
        return {result.check.name: result.reason for result in self.results if not result.passed}

    def __str__(self) -> str:
        lines = ["| area | check | result |", "|---|---|---|"]
        for result in self.results:
            told = "passes" if result.passed else f"**fails:** {_in_a_cell(result.reason)}"
            lines.append(f"| {result.check.area} | {result.check.name} | {told} |")
        passed = len(self.results) - len(self.failures)
        return "\n".join([*lines, "", f"{passed} of {len(self.results)} pass."])


async def score(
    make: SessionFactory, *, damage: Damage | None = None, seconds: float = SECONDS
) -> Report:
    """Puts Sessions to all checks, one after the other.

    Each check uses session ids of its own and leaves its items in the store, so give it a store
    that can be thrown away. Sessions are closed after the check they were made for, if they have a
    `close`.

    Args:
        make: Makes a new Session object by its id, over the same store each time.
        damage: Makes the newest stored item of a session unreadable, given its id. Without it,
            `damage_checks` are left out.
        seconds: How long each check may take.
    """
    every = checks if damage is None else (*checks, *damage_checks)
    return Report(
        tuple([Result(check, await _reason(check, make, damage, seconds)) for check in every])
    )


async def _reason(check: Check, make: SessionFactory, damage: Damage | None, seconds: float) -> str:
    """Why a check fails; '' when it passes. Whatever a Session raises is a reason, not an error."""
    running = asyncio.ensure_future(check.run(make, damage=damage))
    try:
        await asyncio.wait({running}, timeout=seconds)
        in_time = running.done()
        if not in_time:
            running.cancel()
            await asyncio.wait({running}, timeout=GRACE_SECONDS)
    finally:
        running.cancel()
    error = None if not running.done() or running.cancelled() else running.exception()
    if not in_time:
        return f"it takes longer than {seconds:g} s"
    if running.cancelled():
        return "it was cancelled"
    return "" if error is None else _told(error)


def _told(error: BaseException) -> str:
    """An error on one line; an AssertionError speaks for itself."""
    text = " ".join(str(error).split())
    if not isinstance(error, AssertionError) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 1] + "…"


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|")
