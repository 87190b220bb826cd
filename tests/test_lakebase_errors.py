"""What is said when there is no way into Lakebase: what is amiss, and what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lakebase import LakebaseStandIn
from tests.lakebase.postgres import HOST
from tests.lakebase.workspace import BRANCH, ENDPOINT, INSTANCE, Workspace
from threadkeep.errors import (
    DatabaseUnavailableError,
    SettingsError,
    ThreadkeepError,
    WorkspaceError,
)
from threadkeep.lakebase import Lakebase
from threadkeep.lakebase_place import LakebasePlace

HOSTNAME = "instance-2b.database.cloud.databricks.com"
OTHERS_HOSTNAME = "instance-9z.database.cloud.databricks.com"
AZURE_HOSTNAME = "instance-7e.database.azuredatabricks.net"
PROVISIONED = LakebasePlace(instance_name=INSTANCE)


@pytest.fixture
def lakebase(workspace: LakebaseStandIn) -> LakebaseStandIn:
    """The stand-in, with the environment leading to its workspace."""
    return workspace


Arrange = Callable[[LakebaseStandIn, pytest.MonkeyPatch], None]


def refuses(part: Any, status: int = 403) -> Arrange:
    return lambda lakebase, _: lakebase.refuse(part, status)


def with_environment(**values: str) -> Arrange:
    def arrange(_: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return arrange


def with_attribute(name: str, value: Any) -> Arrange:
    return lambda _, monkeypatch: monkeypatch.setattr(Workspace, name, value)


async def no_token(*_: Any) -> tuple[str, float]:
    return "", time.time() + 60


def nothing(*_: Any) -> None:
    """Changes nothing."""


GRANT = r"^Permission denied.*`database` resource to databricks\.yml.*CAN_CONNECT_AND_CREATE"
LOG_IN = "`databricks auth login`.*DATABRICKS_HOST and DATABRICKS_TOKEN"
SILENT = "does not answer.*DATABRICKS_HOST"


@pytest.mark.parametrize(
    ("place", "arrange", "kind", "words"),
    [
        pytest.param(
            LakebasePlace(instance_name=OTHERS_HOSTNAME),
            nothing,
            DatabaseUnavailableError,
            f"^Unable to resolve hostname '{OTHERS_HOSTNAME}'.*Verify.*LAKEBASE_INSTANCE_NAME",
            id="hostname",
        ),
        pytest.param(
            LakebasePlace(instance_name="instance-3c.database.azuredatabricks.net"),
            nothing,
            DatabaseUnavailableError,
            "has no name yet.*running: databricks database list-database-instances",
            id="nameless",
        ),
        pytest.param(
            LakebasePlace(instance_name="nope"),
            nothing,
            DatabaseUnavailableError,
            "no Lakebase instance 'nope'.*`databricks database list-database-instances`",
            id="instance",
        ),
        pytest.param(
            LakebasePlace(instance_name="nope", host=HOST),
            nothing,
            DatabaseUnavailableError,
            "no Lakebase instance 'nope'",
            id="instance with host",
        ),
        pytest.param(
            LakebasePlace(autoscaling_endpoint=f"{BRANCH}/endpoints/nope"),
            nothing,
            DatabaseUnavailableError,
            f"no Lakebase endpoint.*`databricks postgres list-endpoints {BRANCH}`",
            id="endpoint",
        ),
        pytest.param(
            LakebasePlace(project="p", branch="nope"),
            nothing,
            DatabaseUnavailableError,
            "branch 'projects/p/branches/nope'.*`databricks postgres list-branches projects/p`",
            id="branch",
        ),
        pytest.param(
            PROVISIONED,
            with_attribute("instances", [{"name": INSTANCE, "state": "STARTING"}]),
            DatabaseUnavailableError,
            f"has no host yet.*running: databricks database get-database-instance {INSTANCE}",
            id="instance without host",
        ),
        pytest.param(
            LakebasePlace(autoscaling_endpoint=ENDPOINT),
            with_attribute("endpoints", [{"name": ENDPOINT}]),
            DatabaseUnavailableError,
            f"has no host yet.*running: databricks postgres get-endpoint {ENDPOINT}",
            id="endpoint without host",
        ),
        pytest.param(
            LakebasePlace(branch=BRANCH),
            with_attribute("endpoints", [{"name": ENDPOINT}]),
            DatabaseUnavailableError,
            f"no endpoint that takes writes.*databricks postgres list-endpoints {BRANCH}",
            id="branch that is read only",
        ),
        pytest.param(
            PROVISIONED,
            with_attribute("mint", no_token),
            DatabaseUnavailableError,
            f"no token.*running: databricks database get-database-instance {INSTANCE}",
            id="no token",
        ),
        pytest.param(PROVISIONED, refuses("instances"), WorkspaceError, GRANT, id="no read"),
        pytest.param(PROVISIONED, refuses("credentials"), WorkspaceError, GRANT, id="no mint"),
        pytest.param(
            LakebasePlace(instance_name=HOSTNAME),
            refuses("instances"),
            WorkspaceError,
            GRANT,
            id="no listing",
        ),
        pytest.param(
            LakebasePlace(branch=BRANCH), refuses("endpoints"), WorkspaceError, GRANT, id="no list"
        ),
        pytest.param(
            PROVISIONED,
            with_environment(DATABRICKS_TOKEN="wrong"),
            WorkspaceError,
            LOG_IN,
            id="wrong token",
        ),
        pytest.param(
            PROVISIONED,
            with_environment(DATABRICKS_TOKEN="", DATABRICKS_HOST="", PATH=""),
            WorkspaceError,
            LOG_IN,
            id="logged out",
        ),
        pytest.param(
            PROVISIONED,
            with_environment(
                DATABRICKS_TOKEN="", DATABRICKS_CLIENT_ID="x", DATABRICKS_CLIENT_SECRET="x"
            ),
            WorkspaceError,
            f"{LOG_IN}.*DATABRICKS_CLIENT_SECRET",
            id="wrong secret",
        ),
        pytest.param(
            PROVISIONED,
            refuses("credentials", 503),
            WorkspaceError,
            rf"failed \(TemporarilyUnavailable\).*get-database-instance {INSTANCE}",
            id="failure",
        ),
        pytest.param(
            PROVISIONED,
            with_environment(DATABRICKS_HOST="http://127.0.0.1:9"),
            WorkspaceError,
            SILENT,
            id="unreachable",
        ),
    ],
)
async def test_each_failure_names_its_remedy(
    lakebase: LakebaseStandIn,
    monkeypatch: pytest.MonkeyPatch,
    place: LakebasePlace,
    arrange: Arrange,
    kind: type[ThreadkeepError],
    words: str,
) -> None:
    """By the type that says which step it was; hosts are told to nobody who did not name them."""
    monkeypatch.setattr("threadkeep.workspace._RETRY_SECONDS", 1)
    arrange(lakebase, monkeypatch)
    with pytest.raises(kind, match=words) as told:
        await Lakebase(place).login()
    assert type(told.value) is kind
    hosts = re.findall(r"[\w.-]+\.(?:com|net)|127[\d.]+", str(told.value))
    assert set(hosts) <= {place.instance_name}


async def test_a_lapsed_login_of_the_command_line_tool(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Is told as such, though the SDK says no more than that something went wrong."""
    tool = tmp_path / "databricks"
    tool.write_text("#!/bin/sh\necho 'the refresh token is invalid' >&2\nexit 1\n" + "#" * 2**20)
    tool.chmod(0o700)
    monkeypatch.delenv("DATABRICKS_TOKEN")
    monkeypatch.setenv("DATABRICKS_CLI_PATH", str(tool))
    monkeypatch.setenv("DATABRICKS_AUTH_TYPE", "databricks-cli")
    with pytest.raises(WorkspaceError, match=LOG_IN):
        await Lakebase(PROVISIONED).login()


async def test_an_answer_of_another_form(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comes from what is no workspace, or one of another time."""
    monkeypatch.setattr(Workspace, "instances", [{"name": INSTANCE, "child_instance_refs": 1}])
    with pytest.raises(WorkspaceError, match=r"can't be used \(TypeError\).*DATABRICKS_HOST"):
        await Lakebase(PROVISIONED).login()


async def test_without_the_sdk(lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told how to install it."""
    monkeypatch.setitem(sys.modules, "databricks.sdk", None)
    with pytest.raises(SettingsError, match=re.escape("pip install 'threadkeep[databricks]'")):
        await Lakebase(PROVISIONED).login()


def test_the_sdk_is_not_imported_before_it_is_used() -> None:
    """It is an extra, and takes its time."""
    code = "import sys, threadkeep.lakebase; print('databricks.sdk' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.stdout == "False\n"


def test_the_driver_is_told_what_to_say() -> None:
    """In the documented words, with the command for this Lakebase, and without a host."""
    advice = Lakebase(PROVISIONED).advice
    assert advice.closed == (
        "SSL connection closed unexpectedly. Verify that the Lakebase instance is running: "
        f"databricks database get-database-instance {INSTANCE}"
    )
    assert advice.unknown_host.startswith("Unable to resolve hostname: ")
    assert f"get-database-instance {INSTANCE}" in advice.unreachable
    assert "databricks_create_role(" in advice.refused
    assert "PGDATABASE" in advice.no_database
    for denied in (advice.refused, advice.no_rights):
        assert re.search(GRANT.replace(".*`", ".*Add the `"), denied)
    endpoint = Lakebase(LakebasePlace(autoscaling_endpoint=ENDPOINT)).advice
    assert endpoint.closed.endswith(f"databricks postgres get-endpoint {ENDPOINT}")
    branch = Lakebase(LakebasePlace(branch=BRANCH)).advice
    assert branch.closed.endswith(f"databricks postgres list-endpoints {BRANCH}")
    hostname = Lakebase(LakebasePlace(instance_name=HOSTNAME)).advice
    assert hostname.closed.endswith("databricks database list-database-instances")
