"""Search over an owner's sessions: their titles and what was said, on an index of our own.

Each word of a session is one entry for 256 of its items, in the order of their sessions
(search_index.py). So a search reads a bounded number of entries, whatever there is, and both
backends find the same.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from threadkeep.database import Database, Row
from threadkeep.errors import InvalidInputError
from threadkeep.history import decode_item
from threadkeep.search_index import CATCH_UP, catch_up, said, scope_of
from threadkeep.stored_sessions import session_object
from threadkeep.words import query_words, words_of

MAX_QUERY = 400
"""Of a query, in characters."""

MAX_WORDS = 12
"""Of a query; what comes behind them is left out."""

MAX_READ = 10_000
"""How many entries of the index a search reads to find sessions, and again to complete them."""

MAX_ENDINGS = 20
"""How many words an unfinished one may stand for."""

_TITLE_HITS = 3
"""How often a word in the title counts."""

_SATURATION = 1.2
_AROUND = 80
"""What is shown on either side of the first word found, in characters."""


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
    text = " ".join(said(item).split()) if item else ""
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
