"""Which memories a query means: what of a memory is in the index, and how it is ranked and cut.

A memory has names: its keywords and the last part of its path. A query that says all words of a
name means that memory, however much else it says. One that does not has to be about it: the
memory must have a third of the query, and half the score of the best.

Memories are few and their names short, so a misspelt name is looked for as well: a name and a word
of the query that differ by one letter too many, one too few or two swapped become the same when
the right letter is left out of each. The index holds those forms, marked by `~`.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from threadkeep.words import terms_of, words_of

MAX_WORDS = 40
"""Of a query; what comes behind them is left out."""

_MAX_WORDS_MISSPELT = 12
"""A longer query is not looked through for misspelt names: it has more words to take for one."""

_MIN_MISSPELT = 6
"""Letters of the longer one of two words that may be the same: of short ones too many are alike."""

_MAX_MISSPELT = 30
"""Letters of a word that has forms: there is one for each letter, and each is nearly as long."""

_KEPT_LETTERS = 2
"""At the beginning of a word, where people do not slip."""

_PART = 0.4
"""What a word counts that is not part of a whole name, which is 1."""

_MISSPELT = 0.5
"""What it counts in a name that is misspelt."""

_CUT = 0.5
"""Of the best, what a memory must have."""

_SHARE = 1 / 3
"""Of what the words of a query weigh, what a memory must have that is not named."""

_FEW = 30
"""Memories an owner is taken to have, when a query does not show more."""

_LENGTH = 50
"""Words of contents for which one that is said once counts half."""

_IDENTIFIER = re.compile(r"\b[a-z][a-z0-9]*[A-Z][A-Za-z0-9]*\b")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_RUN = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class _Hit:
    """A word of a query in a memory."""

    titled: bool
    count: int
    length: int
    names: Sequence[tuple[int, int]]
    """The names it is in: the number of each, and how many words that has."""
    certainty: float = 1.0


@dataclass
class _Found:
    """A memory that has words of a query."""

    score: float = 0.0
    share: float = 0.0
    """What those words weigh."""
    name: float = 0.0
    """What the heaviest of them weighs that is part of a whole name; 0: there is none."""


def entries(path: str, description: str, contents: str, keywords: Sequence[str]) -> dict[str, str]:
    """What the index holds of a memory.

    Args:
        path: Where it is; the last part is one of its names.
        description: One line about it.
        contents: All of it.
        keywords: What else it is called, each one word or more.

    Returns:
        By term what is stored with it, digits and punctuation only. With a word: whether path or
        description have it, how often the contents do, how many words those have, and the names
        it is in. With a form of a name's word: where its letter was left out, and the names.
    """
    title, text = f"{path} {description}", f"{contents} {_spelled_out(contents)}"
    titled = terms_of(f"{title} {_spelled_out(title)}")
    counts = Counter(term for _, _, term in words_of(text))
    names: dict[str, list[str]] = defaultdict(list)
    forms: dict[str, list[str]] = defaultdict(list)
    for number, (words, size) in enumerate(_names(path, keywords)):
        for term, word in words.items():
            names[term].append(f"{number}/{size}")
            for form, place in _forms(word).items():
                forms[form].append(f"{place}/{number}/{size}")
    length = counts.total()
    found = {
        term: f"{term in titled:d}.{counts[term]}.{length};{','.join(names.get(term, ()))}"
        for term in {*titled, *counts, *names}
    }
    return found | {form: ",".join(places) for form, places in forms.items()}


def query_terms(query: str) -> list[str]:
    """The terms whose postings `rank` wants to see.

    Args:
        query: A question, a message or a few words.

    Returns:
        At most `MAX_WORDS` words, and the forms in which the names may be found that a short
        query has misspelt.
    """
    words = _words(query)
    forms = [form for word in words.values() for form in _forms(word)]
    return [*words, *dict.fromkeys(forms if len(words) <= _MAX_WORDS_MISSPELT else ())]


def rank(
    query: str, postings: Mapping[str, Sequence[tuple[int, str]]], limit: int
) -> list[tuple[int, float]]:
    """The memories that a query means.

    Args:
        query: What `query_terms` was given.
        postings: By term the memories that have it, of those that may be found: the number of each
            and what `entries` gave. A term that none has may be missing.
        limit: How many at most.

    Returns:
        Number and score, the best first; none when the query is about something else.
    """
    hits = {term: _hits(term, word, postings) for term, word in _words(query).items()}
    weights = _weights(hits)
    found = _scored(hits, weights)
    enough = _SHARE * sum(weights.values())
    best = max((one.score for one in found.values()), default=0.0)
    best_name = max((one.name for one in found.values()), default=0.0)
    kept = [
        (memory, one.score)
        for memory, one in found.items()
        if (one.name and one.name >= _CUT * best_name)
        or (one.share >= enough and one.score >= _CUT * best)
    ]
    kept.sort(key=lambda scored: (-round(scored[1], 9), scored[0]))
    return kept[:limit]


def _weights(hits: Mapping[str, Mapping[int, _Hit]]) -> dict[str, float]:
    """What each word of a query weighs: the more, the fewer memories have it."""
    known = max(_FEW, len({memory for found in hits.values() for memory in found}))
    return {term: math.log1p(known / max(0.5, len(found))) for term, found in hits.items()}


def _scored(
    hits: Mapping[str, Mapping[int, _Hit]], weights: Mapping[str, float]
) -> dict[int, _Found]:
    named = _named(hits)
    scored: dict[int, _Found] = defaultdict(_Found)
    for term, found in hits.items():
        for memory, hit in found.items():
            one, weight = scored[memory], weights[term]
            is_named = any((memory, name) in named for name, _ in hit.names)
            one.score += weight * _strength(hit, is_named)
            one.share += weight
            if is_named:
                one.name = max(one.name, weight * hit.certainty)
    return scored


def _spelled_out(text: str) -> str:
    """The identifiers of a text that are written `likeThis`, each as the words it is made of."""
    return " ".join(_HUMP.sub(" ", match[0]) for match in _IDENTIFIER.finditer(text))


def _names(path: str, keywords: Sequence[str]) -> Iterator[tuple[dict[str, str], int]]:
    """The names of a memory: of each its words, as compared and as written, and how many it takes
    to say it. One that is a single word but for stop words can't be said: 'on call' is not 'call'.
    """
    names = [path.rpartition("/")[2], *keywords]
    for name in dict.fromkeys([*names, *(_spelled_out(name) for name in names)]):
        words = {term: name[start:end].lower() for start, end, term in words_of(name)}
        if words:
            is_part = len(words) == 1 and len(_RUN.findall(name)) > 1
            yield words, len(words) + is_part


def _words(query: str) -> dict[str, str]:
    """The words of a query, as compared and as written."""
    text = f"{query} {_spelled_out(query)}"
    words: dict[str, str] = {}
    for start, end, term in words_of(text):
        if len(words) < MAX_WORDS:
            words.setdefault(term, text[start:end].lower())
    return words


def _forms(word: str) -> dict[str, int]:
    """A word whole and without each of its letters: of each form the place of the letter, 0 for
    none."""
    is_plain = word.isascii() and word.isalpha()
    if not (is_plain and _MIN_MISSPELT - 1 <= len(word) <= _MAX_MISSPELT):
        return {}
    forms = {"~" + word: 0}
    for place in range(_KEPT_LETTERS, len(word)):
        forms.setdefault(f"~{word[:place]}{word[place + 1 :]}", place)
    return forms


def _hits(
    term: str, word: str, postings: Mapping[str, Sequence[tuple[int, str]]]
) -> dict[int, _Hit]:
    """Where a word of a query is, by memory; one that is nowhere may be a misspelt name."""
    if not postings.get(term):
        return _misspelt(word, postings)
    return {memory: _hit(stored) for memory, stored in postings[term]}


def _hit(stored: str) -> _Hit:
    numbers, _, names = stored.partition(";")
    titled, count, length = map(int, numbers.split("."))
    parts = [name.partition("/") for name in names.split(",") if name]
    in_names = [(int(number), int(size)) for number, _, size in parts]
    return _Hit(bool(titled), count, length, in_names)


def _misspelt(word: str, postings: Mapping[str, Sequence[tuple[int, str]]]) -> dict[int, _Hit]:
    names: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for form, place in _forms(word).items():
        for memory, stored in postings.get(form, ()):
            for part in stored.split(","):
                other, number, size = map(int, part.split("/"))
                letters = max(len(word), len(form) - 1 + bool(other))
                is_slip = not place or not other or abs(place - other) == 1
                if is_slip and letters >= _MIN_MISSPELT:
                    names[memory].append((number, size))
    return {memory: _Hit(False, 0, 0, found, _MISSPELT) for memory, found in names.items()}


def _named(hits: Mapping[str, Mapping[int, _Hit]]) -> set[tuple[int, int]]:
    """The names of which a query has all words: of each the memory and its number there."""
    missing: dict[tuple[int, int], int] = {}
    for found in hits.values():
        for memory, hit in found.items():
            for name, size in dict.fromkeys(hit.names):
                missing[memory, name] = missing.get((memory, name), size) - 1
    return {name for name, count in missing.items() if count <= 0}


def _strength(hit: _Hit, is_named: bool) -> float:
    """What a word of the query counts in a memory, from 0 to 1."""
    if is_named:
        return hit.certainty
    if hit.names or hit.titled:
        return _PART * hit.certainty
    return _PART * hit.count / (hit.count + hit.length / _LENGTH)
