"""The schema of a Postgres database: its migrations, and who may use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from threadkeep.database import Row
from threadkeep.errors import DatabasePermissionError, DatabaseUnavailableError
from threadkeep.migrate import RELEASE, Migration, load_migrations, pending

_MIGRATION_LOCK = 0x7468_7264_6B65_6570
"""An advisory lock's number: `thrdkeep` in ASCII."""

_HAS_SCHEMA = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
_HAS_MIGRATIONS = """
SELECT EXISTS (
  SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = $1 AND c.relname = 'schema_migrations')
"""

_LOOK = """
SELECT current_user AS role, current_database() AS database, n.oid IS NOT NULL AS made,
       has_database_privilege(current_database(), 'CREATE') AS may_make,
       has_schema_privilege(n.oid, 'USAGE') AS may_use,
       EXISTS (
         SELECT FROM pg_class c
         WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND NOT (
           has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
           AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
       ) AS lacks_tables
FROM (SELECT) AS always LEFT JOIN pg_namespace n ON n.nspname = $1
"""


_WHOAMI = """
SELECT current_user AS role, current_setting('server_version') AS version,
       (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS tls,
       CASE WHEN n.oid IS NULL THEN has_database_privilege(current_database(), 'CREATE')
            ELSE has_schema_privilege(n.oid, 'CREATE') END AS may_change
FROM (SELECT) AS always LEFT JOIN pg_namespace n ON n.nspname = $1
"""

_RIGHTS = """
SELECT pg_has_role(n.nspowner, 'USAGE') AS may_grant,
       has_database_privilege(r.oid, current_database(), 'CONNECT')
       AND has_schema_privilege(r.oid, n.oid, 'USAGE')
       AND NOT EXISTS (
         SELECT FROM pg_class c
         WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND NOT (
           has_table_privilege(r.oid, c.oid, 'SELECT')
           AND has_table_privilege(r.oid, c.oid, 'INSERT')
           AND has_table_privilege(r.oid, c.oid, 'UPDATE')
           AND has_table_privilege(r.oid, c.oid, 'DELETE'))) AS lets_in
FROM pg_roles r, pg_namespace n WHERE r.rolname = $1 AND n.nspname = $2
"""


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def in_schema(text: str, schema: str) -> str:
    """SQL whose `threadkeep.` is replaced by the name of a schema."""
    return re.sub(r"\bthreadkeep\.", lambda _: f"{quoted(schema)}.", text)


def grants(role: str, database: str, schema: str) -> list[str]:
    """The SQL that gives a role all that an app needs on a schema that is there.

    Args:
        role: Who gets it.
        database: The name of the database.
        schema: Where the tables are.
    """
    to, where = quoted(role), quoted(schema)
    return [
        f"GRANT CONNECT ON DATABASE {quoted(database)} TO {to};",
        _use(where, to),
        _tables(where, to),
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {where} "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {to};",
    ]


async def whoami(connection: Any, schema: str) -> Row:
    """How a connection is connected: see `PostgresDatabase.whoami`."""
    row: Row = await connection.fetchrow(_WHOAMI, schema)
    return row


async def rights_of(connection: Any, schema: str, role: str) -> Row | None:
    """What a role may do with a schema that is there: see `PostgresDatabase.rights_of`."""
    row: Row | None = await connection.fetchrow(_RIGHTS, role, schema)
    return row


async def missing(connection: Any, schema: str) -> list[Migration]:
    """The migrations that a schema needs; nothing is changed.

    Raises:
        DatabaseUnavailableError: A newer release has changed it already.
    """
    return pending(load_migrations("postgres"), await _applied(connection, schema))


async def migrate(connection: Any, schema: str) -> None:
    """Brings a schema up to date under a lock; when it is, nothing is changed or locked."""
    if not await missing(connection, schema):
        return
    table = in_schema("threadkeep.schema_migrations", schema)
    # Each statement must see what others did while it waited for the lock.
    async with connection.transaction(isolation="read_committed"):
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        if not await connection.fetchval(_HAS_SCHEMA, schema):
            await connection.execute(f"CREATE SCHEMA {quoted(schema)}")
        if not await connection.fetchval(_HAS_MIGRATIONS, schema):
            await connection.execute(
                f"CREATE TABLE {table} (version bigint PRIMARY KEY, name text NOT NULL, "
                "release text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
        for migration in await missing(connection, schema):
            await connection.execute(in_schema(migration.sql, schema))
            await connection.execute(
                f"INSERT INTO {table} (version, name, release) VALUES ($1, $2, $3)",  # noqa: S608
                migration.version,
                migration.name,
                RELEASE,
            )


async def check(connection: Any, schema: str) -> None:
    """For those who may not, or shall not, change the schema.

    Raises:
        DatabaseUnavailableError: It is not up to date.
    """
    lacking = await missing(connection, schema)
    if lacking:
        raise DatabaseUnavailableError(
            f"The schema {schema} is not up to date: {len(lacking)} of its migrations were not "
            "applied. Let a role that may do so run: threadkeep migrate"
        )


async def missing_grants(connection: Any, schema: str) -> list[str]:
    """The SQL that gives the role of a connection what it lacks; changes nothing.

    Args:
        connection: Of the role.
        schema: Where the tables are, or are to be.
    """
    row = await connection.fetchrow(_LOOK, schema)
    role, where = quoted(row["role"]), quoted(schema)
    sql: list[str] = []
    if not row["made"] and not row["may_make"]:
        sql.append(f"GRANT CREATE ON DATABASE {quoted(row['database'])} TO {role};")
    if row["made"] and not row["may_use"]:
        sql.append(_use(where, role))
    if row["made"] and (row["lacks_tables"] or not row["may_use"]):
        sql.append(_tables(where, role))
    return sql


async def lacking_rights(connection: Any, schema: str, words: str) -> DatabasePermissionError:
    """Says what the role of a connection lacks, that was just refused something.

    Args:
        connection: Of the role.
        schema: Where the tables are, or are to be.
        words: Said before the SQL.
    """
    sql = await missing_grants(connection, schema)
    if sql:
        return DatabasePermissionError(f"{words} Let an owner run: {' '.join(sql)}")
    return DatabasePermissionError(  # it may use what is there
        f"Permission denied: this role may not change the schema {schema}. Let its owner run: "
        "threadkeep migrate"
    )


def _use(schema: str, role: str) -> str:
    return f"GRANT USAGE ON SCHEMA {schema} TO {role};"


def _tables(schema: str, role: str) -> str:
    return f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};"


async def _applied(connection: Any, schema: str) -> Sequence[int]:
    if not await connection.fetchval(_HAS_MIGRATIONS, schema):
        return []
    table = in_schema("threadkeep.schema_migrations", schema)
    rows = await connection.fetch(f"SELECT version FROM {table}")  # noqa: S608 - quoted
    return [row["version"] for row in rows]
