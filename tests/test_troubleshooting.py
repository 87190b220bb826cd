"""The troubleshooting table of the template: each row as a user meets it, and out of it again.

And `threadkeep doctor`, which looks for itself: each kind of failure, in this process.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Agent

from tests.backends import Lakebase
from tests.client import ask, client_of, post, session_of, text_of_response
from tests.conftest import RunningApp, environment
from tests.lakebase import LakebaseStandIn
from tests.lakebase.workspace import FLAKY_INSTANCE, INSTANCE
from tests.test_commands import (
    APP,
    COUNT_ALL,
    END_OF_AGENT,
    NOTHING_LEFT,
    PASSWORD,
    Folder,
    app_settings,
    assert_tells_nothing,
    made,
    settings_of,
)
from tests.test_start import started
from threadkeep.databricks import AsyncDatabricksSession
from threadkeep.doctor import Finding, examine
from threadkeep.errors import DatabaseUnavailableError, InvalidInputError
from threadkeep.migrate import load_migrations
from threadkeep.postgres import PostgresDatabase

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DOCUMENT = (ROOT / "docs" / "troubleshoot.md").read_text()
RESOURCE = r"`database` resource to databricks\.yml with CAN_CONNECT_AND_CREATE"
RUNNING = "running: databricks database get-database-instance"
HOSTNAME = "nope.database.cloud.databricks.com"


@pytest.fixture
def place(workspace: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch) -> Lakebase:
    """An empty database on the stand-in; where nobody answers, a short wait."""
    waits: Any = PostgresDatabase.__init__.__kwdefaults__
    monkeypatch.setitem(waits, "wait_seconds", 2.0)
    return Lakebase(workspace, workspace.new_database(bare=True))


def as_app(place: Lakebase, **more: str) -> dict[str, str]:
    """The environment of a process that is the app, with a model of the workspace."""
    process = {"PATH": os.environ["PATH"], "AGENT_MODEL": "databricks/x"}
    return process | app_settings(place) | more


def said_by(*command: str, env: dict[str, str]) -> tuple[int, str]:
    """Exit code, and all that a command says."""
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def start_fails(env: dict[str, str]) -> str:
    """The one line of a `start-app` that can't start."""
    code, said = said_by("start-app", "--port", "0", env=env)
    assert (code, said.count("\n")) == (2, 1), said
    return said


def row(seen: str) -> str:
    """The row of our own table that has what was seen."""
    [found] = [line for line in DOCUMENT.splitlines() if line.startswith(f"| {seen}")]
    return found


def test_lakebase_instance_name_is_required(place: Lakebase) -> None:
    """In an app, where a file would not last; by start, by doctor, and in code."""
    message = "LAKEBASE_INSTANCE_NAME environment variable is required"
    env = as_app(place, LAKEBASE_INSTANCE_NAME="", DATABRICKS_APP_NAME="threadkeep")
    line = start_fails(env)
    assert line.startswith(f"start-app: {message}.")
    assert re.search(r"databricks\.yml.*app\.yaml .*`valueFrom: database`", line)
    code, said = said_by("threadkeep", "doctor", env=env)
    assert (code, said) == (1, line.replace("start-app: ", "FAIL  settings   "))
    with pytest.raises(InvalidInputError, match=message):
        AsyncDatabricksSession("s", instance_name=None)
    assert "Set it in `.env`" in row(f"`{message}`")


def test_ssl_connection_closed_unexpectedly(place: Lakebase) -> None:
    """A request is refused, with the command that shows whether the instance runs; the next one
    connects anew, and nothing is lost."""
    message = "SSL connection closed unexpectedly"
    settings = environment(place, LAKEBASE_INSTANCE_NAME=FLAKY_INSTANCE)
    app = RunningApp(settings)
    try:
        with client_of(app.url) as client:
            session_id = session_of(ask(client, "Hello, I live in SF!"))
            place.stand_in.cut_tls = True
            place.stand_in.cut()
            reply = post(client, "What city did I say I live in?", session_id)
            assert reply.status_code == 503
            error = reply.json()["error"]
            assert error["code"] == "database_unavailable"
            assert error["message"].startswith(message)
            assert error["message"].endswith(f"{RUNNING} {FLAKY_INSTANCE}")
            place.stand_in.cut_tls = False
            again = ask(client, "What city did I say I live in?", session_id)
            assert text_of_response(again) == "You live in SF."
    finally:
        app.stop()
    assert "`databricks database get-database-instance <name>`" in row(f"`{message}`")


def test_the_agent_does_not_remember(place: Lakebase) -> None:
    """Without the session's id, or with another; it does with the one that the reply names."""
    app = RunningApp(environment(place))
    question = "What city did I say I live in?"
    try:
        with client_of(app.url) as client:
            session_id = session_of(ask(client, "Hello, I live in SF!"))
            for other in (None, "another"):
                reply = ask(client, question, other)
                assert text_of_response(reply) == "You did not say."
                assert session_of(reply) != session_id
            app.restart()
        with client_of(app.url) as client:
            assert text_of_response(ask(client, question, session_id)) == "You live in SF."
    finally:
        app.stop()
    assert "`custom_inputs.session_id`" in row("the agent does not remember")


async def test_unable_to_resolve_hostname(place: Lakebase) -> None:
    """Of no instance: it is named, with the way to find the right one."""
    message = f"Unable to resolve hostname '{HOSTNAME}'"
    remedy = "Verify the hostname, or set LAKEBASE_INSTANCE_NAME to the name of the instance."
    env = as_app(place, LAKEBASE_INSTANCE_NAME=HOSTNAME)
    line = start_fails(env)
    assert line.startswith(f"start-app: {message}")
    assert line.endswith(f"{remedy}\n")
    session = AsyncDatabricksSession("s", instance_name=HOSTNAME, use_cached_engine=False)
    with pytest.raises(DatabaseUnavailableError, match=f"^{message}.*{remedy}"):
        await session.get_items()
    await session.close()
    assert "LAKEBASE_INSTANCE_NAME" in row("`Unable to resolve hostname`")


async def test_permission_denied(place: Lakebase) -> None:
    """An app on a schema of somebody else's is told the grants; they are all that it lacks."""
    await made(place)
    env = as_app(place)
    line = start_fails(env)
    assert re.search(rf"^start-app: Permission denied.*{RESOURCE}", line)
    code, said = said_by("threadkeep", "doctor", "--no-turn", env=env)
    assert code == 1
    assert "FAIL  grants     Permission denied" in said
    assert "CAN_CONNECT_AND_CREATE" in said
    grants = re.findall(r"GRANT [^;]*;", line)
    assert [grant.split(" ON ")[1].split(" TO ")[0] for grant in grants] == [
        'SCHEMA "threadkeep"',
        'ALL TABLES IN SCHEMA "threadkeep"',
    ]
    assert grants == re.findall(r"GRANT [^;]*;", said)
    owner = place.stand_in.user
    place.stand_in.sql(f'SET ROLE "{owner}"; {" ".join(grants)}', place.name)
    with started(env=env) as (url, banner, _), client_of(url) as client:
        assert f"Lakebase {INSTANCE}" in banner
        session_id = session_of(ask(client, "Hello, I live in SF!"))
        assert "SF" in text_of_response(ask(client, "What city do I live in?", session_id))
    assert "CAN_CONNECT_AND_CREATE" in row("`Permission denied`")


# What `doctor` says when something is not well

AS_APP = {
    "DATABRICKS_TOKEN": "",
    "DATABRICKS_CLIENT_ID": APP,
    "DATABRICKS_CLIENT_SECRET": LakebaseStandIn.service_principal[1],
}
TABLES = 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "threadkeep" TO'

Arrange = Callable[[LakebaseStandIn, str], object]
"""What is done before, on the stand-in and in the database of a name."""


def refuses(part: Any) -> Arrange:
    return lambda stand_in, _: stand_in.refuse(part)


def runs(sql: str) -> Arrange:
    return lambda stand_in, database: stand_in.sql(sql, database)


def cuts_tls(stand_in: LakebaseStandIn, _: str) -> None:
    stand_in.cut_tls = True


@pytest.fixture
def seen(place: Lakebase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lakebase:
    """That database, and an environment that leads there."""
    for name in os.environ:
        if name.startswith(("DATABRICKS_", "LAKEBASE_", "PG", "OPENAI_", "DATABASE_URL", "HOST")):
            monkeypatch.delenv(name)
    settings = settings_of(place) | {"AGENT_MODEL": "databricks/x", "HOME": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return place


async def findings(*, with_turn: bool) -> dict[str, Finding]:
    found = {each.name: each async for each in examine(os.environ, with_turn=with_turn)}
    assert_tells_nothing(str(found))
    await asyncio.sleep(0.05)  # until TLS has said goodbye
    return found


@pytest.mark.parametrize(
    ("settings", "arrange", "failed", "words", "skipped"),
    [
        pytest.param({"PORT": "http"}, None, "settings", "^PORT: ", None, id="setting"),
        pytest.param(
            {"LAKEBASE_INSTANCE_NAME": "", "DATABRICKS_APP_NAME": "app"},
            None,
            "settings",
            "^LAKEBASE_INSTANCE_NAME environment variable is required.*`database` resource",
            None,
            id="no database in an app",
        ),
        pytest.param(
            {"HOST": "0.0.0.0"}, None, "settings", "THREADKEEP_TRUST_PROXY", None, id="exposed"
        ),
        pytest.param(
            {"LAKEBASE_INSTANCE_NAME": "", "DATABASE_URL": "sqlite:////no/folder/app.db"},
            None,
            "database",
            "Check that its folder exists",
            "",
            id="no folder",
        ),
        pytest.param(
            {"DATABRICKS_TOKEN": f"wrong {PASSWORD}"},
            None,
            "workspace",
            "`databricks auth login`",
            "instance token database",
            id="login",
        ),
        pytest.param(
            {"LAKEBASE_INSTANCE_NAME": "nope"},
            None,
            "instance",
            "no Lakebase instance 'nope'.*`databricks database list-database-instances`",
            "token database",
            id="instance",
        ),
        pytest.param(
            {}, refuses("credentials"), "token", f"^Permission.*{RESOURCE}", "database", id="token"
        ),
        pytest.param(
            {"LAKEBASE_INSTANCE_NAME": FLAKY_INSTANCE},
            cuts_tls,
            "database",
            f"^SSL connection closed unexpectedly.*{RUNNING} {FLAKY_INSTANCE}",
            "",
            id="TLS",
        ),
        pytest.param(
            {},
            lambda stand_in, _: stand_in.stop(),
            "database",
            f"can't be reached.*{RUNNING} {INSTANCE}",
            "",
            id="server",
        ),
        pytest.param(
            {"PGUSER": "nobody@example.com"},
            None,
            "database",
            f"^Permission denied.*no role.*{RESOURCE}.*databricks_create_role",
            "",
            id="role",
        ),
        pytest.param({"PGDATABASE": "nope"}, None, "database", "Mend PGDATABASE", "", id="name"),
        pytest.param(
            AS_APP,
            runs("DROP SCHEMA threadkeep CASCADE"),
            "grants",
            f'^Permission.*{RESOURCE}.*owner run:\nGRANT CREATE ON DATABASE .* TO "{APP}";$',
            "schema",
            id="no schema",
        ),
        pytest.param(
            AS_APP,
            runs(f'GRANT USAGE ON SCHEMA threadkeep TO "{APP}"'),
            "grants",
            f'^Permission denied.*{RESOURCE}.*owner run:\n{TABLES} "{APP}";$',
            "schema",
            id="grants",
        ),
        pytest.param(
            AS_APP,
            runs(
                f'GRANT USAGE ON SCHEMA threadkeep TO "{APP}"; {TABLES} "{APP}";'
                "DELETE FROM threadkeep.schema_migrations"
            ),
            "schema",
            "owner run: threadkeep migrate$",
            "",
            id="schema",
        ),
        pytest.param(
            {},
            runs("INSERT INTO threadkeep.schema_migrations VALUES (9999, 'x', '99.0')"),
            "schema",
            "made by a newer Threadkeep.*uv sync",
            "",
            id="newer",
        ),
    ],
)
async def test_each_failure_has_its_line(
    seen: Lakebase,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    arrange: Arrange | None,
    failed: str,
    words: str,
    skipped: str | None,
) -> None:
    """And its remedy; what rests on it is skipped, what does not is looked at all the same."""
    if arrange:
        await made(seen)
        arrange(seen.stand_in, seen.name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = await findings(with_turn=False)
    outcomes = {name: finding.outcome for name, finding in found.items()}
    assert [name for name in outcomes if outcomes[name] == "failed"] == [failed]
    assert re.search(words, found[failed].message), found[failed].message
    assert [name for name in outcomes if outcomes[name] == "skipped"] == (skipped or "").split()
    assert list(outcomes)[-1] == ("settings" if skipped is None else "agent")


async def test_a_schema_that_is_not_up_to_date(seen: Lakebase) -> None:
    """Is no failure for who may change it, and is not changed to look."""
    for _ in range(2):
        found = await findings(with_turn=False)
        assert found["schema"].outcome == "ok"
        lacking = ", ".join(migration.full_name for migration in load_migrations("postgres"))
        assert f"({lacking}); start-app does that" in found["schema"].message


async def test_a_model_that_fails(seen: Lakebase) -> None:
    """The turn rests on it."""
    seen.stand_in.refuse("chat")
    found = await findings(with_turn=True)
    assert found["model"].outcome == "failed"
    assert "CAN_QUERY" in found["model"].message
    assert found["turn"].outcome == "skipped"


async def test_a_turn_that_fails(seen: Lakebase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves no session; the log says where the agent failed."""

    def instructions(_: Any, __: Any) -> str:
        raise ValueError(PASSWORD)

    told_by(instructions, monkeypatch)
    found = await findings(with_turn=True)
    assert [name for name in found if found[name].outcome != "ok"] == ["turn"]
    assert found["turn"].message.startswith("The agent failed. The server's log says where.")
    assert seen.stand_in.sql(COUNT_ALL, seen.name).startswith("0|0|")


async def test_a_turn_that_is_left(seen: Lakebase, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C: its session is deleted all the same."""
    begun = asyncio.Event()

    async def instructions(_: Any, __: Any) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    told_by(instructions, monkeypatch)
    looking = asyncio.create_task(findings(with_turn=True))
    await begun.wait()
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert seen.stand_in.sql(COUNT_ALL, seen.name) == NOTHING_LEFT


def told_by(instructions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the agent of the app instructions that a function makes."""

    def create_agent(_: Any) -> Agent[Any]:
        return Agent("Assistant", instructions=instructions)

    monkeypatch.setattr("agent_server.start_server.create_agent", create_agent)


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("import nowhere_to_be_found", 0, "ModuleNotFoundError of nowhere_to_be_found."),
        ("return return", 0, "SyntaxError."),
        ("raise SystemExit(2)", 0, "SystemExit."),
        (f"def create_agent(_):\n    raise KeyError('{PASSWORD}')", 1, "KeyError."),
        ("def create_agent(_):\n    return 1", None, "create_agent must return an Agent, not int."),
        ("create_agent = None", None, "agent_server: TypeError."),
    ],
)
async def test_code_of_the_app_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, line: int | None, words: str
) -> None:
    """Is told by its place; not by its words, which may hold anything."""
    app = tmp_path / "app"
    Folder(app).add_agent(code)
    monkeypatch.chdir(app)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if is_of_the_app(name)}
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    monkeypatch.setenv("AGENT_MODEL", "x")
    try:
        found = await findings(with_turn=False)
    finally:
        for name in filter(is_of_the_app, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(kept)
    assert found["agent"].outcome == "failed"
    if line is not None:
        words = f"agent_server/agent.py, line {END_OF_AGENT + line}: {words}"
    assert found["agent"].message.startswith(words)


def is_of_the_app(module: str) -> bool:
    return module.partition(".")[0] == "agent_server"
