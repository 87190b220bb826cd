"""What a memory may say, and where it may lie."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from threadkeep.errors import InvalidInputError
from threadkeep.history import UNSTORABLE, check_id, check_text

MAX_PATH = 1024
"""Of a path, in characters."""

MAX_DESCRIPTION = 500
"""Of a description, in characters."""

MAX_CONTENTS = 20_000
"""Of contents, in characters."""

MAX_KEYWORDS = 20
MAX_KEYWORD = 100
"""Of a keyword, in characters."""

MAX_TIME_MS = 253_402_300_799_999
"""The end of the year 9999, in milliseconds."""

_SHARED = "\x02"
_PREFIX = "/memories/"
_UNPATHLIKE = re.compile(r"\s|//|/$")
_PROFILE = re.compile(r"/memories/(user|profile|preferences?|about)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Where a memory comes from: the message of a session by its seq, and when that was stored, in
    ms since 1970, which tells it from another one that has that seq later."""

    session_id: str | None = None
    seq: int | None = None
    at: int | None = None


NO_SOURCE = Source()
"""It comes from no conversation."""


@dataclass(frozen=True)
class Draft:
    """What a memory says.

    Args:
        description: One line; a short fact is all there.
        contents: More of it, in as many lines as needed.
        keywords: Other names for what it is about.
        pinned: Whether it is put before the model in every conversation.
        valid_from: Since when it holds, in ms since 1970; None: since it is stored.
        valid_to: Until when; None: it holds for good.
        superseded_by: The id of the memory that holds in its place.
    """

    description: str
    contents: str = ""
    keywords: Sequence[str] = field(default_factory=tuple)
    pinned: bool = False
    valid_from: int | None = None
    valid_to: int | None = None
    superseded_by: str | None = None

    def checked(self) -> Draft:
        """It, or an error that says what is wrong with it.

        Raises:
            InvalidInputError: Something is missing, too long, or can't be stored.
        """
        _check_type("description", self.description)
        text = " ".join(self.description.split())
        if not text:
            raise InvalidInputError(
                "description is empty. Say in one line what is to be remembered.",
                param="description",
                code="empty",
            )
        _check_length("description", text, MAX_DESCRIPTION)
        _check_length("contents", self.contents, MAX_CONTENTS)
        if len(self.keywords) > MAX_KEYWORDS:
            raise InvalidInputError(f"{MAX_KEYWORDS} keywords at most.", param="keywords")
        for index, keyword in enumerate(self.keywords):
            _check_length(f"keywords[{index}]", keyword, MAX_KEYWORD)
        for name in ("valid_from", "valid_to"):
            if not 0 <= (getattr(self, name) or 0) <= MAX_TIME_MS:
                raise InvalidInputError(f"{name} must lie in the years 1970 to 9999.", param=name)
        if self.valid_to is not None and self.valid_to < (self.valid_from or 0):
            raise InvalidInputError("valid_to lies before valid_from.", param="valid_to")
        return replace(self, description=text, keywords=tuple(self.keywords))


def check_path(path: object, param: str = "path") -> str:
    """A path that a memory may have, by the rules of Databricks' managed memory.

    Raises:
        InvalidInputError: It is none; says which rule it breaks.
    """
    if not isinstance(path, str):
        raise InvalidInputError(f"{param} must be a string.", param=param, code="invalid_type")
    rule = None
    if not path.startswith(_PREFIX) or path == _PREFIX:
        rule = f"must begin with {_PREFIX} and name something, such as /memories/diet.md"
    elif len(path) > MAX_PATH:
        rule = f"must have {MAX_PATH} characters at most"
    elif _UNPATHLIKE.search(path):
        rule = "must have no white space, no empty part and no slash at its end"
    elif UNSTORABLE.search(path):
        rule = "must have no control characters and no lone surrogates"
    if rule:
        raise InvalidInputError(f"{param} {rule}.", param=param)
    return path


def path_for(description: str) -> str:
    """A path made of what a memory says: its letters and digits, of any script, in lower case."""
    text = unicodedata.normalize("NFC", description.lower())
    words = "".join(c if _is_of_a_word(c) else " " for c in text).split()
    slug = "-".join(words)[:60].strip("-")
    return f"{_PREFIX}notes/{slug or secrets.token_hex(4)}.md"


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def is_profile(path: str) -> bool:
    """Whether a path is one for what is always worth to know."""
    return _PROFILE.match(path) is not None


def shared_scope(name: str) -> str:
    """The owner of memories that several users share; no user can have that name.

    Raises:
        InvalidInputError: The name can't be used.
    """
    return _SHARED + check_id(name, "shared")


def _check_type(param: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidInputError(f"{param} must be a string.", param=param, code="invalid_type")


def _check_length(param: str, text: str, most: int) -> None:
    _check_type(param, text)
    if len(text) > most:
        raise InvalidInputError(
            f"{param} has {len(text)} characters; {most} at most are kept. Keep what matters.",
            param=param,
            code="too_long",
        )
    check_text(text, param)
