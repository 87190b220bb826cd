"""Memory that lasts for agents built on the OpenAI Agents SDK.

from threadkeep import Session

session = Session("user-123")
result = await Runner.run(agent, "Hello, I live in SF!", session=session)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadkeep.memory import Memory
    from threadkeep.session import Session

__all__ = ["Memory", "Session"]

_MODULES = {"Memory": "threadkeep.memory", "Session": "threadkeep.session"}


def __getattr__(name: str) -> object:
    """Imports a class, and the Agents SDK with it, when it is used: commands need neither."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
