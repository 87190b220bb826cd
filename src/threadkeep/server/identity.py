"""Whose request it is: told by a proxy that is trusted, or nobody's on a machine of one's own.

What a body says of its user is never believed.
"""

from __future__ import annotations

import ipaddress

from starlette.exceptions import HTTPException
from starlette.requests import Request

from threadkeep.errors import SettingsError
from threadkeep.history import check_id
from threadkeep.settings import Settings

USER_HEADER = "x-forwarded-user"
"""How Databricks Apps name the user: a stable id, set by the platform for every request."""


def check_exposure(settings: Settings) -> None:
    """Refuses to serve other machines without knowing who asks.

    Raises:
        SettingsError: The address is reachable from outside and nothing tells users apart.
    """
    if not settings.behind_proxy and not is_loopback(settings.listen_host):
        raise SettingsError(
            f"HOST: {settings.listen_host} is reachable from other machines, and nothing says who "
            "asks. Use 127.0.0.1, or, behind a proxy that sets X-Forwarded-User itself, set "
            "THREADKEEP_TRUST_PROXY_HEADERS=1."
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
        HTTPException: 401, behind a proxy that did not say who asks.
    """
    if not request.app.state.settings.behind_proxy:
        return ""
    users = request.headers.getlist(USER_HEADER)
    if len(users) != 1 or not users[0]:
        raise HTTPException(401, "The proxy did not say who you are, once (X-Forwarded-User)")
    return check_id(users[0], "X-Forwarded-User")
