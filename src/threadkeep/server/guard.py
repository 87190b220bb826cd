"""What every request passes first, and every reply carries.

- A server that has no users but the one at its keyboard answers only to its own names: a page of
  another site can't reach it under a name of its own (DNS rebinding).
- A browser says where a request comes from; other sites can't make it change anything.
- A body has a size limit, whether it says its length or not.
- Whatever goes wrong behind it, the reply is an error in the one shape.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threadkeep.failures import Failure, describe, log_fault
from threadkeep.server.errors import error_response

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types threadkeep"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware that does it.

    Args:
        app: What comes behind.
        names: The host names to answer to, besides those of this machine; None: to all.
        max_bytes: How large the body of a request may be.
    """

    def __init__(self, app: ASGIApp, names: set[str] | None, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._names = None if names is None else names | _LOCAL_NAMES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, self._limited(receive), send_with_headers)
        except ClientDisconnect:
            return  # in the middle of its request: nobody is there to be told, and nothing is wrong
        except Exception as error:  # noqa: BLE001 - the last place to make an answer of it
            log_fault(f"{scope['method']} {scope['path']}", error)
            if not begun:
                await error_response(describe(error))(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Failure | None:
        headers = Headers(scope=scope)
        host = _host_of(f"//{headers.get('host', '')}")
        if self._names is not None and host not in self._names:
            return Failure(
                403,
                "unknown_host",
                "This server answers to its own names only. Open it as localhost, or set HOST to "
                "the name that you use.",
            )
        if scope["method"] not in _SAFE_METHODS and _from_another_site(headers, host):
            return Failure(403, "cross_site", "Another site can't do this for you.")
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            return Failure(413, "too_large", self._too_large())
        return None

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._too_large().removesuffix("."))
            return message

        return limited

    def _too_large(self) -> str:
        mib, rest = divmod(self._max_bytes, 1024 * 1024)
        most = f"{self._max_bytes} bytes" if rest else f"{mib} MiB"
        return f"The request is larger than {most} (REQUEST_MAX_BYTES). Send less at once."


def _from_another_site(headers: Headers, host: str | None) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and _host_of(origin) != host


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
