"""The words of a text, as search compares them.

A word is compared without regard to case, accents and English endings, and irregular forms as what
they are of. Text that is written without spaces between its words (Chinese, Japanese, Thai, …) is
taken in pairs of characters.
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
a about after again all also am an and any are as at be because been before being between both but
by can could did do does doing down during each few for from further had has have having he her here
hers him his how i if in into is it its just me many more most much my no nor not now of off on once
only or other our ours out over own same she should so some such than that the their them then there
these they this those through to too under until up very was we were what when where which while who
whom why will with would you your yours
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
_IRREGULAR_LIST = """
arise arose arisen, become became, begin began begun, bend bent, bite bitten, blow blew blown,
break broke broken, bring brought, build built, burn burnt, buy bought, catch caught, child
children, choose chose chosen, come came, dig dug, draw drew drawn, dream dreamt, drink drank drunk,
drive drove driven, eat ate eaten, fall fell fallen, feed fed, feel felt, fight fought, find found,
fly flew flown, foot feet, forget forgot forgotten, forgive forgave forgiven, freeze froze frozen,
get got gotten, give gave given, go goes went gone, grow grew grown, hang hung, hear heard, hide hid
hidden, hold held, keep kept, knife knives, know knew known, lead led, learn learnt, leave left,
lend lent, lose lost, make made, man men, mean meant, meet met, mouse mice, pay paid, person people,
ride rode ridden, ring rang rung, run ran, say said, see saw seen, sell sold, send sent, shake shook
shaken, shelf shelves, shoot shot, show shown, sing sang sung, sink sank sunk, sit sat, sleep slept,
speak spoke spoken, spend spent, stand stood, steal stole stolen, stick stuck, strike struck, swear
swore sworn, swim swam swum, take took taken, teach taught, tear tore torn, tell told, think
thought, throw threw thrown, tooth teeth, understand understood, wake woke woken, wear wore worn,
wife wives, win won, wolf wolves, woman women, write wrote written
"""
_IRREGULAR = {
    form: word
    for word, *forms in (line.split() for line in _IRREGULAR_LIST.split(","))
    for form in forms
}
_RELATIVE = (
    "wife|husband|partner|girlfriend|boyfriend|fiancée?|son|daughter|kids?|child|children|baby|"
    "mother|mum|mom|father|dad|parents?|brother|sister|family|dog|cat|pet|boss|employer|company|"
    "job|birthday|diet|doctor|home ?town|hobby|hobbies|pronouns|native language|"
    r"(?:\w+ )?favou?rite"
)
_NO_TRAIT = (
    "(?:not )?(?:sure|sorry|afraid|glad|happy|done|back|here|there|ready|curious|confused|"
    "stuck|lost|good|fine|ok|okay|able|unable|excited|proud|thrilled|pleased|grateful|thankful|"
    "worried|surprised|impressed|amazed|inspired|determined|tired|busy|told|given|"
    r"(?!living|working|studying|learning|training|expecting)\w+ing)|"
    "interested in (?:this|that|it|your)|about to|in (?!my )|on|at (?!home)|off|up|down|out|after|"
    "with|all|if|so|too|very|that"
)
_NO_WISH = (
    "it|this|that|how|your|those|these|you|(?:some )?help|a hand|to (?:know|see|ask|find)|"
    "the (?:way|idea|thought|look|sound|first|second|last|answer)|"
    r"an? (?:\w+ )?(?:answer|function|list|script|summary|table|file)"
)
_NO_HAVING = "questions?|problems?|issues?|errors?|ideas?|feeling|look|doubts?|clue|bug|file|list"
_LITTLE = "(?:(?:also|really|actually|still|just|now|currently|usually|often|normally|both) )*"
_OF_SELF_FORMS = (
    r"my (?:(?:full|first|last|own) )?name is|call me (?!back|when|if|at|in|on|to|a )\w",
    r"(?:remember|keep in mind|note|don't forget) that (?:i|my|we|our)\b",
    rf"(?:i am|i'm) {_LITTLE}(?!{_LITTLE}(?:{_NO_TRAIT})\b)\w",
    r"i(?: have|'ve) (?:lived|worked|always|never|been (?:living|working|an?|vegan|married))\b",
    rf"i {_LITTLE}(?:always|never|live|work|study|teach|speak|own|play|grew up|was born|moved|"
    r"enjoy|dislike|hate|avoid|prefer|eat|drink|smoke|collect) (?!(?:on )?(?:it|this|that)\b)\w",
    rf"i {_LITTLE}(?:like|love|need|want) (?!(?:{_NO_WISH})\b)\w",
    rf"i {_LITTLE}have (?:an?|one|two|three|four|five|no|\d+) (?!(?:\w+ )?(?:{_NO_HAVING})\b)\w",
    rf"i {_LITTLE}(?:can't|cannot|can not|don't|do not|won't) (?:eat|drink|drive|swim|stand|fly|"
    "tolerate|have (?:any|kids|children|pets|an?)|like|want|enjoy|smoke|work|speak|own|wear|use)"
    r" (?!(?:it|this|that|to know)\b)\w",
    rf"i {_LITTLE}(?:can't|cannot|don't|do not|won't) (?:drive|swim|fly|smoke|drink|work)$",
    rf"(?:my|our) (?:{_RELATIVE})(?:'s)? (?!said|asked)\w",
)
_OF_SELF = re.compile(
    r"(?:^|, |\b(?:and|but|so|because|since|as|that|hi|hello|hey|well|please) )"
    rf"(?:{'|'.join(_OF_SELF_FORMS)})"
)
_NEGATION = re.compile(
    r"\b(?:not?|nor|never|none|nobody|nothing|neither|without|cannot|any ?more)\b|n't\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?;\n]+(?:[.!?;\n]+|$)")
_MAX_OF_SELF = 10_000


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
                    yield place + i, place + min(i + 2, len(part)), folded(part[i : i + 2])
            elif term := _term(part[: 2 * MAX_WORD]):
                yield place, place + len(part), term
            place += len(part)


def terms_of(text: str) -> set[str]:
    """The words of a text, in the form in which they are compared."""
    return {term for _, _, term in words_of(text)}


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
    return [*terms, last], folded(query[start:])[:MAX_WORD] if may_go_on else ""


def says_of_self(text: str) -> bool:
    """Whether whoever writes says something about themselves that will hold, as far as English
    words tell: who they are, what they like or can't, whom they have. Questions don't count.

    Args:
        text: A message; what lies behind its first 10,000 characters is left out.
    """
    plain = text[:_MAX_OF_SELF].replace("\u2019", "'").lower()
    return any(
        _OF_SELF.search(" ".join(sentence.split()).rstrip(".!;"))
        for sentence in _SENTENCE.findall(plain)
        if not sentence.rstrip().endswith("?")
    )


def negates(text: str) -> bool:
    """Whether a text says no to something, as far as English words tell."""
    return _NEGATION.search(text[:MAX_TEXT].replace("\u2019", "'")) is not None


@lru_cache(maxsize=65536)
def folded(word: str) -> str:
    """A word without case, accents and apostrophes."""
    letters = unicodedata.normalize(
        "NFKD", word.replace("\u2019", "'").removesuffix("'s")
    ).casefold()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", letters))


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
    term = folded(word)
    if word.lower() in _STOP_WORDS:
        return ""
    term = _IRREGULAR.get(term, term)
    if term.isascii() and term.isalpha():
        term = stemmer("english").stemWord(term)  # one of its own: it can't be shared by threads
    return term[:MAX_WORD]
