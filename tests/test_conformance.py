"""The conformance suite: what it finds, and that our Sessions pass it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import cycle
from typing import Any

import pytest

from tests.backends import Backend
from tests.flawed_sessions import FLAWS, MemorySession, Store
from tests.lakebase import LakebaseStandIn
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.databricks import AsyncDatabricksSession
from threadkeep.settings import DatabaseSettings
from threadkeep.testing import NonconformanceError, Report, checks, damage_checks, score

BY_NAME = {check.name: check for check in (*checks, *damage_checks)}


async def scored(session_type: type[MemorySession], seconds: float = 60) -> Report:
    """How a kind of Session in memory does."""
    store = Store()

    async def make(session_id: str) -> Any:
        return session_type(session_id, store)

    return await score(make, damage=store.damage, seconds=seconds)


async def test_our_session_conforms(backend: Backend) -> None:
    """On each database, through two connections to it, as two processes have."""
    databases = [connect(DatabaseSettings.read(backend.variables)) for _ in range(2)]
    turns = cycle(databases)

    async def make(session_id: str) -> Session:
        return Session(session_id, database=next(turns))

    async def damage(session_id: str) -> None:
        backend.execute(
            f"UPDATE threadkeep.items SET data = '{{broken' WHERE session_id = '{session_id}' AND "
            f"seq = (SELECT seq FROM threadkeep.sessions WHERE session_id = '{session_id}')"
        )

    report = await score(make, damage=damage)
    assert report.failures == {}
    for database in databases:
        await database.close()


async def test_async_databricks_session_conforms(workspace: LakebaseStandIn) -> None:
    """Though it looks for the original's history first."""
    instance = workspace.environment()["LAKEBASE_INSTANCE_NAME"]

    async def make(session_id: str) -> Session:
        return AsyncDatabricksSession(session_id, instance_name=instance)

    report = await score(make)
    assert report.failures == {}


async def test_a_session_can_pass_all_of_it() -> None:
    """So nothing is asked that can't be done."""
    report = await scored(MemorySession)
    assert report.failures == {}
    assert len(report.results) == len(BY_NAME)


@pytest.mark.parametrize("flawed", FLAWS, ids=lambda flawed: flawed.__name__)
async def test_a_flaw_is_found(flawed: type[MemorySession]) -> None:
    """By the checks that are about it."""
    store = Store()

    async def make(session_id: str) -> Any:
        return flawed(session_id, store)

    for name in FLAWS[flawed]:
        # Whatever the Session raises is a finding too.
        with pytest.raises(
            (NonconformanceError, LookupError, ValueError, TypeError, AttributeError)
        ):
            await BY_NAME[name].run(make, damage=store.damage)


def test_every_check_can_fail() -> None:
    """There is a flaw above for each."""
    assert set.union(*FLAWS.values()) == BY_NAME.keys()


def test_every_check_says_what_it_claims() -> None:
    """With a name of its own, in an area."""
    assert len(BY_NAME) == len(checks) + len(damage_checks)
    assert {check.area for check in BY_NAME.values()} == {
        "atomicity",
        "concurrency",
        "isolation",
        "limits",
        "order",
        "protocol",
        "repair",
        "round trip",
        "turns",
    }
    for check in BY_NAME.values():
        assert check.claim.endswith(".")


@pytest.mark.parametrize("check", checks, ids=str)
async def test_checks_can_be_parametrized_over(check: Any) -> None:
    """As docs/conformance.md shows: each passes or raises by itself."""
    store = Store()

    async def make(session_id: str) -> Any:
        return MemorySession(session_id, store)

    await check.run(make)


async def test_what_hangs_is_a_failure() -> None:
    """And the checks behind it are made all the same."""

    class Hangs(MemorySession):
        async def pop_item(self, *, wrapper: Any = None) -> Any:
            await asyncio.Event().wait()

    report = await scored(Hangs, seconds=0.1)
    assert report.failures["pop takes the newest"] == "it takes longer than 0.1 s"
    assert len(report.results) == len(BY_NAME)


async def test_what_a_session_raises_is_a_reason() -> None:
    """On one line, with its type; and the sessions are closed."""
    closed = []

    class Raises(MemorySession):
        async def clear_session(self, *, wrapper: Any = None) -> None:
            raise OSError("the disk\nis | full")

        def close(self) -> None:
            closed.append(self.session_id)

    report = await scored(Raises)
    name = "clear leaves nothing and goes on"
    assert report.failures[name] == "OSError: the disk is | full"
    assert f"| protocol | {name} | **fails:** OSError: the disk is \\| full |" in str(report)
    assert "| order | batches keep their order | passes |" in str(report)
    total = len(BY_NAME)
    assert str(report).endswith(f"{total - len(report.failures)} of {total} pass.")
    assert len(closed) > total


def test_it_needs_no_pytest() -> None:
    """Nor anything else of the tests: it is used from scripts."""
    code = "import sys; sys.modules['pytest'] = None; import threadkeep.testing"
    subprocess.run([sys.executable, "-c", code], check=True)
