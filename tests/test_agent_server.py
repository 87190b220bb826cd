"""The helpers that users have in their own hands."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from fastapi import FastAPI, Response

from agent_server.agent import get_session_id
from agent_server.utils import resolve_lakebase_instance_name
from tests.serving import served

workspace = FastAPI()

PAGES: list[dict[str, Any]] = [
    {
        "database_instances": [{"name": "first", "read_write_dns": "a.database.x.com"}],
        "next_page_token": "2",
    },
    {
        "database_instances": [
            {"name": "second", "read_only_dns": "b.database.azuredatabricks.net"},
            {"read_write_dns": "nameless.database.x.com"},
        ]
    },
]


@workspace.get("/api/2.0/database/instances")
def instances(page_token: str = "1") -> Any:
    return PAGES[int(page_token) - 1]


@workspace.get("/denied/api/2.0/database/instances")
def denied() -> Response:
    return Response('{"error_code": "PERMISSION_DENIED"}', 403, media_type="application/json")


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with served(workspace) as url:
        yield url


def client(host: str) -> WorkspaceClient:
    return WorkspaceClient(host=host, token="t")


@pytest.mark.parametrize("name", [None, "", " "])
def test_a_name_is_required(name: str | None) -> None:
    """As the variable that should hold it, with both places to set it."""
    told = r"^LAKEBASE_INSTANCE_NAME environment variable is required.*\.env.*databricks\.yml"
    with pytest.raises(ValueError, match=told):
        resolve_lakebase_instance_name(name)


def test_a_name_passes_through() -> None:
    """Without asking anybody."""
    assert resolve_lakebase_instance_name("my-lakebase") == "my-lakebase"


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("a.database.x.com", "first"),
        ("b.database.azuredatabricks.net", "second"),
        ("A.DATABASE.X.COM.", "first"),
    ],
)
def test_a_hostname_is_looked_up(host: str, hostname: str, name: str) -> None:
    """Among both names of all instances, on every page of them."""
    assert resolve_lakebase_instance_name(hostname, client(host)) == name


def test_a_hostname_that_is_unknown_or_nameless(host: str) -> None:
    """Each says what to do."""
    with pytest.raises(ValueError, match="Unable to resolve hostname"):
        resolve_lakebase_instance_name("c.database.x.com", client(host))
    with pytest.raises(ValueError, match="has no name"):
        resolve_lakebase_instance_name("nameless.database.x.com", client(host))


def test_a_hostname_may_not_be_looked_up(host: str) -> None:
    """By who may not list instances; a name needs no such right."""
    with pytest.raises(ValueError, match=r"can't be listed.*set LAKEBASE_INSTANCE_NAME"):
        resolve_lakebase_instance_name("a.database.x.com", client(f"{host}/denied"))


def test_a_session_id_is_taken_from_mlflows_request_too() -> None:
    """It has the same fields, and no `conversation`."""

    def request(**fields: Any) -> Any:
        return SimpleNamespace(**({"custom_inputs": None, "context": None} | fields))

    context = SimpleNamespace(conversation_id="c", user_id=None)
    assert get_session_id(request(custom_inputs={"session_id": "s"}, context=context)) == "s"
    assert get_session_id(request(custom_inputs={}, context=context)) == "c"
    assert get_session_id(request()) != get_session_id(request())
