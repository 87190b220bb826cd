"""Stands between a client and Postgres: counts round trips, and loses answers on demand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

SSL_REQUEST = 80877103


class PostgresProxy:
    """A proxy to a Postgres server; without TLS, so that it can read along.

    Args:
        url: Of the database behind it.

    Attributes:
        url: The same database through the proxy.
        round_trips: How often a client has waited for the server, logins left out.
        lose_every: Of every so many statements one is done and its answer lost; 0 loses none.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?sslmode=disable"
        self.round_trips = 0
        self.lose_every = 0
        self._losing = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answers(self, count: int = 1) -> None:
        """Of so many statements from now on: each is done, and its connection dies instead."""
        self._losing = count

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for end in (client, server):  # messages are sent in small pieces
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, client, server)
            threading.Thread(target=connection.serve, daemon=True).start()

    def loses(self) -> bool:
        """Whether the answer to a statement that was just sent is to be lost."""
        if self._losing:
            self._losing -= 1
            return True
        return self.lose_every > 0 and self.round_trips % self.lose_every == 0


class _Connection:
    def __init__(self, proxy: PostgresProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._lost = False

    def serve(self) -> None:
        """Passes everything on until either side goes away."""
        requests = threading.Thread(target=self._requests, daemon=True)
        with self._client, self._server:
            requests.start()
            self._answers()
            requests.join()

    def _requests(self) -> None:
        started, executes = False, False
        try:
            while True:
                kind = b"" if not started else self._read(1)
                size = self._read(4)
                body = self._read(int.from_bytes(size) - 4)
                if not started:
                    started = int.from_bytes(body[:4]) != SSL_REQUEST
                executes = executes or kind in (b"E", b"Q")
                if kind in (b"S", b"Q"):
                    self._proxy.round_trips += 1
                    self._lost = executes and self._proxy.loses()
                    executes = False
                self._server.sendall(kind + size + body)
        except OSError:
            self._end()

    def _answers(self) -> None:
        try:
            while data := self._server.recv(65536):
                if self._lost:
                    break
                self._client.sendall(data)
        except OSError:
            pass
        self._end()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._client.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def _end(self) -> None:
        for end in (self._client, self._server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def postgres_proxy(url: str) -> Iterator[PostgresProxy]:
    """Runs a proxy until the block ends."""
    proxy = PostgresProxy(url)
    yield proxy
    proxy.close()
