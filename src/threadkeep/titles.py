"""What items say: their text, and a title made of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents import TResponseInputItem

TITLE_LENGTH = 80
"""Of a title made from the first message, in characters."""

_NOT_IN_TITLES = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def title_of(items: list[TResponseInputItem]) -> str | None:
    """A title made from the first text a user wrote, on one line; None when there is none."""
    for item in items:
        if item.get("role") == "user":
            words = _NOT_IN_TITLES.sub(" ", text_of(item.get("content"))).split()
            text = " ".join(words)
            if text:
                return text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 1] + "…"
    return None


def text_of(content: object) -> str:
    """The text of a message's content, whether it is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
