"""Which Lakebase it is, and what people call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from threadkeep.errors import InvalidInputError, SettingsError
from threadkeep.settings import DatabaseSettings

_LIST = "list-database-instances"


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
        name = as_host(self.instance_name)
        is_one = ".database." in name and name.endswith((".com", ".azuredatabricks.net"))
        return name if is_one else None


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


def as_host(name: str | None) -> str:
    """A hostname as it is compared: letter case and the root's dot mean nothing."""
    return (name or "").strip().lower().rstrip(".")


def unknown(place: LakebasePlace) -> str:
    above = place.name.rsplit("/", 2)[0]
    if place.instance_name:
        kind, listing = "instance", f"database {_LIST}"
    elif place.autoscaling_endpoint:
        kind, listing = "endpoint", f"postgres list-endpoints {above}"
    else:
        kind, listing = "branch", f"postgres list-branches {above}"
    return f"There is no Lakebase {kind} '{place.name}'. List them with `databricks {listing}`."


def show(place: LakebasePlace, name: str) -> str:
    """The command that shows whether it runs."""
    if place.instance_name:
        is_hostname = place.hostname == as_host(name)
        return f"databricks database {_LIST if is_hostname else f'get-database-instance {name}'}"
    verb = "get-endpoint" if "/endpoints/" in name else "list-endpoints"
    return f"databricks postgres {verb} {name}"
