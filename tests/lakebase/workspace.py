"""A Databricks workspace: who may call it, the database tokens it mints, and what it knows.

This is its state, which the tests change; `api.py` speaks it over HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tests.lakebase.postgres import FLAKY_HOST, HOST

INSTANCE, FLAKY_INSTANCE, OTHER_INSTANCE = "my-lakebase", "flaky-lakebase", "other-lakebase"
BRANCH = "projects/my-project/branches/production"
ENDPOINT = f"{BRANCH}/endpoints/primary"

Part = Literal["me", "instances", "endpoints", "credentials", "oauth", "chat"]
"""A part of the API that can be refused; `credentials` are those of both kinds of Lakebase."""


@dataclass(frozen=True)
class _Token:
    user: str
    expires: float

    def admits(self, user: str) -> bool:
        return user == self.user and time.time() < self.expires


class Workspace:
    """What the tests turn, and what they see of the calls.

    Attributes:
        user: Who the personal access token belongs to; a Postgres role of the same name exists.
        token: That token. It does not expire.
        service_principal: Client id, which is its Postgres role too, and client secret.
        read_write_dns: The host name that the API gives for the Postgres that works.
        token_seconds: Life of database tokens from now on.
        workspace_token_seconds: Life of the service principal's tokens for the API from now on.
            The SDK asks for another one 40 seconds before the end.
        credential_delay: Seconds that minting a database token takes.
        minted: How many database tokens were minted.
        calls: Method and path of every call, in order.
    """

    user = "dev@example.com"
    token = "dapi-stand-in"
    service_principal = ("6d2b4f10-5c1e-4e57-9a53-2f0c8f6f7a11", "dose-stand-in")

    def __init__(self) -> None:
        self._database_tokens: dict[str, _Token] = {}
        self._workspace_tokens: dict[str, _Token] = {}
        self._refused: dict[Part, int] = {}
        self.calls: list[tuple[str, str]] = []
        self.set_normal()

    def set_normal(self) -> None:
        """Forgets what tests have changed, the tokens that were given out, and the calls."""
        self.read_write_dns = HOST
        self.token_seconds = 3600.0
        self.workspace_token_seconds = 3600.0
        self.credential_delay = 0.0
        self.minted = 0
        self.calls.clear()
        self._workspace_tokens.clear()
        self.expire_tokens()
        self.allow()

    def refuse(self, part: Part, status: int = 403) -> None:
        """Makes a part of the API answer with an error.

        Args:
            part: Which.
            status: 403 is permission denied. On 429 and 503 the SDK tries again for five minutes.
        """
        assert part in get_args(Part), f"there is no {part!r}, but {get_args(Part)}"
        self._refused[part] = status

    def allow(self) -> None:
        """Lets every part of the API answer again."""
        self._refused.clear()

    def refusal(self, part: Part) -> int | None:
        """The status that a part is refused with."""
        return self._refused.get(part)

    def expire_tokens(self) -> None:
        """From now on no database token works that was minted before."""
        self._database_tokens.clear()

    def accepts(self, user: str, password: str) -> bool:
        """Whether Postgres lets a user in: with a token minted for them that has not expired."""
        token = self._database_tokens.get(password)
        return token is not None and token.admits(user)

    async def mint(self, user: str) -> tuple[str, float]:
        """Makes a database token, short enough for RADIUS, and tells when it expires."""
        asked = time.monotonic()
        # In small steps, so that a test that sets it back lets those go who wait.
        while time.monotonic() < asked + self.credential_delay:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        secret = f"eyJ{secrets.token_hex(8)}.eyJ{secrets.token_urlsafe(24)}.{secrets.token_hex(8)}"
        token = self._database_tokens[secret] = _Token(user, time.time() + self.token_seconds)
        self.minted += 1
        return secret, token.expires

    def sign_in(self, client: tuple[str, str]) -> str | None:
        """A token for the API, if a service principal's id and secret are right."""
        if client != self.service_principal:
            return None
        secret = f"eyJ{secrets.token_urlsafe(48)}"
        expires = time.time() + self.workspace_token_seconds
        self._workspace_tokens[secret] = _Token(client[0], expires)
        return secret

    def caller(self, bearer: str) -> str | None:
        """Whose token for the API this is."""
        if bearer == self.token:
            return self.user
        token = self._workspace_tokens.get(bearer)
        return token.user if token and token.admits(token.user) else None

    @property
    def instances(self) -> list[dict[str, Any]]:
        """Provisioned Lakebases; one in the making has no name yet."""
        return [
            _instance(INSTANCE, self.read_write_dns),
            _instance(FLAKY_INSTANCE, FLAKY_HOST),
            _instance(OTHER_INSTANCE, "instance-2b.database.cloud.databricks.com")
            | {"read_only_dns": "instance-ro-2b.database.cloud.databricks.com"},
            {"read_write_dns": "instance-3c.database.azuredatabricks.net", "state": "STARTING"},
        ]

    @property
    def endpoints(self) -> list[dict[str, Any]]:
        """Of the one branch of the one autoscaling project."""
        replica = "ep-quiet-sea-4d.database.us-east-1.cloud.databricks.com"
        return [
            _endpoint(f"{BRANCH}/endpoints/replica", "ENDPOINT_TYPE_READ_ONLY", replica),
            _endpoint(ENDPOINT, "ENDPOINT_TYPE_READ_WRITE", self.read_write_dns),
        ]


def _instance(name: str, host: str) -> dict[str, Any]:
    return {
        "name": name,
        "uid": f"uid-of-{name}",
        "read_write_dns": host,
        "state": "AVAILABLE",
        "capacity": "CU_1",
        "pg_version": "PG_VERSION_16",
    }


def _endpoint(name: str, kind: str, host: str) -> dict[str, Any]:
    return {
        "name": name,
        "parent": BRANCH,
        "uid": f"uid-of-{name.rpartition('/')[2]}",
        "status": {"endpoint_type": kind, "current_state": "ACTIVE", "hosts": {"host": host}},
    }
