"""What a Session does for one caller at a time: the protocol, the order of items, and limits."""

from __future__ import annotations

from typing import Any

from agents import RunContextWrapper, SessionSettings
from agents.memory import Session

from threadkeep.testing.check import (
    CheckList,
    Trial,
    expect,
    expect_items,
    numbered,
    outcome_of,
    user,
)

checks = CheckList()

LONG = 2_000
"""Items of a long history."""


@checks.add("protocol")
async def is_a_session(trial: Trial) -> None:
    """A Session has the protocol's attributes and methods, and the session id it was made with."""
    session = await trial.session()
    expect(isinstance(session, Session), "it is no agents.memory.Session")
    expect(session.session_id == trial.session_id, f"session_id is {session.session_id!r}")


@checks.add("protocol")
async def an_unknown_session_is_empty(trial: Trial) -> None:
    """A session that nobody has used has no items, nothing to pop, and can be cleared."""
    session = await trial.session()
    expect_items(await session.get_items(), [])
    expect_items(await session.get_items(limit=3), [], "get_items(limit=3)")
    popped = await session.pop_item()
    expect(popped is None, f"pop_item() of an empty session gives {popped!r}")
    await session.clear_session()
    expect_items(await session.get_items(), [])


@checks.add("protocol")
async def adding_nothing_changes_nothing(trial: Trial) -> None:
    """`add_items([])` is no error, in a new session and in one with items."""
    session = await trial.session()
    await session.add_items([])
    expect_items(await session.get_items(), [])
    await session.add_items([user("1")])
    await session.add_items([])
    expect_items(await session.get_items(), [user("1")])


@checks.add("protocol")
async def pop_takes_the_newest(trial: Trial) -> None:
    """`pop_item()` removes and returns the newest item, one after the other, down to None."""
    session = await trial.session()
    await session.add_items(numbered("first", 2))
    await session.add_items([user("last")])
    taken = [await session.pop_item() for _ in range(4)]
    wanted = [user("last"), user("first 1"), user("first 0"), None]
    expect_items(taken, wanted, "what was popped")
    expect_items(await session.get_items(), [])


@checks.add("protocol")
async def goes_on_after_a_pop(trial: Trial) -> None:
    """What is added after a pop takes the place of what was popped."""
    session = await trial.session()
    await session.add_items(numbered("a", 3))
    await session.pop_item()
    await session.add_items([user("b")])
    expect_items(await session.get_items(), [*numbered("a", 2), user("b")])


@checks.add("protocol")
async def clear_leaves_nothing_and_goes_on(trial: Trial) -> None:
    """`clear_session()` removes every item; what is added afterwards is all there is."""
    session = await trial.session()
    await session.add_items(numbered("old", 3))
    await session.clear_session()
    expect_items(await session.get_items(), [])
    await session.add_items([user("new")])
    expect_items(await session.get_items(), [user("new")])


@checks.add("protocol")
async def takes_the_context_of_a_run(trial: Trial) -> None:
    """All four methods take `wrapper`, the context of a run, as a keyword. The Runner passes it to
    Sessions that do, and to no others."""
    session: Any = await trial.session()
    wrapper = RunContextWrapper(context=None)
    await session.add_items(numbered("a", 2), wrapper=wrapper)
    expect_items(await session.get_items(wrapper=wrapper), numbered("a", 2))
    expect_items([await session.pop_item(wrapper=wrapper)], [user("a 1")], "what was popped")
    await session.clear_session(wrapper=wrapper)
    expect_items(await session.get_items(), [])


@checks.add("order")
async def batches_keep_their_order(trial: Trial) -> None:
    """Items come back in the order they were added: in a batch, and over batches of several Session
    objects."""
    one, other = await trial.session(), await trial.session()
    await one.add_items(numbered("a", 3))
    await other.add_items(numbered("b", 2))
    await one.add_items(numbered("c", 3))
    wanted = [*numbered("a", 3), *numbered("b", 2), *numbered("c", 3)]
    expect_items(await one.get_items(), wanted)
    expect_items(await other.get_items(), wanted)


@checks.add("order")
async def the_same_second_keeps_its_order(trial: Trial) -> None:
    """Items that are added one after the other, too fast for a clock to tell apart, keep their
    order, also when the newest are asked for or popped."""
    one, other = await trial.session(), await trial.session()
    items = numbered("a", 60)
    for index, item in enumerate(items):
        await (other if index % 2 else one).add_items([item])
    expect_items(await one.get_items(), items)
    expect_items(await one.get_items(limit=25), items[-25:], "get_items(limit=25)")
    expect_items([await other.pop_item()], items[-1:], "what was popped")


@checks.add("order")
async def a_large_batch_keeps_its_order(trial: Trial) -> None:
    """A history of 2,000 items, added at once, is read whole and in order, and so are the newest of
    it."""
    session = await trial.session()
    items = numbered("a", LONG)
    await session.add_items(items)
    expect_items(await session.get_items(), items)
    for limit in (1, 10, LONG - 1):
        newest = await (await trial.session()).get_items(limit=limit)
        expect_items(newest, items[-limit:], f"get_items(limit={limit})")


@checks.add("limits")
async def a_limit_gives_the_newest_in_order(trial: Trial) -> None:
    """`get_items(limit=n)` gives the newest n items, oldest first; all when there are fewer."""
    session = await trial.session()
    items = numbered("a", 5)
    await session.add_items(items)
    for limit in (1, 3, 5, 99):
        expect_items(await session.get_items(limit=limit), items[-limit:], f"limit={limit}")


@checks.add("limits")
async def a_limit_of_0_gives_nothing(trial: Trial) -> None:
    """0 is a limit, and not the lack of one: as an argument, and in the settings."""
    session = await trial.session()
    await session.add_items(numbered("a", 3))
    expect_items(await session.get_items(limit=0), [], "get_items(limit=0)")
    session.session_settings = SessionSettings(limit=0)
    expect_items(await session.get_items(), [], "get_items() with a limit of 0 in the settings")


@checks.add("limits")
async def a_negative_limit_gives_no_history(trial: Trial) -> None:
    """A limit below 0 is an error or gives nothing: a slip must not send the whole history to a
    model."""
    session = await trial.session()
    await session.add_items(numbered("a", 3))
    for limit in (-1, -2):
        found = await outcome_of(session.get_items(limit=limit))
        if not isinstance(found, BaseException):
            expect_items(found, [], f"get_items(limit={limit})")
    expect_items(await session.get_items(), numbered("a", 3))


@checks.add("limits")
async def settings_limit_what_is_read(trial: Trial) -> None:
    """`session_settings.limit` counts when no limit is given; an explicit one wins over it."""
    session = await trial.session()
    items = numbered("a", 5)
    await session.add_items(items)
    session.session_settings = SessionSettings(limit=2)
    expect_items(await session.get_items(), items[-2:])
    expect_items(await session.get_items(limit=4), items[-4:], "get_items(limit=4)")
    session.session_settings = SessionSettings()
    expect_items(await session.get_items(), items)


@checks.add("limits")
async def settings_may_be_a_dict(trial: Trial) -> None:
    """`session_settings` may be given as a dict, as the SDK's settings may be everywhere."""
    session: Any = await trial.session()
    await session.add_items(numbered("a", 3))
    session.session_settings = {"limit": 2}
    expect_items(await session.get_items(), numbered("a", 3)[-2:])
