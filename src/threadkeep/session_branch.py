"""A session is forked, or cut back to an earlier item; never in the middle of a call.

A call and its output stay together, whether they are kept or not: a model takes no half turn. So a
place between them is refused, and the error names the nearest ones that can be had.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from typing import Any

from uuid_utils import uuid7

from threadkeep.database import Database
from threadkeep.errors import InvalidInputError, SessionBusyError, SessionNotFoundError
from threadkeep.history import History, Position, branch_session, new_epoch, read_history
from threadkeep.mend import whole_cuts
from threadkeep.stored_sessions import get_session, session_object


async def fork_session(
    database: Database, session_id: str, owner: str, *, up_to: int | None = None
) -> dict[str, Any]:
    """Copies the first items of a session into a new one, with its title and metadata.

    Args:
        up_to: The seq of the last item that comes along. None: all, but for a call at the end whose
            output is not there yet.

    Returns:
        The new session.

    Raises:
        InvalidInputError: There is no such item, or it is parted from what belongs to it.
        SessionNotFoundError: There is none of this owner.
    """
    while True:
        history = await _read(database, session_id, owner)
        if up_to is None:
            keep, _ = await _whole(history, history.position.seq)
        else:
            keep = up_to
            await _check(history, keep, "up_to", 0)
        rows = await database.call(
            "fork_session",
            session_id=session_id,
            owner=owner,
            epoch=history.position.epoch,
            keep=keep,
            fork_id=str(uuid7()),
            new_epoch=new_epoch(),
        )
        if rows:
            return session_object(rows[0])


async def rewind_session(
    database: Database, session_id: str, owner: str, *, to: int
) -> tuple[dict[str, Any], str]:
    """Cuts a session back to before an item; all that it was is kept as a fork.

    Args:
        to: The seq of the first item that goes.

    Returns:
        The session, and the id of the fork.

    Raises:
        InvalidInputError: There is no such item, or it is parted from what belongs to it.
        SessionBusyError: A run has the session.
        SessionNotFoundError: There is none of this owner.
    """
    while True:
        history = await _read(database, session_id, owner)
        await _check(history, to - 1, "to", 1)
        fork_id = await branch_session(database, session_id, owner, history.position, to - 1)
        session = await get_session(database, session_id, owner)
        if fork_id is not None:
            return session, fork_id
        if session["active_response_id"]:
            raise SessionBusyError("Wait for its end, or stop it, and rewind then.")


async def _read(database: Database, session_id: str, owner: str) -> History:
    history = await read_history(database, session_id, owner)
    if history.position == Position():
        raise SessionNotFoundError
    return history


async def _check(history: History, keep: int, param: str, offset: int) -> None:
    """Refuses to cut a history where it is not, or where it must stay together.

    Args:
        keep: The seq of the last item to be kept.
        param: How the caller names the place.
        offset: What its number is more than `keep`.
    """
    count = history.position.seq
    if not 1 <= keep + offset <= count:
        raise InvalidInputError(
            f"{param} must be the seq of an item, and the session has {count}.", param=param
        )
    places = await _whole(history, keep)
    if keep not in places:
        near = [
            str(place + offset)
            for place in places
            if place is not None and 1 <= place + offset <= count
        ]
        raise InvalidInputError(
            f"{param} {keep + offset} lies between a call and what belongs to it. "
            + (f"The nearest that can be: {' or '.join(near)}." if near else "None can be."),
            param=param,
            code="half_turn",
        )


async def _whole(history: History, keep: int) -> tuple[int, int | None]:
    """The nearest places at or before `keep`, and at or behind it, where a history can be cut."""
    kept = bisect_right(history.seqs, keep, hi=history.count)
    below, above = await asyncio.to_thread(lambda: whole_cuts(history.items(), kept))
    if below == kept:
        return keep, keep
    seqs = [0, *history.seqs[: history.count]]
    return seqs[below], None if above is None else seqs[above]
