"""What goes in comes out, whatever it is, as a copy; a batch is stored whole or not at all."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from agents import TResponseInputItem

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

NUL = "before \0 after"
SURROGATE = "half of a character: \ud83d"


@checks.add("round trip")
async def any_language_comes_back(trial: Trial) -> None:
    """Text of any script, emoji, combining marks, line separators, quotes and control characters
    comes back as it was, not normalised."""
    texts = [
        "Grüße, 你好, שלום, नमस्ते",
        "\U0001f469\u200d\U0001f467 e\u0301 \u00e9 \u2028 \ufeff \uffff",
        "\\ \" ' `` %s %(a)s :name $1 ? {} {{}} \r\n\t \x01 \x1f \x7f",
        "",
        " ",
    ]
    await _comes_back(trial, [user(text) for text in texts])


@checks.add("round trip")
async def what_models_say_comes_back(trial: Trial) -> None:
    """Messages, reasoning with its id and encrypted content, calls and outputs come back with every
    field, also those that are null or unknown to the SDK."""
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}], "type": "message"},
        {
            "id": "rs_68af",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "They ask."}],
            "content": None,
            "encrypted_content": "gAAAA" * 400,
        },
        {
            "id": "fc_1",
            "type": "function_call",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city": "São Paulo"}',
            "status": "completed",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": '{"°C":-0.5}'},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Cold.", "annotations": []}],
        },
        {
            "type": "of_tomorrow",
            "id": "x_1",
            "session_id": "y",
            "created_at": 1,
            "more": {"a": []},
        },
    ]
    await _comes_back(trial, items)


@checks.add("round trip")
async def numbers_come_back(trial: Trial) -> None:
    """Whole numbers beyond 64 bits and floats come back exactly, and of the same kind: 1 is not 1.0
    nor true. A batch that holds what can't be stored is refused instead."""
    numbers = [0, 1, 1.0, True, -1, 2**53 + 1, 2**63, -(2**70), 0.1, 1e-300, 1.5e300, -0.0]
    item: Any = {"role": "user", "content": "n", "numbers": numbers}
    await _comes_back_or_is_refused(trial, [item])


@checks.add("round trip")
async def nesting_comes_back(trial: Trial) -> None:
    """Lists and objects in each other come back: 50 deep, empty, and under strange names."""
    nested: dict[str, Any] = {}
    for _ in range(50):
        nested = {"a": [nested, {}, []], "": None, "ключ $.b[0]'\"": False}
    item: Any = {"role": "user", "content": "n", "nested": nested}
    await _comes_back(trial, [item])


@checks.add("round trip")
async def a_megabyte_comes_back(trial: Trial) -> None:
    """A text of 1 MB comes back whole."""
    await _comes_back(trial, [user("å" * 500_000), user("after")])


@checks.add("round trip")
async def a_nul_comes_back(trial: Trial) -> None:
    """A text with a NUL comes back as it was, or its batch is refused."""
    await _comes_back_or_is_refused(trial, [user("1"), user(NUL), user("3")])


@checks.add("round trip")
async def a_lone_surrogate_comes_back(trial: Trial) -> None:
    """A text with half of a character, as cut strings have it, comes back as it was, or its batch
    is refused."""
    await _comes_back_or_is_refused(trial, [user("1"), user(SURROGATE), user("3")])


@checks.add("round trip")
async def what_is_read_is_a_copy(trial: Trial) -> None:
    """The list and the items that `get_items()` gives may be changed: nobody else sees it."""
    session = await trial.session()
    item: Any = {"role": "user", "content": [{"type": "input_text", "text": "a"}]}
    await session.add_items([item])
    for limit in (None, 1):
        taken: Any = await session.get_items(limit=limit)
        taken[0]["content"][0]["text"] = "changed"
        taken.append(user("more"))
    expect_items(await session.get_items(), [item])


@checks.add("round trip")
async def what_is_added_is_a_copy(trial: Trial) -> None:
    """What was added may be changed afterwards: what is stored stays."""
    session = await trial.session()
    item: Any = {"role": "user", "content": [{"type": "input_text", "text": "a"}]}
    batch: list[Any] = [item]
    await session.add_items(batch)
    wanted = copy.deepcopy(batch)
    item["content"][0]["text"] = "changed"
    batch.append(user("more"))
    expect_items(await session.get_items(), wanted)


@checks.add("atomicity")
async def a_batch_with_no_json_is_refused_whole(trial: Trial) -> None:
    """A batch with an item in the middle that is no JSON is an error, and nothing of it is stored;
    the session goes on as before."""
    session = await trial.session()
    await session.add_items([user("before")])
    bad: Any = {"role": "user", "content": object()}
    outcome = await outcome_of(session.add_items([user("1"), bad, user("3")]))
    expect(isinstance(outcome, BaseException), "an item that is no JSON is no error")
    expect_items(await session.get_items(), [user("before")])
    await session.add_items([user("after")])
    wanted = [user("before"), user("after")]
    expect_items(await (await trial.session()).get_items(), wanted)


@checks.add("atomicity")
async def a_cancelled_append_is_whole_or_nothing(trial: Trial) -> None:
    """Wherever `add_items` is cancelled, its batch is stored whole or not at all, and the session
    goes on."""
    session, other = await trial.session(), await trial.session("-other")
    batches = [numbered(f"batch {number}", 3) for number in range(10)]
    finished = []
    for steps, batch in enumerate(batches):
        adding = asyncio.ensure_future(session.add_items(batch))
        await asyncio.sleep(0)
        for _ in range(steps):  # each takes about as long as one step of an append does
            await other.get_items(limit=1)
        adding.cancel()
        if not isinstance(await outcome_of(adding), BaseException):
            finished.append(batch)
    last = [user("last")]
    await session.add_items(last)
    found = await (await trial.session()).get_items()
    for batch in [*batches, last]:
        count = sum(item in batch for item in found)
        allowed = (len(batch),) if batch in (*finished, last) else (0, len(batch))
        expect(count in allowed, f"{count} of a batch of {len(batch)} items are stored")


async def _comes_back(trial: Trial, items: list[TResponseInputItem]) -> None:
    """Adds items, and expects them to be read, and popped, as they were."""
    await (await trial.session()).add_items(copy.deepcopy(items))
    await _expect_back(trial, items)


async def _comes_back_or_is_refused(trial: Trial, items: list[TResponseInputItem]) -> None:
    """As `_comes_back`; an error will do, if nothing was stored and the session goes on."""
    session = await trial.session()
    outcome = await outcome_of(session.add_items(copy.deepcopy(items)))
    if not isinstance(outcome, BaseException):
        await _expect_back(trial, items)
        return
    expect_items(await session.get_items(), [])
    await session.add_items([user("next")])
    await _expect_back(trial, [user("next")])


async def _expect_back(trial: Trial, items: list[TResponseInputItem]) -> None:
    reader = await trial.session()
    expect_items(await reader.get_items(), items)
    limit = len(items)
    expect_items(await reader.get_items(limit=limit), items, f"get_items(limit={limit})")
    expect_items([await reader.pop_item()], items[-1:], "what was popped")
