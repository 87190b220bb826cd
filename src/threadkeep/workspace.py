"""What is asked of a Databricks workspace for a Lakebase, and what its errors mean.

These calls block: they are made in a thread of their own (lakebase.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from threadkeep.errors import (
    DatabaseUnavailableError,
    SettingsError,
    ThreadkeepError,
    WorkspaceError,
)
from threadkeep.lakebase_place import LakebasePlace, as_host, show, unknown

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.database import DatabaseInstance
    from databricks.sdk.service.postgres import Endpoint

THREAD = "threadkeep-lakebase"
"""The name of the thread that asks."""

_HTTP_SECONDS, _RETRY_SECONDS = 30, 5
"""How long one request to the workspace may take, and for how long the SDK tries again."""

GRANT = (
    "Add the `database` resource to databricks.yml with CAN_CONNECT_AND_CREATE, which gives the "
    "app's service principal access"
)
"""What to do where we are not let in."""


@dataclass(frozen=True)
class Door:
    """Where a Lakebase is and as whom we come; `name` is what tokens are minted for."""

    name: str
    host: str
    user: str


def new_client() -> WorkspaceClient:
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


def keeps_answers_out(record: logging.LogRecord) -> bool:
    """At DEBUG the SDK logs what the workspace answers, and that is our token."""
    return record.levelno > logging.DEBUG or record.threadName != THREAD


def find(client: WorkspaceClient, place: LakebasePlace) -> Door:
    name, host = (_provisioned if place.instance_name else _autoscaling)(client, place)
    if not name or not host:
        raise DatabaseUnavailableError(
            f"Lakebase {place.name} has no {'host' if name else 'name'} yet. See that it is "
            f"running: {show(place, name or place.name)}"
        )
    return Door(name, host, place.user or user_of(client))


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
        if hostname in (as_host(instance.read_write_dns), as_host(instance.read_only_dns)):
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


def user_of(client: WorkspaceClient) -> str:
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


def mint(client: WorkspaceClient, place: LakebasePlace, name: str) -> tuple[str, str | None]:
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
            f"There is no token for Lakebase {name}. See that it is running: {show(place, name)}"
        )
    return token, expires


SILENT = "The Databricks workspace does not answer. Check DATABRICKS_HOST and the network."
_LOGGED_OUT = (
    "The Databricks workspace does not know us. Log in with `databricks auth login`, or set "
    "DATABRICKS_HOST and DATABRICKS_TOKEN, or a service principal's DATABRICKS_CLIENT_ID and "
    "DATABRICKS_CLIENT_SECRET."
)


def translated(error: BaseException, place: LakebasePlace) -> ThreadkeepError:
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
            f"Permission denied: no access to Lakebase {place.name}. {GRANT}, or ask its owner."
        )
    if isinstance(error, NotFound):
        return DatabaseUnavailableError(unknown(place))
    if isinstance(error, Unauthenticated) or type(error) is OSError:
        return WorkspaceError(_LOGGED_OUT)  # a plain OSError: of a command line tool's login
    if isinstance(error, DatabricksError):
        return WorkspaceError(
            f"The Databricks workspace failed ({type(error).__name__}). Try again, and see that "
            f"Lakebase is running: {show(place, place.name)}"
        )
    if isinstance(error, OSError):  # of the network, or it is no workspace that answers
        return WorkspaceError(SILENT)
    return WorkspaceError(_LOGGED_OUT) if isinstance(error, ValueError) else None
