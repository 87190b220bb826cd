"""The seam between features and drivers: named statements, called by name with named parameters.

A named statement is one unit of work with one result. Its text lies in `sql/<dialect>/*.sql`, the
same names in every dialect, so that features are written once. In SQLite it may be a short list of
SQL statements, which the driver runs in one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any, Protocol

Row = Mapping[str, Any]
"""One row of a result: values by column name."""

Value = str | int | None | Sequence[str]
"""What a parameter may be; a sequence of strings is an array to the statement."""

SEALED = "\x01"
"""How contents begin that are sealed (sealing.py); nothing else that is stored does."""


class Damaged(str):
    """Contents that can't be read: what lies in the database in their place."""

    __slots__ = ()


_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


class Signal(Protocol):
    """What one listener hears of a topic. It belongs to the event loop that it was made in."""

    async def wait(self, seconds: float) -> bool:
        """Waits until the topic was signalled: since the last wait, or else since it was made.

        It is a hint to look, and no more than that: several signals are one, and some come without
        reason. While nothing can be heard it waits for its time, so keep that bearable.

        Args:
            seconds: How long to wait at most.

        Returns:
            True as soon as it was signalled, False when the time is over.

        Raises:
            ClosedError: The database was closed.
        """
        ...


class Database(Protocol):
    """A store that runs named statements. Safe to use from several event loops and threads."""

    @property
    def description(self) -> str:
        """Where the data lies, for people; without secrets."""
        ...

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        """Runs one named statement, whole or not at all.

        Args:
            statement: Its name in the `sql` folder.
            **parameters: A value for each `:name` in its text.

        Returns:
            The rows of its last query.

        Raises:
            DatabaseError: The database refused; nothing was changed.
        """
        ...

    def signals(self, topic: str) -> AbstractAsyncContextManager[Signal]:
        """Hears of changes, made by whichever process, that statements tell of under a topic.

        Whoever has entered, then looks, and waits before each further look, misses nothing: what
        was told while nobody could hear it, as before the first connection was there or after one
        was lost, is signalled once it can be heard again.

        Postgres: a statement tells by `pg_notify(:channel, topic)`. SQLite: by any change.

        Args:
            topic: Of less than 8000 bytes. Everybody whom the database lets in can listen to it.

        Raises:
            ClosedError: The database was closed; raised on entering.
        """
        ...

    async def open(self) -> None:
        """Opens it now and brings the schema up to date; otherwise the first call does.

        Raises:
            DatabaseUnavailableError: It can't be opened, or belongs to something else.
        """
        ...

    async def pending(self) -> list[str]:
        """The names of the migrations that the schema needs; changes nothing.

        Raises:
            DatabaseUnavailableError: It can't be read, or was made by a newer release.
        """
        ...

    async def scrub(self) -> bool:
        """Overwrites what deleted rows have left behind, in files that nobody else looks after.

        SQLite: the file is made anew from what is there, and the log emptied; meanwhile nobody
        can write. Postgres looks after its own files.

        Returns:
            False when something may be left, since another process reads or writes just then.

        Raises:
            DatabaseError: It could not be done.
        """
        ...

    async def close(self) -> None:
        """Finishes what is under way and gives up its resources. Calling it twice is harmless."""
        ...


def load_statements(dialect: str) -> dict[str, str]:
    """Reads the named statements of a dialect.

    Args:
        dialect: A folder name below `sql`.

    Returns:
        The text of each statement by its name.
    """
    statements: dict[str, str] = {}
    for file in sorted(files("threadkeep.sql").joinpath(dialect).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            parts = _NAME.split(file.read_text("utf-8"))
            statements.update(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))
    return statements
