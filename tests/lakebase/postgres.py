"""The Postgres of the stand-in: TLS only, and a RADIUS server says who comes in by TCP."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.backends import PostgresPrograms, migrate, postgres_program
from tests.lakebase.radius import Radius

PORT = 5432
"""The same on every Lakebase, so the addresses are this process's own."""

_NETWORK = f"127.{1 + os.getpid() // 250 % 250}.{os.getpid() % 250}"
HOST, FLAKY_HOST = f"{_NETWORK}.10", f"{_NETWORK}.11"

# `local` is for the tests' own SQL; there is no line for TCP without TLS, so that is refused.
_ACCESS = """\
local   all  postgres             trust
hostssl all  all       0.0.0.0/0  radius \
radiusservers="127.0.0.1" radiusports="{radius.port}" radiussecrets="{radius.secret}"
"""


class LakebasePostgres:
    """A server that can be stopped, held up and asked behind the program's back.

    Args:
        radius: Says who comes in.
    """

    def __init__(self, radius: Radius) -> None:
        assert shutil.which("openssl"), "openssl is missing: apt-get install -y openssl"
        self._programs = PostgresPrograms()
        self._data = self._programs.folder / "data"
        self._held: list[int] = []
        # By the server's user, because Postgres takes a key of its own user only.
        self._programs.run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "3650", "-subj", "/CN=Lakebase stand-in"),
            *("-addext", f"subjectAltName=IP:{HOST}"),
            *("-keyout", "data/server.key", "-out", "data/server.crt"),
        )
        (self._data / "pg_hba.conf").write_text(_ACCESS.format(radius=radius))

    def start(self) -> None:
        """Starts it, unless it runs."""
        if not self._is_up:
            self._programs.start(
                f"-p {PORT} -c listen_addresses={HOST} -c ssl=on "
                "-c shared_buffers=16MB -c max_connections=200"
            )

    def stop(self) -> None:
        """Stops it as an administrator does: connections are told, and what is stored stays."""
        self.resume()
        if self._is_up:
            self._programs.stop("fast")

    def pause(self) -> None:
        """Holds up the server and all its connections: whoever asks it waits."""
        self._hold(int(self._pid_file.read_text().split()[0]))

    def resume(self) -> None:
        """Lets it go on."""
        while self._held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._held.pop(), signal.SIGCONT)

    def remove(self) -> None:
        """Stops it, whatever its state, and deletes all it wrote."""
        try:
            self.resume()
            if self._is_up:
                self._programs.stop("immediate")
        finally:
            self._programs.remove()

    def sql(self, statement: str, database: str, *more: str) -> str:
        """Runs SQL as the superuser.

        Args:
            statement: One, or several, which are then one transaction.
            database: Where.
            *more: Transactions after that.

        Returns:
            The rows, a line each, their columns separated by `|`.

        Raises:
            RuntimeError: Postgres says no.
        """
        done = subprocess.run(
            [
                *(postgres_program("psql"), "-qAtX", "-v", "ON_ERROR_STOP=1"),
                *("-d", database, "-c", statement),
                *(part for later in more for part in ("-c", later)),
                *("-h", str(self._programs.folder), "-p", str(PORT), "-U", "postgres"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.rstrip("\n")

    def migrate(self, database: str, role: str) -> None:
        """Makes the tables of this release in a database, as a role."""
        migrate(
            role,
            host=str(self._programs.folder),
            port=PORT,
            user="postgres",
            database=database,
        )

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    @property
    def _is_up(self) -> bool:
        return self._pid_file.exists()

    def _hold(self, process: int) -> None:
        # Parents first: a parent that is held starts no more children.
        os.kill(process, signal.SIGSTOP)
        self._held.append(process)
        children = Path(f"/proc/{process}/task/{process}/children").read_text()
        for child in children.split():
            with contextlib.suppress(ProcessLookupError):
                self._hold(int(child))


@contextlib.contextmanager
def lakebase_postgres(radius: Radius) -> Iterator[LakebasePostgres]:
    """Runs it until the block ends."""
    server = LakebasePostgres(radius)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def check_free(host: str) -> None:
    """Looks whether a host's port is free for Postgres.

    Raises:
        RuntimeError: It is taken; says how to free it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, PORT))
        except OSError as error:
            raise RuntimeError(
                f"{host}:{PORT} is taken ({error.strerror}), and Lakebase's port is always {PORT}. "
                f"End what listens there (ss -ltnp 'sport = :{PORT}'), perhaps another run of "
                "these tests, or make it listen on 127.0.0.1 alone."
            ) from error
