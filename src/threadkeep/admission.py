"""How a turn gets into its session: its input is stored and the session taken, or nothing is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from agents import TResponseInputItem

from threadkeep.checkpoint import Checkpoint, read_checkpoint
from threadkeep.database import Database, Row
from threadkeep.errors import (
    QueueFullError,
    RunLostError,
    SessionFullError,
    SessionNotFoundError,
    TurnGoneError,
)
from threadkeep.history import (
    Position,
    absorb,
    branch_session,
    cache_of,
    encode_items,
    new_epoch,
    read_history,
)
from threadkeep.stored_runs import Steps, read_steps
from threadkeep.titles import title_of
from threadkeep.turn import has_whole_view, plan_turn


@dataclass(frozen=True)
class Admitted:
    """A turn that has begun.

    Args:
        base: The items before it.
        input: The items of the request that were new.
        position: Where the session stood when it had begun.
        base_seq: The seq of the last item before it.
        input_hash: Of the input as it is stored.
        made: Whether the session is new.
        fork_id: Where the branch lies that was cut off for this turn; '' when none was.
        journal_id: The run whose steps it goes on from; '' when it begins.
        steps: What is stored of them.
        checkpoint: Where the Runner had stopped, when it is gone on from there.
        approved_tools: Those that need no approval in this turn, as `tool_id` names them.
    """

    base: list[TResponseInputItem]
    input: list[TResponseInputItem]
    position: Position
    base_seq: int = 0
    input_hash: str = ""
    made: bool = False
    fork_id: str = ""
    journal_id: str = ""
    steps: Steps = field(default_factory=Steps)
    checkpoint: Checkpoint | None = None
    approved_tools: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Entrant:
    """A run that wants into a session.

    Args:
        run_id: The run.
        session_id: The conversation; made when it is new.
        owner: Whose it is; '' is nobody's.
        attempt: The how manieth process works on it, from 1.
        request: What it takes to make the run again, as JSON; None: nobody else can.
        request_hash: Of all that the client has sent.
        idempotency_key: Of the request, if it has one.
        created: The first event of the run, as JSON; '' for none.
        waits: Whether it is stored as one that waits, and must be found so.
        temporary: 1: what is said in a session that it makes is not remembered; else 0.
    """

    run_id: str
    session_id: str
    owner: str
    attempt: int
    request: str | None
    request_hash: str
    idempotency_key: str | None
    created: str
    waits: bool
    temporary: int = 0


OnBusy = Callable[[str | None], Awaitable[None]]
"""Called each time that a session can't be had, with the run that has it, where that is known."""


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


async def queue(database: Database, entrant: Entrant, limit: int) -> None:
    """Stores a run that waits for its session, so that other processes know of it.

    Raises:
        SessionNotFoundError: The session is another owner's; nothing was written.
        QueueFullError: So many wait already; nothing was written.
        DuplicateError: There is a run with this key already; nothing was written.
    """
    rows = await database.call(
        "queue_run",
        run_id=entrant.run_id,
        session_id=entrant.session_id,
        owner=entrant.owner,
        idempotency_key=entrant.idempotency_key,
        request_hash=entrant.request_hash,
        request=entrant.request,
        created=entrant.created,
        limit=limit,
    )
    if not rows:
        raise SessionNotFoundError
    if not rows[0]["stored"]:
        raise QueueFullError(limit)


async def admit(
    database: Database,
    entrant: Entrant,
    items: Sequence[TResponseInputItem],
    most_items: int,
    on_busy: OnBusy,
) -> Admitted:
    """Stores the input of a turn and takes its session; waits while another run has it.

    The input of a turn that had failed on its way is not stored again: that turn is gone on with.

    Args:
        database: Where the session lies.
        entrant: The run that the items belong to.
        items: The request. Where it tells another conversation than the one stored, the old one is
            kept as a fork.
        most_items: How many items a session may have with this input.
        on_busy: Waits, or raises.

    Raises:
        SessionNotFoundError: The session is another owner's; nothing was written.
        InvalidInputError: The request can't be stored; nothing was written.
        SessionFullError: The session has no room for it; nothing was written.
        DuplicateError: There is a run with this key already; nothing was written.
    """
    while True:
        room = await _make_room(database, entrant, items, most_items)
        if isinstance(room, Admitted):
            return room
        holder = None
        if room is not None:
            begun = await _begin(database, entrant, *room, most_items)
            if isinstance(begun, Admitted):
                return begun
            holder = begun["busy_run_id"]
            if begun["open_run_id"]:
                resumed = await resume(database, entrant, begun["open_run_id"])
                if resumed is not None:
                    return resumed
            elif begun["full"]:
                raise SessionFullError(most_items)
        await on_busy(holder)
        entrant = replace(entrant, waits=True)


async def go_on(
    database: Database, entrant: Entrant, open_run_id: str, on_busy: OnBusy
) -> Admitted:
    """Takes up the turn of a run that has ended, as soon as the session can be had.

    Raises:
        TurnGoneError: The session has gone on; nothing was written.
    """
    while True:
        resumed = await resume(database, entrant, open_run_id)
        if resumed is not None:
            return resumed
        rows = await database.call(
            "get_session", session_id=entrant.session_id, owner=entrant.owner
        )
        if not rows or rows[0]["open_run_id"] != open_run_id:
            raise TurnGoneError
        await on_busy(rows[0]["run_id"])
        entrant = replace(entrant, waits=True)


async def resume(database: Database, entrant: Entrant, open_run_id: str) -> Admitted | None:
    """Takes up the turn of a run that has ended; None when the session can't be had."""
    rows = await database.call(
        "resume_turn", **asdict(entrant), open_run_id=open_run_id, new_epoch=new_epoch()
    )
    if not rows:
        return None
    return await readmit(database, entrant.session_id, entrant.owner, rows[0])


async def readmit(database: Database, session_id: str, owner: str, run: Row) -> Admitted:
    """A turn that had begun before, as it stands.

    Args:
        run: Its `journal_id`, `base_seq`, `input_count`, `fork_id`, `made`, `checkpoint_run_id`
            and `approved_tools`.

    Raises:
        RunLostError: Its input, or where it had stopped, is not there any more.
    """
    checkpoint, stopped = None, run["checkpoint_run_id"]
    steps = await read_steps(database, owner, run["journal_id"], stopped)
    if stopped:
        checkpoint = await read_checkpoint(database, owner, stopped, steps.answers)
    history = await read_history(database, session_id, owner)
    base_seq, end = run["base_seq"], run["base_seq"] + run["input_count"]
    if history.position.seq < end:
        raise RunLostError
    items = history.between(base_seq, end)
    return Admitted(
        history.between(0, base_seq),
        items,
        history.position,
        base_seq,
        _input_hash(encode_items(items, "input")),
        bool(run["made"]),
        run["fork_id"],
        run["journal_id"],
        steps,
        checkpoint,
        frozenset(json.loads(run["approved_tools"])),
    )


async def take_back(
    database: Database,
    session_id: str,
    owner: str,
    run_id: str,
    attempt: int,
    admitted: Admitted,
    position: Position,
) -> bool:
    """Undoes a turn, unless something was stored behind `position` or the run was lost.

    Returns:
        Whether it was undone.
    """
    rows = await database.call(
        "take_back_turn",
        session_id=session_id,
        owner=owner,
        run_id=run_id,
        attempt=attempt,
        epoch=position.epoch,
        seq=position.seq,
        keep=admitted.base_seq,
        fork_id=admitted.fork_id,
        made=int(admitted.made),
        new_epoch=new_epoch(),
    )
    return bool(rows)


async def _make_room(
    database: Database, entrant: Entrant, items: Sequence[TResponseInputItem], most_items: int
) -> tuple[list[TResponseInputItem], str] | Admitted | None:
    """Cuts the session back to where a whole view of it differs.

    Returns:
        The items that are new, and the id of the fork that keeps what was cut, or ''; or the turn
        that they take up. None when the session was changed meanwhile, or a run has it.
    """
    if not has_whole_view(items):
        return list(items), ""
    session_id, owner = entrant.session_id, entrant.owner
    history = await read_history(database, session_id, owner)
    plan = plan_turn(history.items(), items)
    if plan.keep == history.count:
        return plan.new, ""
    resumed = await _take_up(database, entrant, plan.new)
    if resumed is not None:
        return resumed
    if plan.keep + len(plan.new) > most_items:
        raise SessionFullError(most_items)
    keep = history.seqs[plan.keep - 1] if plan.keep else 0
    fork_id = await branch_session(database, session_id, owner, history.position, keep)
    return None if fork_id is None else (plan.new, fork_id)


async def _take_up(
    database: Database, entrant: Entrant, new: list[TResponseInputItem]
) -> Admitted | None:
    """Takes up the turn that had failed on its way, where the new items are its input."""
    rows = await database.call("get_session", session_id=entrant.session_id, owner=entrant.owner)
    if not rows or not rows[0]["open_run_id"]:
        return None
    if rows[0]["open_hash"] != _input_hash(encode_items(new, "input")):
        return None
    return await resume(database, entrant, rows[0]["open_run_id"])


async def _begin(
    database: Database,
    entrant: Entrant,
    new: list[TResponseInputItem],
    fork_id: str,
    most_items: int,
) -> Admitted | Row:
    """Stores the input and takes the session; else tells why not."""
    if len(new) > most_items:
        raise SessionFullError(most_items)
    session_id, owner = entrant.session_id, entrant.owner
    known = cache_of(database).get(session_id, owner)
    first_epoch, encoded = new_epoch(), encode_items(new, "input")
    digest = _input_hash(encoded)
    rows = await database.call(
        "begin_turn",
        **asdict(entrant),
        items=encoded,
        input_hash=digest,
        title=title_of(new),
        fork_id=fork_id,
        room_until=most_items - len(new),
        **asdict(known.position),
        new_epoch=first_epoch,
    )
    if not rows[0]["owned"]:
        raise SessionNotFoundError
    if rows[0]["busy"]:
        return rows[0]
    head, base = rows[0]["head"], rows[0]["base"]
    if head is not None and len(rows) == head - base:
        history = absorb(database, session_id, owner, known, rows)
    else:
        # The statement waited for another append, and could not see what that had stored; or it
        # was made again, and had been done before.
        history = await read_history(database, session_id, owner)
    if head is None:
        run = (await database.call("get_run", run_id=entrant.run_id, owner=owner))[0]
        base_seq: int = run["base_seq"]
    else:
        run, base_seq = rows[0], head - len(new)
    made = history.position.epoch == first_epoch
    before = history.between(0, base_seq)
    approved = frozenset(json.loads(run["approved_tools"]))
    return Admitted(
        before,
        new,
        history.position,
        base_seq,
        digest,
        made,
        fork_id,
        approved_tools=approved,
    )


def _input_hash(encoded: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(encoded).encode()).hexdigest()
