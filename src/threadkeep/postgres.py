"""The Postgres driver: asyncpg with prepared statements, one round trip a named statement.

A pool belongs to the event loop that made it; a database that serves several has one for each.
Connections are opened as they are needed. Nothing of a state is left on one (every statement
commits by itself), so it goes back to the pool without the reset that asyncpg would send.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from threadkeep.database import Row, Value, load_statements
from threadkeep.errors import (
    ClosedError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
)
from threadkeep.migrate import RELEASE, load_migrations, pending

POOL_SIZE = 10
"""Connections of one process and event loop, at most."""

WAIT_SECONDS = 10.0
"""How long a call waits for a connection before it gives up."""

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
_MIGRATION_LOCK = 0x7468_7264_6B65_6570
"""An advisory lock's number: `thrdkeep` in ASCII."""


class PostgresDatabase:
    """A schema of a Postgres database.

    Args:
        url: `postgresql://user:password@host:port/database`, as libpq takes it.
        schema: Where the tables are.
    """

    def __init__(self, url: str, schema: str = "threadkeep") -> None:
        self._url = url
        self._schema = schema
        self._statements = {
            name: _numbered(_in_schema(text, schema))
            for name, text in load_statements("postgres").items()
        }
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._closed = False

    @property
    def description(self) -> str:
        parts = urlsplit(self._url)
        where = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
        return f"{where}, schema {self._schema} (Postgres)"

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        text, names = self._statements[statement]
        pool = await self._pool()
        try:
            async with pool.acquire(timeout=WAIT_SECONDS) as connection:
                return list(await connection.fetch(text, *(parameters[name] for name in names)))
        except TimeoutError as error:
            raise DatabaseBusyError(
                f"No connection to the database was free within {WAIT_SECONDS:.0f} s. Try again."
            ) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _translated(error) from error

    async def open(self) -> None:
        await self._pool()

    async def close(self) -> None:
        self._closed = True
        making = self._pools.pop(asyncio.get_running_loop(), None)
        if making is not None and not making.cancelled() and making.exception() is None:
            await making.result().close()

    async def _pool(self) -> Any:
        """The pool of this loop, made by whoever comes first; others wait for it."""
        if self._closed:
            raise ClosedError("This database was closed. Open it again with threadkeep.connect.")
        loop = asyncio.get_running_loop()
        making = self._pools.get(loop)
        if making is None or (making.done() and (making.cancelled() or making.exception())):
            making = self._pools[loop] = loop.create_task(self._make_pool())
        return await asyncio.shield(making)

    async def _make_pool(self) -> Any:
        try:
            pool = await asyncpg.create_pool(
                self._url, min_size=0, max_size=POOL_SIZE, reset=_leave, timeout=WAIT_SECONDS
            )
            async with pool.acquire() as connection:
                await _migrate(connection, self._schema)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _translated(error) from error
        return pool


async def _leave(connection: Any) -> None:
    """A connection goes back as it is."""


def _in_schema(text: str, schema: str) -> str:
    quoted = '"' + schema.replace('"', '""') + '"'
    return re.sub(r"\bthreadkeep\.", lambda _: f"{quoted}.", text)


def _numbered(text: str) -> tuple[str, Sequence[str]]:
    """Postgres numbers its parameters: the text with `$1`, and the names in that order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return _PARAMETER.sub(number, text), names


async def _migrate(connection: Any, schema: str) -> None:
    """Brings the schema up to date under a lock; when it is, nothing is changed or locked."""
    migrations = load_migrations("postgres")
    if not pending(migrations, await _applied(connection, schema)):
        return
    quoted = _in_schema("threadkeep.", schema)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted.removesuffix('.')}")
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {quoted}schema_migrations (version bigint PRIMARY KEY, "
            "name text NOT NULL, release text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for migration in pending(migrations, await _applied(connection, schema)):
            await connection.execute(_in_schema(migration.sql, schema))
            await connection.execute(
                f"INSERT INTO {quoted}schema_migrations (version, name, release) "  # noqa: S608
                "VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                RELEASE,
            )


async def _applied(connection: Any, schema: str) -> set[int]:
    table = _in_schema("threadkeep.schema_migrations", schema)
    if await connection.fetchval("SELECT to_regclass($1)", table) is None:
        return set()
    rows = await connection.fetch(f"SELECT version FROM {table}")  # noqa: S608 - quoted
    return {row["version"] for row in rows}


def _translated(error: BaseException) -> DatabaseError:
    """Says what an error of asyncpg means, by its type."""
    if isinstance(
        error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError
    ):
        return DatabaseUnavailableError(
            "The database refused the user or password in DATABASE_URL."
        )
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return DatabaseUnavailableError(
            "There is no such database. Create it, or mend DATABASE_URL."
        )
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return DatabaseUnavailableError(
            "The database role lacks a right. It must own the schema, or be granted the use of it."
        )
    if isinstance(error, asyncpg.PostgresError) and not isinstance(
        error, asyncpg.PostgresConnectionError | asyncpg.CannotConnectNowError
    ):
        return DatabaseError(f"The database refused ({error.sqlstate}).")
    return DatabaseUnavailableError("The database can't be reached. Check that it runs.")
