"""Whose words a model has before it: the user's own, or those of tools, documents and agents.

The memory tools ask here, so that what a page says can't write memories by itself. What was learned
in a run stays: items that leave the model's input again (by a handoff, or in an agent that is a
tool) are not forgotten, and nothing that appears after the run has begun is the user's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from threadkeep.reminder import Note, Reminder, user_lines
from threadkeep.search_index import DOCUMENT_CHARACTERS
from threadkeep.titles import text_of
from threadkeep.words import negates, terms_of

OWN_TOOLS = frozenset(
    f"{what}_{noun}"
    for what in ("save", "get", "list", "update", "delete", "search")
    for noun in ("memory", "memories")
)
"""What they give was remembered before."""

HISTORY_TOOL = "search_history"

NEGATION = "!"
"""Stands among the words of a text that says no: they mean the contrary."""

_THEIRS = 1 / 3
_OURS = 1 / 2
_SPOKEN_OF = 1 / 3
_WISH = re.compile(
    r"\b(?:forget|delete|remove|erase|drop|clear|correct|change|update|replace|wrong|"
    r"no longer|not any ?more|any ?more|instead|now)\b",
    re.IGNORECASE,
)
_PIECES = re.compile(r"[\n.;!?]+")
_MESSAGES = (None, "message")


class Origins:
    """The words of one run, by where they come from. Texts are taken in as they come, and looked
    at when somebody asks."""

    def __init__(self) -> None:
        self.has_begun = False
        self.is_tainted = False
        self._own: set[str] = set()
        self._foreign: set[str] = set()
        self._asked = ""
        self._known: set[str] = set()
        self._names: dict[Any, Any] = {}
        self._read: set[Any] = set()
        self._waiting: list[tuple[bool, str]] = []
        self._looking = asyncio.Lock()

    def learn(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Takes in a model's input. In that of the first call what users say is the user's own.

        Args:
            items: The input; a `Reminder` in it is passed over.
        """
        is_first, self.has_begun = not self.has_begun, True
        for item in items:
            if isinstance(item, Reminder):
                continue
            kind = item.get("type")
            if kind in _MESSAGES and "role" in item:
                self._learn_message(item, is_first)
            elif kind == "function_call":
                self._names[item.get("call_id")] = item.get("name")
            elif kind != "reasoning":
                self._learn_output(item, is_first)

    def learn_notes(self, notes: Iterable[Note]) -> None:
        """Takes in what the model is reminded of: memories and the user's words are trusted."""
        for note in notes:
            self._add(note.speaker in ("", "user"), note.text)

    def _learn_message(self, item: Mapping[str, Any], is_first: bool) -> None:
        content = item.get("content")
        text = text_of(content)
        if item.get("role") != "user":
            return  # what the agent says is nobody's: neither proves nor refutes
        is_own = is_first and len(text) <= DOCUMENT_CHARACTERS
        is_new = self._add(is_own, text)
        if is_first:
            self.is_tainted = not is_own or _has_file(content)
            self._asked = text if is_own else ""
        elif is_new:
            self.is_tainted = True

    def _learn_output(self, item: Mapping[str, Any], is_first: bool) -> None:
        name = self._names.get(item.get("call_id"))
        output = item.get("output")
        text = output if isinstance(output, str) else text_of(output) or _json(item)
        if name in OWN_TOOLS:
            self._add(True, text)
        elif name == HISTORY_TOOL:
            for line, is_users in user_lines(text):
                self._add(is_users, line)
        else:
            is_new = item.get("call_id") not in self._read
            self._read.add(item.get("call_id"))
            self._add(False, text)
            self.is_tainted = self.is_tainted or is_first or is_new

    def _add(self, is_own: bool, text: str) -> bool:
        """Keeps a text to be looked at; gives whether it is new."""
        if text in self._known:
            return False
        self._known.add(text)
        self._waiting.append((is_own, text))
        return True

    async def _look(self) -> None:
        async with self._looking:
            waiting, self._waiting = self._waiting, []
            if waiting:
                await asyncio.to_thread(self._take_in, waiting)

    def _take_in(self, waiting: Sequence[tuple[bool, str]]) -> None:
        for is_own, text in waiting:
            (self._own if is_own else self._foreign).update(claims(text))

    async def allow(self, texts: Iterable[str], known: str = "") -> bool:
        """Whether what is to be remembered is the user's.

        Not if a third of the words of a sentence are of tools or documents alone, or a number is,
        or its "not"; nor, when one of these has spoken since the user did, if half of the words are
        not the user's.

        Args:
            texts: What is to be remembered.
            known: What was remembered before.
        """
        await self._look()
        own = self._own | claims(known)
        pieces = [piece for text in texts for piece in _PIECES.split(text)]
        return all(self._allows(claims(piece), own) for piece in pieces)

    def _allows(self, words: set[str], own: set[str]) -> bool:
        new = words - own
        theirs = new & self._foreign
        if len(theirs) >= _THEIRS * len(words) > 0 or NEGATION in theirs:
            return False
        if any(any(map(str.isdigit, word)) for word in theirs):
            return False
        return not (self.is_tainted and len(new) > _OURS * len(words))

    async def are_theirs(self, text: str, at_least: int = 1) -> bool:
        """Whether a text has so many words, and tools or documents alone have said half of them."""
        await self._look()
        words = claims(text)
        return len(words) >= at_least and 2 * len(words & self._foreign - self._own) > len(words)

    async def wish_for(self, text: str) -> bool:
        """Whether the user may have spoken of a memory: not, once a tool or a document has spoken
        since, if their message has none of its words, or one alone and no word such as "forget".

        Args:
            text: What the memory says.
        """
        if not self.is_tainted:
            return True
        words = claims(text) - {NEGATION}
        spoken = words & claims(self._asked)
        if not spoken:
            return False
        return len(spoken) >= _SPOKEN_OF * len(words) or _WISH.search(self._asked) is not None


def claims(text: str) -> set[str]:
    """The words of a text, with `NEGATION` where it says no."""
    words = terms_of(text)
    return words | {NEGATION} if words and negates(text) else words


def _has_file(content: Any) -> bool:
    parts = content if isinstance(content, list) else []
    return any(
        isinstance(part, Mapping) and part.get("type") in ("input_file", "input_image")
        for part in parts
    )


def _json(item: Mapping[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False, default=str)
