"""Single messages of an owner's sessions that matter for a query, best first.

A message is scored by its words and those around it: an answer seldom repeats what its question
says (passage_scores.py). Where a query names one of those who speak in a chat, what they say comes
first. All of it is made of the search index in two steps that read a bounded number of hits: the
newest of each word; then, where most words are close together, how the messages lie there. So both
backends find the same, in the same order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from threadkeep.database import Database, Row
from threadkeep.history import decode_item
from threadkeep.passage_scores import Hits, as_text, best_parts, hits_of, place_of, scored
from threadkeep.search_index import (
    BLOCK,
    CATCH_UP,
    DOCUMENT_CHARACTERS,
    LAYOUT,
    PART,
    SELF,
    author_term,
    catch_up,
    said,
    scope_of,
)
from threadkeep.words import words_of

MAX_QUERY = 2_000
"""How much of a query is looked at, in characters."""

MAX_WORDS = 24
"""How many of its words."""

MAX_READ = 20_000
"""How many hits of the index a search reads: each time a word is said, and each message whose
place in its session is looked up, is one."""

SHARES = (8_000, 8_000, 3_000)
"""Of these, for words; for how messages lie, and who wrote them; for words once more. The rest is
for names."""

MAX_TEXT = 1_000
"""Of a passage, in characters: of a longer message what lies around the first word found."""

_BEFORE_WORD = 200


@dataclass(frozen=True, slots=True)
class Passage:
    """A message of a session.

    Attributes:
        session_id: The session.
        seq: Which item of it.
        role: `user` or `assistant`; `document` for a message of the user that is too long to be
            what they say themselves.
        created_at: When it was stored, in ms since 1970.
        text: What it says, up to `MAX_TEXT` characters of it.
        score: The higher, the better it fits; 0 when it was not looked for by words.
    """

    session_id: str
    seq: int
    role: str
    created_at: int
    text: str
    score: float


async def search_passages(
    database: Database, owner: str, query: str, *, limit: int, without: str = ""
) -> tuple[list[Passage], bool]:
    """The messages of an owner that fit a query best.

    Args:
        database: Where they are.
        owner: Whose; '' is nobody.
        query: A question or words; what lies behind `MAX_QUERY` characters or `MAX_WORDS` words
            is left out.
        limit: How many at most.
        without: The id of a session that is left out.

    Returns:
        Passages, the best first, and no two that say the same. And whether everything was looked
        at: not when the index lags behind, or the words are said more often than `MAX_READ` lets
        be read, then the newest were.

    Raises:
        DatabaseError: The database can't be asked.
    """
    found = await find_passages(database, owner, query, limit=limit, without=without)
    return found.fitting, found.complete


@dataclass(frozen=True)
class Found:
    """What was found of past sessions.

    Attributes:
        fitting: Passages that fit a query, the best first.
        statements: What users said about themselves, the newest session's first.
        complete: Whether everything was looked at.
    """

    fitting: list[Passage]
    statements: list[Passage]
    complete: bool


async def find_passages(
    database: Database,
    owner: str,
    query: str,
    *,
    limit: int,
    statements: int = 0,
    without: str = "",
    catch_up_items: int = CATCH_UP,
) -> Found:
    """The messages of an owner that fit a query best, and what users said about themselves, as far
    as words tell (`says_of_self`).

    Args:
        database: Where they are.
        owner: Whose; '' is nobody.
        query: As for `search_passages`; '' finds statements alone.
        limit: How many that fit, at most.
        statements: How many statements, at most.
        without: The id of a session that is left out.
        catch_up_items: How many items are indexed before, about, at most.

    Raises:
        DatabaseError: The database can't be asked.
    """
    complete, left_out = await asyncio.gather(
        catch_up(database, owner, catch_up_items, without=without),
        _number_of(database, owner, without),
    )
    query = query[:MAX_QUERY]
    spans = list(words_of(query))
    words = list(dict.fromkeys(term for _, _, term in spans))[:MAX_WORDS]
    names = list(dict.fromkeys(author_term(query[start:end]) for start, end, _ in spans))
    names = names[:MAX_WORDS]
    marks = [*names, *([SELF] if statements else [])]
    newest, marked = await asyncio.gather(
        _newest(database, owner, words, left_out, SHARES[0] // max(1, len(words))),
        _newest(database, owner, marks, left_out, max(PART, 2 * statements)),
    )
    of_self: list[int] = []
    if statements:
        of_self = sorted(hits_of(marked, len(marks))[0][-1], reverse=True)[: 2 * statements]
    named = [row for row in marked if row["place"] < len(names)]
    ranked, is_whole = await _best(database, owner, words, names, newest, named, 2 * limit)
    places = dict.fromkeys([*(place for place, _ in ranked), *of_self])
    found = await _passages(database, owner, list(places), dict(ranked), set(words))
    return Found(
        _distinct(found, (place for place, _ in ranked))[:limit],
        _distinct(found, of_self)[:statements],
        complete and is_whole,
    )


async def _best(
    database: Database,
    owner: str,
    words: Sequence[str],
    names: Sequence[str],
    newest: Sequence[Row],
    named: Sequence[Row],
    limit: int,
) -> tuple[list[tuple[int, float]], bool]:
    """The places of the messages that fit best, with scores, and whether all were looked at.

    Args:
        words: Of the query.
        names: The authors that it may name.
        newest: The newest entries of the words.
        named: Those of the names.
        limit: How many at most.
    """
    if not words:
        return [], True
    hits, cut = await asyncio.to_thread(hits_of, newest, len(words))
    parts, all_parts = await asyncio.to_thread(best_parts, hits)
    authors = [names[place] for place in sorted({row["place"] for row in named})]
    more_of = [words[word] for word in cut]
    lying, more = await asyncio.gather(
        _at(database, owner, [LAYOUT, *authors], [as_text(at, PART) for at in parts], SHARES[1]),
        _at(database, owner, more_of, [as_text(at, BLOCK) for at in parts], SHARES[2]),
    )
    for word, added in zip(cut, hits_of(more, len(cut))[0], strict=True):
        hits[word].update(added)
    ranked = await asyncio.to_thread(_ranked, hits, parts, lying, limit)
    return ranked, all_parts and not cut and all(row["hits"] for row in (*lying, *more))


async def _number_of(database: Database, owner: str, session_id: str) -> int:
    """The number of a session in the index; -1, which none has, when there is none."""
    if not session_id:
        return -1
    rows = await database.call("get_session", session_id=session_id, owner=owner)
    return rows[0]["search_no"] or -1 if rows else -1


async def _newest(
    database: Database, owner: str, terms: Sequence[str], left_out: int, limit: int
) -> list[Row]:
    """The newest entries of terms, up to so many hits of each."""
    if not terms:
        return []
    return await database.call(
        "read_newest_postings",
        owner=owner,
        scope=scope_of(owner),
        terms=terms,
        without_no=left_out,
        limit=limit,
    )


async def _at(
    database: Database, owner: str, terms: Sequence[str], places: Sequence[str], limit: int
) -> list[Row]:
    """The entries of terms at blocks of sessions, up to so many hits of all."""
    if not terms or not places:
        return []
    return await database.call(
        "read_postings_at",
        owner=owner,
        scope=scope_of(owner),
        terms=terms,
        places=list(dict.fromkeys(places)),
        limit=limit,
    )


def _ranked(
    hits: Sequence[Hits], parts: Sequence[int], lying: Sequence[Row], limit: int
) -> list[tuple[int, float]]:
    """The places of messages and their scores: of the hits of words, and how messages lie in parts
    of sessions, and who wrote them."""
    layout = [row for row in lying if row["place"] == 0]
    of_names = [row for row in lying if row["place"] > 0]
    named, _ = hits_of(of_names, 1 + max((row["place"] for row in of_names), default=0))
    return scored(hits, parts, layout, named[1:], limit)


async def _passages(
    database: Database,
    owner: str,
    places: Sequence[int],
    scores: Mapping[int, float],
    words: set[str],
) -> dict[int, Passage]:
    """The messages at places."""
    if not places:
        return {}
    rows = await database.call(
        "read_passages", owner=owner, places=[as_text(place) for place in places]
    )
    passages = {}
    for row in rows:
        item = decode_item(row["data"])
        text = said(item) if item else ""
        if item and text:
            place = place_of(row["search_no"], row["seq"])
            passages[place] = Passage(
                row["session_id"],
                row["seq"],
                _speaker(item["role"], text),
                row["created_at"],
                _shown(text, words),
                round(scores.get(place, 0.0), 6),
            )
    return passages


def _distinct(found: Mapping[int, Passage], places: Iterable[int]) -> list[Passage]:
    """The passages at places, in that order, each text of a role once."""
    passages: dict[tuple[str, str], Passage] = {}
    for place in places:
        if one := found.get(place):
            passages.setdefault((one.role, one.text), one)
    return list(passages.values())


def _speaker(role: str, text: str) -> str:
    return "document" if role == "user" and len(text) > DOCUMENT_CHARACTERS else role


def _shown(text: str, words: set[str]) -> str:
    """A text, or what of a long one lies around the first of some words."""
    if len(text) <= MAX_TEXT:
        return text
    first = next((start for start, _, term in words_of(text) if term in words), 0)
    begin = max(0, min(first - _BEFORE_WORD, len(text) - MAX_TEXT))
    before, behind = "…" if begin else "", "…" if begin + MAX_TEXT < len(text) else ""
    return before + text[begin : begin + MAX_TEXT - 2].strip() + behind
