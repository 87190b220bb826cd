"""A local OpenAI-compatible server, which remembers what city it was told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from tests.serving import served

app = FastAPI()
_asked: set[str] = set()


@app.post("/v1/chat/completions")
async def chat_completions(request: Request) -> StreamingResponse:
    """Answers from what the user said before, a word at a time."""
    body = await request.json()
    said = " ".join(str(m["content"]) for m in body["messages"] if m["role"] == "user")
    if said.endswith("slow") and said not in _asked:  # once
        _asked.add(said)
        await asyncio.sleep(30)
    return StreamingResponse(_chunks(_answer(said)), media_type="text/event-stream")


@app.post("/v1/responses")
async def responses(request: Request) -> dict[str, Any]:
    """The same over the Responses API, plain."""
    said = " ".join(str(i["content"]) for i in (await request.json())["input"] if "role" in i)
    part = {"type": "output_text", "text": _answer(said), "annotations": []}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "fake",
        "status": "completed",
        "output": [message],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }


def _answer(said: str) -> str:
    found = re.search(r"I live in (\w+)", said)
    return f"You live in {found[1]}." if found and "What city" in said else "Hello to you."


async def _chunks(answer: str) -> AsyncIterator[str]:
    for word in re.findall(r"\S+\s*", answer):
        await asyncio.sleep(0.001)
        yield _chunk({"role": "assistant", "content": word}, None)
    yield _chunk({}, "stop")
    yield "data: [DONE]\n\n"


def _chunk(delta: dict[str, Any], finish_reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {
        "id": "chat-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }
    return f"data: {json.dumps(chunk)}\n\n"


@contextmanager
def fake_openai() -> Iterator[str]:
    """Runs it in a thread; gives its base URL."""
    with served(app) as url:
        yield f"{url}/v1"
