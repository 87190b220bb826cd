"""The words of a text, as search compares them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from snowballstemmer import stemmer

from threadkeep.words import MAX_TEXT, query_words, says_of_self, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I live in San Francisco!", "live san francisco"),
        ("Running, runs; RAN-away 2.0", "run run run away 2 0"),
        ("We went and bought MICE", "go buy mous"),
        ("Zürich\u2019s cafés: naïve crème brûlée", "zurich cafe naiv creme brule"),
        ("don't we'll o'clock", "dont well oclock"),
        ("snake_case e-mail@host.example", "snake case e mail host exampl"),
        ("東京 寿司が好き mixテスト", "東京 寿司 司が が好 好き mix テス スト"),
        ("привет мир", "привет мир"),
        ("the of and to", ""),
        ("", ""),
        ("x" * 200, "x" * 64),
    ],
)
def test_words(text: str, words: str) -> None:
    """Without case, accents and endings; scripts without spaces in pairs of characters."""
    assert [term for _, _, term in words_of(text)] == words.split()


def test_words_have_their_place() -> None:
    """A passage can show them."""
    text = "Zürich\u2019s  東京x cafés"
    assert [text[start:end] for start, end, _ in words_of(text)] == [
        "Zürich\u2019s",
        "東京",
        "x",
        "cafés",
    ]


def test_a_text_is_looked_at_up_to_a_length() -> None:
    """What lies behind is data."""
    assert len(list(words_of("wörd " * MAX_TEXT))) == MAX_TEXT // 5


@pytest.mark.parametrize(
    ("query", "words", "beginning"),
    [
        ("sushi rest", ["sushi", "rest"], "rest"),
        ("running fast run", ["fast", "run"], "run"),
        ("Runnin", ["runnin"], "runnin"),
        ("Café ", ["cafe"], ""),
        ("vegetarian?", ["vegetarian"], ""),
        ("pizza the", ["pizza"], ""),
        ("a", [], ""),
        ("東京", ["東京"], ""),
        ("x", ["x"], ""),
    ],
)
def test_a_query(query: str, words: list[str], beginning: str) -> None:
    """Its last word may not be finished."""
    assert query_words(query) == (words, beginning)


@pytest.mark.parametrize(
    "text",
    [
        "I am a vegetarian.",
        "I'm allergic to nuts",
        "Hi, I\u2019m Ann and I live in Leeds",
        "My name is Bob.",
        "Please call me Jo.",
        "Remember that my flight is on Monday",
        "my wife loves sushi",
        "I work at a bank",
        "I like jazz, what about you?! Yes",
        "I hate mornings.",
        "I prefer short answers.",
        "I can't eat gluten",
        "I don't drink coffee.",
        "I never fly",
        "I always take the train to work.",
        "I need a wheelchair",
        "I have two kids and a dog",
        "We went out. My favourite colour is green.",
        "I'm living in Rome now",
        "What is this? I'm 34 years old.",
        "I really love hiking",
        "My daughter's birthday is in May",
        "Well, I grew up in Kenya.",
        "I've never been to Asia",
        "Book a table, I don't like spicy food.",
    ],
)
def test_what_somebody_says_of_themselves(text: str) -> None:
    """What will hold: who they are, what they like or can't, whom they have."""
    assert says_of_self(text)


@pytest.mark.parametrize(
    "text",
    [
        "What do I like?",
        "Am I allergic to nuts?",
        "I'm not sure what this means",
        "I'm sorry, that is wrong.",
        "I am trying to install it",
        "I'm getting an error",
        "I like it!",
        "I need help with a function",
        "I need to find a flight",
        "I can't open the file",
        "I don't understand.",
        "I don't know",
        "Call me when it is done.",
        "I have a question about tea",
        "What is my name?",
        "Does my wife like sushi?",
        "The dog likes me.",
        "You said I am right?",
        "I'd like a list of cities",
        "Tell me about Mary.",
        "I think this works",
        "Remember the milk",
        "I love that.",
        "He lives in Leeds and I agree",
        "I'm so excited and happy!",
        "I'm proud of you.",
        "I'm off to lunch",
        "I'm looking for a hotel",
    ],
)
def test_what_says_nothing_of_them(text: str) -> None:
    """Questions, what they want done now, and how they are at the moment."""
    assert not says_of_self(text)


def test_several_threads_take_words_at_once() -> None:
    """Sessions are indexed in threads; each finds what it finds alone."""
    letters = str.maketrans("0123456789", "ghijklmnop")
    written = [f"relational{n:x}izations".translate(letters) for n in range(4000)]
    texts = [" ".join(written[k::8]) for k in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda text: [term for *_, term in words_of(text)], texts))
    finally:
        sys.setswitchinterval(before)
    assert found == [stemmer("english").stemWords(text.split()) for text in texts]
