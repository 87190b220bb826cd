"""Kill any process at any moment: what a client was told is kept, and nothing is done twice.

The crash kit does it, in a process of its own: its parent must have no threads.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest

from tests.backends import new_postgres
from tests.broken_builds import BUILDS

SEED = 20261124


def kit(*arguments: str, module: str = "threadkeep.testing.crash") -> dict[str, Any]:
    """Runs the kit; its report."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--json", "--jobs", "4"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=1500,
    )
    assert done.returncode in (0, 1)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> list[str]:
    """The kit's arguments for each database."""
    if request.param == "sqlite":
        return []
    return ["--database", new_postgres(request.getfixturevalue("postgres")).url]


def test_a_kill_at_any_point_of_a_tool_call_breaks_no_promise(database: list[str]) -> None:
    """Before and after each statement of the turn, and wherever the model, the tool or the client
    is in the middle of something."""
    report = kit("--every", "--scenarios", "tool", "--seed", str(SEED), *database)
    assert report["broken"] == []
    for name in ("find_run_by_key", "begin_turn", "write_run"):
        assert report["places"][f"before {name}"] >= 1
        assert report["places"][f"after {name}"] >= 1
    assert {"a tool begins", "a tool has done it", "a model speaks"} <= report["places"].keys()


def test_random_kills_break_no_promise(database: list[str], prove: bool) -> None:
    """Of plain turns, tools, parallel tools, streamed and background turns; some are killed again
    and again. In the long proof at each of their points, and frozen at each statement, too."""
    seed = random.SystemRandom().randrange(1 << 30) if prove else SEED
    much = ["--kills", "1100", "--every", "--freezes"] if prove else ["--kills", "30"]
    report = kit(*much, "--seed", str(seed), *database)
    print(f"\n{'Postgres' if database else 'SQLite'}, seed {seed}: {report['cases']} turns,")
    print(f"{report['killed']} processes killed in {report['seconds']} s: {report['places']}")
    print(f"{report['freezes']} frozen and back, {report['approvals']} calls in doubt decided")
    print(*report["broken"], sep="\n")
    assert report["broken"] == []
    assert report["killed"] >= (1100 if prove else 30)
    assert len(report["places"]) >= 8, "all were killed at the same places"


@pytest.mark.parametrize("build", BUILDS)
def test_the_kit_finds_out_broken_builds(build: str) -> None:
    """What forgets how calls ended, has no fence, or stores an input twice does not pass."""
    how = "--freezes" if build == "has_no_fence" else "--every"
    arguments = [build, how, "--stop", "--scenarios", "tool", "--seed", str(SEED)]
    assert kit(*arguments, module="tests.broken_builds")["broken"]
