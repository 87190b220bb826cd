"""How large things may be. A server can be told otherwise (docs/limits.md), a library can't."""

from __future__ import annotations

from threadkeep.errors import TooLargeError

MAX_ITEM_BYTES = 4 * 1024 * 1024
"""Of an item as it is stored (ITEM_MAX_BYTES)."""

MAX_SESSION_ITEMS = 100_000
"""How many items a session may have with the input of a turn (SESSION_MAX_ITEMS)."""


def check_size(text: str, param: str, most: int = MAX_ITEM_BYTES) -> None:
    """Refuses an item that is too large.

    Args:
        text: The item as it is stored.
        param: How the caller names it.
        most: How large it may be, in bytes.

    Raises:
        TooLargeError: It is larger.
    """
    if len(text) * 4 > most and (size := len(text.encode())) > most:
        raise TooLargeError(
            f"{param} has {size} bytes as it is stored; an item may have {most} (ITEM_MAX_BYTES).",
            param=param,
            code="item_too_large",
        )
