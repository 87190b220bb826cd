"""Builds that are broken on purpose: the crash kit must find each of them out.

python -m tests.broken_builds forgets_outcomes --scenarios tool --every
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from threadkeep import sqlite
from threadkeep.database import load_statements
from threadkeep.journal import ToolStep
from threadkeep.run import Run
from threadkeep.run_log import RunLog
from threadkeep.testing import crash


def forgets_outcomes() -> None:
    """How a tool call has ended is not stored."""
    record = RunLog.record_tool

    async def record_tool(self: RunLog, step: ToolStep) -> None:
        if step.status == "intended":
            await record(self, step)

    RunLog.record_tool = record_tool


def has_no_fence() -> None:
    """A process that has lost its run writes all the same."""

    def statements(dialect: str) -> dict[str, str]:
        found = load_statements(dialect)
        fence = r"AND (s\.|r\.)?(run_)?attempt = :attempt"
        return found | {"write_run": re.sub(fence, "", found["write_run"])}

    sqlite.load_statements = statements


def stores_input_twice() -> None:
    """A run that is taken over stores its input again."""
    begin = Run._begin  # noqa: SLF001 - what it breaks lies inside

    def begin_again(self: Run) -> None:
        begin(self)
        if self._taken_over:
            self._turn.session._input_comes = False  # noqa: SLF001 - as above

    Run._begin = begin_again  # noqa: SLF001 - as above


BUILDS: dict[str, Callable[[], None]] = {
    build.__name__: build for build in (forgets_outcomes, has_no_fence, stores_input_twice)
}

if __name__ == "__main__":
    BUILDS[sys.argv[1]]()
    sys.exit(crash.main(sys.argv[2:]))
