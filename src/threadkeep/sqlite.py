"""The SQLite driver: one thread owns one connection in WAL mode and works off a queue.

Everything that waits in the queue is committed together, each job in a savepoint of its own so that
one that fails takes no other with it. Callers wait on futures of their own event loop, so one
database serves several loops; nobody waits on a lock. Other processes may use the same file, and
a signal is any commit of theirs or ours: SQLite tells nobody, so whoever waits looks now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import sqlite3
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from threadkeep.database import Row, Signal, Value, load_statements
from threadkeep.errors import (
    ClosedError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    DuplicateError,
)
from threadkeep.migrate import RELEASE, Migration, load_migrations, pending

BUSY_SECONDS = 10.0
"""How long another process may hold the file before a call gives up."""

SCRUB_SECONDS = 10.0
"""How long others may read or write until it is given up to overwrite what was deleted."""

LOOK_SECONDS = 0.1
"""How often whoever waits for a signal looks whether something was committed."""

_Work = Callable[[sqlite3.Connection], Any]


@dataclass
class _Job:
    """Work for the thread, and the loop and future that wait for it."""

    work: _Work
    writes: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class _Commits:
    """A `Signal` of anything that was committed.

    Args:
        look: Gives what is another after each commit.
    """

    def __init__(self, look: Callable[[], Awaitable[object]]) -> None:
        self._look = look
        self._seen: object = None

    async def start(self) -> None:
        """From here on commits are signals."""
        with contextlib.suppress(DatabaseError):
            self._seen = await self._look()

    async def wait(self, seconds: float) -> bool:
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(seconds):
                while True:
                    # All look at the same moments, so that the thread does it for all at once.
                    await asyncio.sleep(LOOK_SECONDS - clock() % LOOK_SECONDS)
                    seen = await self._look()
                    if seen != self._seen:
                        self._seen = seen
                        return True
        except TimeoutError:
            return False
        except DatabaseError:
            return True  # who reads now is told why


class SQLiteDatabase:
    """A SQLite file, or a database in memory that lasts as long as this object.

    Args:
        path: The file; it and its schema are made when missing. None: in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._statements = {
            name: split_script(text) for name, text in load_statements("sqlite").items()
        }
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False

    @property
    def description(self) -> str:
        return f"{self._path} (SQLite)" if self._path else "in memory (SQLite)"

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        script = self._statements[statement]
        bound = {
            name: value if isinstance(value, (str, int)) or value is None else json.dumps(value)
            for name, value in parameters.items()
        }
        writes = any(not text.startswith("SELECT") for text in script)
        return cast(list[Row], await self._submit(lambda c: _run(c, script, bound), writes=writes))

    @contextlib.asynccontextmanager
    async def signals(self, topic: str) -> AsyncIterator[Signal]:
        signal = _Commits(lambda: self._submit(_changes, writes=False))
        await signal.start()
        yield signal

    async def open(self) -> None:
        await self._submit(lambda connection: None, writes=False)

    async def pending(self) -> list[str]:
        return [m.full_name for m in await asyncio.to_thread(_missing, self._path)]

    async def scrub(self) -> bool:
        return self._path is None or await asyncio.to_thread(_scrub, self._path)

    async def close(self) -> None:
        self._closed = True
        if self._thread is not None and self._pid == os.getpid():
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    async def _submit(self, work: _Work, *, writes: bool) -> Any:
        if self._closed:
            raise ClosedError("This database was closed. Open it again with threadkeep.connect.")
        self._ensure_thread()
        loop = asyncio.get_running_loop()
        job = _Job(work, writes, loop, loop.create_future())
        self._queue.put(job)
        # What was handed to the thread will be done; a caller that goes away must not undo it.
        return await job.future

    def _ensure_thread(self) -> None:
        """Starts the thread at first use, and anew in a forked child, which has none."""
        with self._start_lock:
            if self._pid != os.getpid():
                self._pid, self._thread, self._queue = os.getpid(), None, queue.SimpleQueue()
            if self._thread is None:
                # A daemon: it holds nothing that is not committed, so it may end with the process.
                self._thread = threading.Thread(
                    target=_serve,
                    args=(self._path, self._queue),
                    name="threadkeep-sqlite",
                    daemon=True,
                )
                self._thread.start()
                weakref.finalize(self, self._queue.put, None)


def split_script(text: str) -> list[str]:
    """Splits SQL text into its statements, comments left out.

    Args:
        text: Statements, each ended by a semicolon at the end of a line.
    """
    statements, lines = [], []
    for line in text.splitlines():
        if not line.lstrip().startswith("--"):
            lines.append(line)
            if sqlite3.complete_statement("\n".join(lines)):
                statements.append("\n".join(lines).strip())
                lines = []
    return [statement for statement in statements if statement != ";"]


def _run(
    connection: sqlite3.Connection, script: list[str], parameters: Mapping[str, Any]
) -> list[Row]:
    rows: list[Row] = []
    for statement in script:
        cursor = connection.execute(statement, parameters)
        if cursor.description is not None:
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
    return rows


def _changes(connection: sqlite3.Connection) -> tuple[int, int]:
    """What others have committed, and what this connection has changed: as numbers that move."""
    others: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return others, connection.total_changes


def _serve(path: Path | None, jobs: queue.SimpleQueue[_Job | None]) -> None:
    """The thread: opens the connection, then works off batches until it is told to stop."""
    connection: sqlite3.Connection | None = None
    running = True
    while running:
        batch, running = _take(jobs)
        if batch:
            try:
                connection = connection or _open(path)
                _commit_together(connection, batch)
            except sqlite3.Error as error:
                _fail(batch, error)
            except DatabaseError as error:
                for job in batch:
                    job.error = job.error or error
            _settle(batch)
    if connection is not None:
        connection.close()


def _take(jobs: queue.SimpleQueue[_Job | None]) -> tuple[list[_Job], bool]:
    """Waits for a job, and takes all that wait behind it; False when it was told to stop."""
    batch = []
    job = jobs.get()
    while job is not None:
        batch.append(job)
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return batch, True
    return batch, False


def _open(path: Path | None) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256
        )
        # Read first: turning a file that is no database into one must fail, not overwrite it.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        # NORMAL survives the death of the process; a power cut may cost the last commits only.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA cache_size = -32768")
        _migrate(connection)
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    return connection


def _scrub(path: Path) -> bool:
    """Makes a file anew and empties its log; False when others kept it from that.

    `secure_delete` alone leaves copies: of rows that were moved when a page was split. And the log
    keeps what was written until it is written over. On a connection of its own, as none of this
    can be done in a transaction.
    """
    try:
        with closing(
            sqlite3.connect(path, timeout=SCRUB_SECONDS, isolation_level=None)
        ) as scrubber:
            scrubber.execute("PRAGMA secure_delete = ON")
            scrubber.execute("VACUUM")
            busy: int = scrubber.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as error:
        translated = _translated(error, path)
        if isinstance(translated, DatabaseBusyError):
            return False
        raise translated from error
    return not busy


def _commit_together(connection: sqlite3.Connection, batch: list[_Job]) -> None:
    connection.execute("BEGIN IMMEDIATE" if any(job.writes for job in batch) else "BEGIN")
    try:
        for job in batch:
            _run_job(connection, job)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _run_job(connection: sqlite3.Connection, job: _Job) -> None:
    connection.execute("SAVEPOINT job")
    try:
        job.result = job.work(connection)
    except sqlite3.Error as error:
        if not connection.in_transaction:  # SQLite gave up the whole transaction: disk full, …
            raise
        connection.execute("ROLLBACK TO job")
        job.error = _translated(error, None)
        job.error.__cause__ = error
    except Exception as error:  # noqa: BLE001 - not ours to judge: it goes to whoever asked
        connection.execute("ROLLBACK TO job")
        job.error = error
    connection.execute("RELEASE job")


def _fail(batch: list[_Job], error: sqlite3.Error) -> None:
    for job in batch:
        job.result = None
        job.error = _translated(error, None)
        job.error.__cause__ = error


def _settle(batch: list[_Job]) -> None:
    """Wakes each waiting loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in batch:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        if not loop.is_closed():
            try:
                loop.call_soon_threadsafe(_settle_all, jobs)
            except RuntimeError:
                # The loop was closed in between: nobody is left to be told.
                continue


def _settle_all(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()


def _translated(error: sqlite3.Error, path: Path | None) -> DatabaseError:
    """Says what an error of SQLite means, by its code."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    where = f"The database {path}" if path else "The database"
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_UNIQUE:
        return DuplicateError(f"{where} holds that already.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseBusyError(
            f"{where} is held by another process for more than {BUSY_SECONDS:.0f} s. Try again."
        )
    if code == sqlite3.SQLITE_NOTADB:
        return DatabaseUnavailableError(
            f"{where} is not a SQLite database. Name another file in DATABASE_URL."
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return DatabaseUnavailableError(
            f"{where} can't be opened for writing. Check that its folder exists and is writable."
        )
    if code == sqlite3.SQLITE_FULL:
        return DatabaseUnavailableError(f"{where} can't grow: the disk is full. Free some space.")
    if code == sqlite3.SQLITE_IOERR:
        return DatabaseUnavailableError(f"{where} can't be read or written: check its disk.")
    if code == sqlite3.SQLITE_CORRUPT:
        return DatabaseUnavailableError(
            f"{where} is damaged. Restore a backup, or recover it with: sqlite3 FILE .recover"
        )
    return DatabaseError(f"{where} refused ({getattr(error, 'sqlite_errorname', 'unknown')}).")


def _migrate(connection: sqlite3.Connection) -> None:
    """Brings the schema up to date; the write lock lets one process do it while others wait."""
    migrations = load_migrations("sqlite")
    if not pending(migrations, _applied(connection)):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY, "
            "name TEXT NOT NULL, release TEXT NOT NULL, "
            "applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) STRICT"
        )
        for migration in pending(migrations, _applied(connection)):
            for statement in split_script(migration.sql):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_migrations (version, name, release) VALUES (?, ?, ?)",
                (migration.version, migration.name, RELEASE),
            )
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _missing(path: Path | None) -> list[Migration]:
    """The migrations that a file needs, which is not made for that."""
    migrations = load_migrations("sqlite")
    if path is None or not path.exists():
        return migrations
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        with closing(connection):
            return pending(migrations, _applied(connection))
    except sqlite3.Error as error:
        raise _translated(error, path) from error


def _applied(connection: sqlite3.Connection) -> set[int]:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if "schema_migrations" in tables:
        return {row[0] for row in connection.execute("SELECT version FROM schema_migrations")}
    if tables & {"sessions", "items", "runs"}:
        raise DatabaseUnavailableError(
            "The database holds tables of another program. "
            "Name a file of its own for Threadkeep in DATABASE_URL."
        )
    return set()
