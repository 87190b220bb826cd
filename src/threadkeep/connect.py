"""From a URL to a database. The only file that knows every driver."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from urllib.parse import unquote, urlsplit

from threadkeep.database import Database
from threadkeep.errors import SettingsError
from threadkeep.postgres import PostgresDatabase
from threadkeep.sqlite import SQLiteDatabase

DEFAULT_URL = "sqlite:///./threadkeep.db"

_shared: weakref.WeakValueDictionary[str, Database] = weakref.WeakValueDictionary()
_holders: weakref.WeakKeyDictionary[Database, weakref.WeakSet[object]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def connect(url: str) -> Database:
    """Makes a database for a URL; it opens at its first use.

    Args:
        url: `sqlite:///relative/path`, `sqlite:////absolute/path`, `sqlite://` (in memory), or
            `postgresql://user:password@host:port/database`.

    Raises:
        SettingsError: The URL is not of a kind we know.
    """
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        return PostgresDatabase(url)
    if parts.scheme != "sqlite" or parts.netloc or parts.query or parts.fragment:
        raise SettingsError(
            "DATABASE_URL must be of the form sqlite:///path/to/file.db "
            "(four slashes for an absolute path) or postgresql://user:password@host:port/database."
        )
    path = unquote(parts.path.removeprefix("/"))
    return SQLiteDatabase(Path(path) if path else None)


def default_url() -> str:
    """The database that `DATABASE_URL` names, else a file in the working folder."""
    return os.environ.get("DATABASE_URL") or DEFAULT_URL


def hold(url: str, holder: object) -> Database:
    """The one database of this process for a URL, shared by all who hold it.

    Args:
        url: As for `connect`. A database in memory is shared as well.
        holder: Who uses it: until it calls `release`, or is gone.
    """
    with _lock:
        database = _shared.get(url)
        if database is None:
            database = _shared[url] = connect(url)
        _holders.setdefault(database, weakref.WeakSet()).add(holder)
        return database


async def release(database: Database, holder: object) -> None:
    """Gives up a hold, and closes the database when it was the last; others are left alone."""
    with _lock:
        holders = _holders.get(database)
        if holders is None or holder not in holders:
            return
        holders.discard(holder)
        if holders:
            return
        for url in [url for url, known in _shared.items() if known is database]:
            del _shared[url]
    await database.close()
