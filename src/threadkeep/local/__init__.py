"""The embedded model: weights as data, llama.cpp in a process of its own, a Model for the SDK.

Nothing is loaded before a name is asked for: most users of Threadkeep have another model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadkeep.local.model import LocalModel
    from threadkeep.local.runtime import LocalRuntime

__all__ = ["LocalModel", "LocalRuntime"]

_WHERE = {"LocalModel": "threadkeep.local.model", "LocalRuntime": "threadkeep.local.runtime"}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
