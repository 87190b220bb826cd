"""The words of a text, as search compares them.

A word is compared without regard to case, accents and English endings. Text that is written without
spaces between its words (Chinese, Japanese, Thai, …) is taken in pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from snowballstemmer import stemmer

MAX_TEXT = 100_000
"""How much of a text is looked at, in characters: a message beyond that is data, not words."""

MAX_WORD = 64
"""Of a word, in characters; what is longer is cut."""

_RUN = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
_ACCENTS = re.compile("[\u0300-\u036f']")
_STOP_WORD_LIST = """
a about after again all also am an and any are as at be because been before being between both
but by can could did do does doing down during each few for from further had has have having he
her here hers him his how i if in into is it its just me more most my no nor not now of off on
once only or other our ours out over own same she should so some such than that the their them
then there these they this those through to too under until up very was we were what when where
which while who whom why will with would you your yours
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
_english = stemmer("english")


def words_of(text: str) -> Iterator[tuple[int, int, str]]:
    """The words of a text that are worth to be looked for.

    Args:
        text: Any text; what lies behind `MAX_TEXT` characters is left out.

    Yields:
        Where each begins and ends in the text, and the form in which words are compared.
    """
    for run in _RUN.finditer(text[:MAX_TEXT]):
        place = run.start()
        for part in _parts(run[0]):
            if _UNSPACED.match(part):
                for i in range(max(1, len(part) - 1)):
                    yield place + i, place + min(i + 2, len(part)), _folded(part[i : i + 2])
            elif term := _term(part[: 2 * MAX_WORD]):
                yield place, place + len(part), term
            place += len(part)


def query_words(query: str) -> tuple[list[str], str]:
    """What a query looks for.

    Args:
        query: As somebody typed it.

    Returns:
        Its words, each once, the last one last; and how that begins as it was typed, when it may
        not be finished, '' otherwise.
    """
    found = list(words_of(query))
    if not found:
        return [], ""
    start, end, last = found[-1]
    terms = [term for term in dict.fromkeys(term for _, _, term in found) if term != last]
    may_go_on = end == len(query) and end - start > 1 and not _UNSPACED.match(query[start:])
    return [*terms, last], _folded(query[start:])[:MAX_WORD] if may_go_on else ""


def _parts(run: str) -> list[str]:
    """A run of letters, taken apart where a script with spaces meets one without."""
    parts, end = [], 0
    for match in _UNSPACED.finditer(run):
        parts += [run[end : match.start()], match[0]]
        end = match.end()
    return [part for part in [*parts, run[end:]] if part]


@lru_cache(maxsize=65536)
def _term(word: str) -> str:
    """The form in which a word is compared; '' when it is not worth it."""
    folded = _folded(word)
    if word.lower() in _STOP_WORDS:
        return ""
    if folded.isascii() and folded.isalpha():
        folded = _english.stemWord(folded)
    return folded[:MAX_WORD]


@lru_cache(maxsize=65536)
def _folded(word: str) -> str:
    """Without case, accents and apostrophes."""
    letters = unicodedata.normalize(
        "NFKD", word.replace("\u2019", "'").removesuffix("'s")
    ).casefold()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", letters))
