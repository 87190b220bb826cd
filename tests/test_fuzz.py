"""Whatever is sent, nobody gets a 500, and every answer is one that the OpenAPI document tells of.

Schemathesis makes requests of the document, good and bad; the second test sends bytes that no
client would. Both mix in ids that are there, so that the code behind them is reached.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.backends import Backend
from tests.client import ANN, ask, client_of, session_of
from tests.conftest import RunningApp, environment
from tests.workshop import Workshop

# The server's threads are in this process, and are no part of a strategy.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@schemathesis.serializer("application/jsonl")
def as_lines(_: Any, value: Any) -> bytes:
    """A body of an import, or what stands in its place."""
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace")


PLACES = {
    "session_id": "sessions",
    "response_id": "responses",
    "approval_id": "approvals",
    "memory_id": "memories",
}


class World:
    """A server, and ids of what is there.

    Args:
        app: The server.
        client: Of Ann, who owns all of it.
    """

    def __init__(self, app: RunningApp, client: httpx.Client) -> None:
        self.app, self.client = app, client
        self._ids: dict[str, str] = {}

    def live(self, name: str) -> str:
        """The id of something that was there a moment ago; made anew when it has gone."""
        place = PLACES[name]
        known = self._ids.get(name)
        if known is not None:
            found = self.client.get(f"/{place}/{known}")
            if found.status_code == 200 and found.json()[
                "status" if place == "approvals" else "id"
            ] in (
                known,
                "pending",
            ):
                return known
        if name == "memory_id":
            made = self.client.post("/memories", json={"description": "likes tea"}).json()
            self._ids[name] = made["id"]
            return self._ids[name]
        said = ask(self.client, "use note pay; say done")
        approval = next(i["id"] for i in said["output"] if i["type"] == "mcp_approval_request")
        made = {"session_id": session_of(said), "response_id": said["id"], "approval_id": approval}
        self._ids[name] = made[name]
        return made[name]


@pytest.fixture
def world(backend: Backend) -> Iterator[World]:
    place = environment(backend, THREADKEEP_TRUST_PROXY_HEADERS="1", LOG_LEVEL="ERROR")
    app = RunningApp(place, tools=Workshop().tools())
    with client_of(app.url, **ANN) as client:
        yield World(app, client)
    app.model.go_on.set()
    app.stop()


def bounded(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def check_error(status: int, kind: str, body: bytes) -> None:
    """An error is in the one shape, and no fault of ours."""
    assert status < 500, body[:500]
    if status >= 400:
        assert kind == "application/json", (status, kind, body[:500])
        error = json.loads(body)["error"]
        assert set(error) == {"type", "code", "message", "param"}
        assert b"Traceback" not in body


@BOTH
def test_the_document_tells_the_truth(world: World, prove: bool) -> None:
    """Every call, with what it takes and with what it does not."""
    document = schemathesis.openapi.from_dict(world.app.app.openapi())
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == sum(len(o) for o in world.app.app.openapi()["paths"].values())
    reached = {each.label: tried(each, world, 300 if prove else 4) for each in operations}
    assert all(statuses & {200, 204} for statuses in reached.values()), reached


def tried(operation: Any, world: World, examples: int) -> set[int]:
    """The statuses that a call answered with."""
    statuses: set[int] = set()

    def try_it(case: Any, data: st.DataObject) -> None:
        for name in case.path_parameters or {}:
            if data.draw(st.integers(0, 3)):
                case.path_parameters[name] = world.live(name)
        if isinstance(case.body, dict) and data.draw(st.booleans()):
            make_likely(case.body, world)
        elif operation.path == "/sessions/import" and data.draw(st.booleans()):
            case.body = exported(f"i{data.draw(st.integers(0, 5))}")
        response = case.call(base_url=world.app.url, headers=ANN, timeout=30)
        statuses.add(response.status_code)
        kind = response.headers.get("content-type", [""])[0]
        check_error(response.status_code, kind, response.content)
        case.validate_response(response, checks=CHECKS, headers=ANN)

    modes = [GenerationMode.POSITIVE]
    if list(operation.query) or list(operation.body):  # any text may be an id
        modes.append(GenerationMode.NEGATIVE)
    for mode in modes:
        cases = operation.as_strategy(generation_mode=mode)
        bounded(examples)(given(case=cases, data=st.data())(try_it))()
    return statuses


def exported(session_id: str) -> str:
    """A session without items, as JSON Lines."""
    session = {"object": "session", "version": 1, "id": session_id, "title": None, "metadata": {}}
    session |= {"parent_session_id": None, "item_count": 0, "created_at": 1, "updated_at": 1}
    return json.dumps(session)


def make_likely(body: dict[str, Any], world: World) -> None:
    """Few random objects are a message, or name what is there."""
    if "input" in body:
        body["input"] = "say hi"
        for name in ("conversation", "previous_response_id"):
            body.pop(name, None)
        body["custom_inputs"] = {"session_id": world.live("session_id")}
    elif "to" in body:
        body["to"] = 1
    for name in ("path", "valid_from", "valid_to", "superseded_by", "version"):
        body.pop(name, None)


# Most of it is HTTP still: what is none is refused before it comes to us.
IN_LINES = st.lists(st.sampled_from([*range(0x21, 0x7F), *range(0x80, 0x100)]), max_size=20).map(
    bytes
)
ODD = [b"%00", b"%ED%A0%80", b"..", b".", b"%2e%2e%2f", b"a/b", b"//", b"%", b"%zz", b"\x00"]
IDS = st.one_of(
    st.text(max_size=40).map(lambda text: quote(text.encode("utf-8", "surrogatepass")).encode()),
    st.binary(max_size=20).map(lambda raw: quote(raw, safe="").encode()),
    IN_LINES,
    st.sampled_from([*ODD, b"x" * 20_000]),
)
PATHS = [
    (b"GET", b"/sessions/%s"),
    (b"GET", b"/sessions/%s/items"),
    (b"GET", b"/sessions/%s/export"),
    (b"PATCH", b"/sessions/%s"),
    (b"DELETE", b"/sessions/%s"),
    (b"POST", b"/sessions/%s/fork"),
    (b"POST", b"/sessions/%s/rewind"),
    (b"GET", b"/responses/%s"),
    (b"GET", b"/responses/%s?stream=true"),
    (b"POST", b"/responses/%s/cancel"),
    (b"GET", b"/approvals/%s"),
    (b"POST", b"/approvals/%s"),
    (b"GET", b"/memories/%s"),
    (b"PATCH", b"/memories/%s"),
    (b"DELETE", b"/memories/%s"),
    (b"POST", b"/memories"),
    (b"GET", b"/memories?q=%s"),
    (b"GET", b"/approvals?session_id=%s"),
    (b"GET", b"/sessions?after=%s"),
    (b"GET", b"/page/%s"),
    (b"POST", b"/responses?%s"),
    (b"POST", b"/invocations"),
    (b"POST", b"/sessions/import"),
    (b"OPTIONS", b"/responses"),
]
VALUES = st.one_of(
    IN_LINES,
    st.text(max_size=20).map(lambda text: text.encode().translate(None, bytes(range(32)))),
    st.sampled_from([b"", b"\x00", b"\xff\xfe", b"a, b", b"x" * 9000, b"-1", b"null", b"\xb2"]),
)
HEADERS = {
    "host": [b"localhost", b"["],
    "authorization": [b"Bearer ", b"Bearer \xff", b"Basic x"],
    "idempotency-key": [b"k", b"\x01resp_x"],
    "last-event-id": [b"3", b"\xb2", b"9" * 16],
    "content-type": [
        b"application/json",
        b"application/json; charset=\xff",
        b"text/plain",
        b"multipart/form-data",
    ],
    "content-length": [b"0", b"5", b"9" * 30, b"-1", b"\xb2"],
    "content-encoding": [b"gzip", b"br"],
    "transfer-encoding": [b"chunked", b"gzip"],
    "sec-fetch-site": [b"same-origin", b"cross-site"],
    "origin": [b"null", b"http://[", b"http://localhost"],
    "x-forwarded-user": [b"ann", b"\xff", b""],
    "x-threadkeep-owner": [b"bob"],
}
MESSAGE = b'{"input": "say hi", "store": false}'
BODIES = st.one_of(
    st.just(MESSAGE),
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'{"input": "\xff"}',
            b'{"input": "\\ud800"}',
            b"\xef\xbb\xbf" + MESSAGE,
            b'{"input": ' + b"9" * 5000 + b"}",
            b'{"input": [{"role": "user", "content": [{"type": "input_image", "w": '
            + b"9" * 5000
            + b"}]}]}",
            b'{"input": [{"role": "user", "content": [{"type": "input_image", "w": NaN}]}]}',
            b'{"input": "say a", "input": "say b", "store": false}',
            b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            b'{"metadata": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
            b'{"metadata": {"a": NaN, "b": 1e999, "c": "\\ud800"}}',
            b'{"title": "\\u0000"}',
            b'{"expires_at": ' + b"9" * 400 + b"}",
            b'{"to": 1e3}',
            b'{"up_to": true}',
            b'{"approve": true, "reason": "\\u0000"}',
            b"\x1f\x8b\x08\x00",
            MESSAGE.decode().encode("utf-16"),
            b'{"object":"session","version":' + b"9" * 5000 + b"}",
            b"[" * 10_000,
        ]
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, str | None, list[tuple[str, bytes]], bytes]:
    """A request: its line, the id to put into it (None: a live one), headers and body."""
    method, path = draw(st.sampled_from(PATHS))
    name = None
    if b"%s" in path:
        if draw(st.booleans()):
            path = path.replace(b"%s", draw(IDS))
        else:
            kinds = (n for n, place in PLACES.items() if path[1:].startswith(place.encode()))
            name = next(kinds, "approval_id")
    names = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=3, unique=True))
    headers = [(n, draw(st.sampled_from(HEADERS[n]) | VALUES)) for n in names]
    return method + b" " + path, name, headers, draw(BODIES)


@BOTH
def test_bytes_that_no_client_sends(world: World, prove: bool) -> None:
    """In headers, ids and bodies, by a socket."""
    address = world.app.url.removeprefix("http://").split(":")
    statuses: set[int] = set()

    @bounded(5000 if prove else 120)
    @given(requests())
    def try_it(request: tuple[bytes, str | None, list[tuple[str, bytes]], bytes]) -> None:
        line, name, headers, body = request
        if name is not None:
            line = line.replace(b"%s", world.live(name).encode())
        given_names = {name for name, _ in headers}
        usual = {
            "host": b"localhost",
            "x-forwarded-user": b"ann",
            "content-type": b"application/json",
        }
        if "transfer-encoding" not in given_names:
            usual["content-length"] = str(len(body)).encode()
        headers += [(n, v) for n, v in usual.items() if n not in given_names]
        head = b"".join(n.encode() + b": " + v + b"\r\n" for n, v in headers)
        sent = line + b" HTTP/1.1\r\n" + head + b"connection: close\r\n\r\n" + body
        reply = exchange((address[0], int(address[1])), sent)
        if not reply.startswith(b"HTTP/1.1 "):
            assert reply == b""  # it hung up: the request was never whole
            return
        top, _, content = reply.partition(b"\r\n\r\n")
        status, kind = int(top[9:12]), b""
        for row in top.lower().split(b"\r\n"):
            if row.startswith(b"content-type: "):
                kind = row[14:]
        statuses.add(status)
        if status == 400 and b"Invalid HTTP request received." in content:
            return  # what is no HTTP does not come to us
        check_error(status, kind.decode(), content)

    try_it()
    assert {400, 403, 404} <= statuses


def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """Sends all there is, and reads until the server hangs up."""
    parts = []
    with socket.create_connection(address, timeout=20) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                parts.append(part)
        except (ConnectionResetError, BrokenPipeError):
            pass
    return b"".join(parts)
