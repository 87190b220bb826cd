"""Whose it is: every named statement, called by Bob with what is Ann's.

The statements come from `load_statements`, and so do their parameters. What this file does not know
fails here, and says which table is to have it. The routes are in test_owners.py.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.backends import Postgres
from tests.conftest import new_backend
from tests.owner_world import MARK, Rows, World, world_on
from tests.test_sql import parameters
from threadkeep.database import Row, load_statements
from threadkeep.errors import DatabaseError
from threadkeep.search_index import scope_of

_NAMES = re.compile(r"^-- name: (\w+)$", re.MULTILINE)

STATEMENTS = load_statements("sqlite")

LOOP = "a loop of every server, over all owners; it answers nobody"
FENCED = "under an id that is random, and known to one import; it leaves any session's items alone"
DOCTOR = "for who runs the server, over all owners"
SEALED = "by the id that a sealed text names; what it gives is wrapped"
ROTATED = "for who changes the master key, over all owners"
ADOPTED = "from tables that know no owner; what it makes is nobody's"

WITHOUT_OWNER = {
    "claim_approvals_to_tell": LOOP,
    "claim_lost_run": LOOP,
    "claim_session_to_remember": LOOP,
    "end_lost_turns": LOOP,
    "forget_old_runs": LOOP,
    "list_decided_runs": LOOP,
    "stage_items": FENCED,
    "unstage_items": FENCED,
    "get_key": SEALED,
    "count_keys": ROTATED,
    "list_keys": ROTATED,
    "rewrap_key": ROTATED,
    "list_all_sessions": DOCTOR,
    "list_item_sessions": DOCTOR,
    "list_silent_runs": DOCTOR,
    "read_whole_sessions": DOCTOR,
}
"""Statements that take no owner, and why."""

COPY = set(_NAMES.findall(files("threadkeep.sql").joinpath("sqlite", "copy.sql").read_text()))
"""Those of `threadkeep copy`, which moves a whole store. They need no owner: no server has a way to
them, which the last test says."""

WITHOUT_OWNER_ON_DATABRICKS = {
    "adopt_session": ADOPTED,
    "count_peer_sessions": ADOPTED,
    "find_peer_tables": ADOPTED,
    "list_peer_sessions": ADOPTED,
    "title_session": ADOPTED,
}

OWNERS: dict[str, Callable[[str], Any]] = {"owner": str, "scope": scope_of}
"""The parameters that say whose, and how: the search index knows an owner by a number."""

ITEM = '{"role":"user","content":"mine"}'

VALUES: dict[str, list[Any]] = {
    "after": [""],
    "again_after": [0, None],
    "approval_calls": [["{}"]],
    "approval_expiry": [1000],
    "approval_keys": [["k"]],
    "approval_kind": ["in_doubt"],
    "before": [2**62],
    "beyond": ["~"],
    "blocks": [["0"]],
    "checkpoint": [None],
    "checkpoint_version": [0],
    "contents": ["mine"],
    "count": [1],
    "created": ["{}"],
    "created_at": [1],
    "description": ["mine"],
    "events": [["{}"]],
    "expires_at": [1],
    "first": [""],
    "first_item": [0],
    "first_seq": [99],
    "fork_metadata": ["{}"],
    "hits": [["1"]],
    "how": ["cancel", "interrupt", "rollback"],
    "input_hash": [""],
    "item_seq": [1],
    "items": [[ITEM]],
    "keep": [0, 1],
    "keywords": ["[]"],
    "limit": [99],
    "made": [0, 1],
    "master_id": ["none"],
    "metadata": ["{}"],
    "model_keys": [["k"]],
    "model_requests": [["h"]],
    "model_responses": [["r"]],
    "new_owner": ["bob"],
    "older_than": [-1],
    "open": [0, 1],
    "open_hash": [None],
    "parent_session_id": [None],
    "path": ["/memories/mine"],
    "pinned": [0],
    "reasons": [["mine"]],
    "request": [None],
    "reset_epoch": [-1],
    "request_hash": [""],
    "room_until": [2**62],
    "seqs": [["1"]],
    "share": [600],
    "source_at": [1],
    "source_seq": [1],
    "stale_after": [-1],
    "status": ["", "completed"],
    "statuses": [["approved"]],
    "supersedes": [0, 1],
    "tag": [0],
    "tell_tries": [1],
    "temporary": [0],
    "terms": [["planted"]],
    "timed": [1],
    "title": ["mine"],
    "titled": [1],
    "tool_approvals": [[""]],
    "tool_calls": [["{}"]],
    "tool_keys": [["k"]],
    "tool_outputs": [[""]],
    "tool_repeatable": [["true"]],
    "tool_states": [["intended"]],
    "tools": [["Assistant/pay"]],
    "updated_at": [1],
    "valid_from": [None, 1],
    "valid_to": [None],
    "waits": [False, True],
    "watch_for": [1000],
    "without": [""],
    "without_no": [-1],
    "wrapped": ["mine"],
}
"""What a statement is given that is no id: the first of them, then each of the others in turn."""

NUMBERED = {"read_first_items", "read_run_events"}
"""Statements whose `after` is a number, and no id."""

IDS: dict[str, str] = {
    "approval_id": "approval",
    "approval_ids": "approval",
    "fork_id": "session",
    "idempotency_key": "key",
    "journal_id": "run",
    "key_id": "key",
    "memory_id": "memory",
    "open_run_id": "run",
    "path_key": "path",
    "run_id": "run",
    "places": "session",
    "search_nos": "session",
    "session_id": "session",
    "session_ids": "session",
    "source_session": "session",
    "staged_id": "session",
    "superseded_by": "memory",
}
"""Of what an id is: of a `session`, a `run`, an `approval`, a `key`, a `memory` or a `path`."""

VERSIONS = {"attempt", "epoch", "indexed_epoch", "indexed_seq", "seq", "version"}
"""Numbers by which a caller says what it has seen: they are right."""

FRESH = {"new_epoch", "fork_epoch", "search_no"}
"""Random numbers, new in each call."""

LISTS = {"approval_ids", "session_ids"}

SAYS_NOTHING = {
    "append_items": "owned",
    "begin_turn": "owned",
    "read_first_items": "owned",
    "read_items": "owned",
    "read_latest_items": "owned",
    "count_owner": "count",
    "count_pending_approvals": "count",
    "delete_memories": "count",
    "delete_sessions": "count",
    "delete_stray_runs": "count",
    "stop_owner": "at_work",
    "take_request": "wait_ms",
}
"""Statements that have a row also for what is not there: the column that is 0 or false then."""


DONE_BEFORE = {"delete_memory", "delete_session"}
"""Statements that, made again, take what is not there for done by the first attempt."""


REFUSALS = sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError
"""By these the database refuses a call as a whole. A value of a wrong type would prove nothing."""


def test_every_statement_takes_the_owner() -> None:
    """But for those that are named, each for a reason."""
    without = {n for n, text in STATEMENTS.items() if not parameters(text) & OWNERS.keys()}
    assert without - COPY == {*WITHOUT_OWNER}, (
        "A statement takes no :owner, or takes one now. Let its WHERE say `owner = :owner`; or, "
        "when no id that a client gives can come to it, name it in WITHOUT_OWNER with the reason."
    )
    assert {*load_statements("databricks")} == {*WITHOUT_OWNER_ON_DATABRICKS}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with world_on(new_backend(request, tmp_path_factory.mktemp("owners"))) as world:
        yield world


def test_no_statement_gives_or_changes_what_is_somebody_elses(world: World) -> None:
    """Called with all that is right but the owner; then with one id of Ann's among Bob's own. On
    Postgres also as one that is made again (`:retried`)."""
    stored = world.stored()
    for name in sorted(STATEMENTS.keys() - WITHOUT_OWNER - COPY):
        known = VALUES.keys() | IDS.keys() | OWNERS.keys() | FRESH | VERSIONS
        unknown = parameters(STATEMENTS[name]) - known
        assert not unknown, (
            f"{name} takes {unknown}, which is new here. Add it in tests/test_owner_statements.py: "
            "to IDS if it is an id (and say of what), else to VALUES with something sensible."
        )
        world.app.do(_try(world, name, stored))
        assert world.stored() == stored, f"{name} has changed what is Ann's"


async def _try(world: World, name: str, stored: dict[str, Rows]) -> None:
    database = world.app.app.state.database
    forms = [name]
    if isinstance(world.place, Postgres):
        text = load_statements("postgres")[name]
        if ":retried" in text:
            forms.append(f"{name}, made again")
            database.define(forms[1], text.replace(":retried::boolean", "true"))
    taken = parameters(STATEMENTS[name])
    for form in forms:
        for hers in _hers(stored):
            for given in _calls(taken, name, hers, "eve"):
                rows = await _rows(database, form, given)
                column = SAYS_NOTHING.get(name)
                telling = [row for row in rows if row[column]] if column else rows
                may_tell = form != name and name in DONE_BEFORE
                assert may_tell or not telling, (
                    f"{form} of another owner, given {given}, gives {rows}"
                )
        for at in sorted(taken & IDS.keys()):
            for hers in [*_hers(stored)][::2]:
                bobs = await _bobs(database, hers) | {at: hers[at]}
                (given, *_) = _calls(taken, name, bobs, "bob")
                rows = await _rows(database, form, given)
                sent = "|".join(map(re.escape, _texts(given)))
                told = re.sub(sent, "", str(rows))
                wrong = f"{form}, given Ann's {at} in {given}, gives {rows}"
                assert not any(secret in told for secret in [MARK, *world.hers]), wrong


def _hers(stored: dict[str, Rows]) -> Iterator[dict[str, Any]]:
    """Ids of Ann's that belong together: of each run, and of the session that has none."""
    sessions = {row["session_id"]: row for row in stored["sessions"]}
    runs, memory = stored["runs"], stored["memories"][0]
    without = sessions.keys() - {run["session_id"] for run in runs}
    for session_id, run in [(run["session_id"], run) for run in runs] + [
        (session_id, runs[0]) for session_id in without
    ]:
        row = sessions[session_id]
        approvals = [a for a in stored["approvals"] if a["run_id"] == run["run_id"]]
        ids = {
            "session_id": session_id,
            "run_id": run["run_id"],
            "open_run_id": row["open_run_id"] or run["run_id"],
            "journal_id": run["journal_id"],
            "approval_id": (approvals or stored["approvals"])[0]["approval_id"],
            "idempotency_key": f"{MARK} key",
            "key_id": f"{MARK} key",
            "fork_id": next(iter(without)),
            "count": row["seq"],
            "search_nos": [str(row["search_no"]), str(memory["search_no"])],
            "source_session": session_id,
            "memory_id": memory["memory_id"],
            "superseded_by": memory["memory_id"],
            "path_key": memory["path_key"],
            "version": memory["version"],
            "places": [f"{row['search_no']}:{at}" for at in (0, 1)],
            "indexed_epoch": row["indexed_epoch"],
            "indexed_seq": row["indexed_seq"],
            "staged_id": session_id,
            "epoch": row["epoch"],
            "seq": row["seq"],
            "attempt": run["attempt"],
        }
        yield ids | {"approval_ids": [ids["approval_id"]], "session_ids": [session_id]}


async def _bobs(database: Any, hers: dict[str, Any]) -> dict[str, Any]:
    """The like of Bob's, made now: a session that a run has, and one that says it is a fork of
    Ann's."""
    run_id, fork_id = f"resp_{uuid4()}", str(uuid4())
    ids: dict[str, Any] = {"session_id": str(uuid4()), "run_id": run_id, "open_run_id": run_id}
    ids |= {"journal_id": run_id, "approval_id": str(uuid4()), "idempotency_key": None}
    ids |= {"key_id": str(uuid4()), "search_nos": ["0"]}
    ids |= {"places": ["0:1"]}
    ids |= {"indexed_epoch": -1, "indexed_seq": 0}
    ids |= {"fork_id": fork_id, "staged_id": str(uuid4()), "epoch": 0, "seq": 0, "attempt": 1}
    ids |= {"approval_ids": [ids["approval_id"]], "session_ids": [ids["session_id"]]}
    ids |= {"memory_id": str(uuid4()), "path_key": str(uuid4()), "version": 1}
    ids |= {"source_session": ids["session_id"], "superseded_by": None}
    taken = parameters(STATEMENTS["save_memory"])
    (given, *_) = _calls(taken, "save_memory", ids, "bob")
    assert (await database.call("save_memory", **given))[0]["saved"]
    taken = parameters(STATEMENTS["begin_turn"])
    (given, *_) = _calls(taken, "begin_turn", ids | {"fork_id": ""}, "bob")
    (row,) = await database.call("begin_turn", **given)
    assert not row["busy"]
    staged = str(uuid4())
    await database.call(
        "stage_items", staged_id=staged, first_seq=1, items=[ITEM], run_ids=[""], times=["1"]
    )
    taken = parameters(STATEMENTS["import_session"])
    child = {"session_id": fork_id, "staged_id": staged}
    (given, *_) = _calls(taken, "import_session", ids | child, "bob")
    given["parent_session_id"] = hers["session_id"]
    assert await database.call("import_session", **given)
    return ids | {"epoch": row["epoch"], "seq": row["head"]}


def _calls(taken: set[str], name: str, ids: dict[str, Any], owner: str) -> Iterator[dict[str, Any]]:
    """The parameters of calls with these ids: one, and one for each other value."""
    of_owner = {at: made(owner) for at, made in OWNERS.items() if at in taken}
    values = VALUES | ({"after": [0]} if name in NUMBERED else {})
    first = {at: values[at][0] for at in taken & values.keys()}
    for given in [first] + [first | {at: value} for at in first for value in values[at][1:]]:
        fresh = {at: uuid4().int >> 66 for at in taken & FRESH}
        yield given | of_owner | fresh | {at: value for at, value in ids.items() if at in taken}


async def _rows(database: Any, statement: str, given: dict[str, Any]) -> list[Row]:
    try:
        rows: list[Row] = await database.call(statement, **given)
    except DatabaseError as error:
        if isinstance(error.__cause__, REFUSALS):
            return []
        raise
    return rows


def _texts(given: dict[str, Any]) -> list[str]:
    values = [
        v for value in given.values() for v in (value if isinstance(value, list) else [value])
    ]
    return [value for value in values if isinstance(value, str) and value]


def test_no_server_copies_stores() -> None:
    """The module that does is not even loaded by one."""
    code = "import sys, threadkeep.server.serve as s; print('threadkeep.store_copy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
