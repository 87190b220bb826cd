"""Whose request it is: told by an API key, by a proxy that is trusted, or nobody's on a machine of
one's own.

What a body says of its user is never believed.
"""

from __future__ import annotations

import ipaddress

from starlette.exceptions import HTTPException
from starlette.requests import Request

from threadkeep.api_keys import ANY, ApiKeys
from threadkeep.errors import InvalidInputError, SettingsError
from threadkeep.history import check_id
from threadkeep.settings import Settings

USER_HEADER = "x-forwarded-user"
"""How Databricks Apps name the user: a stable id, set by the platform for every request."""

OWNER_HEADER = "x-threadkeep-owner"
"""Whom a key stands for that may stand for anybody."""


def check_exposure(settings: Settings) -> None:
    """Refuses to serve other machines without knowing who asks.

    Raises:
        SettingsError: The address is reachable from outside and nothing tells users apart; or
            THREADKEEP_API_KEYS can't be used.
    """
    if settings.api_keys:
        ApiKeys.parse(settings.api_keys)
    if not settings.knows_users and not is_loopback(settings.listen_host):
        raise SettingsError(
            f"HOST: {settings.listen_host} is reachable from other machines, and nothing says who "
            "asks. Use 127.0.0.1, or give out keys (THREADKEEP_API_KEYS), or, behind a proxy that "
            "sets X-Forwarded-User itself, set THREADKEEP_TRUST_PROXY_HEADERS=1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def owner_of(request: Request) -> str:
    """The owner that a request acts for; '' is nobody's, on a machine of one's own.

    Raises:
        HTTPException: 401: it has no key, or the proxy did not say who asks.
        InvalidInputError: The owner that it names can't be one.
    """
    settings: Settings = request.app.state.settings
    if settings.api_keys:
        owner = _owner_by_key(request)
        if owner is not None:
            return owner
    if settings.behind_proxy:
        return _owner_by_proxy(request)
    if settings.api_keys:
        raise HTTPException(
            401,
            "Send a key of this server, as Authorization: Bearer KEY",
            {"www-authenticate": "Bearer"},
        )
    return ""


def _owner_by_key(request: Request) -> str | None:
    """The owner that a key tells; None: there is no key of ours."""
    keys: ApiKeys = request.app.state.api_keys
    for sent in request.headers.getlist("authorization"):
        scheme, _, key = sent.partition(" ")
        owner = keys.owner_of(key.strip()) if scheme.lower() == "bearer" else None
        if owner == ANY:
            named = request.headers.getlist(OWNER_HEADER)
            if len(named) != 1 or not named[0]:
                raise InvalidInputError(
                    "This key stands for anybody. Say for whom, in the header X-Threadkeep-Owner.",
                    param="X-Threadkeep-Owner",
                    code="missing",
                )
            return check_id(named[0], "X-Threadkeep-Owner")
        if owner is not None:
            return owner
    return None


def _owner_by_proxy(request: Request) -> str:
    users = request.headers.getlist(USER_HEADER)
    if len(users) != 1 or not users[0]:
        raise HTTPException(401, "The proxy did not say who you are, once (X-Forwarded-User)")
    return check_id(users[0], "X-Forwarded-User")
