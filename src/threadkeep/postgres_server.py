"""Which Postgres server, and how to get in: what the driver needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from threadkeep.errors import SettingsError


@dataclass(frozen=True)
class Advice:
    """What to tell people when a server can't be used: a sentence on what is wrong, and what to do.

    Args:
        unknown_host: There is no host of that name.
        unreachable: It can't be reached.
        closed: It closed the connection.
        refused: It refused the user or the password.
        no_database: It has no such database.
        no_rights: Said before the grants that are missing.
    """

    unknown_host: str
    unreachable: str
    closed: str
    refused: str
    no_database: str
    no_rights: str


class Server(Protocol):
    """A Postgres server and the way in. Safe to use from several event loops and threads."""

    advice: Advice
    prepares: bool
    """Whether prepared statements outlive a transaction; behind a transaction pooler they don't."""
    recycle_seconds: float | None
    """How old connections may grow; None: as old as they like."""

    @property
    def description(self) -> str:
        """Host, port and database, for people; without secrets."""
        ...

    async def login(self) -> dict[str, Any]:
        """What `asyncpg.connect` is given to open a connection now. Never blocks the event loop.

        Raises:
            DatabaseError: It can't be told; says what to do.
            SettingsError: A setting is wrong; says which.
        """
        ...

    def forget_login(self) -> bool:
        """Told when the server refused the last login; whether another one may be taken."""
        ...


class UrlServer:
    """A server that a URL names.

    Args:
        url: `postgresql://user:password@host:port/database`, as libpq takes it;
            `?prepared_statements=off` for a transaction pooler.

    Raises:
        SettingsError: It is no such URL.
    """

    recycle_seconds: float | None = None
    advice = Advice(
        unknown_host="There is no host of the name in DATABASE_URL. Mend it.",
        unreachable="The database can't be reached. Check that it runs, and DATABASE_URL.",
        closed="The database closed the connection. Check that it runs.",
        refused="The database refused the user or password in DATABASE_URL.",
        no_database="There is no such database. Create it, or mend DATABASE_URL.",
        no_rights="The database role lacks a right.",
    )

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "localhost", parts.port or 5432
        except ValueError as error:
            raise SettingsError(
                "DATABASE_URL must be of the form postgresql://user:password@host:port/database; "
                "in user and password write %40 for @, %2F for /, %3A for : and so on."
            ) from error
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        word = options.pop("prepared_statements", "on")
        if word not in ("on", "off"):
            raise SettingsError("DATABASE_URL: prepared_statements may be on or off.")
        self.prepares = word == "on"
        self._url = parts._replace(query=urlencode(options)).geturl()
        self._where = f"{host}:{port}{parts.path}"

    @property
    def description(self) -> str:
        return self._where

    async def login(self) -> dict[str, Any]:
        return {"dsn": self._url}

    def forget_login(self) -> bool:
        return False
