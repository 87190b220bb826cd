"""Short forms for tests in which somebody decides about tool calls."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx

from tests.client import Json, follow

DECLINED = "declined: the user went on without approving it"
UNKNOWN = "outcome unknown"


def asked(response: Json) -> list[str]:
    """The ids of the approvals that a response asks for."""
    assert response["status"] == "incomplete", response
    assert response["incomplete_details"] == {"reason": "approval_required"}
    return [item["id"] for item in response["output"] if item["type"] == "mcp_approval_request"]


def decide(client: httpx.Client, approval_id: str, approve: bool, **more: Any) -> Json:
    """Decides; the approval as it is then."""
    reply = client.post(f"/approvals/{approval_id}", json={"approve": approve, **more})
    assert reply.status_code == 200, reply.text
    decided: Json = reply.json()
    return decided


def answer(client: httpx.Client, *verdicts: Json, **more: Any) -> httpx.Response:
    """Decides by input items, as the Responses API does."""
    items = [{"type": "mcp_approval_response"} | verdict for verdict in verdicts]
    body = json.dumps({"input": items} | more)  # httpx refuses half of a surrogate pair by itself
    return client.post("/responses", content=body, headers={"Content-Type": "application/json"})


def refusal(reply: httpx.Response) -> tuple[int, str]:
    """The status and the code of an error."""
    return reply.status_code, reply.json()["error"]["code"]


def end_of(client: httpx.Client, run_id: str) -> Json:
    """The response of a run, when it has ended."""
    *_, last = follow(client, run_id)
    response: Json = last["response"]
    return response


def outputs(client: httpx.Client, session_id: str = "s") -> list[str]:
    """What the session has as outputs of tools, in order."""
    items = client.get(f"/sessions/{session_id}/items").json()["data"]
    return [item["output"] for item in items if item["type"] == "function_call_output"]
