"""A way to Postgres that breaks: it passes bytes on, and can cut TLS connections short."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from socketserver import BaseRequestHandler, ThreadingTCPServer

_SSL_REQUEST_SIZE = 8
_RECORD_HEADER_SIZE = 5
_APPLICATION_DATA = 0x17

Address = tuple[str, int]


class FlakyWay:
    """Passes connections on, as long as it is not told to cut them.

    Args:
        target: Where Postgres listens.

    Attributes:
        cut_tls: Whether new connections are closed, without TLS's goodbye, once the client's half
            of the handshake is done: when it sends its first encrypted record.
    """

    def __init__(self, target: Address) -> None:
        self.cut_tls = False
        self._target = target
        self._open: set[socket.socket] = set()

    def cut(self) -> None:
        """Closes the connections that are open, without TLS's goodbye."""
        for client in list(self._open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def carry(self, client: socket.socket) -> None:
        """Passes on what one client and Postgres say, until either has done.

        Raises:
            OSError: Either is gone.
        """
        with socket.create_connection(self._target) as postgres:
            other = {client: postgres, postgres: client}
            for end in other:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greeting = b""
            greeted = False
            self._open.add(client)
            try:
                while True:
                    for speaker in select.select(list(other), [], [])[0]:
                        said = speaker.recv(65536)
                        if not said:
                            return
                        if speaker is client and not greeted:
                            greeting += said
                            greeted = _is_past_handshake(greeting)
                            if greeted and self.cut_tls:
                                return
                        other[speaker].sendall(said)
            finally:
                self._open.discard(client)


@contextlib.contextmanager
def flaky_way(address: Address, target: Address) -> Iterator[FlakyWay]:
    """Serves at an address until the block ends."""
    way = FlakyWay(target)

    class Connection(BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                way.carry(self.request)

    class Server(ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 64

    with Server(address, Connection) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield way
        finally:
            server.shutdown()
            thread.join()
            way.cut()


def _is_past_handshake(sent: bytes) -> bool:
    """Whether a client that sent this has begun to send encrypted records.

    Postgres's SSLRequest comes first, then TLS records: kind, version, length, content.
    """
    at = _SSL_REQUEST_SIZE
    while at + _RECORD_HEADER_SIZE <= len(sent):
        if sent[at] == _APPLICATION_DATA:
            return True
        at += _RECORD_HEADER_SIZE + int.from_bytes(sent[at + 3 : at + 5], "big")
    return False
