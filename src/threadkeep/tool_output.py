"""What tools give: in plain form, and not larger than an item may be.

The model of the run, its journal and its session all get the same. What is too large is cut in the
middle, with a note of how much is missing: a failed turn would help nobody, and an output that no
model can read would make every later turn of the session fail.
"""

from __future__ import annotations

from typing import Any

from agents import ToolOutputFileContent, ToolOutputImage, ToolOutputText

from threadkeep.history import json_text

_STRUCTURED = (ToolOutputText, ToolOutputImage, ToolOutputFileContent)
_KINDS = ("text", "image", "file")
_FRAME = 1024
"""For what an item has beside its output, and the note, in bytes."""


def plain(value: Any) -> Any:
    """The SDK's images, files and texts as the dictionaries that mean the same to it."""
    if isinstance(value, _STRUCTURED):
        return value.model_dump(exclude_none=True)
    if isinstance(value, (list, tuple)) and any(isinstance(v, _STRUCTURED) for v in value):
        parts = [plain(part) for part in value]
        return parts if all(isinstance(part, dict) for part in parts) else value
    return value


def bounded(output: Any, most: int) -> Any:
    """What a tool gave, or as much of it as an item of `most` bytes can hold, as text.

    Pictures and files can't be cut: they are left out.
    """
    if output is None:
        return None
    value = plain(output)
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, dict) and part.get("type") in _KINDS for part in parts):
        text = str(output)
        cut = bounded_text(text, most)
        return output if cut == text else cut
    if _size(value) <= most - _FRAME:
        return output
    text = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    lost = sum(part["type"] != "text" for part in parts)
    if lost:
        text += f"\n[Left out: {lost} images or files, too large for ITEM_MAX_BYTES={most}]"
    return bounded_text(text, most)


def bounded_text(text: str, most: int) -> str:
    """A text, or its beginning and its end, as an item of `most` bytes can hold it."""
    room = most - _FRAME
    if len(text) * 12 <= room or _size(text) <= room:  # no character takes more
        return text
    head, tail = _beginning(text, room // 2), _beginning(text[::-1], room // 2)[::-1]
    left_out = len(text) - len(head) - len(tail)
    note = f"[Left out: {left_out} characters, too large for ITEM_MAX_BYTES={most}]"
    return f"{head}\n{note}\n{tail}"


def _beginning(text: str, room: int) -> str:
    kept = text[:room]
    while (size := _size(kept)) > room:
        kept = kept[: len(kept) * room // size]
    return kept


def _size(value: Any) -> int:
    """As JSON, in bytes."""
    try:
        return len(json_text(value).encode())
    except (TypeError, ValueError, RecursionError):  # the SDK says what is wrong with it
        return len(str(value))
