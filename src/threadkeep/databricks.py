"""For code that uses `databricks_openai.agents.AsyncDatabricksSession`: one import changes.

Source of the arguments: https://github.com/databricks/databricks-ai-bridge, integrations/openai.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from agents import RunContextWrapper, TResponseInputItem

from threadkeep.adoption import Adoption, PeerTables
from threadkeep.database import Database
from threadkeep.errors import InvalidInputError
from threadkeep.history import cache_of
from threadkeep.lakebase import Lakebase
from threadkeep.lakebase_place import LakebasePlace
from threadkeep.postgres import POOL_SIZE, WAIT_SECONDS, PostgresDatabase
from threadkeep.sealing import sealed_as_set
from threadkeep.session import Session
from threadkeep.settings import DatabaseSettings

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

__all__ = ["AsyncDatabricksSession"]

TOKEN_CACHE_SECONDS = 15 * 60
"""How long a token is used, unless it expires before."""

POOL_RECYCLE_SECONDS = 14 * 60
"""How old a connection may grow."""

_POOL_SETTINGS = ("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping")


class AsyncDatabricksSession(Session):
    """Conversation history in Databricks Lakebase, as the Agents SDK's Runner takes it.

    Sessions of one configuration share one pool of connections, which lasts as long as the process.
    History that the original has stored is adopted when a session that is unknown here is first
    used.

    Args:
        session_id: The conversation; 1 to 512 characters.
        instance_name: A provisioned Lakebase, by its name or hostname.
        autoscaling_endpoint: An autoscaling one, by `projects/…/branches/…/endpoints/…`.
        project: The project of an autoscaling one; needs `branch`.
        branch: Its branch: a name, or `projects/…/branches/…` without `project`.
        workspace_client: Who asks for tokens; by default as the environment says.
        token_cache_duration_seconds: How long a token is used.
        create_tables: Whether to bring our schema up to date; else it must be.
        sessions_table: The original's table of sessions.
        messages_table: The original's table of items.
        use_cached_engine: Whether to share the pool.
        schema: Where the original's tables lie; by default `public`. Ours lie in
            `LAKEBASE_AGENT_MEMORY_SCHEMA`, by default `threadkeep`.
        **engine_kwargs: Settings of the pool: `pool_size`, `max_overflow`, `pool_timeout`,
            `pool_recycle`, `pool_pre_ping` (a dead connection is always noticed).

    Raises:
        InvalidInputError: An argument can't be used, or they contradict each other; a ValueError.
    """

    def __init__(
        self,
        session_id: str,
        *,
        instance_name: str | None = None,
        autoscaling_endpoint: str | None = None,
        project: str | None = None,
        branch: str | None = None,
        workspace_client: WorkspaceClient | None = None,
        token_cache_duration_seconds: int = TOKEN_CACHE_SECONDS,
        create_tables: bool = True,
        sessions_table: str = "agent_sessions",
        messages_table: str = "agent_messages",
        use_cached_engine: bool = True,
        schema: str | None = None,
        **engine_kwargs: Any,
    ) -> None:
        _check_place(instance_name, autoscaling_endpoint, project, branch)
        configuration = _Configuration(
            place=LakebasePlace(
                instance_name=instance_name,
                autoscaling_endpoint=autoscaling_endpoint,
                project=project,
                branch=branch,
                user=os.environ.get("PGUSER") or None,
            ),
            workspace_client=workspace_client,
            token_seconds=token_cache_duration_seconds,
            create_tables=create_tables,
            schema=DatabaseSettings.read(os.environ).schema_name,
            peer=PeerTables(schema, sessions_table, messages_table),
            pool=_Pool.of(engine_kwargs),
        )
        self._shares = use_cached_engine
        shared = configuration.shared() if use_cached_engine else configuration.open()
        self._adoption = shared.adoption
        self._touched = False
        super().__init__(session_id, database=shared.database)

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """As `Session.get_items`."""
        touched = self._touched
        items = await super().get_items(limit, wrapper=wrapper)
        if items or touched or self._limit(limit) == 0:
            self._touched = touched or bool(items)
            return items
        return await super().get_items(limit, wrapper=wrapper) if await self._touch() else items

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """As `Session.add_items`."""
        await self._touch()
        await super().add_items(items)

    async def pop_item(
        self, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> TResponseInputItem | None:
        """As `Session.pop_item`."""
        await self._touch()
        return await super().pop_item()

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """As `Session.clear_session`. The original's history is not adopted again."""
        await self._touch()
        await super().clear_session()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Self]:
        """As `Session.turn`."""
        await self._touch()
        async with super().turn():
            yield self

    async def close(self) -> None:
        """Closes a pool of its own; a shared one stays, as the next request needs it."""
        database, self._database = self._database, None
        if database is not None and not self._shares:
            await database.close()

    async def _touch(self) -> bool:
        """Before the first use of a session; False: there was nothing to adopt.

        Somebody else may have adopted it since the caller looked. Then that look is out of date.
        """
        found = self._touched or cache_of(self._open_database()).get(self.session_id, "").count > 0
        if not found:
            found = await self._adoption.adopt(self.session_id)
        self._touched = True
        return found


@dataclass(frozen=True)
class _Pool:
    """What of SQLAlchemy's pool settings means something here."""

    size: int = POOL_SIZE
    timeout: float = WAIT_SECONDS
    recycle: float = POOL_RECYCLE_SECONDS

    @classmethod
    def of(cls, settings: dict[str, Any]) -> _Pool:
        unknown = settings.keys() - set(_POOL_SETTINGS)
        if unknown:
            raise InvalidInputError(
                f"AsyncDatabricksSession takes no {', '.join(sorted(unknown))}: there is no "
                f"SQLAlchemy engine here. Settings of the pool are {', '.join(_POOL_SETTINGS)}.",
                param=min(unknown),
            )
        size = POOL_SIZE
        if "pool_size" in settings or "max_overflow" in settings:
            size = settings.get("pool_size", 5) + settings.get("max_overflow", 10)
        timeout = settings.get("pool_timeout", WAIT_SECONDS)
        return cls(max(1, size), timeout, settings.get("pool_recycle", POOL_RECYCLE_SECONDS))


@dataclass(frozen=True)
class _Opened:
    database: Database
    adoption: Adoption


@dataclass(frozen=True)
class _Configuration:
    """All that must be the same for two sessions to share a pool."""

    place: LakebasePlace
    workspace_client: WorkspaceClient | None
    token_seconds: float
    create_tables: bool
    schema: str
    peer: PeerTables
    pool: _Pool

    def open(self) -> _Opened:
        """A pool of its own; it connects at its first use."""
        server = Lakebase(
            self.place,
            workspace_client=self.workspace_client,
            token_seconds=self.token_seconds,
            recycle_seconds=self.pool.recycle,
        )
        database = PostgresDatabase(
            server,
            self.schema,
            migrates=self.create_tables,
            pool_size=self.pool.size,
            wait_seconds=self.pool.timeout,
        )
        sealed = sealed_as_set(database, DatabaseSettings.read(os.environ))
        return _Opened(sealed, Adoption(database, self.peer))

    def shared(self) -> _Opened:
        """The one pool of this process."""
        with _lock:
            if self not in _opened:
                _opened[self] = self.open()
            return _opened[self]


_opened: dict[_Configuration, _Opened] = {}
_lock = threading.Lock()


def _check_place(
    instance_name: str | None, endpoint: str | None, project: str | None, branch: str | None
) -> None:
    if instance_name is not None and (endpoint, project, branch) != (None, None, None):
        raise InvalidInputError(
            "instance_name is a provisioned Lakebase; autoscaling_endpoint, project and branch are "
            "an autoscaling one. Give one of the two.",
            param="instance_name",
        )
    if endpoint is not None and (project, branch) != (None, None):
        raise InvalidInputError(
            "autoscaling_endpoint names it whole: leave project and branch out.",
            param="autoscaling_endpoint",
        )
    is_path = branch is not None and branch.startswith("projects/") and "/branches/" in branch
    if is_path and project is not None:
        raise InvalidInputError(
            "branch is a full path already: leave project out.", param="project"
        )
    if (project is None) != (branch is None) and not is_path:
        raise InvalidInputError(
            "project and branch belong together; or give branch alone as a full path, "
            "projects/<project>/branches/<branch>.",
            param="branch" if branch is None else "project",
        )
    if (instance_name, endpoint, branch) == (None, None, None):
        raise InvalidInputError(
            "Which Lakebase? Give instance_name, autoscaling_endpoint, or project and branch. "
            "If it was to come from the environment: LAKEBASE_INSTANCE_NAME environment variable "
            "is required.",
            param="instance_name",
        )
