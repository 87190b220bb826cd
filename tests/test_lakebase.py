"""The way into Lakebase: which one, as whom, with which token, and what is said when it fails."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from itertools import count
from typing import Any

import asyncpg
import pytest
from databricks.sdk import WorkspaceClient

from tests.lakebase import LakebaseStandIn
from tests.lakebase.postgres import HOST
from tests.lakebase.workspace import BRANCH, ENDPOINT, INSTANCE, Workspace
from threadkeep.errors import (
    InvalidInputError,
    SettingsError,
    WorkspaceError,
)
from threadkeep.lakebase import Lakebase
from threadkeep.lakebase_place import LakebasePlace
from threadkeep.postgres_server import Server
from threadkeep.settings import DatabaseSettings

HOSTNAME = "instance-2b.database.cloud.databricks.com"
OTHERS_HOSTNAME = "instance-9z.database.cloud.databricks.com"
AZURE_HOSTNAME = "instance-7e.database.azuredatabricks.net"
PROVISIONED = LakebasePlace(instance_name=INSTANCE)


@pytest.fixture
def lakebase(workspace: LakebaseStandIn) -> LakebaseStandIn:
    """The stand-in, with the environment leading to its workspace."""
    return workspace


def paths(lakebase: LakebaseStandIn, part: str) -> list[str]:
    return [path for _, path in lakebase.calls if part in path]


async def who(server: Server) -> str:
    """Logs in to Postgres, and asks it who came."""
    connection = await asyncpg.connect(**await server.login(), timeout=10)
    try:
        return str(await connection.fetchval("SELECT current_user"))
    finally:
        await connection.close()


# Which Lakebase


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (
            {
                "LAKEBASE_AUTOSCALING_ENDPOINT": ENDPOINT,
                "LAKEBASE_AUTOSCALING_PROJECT": "p",
                "LAKEBASE_INSTANCE_NAME": "i",
            },
            LakebasePlace(autoscaling_endpoint=ENDPOINT),
        ),
        (
            {
                "LAKEBASE_AUTOSCALING_PROJECT": "p",
                "LAKEBASE_AUTOSCALING_BRANCH": "b",
                "LAKEBASE_INSTANCE_NAME": "i",
            },
            LakebasePlace(project="p", branch="b"),
        ),
        (
            {"LAKEBASE_AUTOSCALING_BRANCH": BRANCH, "LAKEBASE_AUTOSCALING_PROJECT": "my-project"},
            LakebasePlace(branch=BRANCH),
        ),
        (
            {
                "LAKEBASE_INSTANCE_NAME": "i",
                "PGHOST": "h",
                "PGUSER": "u",
                "PGPORT": "6432",
                "PGDATABASE": "d",
            },
            LakebasePlace(instance_name="i", host="h", user="u", port=6432, database="d"),
        ),
    ],
)
def test_the_most_exact_setting_wins(environment: dict[str, str], place: LakebasePlace) -> None:
    """Endpoint, then branch, then instance; the rest refines it."""
    assert LakebasePlace.of(DatabaseSettings.read(environment)) == place


@pytest.mark.parametrize(("given", "missing"), [("PROJECT", "BRANCH"), ("BRANCH", "PROJECT")])
def test_half_of_a_branch_is_no_place(given: str, missing: str) -> None:
    """The other variable is asked for, even beside an instance."""
    settings = {f"LAKEBASE_AUTOSCALING_{given}": "x", "LAKEBASE_INSTANCE_NAME": "i"}
    with pytest.raises(SettingsError, match=f"^LAKEBASE_AUTOSCALING_{missing} environment"):
        LakebasePlace.of(DatabaseSettings.read(settings))


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"project": "p"},
        {"branch": "b"},
        {"branch": BRANCH, "project": "p"},
        {"instance_name": "i", "autoscaling_endpoint": ENDPOINT},
        {"instance_name": "i", "project": "p"},
    ],
)
def test_a_place_is_named_in_one_way(names: dict[str, str]) -> None:
    """Else it is not known which one is meant."""
    with pytest.raises(InvalidInputError, match="Name one Lakebase"):
        LakebasePlace(**names)


@pytest.mark.parametrize(
    ("place", "host", "name"),
    [
        (PROVISIONED, HOST, INSTANCE),
        (LakebasePlace(instance_name=HOSTNAME), HOSTNAME, "other-lakebase"),
        (LakebasePlace(instance_name=HOSTNAME.upper() + "."), HOSTNAME, "other-lakebase"),
        (
            LakebasePlace(instance_name="instance-ro-2b.database.cloud.databricks.com"),
            HOSTNAME,
            "other-lakebase",
        ),
        (LakebasePlace(instance_name=HOSTNAME, host="h"), "h", "other-lakebase"),
        (LakebasePlace(autoscaling_endpoint=ENDPOINT), HOST, ENDPOINT),
        (LakebasePlace(project="my-project", branch="production"), HOST, ENDPOINT),
        (LakebasePlace(branch=BRANCH), HOST, ENDPOINT),
    ],
    ids=range(8),
)
async def test_each_way_to_name_it_leads_there(
    lakebase: LakebaseStandIn, place: LakebasePlace, host: str, name: str
) -> None:
    """Hostnames are looked up on all pages; a branch has one endpoint that takes writes."""
    server = Lakebase(place)
    login = await server.login()
    assert (login["host"], login["port"], login["database"]) == (host, 5432, "databricks_postgres")
    assert server.description == f"Lakebase {name}, database databricks_postgres"
    assert name in server.advice.closed


async def test_hostnames_of_azure_are_hostnames(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only replicas have a host, that is taken."""
    azure = {"name": "azure", "read_only_dns": AZURE_HOSTNAME.upper()}
    monkeypatch.setattr(Workspace, "instances", [{"name": "a"}, {"name": "b"}, azure])
    server = Lakebase(LakebasePlace(instance_name=AZURE_HOSTNAME))
    assert server.description == "Lakebase instance, database databricks_postgres"
    assert (await server.login())["host"] == AZURE_HOSTNAME.upper()
    assert server.description == "Lakebase azure, database databricks_postgres"


@pytest.mark.parametrize(
    "place",
    [
        LakebasePlace(instance_name=INSTANCE, host=HOST, user="me", port=6000, database="d"),
        LakebasePlace(autoscaling_endpoint=ENDPOINT, host=HOST, user="me", port=6000, database="d"),
    ],
)
async def test_what_is_set_is_not_looked_up(
    lakebase: LakebaseStandIn, place: LakebasePlace
) -> None:
    """An app that is told its host, user and database needs no right but that to a token."""
    for part in ("me", "instances", "endpoints"):
        lakebase.refuse(part)
    login = await Lakebase(place).login()
    assert login.pop("password").startswith("eyJ")
    assert login == {"host": HOST, "port": 6000, "user": "me", "database": "d", "ssl": "require"}


@pytest.mark.parametrize(
    ("mode", "tls"),
    [
        (None, "require"),
        ("disable", "require"),
        ("prefer", "require"),
        ("require", "require"),
        ("verify-ca", "verify-ca"),
        ("verify-full", "verify-full"),
    ],
)
async def test_tls_is_never_less_than_required(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch, mode: str | None, tls: str
) -> None:
    """Libpq's variable may ask for more."""
    if mode:
        monkeypatch.setenv("PGSSLMODE", mode)
    assert (await Lakebase(PROVISIONED).login())["ssl"] == tls


# As whom


async def test_a_person_comes_in(lakebase: LakebaseStandIn) -> None:
    """As the role of their name in the workspace."""
    assert await who(Lakebase(PROVISIONED)) == lakebase.user
    assert await who(Lakebase(LakebasePlace(branch=BRANCH))) == lakebase.user


async def test_a_service_principal_comes_in(
    lakebase: LakebaseStandIn, as_service_principal: str
) -> None:
    """By OAuth; as its client id, also where the workspace does not say who it is."""
    assert await who(Lakebase(PROVISIONED)) == as_service_principal
    lakebase.refuse("me")
    assert await who(Lakebase(PROVISIONED)) == as_service_principal


async def test_pguser_comes_first(lakebase: LakebaseStandIn) -> None:
    """And nobody else is asked."""
    login = await Lakebase(LakebasePlace(instance_name=INSTANCE, user="somebody")).login()
    assert login["user"] == "somebody"
    assert not paths(lakebase, "/Me")


async def test_nobody_knows_who_we_are(lakebase: LakebaseStandIn) -> None:
    """Then PGUSER says it."""
    lakebase.refuse("me")
    with pytest.raises(SettingsError, match="Set PGUSER"):
        await Lakebase(PROVISIONED).login()


async def test_a_client_of_ones_own_is_asked(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says."""
    client = WorkspaceClient(host=lakebase.url, token=lakebase.token)
    monkeypatch.setenv("DATABRICKS_TOKEN", "wrong")
    assert await who(Lakebase(PROVISIONED, workspace_client=client)) == lakebase.user


# The token


async def test_a_login_is_kept(lakebase: LakebaseStandIn) -> None:
    """Neither place nor token is asked for twice."""
    server = Lakebase(PROVISIONED)
    assert await server.login() == await server.login()
    assert lakebase.minted == 1
    lakebase.calls.clear()
    await asyncio.to_thread(lambda: asyncio.run(server.login()))
    assert not lakebase.calls


@pytest.mark.parametrize("place", [PROVISIONED, LakebasePlace(autoscaling_endpoint=ENDPOINT)])
async def test_a_token_is_renewed_before_it_expires(
    lakebase: LakebaseStandIn, place: LakebasePlace
) -> None:
    """A tenth of its life before; the rest is kept."""
    lakebase.token_seconds = 2.0
    server = Lakebase(place)
    first = await server.login()
    await asyncio.sleep(1.0)
    assert await server.login() == first
    await asyncio.sleep(0.85)
    lakebase.calls.clear()
    second = await server.login()
    assert first | {"password": second["password"]} == second != first
    assert [path.rpartition("/")[2] for _, path in lakebase.calls] == ["credentials"]


async def test_a_token_is_renewed_when_it_is_old(lakebase: LakebaseStandIn) -> None:
    """Long before it expires; who asks gets the old one, until the new one is there."""
    server = Lakebase(PROVISIONED, token_seconds=1)
    first = await server.login()
    assert await server.login() == first
    await asyncio.sleep(1)
    lakebase.credential_delay = 0.2
    assert await server.login() == first
    while await server.login() == first:  # noqa: ASYNC110 - nothing tells when it is there
        await asyncio.sleep(0.01)
    assert lakebase.minted == 2


async def test_one_errand_for_all(lakebase: LakebaseStandIn) -> None:
    """Fifty logins of two event loops make one call each for place, user and token."""
    lakebase.credential_delay = 0.3
    server = Lakebase(PROVISIONED)

    async def logins() -> list[dict[str, Any]]:
        return await asyncio.gather(*(server.login() for _ in range(25)))

    halves = await asyncio.gather(logins(), asyncio.to_thread(lambda: asyncio.run(logins())))
    assert len({login["password"] for half in halves for login in half}) == 1
    called = [path for _, path in lakebase.calls if path.startswith("/api")]
    assert len(called) == len(set(called)) == 3


async def test_the_event_loop_never_waits(lakebase: LakebaseStandIn) -> None:
    """While a token takes two seconds, other tasks go on.

    The best of three counts: a machine that is busy holds them up too, but not each time.
    """
    lakebase.credential_delay = 2.0
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - began - 0.005)

    for _ in range(3):
        longest = 0.0
        ticking = asyncio.create_task(tick())
        await Lakebase(PROVISIONED).login()
        ticking.cancel()
        if longest < 0.05:
            break
    assert longest < 0.05


async def test_waiting_has_an_end_and_the_work_goes_on(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes later gets what was under way, also when those who waited were cancelled."""
    monkeypatch.setattr("threadkeep.lakebase.WAIT_SECONDS", 0.5)
    lakebase.credential_delay = 1.0
    server = Lakebase(PROVISIONED)
    impatient = asyncio.create_task(server.login())
    await asyncio.sleep(0.1)
    impatient.cancel()
    with pytest.raises(WorkspaceError, match=r"does not answer.*DATABRICKS_HOST"):
        await server.login()
    monkeypatch.undo()
    assert await server.login()
    assert lakebase.minted == 1


async def test_a_call_that_hangs_is_left_behind(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while; what it brings in the end is of no use any more."""
    monkeypatch.setattr("threadkeep.lakebase.WAIT_SECONDS", 0.5)
    monkeypatch.setattr("threadkeep.lakebase._ABANDON_SECONDS", 0.2)
    mint, numbers, let_go = Workspace.mint, count(1), threading.Event()

    async def first_hangs(workspace: Workspace, user: str) -> tuple[str, float]:
        if next(numbers) == 1:
            await asyncio.to_thread(let_go.wait, 10)
        return await mint(workspace, user)

    monkeypatch.setattr(Workspace, "mint", first_hangs)
    server = Lakebase(PROVISIONED)
    with pytest.raises(WorkspaceError):
        await server.login()
    second = await server.login()
    let_go.set()
    await asyncio.sleep(0.3)
    assert lakebase.minted == 2
    assert await server.login() == second


def test_a_call_that_hangs_does_not_keep_the_process(lakebase: LakebaseStandIn) -> None:
    """Its thread ends with the process."""
    code = (
        "import asyncio\n"
        "from threadkeep import lakebase\n"
        "lakebase.WAIT_SECONDS = 0.3\n"
        "place = lakebase.LakebasePlace(instance_name='i')\n"
        "asyncio.run(lakebase.Lakebase(place).login())\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"DATABRICKS_HOST": host},
            capture_output=True,
            timeout=20,
            text=True,
        )
    assert "does not answer" in done.stderr
    assert lakebase.token not in done.stderr


async def test_a_refused_token_is_forgotten(lakebase: LakebaseStandIn) -> None:
    """The next login mints another one; the place is still known."""
    server = Lakebase(PROVISIONED)
    assert not server.forget_login(), "there was none"
    stale = await server.login()
    lakebase.expire_tokens()
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await who(server)
    assert server.forget_login()
    assert server.forget_login(), "each connection that it was refused to may try again"
    lakebase.calls.clear()
    assert await who(server) == lakebase.user
    assert (await server.login())["password"] != stale["password"]
    assert len(lakebase.calls) == 1


async def test_a_token_that_is_on_its_way_is_not_forgotten(lakebase: LakebaseStandIn) -> None:
    """It was not the one that was refused."""
    server = Lakebase(PROVISIONED)
    await server.login()
    server.forget_login()
    lakebase.credential_delay = 0.3
    renewing = asyncio.create_task(server.login())
    await asyncio.sleep(0.1)
    assert server.forget_login()
    assert await renewing == await server.login()
    assert lakebase.minted == 2


async def test_after_a_failure_it_is_tried_again(lakebase: LakebaseStandIn) -> None:
    """By the next login."""
    server = Lakebase(PROVISIONED)
    lakebase.refuse("credentials")
    with pytest.raises(WorkspaceError):
        await server.login()
    lakebase.allow()
    assert await server.login()


async def test_tokens_are_not_told(
    lakebase: LakebaseStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by logs of all there is, the SDK's among them, nor by what is seen of the server."""
    caplog.set_level(logging.DEBUG)
    server = Lakebase(PROVISIONED)
    token = (await server.login())["password"]
    seen = caplog.text + repr(server) + repr(vars(server)) + server.description
    assert token[:12] not in seen
    assert lakebase.token not in seen


# What is said when it fails
