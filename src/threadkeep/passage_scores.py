"""How well messages fit words: BM25, where what is said around a message counts in part.

It knows nothing but hits of the search index (search_index.py). Where something is said is one
number, a place: that of the session in the index, then the seq in 32 bits. A process with much in
memory would pause to look through many small tuples; numbers it does not look at.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from threadkeep.database import Row
from threadkeep.search_index import PART

MAX_PARTS = 192
"""Of how many parts of sessions, of `PART` items each, all messages are looked at."""

_SEQ_BITS = 32
_BEFORE = (1.0, 0.5, 0.35, 0.25, 0.15)
"""What a word weighs that is said in the message itself, one before it, two before it, …"""

_BEHIND = (0.4, 0.25, 0.15)
"""What one weighs that is said one message later, two later, …"""

_ANSWER = 1.6
"""How much more it weighs in the message before, when that ends with a question."""

_SATURATION = 0.9
_LENGTH_WEIGHT = 0.3
_LENGTH = 24
"""In words: what is longer weighs less."""

_MIN_MESSAGES = 300
"""So many are taken to be there when a word's rarity is told."""

_AUTHOR = 0.2
"""How much a named author gains and all others lose, as a share of the best score."""

_MIN_AUTHOR = 0.1
"""A name is an author's when such a share of the messages begins with it: "Note: …" is none."""

Hits = dict[int, int]
"""How often something is said, by places."""


def place_of(search_no: int, seq: int) -> int:
    """The number of a place."""
    return search_no << _SEQ_BITS | seq


def as_text(place: int, size: int = 1) -> str:
    """A place as statements take it, or the block of so many items that it lies in."""
    return f"{place >> _SEQ_BITS}:{(place & (1 << _SEQ_BITS) - 1) // size}"


def hits_of(rows: Sequence[Row], terms: int) -> tuple[list[Hits], list[int]]:
    """What entries of the index tell.

    Args:
        rows: As a statement gives them.
        terms: Of how many terms they are.

    Returns:
        The hits of each term; and which terms have some that were not read.
    """
    hits: list[Hits] = [{} for _ in range(terms)]
    for row in rows:
        counts, session = hits[row["place"]], place_of(row["search_no"], 0)
        for hit in row["hits"].split(",") if row["hits"] else ():
            place = session + int(hit)
            counts[place] = counts.get(place, 0) + 1
    return hits, sorted({row["place"] for row in rows if not row["hits"]})


def best_parts(hits: Sequence[Hits]) -> tuple[list[int], bool]:
    """Where in sessions most is said.

    Args:
        hits: Of each word.

    Returns:
        The first places of parts, up to `MAX_PARTS`: the best, and those before and behind each,
        in their order. And whether these are all where anything is said.
    """
    scores: dict[int, float] = defaultdict(float)
    for rarity, places in zip(_rarities(hits), hits, strict=True):
        counts: dict[int, int] = defaultdict(int)
        for place, count in places.items():
            counts[place - place % PART] += count
        for part, count in counts.items():
            scores[part] += rarity * count / (count + _SATURATION)
    parts: set[int] = set()
    for part in _best(scores, MAX_PARTS):
        around = {part, part + PART} | ({part - PART} if part % (1 << _SEQ_BITS) else set())
        if len(parts | around) > MAX_PARTS:
            return sorted(parts), False
        parts |= around
    return sorted(parts), True


def scored(
    hits: Sequence[Hits],
    parts: Sequence[int],
    layout: Sequence[Row],
    authors: Sequence[Hits],
    limit: int,
) -> list[tuple[int, float]]:
    """Messages by how well they fit.

    Args:
        hits: Of each word.
        parts: The parts of sessions that are looked at, in their order.
        layout: Their entries of the layout.
        authors: The hits of each name that the query has: what begins with it.
        limit: How many at most.

    Returns:
        Places and scores, the best first; of two alike the newest.
    """
    told, runs = _messages(parts, layout)
    scores = _scores(hits, told, runs)
    wrote = {frozenset(of) for of in authors if len(of) >= max(1, _MIN_AUTHOR * len(told))}
    if len(wrote) == 1 and scores:
        (theirs,) = wrote
        gain = _AUTHOR * max(scores.values())
        for place in scores:
            scores[place] += gain if place in theirs else -gain
    return [(place, scores[place]) for place in _best(scores, limit)]


def _best(scores: Mapping[int, float], limit: int) -> list[int]:
    """The places with the best scores; of two alike the latest comes first."""
    least = min(heapq.nlargest(limit, scores.values()), default=0.0) - 1e-9
    able = [(round(score, 9), place) for place, score in scores.items() if score >= least]
    return [place for _, place in sorted(able, reverse=True)[:limit]]


def _rarities(hits: Sequence[Hits]) -> list[float]:
    """What each word weighs. As many messages as say the commonest are taken to be there, or
    `_MIN_MESSAGES`: nobody counts them."""
    there = max(_MIN_MESSAGES, *map(len, hits))
    return [math.log1p(there / max(1, len(places))) for places in hits]


def _messages(parts: Sequence[int], layout: Sequence[Row]) -> tuple[dict[int, str], list[int]]:
    """The messages of parts of sessions in their order: what is told of each place; and of each a
    number that it shares with those it follows."""
    entries = {place_of(row["search_no"], row["block"] * PART): row["hits"] for row in layout}
    told: dict[int, str] = {}
    runs: list[int] = []
    run, expected = 0, 0
    for part in parts:
        run += part != expected
        expected = part + PART
        session = part >> _SEQ_BITS << _SEQ_BITS
        hits = entries[part].split(",") if entries.get(part) else []
        for hit in hits:
            seq, _, told_of_it = hit.partition(":")
            told[session + int(seq)] = told_of_it
        runs += [run] * len(hits)
    return told, runs


def _scores(hits: Sequence[Hits], told: Mapping[int, str], runs: Sequence[int]) -> dict[int, float]:
    """What each message scores that has a word in it or around it."""
    places, tellings = list(told), list(told.values())
    at_place = {place: at for at, place in enumerate(places)}
    half = {telling: _half(telling) for telling in set(tellings)}
    scores: dict[int, float] = defaultdict(float)
    for rarity, of_word in zip(_rarities(hits), hits, strict=True):
        said = {at_place[place]: of_word[place] for place in of_word if place in at_place}
        for at, count in _around(said, runs, tellings).items():
            scores[places[at]] += rarity * count / (count + half[tellings[at]])
    return scores


def _half(telling: str) -> float:
    """How often a word must be said in a message to weigh half of what it can weigh."""
    longer = max(0.0, int(telling.removesuffix("?")) / _LENGTH - 1)
    return _SATURATION * (1 + _LENGTH_WEIGHT * longer)


def _around(
    said: Mapping[int, int], runs: Sequence[int], tellings: Sequence[str]
) -> dict[int, float]:
    """How often a word is said in messages, what lies around them counted in part."""
    counts: dict[int, float] = defaultdict(float)
    for at in sorted(said):
        for step in range(-len(_BEHIND), len(_BEFORE)):
            if 0 <= at + step < len(runs) and runs[at + step] == runs[at]:
                weight = _BEFORE[step] if step >= 0 else _BEHIND[-step - 1]
                if step == 1 and tellings[at].endswith("?"):
                    weight *= _ANSWER
                counts[at + step] += weight * said[at]
    return counts
