"""The turn of a run at work: what it adds to its session, and how it is left when it ends early."""

from __future__ import annotations

from collections import Counter
from typing import cast

from agents import TResponseInputItem

from threadkeep.admission import Admitted, take_back
from threadkeep.database import Database
from threadkeep.history import read_history
from threadkeep.response_events import ResponseEvents
from threadkeep.run_entry import Entry
from threadkeep.run_log import RunLog, RunPlace
from threadkeep.run_request import RunRequest
from threadkeep.session import Session
from threadkeep.turn import TurnSession
from threadkeep.turn_end import DECLINED, Item, call_item, closing_items


class OpenTurn:
    """The turn of one run.

    Args:
        request: What the run is asked to do.
        place: Which run it is.
        database: Where the session lies.
        entry: Its way into the session.
        log: Takes what is added.
        converter: Knows what was said.
    """

    def __init__(
        self,
        request: RunRequest,
        place: RunPlace,
        database: Database,
        entry: Entry,
        log: RunLog,
        converter: ResponseEvents,
    ) -> None:
        self._request = request
        self._place = place
        self._database = database
        self._entry = entry
        self._log = log
        self._converter = converter
        self._session: TurnSession | None = None

    def begin(self) -> None:
        """Takes in what the session held, and what earlier attempts did, as soon as it is known."""
        admitted, request = self._entry.admitted, self._request
        if admitted is None or self._session is not None:
            return
        if request.store and admitted.journal_id:
            self._log.go_on_from(admitted.journal_id, admitted.steps)
        self._session = TurnSession(
            Session(request.session_id, database=self._database, owner=request.owner or None),
            admitted.base + (admitted.input if admitted.checkpoint else []),
            self._log if request.store else None,
            admitted.checkpoint.items if admitted.checkpoint else None,
        )

    @property
    def admitted(self) -> Admitted:
        """The turn, once it has begun."""
        assert self._entry.admitted is not None  # noqa: S101 - whoever asks has begun it
        return self._entry.admitted

    @property
    def session(self) -> TurnSession:
        """What the Runner reads and adds to, once the turn has begun."""
        assert self._session is not None  # noqa: S101 - whoever asks has begun it
        return self._session

    @property
    def is_stored(self) -> bool:
        """Whether it is in the session."""
        return self._entry.admitted is not None and self._request.store

    @property
    def may_be_taken_back(self) -> bool:
        """Whether no tool was called, nor anybody asked about one."""
        admitted = self._entry.admitted
        if admitted is None or self._converter.tool_started:
            return False
        return not admitted.steps.tools and admitted.checkpoint is None

    def close(self, note: str | None = None, *, waits_for_approval: bool = False) -> None:
        """Keeps what was said and done, and the Runner had not stored.

        Args:
            note: Why the turn failed, for the model to know.
            waits_for_approval: Whether its open calls were not made because nobody approved them.
        """
        if not self.is_stored:
            return
        kept = self.session.added
        said = [*self._converter.output, *self._unsaid_calls()]
        if waits_for_approval:
            closing = closing_items(said, kept, lambda _: None, note, DECLINED)
        else:
            closing = closing_items(said, kept, self._log.last_call, note)
        self.session.append(cast(list[TResponseInputItem], closing))

    async def take_back(self, *, with_what_was_stored: bool) -> bool:
        """Leaves the session as it was before the turn.

        Args:
            with_what_was_stored: Also when the run has stored something behind its input.

        Returns:
            Whether it was done: not where somebody else has changed the session since.

        Raises:
            DatabaseError: It could not be done.
        """
        if not self.is_stored:
            return True
        where = (self._database, self._request.session_id, self._request.owner)
        position = self.admitted.position
        if with_what_was_stored:
            position = (await read_history(*where)).position
        taken_back = await take_back(
            *where, self._place.run_id, self._place.attempt, self.admitted, position
        )
        if taken_back:
            self._log.drop_items()
        return taken_back

    def _unsaid_calls(self) -> list[Item]:
        """Calls that were made, and nobody was told of before a process died."""
        told = Counter(item["call_id"] for item in self._converter.output if _is_call(item))
        told += Counter(item["call_id"] for item in self.session.added if _is_call(item))
        return [call_item(step) for step in self._log.own_calls() if not told[step.call_id]]


def _is_call(item: Item) -> bool:
    return item.get("type") == "function_call"
