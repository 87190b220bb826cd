"""How a turn gets into its session: its input is stored and the session taken, or nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

from agents import TResponseInputItem
from uuid_utils import uuid7

from threadkeep.database import Database
from threadkeep.errors import SessionNotFoundError
from threadkeep.history import (
    Position,
    absorb,
    cache_of,
    encode_items,
    read_history,
)
from threadkeep.session import new_epoch, title_of
from threadkeep.turn import has_whole_view, plan_turn

LOST_AFTER_MS = 10_000
"""A run without a sign of life for so long has lost its process, in milliseconds."""

BUSY_POLL_SECONDS = 0.1
"""How often a run asks whether another process has given its session free."""


@dataclass(frozen=True)
class Admitted:
    """A turn that has begun.

    Args:
        base: The items before it.
        input: The items of the request that were new.
        position: Where the session stood with the input stored.
        made: Whether the session is new.
        fork_id: Where the branch lies that was cut off for this turn; '' when none was.
    """

    base: list[TResponseInputItem]
    input: list[TResponseInputItem]
    position: Position
    made: bool = False
    fork_id: str = ""


async def look(
    database: Database, session_id: str, owner: str, items: Sequence[TResponseInputItem]
) -> Admitted:
    """Admits a turn that is not to be stored: reads, and writes nothing.

    Raises:
        SessionNotFoundError: The session is another owner's.
        InvalidInputError: The request leaves nothing to answer.
    """
    history = await read_history(database, session_id, owner)
    stored = history.items()
    plan = plan_turn(stored, items)
    return Admitted(stored[: plan.keep], plan.new, history.position)


async def admit(
    database: Database,
    session_id: str,
    owner: str,
    run_id: str,
    items: Sequence[TResponseInputItem],
    *,
    idempotency_key: str | None,
    request_hash: str,
    created: str,
    on_busy: Callable[[], Awaitable[None]],
) -> Admitted:
    """Stores the input of a turn and takes its session; waits while another run has it.

    Args:
        database: Where the session lies.
        session_id: The conversation; made when it is new.
        owner: Whose it is; '' is nobody's.
        run_id: The run that the items belong to.
        items: The request. Where it tells another conversation than the one stored, the old one is
            kept as a fork.
        idempotency_key: Of the request, if it has one.
        request_hash: Of all that the client has sent.
        created: The first event of the run, as JSON.
        on_busy: Called each time that another process has the session.

    Raises:
        SessionNotFoundError: The session is another owner's; nothing was written.
        InvalidInputError: The request can't be stored; nothing was written.
        DuplicateError: There is a run with this key already; nothing was written.
    """
    while True:
        room = await _make_room(database, session_id, owner, items)
        if room is not None:
            run = {
                "run_id": run_id,
                "idempotency_key": idempotency_key,
                "request_hash": request_hash,
                "created": created,
            }
            begun = await _begin(database, session_id, owner, run, *room)
            if begun is not None:
                return begun
        await on_busy()
        await asyncio.sleep(BUSY_POLL_SECONDS)


async def take_back(
    database: Database, session_id: str, owner: str, run_id: str, admitted: Admitted
) -> None:
    """Undoes what admitted a turn, unless something was stored behind it or the run was lost."""
    await database.call(
        "take_back_turn",
        session_id=session_id,
        owner=owner,
        run_id=run_id,
        epoch=admitted.position.epoch,
        seq=admitted.position.seq,
        keep=admitted.position.seq - len(admitted.input),
        fork_id=admitted.fork_id,
        made=int(admitted.made),
        new_epoch=new_epoch(),
    )


async def _make_room(
    database: Database, session_id: str, owner: str, items: Sequence[TResponseInputItem]
) -> tuple[list[TResponseInputItem], str] | None:
    """Cuts the session back to where a whole view of it differs.

    Returns:
        The items that are new, and the id of the fork that keeps what was cut, or ''. None when the
        session was changed meanwhile, or a run has it.
    """
    if not has_whole_view(items):
        return list(items), ""
    history = await read_history(database, session_id, owner)
    plan = plan_turn(history.items(), items)
    if plan.keep == history.count:
        return plan.new, ""
    fork_id = str(uuid7())
    rows = await database.call(
        "branch_session",
        session_id=session_id,
        owner=owner,
        epoch=history.position.epoch,
        seq=history.position.seq,
        keep=history.seqs[plan.keep - 1] if plan.keep else 0,
        fork_id=fork_id,
        fork_epoch=new_epoch(),
        new_epoch=new_epoch(),
        stale_after=LOST_AFTER_MS,
    )
    return (plan.new, fork_id) if rows else None


async def _begin(
    database: Database,
    session_id: str,
    owner: str,
    run: dict[str, str | None],
    new: list[TResponseInputItem],
    fork_id: str,
) -> Admitted | None:
    """Stores the input and takes the session; None when another run has it."""
    known = cache_of(database).get(session_id, owner)
    first_epoch = new_epoch()
    rows = await database.call(
        "begin_turn",
        session_id=session_id,
        owner=owner,
        **run,
        items=encode_items(new, "input"),
        title=title_of(new),
        **asdict(known.position),
        new_epoch=first_epoch,
        stale_after=LOST_AFTER_MS,
    )
    if not rows[0]["owned"]:
        raise SessionNotFoundError
    if rows[0]["busy"]:
        return None
    head, base = rows[0]["head"], rows[0]["base"]
    if head is not None and len(rows) == head - base:
        history = absorb(database, session_id, owner, known, rows)
    else:
        # The statement waited for another append, and could not see what that had stored; or it
        # was made again, and had been done before.
        history = await read_history(database, session_id, owner)
    stored = history.items()
    made = history.position.epoch == first_epoch
    return Admitted(stored[: len(stored) - len(new)], new, history.position, made, fork_id)
