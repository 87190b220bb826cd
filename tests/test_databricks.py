"""AsyncDatabricksSession keeps what its name promises: the original's arguments and history."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message
from databricks.sdk import WorkspaceClient

from tests.lakebase import LakebaseStandIn
from tests.lakebase.workspace import BRANCH, ENDPOINT, FLAKY_INSTANCE, INSTANCE
from threadkeep.adoption import Adoption, PeerTables
from threadkeep.connect import connect_postgres
from threadkeep.databricks import AsyncDatabricksSession
from threadkeep.errors import (
    DatabasePermissionError,
    DatabaseUnavailableError,
    InvalidInputError,
    NotFoundError,
)
from threadkeep.mend import UNKNOWN_OUTCOME
from threadkeep.postgres import PostgresDatabase
from threadkeep.settings import DatabaseSettings

ROOT = Path(__file__).parent.parent

# As the original makes them (openai-agents, SQLAlchemySession), for its schema and names.
TABLES = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE {schema}.{sessions} (
  session_id varchar PRIMARY KEY,
  created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE {schema}.{messages} (
  id serial PRIMARY KEY,
  session_id varchar NOT NULL REFERENCES {schema}.{sessions} ON DELETE CASCADE,
  message_data text NOT NULL,
  created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP);
GRANT USAGE ON SCHEMA {schema} TO PUBLIC;
GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO PUBLIC;
"""


class Original:
    """What databricks-openai has stored in a Lakebase."""

    def __init__(
        self,
        lakebase: LakebaseStandIn,
        schema: str = "public",
        sessions: str = "agent_sessions",
        messages: str = "agent_messages",
    ) -> None:
        self._lakebase = lakebase
        self._tables = {"schema": schema, "sessions": sessions, "messages": messages}
        lakebase.sql(TABLES.format(**self._tables))

    def add(self, session_id: str, *items: Any, before: str = "0 s") -> None:
        """Stores items as the original does, or as if it had done so a while ago."""
        when = f"CURRENT_TIMESTAMP - interval '{before}'"
        sql = (
            "INSERT INTO {schema}.{sessions} (session_id) "
            f"VALUES ('{session_id}') ON CONFLICT DO NOTHING;"
        )
        for item in items:
            text = item if isinstance(item, str) else json.dumps(item, separators=(",", ":"))
            escaped = text.replace("'", "''").replace("{", "{{").replace("}", "}}")
            sql += (
                "INSERT INTO {schema}.{messages} (session_id, message_data, created_at) "
                f"VALUES ('{session_id}', '{escaped}', {when});"
            )
        self._lakebase.sql(sql.format(**self._tables))


@pytest.fixture
def lakebase(workspace: LakebaseStandIn) -> LakebaseStandIn:
    """The stand-in with an empty `databricks_postgres`, the one database that the class uses."""
    workspace.empty()
    return workspace


def session(session_id: str = "s", **arguments: Any) -> AsyncDatabricksSession:
    """One with a pool of its own, so that tests don't meet."""
    place = {"instance_name": INSTANCE, "use_cached_engine": False}
    return AsyncDatabricksSession(session_id, **(place | arguments))


def user(text: str) -> Any:
    return {"role": "user", "content": text}


async def test_history_of_the_original_is_adopted(lakebase: LakebaseStandIn) -> None:
    """At the first touch, in its order, as it is; the original's stays, and is read once."""
    original = Original(lakebase)
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "naïve {0} \\u0000"}
    original.add("s", user("I live in SF"), call)
    original.add("s", output)
    original.add("s", user("the first"), before="1 day")
    original.add("t", user("other"))
    one = session()
    history: Any = [user("the first"), user("I live in SF"), call, output]
    assert await one.get_items() == history
    original.add("s", user("too late"))
    await one.add_items([user("and on")])
    assert await one.get_items() == [*history, user("and on")]
    assert lakebase.sql("SELECT count(*) FROM agent_messages") == "6"
    assert lakebase.sql("SELECT title, owner FROM threadkeep.sessions") == "the first|"
    await one.close()


@pytest.mark.parametrize("touch", ["add", "pop", "clear", "limit"])
async def test_any_first_touch_adopts(lakebase: LakebaseStandIn, touch: str) -> None:
    """Whatever a program does first, it does to the whole history."""
    Original(lakebase).add("s", user("1"), user("2"))
    one = session()
    if touch == "add":
        await one.add_items([user("3")])
        assert await one.get_items() == [user("1"), user("2"), user("3")]
    elif touch == "pop":
        assert await one.pop_item() == user("2")
    elif touch == "clear":
        await one.clear_session()
        assert await one.get_items() == []
    else:
        assert await one.get_items(limit=1) == [user("2")]
    again = session()
    assert len(await again.get_items()) == {"add": 3, "pop": 1, "clear": 0, "limit": 2}[touch]
    await one.close()
    await again.close()


async def test_what_is_damaged_is_adopted_as_it_is(lakebase: LakebaseStandIn) -> None:
    """It hides nothing else, and is not lost."""
    Original(lakebase).add("s", "{broken", user("1"))
    one = session()
    assert await one.get_items() == [user("1")]
    assert lakebase.sql("SELECT data FROM threadkeep.items WHERE seq = 1") == "{broken"
    await one.close()


async def test_half_turns_of_the_original_reach_no_model(lakebase: LakebaseStandIn) -> None:
    """It stored turns of one session side by side, and left calls open where it died."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "42"}
    history: Any = [user("1"), call, user("2"), output, call | {"call_id": "d"}]
    Original(lakebase).add("s", *history)
    one = session()
    model = ScriptedModel([[assistant_message("ok")]])
    await Runner.run(Agent(name="a", model=model), "3", session=one)
    assert model.last_call is not None
    unknown = output | {"call_id": "d", "output": UNKNOWN_OUTCOME}
    seen = [user("1"), call, output, user("2"), history[4], unknown, user("3")]
    assert model.last_call.input == seen
    assert (await one.get_items())[:5] == history
    await one.close()


@pytest.mark.parametrize("shared", [True, False])
async def test_many_read_at_once_first(lakebase: LakebaseStandIn, shared: bool) -> None:
    """Whoever adopts it, nobody goes on without it."""
    original = Original(lakebase)
    timeout = 8 if shared else 7  # a pool for each case: the database is made anew

    def session_of(session_id: str) -> AsyncDatabricksSession:
        return AsyncDatabricksSession(session_id, instance_name=INSTANCE, pool_timeout=timeout)

    warm = session_of("warm")
    for number in range(5):
        original.add(f"s{number}", user("1"))
        sessions = [session_of(f"s{number}") for _ in range(8)]
        readers = sessions[:1] * 8 if shared else sessions
        await warm.get_items()
        read = await asyncio.gather(*(reader.get_items() for reader in readers))
        assert read == [[user("1")]] * 8


@pytest.mark.parametrize("shared", [True, False])
async def test_a_look_that_is_out_of_date(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Whoever finds nothing, while somebody else adopts it, looks again."""
    Original(lakebase).add("s", user("1"))
    call, late = PostgresDatabase.call, asyncio.Event()
    looks = 0

    async def call_late(self: PostgresDatabase, statement: str, **parameters: Any) -> list[Any]:
        nonlocal looks
        rows = await call(self, statement, **parameters)
        if statement == "read_items":
            looks += 1
            if looks == 1:
                await late.wait()
        return rows

    monkeypatch.setattr(PostgresDatabase, "call", call_late)
    place: dict[str, Any] = {"instance_name": INSTANCE, "pool_timeout": 6 if shared else 5}
    one, adopter = AsyncDatabricksSession("s", **place), session()
    first = asyncio.create_task(one.get_items())
    while not looks:  # noqa: ASYNC110 - it is the database that says so
        await asyncio.sleep(0.001)
    assert await adopter.get_items() == [user("1")]
    other = one if shared else AsyncDatabricksSession("s", **place)
    assert await other.get_items() == [user("1")]
    late.set()
    assert await first == [user("1")]
    await adopter.close()


async def test_many_adopt_at_once(lakebase: LakebaseStandIn) -> None:
    """It is done once."""
    Original(lakebase).add("s", user("1"))
    ones = [session() for _ in range(5)]
    await asyncio.gather(*(one.add_items([user("more")]) for one in ones))
    assert await ones[0].get_items() == [user("1")] + [user("more")] * 5
    for one in ones:
        await one.close()


@pytest.mark.parametrize("schema", ["memory", "public"])
async def test_where_the_history_lies(lakebase: LakebaseStandIn, schema: str) -> None:
    """In the schema and the tables that are named; the original looks into public too."""
    Original(lakebase, schema, "conversations", "entries").add("s", user("1"))
    one = session(
        schema="memory", sessions_table="conversations", messages_table="entries", pool_size=2
    )
    assert await one.get_items() == [user("1")]
    other = session(schema="memory")
    assert await other.get_items() == [user("1")]  # adopted already
    for each in (one, other):
        await each.close()


async def test_history_that_may_not_be_read_is_not_passed_over(lakebase: LakebaseStandIn) -> None:
    """An empty conversation in its place would be a loss."""
    Original(lakebase).add("s", user("1"))
    lakebase.sql("REVOKE ALL ON agent_sessions, agent_messages FROM PUBLIC")
    one = session()
    with pytest.raises(DatabasePermissionError, match="GRANT SELECT ON"):
        await one.get_items()
    await one.close()


@pytest.mark.parametrize(
    "place",
    [
        {"instance_name": INSTANCE},
        {"autoscaling_endpoint": ENDPOINT},
        {"project": "my-project", "branch": "production"},
        {"branch": BRANCH},
    ],
)
async def test_every_way_to_name_it(lakebase: LakebaseStandIn, place: dict[str, str]) -> None:
    """Provisioned and autoscaling; with the workspace of the client that is given."""
    client = WorkspaceClient(host=lakebase.url, token=lakebase.token)
    one = AsyncDatabricksSession("s", **place, workspace_client=client, use_cached_engine=False)
    agent = Agent(name="a", model=ScriptedModel([[assistant_message("ok")]]))
    await Runner.run(agent, "hello", session=one)
    assert len(await one.get_items()) == 2
    await one.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "LAKEBASE_INSTANCE_NAME environment variable is required"),
        ({"instance_name": None}, "LAKEBASE_INSTANCE_NAME environment variable is required"),
        ({"instance_name": "i", "branch": BRANCH}, "Give one of the two"),
        ({"autoscaling_endpoint": ENDPOINT, "project": "p"}, "leave project and branch out"),
        ({"project": "p"}, "belong together"),
        ({"branch": "b"}, "belong together"),
        ({"project": "p", "branch": BRANCH}, "leave project out"),
        ({"instance_name": "i", "echo": True}, "takes no echo"),
        ({"instance_name": "i", "session_id": ""}, "session_id"),
    ],
)
def test_arguments_that_can_not_be_used(arguments: dict[str, Any], words: str) -> None:
    """Are ValueErrors at once, as the original's are, and name what to do."""
    with pytest.raises(ValueError, match=words) as caught:
        AsyncDatabricksSession(**({"session_id": "s"} | arguments))
    assert isinstance(caught.value, InvalidInputError)


async def test_sessions_of_one_configuration_share_a_pool(lakebase: LakebaseStandIn) -> None:
    """Closing one of them leaves it to the others; a token was minted once."""
    for number in range(5):
        one = AsyncDatabricksSession(f"s{number}", instance_name=INSTANCE, pool_timeout=9)
        await one.add_items([user("1")])
        await one.close()
    assert lakebase.minted == 1


async def test_without_making_tables(lakebase: LakebaseStandIn) -> None:
    """create_tables=False changes nothing, and says what to run; with tables it works."""
    one = session(create_tables=False)
    with pytest.raises(DatabaseUnavailableError, match="threadkeep migrate"):
        await one.get_items()
    maker = session()
    await maker.add_items([user("1")])
    assert await one.get_items() == [user("1")]
    for each in (one, maker):
        await each.close()


async def test_a_connection_that_breaks_under_tls(lakebase: LakebaseStandIn) -> None:
    """Is the documented error, with the documented remedy; the next call works."""
    one = session(instance_name=FLAKY_INSTANCE, pool_timeout=0.5)
    lakebase.cut_tls = True
    with pytest.raises(
        DatabaseUnavailableError,
        match=f"SSL connection closed unexpectedly.*get-database-instance {FLAKY_INSTANCE}",
    ):
        await one.get_items()
    lakebase.cut_tls = False
    await one.add_items([user("1")])
    lakebase.cut()
    assert await one.get_items() == [user("1")]
    await one.close()


async def test_renewing_a_login_holds_up_nobody(lakebase: LakebaseStandIn) -> None:
    """The old token opens connections while a new one takes a second."""
    one = session(pool_recycle=0.1, token_cache_duration_seconds=0)
    await one.add_items([user("1")])
    lakebase.credential_delay = 1
    pids, slowest = set(), 0.0
    until = time.monotonic() + 3
    while time.monotonic() < until:
        began = time.monotonic()
        await one.get_items()
        slowest = max(slowest, time.monotonic() - began)
        pids.add(lakebase.sql("SELECT max(pid) FROM pg_stat_activity WHERE usename LIKE 'dev%'"))
    assert len(pids) > 2
    assert lakebase.minted > 2
    assert slowest < 0.9
    await one.close()


async def test_all_history_is_imported(lakebase: LakebaseStandIn) -> None:
    """Again and again; what went on there meanwhile is told, and left alone."""
    original = Original(lakebase)
    for number in range(3):
        original.add(f"s{number}", user(f"I am {number}"))
    original.add("empty")
    original.add("tab\there", user("of no use"))
    database = connect_postgres(DatabaseSettings.read({"LAKEBASE_INSTANCE_NAME": INSTANCE}))
    adoption = Adoption(database, PeerTables())
    assert await adoption.count() == 5

    async def outcomes() -> dict[str, str]:
        return {each.session_id: each.outcome async for each in adoption.adopt_all()}

    adopted = {f"s{number}": "adopted" for number in range(3)}
    assert await outcomes() == adopted | {"empty": "empty", "tab\there": "unusable"}
    one = session("s0")
    await one.add_items([user("gone on here")])
    original.add("s1", user("gone on there"))
    original.add("s3", user("new"))
    now = {"s0": "same", "s1": "different", "s2": "same", "s3": "adopted"}
    assert await outcomes() == now | {"empty": "empty", "tab\there": "unusable"}
    assert await one.get_items() == [user("I am 0"), user("gone on here")]
    await one.close()
    with pytest.raises(NotFoundError, match="--schema"):
        await Adoption(database, PeerTables("nowhere", "a", "b")).count()
    with pytest.raises(NotFoundError, match="--schema"):
        await anext(Adoption(database, PeerTables("nowhere", "a", "b")).adopt_all())
    await database.close()


DOCUMENTED = """
import asyncio, os
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message
from agent_server.utils import resolve_lakebase_instance_name
from threadkeep.databricks import AsyncDatabricksSession

_LAKEBASE_INSTANCE_NAME_RAW = os.environ.get("LAKEBASE_INSTANCE_NAME")
LAKEBASE_INSTANCE_NAME = resolve_lakebase_instance_name(_LAKEBASE_INSTANCE_NAME_RAW)


async def main():
    agent = Agent(name="a", model=ScriptedModel([[assistant_message("ok")]]))
    messages = [{"role": "user", "content": "Hello, I live in SF!"}]
    session = AsyncDatabricksSession(
        session_id="user-123",
        instance_name=LAKEBASE_INSTANCE_NAME,
    )

    result = await Runner.run(agent, messages, session=session)
    print(result.final_output, len(await session.get_items()))


asyncio.run(main())
"""


def test_the_documented_code(lakebase: LakebaseStandIn) -> None:
    """Runs as it stands, its import line changed, in one process after the other."""
    environment = lakebase.environment(OPENAI_AGENTS_DISABLE_TRACING="1")
    for count in (2, 4):
        done = subprocess.run(
            [sys.executable, "-c", DOCUMENTED],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.stderr) == (f"ok {count}\n", "")
