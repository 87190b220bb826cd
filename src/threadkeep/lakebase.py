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
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from threadkeep.errors import (
    DatabaseUnavailableError,
    InvalidInputError,
    SettingsError,
    ThreadkeepError,
    WorkspaceError,
)
from threadkeep.postgres_server import Advice
from threadkeep.settings import DatabaseSettings

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.database import DatabaseInstance
    from databricks.sdk.service.postgres import Endpoint

WAIT_SECONDS = 8.0
"""How long a login waits for the workspace. Less than the driver waits for a connection, so that
it is told what is really amiss. The thread goes on, and what it brings serves the next login."""

_ABANDON_SECONDS = 60.0
"""After so long a call counts as hung, and another login starts anew without it."""

_HTTP_SECONDS, _RETRY_SECONDS = 30, 5
"""How long one request to the workspace may take, and for how long the SDK tries again."""

_THREAD, _LIST = "threadkeep-lakebase", "list-database-instances"
_GRANT = (
    "Add the `database` resource to databricks.yml with CAN_CONNECT_AND_CREATE, which gives the "
    "app's service principal access"
)


@dataclass(frozen=True)
class LakebasePlace:
    """Which Lakebase: provisioned by instance name, autoscaling by endpoint or project and branch.

    Args:
        instance_name: The name of an instance, or its hostname.
        autoscaling_endpoint: `projects/P/branches/B/endpoints/E`.
        project: Belongs to a branch that is a name.
        branch: A name, or `projects/P/branches/B`.
        database: The Postgres database.
        host: Where to connect; by default what the workspace says.
        user: The Postgres role; by default whom the workspace knows us as.
        port: Where to connect.

    Raises:
        InvalidInputError: It names none, or more than one.
    """

    instance_name: str | None = None
    autoscaling_endpoint: str | None = None
    project: str | None = None
    branch: str | None = None
    database: str = "databricks_postgres"
    host: str | None = None
    user: str | None = None
    port: int = 5432

    def __post_init__(self) -> None:
        ways = [self.instance_name, self.autoscaling_endpoint, self.branch]
        in_project = bool(self.branch) and not _is_path(self.branch)
        if sum(map(bool, ways)) != 1 or bool(self.project) != in_project:
            raise InvalidInputError(
                "Name one Lakebase: instance_name, autoscaling_endpoint, project and branch, or "
                "the full path of a branch (projects/P/branches/B)."
            )

    @classmethod
    def of(cls, settings: DatabaseSettings) -> Self:
        """The one that the settings name: the endpoint, else the branch, else the instance.

        Args:
            settings: Say which, and with `PGHOST`, `PGUSER`, `PGPORT`, `PGDATABASE` how.

        Raises:
            SettingsError: A variable is missing; says which.
        """
        return cls(
            **_way_in(settings),
            database=settings.pgdatabase,
            host=settings.pghost,
            user=settings.pguser,
            port=settings.pgport,
        )

    @property
    def name(self) -> str:
        """What it was named by; a branch by its full path."""
        name = self.instance_name or self.autoscaling_endpoint or str(self.branch)
        return f"projects/{self.project}/branches/{name}" if self.project else name

    @property
    def hostname(self) -> str | None:
        """The hostname in the instance's name's stead, as it is compared."""
        name = _as_host(self.instance_name)
        is_one = ".database." in name and name.endswith((".com", ".azuredatabricks.net"))
        return name if is_one else None


@dataclass(frozen=True)
class _Door:
    """Where a Lakebase is and as whom we come; `name` is what tokens are minted for."""

    name: str
    host: str
    user: str


@dataclass(frozen=True)
class _Login:
    door: _Door
    token: str = field(repr=False)
    renew_at: float
    """By the clock on the wall: a machine that slept wakes up with an old token."""


@dataclass(frozen=True)
class _Errand:
    """A login that the thread fetches, or has fetched."""

    thread: threading.Thread
    future: Future[_Login]
    started: float

    @property
    def is_of_use(self) -> bool:
        """Whether to wait for it, or take what it brought."""
        runs = self.thread.is_alive()  # it does not in a forked child, which has the errand too
        if not self.future.done():
            return runs and time.monotonic() - self.started < _ABANDON_SECONDS
        return self.future.exception() is None and time.time() < self.future.result().renew_at


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
        self._door: _Door | None = None
        self._errand: _Errand | None = None
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
        future = self._current().future
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                login = await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise WorkspaceError(_SILENT) from error
        self._has_given = True
        return {
            "host": login.door.host,
            "port": self._place.port,
            "user": login.door.user,
            "password": login.token,
            "database": self._place.database,
            "ssl": _tls(),
        }

    def forget_login(self) -> bool:
        """Lets the next login mint a token; whether one had been in use that may have lapsed.

        Many connections may be refused for one token, and each may try again.
        """
        with self._lock:
            if self._errand and self._errand.future.done():
                self._errand = None
            return self._has_given

    def _current(self) -> _Errand:
        """The errand that brought what is still good, that is under way, or a new one."""
        with self._lock:
            if self._errand is None or not self._errand.is_of_use:
                self._errand = self._sent()
            return self._errand

    def _sent(self) -> _Errand:
        future: Future[_Login] = Future()
        future.set_running_or_notify_cancel()  # from here on nobody who waits can cancel it
        # A daemon: a call that hangs must not keep the process from ending.
        thread = threading.Thread(target=self._run, args=(future,), name=_THREAD, daemon=True)
        thread.start()
        return _Errand(thread, future, time.monotonic())

    def _run(self, future: Future[_Login]) -> None:
        try:
            login = self._fetch()
        except ThreadkeepError as error:
            future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - those who wait are told, whatever it is
            told = _translated(error, self._place)
            told.__cause__ = error
            future.set_exception(told)
        else:
            future.set_result(login)

    def _fetch(self) -> _Login:
        logging.getLogger("databricks.sdk").addFilter(_keeps_answers_out)
        client = self._client or _new_client()
        door = self._door
        if door is None:
            door = _find(client, self._place)
            self.advice = _advice(self._place, door.name)
            self._client, self._door = client, door
        minted = time.time()
        token, expires = _mint(client, self._place, door.name)
        return _Login(door, token, _renewal(minted, expires, self._token_seconds))


def _way_in(settings: DatabaseSettings) -> dict[str, str | None]:
    if settings.lakebase_autoscaling_endpoint:
        return {"autoscaling_endpoint": settings.lakebase_autoscaling_endpoint}
    project = settings.lakebase_autoscaling_project
    branch = settings.lakebase_autoscaling_branch
    if _is_path(branch):
        return {"branch": branch}  # which tells its project
    if project and branch:
        return {"project": project, "branch": branch}
    if project or branch:
        given, missing = ("PROJECT", "BRANCH") if project else ("BRANCH", "PROJECT")
        raise SettingsError(
            f"LAKEBASE_AUTOSCALING_{missing} environment variable is required, for "
            f"LAKEBASE_AUTOSCALING_{given} is set. Set both, or neither."
        )
    return {"instance_name": settings.lakebase_instance_name}


def _is_path(branch: str | None) -> bool:
    return branch is not None and branch.startswith("projects/") and "/branches/" in branch


def _as_host(name: str | None) -> str:
    """A hostname as it is compared: letter case and the root's dot mean nothing."""
    return (name or "").strip().lower().rstrip(".")


def _tls() -> str:
    """How TLS is checked. Always used; libpq's own variable may ask for more than that."""
    mode = os.environ.get("PGSSLMODE", "")
    return mode if mode in ("verify-ca", "verify-full") else "require"


def _new_client() -> WorkspaceClient:
    try:
        from databricks.sdk import WorkspaceClient
        from databricks.sdk.core import Config
    except ImportError as error:
        raise SettingsError(
            "Lakebase needs databricks-sdk: `pip install 'threadkeep[databricks]'` "
            "(or `uv sync --extra databricks`)."
        ) from error
    config = Config(
        http_timeout_seconds=_HTTP_SECONDS,
        retry_timeout_seconds=_RETRY_SECONDS,
        disable_async_token_refresh=True,  # its threads would keep the process from ending
    )
    return WorkspaceClient(config=config)


def _keeps_answers_out(record: logging.LogRecord) -> bool:
    """At DEBUG the SDK logs what the workspace answers, and that is our token."""
    return record.levelno > logging.DEBUG or record.threadName != _THREAD


def _find(client: WorkspaceClient, place: LakebasePlace) -> _Door:
    name, host = (_provisioned if place.instance_name else _autoscaling)(client, place)
    if not name or not host:
        raise DatabaseUnavailableError(
            f"Lakebase {place.name} has no {'host' if name else 'name'} yet. See that it is "
            f"running: {_show(place, name or place.name)}"
        )
    return _Door(name, host, place.user or _user(client))


def _provisioned(client: WorkspaceClient, place: LakebasePlace) -> tuple[str, str | None]:
    typed = str(place.instance_name)
    if place.hostname:
        instance = _instance_at(client, place.hostname, typed)
    elif place.host:
        return typed, place.host
    else:
        instance = client.database.get_database_instance(typed)
    return instance.name, place.host or instance.read_write_dns or instance.read_only_dns


def _instance_at(client: WorkspaceClient, hostname: str, typed: str) -> DatabaseInstance:
    for instance in client.database.list_database_instances():
        if hostname in (_as_host(instance.read_write_dns), _as_host(instance.read_only_dns)):
            return instance
    raise DatabaseUnavailableError(
        f"Unable to resolve hostname '{typed}': it matches no Lakebase instance. Verify the "
        "hostname, or set LAKEBASE_INSTANCE_NAME to the name of the instance."
    )


def _autoscaling(client: WorkspaceClient, place: LakebasePlace) -> tuple[str | None, str | None]:
    if place.host and place.autoscaling_endpoint:
        return place.autoscaling_endpoint, place.host
    if place.autoscaling_endpoint:
        endpoint = client.postgres.get_endpoint(place.autoscaling_endpoint)
    else:
        endpoint = _read_write(client, place.name)
    hosts = endpoint.status.hosts if endpoint.status else None
    return endpoint.name, place.host or (hosts.host if hosts else None)


def _read_write(client: WorkspaceClient, branch: str) -> Endpoint:
    from databricks.sdk.service.postgres import EndpointType

    for endpoint in client.postgres.list_endpoints(branch):
        status = endpoint.status
        if status and status.endpoint_type is EndpointType.ENDPOINT_TYPE_READ_WRITE:
            return endpoint
    raise DatabaseUnavailableError(
        f"Lakebase branch {branch} has no endpoint that takes writes. See what it has: "
        f"databricks postgres list-endpoints {branch}"
    )


def _user(client: WorkspaceClient) -> str:
    from databricks.sdk.errors import PermissionDenied

    try:
        user = client.current_user.me().user_name
    except PermissionDenied:  # who we are is no secret to a service principal
        user = None
    if not (user := user or client.config.client_id):
        raise SettingsError(
            "The Databricks workspace does not tell who you are. Set PGUSER to your Postgres "
            "role, or log in anew with `databricks auth login`."
        )
    return str(user)


def _mint(client: WorkspaceClient, place: LakebasePlace, name: str) -> tuple[str, str | None]:
    """A token, and when it expires: a time in RFC 3339's form."""
    if place.instance_name:
        minted = client.database.generate_database_credential(
            request_id=str(uuid4()), instance_names=[name]
        )
        token, expires = minted.token, minted.expiration_time
    else:
        credential = client.postgres.generate_database_credential(endpoint=name)
        token, time_of_it = credential.token, credential.expire_time
        expires = time_of_it.ToJsonString() if time_of_it else None
    if not token:
        raise DatabaseUnavailableError(
            f"There is no token for Lakebase {name}. See that it is running: {_show(place, name)}"
        )
    return token, expires


def _renewal(minted: float, expires: str | None, seconds: float) -> float:
    """When to mint the next token, in seconds since 1970; a tenth of its life is left by then."""
    if not expires:
        return minted + seconds
    end = datetime.fromisoformat(expires).timestamp()
    return min(minted + seconds, end - min(0.1 * (end - minted), 60))


_SILENT = "The Databricks workspace does not answer. Check DATABRICKS_HOST and the network."
_LOGGED_OUT = (
    "The Databricks workspace does not know us. Log in with `databricks auth login`, or set "
    "DATABRICKS_HOST and DATABRICKS_TOKEN, or a service principal's DATABRICKS_CLIENT_ID and "
    "DATABRICKS_CLIENT_SECRET."
)


def _translated(error: BaseException, place: LakebasePlace) -> ThreadkeepError:
    """Says what an error of the SDK means, by the first type known from its root on."""
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    for cause in reversed(causes):
        if told := _meaning(cause, place):
            return told
    return WorkspaceError(
        f"The Databricks workspace gave an answer that can't be used ({type(error).__name__}). "
        "Check DATABRICKS_HOST."
    )


def _meaning(error: BaseException, place: LakebasePlace) -> ThreadkeepError | None:
    from databricks.sdk.errors import NotFound, PermissionDenied, Unauthenticated
    from databricks.sdk.errors.base import DatabricksError

    if isinstance(error, PermissionDenied):
        return WorkspaceError(
            f"Permission denied: no access to Lakebase {place.name}. {_GRANT}, or ask its owner."
        )
    if isinstance(error, NotFound):
        return DatabaseUnavailableError(_unknown(place))
    if isinstance(error, Unauthenticated) or type(error) is OSError:
        return WorkspaceError(_LOGGED_OUT)  # a plain OSError: of a command line tool's login
    if isinstance(error, DatabricksError):
        return WorkspaceError(
            f"The Databricks workspace failed ({type(error).__name__}). Try again, and see that "
            f"Lakebase is running: {_show(place, place.name)}"
        )
    if isinstance(error, OSError):  # of the network, or it is no workspace that answers
        return WorkspaceError(_SILENT)
    return WorkspaceError(_LOGGED_OUT) if isinstance(error, ValueError) else None


def _unknown(place: LakebasePlace) -> str:
    above = place.name.rsplit("/", 2)[0]
    if place.instance_name:
        kind, listing = "instance", f"database {_LIST}"
    elif place.autoscaling_endpoint:
        kind, listing = "endpoint", f"postgres list-endpoints {above}"
    else:
        kind, listing = "branch", f"postgres list-branches {above}"
    return f"There is no Lakebase {kind} '{place.name}'. List them with `databricks {listing}`."


def _show(place: LakebasePlace, name: str) -> str:
    """The command that shows whether it runs."""
    if place.instance_name:
        is_hostname = place.hostname == _as_host(name)
        return f"databricks database {_LIST if is_hostname else f'get-database-instance {name}'}"
    verb = "get-endpoint" if "/endpoints/" in name else "list-endpoints"
    return f"databricks postgres {verb} {name}"


def _advice(place: LakebasePlace, name: str) -> Advice:
    show = _show(place, name)
    return Advice(
        unknown_host=f"Unable to resolve hostname: this machine finds no address for that of "
        f"Lakebase {name}. Check its DNS, and PGHOST where it is set.",
        unreachable=f"Lakebase {name} can't be reached. Check that this machine may connect to "
        f"port {place.port}, and that it is running: {show}",
        closed=f"SSL connection closed unexpectedly. Verify that the Lakebase instance is "
        f"running: {show}",
        refused=f"Permission denied: Lakebase {name} has no role for this user, or does not take "
        f"its token. {_GRANT}, or create the role in the database: "
        "SELECT databricks_create_role('<user>', 'USER' or 'SERVICE_PRINCIPAL').",
        no_database=f"Lakebase {name} has no database {place.database}. Mend PGDATABASE.",
        no_rights=f"Permission denied: the role lacks a right. {_GRANT}.",
    )
