"""From settings or a URL to a database. The only file that knows every driver."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from urllib.parse import unquote, urlsplit

from threadkeep.database import Database
from threadkeep.errors import SettingsError
from threadkeep.lakebase import Lakebase
from threadkeep.lakebase_place import LakebasePlace
from threadkeep.postgres import PostgresDatabase
from threadkeep.postgres_server import UrlServer
from threadkeep.sealing import SealedDatabase, sealed_as_set
from threadkeep.settings import DatabaseSettings
from threadkeep.sqlite import SQLiteDatabase

DEFAULT_URL = "sqlite:///./threadkeep.db"

_shared: weakref.WeakValueDictionary[DatabaseSettings, Database] = weakref.WeakValueDictionary()
_holders: weakref.WeakKeyDictionary[Database, weakref.WeakSet[object]] = weakref.WeakKeyDictionary()
_kept: set[Database] = set()
_lock = threading.Lock()


def connect(place: DatabaseSettings | str | None = None) -> Database:
    """Makes a database; it opens at its first use.

    Args:
        place: Settings, or a URL: `sqlite:///relative/path`, `sqlite:////absolute/path`,
            `sqlite://` (in memory), or `postgresql://user:password@host:port/database`. By default
            what the environment says, else `sqlite:///./threadkeep.db`.

    Raises:
        SettingsError: It is of no kind we know, or a setting is missing.
    """
    settings = settings_of(place)
    return sealed_as_set(_driver(settings), settings)


def _driver(settings: DatabaseSettings) -> PostgresDatabase | SQLiteDatabase:
    if settings.uses_lakebase:
        return PostgresDatabase(Lakebase(LakebasePlace.of(settings)), settings.schema_name)
    if settings.database_url is None and settings.databricks_app_name is not None:
        raise SettingsError(
            "LAKEBASE_INSTANCE_NAME environment variable is required. In a Databricks App nothing "
            "lasts but a database: add the `database` resource to databricks.yml and to app.yaml "
            "`LAKEBASE_INSTANCE_NAME` with `valueFrom: database`."
        )
    url = settings.database_url or DEFAULT_URL
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        return PostgresDatabase(UrlServer(url), settings.schema_name)
    if parts.scheme != "sqlite" or parts.netloc or parts.query or parts.fragment:
        raise SettingsError(
            "DATABASE_URL must be of the form sqlite:///path/to/file.db "
            "(four slashes for an absolute path) or postgresql://user:password@host:port/database."
        )
    path = unquote(parts.path.removeprefix("/"))
    return SQLiteDatabase(Path(path) if path else None)


def settings_of(place: DatabaseSettings | str | None) -> DatabaseSettings:
    """What the environment says, where nothing else is said.

    Args:
        place: Settings, which are taken as they are; a URL, for which the environment names the
            schema and the master key alone; or None.
    """
    if isinstance(place, DatabaseSettings):
        return place.of_the_database
    if place is None:
        return DatabaseSettings.read(os.environ)
    kept = ("LAKEBASE_AGENT_MEMORY_SCHEMA", "ENCRYPTION_KEY", "ENCRYPTION_KEY_FILE")
    return DatabaseSettings.read(
        {"DATABASE_URL": place} | {name: os.environ.get(name, "") for name in kept}
    )


def connect_postgres(place: DatabaseSettings | str | None = None) -> PostgresDatabase:
    """As `connect`, for what only Postgres has; contents are given as they lie there.

    Raises:
        SettingsError: It is another database.
    """
    database = _driver(settings_of(place))
    if not isinstance(database, PostgresDatabase):
        raise SettingsError(
            "This needs a Postgres or a Lakebase, and none is set. Set DATABASE_URL, or "
            "LAKEBASE_INSTANCE_NAME."
        )
    return database


def hold(place: DatabaseSettings | str | None, holder: object) -> Database:
    """The one database of this process for a place, shared by all who hold it.

    Args:
        place: As for `connect`. A database in memory is shared as well.
        holder: Who uses it: until it calls `release`, or is gone.
    """
    settings = settings_of(place)
    with _lock:
        database = _shared.get(settings)
        if database is None:
            database = _shared[settings] = connect(settings)
            if not isinstance(unsealed(database), SQLiteDatabase):
                # Sessions are often made anew for every request; their connections must stay.
                _kept.add(database)
        _holders.setdefault(database, weakref.WeakSet()).add(holder)
        return database


def unsealed(database: Database) -> Database:
    """The database itself, which gives contents as they lie there."""
    return database.inner if isinstance(database, SealedDatabase) else database


async def release(database: Database, holder: object) -> None:
    """Gives up a hold, and closes the database when it was the last; others are left alone."""
    with _lock:
        holders = _holders.get(database)
        if holders is None or holder not in holders:
            return
        holders.discard(holder)
        if holders:
            return
        for key in [key for key, known in _shared.items() if known is database]:
            del _shared[key]
        _kept.discard(database)
    await database.close()
