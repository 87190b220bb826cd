"""How the tools are named that need no approval in a session."""

from __future__ import annotations

from urllib.parse import quote, unquote


def tool_id(agent_name: str, tool_name: str) -> str:
    """What names a tool of an agent, among those that need no approval in a session."""
    return f"{quote(agent_name, safe=' ')}/{tool_name}"


def tool_of(named: str) -> dict[str, str]:
    """The `agent` and the `name` of a tool that `tool_id` names."""
    agent, _, name = named.partition("/")
    return {"agent": unquote(agent), "name": name}


FOR_LARGER_MODELS = "__threadkeep_for_larger_models__"
"""What marks a tool that the embedded model is not offered: it would call it for no reason."""
