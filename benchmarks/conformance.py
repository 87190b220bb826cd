"""The SDK's own Sessions, the original AsyncDatabricksSession and ours in the conformance suite.

    uv run --group dev --group benchmarks python benchmarks/conformance.py

Prints one table, and why what fails fails. Each is given an empty store, as its users have it, and
makes its Session objects with connections of their own, as processes do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

from agents import SQLiteSession
from agents.extensions.memory import (
    AdvancedSQLiteSession,
    AsyncSQLiteSession,
    EncryptedSession,
    RedisSession,
    SQLAlchemySession,
)
from redis.asyncio import Redis
from sqlalchemy import text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the databases of the tests

from interop import PROJECT, UV, enter  # noqa: E402

from tests.backends import (  # noqa: E402
    Postgres,
    SQLite,
    free_port,
    new_postgres,
    postgres_server,
    unprivileged,
    wait_for,
)
from tests.lakebase import lakebase_stand_in  # noqa: E402
from threadkeep import Session  # noqa: E402
from threadkeep.connect import connect  # noqa: E402
from threadkeep.testing import Damage, SessionFactory, checks, damage_checks, score  # noqa: E402

PACKAGES = ("openai-agents", "sqlalchemy", "aiosqlite", "asyncpg", "redis", "cryptography")
AREAS = list(dict.fromkeys(check.area for check in checks))
EVERY_CHECK = sorted((*checks, *damage_checks), key=lambda check: AREAS.index(check.area))

Reasons = dict[str, str]
"""Why each check failed, by its name; '' when it passed."""


class OwnEngine(SQLAlchemySession):
    """As `from_url` makes it; its engine ends with it."""

    async def close(self) -> None:
        await self.engine.dispose()


async def main() -> None:
    """Scores all, and prints."""
    enter({"OPENAI_AGENTS_DISABLE_TRACING": "1"})
    logging.disable()  # damage and refused batches are logged, as they should be
    columns: dict[str, Reasons] = {}
    versions = {name: version(name) for name in PACKAGES}
    async with AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        server = running.enter_context(postgres_server())
        for name, backend in (("SQLite", SQLite(folder / "ours.db")), ("Postgres", server)):
            database = new_postgres(backend) if isinstance(backend, str) else backend
            async with ours(database) as (make, damage):
                columns[f"ours, {name}"] = await reasons(make, damage)
        for name, kind in SQLITE_SESSIONS.items():
            columns[name] = await reasons(*in_a_file(kind, folder / f"{name}.db"))
        columns["SQLAlchemy, SQLite"] = await reasons(
            *by_sqlalchemy(f"sqlite+aiosqlite:///{folder}/sqlalchemy.db")
        )
        url = new_postgres(server).url.replace("postgresql:", "postgresql+asyncpg:")
        columns["SQLAlchemy, Postgres"] = await reasons(*by_sqlalchemy(url))
        columns["Redis"] = await reasons(*in_redis(running.enter_context(redis_server())))
    original = original_session()
    columns["AsyncDatabricks"] = original["reasons"]
    print(table(columns))
    print()
    print("\n".join(why(columns)))
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {told(versions)}")
    print(f"AsyncDatabricksSession: {told(original['versions'])}")


async def reasons(make: SessionFactory, damage: Damage) -> Reasons:
    """Scores one kind of Session."""
    report = await score(make, damage=damage)
    return {result.check.name: result.reason for result in report.results}


@asynccontextmanager
async def ours(backend: SQLite | Postgres) -> AsyncIterator[tuple[SessionFactory, Damage]]:
    """Our Session, in turn on one of two connections to a database."""
    databases = [connect(backend.variables["DATABASE_URL"]) for _ in range(2)]
    turns = cycle(databases)

    async def make(session_id: str) -> Session:
        return Session(session_id, database=next(turns))

    async def damage(session_id: str) -> None:
        backend.execute(
            f"UPDATE threadkeep.items SET data = '{{broken' WHERE session_id = '{session_id}' AND "
            f"seq = (SELECT seq FROM threadkeep.sessions WHERE session_id = '{session_id}')"
        )

    yield make, damage
    for database in databases:
        await database.close()


def encrypted(session_id: str, file: Path) -> EncryptedSession:
    """An EncryptedSession over a SQLiteSession."""
    key = "not a secret; 32 characters or so"
    return EncryptedSession(session_id, SQLiteSession(session_id, file), encryption_key=key)


def advanced(session_id: str, file: Path) -> AdvancedSQLiteSession:
    """An AdvancedSQLiteSession with its tables."""
    return AdvancedSQLiteSession(session_id=session_id, db_path=file, create_tables=True)


SQLITE_SESSIONS: dict[str, Any] = {
    "SQLiteSession": SQLiteSession,
    "AsyncSQLite": AsyncSQLiteSession,
    "AdvancedSQLite": advanced,
    "Encrypted, SQLite": encrypted,
}
NEWEST = "SELECT max(id) FROM agent_messages WHERE session_id = :session_id"
DAMAGE = f"UPDATE agent_messages SET message_data = '{{broken' WHERE id = ({NEWEST})"


def in_a_file(kind: Any, file: Path) -> tuple[SessionFactory, Damage]:
    """One of the SDK's Sessions in a SQLite file."""

    async def make(session_id: str) -> Any:
        return kind(session_id, file)

    async def damage(session_id: str) -> None:
        with sqlite3.connect(file) as raw:
            raw.execute(DAMAGE, {"session_id": session_id})
        raw.close()

    return make, damage


def by_sqlalchemy(url: str) -> tuple[SessionFactory, Damage]:
    """The SDK's SQLAlchemySession."""

    async def make(session_id: str) -> Any:
        return OwnEngine.from_url(session_id, url=url, create_tables=True)

    async def damage(session_id: str) -> None:
        session = await make(session_id)
        async with session.engine.begin() as connection:
            await connection.execute(text(DAMAGE), {"session_id": session_id})
        await session.close()

    return make, damage


def in_redis(url: str) -> tuple[SessionFactory, Damage]:
    """The SDK's RedisSession."""

    async def make(session_id: str) -> Any:
        return RedisSession.from_url(session_id, url=url)

    async def damage(session_id: str) -> None:
        async with Redis.from_url(url) as client:
            await client.lset(f"agents:session:{session_id}:messages", -1, "{broken")

    return make, damage


@contextmanager
def redis_server() -> Iterator[str]:
    """Runs Debian's Redis as an unprivileged user, on a free port; gives its URL."""
    program = shutil.which("redis-server")
    assert program, "Redis is missing: apt-get install -y redis-server"
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="threadkeep-redis-") as folder:
        process = subprocess.Popen(
            [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder],
            user=unprivileged(Path(folder)),
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def original_session() -> dict[str, dict[str, str]]:
    """What databricks_openai/conformance.py says, on a Lakebase of this machine."""
    with lakebase_stand_in() as lakebase:
        environment = lakebase.environment(PYTHONPATH=str(ROOT / "src"))
        done = subprocess.run(
            [UV, "run", "--quiet", "--project", PROJECT, "python", PROJECT / "conformance.py"],
            env=dict(os.environ) | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    outcome: dict[str, dict[str, str]] = json.loads(done.stdout)
    return outcome


def table(columns: dict[str, Reasons]) -> str:
    """A row for each check, a column for each kind of Session."""
    lines = [f"| check | {' | '.join(columns)} |", f"|---|{':-:|' * len(columns)}"]
    area = ""
    for check in EVERY_CHECK:
        if check.area != area:
            area = check.area
            lines.append(f"| **{area}** {'|' * (len(columns) + 1)}")
        marks = ["fails" if found[check.name] else "✓" for found in columns.values()]
        lines.append(f"| {check.name} | {' | '.join(marks)} |")
    passed = [sum(not reason for reason in found.values()) for found in columns.values()]
    totals = [f"{count} of {len(EVERY_CHECK)}" for count in passed]
    return "\n".join([*lines, f"| **together** | {' | '.join(totals)} |"])


def why(columns: dict[str, Reasons]) -> Iterator[str]:
    """A line for each reason, with the Sessions that fail by it."""
    for check in EVERY_CHECK:
        names = defaultdict(list)
        for name, found in columns.items():
            if found[check.name]:
                names[found[check.name]].append(name)
        for reason, failing in names.items():
            yield f"- {check.name}: {reason} ({'; '.join(failing)})"


def told(versions: dict[str, str]) -> str:
    """Names and versions, for people."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


if __name__ == "__main__":
    asyncio.run(main())
