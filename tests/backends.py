"""The databases that the tests run on: SQLite files, and a Postgres server of the tests' own."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from threadkeep import postgres_schema

if TYPE_CHECKING:
    from tests.lakebase import LakebaseStandIn

KEPT = 8
"""Of the databases on a server, so many are kept: each is hundreds of files."""

_numbers = count(KEPT)


@dataclass(frozen=True)
class SQLite:
    """A file of one test."""

    file: Path

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads there."""
        return {"DATABASE_URL": f"sqlite:///{self.file}"}

    def execute(self, sql: str) -> None:
        """Runs SQL behind the program's back."""
        with sqlite3.connect(self.file) as raw:
            raw.execute(sql.replace("threadkeep.", ""))
        raw.close()


@dataclass(frozen=True)
class Postgres:
    """A database of one test."""

    server: str
    name: str

    @property
    def url(self) -> str:
        return f"{self.server}/{self.name}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads there."""
        return {"DATABASE_URL": self.url}

    def execute(self, *transactions: str) -> None:
        """Runs SQL behind the program's back."""
        each = [part for sql in transactions for part in ("-c", sql)]
        subprocess.run(
            [postgres_program("psql"), "-q", "-v", "ON_ERROR_STOP=1", self.url, *each],
            check=True,
            capture_output=True,
        )


@dataclass(frozen=True)
class Lakebase:
    """A database of one test on the stand-in."""

    stand_in: LakebaseStandIn
    name: str

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads there; that of the process leads to the workspace."""
        name = self.stand_in.environment()["LAKEBASE_INSTANCE_NAME"]
        return {"LAKEBASE_INSTANCE_NAME": name, "PGDATABASE": self.name}

    def execute(self, sql: str) -> None:
        """Runs SQL behind the program's back."""
        self.stand_in.sql(sql, self.name)


Backend = SQLite | Postgres | Lakebase


def new_postgres(server: str, *, bare: bool = False) -> Postgres:
    """A new database on a server: our tables are there and empty, or nothing is."""
    number = next(_numbers)
    backend = Postgres(server, f"test_{number}")
    likeness = "" if bare else f" TEMPLATE {_migrated(server)} STRATEGY file_copy"
    Postgres(server, "postgres").execute(
        f"DROP DATABASE IF EXISTS test_{number - KEPT} WITH (FORCE)",
        f"CREATE DATABASE {backend.name}{likeness}",
    )
    return backend


@cache
def _migrated(server: str) -> str:
    """A database to copy, which is quicker than to bring each up to date."""
    Postgres(server, "postgres").execute("CREATE DATABASE migrated")
    migrate(dsn=f"{server}/migrated")
    return "migrated"


def migrate(role: str = "postgres", **place: Any) -> None:
    """Makes the tables of this release, as a role; `place` is what asyncpg calls it."""

    async def connect_and_migrate() -> None:
        connection = await asyncpg.connect(**place)
        await connection.execute(f"SET SESSION AUTHORIZATION {postgres_schema.quoted(role)}")
        await postgres_schema.migrate(connection, "threadkeep")
        await connection.close()

    with ThreadPoolExecutor(1) as elsewhere:  # a loop may be running here
        elsewhere.submit(asyncio.run, connect_and_migrate()).result()


def postgres_program(name: str) -> Path:
    """One of Debian's Postgres itself: what is in /usr/bin is Perl, which takes far longer."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    assert found, "Postgres is missing: apt-get install -y postgresql"
    return found[-1]


class PostgresPrograms:
    """Debian's Postgres, run as an unprivileged user in a new folder, with a new cluster in it.

    Attributes:
        folder: Holds the cluster, the log and the Unix socket.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="threadkeep-postgres-"))
        self._user = unprivileged(self.folder)
        self.run(postgres_program("initdb"), *["-N", "-D", "data", "-U", "postgres", "-A", "trust"])

    def start(self, options: str) -> None:
        """Starts the server; `options` are those of the `postgres` command."""
        # It outlives its processes, not the machine; and nobody vacuums hundreds of databases.
        quick = "-c fsync=off -c full_page_writes=off -c autovacuum=off"
        every = f"-k {self.folder} {quick} {options}"
        self._control("-o", every, "-l", "log", "-w", "start")

    def stop(self, mode: str) -> None:
        """Stops it: `fast` saves first, `immediate` does not."""
        self._control("-m", mode, "-w", "stop")

    def remove(self) -> None:
        """Deletes all it wrote."""
        shutil.rmtree(self.folder)

    def run(self, *command: str | Path) -> None:
        """Runs a program as the server's user, in its folder."""
        subprocess.run(
            command,
            check=True,
            user=self._user,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _control(self, *arguments: str) -> None:
        self.run(postgres_program("pg_ctl"), "-D", "data", *arguments)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs Debian's Postgres as an unprivileged user, on a free port; gives its URL."""
    programs = PostgresPrograms()
    port = free_port()
    programs.start(f"-p {port} -c listen_addresses=127.0.0.1")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        programs.stop("immediate")
        programs.remove()


@contextmanager
def transaction_pooler(database: Postgres) -> Iterator[str]:
    """Runs Debian's PgBouncer in front of a database; gives its URL. It keeps no more connections
    than two, and gives them to another client after each transaction."""
    program = Path("/usr/sbin/pgbouncer")
    assert program.exists(), "PgBouncer is missing: apt-get install -y pgbouncer"
    parts = urlsplit(database.server)
    folder = Path(tempfile.mkdtemp(prefix="threadkeep-pgbouncer-"))
    port = free_port()
    (folder / "users").write_text('"postgres" ""\n')
    (folder / "ini").write_text(
        f"[databases]\n{database.name} = host={parts.hostname} port={parts.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {folder}/users\n"
        "pool_mode = transaction\ndefault_pool_size = 2\n"
    )
    process = subprocess.Popen(
        [program, "-q", folder / "ini"], user=unprivileged(folder), stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        yield f"postgresql://postgres@127.0.0.1:{port}/{database.name}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Returns when somebody listens on a port of this machine."""
    for _ in range(500):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise RuntimeError(f"nothing listens on port {port}")


def unprivileged(folder: Path) -> int | None:
    """Who runs a server with its files in a folder: never root, anybody else as themselves."""
    if os.getuid() != 0:
        return None
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(folder, user, -1)
    return user
