"""Search over an owner's sessions: their titles and what was said, on an index of our own.

The index is brought up to date by whoever searches, and by a server now and then, never by a
turn. Each word of a session is one entry for 256 of its items, in the order of their sessions. So
a search reads a bounded number of entries, whatever there is, and both backends find the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from threadkeep.database import Database, Row
from threadkeep.errors import DatabaseError, DuplicateError, InvalidInputError, SealedError
from threadkeep.history import decode_item
from threadkeep.stored_sessions import session_object
from threadkeep.titles import text_of
from threadkeep.words import query_words, words_of

MAX_QUERY = 400
"""Of a query, in characters."""

MAX_WORDS = 12
"""Of a query; what comes behind them is left out."""

MAX_READ = 10_000
"""How many entries of the index a search reads to find sessions, and again to complete them."""

MAX_ENDINGS = 20
"""How many words an unfinished one may stand for."""

CATCH_UP = 5_000
"""How many items a search adds to the index before it looks, at most."""

PAUSE_SECONDS = 5.0
"""Between two looks of a server for what is not in the index, on average."""

_BLOCK = 256
"""How many items of a session share an entry."""

_BATCH = 200
"""How many items are indexed in one statement."""

_AT_ONCE = 16
"""How many sessions are indexed at the same time."""

_MAX_HITS = 8
"""Of one word in one item: more of them weigh no more."""

_TITLE_HITS = 3
"""How often a word in the title counts."""

_SATURATION = 1.2
_AROUND = 80
"""What is shown on either side of the first word found, in characters."""

_logger = logging.getLogger("threadkeep")


@dataclass
class _Found:
    """A session as the index has it: for each word of the query its hits there, and what they
    weigh."""

    search_no: int
    hits: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    score: float = 0.0


async def search_sessions(
    database: Database, owner: str, query: str, *, after: str = "", limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """An owner's sessions in which all words of a query are said, or stand in the title.

    Args:
        database: Where they are.
        owner: Whose; '' is nobody.
        query: Words in any order; a last one that may be unfinished stands for those it begins.
        after: Go on behind the session of this id.
        limit: How many at most.

    Returns:
        Sessions, the best first, each with its `match`: the `seq` of the item that fits best (None:
        only the title does), a passage of its `text`, and in there the `marks`, [start, end) of
        each word found. And whether all was searched: not when the index lags behind by more than
        `CATCH_UP` items, or a word is said in more sessions than are looked at, the newest.

    Raises:
        InvalidInputError: The query is too long.
        DatabaseError: The database can't be asked.
    """
    if len(query) > MAX_QUERY:
        raise InvalidInputError(
            f"q must have {MAX_QUERY} characters at most, not {len(query)}.", param="q"
        )
    is_current = await catch_up(database, owner, CATCH_UP)
    words, beginning = query_words(query)
    words = words[:MAX_WORDS]
    if not words:
        return [], is_current
    ranked, is_whole = await _ranked(database, owner, words, beginning)
    start = 0
    if after:
        found = await database.call("get_session", session_id=after, owner=owner)
        numbers = [one.search_no for one in ranked]
        behind = found[0]["search_no"] if found else None
        start = numbers.index(behind) + 1 if behind in numbers else len(ranked)
    shown = ranked[start : start + limit]
    rows = await database.call(
        "read_found",
        owner=owner,
        search_nos=[str(one.search_no) for one in shown],
        seqs=[str(_best_seq(one)) for one in shown],
    )
    wanted = {*words, beginning}
    sessions = [session_object(row) | {"match": _match(row, wanted, beginning)} for row in rows]
    return sessions, is_current and is_whole


async def _ranked(
    database: Database, owner: str, words: Sequence[str], beginning: str
) -> tuple[list[_Found], bool]:
    """The sessions that have all the words, the best first, and whether none can be missing."""
    groups = [[word] for word in words]
    if beginning:
        endings = await database.call(
            "list_terms",
            scope=scope_of(owner),
            first=beginning,
            beyond=beginning + "\U0010ffff",
            limit=MAX_ENDINGS,
        )
        groups[-1] += [row["term"] for row in endings if row["term"] not in groups[-1]]
    terms = [term for group in groups for term in group]
    group_of = [place for place, group in enumerate(groups) for _ in group]
    share = MAX_READ // len(terms)
    rows = await database.call(
        "read_postings", owner=owner, scope=scope_of(owner), terms=terms, limit=share
    )
    by_term: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["search_no"], row["block"]), reverse=True):
        by_term[row["place"]].append(row)
    cut = [place for place, entries in by_term.items() if len(entries) > share]
    cut_groups = {group_of[place] for place in cut}
    entries = [(place, row) for place in by_term for row in by_term[place][:share]]
    numbers: list[set[int]] = [set() for _ in groups]
    for place, row in entries:
        numbers[group_of[place]].add(row["search_no"])
    weights = [math.log1p(MAX_READ / max(1, len(found))) for found in numbers]
    known = [found for group, found in enumerate(numbers) if group not in cut_groups]
    is_whole = not cut
    if cut and known:
        # A rarer word says which sessions it can be at all: there the others are looked up.
        candidates = set.intersection(*known)
        wanted = sorted(candidates, reverse=True)[: MAX_READ // len(cut)]
        more = await database.call(
            "read_postings_of",
            owner=owner,
            scope=scope_of(owner),
            terms=[terms[place] for place in cut],
            search_nos=[str(number) for number in wanted],
        )
        entries = [(place, row) for place, row in entries if place not in cut]
        entries += [(cut[row["place"]], row) for row in more]
        is_whole = len(wanted) == len(candidates)
    return await asyncio.to_thread(_scored, entries, group_of, weights), is_whole


def _scored(
    entries: Sequence[tuple[int, Row]], group_of: Sequence[int], weights: Sequence[float]
) -> list[_Found]:
    found: dict[int, _Found] = {}
    for place, row in entries:
        one = found.setdefault(row["search_no"], _Found(row["search_no"]))
        one.hits[group_of[place]] += [int(seq) for seq in row["hits"].split(",")]
    ranked = [one for one in found.values() if len(one.hits) == len(weights)]
    for one in ranked:
        for group, seqs in one.hits.items():
            count = len(seqs) + (_TITLE_HITS - 1) * seqs.count(0)
            one.score += weights[group] * count / (count + _SATURATION)
    ranked.sort(key=lambda one: (-round(one.score, 9), -one.search_no))
    return ranked


def _best_seq(one: _Found) -> int:
    """The latest item that has most of the words; 0 when only the title has any."""
    words: dict[int, set[int]] = defaultdict(set)
    for group, seqs in one.hits.items():
        for seq in seqs:
            words[seq].add(group)
    words.pop(0, None)
    return max(words, key=lambda seq: (len(words[seq]), seq), default=0)


def _match(row: Row, words: set[str], beginning: str) -> dict[str, Any]:
    """Where a session fits a query, for people: a passage, and the words found in it."""
    item = decode_item(row["data"]) if row["data"] else None
    text = " ".join(_said(item).split()) if item else ""
    places = [
        (start, end)
        for start, end, term in words_of(text)
        if term in words or (beginning and term.startswith(beginning))
    ]
    if not places:  # only the title fits, or the item was changed since
        return {"seq": None, "text": "", "marks": []}
    begin, stop = max(0, places[0][0] - _AROUND), min(len(text), places[0][1] + _AROUND)
    begin = text.find(" ", begin, places[0][0]) + 1 if begin else 0
    before, behind = "…" if begin else "", "…" if stop < len(text) else ""
    shift = len(before) - begin
    return {
        "seq": row["item_seq"],
        "text": before + text[begin:stop] + behind,
        "marks": [[start + shift, end + shift] for start, end in places if end <= stop],
    }


def _said(item: dict[str, Any]) -> str:
    """The text of a message of a user or the agent; '' of anything else."""
    if item.get("role") not in ("user", "assistant"):
        return ""
    return text_of(item.get("content"))


async def catch_up(database: Database, owner: str | None, max_items: float = math.inf) -> bool:
    """Adds to the index what is not in it.

    Args:
        database: Where it lies.
        owner: Whose sessions; None: everybody's.
        max_items: About how many items at most.

    Returns:
        False when there is more.

    Raises:
        DatabaseError: Not all could be added.
    """
    left = max_items
    while rows := await database.call("list_to_index", owner=owner, limit=_AT_ONCE):
        if left <= 0:
            return False
        left -= sum(await asyncio.gather(*(_index(database, row) for row in rows)))
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


async def _index(database: Database, session: Row) -> int:
    """Indexes a session from where that was left; gives how many items it has looked at."""
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
        entries = await asyncio.to_thread(_entries, items, title)
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
                hits=[",".join(map(str, seqs)) for seqs in entries.values()],
            )
        except DuplicateError:  # very many were made in this millisecond: take the next
            time += 1
            continue
        looked_at += len(items)
        if not done or len(items) < _BATCH:
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


def _entries(items: Sequence[Row], title: str | None) -> dict[tuple[str, int], list[int]]:
    """The entries of items: by term and block the seqs where it is said."""
    entries: dict[tuple[str, int], list[int]] = defaultdict(list)
    texts = [(0, title)] if title else []
    texts += [(row["seq"], _said(item)) for row in items if (item := decode_item(row["data"]))]
    for seq, text in texts:
        for term, count in Counter(term for _, _, term in words_of(text)).items():
            entries[term, seq // _BLOCK] += [seq] * min(count, _MAX_HITS)
    return entries


def scope_of(owner: str) -> int:
    """The number of an owner in the index, of 63 bits."""
    digest = hashlib.sha256(b"threadkeep search " + owner.encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
