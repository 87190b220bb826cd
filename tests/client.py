"""Short forms for talking to a server in tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx

Json = dict[str, Any]

ANN = {"X-Forwarded-User": "ann"}
"""Who asks, as a proxy says it."""

BOB = {"X-Forwarded-User": "bob"}


def client_of(url: str, **headers: str) -> httpx.Client:
    """A client of a server in these tests."""
    return httpx.Client(base_url=url, timeout=60, headers=headers)


def ask(client: httpx.Client, text: str, session_id: str | None = None, **more: Any) -> Json:
    """One turn; the reply of a server that accepts it."""
    reply = post(client, text, session_id, **more)
    assert reply.status_code == 200, reply.text
    result: Json = reply.json()
    return result


def post(
    client: httpx.Client, text: str, session_id: str | None = None, **more: Any
) -> httpx.Response:
    """One turn, whatever comes of it."""
    body: Json = {"input": [{"role": "user", "content": text}]} | more
    if session_id is not None:
        body["custom_inputs"] = {"session_id": session_id}
    return client.post("/responses", json=body)


def text_of_response(response: Json) -> str:
    """What the agent said, all its messages put together."""
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def session_of(response: Json) -> str:
    """The session that a reply names."""
    session_id: str = response["custom_outputs"]["session_id"]
    return session_id


def stream(client: httpx.Client, text: str, session_id: str | None = None) -> list[Json]:
    """The events of one streamed turn."""
    body: Json = {"input": text, "stream": True}
    if session_id is not None:
        body["custom_inputs"] = {"session_id": session_id}
    with client.stream("POST", "/responses", json=body) as reply:
        assert reply.status_code == 200
        return list(events_of(reply))


def follow(client: httpx.Client, response_id: str, **parameters: Any) -> Iterator[Json]:
    """The events of a run, as they come."""
    url = f"/responses/{response_id}"
    with client.stream("GET", url, params={"stream": True} | parameters) as reply:
        assert reply.status_code == 200
        yield from events_of(reply)


def events_of(reply: httpx.Response) -> Iterator[Json]:
    """Parses frames, and checks that they are framed as promised, to the end."""
    number, last = None, None
    for line in reply.iter_lines():
        last = line or last
        if line.startswith("id: "):
            number = int(line.removeprefix("id: "))
        elif line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            assert event["sequence_number"] == number
            yield event
        else:
            assert line == "" or line.startswith(":") or line == "data: [DONE]", line
    assert last == "data: [DONE]"


def contents(client: httpx.Client, session_id: str) -> list[str]:
    """What is stored of a session, as texts."""
    items: list[Json] = []
    more = True
    while more:
        after = items[-1]["seq"] if items else 0
        page = client.get(f"/sessions/{session_id}/items", params={"after": after}).json()
        items += page["data"]
        more = page["has_more"]
    return [
        item["content"]
        if isinstance(item.get("content"), str)
        else "".join(part["text"] for part in item["content"])
        if "content" in item
        else item["type"]
        for item in items
    ]
