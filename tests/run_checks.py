"""What must hold of runs and sessions, whatever happened: the promises, read from the tables."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from tests.run_approval_checks import ApprovalChecks, waiting
from tests.run_tables import ORDERS, Row, Rows, Tables, read_tables
from tests.run_world import Peek, Replica, World, unpaired
from threadkeep import Session
from threadkeep.approvals import list_approvals
from threadkeep.errors import ConflictError, DatabaseError, NotFoundError, ServerStoppingError
from threadkeep.run import Run
from threadkeep.titles import text_of

SESSIONS = {"a": "ann", "b": "bob", "c": "ann"}
"""The sessions, and whose they are."""

FINAL = {"response.completed", "response.failed", "response.incomplete"}


@dataclass
class Known:
    """What the test knows of a run.

    Attributes:
        number: The how manieth run it is.
        replica: Where it began.
        undone: Whether somebody asked that nothing of it is left, and nobody before that it stops.
        asked: Whether somebody asked that it stops.
        may_go: Whether somebody asked at any time that nothing of it is left.
        mixed: Whether the session was changed by others while it was at work.
        told: What a follower heard.
        sent_away: Whether its follower was told to ask another process, because this one stopped.
    """

    run: Run
    number: int
    replica: Replica
    undone: bool = False
    asked: bool = False
    may_go: bool = False
    mixed: bool = False
    told: list[dict[str, Any]] = field(default_factory=list)
    sent_away: bool = False

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def name(self) -> str:
        return self.run.request.session_id

    @property
    def owner(self) -> str:
        return self.run.request.owner

    @property
    def text(self) -> str:
        return text_of(cast(dict[str, Any], self.run.request.items[0])["content"])


class Checks:
    """Remembers what was done, and compares it with what is stored.

    Args:
        peek: Looks into the database.
        world: What happened outside of it.
    """

    def __init__(self, peek: Peek, world: World) -> None:
        self._peek = peek
        self._world = world
        self._runs: dict[str, Known] = {}
        self._gone: set[str] = set()
        self._notes: dict[str, list[str]] = {name: [] for name in SESSIONS}
        self._popped: set[str] = set()
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._at_work: set[str] = set()
        self._waiting: list[str] = []
        self.approvals = ApprovalChecks(world)

    async def clear(self) -> None:
        """Begins with nothing."""
        for table in ORDERS:
            await self._peek.rows(f"DELETE FROM threadkeep.{table}")

    def started(self, run: Run, replica: Replica) -> Known:
        """A run was started, by whomever. One that goes on with a turn pushes nobody."""
        if not run.request.goes_on_from and run.request.concurrency in ("interrupt", "rollback"):
            for other in self.unfinished():
                if other.name == run.request.session_id:
                    other.undone = not other.asked and run.request.concurrency == "rollback"
                    other.asked = True
                    other.may_go = other.may_go or run.request.concurrency == "rollback"
        known = Known(run, len(self._runs), replica)
        if run.request.goes_on_from:  # it may get in before one that has come and pushes
            others = [*self._unfinished_here(), *(other.run for other in self.unfinished())]
            pushing = {
                other.request.concurrency
                for other in others
                if other.request.session_id == known.name and not other.request.goes_on_from
            }
            known.asked = bool(pushing & {"interrupt", "rollback"})
            known.may_go = "rollback" in pushing
        self._at_work.add(run.run_id)
        return self._runs.setdefault(run.run_id, known)

    def _take_in(self) -> None:
        """Runs were started to go on with what was decided."""
        for replica in self._world.replicas:
            for run in replica.made:
                if run.run_id not in self._runs:
                    self.started(run, replica)

    def unfinished(self) -> list[Known]:
        """The runs that had not ended when we looked last."""
        return [known for run_id, known in self._runs.items() if run_id in self._at_work]

    def run(self, run_id: str) -> Known:
        """What is known of a run."""
        return self._runs[run_id]

    @property
    def is_done(self) -> bool:
        """Whether nothing is at work, nor waits for anybody."""
        return not self._at_work and not self._waiting and not self._unfinished_here()

    def _unfinished_here(self) -> list[Run]:
        """The runs of living processes that have not ended there."""
        alive = [replica for replica in self._world.replicas if not replica.database.dead]
        return [run for replica in alive for run in replica.made if not run.finished]

    def cancelled(self, known: Known) -> None:
        """Somebody cancels a run: then what it said may stay."""
        known.undone, known.asked = False, True

    def appended(self, name: str, note: str) -> None:
        """Somebody else wrote into a session."""
        self._notes[name].append(note)
        for known in self.unfinished():
            known.mixed = known.mixed or known.name == name

    def popped(self, name: str, item: Any) -> None:
        """Somebody took an item back."""
        self._popped.add(name)
        if item is not None and item.get("content") in self._notes[name]:
            self._notes[name].remove(item["content"])

    def cleared(self, name: str) -> None:
        """Somebody took back all of a session."""
        self._popped.add(name)
        self._notes[name] = []
        self._world.verdicts.always.discard(name)

    async def ids_of(self, name: str) -> set[str]:
        """The runs of a session."""
        rows = await self._peek.rows(
            f"SELECT run_id FROM threadkeep.runs WHERE session_id = '{name}'"
        )
        return {row["run_id"] for row in rows}

    def deleted(self, name: str, run_ids: Iterable[str]) -> None:
        """A session was deleted, with these runs."""
        self._gone |= set(run_ids)
        self._notes[name] = []
        self._world.verdicts.always.discard(name)

    async def is_idle(self, name: str) -> bool:
        """Whether no run has a session, or waits for it."""
        rows = await self._peek.rows(
            f"SELECT 1 FROM threadkeep.runs WHERE session_id = '{name}' AND finished_at IS NULL"
        )
        return not rows

    async def take_over(self, replica: Replica) -> None:
        """A replica looks for what was lost; it passes over what it can't go on with."""
        with contextlib.suppress(ConflictError):
            await replica.take_over()

    async def follow(self, known: Known) -> None:
        """Hears all of a run."""
        try:
            async for event in known.run.follow():
                known.told.append(event)
        except NotFoundError:
            assert known.run_id in self._gone, f"{known.run_id} is not there any more"
        except ServerStoppingError:
            known.sent_away = True
            raise

    async def unless_lost(self, replica: Replica, work: Coroutine[Any, Any, None]) -> None:
        """Does what nobody hears the end of when a process is killed."""
        try:
            await work
        except (DatabaseError, ServerStoppingError):
            assert not replica.is_at_work, "a call failed, and its process was well"

    async def look(self) -> None:
        """Whether all promises are kept at this moment."""
        assert not self._world.faults, self._world.faults
        starts = self._world.starts.copy()
        tables = await read_tables(self._peek)
        self._take_in()
        self._at_work = {row["run_id"] for row in tables.runs.values() if not row["finished_at"]}
        self._check_what_is_deleted(tables)
        for name, session in tables.sessions.items():
            self._check_session(tables, name, session)
        for run in tables.runs.values():
            self._check_events(tables, run)
            if run["finished_at"] and not tables.is_taken(run["session_id"]):
                self._check_end(tables, run)
        self.approvals.look(tables, starts, self._popped)
        self._waiting = waiting(tables)

    async def end(self, tasks: list[asyncio.Task[None]]) -> None:
        """Whether everybody was told the end, now that all was let go."""
        await self.look()
        waits = [self._describe(run_id) for run_id in [*self._at_work, *self._waiting]]
        waits += [f"{run.run_id} here ({run.status})" for run in self._unfinished_here()]
        waits += [repr(task) for task in tasks if not task.done()]
        assert not waits, f"somebody waits for ever: {waits}"
        for task in tasks:
            task.result()
        for known in self._runs.values():
            if known.told and not known.replica.database.dead:
                self._check_told(known)
                self._check_refusal(known)
        await self._check_owners(next(r for r in self._world.replicas if r.is_at_work))

    def _describe(self, run_id: str) -> str:
        known = self._runs.get(run_id)
        return f"{run_id} of {known.name}, the {known.number}th" if known else run_id

    def _check_what_is_deleted(self, tables: Tables) -> None:
        items = {row["run_id"] for rows in tables.items.values() for row in rows}
        for what, there in (
            ("runs", tables.runs),
            ("events", tables.events),
            ("journals", tables.journals),
            ("items", items),
        ):
            back = self._gone & set(there)
            assert not back, f"{what} that were deleted came back: {back}"
        known = tables.runs.keys()
        assert tables.events.keys() <= known, "events without their run"
        assert tables.journals <= {run["journal_id"] for run in tables.runs.values()}, "lone steps"
        assert {row["run_id"] for row in tables.approvals} <= known, "approvals without their run"
        assert tables.items.keys() <= tables.sessions.keys(), "items without their session"
        for name, notes in self._notes.items():
            stored = [item["content"] for item in tables.contents(name) if not item["run_id"]]
            assert stored == notes, f"{name}: what others wrote is {stored}, and was {notes}"

    def _check_session(self, tables: Tables, name: str, session: Row) -> None:
        items = tables.items.get(name, [])
        assert [item["seq"] for item in items] == list(range(1, session["seq"] + 1)), "not dense"
        assert session["seq"] or name in self._popped or session["run_id"], (
            f"{name} is empty, and stays"
        )
        working = [
            run["run_id"]
            for run in tables.runs.values()
            if run["session_id"] == name and run["status"] == "in_progress"
        ]
        assert working == ([session["run_id"]] if session["run_id"] else []), "who has the session?"
        turns = tables.turns(name)
        numbers = [self._runs[turn].number for turn, _ in turns]
        assert numbers == sorted(set(numbers)), f"{name}: turns lie in the order {numbers}"
        for turn, rows in turns:
            said = [row["content"] for row in rows if row.get("role") == "user"]
            assert said == [self._runs[turn].text], f"{name}: the input of a turn is {said}"
            assert rows[0].get("role") == "user", f"{name}: a turn begins with {rows[0]}"
        if not session["run_id"]:
            assert not unpaired(tables.contents(name)), unpaired(tables.contents(name))

    def _check_events(self, tables: Tables, run: Row) -> None:
        events = tables.events.get(run["run_id"], [])
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        before = self._events.get(run["run_id"], [])
        assert events[: len(before)] == before, "what was told was changed"
        self._events[run["run_id"]] = events
        finals = [event for event in events if event["type"] in FINAL]
        assert len(finals) == (run["finished_at"] is not None), f"ends of {run['run_id']}: {finals}"
        if finals:
            assert events[-1] is finals[0], "something was told after the end"
            told, known = finals[0]["response"], self._runs[run["run_id"]]
            waited = told["incomplete_details"] == {"reason": "approval_required"}
            cancelled = waited and known.asked and run["status"] == "cancelled"
            assert cancelled or told["status"] == run["status"]

    def _check_end(self, tables: Tables, run: Row) -> None:
        """What a run that has ended leaves in its session."""
        known, name = self._runs[run["run_id"]], run["session_id"]
        items = tables.of_turn(run)
        tools = [step for step in tables.tools if step["journal_id"] == run["journal_id"]]
        if known.mixed or name in self._popped:
            return
        last = tables.events[run["run_id"]][-1]["response"]
        # Where a process dies just then, a call is told and the model is asked for it once more.
        called = tools or any("call_id" in item for item in last["output"])
        if run["status"] == "failed" and not called and not run["checkpoint_run_id"]:
            assert not items, f"a turn that failed before any tool left {items}: {last['error']}"
        elif run["status"] == "cancelled" and known.undone:
            assert not items, f"a turn that was rolled back left {items}"
        elif items or not self._may_be_gone(tables, run):
            self._check_kept(tables, run, items, tools)

    def _may_be_gone(self, tables: Tables, run: Row) -> bool:
        """Whether somebody asked that nothing of its turn is left."""
        turn = [row for row in tables.runs.values() if row["journal_id"] == run["journal_id"]]
        return any(self._runs[row["run_id"]].may_go for row in turn)

    def _check_kept(self, tables: Tables, run: Row, items: Rows, tools: Rows) -> None:
        """Nothing that was told or done is missing."""
        ids = [(item.get("type"), item["call_id"]) for item in items if "call_id" in item]
        texts = [text_of(item["content"]) for item in items if "content" in item]
        for step in tools:
            call_id = json.loads(step["call"])["call_id"]
            made = self._world.starts[call_id] > 0
            assert not made or ("function_call_output", call_id) in ids, (
                f"{call_id} was called and is lost"
            )
        for item in tables.events[run["run_id"]][-1]["response"]["output"]:
            if "call_id" in item:
                assert (item["type"], item["call_id"]) in ids, f"{item} was told and is not kept"
            elif item["type"] == "message" and not self._is_said_anew(tables, run, item):
                text, how = text_of(item["content"]), run["status"]
                assert text in texts, f"'{text}' was told, the run {how}, and it is not kept"

    def _is_said_anew(self, tables: Tables, run: Row, item: Row) -> bool:
        """Whether a model was cut off in it, and another run has gone on with the turn since."""
        later = (row for row in tables.runs.values() if row["run_id"] > run["run_id"])
        taken_up = any(row["journal_id"] == run["journal_id"] for row in later)
        return taken_up and run["status"] == "failed" and item["status"] == "incomplete"

    def _check_told(self, known: Known) -> None:
        stored = self._events.get(known.run_id, [])
        if known.run_id in self._gone:
            return
        ended = known.told[-1]["type"] in FINAL
        assert ended or known.sent_away, f"the end of {known.run_id} was not told"
        if stored and not known.replica.was_frozen:
            heard = stored[: len(known.told)] if known.sent_away else stored
            assert known.told == heard, f"{known.run_id} is told as it is not stored"

    def _check_refusal(self, known: Known) -> None:
        """Nobody is refused but for what was asked."""
        request, failure = known.run.request, known.run.failure
        may_be = {"model_error", "agent_error"}
        if request.concurrency == "reject":
            may_be.add("session_busy")
        if request.concurrency == "rollback":
            may_be.add("conflict")
        if request.idempotency_key:
            may_be.add("database_unavailable")  # a run has the key already
        if known.replica.runs.is_stopping:
            may_be.add("unavailable")  # it was not stored yet
        if known.replica.was_frozen or known.run_id in self._gone or failure is None:
            return
        assert failure.code in may_be, f"{known.run_id} was refused: {failure.code}"

    async def _check_owners(self, replica: Replica) -> None:
        for known in self._runs.values():
            other = "bob" if known.owner == "ann" else "ann"
            for work in (
                replica.runs.response(known.run_id, other),
                replica.runs.cancel(known.run_id, other),
                Session(known.name, database=replica.database, owner=other).get_items(),
            ):
                with contextlib.suppress(NotFoundError):
                    assert not await work, "another owner sees it"
            shown = await list_approvals(replica.database, other, status="", after="", limit=1000)
            assert known.run_id not in [approval["previous_response_id"] for approval in shown]
