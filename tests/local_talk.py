"""What the tests of the embedded model talk about."""

from __future__ import annotations

from typing import Any

from agents import RunConfig, function_tool

INSTRUCTIONS = (
    "You are a helpful assistant. Remember what the user tells you about themselves and use it to "
    "answer their questions. Keep answers short."
)
UNTRACED = RunConfig(tracing_disabled=True)


@function_tool
def get_current_time() -> str:
    """Get the current date and time."""
    return "2031-05-17T16:20:00+00:00"


@function_tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"In {city} it snows."


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [part]}


def call(name: str, output: str) -> list[dict[str, Any]]:
    return [
        {"type": "function_call", "call_id": "call_1", "name": name, "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": output},
    ]
