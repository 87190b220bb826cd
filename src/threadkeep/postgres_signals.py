"""Signals between processes on Postgres: LISTEN on a connection of an event loop's own.

A statement tells of a topic by `pg_notify(:channel, topic)`; a schema's channel bears its name. The
connection is opened when somebody wants to hear, and again when it ends. Nothing is heard until it
listens, so everybody is given a signal then; nobody waits for the connection itself. Behind a
transaction pooler LISTEN is of no use, and nothing is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg

from threadkeep.errors import ClosedError, ThreadkeepError
from threadkeep.postgres_server import Server

IDLE_SECONDS = 30.0
"""How long the connection stays after the last who wanted to hear has gone."""

CHECK_SECONDS = 30.0
"""How often the connection is asked whether it still lives; so a proxy does not find it idle."""

_ANSWER_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

_REFUSED = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)

_TROUBLE = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ThreadkeepError,  # of the login
)


class Subscription:
    """A `Signal` of a topic."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._ended = False

    async def wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        if self._ended:
            raise ClosedError("This database was closed. Open it again with threadkeep.connect.")
        self._event.clear()
        return True

    def give(self) -> None:
        """Ends the wait, or the next one."""
        self._event.set()

    def end(self) -> None:
        """Ends this wait and all others."""
        self._ended = True
        self._event.set()


class Listener:
    """The connection that listens, of one event loop, and who hears of what through it.

    Args:
        server: Where it is.
        connect: Opens a connection there.
        channel: What it listens to.
    """

    def __init__(self, server: Server, connect: Callable[[], Awaitable[Any]], channel: str) -> None:
        self._server = server
        self._connect = connect
        self._channel = channel
        self._topics: dict[str, set[Subscription]] = {}
        self._task: asyncio.Task[None] | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._connection: Any = None

    @contextlib.contextmanager
    def subscribed(self, topic: str) -> Iterator[Subscription]:
        """Hears of a topic until the block ends."""
        subscription = Subscription()
        self._topics.setdefault(topic, set()).add(subscription)
        self._start()
        try:
            yield subscription
        finally:
            self._topics[topic].discard(subscription)
            if not self._topics[topic]:
                del self._topics[topic]
            if not self._topics and self._task is not None:
                loop = asyncio.get_running_loop()
                self._rest = loop.call_later(IDLE_SECONDS, self._stop)

    def abandon(self) -> None:
        """Ends all waits and the connection, also when the event loop is closed already."""
        with contextlib.suppress(RuntimeError):  # waits and tasks may want to tell the loop
            for subscriptions in self._topics.values():
                for subscription in subscriptions:
                    subscription.end()
            self._stop()
        if self._connection is not None:
            _hang_up(self._connection)

    async def close(self) -> None:
        """Ends all waits and the connection."""
        task = self._task
        self.abandon()
        if task is not None:
            await asyncio.wait([task])

    def _start(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        # It is done when somebody has cancelled all tasks of the event loop, as its end does.
        if self._server.prepares and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._keep_listening(), name="threadkeep-signals")

    def _stop(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _keep_listening(self) -> None:
        """Listens for as long as it is let, on one connection after the other."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            began = loop.time()
            try:
                await self._listen()
            except _REFUSED:
                self._server.forget_login()
            except _TROUBLE:
                pass  # statements tell what it is; who waits does without signals meanwhile
            if loop.time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Listens until the connection ends, or is old."""
        connection = self._connection = await self._connect()
        try:
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _: ended.set())
            async with asyncio.timeout(_ANSWER_SECONDS):
                await connection.add_listener(self._channel, self._hear)
            for subscriptions in self._topics.values():
                for subscription in subscriptions:
                    subscription.give()
            await self._watch(connection, ended)
        finally:
            _hang_up(connection)

    async def _watch(self, connection: Any, ended: asyncio.Event) -> None:
        """Returns when a connection has ended, or is old.

        Raises:
            TimeoutError: It does not answer.
        """
        loop = asyncio.get_running_loop()
        age = self._server.recycle_seconds
        until = math.inf if age is None else loop.time() + age
        while (left := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(CHECK_SECONDS, left)):
                    await ended.wait()
                return
            except TimeoutError:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await connection.execute("SELECT 1")

    def _hear(self, _connection: Any, _process: int, _channel: str, topic: str) -> None:
        for subscription in self._topics.get(topic, ()):
            subscription.give()


def _hang_up(connection: Any) -> None:
    with contextlib.suppress(RuntimeError):  # its transport may want to tell the loop
        connection.terminate()
