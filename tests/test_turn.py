"""What of a request is new to its session."""

from __future__ import annotations

from typing import Any

import pytest

from threadkeep.errors import InvalidInputError
from threadkeep.session import Session
from threadkeep.turn import TurnSession, plan_turn


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def agent(text: str) -> Any:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "id": "msg_1", "content": [part]}


def call(call_id: str) -> Any:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def output(call_id: str) -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": "o"}


TALK = [user("a"), agent("A"), user("b"), agent("B")]
TOOLS = [user("a"), call("1"), output("1"), agent("A")]
SAID = {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("stored", "request_items", "keep", "new"),
    [
        pytest.param([], [user("a")], 0, [user("a")], id="the first message"),
        pytest.param(TALK, [user("a")], 4, [user("a")], id="a text that repeats is new"),
        pytest.param(TALK, [user("c"), user("d")], 4, [user("c"), user("d")], id="two messages"),
        pytest.param(TALK, [*TALK, user("c")], 4, [user("c")], id="the whole history"),
        pytest.param([], [*TALK, user("c")], 0, [*TALK, user("c")], id="of a new session"),
        pytest.param(TALK, [user("a"), SAID, user("c")], 2, [user("c")], id="an edited message"),
        pytest.param(TALK, TALK[:3], 2, [user("b")], id="answer again"),
        pytest.param(TALK[:3], TALK[:3], 2, [user("b")], id="a retry after a crash"),
        pytest.param(
            TALK, [user("x"), *TALK[1:3]], 0, [user("x"), *TALK[1:3]], id="another beginning"
        ),
        pytest.param(TOOLS, [user("a"), SAID, user("b")], 4, [user("b")], id="no tools shown"),
        pytest.param(TOOLS, [*TOOLS, user("b")], 4, [user("b")], id="tools and all"),
        pytest.param(
            TOOLS,
            [user("a"), call("2"), output("2"), agent("A"), user("b")],
            1,
            [call("2"), output("2"), agent("A"), user("b")],
            id="other tools",
        ),
        pytest.param(
            [], [user("a"), call("1"), output("1")], 0, [user("a"), call("1"), output("1")],
            id="a tool output to go on from",
        ),
        pytest.param(
            [user("a"), {"type": "reasoning", "id": "rs_1", "summary": []}, agent("A")],
            [user("a"), agent("A"), user("b")],
            3,
            [user("b")],
            id="reasoning is passed over",
        ),
    ],
)  # fmt: skip
def test_what_is_new(
    stored: list[Any], request_items: list[Any], keep: int, new: list[Any]
) -> None:
    """What matches is kept; from the first difference on, the request counts."""
    plan = plan_turn(stored, request_items)
    assert (plan.keep, plan.new) == (keep, new)


@pytest.mark.parametrize(
    ("request_items", "code"),
    [
        ([user("a"), agent("A")], "nothing_to_answer"),
        ([user("a"), output("1")], "orphan_output"),
        ([user("a"), call("1"), user("b")], "orphan_call"),
        ([user("a"), output("1"), call("1")], "orphan_output"),
    ],
)
def test_what_no_model_could_answer_is_refused(request_items: list[Any], code: str) -> None:
    """Before it is stored: a stored orphan would make every later turn fail."""
    with pytest.raises(InvalidInputError) as caught:
        plan_turn([], request_items)
    assert caught.value.code == code


async def test_a_run_gets_no_tool_output_whose_call_is_gone() -> None:
    """Its call may be damaged, or the output may come from elsewhere; no model takes it alone."""
    async with Session("s", database="sqlite://") as session:
        turn = TurnSession(session, [output("1"), user("a"), call("2"), output("2")], None)
        assert await turn.get_items() == [user("a"), call("2"), output("2")]
        assert await turn.get_items(limit=1) == [output("2")]
