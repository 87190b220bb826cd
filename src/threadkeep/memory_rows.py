"""Memories as the statements return them: what the API gives of a row, and what can't be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from threadkeep.database import Damaged, Row
from threadkeep.errors import InvalidInputError
from threadkeep.memory_form import Draft

UNREADABLE = "(can't be read)"
"""What a memory says that is damaged."""

_CONTENTS = ("path", "description", "contents", "keywords")


def memory_object(row: Row) -> dict[str, Any]:
    """A memory as the API gives it; times in seconds. Of one that is damaged what can be told.

    Args:
        row: As the statements of memories return them.
    """
    keywords = keywords_of(row)
    return {
        "id": row["memory_id"],
        "object": "memory",
        "path": _told(row["path"]),
        "description": UNREADABLE if keywords is None else row["description"],
        "contents": "" if keywords is None else row["contents"],
        "keywords": keywords or [],
        "pinned": bool(row["pinned"]),
        "version": row["version"],
        "source": _source_object(row),
        "created_at": row["created_at"] // 1000,
        "updated_at": row["updated_at"] // 1000,
        "valid_from": row["valid_from"] // 1000,
        "valid_to": None if row["valid_to"] is None else row["valid_to"] // 1000,
        "superseded_by": row["superseded_by"],
    }


def text_of_memory(description: str, contents: str) -> str:
    """What a memory says, in one text."""
    return f"{description}\n{contents}" if contents else description


def version_object(row: Row) -> dict[str, Any]:
    """What a memory was before, as the API gives it; times in seconds.

    Args:
        row: As `list_versions` returns them.
    """
    return {
        "version": row["version"],
        "description": _told(row["description"]),
        "contents": _told(row["contents"]),
        "source": _source_object(row),
        "valid_from": row["valid_from"] // 1000,
        "valid_to": row["valid_to"] // 1000,
        "superseded_by": row["superseded_by"],
    }


def draft_of(row: Row) -> Draft:
    """What a memory says, to be changed.

    Raises:
        InvalidInputError: It can't be read.
    """
    keywords = keywords_of(row)
    if keywords is None:
        raise InvalidInputError(
            "This memory is damaged: it can't be read, so it can't be changed. Delete it.",
            code="unreadable",
        )
    return Draft(
        row["description"],
        row["contents"],
        tuple(keywords),
        bool(row["pinned"]),
        row["valid_from"],
        row["valid_to"],
        row["superseded_by"],
    )


def legible(rows: Sequence[Row]) -> list[Row]:
    """Those that can be read; of what they were nothing, where that can't.

    Args:
        rows: As `read_memories` returns them.
    """
    return [
        {**row, "was": None} if _is_damaged(row, ("was", "was_contents")) else row
        for row in rows
        if keywords_of(row) is not None
    ]


def keywords_of(row: Row) -> list[str] | None:
    """The keywords of a memory; None: it can't be read."""
    if _is_damaged(row, _CONTENTS):
        return None
    try:
        keywords = json.loads(row["keywords"])
    except (ValueError, RecursionError):
        return None
    return keywords if isinstance(keywords, list) else None


def _is_damaged(row: Row, names: Sequence[str]) -> bool:
    return any(isinstance(row[name], Damaged) for name in names)


def _told(text: str) -> str:
    return UNREADABLE if isinstance(text, Damaged) else text


def _source_object(row: Row) -> dict[str, Any] | None:
    if row["source_session"] is None:
        return None
    return {"session_id": row["source_session"], "seq": row["source_seq"]}
