"""Memory that lasts for agents built on the OpenAI Agents SDK.

from threadkeep import Session

session = Session("user-123")
result = await Runner.run(agent, "Hello, I live in SF!", session=session)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadkeep.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> object:
    """Imports Session, and the Agents SDK with it, when it is used: commands need neither."""
    if name != "Session":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from threadkeep.session import Session

    return Session
