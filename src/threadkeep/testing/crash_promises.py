"""What must be true when a case of the crash kit is over, however often it was killed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from threadkeep.approvals import list_approvals
from threadkeep.history import read_history
from threadkeep.replay import UNKNOWN_OUTCOME
from threadkeep.runs import continuation_key
from threadkeep.stored_runs import find_run, read_events, stored_response
from threadkeep.take_over import take_over_all
from threadkeep.testing.crash_process import EARLIER, Case, Message, Place, Server
from threadkeep.testing.crash_world import (
    FOLLOW_UP,
    SCENARIOS,
    Call,
    Mark,
    Points,
    World,
    plainly,
)

_FINAL = ("response.completed", "response.failed", "response.incomplete")


@dataclass
class Story:
    """All that the client of a case was told, by one process after the other.

    Attributes:
        told: A list of messages for each process.
        froze: Whether a process was frozen and came back.
    """

    told: list[list[Message]] = field(default_factory=list)
    froze: bool = False


@dataclass
class _Ending:
    """How a case has ended, as it is stored.

    Attributes:
        runs: The events of its runs, in the order they went on from each other.
        responses: Those runs, as the API shows them.
        approvals: All that was asked, oldest first.
        items: Of the session, plainly.
    """

    runs: dict[str, list[Message]] = field(default_factory=dict)
    responses: dict[str, Message] = field(default_factory=dict)
    approvals: list[Message] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


async def broken_promises(place: Place, case: Case, story: Story) -> list[str]:
    """Looks at how a case has ended, and takes the next turn. Empty when all is well."""
    points = Points(lambda message: None)
    marks = place.marks(case, len(story.told))
    server = Server.of(place, World(marks, points), points)
    ending = await _read(server, case)
    broken = [
        *_of_the_runs(ending),
        *_of_what_was_told(ending, story),
        *_of_the_items(ending, case),
        *_of_the_effects(ending, case, marks.read(), story),
        *([] if story.froze else _of_the_order(case, marks.read())),
        *await _of_the_session(server, case),
        *await _of_the_next_turn(server, case, ending),
    ]
    await server.runs.aclose()
    await server.database.close()
    return broken


async def _read(server: Server, case: Case) -> _Ending:
    ending, database, owner = _Ending(), server.database, case.name
    run_id = await server.runs.find(owner, case.name, case.scenario)
    while run_id is not None:
        ending.runs[run_id] = await read_events(database, run_id, owner, -1)
        ending.responses[run_id] = await stored_response(database, run_id, owner)
        run_id = await server.runs.find(owner, continuation_key(run_id), "")
    ending.approvals = await list_approvals(database, owner, status="", after="", limit=100)
    history = await read_history(database, case.name, owner)
    ending.items = [plainly(item) for item in history.items()]
    return ending


def _of_the_runs(ending: _Ending) -> Iterator[str]:
    """Each run has one beginning and one end, and no gap between them."""
    statuses = [response["status"] for response in ending.responses.values()]
    if statuses != ["incomplete"] * (len(statuses) - 1) + ["completed"]:
        yield f"its runs have ended as {statuses}"
    for events in ending.runs.values():
        kinds = [event["type"] for event in events]
        if [event["sequence_number"] for event in events] != list(range(len(events))):
            yield "its events have a gap"
        if kinds[:1] != ["response.created"] or kinds.count("response.created") != 1:
            yield "its events do not begin once"
        if [kind for kind in kinds if kind in _FINAL] != kinds[-1:]:
            yield f"its events do not end once: {kinds[-3:]}"


def _of_what_was_told(ending: _Ending, story: Story) -> Iterator[str]:
    """What a client was told is what is stored, in order and without a gap."""
    for process, messages in enumerate(story.told):
        yield from (f"a fault: {message['fault']}" for message in messages if "fault" in message)
        seen: dict[str, int] = {}
        for message in messages:
            run_id = message.get("run") or message.get("of")
            if run_id is not None and run_id not in ending.runs:
                yield f"process {process}: its client was told of a run that is not stored"
            elif run_id is not None and "event" in message:
                event, stored = message["event"], ending.runs[run_id]
                number = event["sequence_number"]
                if number >= len(stored) or stored[number] != event:
                    yield f"process {process}: event {number} is not stored as it was told"
                if run_id in seen and number != seen[run_id] + 1:
                    yield f"process {process}: event {number} was told after {seen[run_id]}"
                seen[run_id] = number
            elif run_id is not None and "seen" in message:
                yield from _of_a_response(message["seen"], ending.responses[run_id])


def _of_a_response(told: Message, stored: Message) -> Iterator[str]:
    if told["status"] in ("completed", "failed", "cancelled", "incomplete") and told != stored:
        names = [name for name in stored if told.get(name) != stored[name]]
        yield f"a run that was told as {told['status']} is stored with other {names}"
    if told["id"] != stored["id"]:
        yield "a response has another id than it had"


def _outputs(ending: _Ending, call: Call) -> str:
    """What the model was told of a call, by what was decided about it last."""
    decided = [a["status"] for a in ending.approvals if a["call_id"] == call.call_id]
    return UNKNOWN_OUTCOME if decided and decided[-1] == "rejected" else call.output


def _expected(ending: _Ending, case: Case) -> list[str]:
    """The turn, as it is when nothing is interrupted."""
    scenario = SCENARIOS[case.scenario]
    items, outputs = [f"user: {scenario.name}"], []
    for step in scenario.steps:
        items += [f"call {call.call_id}: {call.tool} {call.thing}" for call in step]
        told = [_outputs(ending, call) for call in step]
        items += [f"output {call.call_id}: {text}" for call, text in zip(step, told, strict=True)]
        outputs += told
    return [*items, f"assistant: {scenario.answer(outputs)}"]


def _of_the_items(ending: _Ending, case: Case) -> Iterator[str]:
    """The session holds the turn once and whole, and so does the answer."""
    earlier = [plainly(item) for item in EARLIER] if case.earlier else []
    turn = _expected(ending, case)
    if ending.items != earlier + turn:
        yield f"its session holds {ending.items}, not {earlier + turn}"
    *_, last = ending.responses.values()
    said = [plainly(item) for item in last["output"]]
    if said != turn[1:]:
        yield f"its answer holds {said}, not {turn[1:]}"


def _of_the_effects(
    ending: _Ending, case: Case, marks: Sequence[Mark], story: Story
) -> Iterator[str]:
    """Each call was made once, or as often as somebody has allowed."""
    keys: dict[str, set[str | None]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    for mark in marks:
        if "did" in mark:
            keys[mark["did"]].add(mark["key"])
            counts[mark["did"]] += 1
    for call in (call for step in SCENARIOS[case.scenario].steps for call in step):
        name = f"{call.tool} {call.thing}"
        decided = [a["status"] for a in ending.approvals if a["call_id"] == call.call_id]
        least = 0 if decided and decided[-1] == "rejected" else 1
        runs = len(story.told) * len(ending.runs)
        most = runs if call.tool == "look" else 1 + decided.count("approved")
        if not least <= counts[name] <= most:
            yield f"{name} was done {counts[name]} times; it was decided {decided}"
        if len(keys[name]) > 1 or None in keys[name]:
            yield f"{name} was done under several keys"
        if call.tool == "look" and decided:
            yield f"{name} may be done again, and yet somebody was asked"
    if "pending" in [a["status"] for a in ending.approvals]:
        yield "somebody is still asked about a turn that is done"


def _of_the_order(case: Case, marks: Sequence[Mark]) -> Iterator[str]:
    """What was answered or done, and seen by what came after, is not asked or done again.

    A process asks a model once at most for each answer; what a frozen one does late says nothing.
    """
    step_of = {
        name: number
        for number, step in enumerate(SCENARIOS[case.scenario].steps)
        for call in step
        for name in (f"{call.tool} {call.thing}", call.call_id)
    }
    reached, asked = (0, 0), set[tuple[int, int]]()
    for mark in marks:
        if "asked" in mark:
            place, who = (mark["asked"], 0), (mark["asked"], mark["process"])
            if who in asked:
                yield f"process {mark['process']} asked for answer {mark['asked']} twice"
            asked.add(who)
        else:
            place = (step_of[mark.get("did") or mark["asks_about"]], 1)
        if place < reached:
            yield f"{mark} came after {reached}"
        reached = max(reached, place)


async def _of_the_session(server: Server, case: Case) -> Iterator[str]:
    """Nothing of the turn is left over: no run at work, none lost, none to go on with."""
    broken = []
    rows = await server.database.call("get_session", session_id=case.name, owner=case.name)
    if rows[0]["run_id"] or rows[0]["open_run_id"]:
        broken.append("its session is still had by a run, or waits for one")
    if await take_over_all(server.runs):
        broken.append("a run was left behind")
    return iter(broken)


async def _of_the_next_turn(server: Server, case: Case, ending: _Ending) -> Iterator[str]:
    """The next turn sees the whole history, and is stored behind it."""
    broken = []
    run_id = await server.ask(FOLLOW_UP, case.name, f"{case.name} next", background=False)
    async for _ in await server.runs.follow(run_id, case.name, -1):
        continue
    seen = [*ending.items, f"user: {FOLLOW_UP}"]
    output: list[Any] = (await server.runs.response(run_id, case.name))["output"]
    if [plainly(item) for item in output] != [f"assistant: {' | '.join(seen)}"]:
        broken.append(f"the next turn sees {output}, not {seen}")
    history = await read_history(server.database, case.name, case.name)
    if [plainly(item) for item in history.items()][:-1] != seen:
        broken.append("the next turn is not stored behind this one")
    if (await find_run(server.database, run_id, case.name))["status"] != "completed":
        broken.append("the next turn was not completed")
    return iter(broken)
