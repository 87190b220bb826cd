"""The search index: what of sessions is in it, and how that is brought up to date.

It is brought up to date by whoever searches, and by a server now and then, never by a turn. Each
word of a session is one entry for 256 of its items, with the seq of each item that says it. What is
no word of a text has a term of its own, in entries of 32 items: LAYOUT has each message with its
length, SELF those in which users say something about themselves, `author_term` those that begin
with the name of who speaks.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from threadkeep.database import Database, Row
from threadkeep.errors import DatabaseError, DuplicateError, SealedError
from threadkeep.history import decode_item
from threadkeep.titles import text_of
from threadkeep.words import folded, says_of_self, words_of

CATCH_UP = 5_000
"""How many items a search adds to the index before it looks, at most."""

PAUSE_SECONDS = 5.0
"""Between two looks of a server for what is not in the index, on average."""

BLOCK = 256
"""How many items of a session share an entry of a word."""

PART = 32
"""How many share an entry of what is no word."""

LAYOUT = ""
"""The term of all messages: its hits are `seq:length`, the length in words, and a `?` behind it
when the message ends with a question."""

SELF = "@self"
"""The term of messages in which a user says something about themselves."""

_BATCH = 200
"""How many items are indexed in one statement."""

_AT_ONCE = 16
"""How many sessions are indexed at the same time."""

_MAX_HITS = 8
"""Of one word in one item: more of them weigh no more."""

_NAME = r"[^\W_][\w.'\u2019-]{0,39}"
_SPEAKER = re.compile(rf"\s*({_NAME}(?: {_NAME}){{0,2}}):\s")
"""How a message of a chat of several begins."""

DOCUMENT_CHARACTERS = 2_000
"""A message of the user that is longer is a document, not what they say of themselves."""

_logger = logging.getLogger("threadkeep")


def said(item: dict[str, Any]) -> str:
    """The text of a message of a user or the agent; '' of anything else."""
    if item.get("role") not in ("user", "assistant"):
        return ""
    return text_of(item.get("content"))


async def catch_up(
    database: Database, owner: str | None, max_items: float = math.inf, *, without: str = ""
) -> bool:
    """Adds to the index what is not in it.

    Args:
        database: Where it lies.
        owner: Whose sessions; None: everybody's.
        max_items: About how many items at most.
        without: The id of a session that is left for others.

    Returns:
        False when there is more.

    Raises:
        DatabaseError: Not all could be added.
    """
    left = max_items
    while rows := await database.call(
        "list_to_index", owner=owner, without=without, limit=_AT_ONCE
    ):
        if left <= 0:
            return False
        left -= sum(await asyncio.gather(*(_index(database, row, left) for row in rows)))
    return True


async def keep_indexing(database: Database) -> None:
    """Adds what is new to the index, again and again, until it is cancelled."""
    told = False
    while True:
        await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        try:
            await catch_up(database, None)
            told = False
        except DatabaseError as error:
            if not told:
                _logger.warning("The search index is not brought up to date: %s", error)
            told = True


async def _index(database: Database, session: Row, most: float) -> int:
    """Indexes about so many items of a session, from where that was left; gives how many it has
    looked at."""
    session_id, owner, epoch = session["session_id"], session["owner"], session["epoch"]
    known_epoch, known_seq = session["indexed_epoch"], session["indexed_seq"]
    if known_epoch != epoch and session["search_no"] is not None:
        reset_epoch = -1 - secrets.randbits(62)
        if not await database.call(
            "reset_index",
            session_id=session_id,
            owner=owner,
            indexed_epoch=known_epoch,
            indexed_seq=known_seq,
            reset_epoch=reset_epoch,
        ):
            return 1
        known_epoch, known_seq = reset_epoch, 0
    looked_at, time = 1, session["created_at"]
    while True:
        try:
            items, title = await _texts(database, session, known_seq, known_epoch != epoch)
        except SealedError:  # by a key that is gone: nobody can read it, so nobody can find it
            items, title = [], None
        seq = items[-1]["seq"] if items else session["seq"]
        entries = await asyncio.to_thread(_entries, items, title, not session["set_aside"])
        try:
            done = await database.call(
                "index_session",
                session_id=session_id,
                owner=owner,
                scope=scope_of(owner),
                epoch=epoch,
                seq=seq,
                search_no=(time << 20) + secrets.randbits(20),
                indexed_epoch=known_epoch,
                indexed_seq=known_seq,
                terms=[term for term, _ in entries],
                blocks=[str(block) for _, block in entries],
                hits=[",".join(hits) for hits in entries.values()],
            )
        except DuplicateError:  # very many were made in this millisecond: take the next
            time += 1
            continue
        looked_at += len(items)
        if not done or len(items) < _BATCH or looked_at >= most:
            return looked_at
        known_epoch, known_seq = epoch, seq


async def _texts(
    database: Database, session: Row, after: int, with_title: bool
) -> tuple[list[Row], str | None]:
    """The next items of a session, and its title."""
    which = {"session_id": session["session_id"], "owner": session["owner"]}
    rows = await database.call("read_first_items", **which, after=after, limit=_BATCH)
    title = None
    if with_title:
        found = await database.call("get_session", **which)
        title = found[0]["title"] if found else None
    return [row for row in rows if row["seq"] is not None], title


def _entries(
    items: Sequence[Row], title: str | None, as_passages: bool
) -> dict[tuple[str, int], list[str]]:
    """The entries of items: by term and block the hits, in the order of the items.

    Args:
        items: Of a session.
        title: Of it.
        as_passages: Whether its messages are to be found, too, and not only the session.
    """
    entries: dict[tuple[str, int], list[str]] = defaultdict(list)
    if title:
        _add_words(entries, 0, title)
    for row in items:
        item = decode_item(row["data"])
        text = said(item) if item else ""
        if item and text:
            seq = row["seq"]
            length = _add_words(entries, seq, text)
            if not as_passages:
                continue
            asks = "?" if text.rstrip().endswith(("?", "\uff1f")) else ""
            entries[LAYOUT, seq // PART].append(f"{seq}:{length}{asks}")
            for term in _marks(item["role"], text):
                entries[term, seq // PART].append(str(seq))
    return entries


def _add_words(entries: dict[tuple[str, int], list[str]], seq: int, text: str) -> int:
    """Adds the words of a text; gives how many it has."""
    counts = Counter(term for _, _, term in words_of(text))
    for term, count in counts.items():
        entries[term, seq // BLOCK] += [str(seq)] * min(count, _MAX_HITS)
    return counts.total()


def _marks(role: str, text: str) -> Iterator[str]:
    """What is to be known of a message beside its words."""
    speaker = _SPEAKER.match(text)
    if speaker and not speaker[1][0].islower():
        yield from {author_term(word) for word in speaker[1].split()}
    is_short = len(text) <= DOCUMENT_CHARACTERS
    if role == "user" and is_short and says_of_self(text[speaker.end() :] if speaker else text):
        yield SELF


def author_term(word: str) -> str:
    """The term of messages that begin with a name that has this word."""
    return f"@:{folded(word)}"


def scope_of(owner: str) -> int:
    """The number of an owner in the index, of 63 bits."""
    digest = hashlib.sha256(b"threadkeep search " + owner.encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
