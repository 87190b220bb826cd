"""The `threadkeep` command, with settings of its own; as a process where that matters."""

from __future__ import annotations

import logging
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result

from tests.backends import Backend, Lakebase, Postgres, SQLite, new_postgres
from tests.fake_openai import fake_openai
from tests.lakebase import LakebaseStandIn
from tests.test_databricks import Original, user
from threadkeep.commands import main
from threadkeep.connect import connect, connect_postgres
from threadkeep.migrate import load_migrations
from threadkeep.session import Session
from threadkeep.settings import DatabaseSettings

COMMAND = Path(sys.executable).parent / "threadkeep"
PASSWORD = "s3cret"
APP, APP_SECRET = LakebaseStandIn.service_principal
SECRETS = [LakebaseStandIn.token, APP_SECRET, PASSWORD, "eyJ"]
"""The last is what the tokens of the stand-in begin with."""

NOTHING_LEFT = "0|0|0|0"
COUNT_ALL = "SELECT " + ", ".join(
    f"(SELECT count(*) FROM threadkeep.{table})"
    for table in ("sessions", "items", "runs", "run_events")
)

AGENT = Path(__file__).parent.parent / "agent_server"
END_OF_AGENT = len((AGENT / "agent.py").read_text().splitlines()) + 1

Done = tuple[int, str, str]
"""Exit code, and what was said on stdout and stderr."""


class Folder:
    """Where somebody works: a new folder with an `.env`, and nothing else of this machine."""

    def __init__(self, path: Path, **settings: str) -> None:
        path.mkdir()
        self._path = path
        self.set(**settings)

    def set(self, **settings: str) -> None:
        """Writes them to `.env`, in the place of what is there."""
        lines = [f"{name}='{value}'\n" for name, value in settings.items()]
        (self._path / ".env").write_text("".join(lines))

    def start(self, *command: str | Path, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self._path,
            env={"PATH": os.environ["PATH"], "HOME": str(self._path)},
            text=True,
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more),
        )

    def run(self, *arguments: str) -> Done:
        """Runs `threadkeep`, and sees that it tells no secrets. In this process, as starting
        another one takes most of its time; but not beside an app of its own."""
        if (self._path / "agent_server").exists():
            return finish(self.start(COMMAND, *arguments))
        with ThreadPoolExecutor(1) as elsewhere:  # a loop may be running here
            done = elsewhere.submit(self._invoke, arguments).result()
        assert_tells_nothing(done.output)
        return done.exit_code, done.stdout, done.stderr

    def _invoke(self, arguments: Sequence[str]) -> Result:
        environment, folder = dict(os.environ), Path.cwd()
        loggers = [logging.getLogger(name) for name in (None, "threadkeep")]
        handlers = [list(logger.handlers) for logger in loggers]
        os.environ.clear()
        os.environ.update(PATH=environment["PATH"], HOME=str(self._path))
        os.chdir(self._path)
        try:
            return CliRunner().invoke(main, arguments, prog_name="threadkeep")
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            for logger, before in zip(loggers, handlers, strict=True):
                logger.handlers[:] = before

    def run_each(self, *commands: str) -> list[Done]:
        """Runs one after the other."""
        return [self.run(*command.split()) for command in commands]

    def python(self, code: str) -> subprocess.Popen[str]:
        """Starts code that has the commands as `commands`."""
        return self.start(sys.executable, "-c", f"from threadkeep import commands\n{code}")

    def add_agent(self, code: str) -> None:
        """Makes it the folder of an app."""
        package = self._path / "agent_server"
        package.mkdir()
        for file in AGENT.glob("*.py"):
            (package / file.name).write_text(file.read_text())
        with (package / "agent.py").open("a") as agent:
            agent.write(code)


def finish(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=60)
    assert_tells_nothing(out + err)
    return process.returncode, out, err


def assert_tells_nothing(told: str) -> None:
    """Of how the code is, and of secrets."""
    assert "Traceback" not in told
    assert not [secret for secret in SECRETS if secret in told], told


def settings_of(backend: Backend) -> dict[str, str]:
    """The settings that lead to a database from nowhere, by a login that is secret."""
    if isinstance(backend, Lakebase):
        return backend.stand_in.environment() | backend.variables
    if isinstance(backend, Postgres):
        return {"DATABASE_URL": url_of(backend, "postgres")}
    return backend.variables


def url_of(database: Postgres, role: str) -> str:
    return database.url.replace("postgres@", f"{quote(role)}:{PASSWORD}@", 1)


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with fake_openai() as url:
        yield url


@pytest.fixture
def place(workspace: LakebaseStandIn) -> Lakebase:
    """An empty database on the stand-in."""
    return Lakebase(workspace, workspace.new_database(bare=True))


@pytest.fixture
def owner(tmp_path: Path, place: Lakebase) -> Folder:
    """Of the user, who owns that database."""
    return Folder(tmp_path / "owner", **settings_of(place))


@pytest.fixture
def app(tmp_path: Path, place: Lakebase) -> Folder:
    """Of the service principal of an app, with a model of the workspace."""
    return Folder(tmp_path / "app", **app_settings(place), AGENT_MODEL="databricks/x")


def app_settings(place: Lakebase) -> dict[str, str]:
    login = {"DATABRICKS_CLIENT_ID": APP, "DATABRICKS_CLIENT_SECRET": APP_SECRET}
    return place.stand_in.environment(**login) | place.variables


async def made(place: Backend) -> None:
    """Brings the schema up to date, as who owns the database."""
    database = connect(DatabaseSettings.read(place.variables))
    await database.open()
    await database.close()


async def test_migrate(tmp_path: Path, bare_backend: Backend) -> None:
    """Tells what is missing without making anything; makes it; then it is up to date."""
    backend = bare_backend
    folder = Folder(tmp_path / "folder", **settings_of(backend))
    database = connect(DatabaseSettings.read(backend.variables))
    missing = await database.pending()
    said = "".join(f"Missing: {name}\n" for name in missing)
    assert folder.run("migrate", "--check") == (1, said, "")
    assert await database.pending() == missing
    if isinstance(backend, SQLite):
        assert not backend.file.exists()
    said = "".join(f"Applied: {name}\n" for name in missing)
    assert folder.run("migrate") == (0, said, "")
    assert await database.pending() == []
    if isinstance(backend, SQLite):
        said = f"Up to date: {backend.file} (SQLite)\n"
        assert folder.run("migrate", "--check") == (0, said, "")
    await database.close()


async def test_migrate_without_rights(tmp_path: Path, postgres: str) -> None:
    """Says what is missing, or which grants would let the role see it."""
    place = new_postgres(postgres, bare=True)
    role = f"app of {place.name}"
    place.execute(f'CREATE ROLE "{role}" LOGIN')
    folder = Folder(tmp_path / "folder", DATABASE_URL=url_of(place, role))
    look, make = folder.run_each("migrate --check", "migrate")
    lacking = "".join(f"Missing: {step.full_name}\n" for step in load_migrations("postgres"))
    assert look == (1, lacking, "")
    assert make[:2] == (2, "")
    assert f'GRANT CREATE ON DATABASE "{place.name}" TO "{role}"' in make[2]
    await made(place)
    code, out, err = folder.run("migrate", "--check")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f'GRANT USAGE ON SCHEMA "threadkeep" TO "{role}"' in err


async def test_grant_is_sql_for_the_owner(place: Lakebase, owner: Folder, app: Folder) -> None:
    """It lets the app in, with all that `doctor` looks at; of whose turn nothing is left."""
    await made(place)
    looking = app.start(COMMAND, "preflight", "--no-turn")
    code, sql, err = owner.run("grant", APP)
    assert (code, err) == (0, "")
    code, said, err = finish(looking)
    assert (code, err) == (1, "")
    assert "FAIL  grants " in said
    assert "\nskip  schema " in said
    place.stand_in.sql(f'SET ROLE "{place.stand_in.user}"; {sql}', place.name)
    code, said, err = app.run("doctor")
    assert (code, err) == (0, ""), said
    names = "settings workspace instance token database grants schema agent model turn"
    assert [line.split()[:2] for line in said.splitlines()] == [["ok", n] for n in names.split()]
    assert {line[:17].rstrip()[6:] for line in said.splitlines()} == set(names.split())
    assert place.stand_in.sql(COUNT_ALL, place.name) == NOTHING_LEFT


async def test_grant_runs(place: Lakebase, owner: Folder, app: Folder) -> None:
    """As the owner, on a schema that it makes. Who may not is told, and so is a name mistyped."""
    [granted, mistyped] = owner.run_each(f"grant {APP} --run", "grant nobody --run")
    assert granted[0] == 0, granted
    assert granted[1].endswith(f"Done: {APP} may use the schema threadkeep.\n")
    assert mistyped[0] == 2
    assert mistyped[2].startswith("threadkeep: There is no role nobody in the database.")
    assert mistyped[2].count("\n") == 1
    place.execute('CREATE ROLE "third" LOGIN')
    try:
        code, out, err = app.run("grant", "third", "--run")
    finally:
        place.execute('DROP ROLE "third"')
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{APP} does not own the schema threadkeep and all its tables. Let their owner" in err


async def test_names_that_need_quotes(tmp_path: Path, postgres: str) -> None:
    """Of roles, databases and schemas: the SQL works."""
    name, role = 'Nightly "1"', f"reader of 'nightly' {os.getpid()}"
    server = Postgres(postgres, "postgres")
    server.execute('CREATE DATABASE "Nightly ""1"""')
    server.execute(f'CREATE ROLE "{role}" LOGIN')
    settings = {"LAKEBASE_AGENT_MEMORY_SCHEMA": 'the "agent"'}
    place = Postgres(postgres, quote(name))
    folder = Folder(tmp_path / "folder", DATABASE_URL=url_of(place, "postgres"), **settings)
    code, sql, err = folder.run("grant", role, "--run")
    assert (code, err) == (0, "")
    reader = connect_postgres(
        DatabaseSettings.read({"DATABASE_URL": url_of(place, role)} | settings)
    )
    session = Session("s", database=reader)
    await session.add_items([user("hello")])
    assert await session.get_items() == [user("hello")]
    await reader.close()
    assert sql.count(";\n") == 4


def test_what_is_stored_is_looked_after_without_the_agents_sdk(tmp_path: Path) -> None:
    """Which takes several times as long to import as all the rest."""
    code = (
        "import sys, threadkeep.adoption, threadkeep.session_branch, threadkeep.session_export\n"
        "sys.exit('agents' in sys.modules)"
    )
    assert finish(Folder(tmp_path / "folder").python(code))[0] == 0


def test_what_is_for_postgres_only(tmp_path: Path) -> None:
    """Says so on SQLite, and makes no file."""
    folder = Folder(tmp_path / "folder", DATABASE_URL="sqlite:///app.db")
    for code, out, err in folder.run_each("grant x", "import --from databricks-openai"):
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "needs a Postgres or a Lakebase" in err
    assert not (tmp_path / "folder" / "app.db").exists()


def test_import(workspace: LakebaseStandIn, tmp_path: Path) -> None:
    """With a bar for who watches; again, with what went on meanwhile; from tables of any name."""
    workspace.empty()
    folder = Folder(tmp_path / "folder", **workspace.environment())
    original = Original(workspace)
    for number in range(12):
        original.add(f"s{number}", user(f"I am {number}"))
    original.add("empty")
    told = watched(folder, "import", "--from", "databricks-openai")
    assert "From databricks-openai" in told
    assert "100%" in told
    assert "12 adopted, 0 the same here already, 0 different, 1 empty, 0 with an id" in told
    for number in range(11):
        original.add(f"s{number}", user("gone on"))
    named = Original(workspace, "old", "talks", "words")
    named.add("t", user("I am t"))
    again, other, mistyped = folder.run_each(
        "import --from databricks-openai",
        "import --from databricks-openai --schema old --sessions-table talks"
        " --messages-table words",
        "import --from databricks-openai --schema old --sessions-table talk",
    )
    assert again[0] == other[0] == 0
    assert again[1].splitlines()[1].startswith("0 adopted, 1 the same here already, 11 different")
    assert again[1].endswith("left alone: s0, s1, s10, s2, s3, s4, s5, s6, s7, s8 and 1 more\n")
    assert other[1].splitlines()[1].startswith("1 adopted, 0 the same")
    assert workspace.sql("SELECT count(*) FROM threadkeep.sessions") == "13"
    assert (mistyped[:2], mistyped[2].count("\n")) == ((2, ""), 1)
    assert "There are no tables talk and agent_messages in the schema old." in mistyped[2]
    assert "--sessions-table" in mistyped[2]


def watched(folder: Folder, *arguments: str) -> str:
    """What a command says to a terminal."""
    terminal, end = pty.openpty()
    with open(terminal) as screen:
        process = folder.start(COMMAND, *arguments, stdout=end, stderr=end)
        os.close(end)
        lines = []
        while line := read_line(screen):
            lines.append(line)
        assert process.wait(60) == 0
    told = "".join(lines)
    assert_tells_nothing(told)
    return told


def read_line(screen: Any) -> str:
    try:
        return str(screen.readline())
    except OSError:  # which is how Linux says that nobody is left to write
        return ""


def test_doctor_of_an_app_of_ones_own(tmp_path: Path, model_url: str) -> None:
    """On SQLite: all is well; when its code is not, that is told in a line of its own."""
    settings = {"DATABASE_URL": "sqlite:///app.db", "AGENT_MODEL": "x"}
    well = Folder(tmp_path / "well", **settings, OPENAI_BASE_URL=model_url)
    well.add_agent("")
    broken = Folder(tmp_path / "broken", **settings, OPENAI_BASE_URL=model_url)
    broken.add_agent(f"raise ValueError('{PASSWORD}')\n")
    running = [folder.start(COMMAND, "preflight") for folder in (well, broken)]
    (code, out, err), failed = (finish(process) for process in running)
    assert (code, err) == (0, ""), out
    names = ("settings", "database", "agent", "model", "turn")
    assert [line.split()[:2] for line in out.splitlines()] == [["ok", name] for name in names]
    with closing(sqlite3.connect(tmp_path / "well" / "app.db")) as database:
        sql = COUNT_ALL.replace("threadkeep.", "")
        assert database.execute(sql).fetchone() == (0, 0, 0, 0)
    assert failed[0] == 1
    assert failed[1].splitlines()[2:] == [
        f"FAIL  agent      agent_server/agent.py, line {END_OF_AGENT}: ValueError. Mend it there.",
        "ok    model      x answers",
        "skip  turn       rests on what failed before",
    ]
    assert failed[2] == ""


def test_faults_tell_where_they_are_and_no_more(tmp_path: Path) -> None:
    """Their words may hold what a driver was given, or a file."""
    folder = Folder(tmp_path / "folder")
    secret = f"'{PASSWORD[:2]}' + '{PASSWORD[2:]}'"
    failing = folder.python(
        f"def connect(): raise RuntimeError({secret})\n"
        "commands.connect = connect\ncommands.main(['migrate'])"
    )
    other = Folder(tmp_path / "other")
    (tmp_path / "other" / ".env").write_bytes(f"DATABASE_URL={PASSWORD}".encode("utf-16"))
    said = "threadkeep: The file .env is not in UTF-8. Save it anew, as UTF-8.\n"
    assert other.run("migrate") == (2, "", said)
    code, out, err = finish(failing)
    assert (code, out) == (2, "")
    assert "RuntimeError" in err
    assert "commands.py" in err
    assert err.endswith("threadkeep: a fault in Threadkeep itself. Please report it.\n")


def test_ctrl_c_ends_it_quietly(owner: Folder, place: Lakebase) -> None:
    """While it waits for the workspace."""
    place.stand_in.credential_delay = 30
    process = owner.python(
        "import signal\n"  # as a shell leaves it, whatever runs these tests
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "commands.main(['doctor', '--no-turn'])"
    )
    assert process.stdout is not None
    while "instance" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "")
