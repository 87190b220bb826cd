"""The Lakebase of the tests behaves as the real one does, seen by the real SDK and drivers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import Any

import asyncpg
import openai
import pytest
from databricks.sdk import WorkspaceClient, errors
from databricks.sdk.service.postgres import EndpointType

from tests.lakebase import LakebaseStandIn, lakebase_stand_in
from tests.lakebase.postgres import FLAKY_HOST, HOST, PORT
from tests.lakebase.workspace import BRANCH, ENDPOINT, FLAKY_INSTANCE, INSTANCE


def user(lakebase: LakebaseStandIn) -> WorkspaceClient:
    return WorkspaceClient(host=lakebase.url, token=lakebase.token)


def service_principal(lakebase: LakebaseStandIn) -> WorkspaceClient:
    client_id, client_secret = lakebase.service_principal
    return WorkspaceClient(host=lakebase.url, client_id=client_id, client_secret=client_secret)


def mint(client: WorkspaceClient) -> str:
    token = client.database.generate_database_credential(instance_names=[INSTANCE]).token
    assert token is not None
    return token


async def log_in(client: WorkspaceClient, **changed: Any) -> asyncpg.Connection:
    """As a program would: with what the API says, and a new token unless another is given."""
    instance = client.database.get_database_instance(changed.pop("instance", INSTANCE))
    login = {
        "host": instance.read_write_dns,
        "user": client.current_user.me().user_name,
        "database": "databricks_postgres",
        "ssl": "require",
        "timeout": 10,
    }
    if "password" not in changed:
        changed["password"] = mint(client)
    return await asyncpg.connect(**(login | changed))


async def test_a_token_is_the_password(lakebase: LakebaseStandIn) -> None:
    """Of its user's role, over TLS; the role may make tables in Lakebase's database."""
    connection = await log_in(user(lakebase))
    ssl = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await connection.execute("CREATE TABLE mine (id int)")
    await connection.close()
    assert ssl is True
    owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'mine'"
    assert lakebase.sql(owner) == lakebase.user == "dev@example.com"
    lakebase.empty()
    assert lakebase.sql(owner) == ""


async def test_who_is_not_let_in(lakebase: LakebaseStandIn) -> None:
    """Who has no token, somebody else's or a made-up one, or does not use TLS."""
    client = user(lakebase)
    stolen = mint(service_principal(lakebase))
    for wrong in ({"password": ""}, {"password": stolen}, {"password": "x" * 120}, {"ssl": False}):
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await log_in(client, **wrong)


async def test_tokens_expire_and_connections_do_not(lakebase: LakebaseStandIn) -> None:
    """Several tokens work at once, until their time is over or all are made to expire."""
    client = user(lakebase)
    tokens = [mint(client), mint(client)]
    connections = [await log_in(client, password=token) for token in tokens]
    lakebase.expire_tokens()
    lakebase.token_seconds = 0.2
    tokens.append(mint(client))
    await asyncio.sleep(0.2)
    for token in tokens:
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await log_in(client, password=token)
    for connection in connections:
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
    assert lakebase.minted == 3


async def test_a_service_principal(lakebase: LakebaseStandIn) -> None:
    """It signs in by OAuth, its role is its client id, and nothing was granted to it."""
    client = service_principal(lakebase)
    assert client.current_user.me().user_name == lakebase.service_principal[0]
    connection = await log_in(client, database=lakebase.new_database())
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("CREATE SCHEMA mine")
    await connection.close()
    assert lakebase.calls.count(("POST", "/oidc/v1/token")) == 1


def test_tokens_for_the_api(lakebase: LakebaseStandIn) -> None:
    """They have to be right, and the SDK asks for another one when they run out."""
    lakebase.workspace_token_seconds = 0
    client = service_principal(lakebase)
    with pytest.raises(errors.Unauthenticated):
        client.current_user.me()
    lakebase.workspace_token_seconds = 3600
    client.current_user.me()
    with pytest.raises(errors.Unauthenticated):
        WorkspaceClient(host=lakebase.url, token="wrong").current_user.me()
    wrong = WorkspaceClient(host=lakebase.url, client_id="x", client_secret="y")
    with pytest.raises(ValueError, match="invalid_client"):
        wrong.current_user.me()


def test_instances(lakebase: LakebaseStandIn) -> None:
    """They come on two pages, and one has no name."""
    listed = list(user(lakebase).database.list_database_instances())
    assert [i.name for i in listed] == [INSTANCE, FLAKY_INSTANCE, "other-lakebase", None]
    assert listed[-1].read_write_dns == "instance-3c.database.azuredatabricks.net"
    assert lakebase.calls.count(("GET", "/api/2.0/database/instances")) == 2
    with pytest.raises(errors.NotFound):
        user(lakebase).database.get_database_instance("unknown")
    with pytest.raises(errors.NotFound):
        user(lakebase).database.generate_database_credential(instance_names=["unknown"])


async def test_an_autoscaling_lakebase(lakebase: LakebaseStandIn) -> None:
    """Its endpoints come on pages, the read-only one first, and its tokens open Postgres too."""
    client = user(lakebase)
    kinds = [e.status and e.status.endpoint_type for e in client.postgres.list_endpoints(BRANCH)]
    assert kinds == [
        EndpointType.ENDPOINT_TYPE_READ_ONLY,
        EndpointType.ENDPOINT_TYPE_READ_WRITE,
    ]
    status = client.postgres.get_endpoint(ENDPOINT).status
    assert status is not None
    assert status.hosts is not None
    minted = client.postgres.generate_database_credential(ENDPOINT)
    assert minted.expire_time is not None
    assert 3590 < minted.expire_time.ToSeconds() - time.time() < 3610
    connection = await log_in(client, host=status.hosts.host, password=minted.token)
    await connection.close()
    with pytest.raises(errors.NotFound):
        client.postgres.get_endpoint(f"{BRANCH}/endpoints/unknown")


def test_refused_parts_of_the_api(lakebase: LakebaseStandIn) -> None:
    """Each alone, with the status that is wanted, until they are allowed again."""
    client = user(lakebase)
    calls: dict[Any, Any] = {
        "me": client.current_user.me,
        "instances": lambda: client.database.get_database_instance(INSTANCE),
        "endpoints": lambda: client.postgres.get_endpoint(ENDPOINT),
        "credentials": lambda: mint(client),
    }
    for part in calls:
        lakebase.refuse(part)
        for other, call in calls.items():
            if other == part:
                with pytest.raises(errors.PermissionDenied):
                    call()
            else:
                call()
        lakebase.allow()
    lakebase.refuse("credentials", 500)
    with pytest.raises(errors.InternalError):
        mint(client)


async def test_minting_that_takes_its_time(lakebase: LakebaseStandIn) -> None:
    """Other calls go on meanwhile, and what waits is let go by a reset."""
    client = user(lakebase)
    lakebase.credential_delay = 60
    slow = asyncio.create_task(asyncio.to_thread(mint, client))
    await asyncio.sleep(0.1)
    assert client.current_user.me().user_name == lakebase.user
    assert lakebase.minted == 0
    lakebase.reset()
    await asyncio.wait_for(slow, 5)
    assert lakebase.minted == 1


async def test_postgres_that_sleeps(lakebase: LakebaseStandIn) -> None:
    """Its port refuses, what was open is broken; it is back at once, with what was stored."""
    client = user(lakebase)
    connection = await log_in(client, database=lakebase.new_database())
    await connection.execute("CREATE TABLE kept (id int)")
    database = await connection.fetchval("SELECT current_database()")
    lakebase.stop()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await connection.fetchval("SELECT 1")
    with pytest.raises(ConnectionRefusedError):
        await log_in(client)
    began = time.monotonic()
    lakebase.start()
    assert time.monotonic() - began < 2
    assert lakebase.sql("SELECT count(*) FROM kept", database) == "0"
    lakebase.restart()
    await (await log_in(client)).close()


async def test_postgres_that_does_not_respond(lakebase: LakebaseStandIn) -> None:
    """Who is in waits, and so does who wants in; later they are answered."""
    client = user(lakebase)
    connection = await log_in(client)
    lakebase.pause()
    waiting = asyncio.create_task(connection.fetchval("SELECT 1"))
    with pytest.raises(TimeoutError):
        await log_in(client, timeout=0.3)
    assert not waiting.done()
    lakebase.resume()
    assert await asyncio.wait_for(waiting, 5) == 1
    await connection.close()
    lakebase.pause()
    lakebase.reset()
    await (await log_in(client)).close()


async def test_dropped_connections(lakebase: LakebaseStandIn) -> None:
    """All of them, told as by an administrator; new ones are welcome."""
    client = user(lakebase)
    connection = await log_in(client)
    lakebase.drop_connections()
    with pytest.raises((asyncpg.AdminShutdownError, asyncpg.PostgresConnectionError)):
        await connection.fetchval("SELECT 1")
    await (await log_in(client)).close()


async def test_tls_that_breaks(lakebase: LakebaseStandIn) -> None:
    """Of the flaky instance alone: at login when asked to, and what is open by `cut`."""
    client = user(lakebase)
    connection = await log_in(client, instance=FLAKY_INSTANCE)
    lakebase.cut_tls = True
    assert await connection.fetchval("SELECT 1") == 1
    with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
        await log_in(client, instance=FLAKY_INSTANCE)
    place = f"host={FLAKY_HOST} user={lakebase.user} dbname=databricks_postgres sslmode=require"
    psql = await asyncio.create_subprocess_exec("psql", "-w", place, stderr=subprocess.PIPE)
    assert b"failed: SSL" in (await psql.communicate())[1]
    await (await log_in(client)).close()
    lakebase.cut()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await connection.fetchval("SELECT 1")
    lakebase.reset()
    await (await log_in(client, instance=FLAKY_INSTANCE)).close()


async def test_served_models(lakebase: LakebaseStandIn) -> None:
    """They answer as OpenAI's do, in one piece and streaming, to who has a workspace token."""
    said: Any = [{"role": "user", "content": "I live in Rome. What city do I live in?"}]
    async with openai.AsyncOpenAI(
        base_url=f"{lakebase.url}/serving-endpoints", api_key=lakebase.token, max_retries=0
    ) as client:
        plain = await client.chat.completions.create(model="m", messages=said)
        assert plain.choices[0].message.content == "You live in Rome."
        stream = await client.chat.completions.create(model="m", messages=said, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert len(words) > 2
        assert "".join(words) == "You live in Rome."
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="x").chat.completions.create(model="m", messages=said)


def test_a_process_finds_it_by_its_environment(lakebase: LakebaseStandIn) -> None:
    """As its user, or as the service principal, whose id takes the place of the token."""
    client_id, secret = lakebase.service_principal
    named = {"DATABRICKS_CLIENT_ID": client_id, "DATABRICKS_CLIENT_SECRET": secret}
    program = (
        "from databricks.sdk import WorkspaceClient as W; print(W().current_user.me().user_name)"
    )
    for more, identity in (({}, lakebase.user), (named, client_id)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | lakebase.environment(**more),
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == identity, done.stderr


def test_only_one_runs_at_a_time(lakebase: LakebaseStandIn) -> None:
    """Lakebase's port is fixed: a second one says so, and leaves the first alone."""
    with (
        pytest.raises(RuntimeError, match=rf"{HOST}:{PORT} is taken"),
        lakebase_stand_in(),
    ):
        pass
    assert lakebase.sql("SELECT 1") == "1"
