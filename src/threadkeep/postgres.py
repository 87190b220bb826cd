"""The Postgres driver: asyncpg with prepared statements, one round trip a named statement.

A pool belongs to the event loop that made it; a database that serves several has one for each.
Connections are opened as they are needed. Nothing of a state is left on one (every statement
commits by itself), so it goes back to the pool without the reset that asyncpg would send.

When a connection dies under a statement, nobody knows whether that was done. So every statement may
be made again: those that write are given a number of the call and told that it is `retried`, and
recognise by what is stored whether the first attempt was done (see sql/postgres). A server that
restarts costs its callers some time, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg

from threadkeep import postgres_schema
from threadkeep.database import Row, Signal, Value, load_statements
from threadkeep.errors import (
    ClosedError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    DuplicateError,
)
from threadkeep.postgres_server import Server
from threadkeep.postgres_signals import Listener

POOL_SIZE = 10
"""Connections of one process and event loop, at most; one more listens (postgres_signals.py)."""

WAIT_SECONDS = 10.0
"""How long a call waits for a connection, or tries to get one, before it gives up."""

STATEMENT_SECONDS = 30.0
"""How long a statement may take before the server counts as dead."""

_CONNECT_SECONDS = 5.0
_RELEASE_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")

_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # of a server that was the first one before a fail-over
    asyncpg.TooManyConnectionsError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a server's last words met a statement that was just being sent
    OSError,
)
"""What may be otherwise on another connection, or a moment later."""

_FINAL = (asyncpg.DataError, asyncpg.ClientConfigurationError, socket.gaierror)
"""What is of a kind above, and stays as it is."""

_SOUND = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
    asyncpg.DataError,
)
"""After these the connection is as good as before."""

_REFUSALS = 2
"""How many logins of one call may be refused before it gives up."""

_ALL = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

T = TypeVar("T")

_POOLER = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""What shows that another connection to the server is behind ours each time."""

_LOGIN = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)


class PostgresDatabase:
    """A schema of a Postgres database.

    Args:
        server: Where it is, and how to get in.
        schema: Where the tables are.
        migrates: Whether to bring the schema up to date when it opens; else it must be.
        pool_size: Connections of one event loop, at most.
        wait_seconds: How long a call waits for a connection.
    """

    def __init__(
        self,
        server: Server,
        schema: str = "threadkeep",
        *,
        migrates: bool = True,
        pool_size: int = POOL_SIZE,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._server = server
        self._schema = schema
        self._channel = schema  # of the same name: both may have 63 bytes, whatever they are
        self._migrates = migrates
        self._statements: dict[str, tuple[str, Sequence[str]]] = {}
        for name, text in load_statements("postgres").items():
            self.define(name, text)
        self._pool_size = pool_size
        self._wait = wait_seconds
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._ready = False
        self._closed = False

    @property
    def description(self) -> str:
        return f"{self._server.description}, schema {self._schema} (Postgres)"

    @property
    def schema(self) -> str:
        """The name of the schema."""
        return self._schema

    def define(self, name: str, text: str) -> None:
        """Adds a named statement to those of `sql/postgres`, unless there is one of that name.

        Args:
            name: For `call`.
            text: With `:name` for parameters, and `threadkeep.` for the schema. The driver itself
                gives `:call_id` and `:retried`, and `:channel` for `pg_notify(:channel, topic)`.
        """
        if name not in self._statements:
            self._statements[name] = _numbered(postgres_schema.in_schema(text, self._schema))

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        if not self._ready:
            await self.open()
        text, names = self._statements[statement]
        known = {"call_id": secrets.randbits(63), "retried": False, "channel": self._channel}

        async def ask(connection: Any) -> list[Row]:
            values = [known[name] if name in known else parameters[name] for name in names]
            known["retried"] = True
            return list(await connection.fetch(text, *values))

        return await self._attempt(ask)

    @contextlib.asynccontextmanager
    async def signals(self, topic: str) -> AsyncIterator[Signal]:
        async with self._pool().signals(topic) as signal:
            yield signal

    async def open(self) -> None:
        if self._migrates:
            await self._attempt(lambda c: postgres_schema.migrate(c, self._schema))
        else:
            await self._attempt(lambda c: postgres_schema.check(c, self._schema))
        self._ready = True

    async def pending(self) -> list[str]:
        found = await self._attempt(lambda c: postgres_schema.missing(c, self._schema))
        return [migration.full_name for migration in found]

    async def missing_grants(self) -> list[str]:
        """The SQL that gives our role what it lacks, and an owner must run; changes nothing."""
        return await self._attempt(lambda c: postgres_schema.missing_grants(c, self._schema))

    async def whoami(self) -> Row:
        """How we are connected: `role`, `version` of the server, `tls`; whether we `may_change`."""
        return await self._attempt(lambda c: postgres_schema.whoami(c, self._schema))

    async def rights_of(self, role: str) -> Row | None:
        """Whether a role is let in (`lets_in`), and we `may_grant` that; None: there is no such."""
        return await self._attempt(lambda c: postgres_schema.rights_of(c, self._schema, role))

    async def execute(self, sql: str) -> None:
        """Runs SQL that has no parameters and no result.

        Raises:
            DatabaseError: The database refused.
        """
        await self._attempt(lambda c: c.execute(sql))

    async def scrub(self) -> bool:
        return True

    async def close(self) -> None:
        self._closed = True
        here = self._pools.pop(asyncio.get_running_loop(), None)
        for loop in list(self._pools):
            pool = self._pools.pop(loop)
            if loop.is_closed():
                pool.abandon()
            else:
                loop.call_soon_threadsafe(pool.abandon)
        if here is not None:
            await here.close()

    async def _attempt(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Does it on a connection; again on another one, for a while, when that dies."""
        deadline = asyncio.get_running_loop().time() + self._wait
        pause, refusals = _FIRST_PAUSE, 0
        while True:
            try:
                return await self._pool().use(work, deadline)
            except asyncpg.InsufficientPrivilegeError as error:
                raise await self._lacking_rights(error) from error
            except _LOGIN as error:
                refusals += 1
                if not self._server.forget_login() or refusals == _REFUSALS:
                    raise self._translated(error) from error
            except asyncpg.UniqueViolationError as error:
                # The first attempt was done while this one waited for it: now it is seen.
                if error.constraint_name != "items_by_call":
                    raise self._translated(error) from error
            except _ALL as error:
                late = asyncio.get_running_loop().time() + pause > deadline
                if late or not isinstance(error, _LOST) or isinstance(error, _FINAL):
                    raise self._translated(error) from error
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _pool(self) -> _Pool:
        if self._closed:
            raise ClosedError("This database was closed. Open it again with threadkeep.connect.")
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for other in [other for other in list(self._pools) if other.is_closed()]:
                self._pools.pop(other).abandon()
            pool = _Pool(self._server, self._pool_size, self._wait, self._channel)
            self._pools[loop] = pool
        return pool

    async def _lacking_rights(self, error: BaseException) -> DatabaseError:
        words = self._server.advice.no_rights

        async def look(connection: Any) -> DatabaseError:
            return await postgres_schema.lacking_rights(connection, self._schema, words)

        try:
            deadline = asyncio.get_running_loop().time() + self._wait
            return await self._pool().use(look, deadline)
        except _ALL:
            return self._translated(error)

    def _translated(self, error: BaseException) -> DatabaseError:
        """Says what an error of asyncpg means, by its type."""
        advice = self._server.advice
        if isinstance(error, _LOGIN):
            return DatabaseUnavailableError(advice.refused)
        if isinstance(error, asyncpg.InvalidCatalogNameError):
            return DatabaseUnavailableError(advice.no_database)
        if isinstance(error, asyncpg.TooManyConnectionsError):
            return DatabaseBusyError("The database takes no more connections. Try again.")
        if isinstance(error, asyncpg.UndefinedTableError | asyncpg.InvalidSchemaNameError):
            self._ready = False  # the next call makes it anew, if it may
            return DatabaseUnavailableError(
                f"Tables of the schema {self._schema} have gone: it was dropped, or the database "
                "set back. Try again, or run: threadkeep migrate"
            )
        if isinstance(error, _POOLER):
            return DatabaseUnavailableError(
                "Prepared statements get lost: there is a pooler in between that gives out a "
                "connection for a transaction. Add ?prepared_statements=off to DATABASE_URL."
            )
        if isinstance(error, asyncpg.UndefinedObjectError):
            return DatabaseError(
                "The database knows no role of that name. That of a Databricks App is made when "
                "it is deployed with the `database` resource."
            )
        if isinstance(error, asyncpg.DuplicateTableError):
            return DatabaseUnavailableError(
                f"The schema {self._schema} holds tables of another program. Name one of its own "
                "for Threadkeep in LAKEBASE_AGENT_MEMORY_SCHEMA."
            )
        if isinstance(error, socket.gaierror):
            return DatabaseUnavailableError(advice.unknown_host)
        if isinstance(error, asyncpg.UniqueViolationError):
            return DuplicateError("The database holds that already.")
        if isinstance(error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError) or (
            isinstance(error, asyncpg.PostgresError) and not isinstance(error, _LOST)
        ):
            return DatabaseError(f"The database refused ({type(error).__name__}).")
        if isinstance(error, ConnectionRefusedError | TimeoutError | asyncpg.CannotConnectNowError):
            return DatabaseUnavailableError(advice.unreachable)
        return DatabaseUnavailableError(advice.closed)


class _Pool:
    """The connections of one event loop."""

    def __init__(self, server: Server, size: int, wait: float, channel: str) -> None:
        self._server = server
        self._size = size
        self._wait = wait
        self._fresh_until = 0.0
        self._pool = asyncpg.create_pool(
            connect=self._connect, min_size=0, max_size=size, reset=_leave
        )
        self._listener = Listener(server, self._connect, channel)

    @contextlib.asynccontextmanager
    async def signals(self, topic: str) -> AsyncIterator[Signal]:
        """Hears of a topic."""
        await self._pool  # one that was never made can't be closed
        with self._listener.subscribed(topic) as signal:
            yield signal

    async def use(self, work: Callable[[Any], Awaitable[T]], deadline: float) -> T:
        """Does work on a connection of its own.

        Raises:
            DatabaseBusyError: None was free in time.
            DatabaseUnavailableError: The server did not answer in time.
        """
        await self._pool  # the first time it is made; that never waits for anything
        await self._recycle()
        left = max(0.1, deadline - asyncio.get_running_loop().time())
        try:
            connection = await self._pool.acquire(timeout=left)
        except TimeoutError as error:
            if self._pool.get_size() - self._pool.get_idle_size() < self._size:
                raise DatabaseUnavailableError(self._server.advice.unreachable) from error
            raise DatabaseBusyError(
                f"No connection to the database was free within {self._wait:.0f} s. Try again."
            ) from error
        try:
            async with asyncio.timeout(STATEMENT_SECONDS) as limit:
                if self._server.prepares:
                    return await work(connection)
                return await _in_transaction(connection, work)
        except TimeoutError as error:
            if not limit.expired():
                raise
            connection.terminate()
            raise DatabaseUnavailableError(
                f"The database did not answer within {STATEMENT_SECONDS:.0f} s. Check that it "
                "runs, and what else keeps it busy."
            ) from error
        except _LOST as error:
            if not isinstance(error, _SOUND):
                connection.terminate()
            raise
        finally:
            await self._give_back(connection)

    async def _give_back(self, connection: Any) -> None:
        """Waits until a statement that was cancelled has ended, but not for long: who was cancelled
        must go, and an error here would take the place of the cancellation."""
        try:
            await self._pool.release(connection, timeout=_RELEASE_SECONDS)
        except (*_ALL, asyncpg.InternalClientError):
            connection.terminate()

    def abandon(self) -> None:
        """Drops the connections, when the event loop is not there any more to close them."""
        self._listener.abandon()
        with contextlib.suppress(RuntimeError):  # its transports may want to tell the loop
            self._pool.terminate()

    async def close(self) -> None:
        """Waits for what is under way, for a while."""
        await self._listener.close()
        try:
            async with asyncio.timeout(self._wait):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _recycle(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._server.recycle_seconds is not None and now >= self._fresh_until:
            if self._fresh_until:
                await self._pool.expire_connections()
            self._fresh_until = now + self._server.recycle_seconds

    async def _connect(self, *_: Any, **options: Any) -> Any:
        login = await self._server.login()
        connecting = asyncio.create_task(
            asyncpg.connect(
                **login,
                **options,
                timeout=_CONNECT_SECONDS,
                statement_cache_size=100 if self._server.prepares else 0,
            )
        )
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:  # asyncpg would leave an error behind that asyncio logs
            connecting.add_done_callback(_hang_up)
            raise
        except TimeoutError as error:  # which would look as if no connection had been free
            raise ConnectionRefusedError from error


def _hang_up(connecting: asyncio.Task[Any]) -> None:
    """Closes a connection that nobody waits for any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


async def _in_transaction(connection: Any, work: Callable[[Any], Awaitable[T]]) -> T:
    """Work behind a pooler, which gives it one server for as long as the transaction lasts."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        result = await work(connection)
    except BaseException:
        connection.terminate()  # rather than to wait for a server that may never answer
        raise
    await transaction.commit()
    return result


async def _leave(connection: Any) -> None:
    """A connection goes back as it is."""


def _numbered(text: str) -> tuple[str, Sequence[str]]:
    """Postgres numbers its parameters: the text with `$1`, and the names in that order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return _PARAMETER.sub(number, text), names
