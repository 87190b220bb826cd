"""Every field of a request with what does not belong there: a clear 4xx, and nothing stored."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.client import ask, client_of, contents
from tests.conftest import RunningApp, environment

MB = 1024 * 1024
OK = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("bad")
    app = RunningApp(environment(f"sqlite:///{folder}/threadkeep.db"))
    with client_of(app.url) as client:
        yield client
    app.stop()


def refused(reply: httpx.Response, status: int, param: str | None) -> None:
    """The reply is an error in the one shape, and says neither traces nor types of ours."""
    assert reply.status_code == status, reply.text[:500]
    error = reply.json()["error"]
    assert set(error) == {"type", "code", "message", "param"}
    assert error["param"] == param, error
    assert error["message"].endswith(".")
    assert "Traceback" not in reply.text
    assert "pydantic" not in reply.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("", "body"),
        ("{not json", None),
        ("[]", None),
        ('"text"', None),
        ("7", None),
        ("null", "body"),
        ("{}", "input"),
        ("[" * 100_000, None),
        ('{"input": "\xff"', None),
    ],
)
def test_bodies_that_are_no_request(client: httpx.Client, body: str, param: str | None) -> None:
    """Not JSON, not an object, nested beyond reason, not UTF-8."""
    reply = client.post(
        "/invocations", content=body.encode("latin-1"), headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]
    assert client.get("/sessions").json()["data"] == []


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "input"),
        (7, "input"),
        ("", "input[0].content"),
        ([], "input"),
        ({}, "input"),
        (["text"], "input[0]"),
        ([None], "input[0]"),
        ([{}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "boss", "content": "x"}], "input[0].role"),
        ([{"role": 7, "content": "x"}], "input[0].role"),
        ([OK, {"role": "user", "content": 7}], "input[1].content"),
        ([{"role": "user", "content": ""}], "input[0].content"),
        ([{"role": "user", "content": []}], "input[0].content"),
        ([{"role": "user", "content": ["x"]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "x"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"type": "wish", "content": "x"}], "input[0].type"),
        ([{"type": "function_call", "name": "f"}], "input[0].call_id"),
        ([{"type": "function_call_output", "call_id": "1"}], "input[0].output"),
    ],
    ids=repr,
)
def test_inputs(client: httpx.Client, value: Any, param: str) -> None:
    """The error names the very field."""
    refused(client.post("/invocations", json={"input": value}), 400, param)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(client: httpx.Client, number: str) -> None:
    """Python reads them, nobody can write them back."""
    part = f'{{"type": "input_image", "image_url": "x", "width": {number}}}'
    body = f'{{"input": [{{"role": "user", "content": [{part}]}}]}}'
    reply = client.post("/responses", content=body, headers={"content-type": "application/json"})
    refused(reply, 400, "input[0]")


def test_nesting(client: httpx.Client) -> None:
    """Deeper than the SDK can copy is refused."""
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    content = [{"type": "input_image", "image_url": deep}]
    body = {"input": [{"role": "user", "content": content}]}
    refused(client.post("/responses", json=body), 400, "input[0]")


def test_reasoning_with_a_role(client: httpx.Client) -> None:
    """Is taken as what it is."""
    items = [OK, {"type": "reasoning", "id": "rs_1", "summary": [], "role": "assistant"}]
    reply = client.post("/responses", json={"input": items})
    refused(reply, 400, "input")


def test_half_a_surrogate_pair(client: httpx.Client) -> None:
    """JSON can carry it, no model takes it."""
    body = json.dumps({"input": [{"role": "user", "content": "x\ud800"}]})
    reply = client.post("/invocations", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert client.get("/sessions").json()["data"] == []


def test_nul_and_emoji_are_kept(client: httpx.Client) -> None:
    """They are characters like any other."""
    ask(client, "say a\0b 👩‍👩‍👧", "characters")
    assert contents(client, "characters") == ["say a\0b 👩‍👩‍👧", "a\0b 👩‍👩‍👧"]
    client.delete("/sessions/characters")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"background": "no"}, "background"),
        ({"store": 0}, "store"),
        ({"custom_inputs": 7}, "custom_inputs"),
        ({"custom_inputs": []}, "custom_inputs"),
        ({"context": 7}, "context"),
        ({"context": {"conversation_id": 7}}, "context.conversation_id"),
        ({"conversation": 7}, "conversation"),
        ({"conversation": {}}, "conversation.id"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"metadata": {"a": 7}}, "metadata.a"),
        ({"model": 7}, "model"),
        ({"user": 7}, "user"),
        ({"temperature": 0.5}, "temperature"),
        ({"instructions": "be mean"}, "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"straem": True}, "straem"),
        ({"background": True, "store": False}, "store"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"previous_response_id": "\ud800"}, "previous_response_id"),
    ],
    ids=ascii,
)
def test_other_fields(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    """Wrong types are named; so is what would change the answer and is not supported."""
    body = json.dumps({"input": "hi"} | fields)
    headers = {"content-type": "application/json"}
    refused(client.post("/responses", content=body, headers=headers), 400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": None},
        {"tools": [], "tool_choice": "auto"},
        {"model": "agent", "user": "ann", "metadata": {"a": "b"}},
        {"stream_options": {"include_obfuscation": False}},
        {"context": {"user_id": "ann", "more": 1}},
    ],
    ids=repr,
)
def test_fields_that_change_nothing_are_taken(client: httpx.Client, fields: Any) -> None:
    """Clients send them by themselves."""
    reply = client.post("/responses", json={"input": "say hi", "store": False} | fields)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("bad", ["", 7, True, ["x"], "a\0b", "a\nb", "x" * 513], ids=ascii)
def test_session_ids(client: httpx.Client, bad: Any) -> None:
    """Wherever they are given."""
    body = {"input": "hi", "custom_inputs": {"session_id": bad}}
    refused(client.post("/responses", json=body), 400, "custom_inputs.session_id")


def test_session_ids_in_paths(client: httpx.Client) -> None:
    """Strange ones are not found, and break nothing."""
    for bad in ("%00", "%ff", "..%2f..%2fetc", "x" * 5000, "%F0%9F%98%80"):
        for reply in (
            client.get(f"/sessions/{bad}"),
            client.get(f"/sessions/{bad}/items"),
            client.delete(f"/sessions/{bad}"),
            client.get(f"/responses/{bad}"),
            client.post(f"/responses/{bad}/cancel"),
        ):
            assert reply.status_code == 404, reply.text
            assert "error" in reply.json()


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/sessions?limit=0", "limit"),
        ("/sessions?limit=1001", "limit"),
        ("/sessions?limit=x", "limit"),
        ("/sessions/s/items?after=-1", "after"),
        ("/sessions/s/items?order=up", "order"),
        ("/responses/r?starting_after=-1", "starting_after"),
        ("/responses/r?stream=maybe", "stream"),
    ],
)
def test_query_parameters(client: httpx.Client, path: str, param: str) -> None:
    """Out of range or of another kind."""
    refused(client.get(path), 400, param)


def test_a_very_large_number(client: httpx.Client) -> None:
    """No integer of the database holds it."""
    for path in ("/sessions/s/items?after=", "/responses/r?stream=true&starting_after="):
        reply = client.get(path + "9" * 30)
        assert reply.status_code in (400, 404), reply.text


@pytest.mark.parametrize(("size", "status"), [(MB, 200), (10 * MB, 413)], ids=["1 MB", "10 MB"])
def test_messages_by_size(client: httpx.Client, size: int, status: int) -> None:
    """Large ones work; too large ones are refused before they are parsed."""
    message = "count 1 " + "x" * size
    reply = client.post(
        "/responses", json={"input": message, "custom_inputs": {"session_id": "big"}}
    )
    assert reply.status_code == status
    if status == 200:
        assert contents(client, "big")[0] == message
        client.delete("/sessions/big")
    else:
        assert "8 MiB" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("size", "status"), [(MB, 400), (10 * MB, 413)], ids=["1 MB", "10 MB"])
def test_session_ids_by_size(client: httpx.Client, size: int, status: int) -> None:
    """Neither is echoed back."""
    reply = client.post(
        "/responses", json={"input": "hi", "custom_inputs": {"session_id": "x" * size}}
    )
    assert reply.status_code == status
    assert len(reply.text) < 500


def test_a_body_without_a_length_has_the_same_limit(client: httpx.Client) -> None:
    """It is counted as it comes."""

    def chunks() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(10):
            yield b"x" * MB
        yield b'"}'

    headers = {"content-type": "application/json"}
    reply = client.post("/responses", content=chunks(), headers=headers)
    assert reply.status_code == 413


def test_a_client_that_goes_away_is_no_fault(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of its body: nothing is logged, nothing is kept."""
    place = client.base_url.host, client.base_url.port
    for path in (b"/sessions/import", b"/responses"):
        with socket.create_connection(place) as connection:
            head = b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"
            connection.sendall(b"POST " + path + head)
            connection.shutdown(socket.SHUT_WR)
            assert b" 500 " not in connection.recv(9999)
    assert client.get("/sessions").json()["data"] == []
    assert "ClientDisconnect" not in caplog.text


def test_routes_and_methods_that_are_not(client: httpx.Client) -> None:
    """In the same shape."""
    refused(client.get("/nothing"), 404, None)
    refused(client.put("/responses"), 405, None)


def test_other_sites_can_do_nothing(client: httpx.Client) -> None:
    """A page elsewhere can neither post through the browser nor rename itself to us."""
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "http://["},
        {"host": "evil.example"},
        {"host": "["},
    ):
        refused(client.post("/responses", json={"input": "hi"}, headers=headers), 403, None)
        refused(client.delete("/sessions/s", headers=headers), 403, None)
    reply = client.get("/sessions", headers={"host": "evil.example"})
    refused(reply, 403, None)


def test_no_other_site_may_read(client: httpx.Client) -> None:
    """There is no CORS: a preflight is refused, and no reply lets another origin see it."""
    origin = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert client.options("/responses", headers=origin).status_code == 405
    for reply in (
        client.options("/responses", headers=origin),
        client.get("/sessions", headers={"origin": "https://app.example"}),
        client.post("/responses", json={"input": "hi"}, headers={"origin": "null"}),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_every_reply_has_the_security_headers(client: httpx.Client) -> None:
    """Pages, JSON, streams, files, and errors from wherever they come."""
    replies = [client.get(path) for path in ("/", "/sessions", "/page/app.js", "/docs", "/nothing")]
    replies += [
        client.post("/responses", json={"input": "say hi", "stream": True, "store": False}),
        client.post("/responses", json={"input": "fail", "store": False}),
        client.post("/responses", content=b"x" * 9 * MB),
        client.put("/responses"),
        client.get("/sessions", headers={"host": "evil.example"}),
        client.head("/health"),
    ]
    assert [r.status_code for r in replies[4:]] == [404, 200, 502, 413, 405, 403, 200]
    for reply in replies:
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["referrer-policy"] == "no-referrer"


def test_after_all_that_nothing_is_stored(client: httpx.Client) -> None:
    """Refused means refused."""
    assert client.get("/sessions").json()["data"] == []
