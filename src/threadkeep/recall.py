"""Recall: before a model answers, what matters of memories and past sessions is put before it.

`Recall` is a `call_model_input_filter` of the SDK. What it adds stands in no session, and is made
anew in each run. It knows, too, what of the model's input comes from the user, and what from tools
and documents: for the memory tools, so that these can't write memories by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from agents import TResponseInputItem
from agents.run_config import CallModelData, CallModelInputFilter, ModelInputData

from threadkeep.database import Row
from threadkeep.errors import DatabaseError
from threadkeep.history import decode_item
from threadkeep.memory_origins import Origins
from threadkeep.memory_rows import text_of_memory
from threadkeep.memory_store import MemoryStore
from threadkeep.passages import Found, Passage, find_passages
from threadkeep.reminder import Note, Reminder, fitting
from threadkeep.session import NEWEST
from threadkeep.titles import text_of
from threadkeep.words import says_of_self, words_of

TOKENS = 1500
"""How many tokens a reminder has at most, about."""

_LATEST = 100
"""Of the pinned, and of the others: more than fit."""

_FITTING = 30
_CATCH_UP = 1_000
"""How many items of past sessions a turn waits for to be indexed."""

_LOOKED_AT = 100
_PATIENCE_SECONDS = 2.0
"""How long a turn waits for recall."""

_PASSAGES = 6
_STATEMENTS = 10
_MAX_QUESTION = 2_000
_SHORT = 3
"""A message of fewer words is looked for together with the one before it."""

_MEMORY_SHARE = 0.7
"""How much of a reminder memories may take when there are passages too."""

_logger = logging.getLogger("threadkeep")


class Recall:
    """Puts before a model what matters of an owner's memories and past sessions.

    Args:
        store: The memories.
        session_id: The session that is at work; what is said in it is before the model already.
        session_owner: Whose that is; by default the user's.
        user: Whose past sessions are looked at; None: nobody's.
        tokens: How many tokens it may have, about; 0: it recalls nothing.
        temporary: Whether nothing is to be recalled or remembered.
        keeps: Whether something may be remembered.
        facts_only: Whether of past sessions only what users said of themselves is recalled, and
            that not when they say more of it: so it is for the embedded model.
        then: Another filter, which has the input after this one.
    """

    def __init__(
        self,
        store: MemoryStore,
        *,
        session_id: str | None = None,
        session_owner: str | None = None,
        user: str | None = None,
        tokens: int = TOKENS,
        temporary: bool = False,
        keeps: bool = True,
        facts_only: bool = False,
        then: CallModelInputFilter | None = None,
    ) -> None:
        self.store = store
        self.session_id = session_id
        self.temporary = temporary
        self.keeps = keeps
        self.origins = Origins()
        self._session_owner = user if session_owner is None else session_owner
        self._user = user
        self._tokens = tokens
        self._facts_only = facts_only
        self._then = then
        self._asked: str | None = None
        self._reminder: Reminder | None = None
        self._is_known = False

    @property
    def references(self) -> list[dict[str, Any]]:
        """What was recalled, by ids: memories and their versions, sessions and their items."""
        return [note.reference for note in self._reminder.notes] if self._reminder else []

    async def __call__(self, data: CallModelData[Any]) -> ModelInputData:
        """The model's input with a reminder before the user's last message."""
        items = list(data.model_data.input)
        place = await self._begin(cast(Sequence[Mapping[str, Any]], items))
        if place is not None and self._reminder is not None:
            items.insert(place, cast(TResponseInputItem, self._reminder))
        result = ModelInputData(input=items, instructions=data.model_data.instructions)
        if self._then is None:
            return result
        data = CallModelData(model_data=result, agent=data.agent, context=data.context)
        filtered = self._then(data)
        return await filtered if asyncio.iscoroutine(filtered) else cast(ModelInputData, filtered)

    async def _begin(self, items: Sequence[Mapping[str, Any]]) -> int | None:
        """Recalls when the run begins; gives the place of the message that it was asked with.

        An agent that is a tool runs with the config of who calls it: its input was written by a
        model, has not that message, and gets nothing of it.
        """
        users = [place for place, item in enumerate(items) if _is_users(item)]
        if not users:
            self.origins.learn(items)
            return None
        last = _text(items[users[-1]])
        asked = [place for place in users if _text(items[place]) == self._asked]
        if self._asked is None or (asked and last != self._asked):  # it is used for a next turn
            self._asked, self.origins = last, Origins()
            self.origins.learn(items)
            question = _question([_text(items[place]) for place in users])
            self._reminder = await self._remind(question, {_text(item) for item in items})
            return users[-1]
        self.origins.learn(items)
        return asked[-1] if asked else None

    async def _remind(self, question: str, present: set[str]) -> Reminder | None:
        if self.temporary or not self._tokens:
            return None
        if self._facts_only and says_of_self(self._asked or ""):
            return None  # whoever tells something asks for nothing
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                may_recall, notes = await asyncio.gather(
                    self.may_recall(),
                    notes_for(
                        self.store,
                        question,
                        user=self._user,
                        without=self.session_id,
                        present=present,
                        facts_only=self._facts_only,
                        tokens=self._tokens,
                    ),
                )
        except (DatabaseError, TimeoutError) as error:
            # An answer without memories is better than none.
            _logger.warning("Nothing is recalled for a run: %s", type(error).__name__)
            return None
        if not may_recall or not notes:
            return None
        self.origins.learn_notes(notes)
        return Reminder(notes)

    async def look_at_session(self) -> None:
        """Learns from what is stored whose words are whose, before the model is asked."""
        items: list[dict[str, Any]] = []
        if self.session_id is not None and self._session_owner is not None:
            items = await _stored_items(self.store, self.session_id, self._session_owner)
        self.origins.learn(items)
        self.origins.is_tainted = True

    async def may_recall(self) -> bool:
        """Whether the session is one that recalls and remembers; asked for once."""
        if not self.temporary and not self._is_known:
            if self.session_id is not None and self._session_owner is not None:
                rows = await self.store.database.call(
                    "get_session", session_id=self.session_id, owner=self._session_owner
                )
                self.temporary = bool(rows and rows[0]["temporary"])
            self._is_known = True
        return not self.temporary


async def _stored_items(store: MemoryStore, session_id: str, owner: str) -> list[dict[str, Any]]:
    """The newest items of a session, in order."""
    rows = await store.database.call(
        "read_latest_items", session_id=session_id, owner=owner, before=NEWEST, limit=_LOOKED_AT
    )
    items = [decode_item(row["data"]) for row in reversed(rows) if row["data"]]
    return [item for item in items if item is not None]


async def notes_for(
    store: MemoryStore,
    question: str,
    *,
    user: str | None,
    without: str | None,
    tokens: int,
    present: Container[str] = (),
    facts_only: bool = False,
) -> list[Note]:
    """What matters for a question, the most important first, as much as fits.

    Args:
        store: The memories.
        question: What the user says.
        user: Whose past sessions are looked at; None: nobody's.
        without: A session that is left out.
        tokens: How many tokens the notes may have, about.
        present: What is before the model already.
        facts_only: Whether of past sessions only what users said of themselves is taken.

    Raises:
        DatabaseError: They could not be read.
    """
    latest, found, past = await asyncio.gather(
        store.latest(_LATEST),
        store.find(question, _FITTING),
        _past(store, "" if facts_only else question, user, without),
    )
    pinned = [row for row in latest if row["pinned"]]
    others = [row for row in latest if not row["pinned"]]
    rows = {row["memory_id"]: row for row in (*pinned, *found, *others)}
    memories = [_memory_note(row) for row in rows.values()]
    sources = {(row["source_session"], row["source_seq"]) for row in rows.values()}
    said = [
        _passage_note(one)
        for one in (*past.fitting, *past.statements)
        if (one.session_id, one.seq) not in sources and one.text not in present
    ]
    share = _MEMORY_SHARE if said else 1
    kept = fitting(memories, round(tokens * share))
    left = tokens - sum(len(note.line().encode()) for note in kept) // 4
    return kept + fitting(said, left)


async def _past(store: MemoryStore, question: str, user: str | None, without: str | None) -> Found:
    if user is None:
        return Found([], [], True)
    return await find_passages(
        store.database,
        user,
        question,
        limit=_PASSAGES,
        statements=_STATEMENTS,
        without=without or "",
        catch_up_items=_CATCH_UP,
    )


def _memory_note(row: Row) -> Note:
    was = None
    if row["was"] is not None:
        was = (text_of_memory(row["was"], row["was_contents"]), row["was_from"])
    reference = {"memory": row["memory_id"], "version": row["version"]}
    text = text_of_memory(row["description"], row["contents"])
    return Note(text, row["valid_from"], "", reference, was)


def _passage_note(one: Passage) -> Note:
    reference = {"session_id": one.session_id, "seq": one.seq}
    return Note(one.text, one.created_at, one.role, reference)


def _is_users(item: Any) -> bool:
    return (
        isinstance(item, Mapping) and item.get("role") == "user" and not isinstance(item, Reminder)
    )


def _text(item: Any) -> str:
    return text_of(item.get("content"))


def _question(texts: Sequence[str]) -> str:
    """What is looked for: the last message, with the one before it when it is short."""
    last = texts[-1][:_MAX_QUESTION]
    if len(texts) > 1 and len(list(islice(words_of(last), _SHORT))) < _SHORT:
        return f"{last}\n{texts[-2][:_MAX_QUESTION]}"
    return last
