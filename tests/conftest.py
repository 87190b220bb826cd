"""What tests share: a server of their own, on a free port, with a model that does as it is told."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2 as httpx
import pytest
import uvicorn
from agents import Agent

from agent_server.agent import get_current_time, get_session_id
from tests.backends import Backend, Lakebase, SQLite, new_postgres, postgres_server
from tests.client import ANN, client_of
from tests.fakes import FakeModel
from tests.workshop import Workshop
from threadkeep.server import AgentContext, create_app
from threadkeep.settings import Settings
from threadkeep.take_over import take_over_all

if TYPE_CHECKING:  # most tests need neither a browser nor Lakebase
    from playwright.sync_api import Browser, Page

    from tests.browser import Watched
    from tests.lakebase import LakebaseStandIn

T = TypeVar("T")

LONGEST = ("test_packaging.py", "test_start.py", "test_troubleshooting.py", "test_local_model.py")
"""The files that wait most, and so leave the most to others."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--prove` makes the long proofs long."""
    parser.addoption(
        "--prove", action="store_true", help="run the long proofs for their whole time"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process is alone with it in the end. What is
    marked `prove` is a part of the long proofs alone."""
    if not config.getoption("prove"):
        items[:] = [item for item in items if item.get_closest_marker("prove") is None]
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def prove(request: pytest.FixtureRequest) -> bool:
    """Whether a long proof is to take its whole time."""
    return bool(request.config.getoption("prove"))


class _Server(uvicorn.Server):
    """Stops at once: uvicorn's own looks for it ten times a second."""

    async def main_loop(self) -> None:
        while not self.should_exit:
            await self.on_tick(0)
            await asyncio.sleep(0.02)


class RunningApp:
    """A real server in a thread of this process.

    Args:
        environment: The settings it reads.
        create_context: Makes the SDK's context of a run.
        **agent: What its agent has beside the model, as the SDK names it.

    Attributes:
        url: Its address.
        model: The model of its agent; its `go_on` lets a message "hold" go on.
    """

    def __init__(
        self,
        environment: dict[str, str],
        *,
        create_context: Callable[[AgentContext], Any] | None = None,
        **agent: Any,
    ) -> None:
        self.model = FakeModel()
        self._create_context = create_context
        self._environment = environment
        self._of_agent: dict[str, Any] = {"tools": [get_current_time]} | agent
        self.start()

    def start(self) -> None:
        """Starts it; after `stop`, on the same database and port."""
        app = create_app(
            self._agent,
            get_session_id,
            Settings.read(self._environment),
            create_context=self._create_context,
        )
        config = uvicorn.Config(
            app,
            port=int(self._environment.get("PORT", 0)),
            log_config=None,
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._listener = config.bind_socket()
        # asyncio does it by itself for sockets that it binds; else each reply takes 40 ms.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = self._listener.getsockname()[1]
        self._environment["PORT"] = str(port)
        self.url = f"http://127.0.0.1:{port}"
        self.app = app
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            self._thread.join(0.01)

    def end(self) -> None:
        """Tells it to stop as SIGTERM does."""
        self._server.should_exit = True

    def stop(self) -> None:
        """Stops it as SIGTERM does."""
        self.end()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"
        self._listener.close()

    def restart(self) -> None:
        """Stops it and starts it again on the same database and port."""
        self.stop()
        self.start()

    def take_over(self) -> int:
        """Takes over what lost its process, now; gives how many runs that were."""
        return self.do(take_over_all(self.app.state.runs))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Does something on the server's event loop, and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._server.serve(sockets=[self._listener]))

    def _agent(self, context: AgentContext) -> Agent[Any]:
        return Agent(name="Assistant", model=self.model, **self._of_agent)


def environment(database: Backend | str, **more: str) -> dict[str, str]:
    """Settings of a server: its database, or the URL of one, a model that is never asked, and no
    recall, which has tests of its own."""
    place = {"DATABASE_URL": database} if isinstance(database, str) else database.variables
    model = {"AGENT_MODEL": "fake", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    return model | {"MEMORY_RECALL_TOKENS": "0"} | place | more


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a Postgres server, without a database."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def running_lakebase() -> Iterator[LakebaseStandIn]:
    """The stand-in for Lakebase, running; tests take `lakebase`."""
    from tests.lakebase import lakebase_stand_in  # brings the SDK of Databricks, which is large

    with lakebase_stand_in() as lakebase:
        yield lakebase


@pytest.fixture
def lakebase(running_lakebase: LakebaseStandIn) -> Iterator[LakebaseStandIn]:
    """The stand-in, as new."""
    yield running_lakebase
    running_lakebase.reset()


@pytest.fixture
def workspace(
    lakebase: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> LakebaseStandIn:
    """The stand-in, and an environment that says no more than how to log in there."""
    for name in os.environ:
        if name.startswith(("DATABRICKS_", "LAKEBASE_", "PG", "ARM_")):
            monkeypatch.delenv(name)
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN"):
        monkeypatch.setenv(name, lakebase.environment()[name])
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    return lakebase


@pytest.fixture
def as_service_principal(workspace: LakebaseStandIn, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of an app; gives the client id."""
    client_id, secret = workspace.service_principal
    monkeypatch.delenv("DATABRICKS_TOKEN")
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", client_id)
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", secret)
    return client_id


def backends(*kinds: str) -> Any:
    """A fixture `backend`: a database of each kind in turn, where nothing is stored. A file that
    tells nothing of Lakebase, which is a Postgres that others let in to, may have one of its own.
    """

    @pytest.fixture(params=kinds)
    def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
        return new_backend(request, tmp_path)

    return backend


backend = backends("sqlite", "postgres", "lakebase")


@pytest.fixture(params=["sqlite", "postgres", "lakebase"])
def bare_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """A database of each kind in turn, without our tables."""
    return new_backend(request, tmp_path, bare=True)


def new_backend(request: pytest.FixtureRequest, tmp_path: Path, *, bare: bool = False) -> Backend:
    """A database of the kind that a fixture's parameter names. In a SQLite file there is nothing,
    since to make the tables there takes no time."""
    if request.param == "lakebase":
        stand_in: LakebaseStandIn = request.getfixturevalue("workspace")
        return Lakebase(stand_in, stand_in.new_database(bare=bare))
    if request.param == "postgres":
        return new_postgres(request.getfixturevalue("postgres"), bare=bare)
    return SQLite(tmp_path / "threadkeep.db")


@pytest.fixture
def shop() -> Workshop:
    """The tools of `apps`."""
    return Workshop()


@pytest.fixture
def settings() -> dict[str, str]:
    """What `apps` are told beside their database."""
    return {}


@pytest.fixture
def of_agent() -> dict[str, Any]:
    """What the agent of `apps` has beside its tools."""
    return {}


@pytest.fixture
def servers() -> int:
    """How many `apps` there are."""
    return 2


@contextmanager
def running(
    backend: Backend, shop: Workshop, count: int, settings: dict[str, str], **of_agent: Any
) -> Iterator[list[RunningApp]]:
    """Servers on one database, behind a proxy that says who asks."""
    place = environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1", **settings)
    apps = [RunningApp(dict(place), tools=shop.tools(), **of_agent) for _ in range(count)]
    yield apps
    shop.go_on.set()
    for app in apps:
        app.model.go_on.set()
        app.end()
    for app in apps:
        app.stop()


@pytest.fixture
def apps(
    backend: Backend,
    servers: int,
    shop: Workshop,
    settings: dict[str, str],
    of_agent: dict[str, Any],
) -> Iterator[list[RunningApp]]:
    """Servers on one database, behind a proxy that says who asks."""
    with running(backend, shop, servers, settings, **of_agent) as apps:
        yield apps


@pytest.fixture
def here(apps: list[RunningApp]) -> Iterator[httpx.Client]:
    """Ann's client of the first of them."""
    with client_of(apps[0].url, **ANN) as client:
        yield client


@pytest.fixture
def there(apps: list[RunningApp]) -> Iterator[httpx.Client]:
    """Ann's client of the last of them, which may be the first."""
    with client_of(apps[-1].url, **ANN) as client:
        yield client


@pytest.fixture
def running_app(tmp_path: Path) -> Iterator[RunningApp]:
    """A server with a SQLite file of its own."""
    yield from run_app(f"sqlite:///{tmp_path}/threadkeep.db")


def run_app(database: Backend | str) -> Iterator[RunningApp]:
    """Runs a server on a database until the test ends."""
    app = RunningApp(environment(database))
    yield app
    app.model.go_on.set()
    app.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def watched(browser: Browser, running_app: RunningApp) -> Iterator[tuple[Page, Watched]]:
    """A page before it has opened anything, and what it does that it must not do."""
    from tests.browser import DESKTOP, Watched

    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    watched = Watched(page, running_app.url)
    yield page, watched
    context.close()
    assert watched.problems == []


@pytest.fixture
def page(watched: tuple[Page, Watched], running_app: RunningApp) -> Page:
    """The chat page of a server, open."""
    page, _ = watched
    page.goto(running_app.url)
    return page
