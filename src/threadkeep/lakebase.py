"""Databricks Lakebase: where it is, and a password that lasts, both asked of the workspace.

The calls of databricks-sdk block, so a daemon thread makes them: one for all who wait, whichever
event loop they are in. What it brings back is kept: host, name and user as long as this object
lives, the token until it is better renewed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from threadkeep.errors import ThreadkeepError, WorkspaceError
from threadkeep.lakebase_place import LakebasePlace, show
from threadkeep.postgres_server import Advice
from threadkeep.workspace import (
    GRANT,
    SILENT,
    THREAD,
    Door,
    find,
    keeps_answers_out,
    mint,
    new_client,
    translated,
    user_of,
)

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

WAIT_SECONDS = 8.0
"""How long a login waits for the workspace. Less than the driver waits for a connection, so that
it is told what is really amiss. The thread goes on, and what it brings serves the next login."""

_ABANDON_SECONDS = 60.0
"""After so long a call counts as hung, and another login starts anew without it."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Login:
    door: Door
    token: str = field(repr=False)
    renew_at: float
    expires_at: float
    """By the clock on the wall: a machine that slept wakes up with an old token."""


@dataclass(frozen=True)
class _Errand(Generic[T]):
    """What a thread fetches, or has fetched."""

    thread: threading.Thread
    future: Future[T]
    started: float

    @property
    def is_under_way(self) -> bool:
        """Whether it may still bring something."""
        runs = self.thread.is_alive()  # it does not in a forked child, which has the errand too
        return runs and time.monotonic() - self.started < _ABANDON_SECONDS

    @property
    def has_brought_something(self) -> bool:
        """Whether it has ended well."""
        return self.future.done() and self.future.exception() is None


class Lakebase:
    """A Lakebase as a server for the Postgres driver; asks the workspace at the first login.

    Args:
        place: Which one.
        workspace_client: Asks the workspace; made from the environment by default.
        token_seconds: For how long a token is used, at most.
        recycle_seconds: How old connections may grow.
    """

    prepares = True

    def __init__(
        self,
        place: LakebasePlace,
        *,
        workspace_client: WorkspaceClient | None = None,
        token_seconds: float = 900,
        recycle_seconds: float = 840,
    ) -> None:
        self.recycle_seconds: float | None = recycle_seconds
        self.advice = _advice(place, place.name)
        self._place = place
        self._client = workspace_client
        self._token_seconds = token_seconds
        self._door: Door | None = None
        self._errand: _Errand[_Login] | None = None
        self._renewal: _Errand[_Login] | None = None
        self._has_given = False
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        known = "instance" if self._place.hostname else self._place.name
        name = self._door.name if self._door else known
        return f"Lakebase {name}, database {self._place.database}"

    async def login(self) -> dict[str, Any]:
        """What `asyncpg.connect` is given: host, port, user, password, database, ssl.

        Raises:
            SettingsError: The SDK is missing, or nobody says who the user is.
            WorkspaceError: The workspace does not let us in, or does not answer in time.
            DatabaseUnavailableError: There is no such Lakebase, or it does not run.
        """
        login = await _awaited(self._current().future)
        self._has_given = True
        return {
            "host": login.door.host,
            "port": self._place.port,
            "user": login.door.user,
            "password": login.token,
            "database": self._place.database,
            "ssl": _tls(),
        }

    async def inspect(self) -> AsyncIterator[str]:
        """Logs in step by step, for people who want to know which step fails.

        Yields:
            What came of each: the workspace knows us, the Lakebase is found, a token is minted.

        Raises:
            ThreadkeepError: As `login`, at the step that fails.
        """
        place = self._place
        client = await _awaited(self._sent(lambda: self._client or new_client()).future)
        user = await _awaited(self._sent(lambda: place.user or user_of(client)).future)
        yield f"logged in, as {user}"
        door = await _awaited(self._sent(lambda: find(client, place)).future)
        yield f"{door.name} is there"
        await _awaited(self._sent(lambda: mint(client, place, door.name)).future)
        yield "minted"

    def forget_login(self) -> bool:
        """Lets the next login mint a token; whether one had been in use that may have lapsed.

        Many connections may be refused for one token, and each may try again.
        """
        with self._lock:
            if self._errand and self._errand.future.done():
                self._errand = self._renewal = None
            return self._has_given

    def _current(self) -> _Errand[_Login]:
        """The errand that brought what is still good, that is under way, or a new one."""
        with self._lock:
            if self._renewal is not None and self._renewal.has_brought_something:
                self._errand, self._renewal = self._renewal, None
            if self._errand is None or not self._is_of_use(self._errand):
                self._errand = self._sent(self._fetch)
            elif self._errand.future.done():
                self._renew_when_due(self._errand.future.result())
            return self._errand

    def _is_of_use(self, errand: _Errand[_Login]) -> bool:
        """Whether to wait for it, or take what it brought."""
        if not errand.future.done():
            return errand.is_under_way
        return errand.has_brought_something and time.time() < errand.future.result().expires_at

    def _renew_when_due(self, login: _Login) -> None:
        """Mints the next token while the old one still serves, so that nobody waits for it."""
        if time.time() >= login.renew_at and not (self._renewal and self._renewal.is_under_way):
            self._renewal = self._sent(self._fetch)

    def _sent(self, call: Callable[[], T]) -> _Errand[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here on nobody who waits can cancel it
        # A daemon: a call that hangs must not keep the process from ending.
        thread = threading.Thread(target=self._run, args=(call, future), name=THREAD, daemon=True)
        thread.start()
        return _Errand(thread, future, time.monotonic())

    def _run(self, call: Callable[[], T], future: Future[T]) -> None:
        logging.getLogger("databricks.sdk").addFilter(keeps_answers_out)
        try:
            result = call()
        except ThreadkeepError as error:
            future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - those who wait are told, whatever it is
            told = translated(error, self._place)
            told.__cause__ = error
            future.set_exception(told)
        else:
            future.set_result(result)

    def _fetch(self) -> _Login:
        client = self._client or new_client()
        door = self._door
        if door is None:
            door = find(client, self._place)
            self.advice = _advice(self._place, door.name)
            self._client, self._door = client, door
        minted = time.time()
        token, expires = mint(client, self._place, door.name)
        return _Login(door, token, *_lifetime(minted, expires, self._token_seconds))


async def _awaited(future: Future[T]) -> T:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return await asyncio.wrap_future(future)
    except TimeoutError as error:
        raise WorkspaceError(SILENT) from error


def _tls() -> str:
    """How TLS is checked. Always used; libpq's own variable may ask for more than that."""
    mode = os.environ.get("PGSSLMODE", "")
    return mode if mode in ("verify-ca", "verify-full") else "require"


def _lifetime(minted: float, expires: str | None, seconds: float) -> tuple[float, float]:
    """When to mint the next token, and until when this one serves, in seconds since 1970.

    The next one is minted when it is `seconds` old, or two tenths of its life are left; it serves
    until one tenth is, for clocks differ.
    """
    end = datetime.fromisoformat(expires).timestamp() if expires else minted + seconds
    tenth = min(0.1 * (end - minted), 60)
    return min(minted + seconds, end - 2 * tenth), end - tenth


def _advice(place: LakebasePlace, name: str) -> Advice:
    look = show(place, name)
    return Advice(
        unknown_host=f"Unable to resolve hostname: this machine finds no address for that of "
        f"Lakebase {name}. Check its DNS, and PGHOST where it is set.",
        unreachable=f"Lakebase {name} can't be reached. Check that this machine may connect to "
        f"port {place.port}, and that it is running: {look}",
        closed=f"SSL connection closed unexpectedly. Verify that the Lakebase instance is "
        f"running: {look}",
        refused=f"Permission denied: Lakebase {name} has no role for this user, or does not take "
        f"its token. {GRANT}, or create the role in the database: "
        "SELECT databricks_create_role('<user>', 'USER' or 'SERVICE_PRINCIPAL').",
        no_database=f"Lakebase {name} has no database {place.database}. Mend PGDATABASE.",
        no_rights=f"Permission denied: the role lacks a right. {GRANT}.",
    )
