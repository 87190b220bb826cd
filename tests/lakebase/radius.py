"""A RADIUS server that lets users in by password (PAP).

Postgres asks it at every login. A role in Postgres has one password, whereas on Lakebase every
token that is neither expired nor revoked opens it: so who is let in is a function's answer.
A password may have 128 bytes, no more.
"""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from socketserver import BaseRequestHandler, UDPServer
from typing import cast

_ACCESS_REQUEST, _ACCESS_ACCEPT, _ACCESS_REJECT = 1, 2, 3
_USER_NAME, _USER_PASSWORD = 1, 2
_HEADER = struct.Struct("!BBH16s")
"""Code, identifier, length, authenticator: RFC 2865, section 3."""


@dataclass(frozen=True)
class Radius:
    """Where it is, and what it shares with those who ask."""

    port: int
    secret: str


@contextmanager
def radius_server(accepts: Callable[[str, str], bool]) -> Iterator[Radius]:
    """Serves on 127.0.0.1 until the block ends.

    Args:
        accepts: Whether a user may come in with a password.
    """
    with _Server(accepts) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield Radius(server.server_address[1], server.secret.decode())
        finally:
            server.shutdown()
            thread.join()


class _Server(UDPServer):
    def __init__(self, accepts: Callable[[str, str], bool]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.accepts = accepts
        self.secret = secrets.token_hex(16).encode()


class _Answer(BaseRequestHandler):
    def handle(self) -> None:
        server = cast(_Server, self.server)
        packet, socket = self.request
        code, identifier, length, authenticator = _HEADER.unpack_from(packet)
        if code != _ACCESS_REQUEST:
            return
        given = _attributes(packet[_HEADER.size : length])
        user = given[_USER_NAME].decode()
        password = _revealed(given[_USER_PASSWORD], server.secret, authenticator)
        verdict = _ACCESS_ACCEPT if server.accepts(user, password) else _ACCESS_REJECT
        unsigned = _HEADER.pack(verdict, identifier, _HEADER.size, authenticator)
        signature = md5(unsigned + server.secret).digest()
        answer = _HEADER.pack(verdict, identifier, _HEADER.size, signature)
        socket.sendto(answer, self.client_address)


def _attributes(packed: bytes) -> dict[int, bytes]:
    found = {}
    while packed:
        kind, length = packed[0], packed[1]
        found[kind] = packed[2:length]
        packed = packed[length:]
    return found


def _revealed(hidden: bytes, secret: bytes, authenticator: bytes) -> str:
    """Undoes RFC 2865, section 5.2: every 16 bytes are masked by a hash of those before."""
    plain, before = b"", authenticator
    for start in range(0, len(hidden), 16):
        block = hidden[start : start + 16]
        mask = md5(secret + before).digest()
        plain += bytes(a ^ b for a, b in zip(block, mask, strict=True))
        before = block
    return plain.rstrip(b"\0").decode(errors="replace")
