"""History that databricks-openai has stored is made ours: a session at its first touch, or all.

A session is adopted in one statement, whole or not at all, and only when it is unknown here. What
is stored there is only read. Afterwards each side goes on by itself.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from threadkeep.database import Row, load_statements
from threadkeep.errors import DatabasePermissionError, InvalidInputError, NotFoundError
from threadkeep.history import check_id, decode_item, new_epoch
from threadkeep.postgres import PostgresDatabase
from threadkeep.postgres_schema import quoted
from threadkeep.titles import title_of

_PAGE = 200
_STATEMENTS = load_statements("databricks")


@dataclass(frozen=True)
class PeerTables:
    """Where databricks-openai has stored its sessions.

    Args:
        schema: As it was given to the original, which looks into the role's own and `public` too.
        sessions: The name of the table of sessions.
        messages: The name of the table of messages.
    """

    schema: str | None = None
    sessions: str = "agent_sessions"
    messages: str = "agent_messages"


@dataclass(frozen=True)
class Imported:
    """What came of one session of an import.

    Args:
        session_id: Which.
        outcome: `adopted`; where it was known here, `same` or `different`; `empty`; `unusable`: its
            id can't be one here, so nobody could open it.
    """

    session_id: str
    outcome: str


class Adoption:
    """The way from one pair of the original's tables into a database of ours.

    Args:
        database: Where both are.
        tables: The original's.
    """

    def __init__(self, database: PostgresDatabase, tables: PeerTables) -> None:
        self._database = database
        self._tables = tables
        self._schema: str | None = None
        self._looked = False

    async def adopt(self, session_id: str) -> bool:
        """Takes a session over, if it is unknown here and the original holds anything of it.

        Returns:
            Whether the original does: then it is known here now, by whoever came first.

        Raises:
            DatabasePermissionError: The original's tables may not be read.
            DatabaseError: It could not be done; nothing was.
        """
        if await self._find() is None:
            return False
        rows = await self._call("adopt_session", session_id=session_id, new_epoch=new_epoch())
        if not rows:
            return False
        opening = decode_item(rows[0]["opening"] or "")
        title = title_of([opening]) if opening else None  # type: ignore[list-item]
        if title:
            await self._call("title_session", session_id=session_id, title=title)
        return True

    async def count(self) -> int:
        """How many sessions the original has stored.

        Raises:
            NotFoundError: There are no such tables.
        """
        await self._insist()
        count: int = (await self._call("count_peer_sessions"))[0]["count"]
        return count

    async def adopt_all(self) -> AsyncIterator[Imported]:
        """Takes over every session that is unknown here; compares the others.

        Yields:
            What came of each.

        Raises:
            NotFoundError: There are no such tables.
        """
        await self._insist()
        after = ""
        while rows := await self._call("list_peer_sessions", after=after, limit=_PAGE):
            for row in rows:
                after = row["session_id"]
                yield Imported(after, await self._import(row))

    async def _import(self, row: Row) -> str:
        if row["known"]:
            return "same" if row["same"] else "different"
        try:
            check_id(row["session_id"], "session_id")
        except InvalidInputError:
            return "unusable"
        return "adopted" if await self.adopt(row["session_id"]) else "empty"

    async def _insist(self) -> None:
        if await self._find() is None:
            raise NotFoundError(
                f"There are no tables {self._tables.sessions} and {self._tables.messages} in the "
                f"schema {self._tables.schema or 'public'}. Name theirs with --schema, "
                "--sessions-table and --messages-table."
            )

    async def _find(self) -> str | None:
        """The schema where the tables lie; looked for once."""
        if self._looked:
            return self._schema
        tables = self._tables
        self._database.define("find_peer_tables", _STATEMENTS["find_peer_tables"])
        rows = await self._database.call(
            "find_peer_tables",
            first=[tables.schema] if tables.schema else [],
            tables=[tables.sessions, tables.messages],
        )
        if rows:
            self._check_readable(rows[0])
            self._schema = rows[0]["peer_schema"]
        self._looked = True
        return self._schema

    def _check_readable(self, found: Row) -> None:
        if not found["readable"]:
            where = quoted(found["peer_schema"])
            tables = f"{where}.{quoted(self._tables.sessions)}, "
            tables += f"{where}.{quoted(self._tables.messages)}"
            raise DatabasePermissionError(
                "Permission denied: the history of databricks-openai may not be read. Let its "
                f"owner run, for the role that connects: GRANT USAGE ON SCHEMA {where} TO …; "
                f"GRANT SELECT ON {tables} TO …;"
            )

    async def _call(self, statement: str, **parameters: str | int) -> list[Row]:
        assert self._schema is not None  # noqa: S101 - found before
        name = f"{statement} of {self._schema}.{self._tables.sessions}.{self._tables.messages}"
        self._database.define(name, _located(_STATEMENTS[statement], self._schema, self._tables))
        return await self._database.call(name, **parameters)


def _located(text: str, schema: str, tables: PeerTables) -> str:
    """A statement on the original's tables, by their names."""
    names = {"sessions": tables.sessions, "messages": tables.messages}
    return re.sub(
        r"\bpeer\.(sessions|messages)\b",
        lambda match: f"{quoted(schema)}.{quoted(names[match[1]])}",
        text,
    )
