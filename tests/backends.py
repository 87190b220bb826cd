"""The databases that the tests run on: SQLite files, and a Postgres server of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

_numbers = count()


@dataclass(frozen=True)
class SQLite:
    """A file of one test."""

    file: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.file}"

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

    def execute(self, sql: str) -> None:
        """Runs SQL behind the program's back."""
        subprocess.run(
            ["psql", "-q", "-v", "ON_ERROR_STOP=1", self.url, "-c", sql],
            check=True,
            capture_output=True,
        )


Backend = SQLite | Postgres


def new_postgres(server: str) -> Postgres:
    """An empty database on a server."""
    backend = Postgres(server, f"test_{next(_numbers)}")
    Postgres(server, "postgres").execute(f"CREATE DATABASE {backend.name}")
    return backend


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs Debian's Postgres as an unprivileged user, on a free port; gives its URL."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert programs, "Postgres is missing: apt-get install -y postgresql"
    folder = Path(tempfile.mkdtemp(prefix="threadkeep-postgres-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(
            [programs[-1] / command[0], *command[1:]],
            check=True,
            user=_unprivileged(folder),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    data = str(folder / "data")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust")
    run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def _unprivileged(folder: Path) -> int | None:
    """Postgres refuses to run as root; anybody else runs it as themselves."""
    if os.getuid() != 0:
        return None
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(folder, user, -1)
    return user
