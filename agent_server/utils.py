"""Helpers that `agent.py` may need."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.database import DatabaseInstance

_LAKEBASE_DOMAINS = (".com", ".azuredatabricks.net")


def resolve_lakebase_instance_name(
    instance_name: str | None, workspace_client: "WorkspaceClient | None" = None
) -> str:
    """Tell the name of a Lakebase instance that is given by its name or its hostname.

    Args:
        instance_name: A name, which is returned as it is, or a hostname such as
            `instance-1234.database.cloud.databricks.com`.
        workspace_client: Looks the hostname up; made from the environment by default.

    Raises:
        ValueError: There is no name, or the hostname can't be looked up, or is that of no instance.
    """
    if not instance_name or not instance_name.strip():
        raise ValueError(
            "LAKEBASE_INSTANCE_NAME environment variable is required. Set it in .env, or in a "
            "Databricks App add the `database` resource to databricks.yml and to app.yaml "
            "`LAKEBASE_INSTANCE_NAME` with `valueFrom: database`."
        )
    hostname = instance_name.strip().lower().rstrip(".")
    if ".database." not in hostname or not hostname.endswith(_LAKEBASE_DOMAINS):
        return instance_name
    if workspace_client is None:
        from databricks.sdk import WorkspaceClient

        workspace_client = WorkspaceClient()
    for instance in _instances(workspace_client, hostname):
        if hostname in (instance.read_write_dns, instance.read_only_dns):
            if not instance.name:
                raise ValueError(
                    f"The instance with the hostname '{hostname}' has no name yet. Wait until it "
                    "is running, or set LAKEBASE_INSTANCE_NAME to its name."
                )
            return str(instance.name)
    raise ValueError(
        f"Unable to resolve hostname '{hostname}': it matches no Lakebase instance. Verify it, or "
        "set LAKEBASE_INSTANCE_NAME to the name of the instance."
    )


def _instances(client: "WorkspaceClient", hostname: str) -> "list[DatabaseInstance]":
    from databricks.sdk.errors.base import DatabricksError

    try:
        return list(client.database.list_database_instances())
    except DatabricksError as error:
        raise ValueError(
            f"Unable to resolve hostname '{hostname}': the database instances can't be listed. "
            "Ensure that you may list them, or set LAKEBASE_INSTANCE_NAME to the name."
        ) from error
