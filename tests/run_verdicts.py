"""What people want of calls that wait for them, as the test remembers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Wish:
    """What somebody asks to become of a call. It is not known yet whether that is decided.

    Args:
        approval_id: What is decided.
        call_id: The call.
        kind: `in_doubt` or `needs_approval`.
        approve: Whether it is to be made.
        reason: Why.
    """

    approval_id: str
    call_id: str
    kind: str
    approve: bool
    reason: str | None

    @property
    def status(self) -> tuple[str, str | None]:
        """The status and the reason of the approval when this is what was decided."""
        return ("approved" if self.approve else "rejected", self.reason)


class Verdicts:
    """All that was wanted.

    Attributes:
        always: The sessions whose tools need no approval any more.
    """

    def __init__(self) -> None:
        self.always: set[str] = set()
        self._ever: set[str] = set()
        self._wishes: list[Wish] = []
        self._made: set[str] = set()

    def want(self, wishes: Sequence[Wish], always_in: str = "") -> None:
        """Somebody begins to decide; `always_in` is the session that they never want to be asked
        about again."""
        self._wishes += wishes
        if always_in:
            self.always.add(always_in)
            self._ever.add(always_in)

    def take_back(self, wishes: Sequence[Wish]) -> None:
        """They were told that it is too late."""
        for wish in wishes:
            self._wishes.remove(wish)

    def made(self, approval_ids: Sequence[str]) -> None:
        """They were told that it is so, and nobody before."""
        assert not self._made & set(approval_ids), "it was decided twice"
        self._made |= set(approval_ids)

    def allow(self, session_id: str, call_id: str) -> bool:
        """Whether somebody wants that a call is made."""
        return session_id in self._ever or bool(self._approved(call_id, "needs_approval"))

    def made_again(self, call_id: str) -> int:
        """How often somebody wants that a call is made again."""
        return len(self._approved(call_id, "in_doubt"))

    def of(self, approval_id: str) -> set[tuple[str, str | None]]:
        """What an approval may have become."""
        return {wish.status for wish in self._wishes if wish.approval_id == approval_id}

    def _approved(self, call_id: str, kind: str) -> set[str]:
        return {
            wish.approval_id
            for wish in self._wishes
            if wish.approve and (wish.call_id, wish.kind) == (call_id, kind)
        }
