"""Lists as the API gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def page_of(data: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list.

    Args:
        data: Holds one more than asked for when there are more.
        limit: How many were asked for.
    """
    shown = data[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(data) > limit,
    }
