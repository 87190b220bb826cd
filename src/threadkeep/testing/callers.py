"""What several callers at once may count on, and that sessions do not meet.

Each caller has a Session object of its own over the same store, as processes have. Nothing here
waits for a certain moment: a Session that keeps its word passes however the callers meet, and one
that does not has many chances to fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents import TResponseInputItem
from agents.memory import Session

from threadkeep.testing.check import (
    CheckList,
    Trial,
    expect,
    expect_items,
    expect_whole,
    numbered,
    together,
    user,
)

checks = CheckList()

ROUNDS = 10
"""How often callers meet, since a Session that does not keep its word may be lucky once."""

ODD = (
    "'",
    '"',
    "' OR '1'='1",
    "%",
    "_",
    "*",
    "?",
    "[a]",
    "\\",
    "/../x",
    ":messages",
    ":counter",
    "{a}",
    "; --",
    " ",
    "$1 %s",
    "A",
    "a",
    "é",
    "e\u0301",
    "你好💬",
)
"""What session ids may end in; no two are the same."""


@checks.add("concurrency", rounds=ROUNDS)
async def the_first_touch_may_be_at_once(trial: Trial) -> None:
    """Many Session objects may use a session that is new, and a store that is, at the same moment:
    whatever has to be made is made once, and nothing is lost."""

    async def touch(number: int) -> None:
        session = await trial.session()
        if number % 3 == 0:
            await session.get_items()
        await session.add_items(numbered(f"batch {number}", 2))

    await together(*(touch(number) for number in range(9)))
    found = await (await trial.session()).get_items()
    expect_whole(found, [numbered(f"batch {number}", 2) for number in range(9)])


@checks.add("concurrency", rounds=ROUNDS)
async def appends_at_once_stay_in_one_piece(trial: Trial) -> None:
    """20 batches that two Session objects add at once are all there, each in one piece."""
    sessions = [await trial.session(), await trial.session()]
    batches = [numbered(f"batch {number}", 5) for number in range(20)]
    await together(*(sessions[n % 2].add_items(batch) for n, batch in enumerate(batches)))
    for session in sessions:
        expect_whole(await session.get_items(), batches)


@checks.add("concurrency")
async def others_see_a_change_at_once(trial: Trial) -> None:
    """What one Session object has added, popped or cleared, another one that has read before reads
    next."""
    here, there = await trial.session(), await trial.session()
    await here.add_items(numbered("a", 3))
    expect_items(await there.get_items(), numbered("a", 3))
    await here.pop_item()
    expect_items(await there.get_items(), numbered("a", 2))
    await here.add_items([user("b")])
    expect_items(await there.get_items(), [*numbered("a", 2), user("b")])
    await there.clear_session()
    expect_items(await here.get_items(), [])
    await there.add_items(numbered("c", 3))
    expect_items(await here.get_items(), numbered("c", 3))
    expect_items([await here.pop_item()], [user("c 2")], "what was popped")


@checks.add("concurrency", rounds=ROUNDS)
async def readers_see_it_grow_at_its_end(trial: Trial) -> None:
    """While many append, each read gives what an earlier one gave, and more behind it; never half
    of a batch. What a model has been given is not rewritten behind it."""
    batches = [[numbered(f"batch {writer}-{n}", 3) for n in range(6)] for writer in range(6)]
    seen: list[TResponseInputItem] = []

    async def add_and_read(session: Session, own: list[list[TResponseInputItem]]) -> None:
        nonlocal seen
        for batch in own:
            await session.add_items(batch)
            before = seen
            found = await session.get_items()
            expect_items(found[: len(before)], before, "the beginning of a later get_items()")
            expect(len(found) % 3 == 0, "a read gives half of a batch")
            seen = max(seen, found, key=len)

    await together(*[add_and_read(await trial.session(), own) for own in batches])
    expect_whole(seen, [batch for own in batches for batch in own])


@checks.add("concurrency", rounds=ROUNDS)
async def pops_at_once_give_each_item_once(trial: Trial) -> None:
    """When two Session objects pop at once, each item is given to one of them, and None when there
    are no more."""
    sessions = [await trial.session(), await trial.session()]
    items = numbered("a", 20)
    await sessions[0].add_items(items)
    taken = await together(*(sessions[n % 2].pop_item() for n in range(26)))
    expect_items(sorted(_texts(taken)), sorted(_texts(items)), "what was popped")
    expect_items(await sessions[0].get_items(), [])


@checks.add("concurrency", rounds=ROUNDS)
async def pops_and_appends_at_once_lose_nothing(trial: Trial) -> None:
    """Of what is added while others pop, every item is either there in the end or was popped,
    once."""
    sessions = [await trial.session(), await trial.session()]
    batches = [numbered(f"batch {number}", 2) for number in range(16)]
    results = await together(
        *(sessions[n % 2].add_items(batch) for n, batch in enumerate(batches)),
        *(sessions[n % 2].pop_item() for n in range(10)),
    )
    left = await sessions[0].get_items()
    found = _texts(results[len(batches) :]) + _texts(left)
    wanted = [text for batch in batches for text in _texts(batch)]
    expect_items(sorted(found), sorted(wanted), "what was popped or is left")


@checks.add("concurrency", rounds=ROUNDS)
async def a_clear_removes_whole_batches(trial: Trial) -> None:
    """A clear while others append removes all that was there before, and of each batch that is
    being added all or nothing."""
    sessions = [await trial.session(), await trial.session()]
    batches = [numbered(f"batch {number}", 3) for number in range(12)]
    old = numbered("old", 3)
    await sessions[0].add_items(old)
    work = [sessions[n % 2].add_items(batch) for n, batch in enumerate(batches)]
    await together(*work[:6], sessions[1].clear_session(), *work[6:])
    found = await sessions[0].get_items()
    expect(not any(item in old for item in found), "what was there before the clear is still there")
    expect_whole(found, [batch for batch in batches if any(item in batch for item in found)])
    await sessions[1].add_items([user("after")])
    expect_items(await sessions[0].get_items(), [*found, user("after")])


@checks.add("isolation")
async def sessions_do_not_meet(trial: Trial) -> None:
    """A session sees nothing of another one in the same store, whatever both do at once."""
    ours, theirs = await trial.session("-a"), await trial.session("-b")
    await together(ours.add_items(numbered("ours", 3)), theirs.add_items(numbered("theirs", 3)))
    expect_items(await ours.get_items(), numbered("ours", 3))
    expect_items([await theirs.pop_item()], [user("theirs 2")], "what was popped")
    expect_items(await ours.get_items(), numbered("ours", 3))
    await theirs.clear_session()
    expect_items(await theirs.get_items(), [])
    expect_items(await ours.get_items(limit=2), numbered("ours", 3)[1:], "get_items(limit=2)")


@checks.add("isolation")
async def any_session_id_will_do(trial: Trial) -> None:
    """Ids with quotes, wildcards, separators, spaces, upper and lower case and any script are ids
    of their own: none reads, pops from or clears another."""
    sessions = [await trial.session(suffix) for suffix in ("", *ODD)]
    await _keep_apart(sessions)


@checks.add("isolation")
async def long_session_ids_are_not_cut(trial: Trial) -> None:
    """Ids of 400 characters that differ in the last one are two sessions."""
    room = 400 - len(trial.session_id) - 1
    await _keep_apart([await trial.session("x" * room + last) for last in "ab"])


async def _keep_apart(sessions: list[Session]) -> None:
    """Expects that what happens to each session happens to no other."""
    for number, session in enumerate(sessions):
        await session.add_items(numbered(f"session {number}", 2))
    for number, session in enumerate(sessions):
        where = f"the session {session.session_id[-12:]!r}"
        expect_items(await session.get_items(), numbered(f"session {number}", 2), where)
        taken = [await session.pop_item()]
        expect_items(taken, [user(f"session {number} 1")], f"what was popped of {where}")
        await session.clear_session()
        expect_items(await session.get_items(), [], where)


def _texts(items: Sequence[Any]) -> list[str]:
    """What is written in the messages among these."""
    return [item["content"] for item in items if item is not None]
