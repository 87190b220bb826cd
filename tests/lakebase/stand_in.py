"""All of it together: the workspace's API, its Postgres, and the flaky way there."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from itertools import count
from urllib.parse import urlsplit

import databricks.sdk  # noqa: F401 - the first login of a test must not wait for it

from tests.backends import KEPT
from tests.lakebase.api import workspace_api
from tests.lakebase.flaky import flaky_way
from tests.lakebase.postgres import FLAKY_HOST, HOST, PORT, check_free, lakebase_postgres
from tests.lakebase.radius import radius_server
from tests.lakebase.workspace import INSTANCE, Workspace
from tests.serving import served

DATABASE = "databricks_postgres"
"""What the database of every Lakebase is called."""


class LakebaseStandIn(Workspace):
    """A workspace, and the Postgres that its tokens open.

    Args:
        running: Ends what this starts.

    Attributes:
        url: Where the workspace is.
    """

    def __init__(self, running: contextlib.ExitStack) -> None:
        super().__init__()
        self._numbers = count(KEPT)
        self._has_migrated = False
        for host in (HOST, FLAKY_HOST):
            check_free(host)
        radius = running.enter_context(radius_server(self.accepts))
        self._postgres = running.enter_context(lakebase_postgres(radius))
        self._flaky = running.enter_context(flaky_way((FLAKY_HOST, PORT), (HOST, PORT)))
        self.url = _serve(self, running)
        running.callback(self.set_normal)  # lets those go who wait for a token
        self._postgres.sql(
            f'CREATE ROLE "{self.user}" LOGIN; CREATE ROLE "{self.service_principal[0]}" LOGIN',
            "postgres",
        )
        self._create(DATABASE)

    def environment(self, **more: str) -> dict[str, str]:
        """The settings of a client process; a client id takes the place of the token."""
        identity = {} if "DATABRICKS_CLIENT_ID" in more else {"DATABRICKS_TOKEN": self.token}
        place = {"DATABRICKS_HOST": self.url, "LAKEBASE_INSTANCE_NAME": INSTANCE}
        return place | identity | more

    def sql(self, statement: str, database: str = DATABASE) -> str:
        """Runs SQL as the superuser, behind the program's back.

        Returns:
            The rows, a line each, their columns separated by `|`.

        Raises:
            RuntimeError: Postgres says no.
        """
        return self._postgres.sql(statement, database)

    def new_database(self, *, bare: bool = False) -> str:
        """The name of a new database that the user owns: our tables are there, or nothing is."""
        number = next(self._numbers)
        if not bare and not self._has_migrated:
            self._create("migrated")
            self._postgres.migrate("migrated", self.user)
            self._has_migrated = True
        old = f"DROP DATABASE IF EXISTS test_{number - KEPT} WITH (FORCE)"
        likeness = "" if bare else "TEMPLATE migrated STRATEGY file_copy"
        self._postgres.sql(old, "postgres", self._creation(f"test_{number}", likeness))
        return f"test_{number}"

    def empty(self) -> None:
        """Puts an empty database in the place of `databricks_postgres`, whoever is in it."""
        self._postgres.sql(f"DROP DATABASE {DATABASE} WITH (FORCE)", "postgres")
        self._create(DATABASE)

    def drop_connections(self) -> None:
        """Ends all connections, as an administrator does."""
        self._postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            "postgres",
        )

    def stop(self) -> None:
        """Stops Postgres, as for its sleep: its port refuses, what is stored stays."""
        self._postgres.stop()

    def start(self) -> None:
        """Starts it again."""
        self._postgres.start()

    def restart(self) -> None:
        """Stops and starts it; open connections break."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Makes Postgres unresponsive: connections open and then nothing answers."""
        self._postgres.pause()

    def resume(self) -> None:
        """Makes it responsive again; it answers what it was asked meanwhile."""
        self._postgres.resume()

    @property
    def cut_tls(self) -> bool:
        """Whether connections to `flaky-lakebase` break at login, right after TLS's handshake."""
        return self._flaky.cut_tls

    @cut_tls.setter
    def cut_tls(self, wanted: bool) -> None:
        self._flaky.cut_tls = wanted

    def cut(self) -> None:
        """Breaks the connections to `flaky-lakebase` that are open, without TLS's goodbye."""
        self._flaky.cut()

    def reset(self) -> None:
        """Everything as at the start, but for the databases and open connections."""
        self.resume()
        self.start()
        self.cut_tls = False
        self.set_normal()

    def _create(self, database: str) -> None:
        self._postgres.sql(self._creation(database), "postgres")

    def _creation(self, database: str, likeness: str = "") -> str:
        return f'CREATE DATABASE {database} OWNER "{self.user}" {likeness}'


@contextlib.contextmanager
def lakebase_stand_in() -> Iterator[LakebaseStandIn]:
    """Runs it until the block ends; one at a time on a machine, since Lakebase's port is fixed.

    Raises:
        RuntimeError: The port is taken.
    """
    with contextlib.ExitStack() as running:
        yield LakebaseStandIn(running)


def _serve(workspace: Workspace, running: contextlib.ExitStack) -> str:
    serving = served(workspace_api(workspace))
    url = serving.__enter__()
    # Without the error of the block, on which it would leave its thread running.
    running.callback(serving.__exit__, None, None, None)
    address = urlsplit(url)
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((address.hostname, address.port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < until, "the workspace API did not start"
            time.sleep(0.01)
        else:
            return url
