"""The words of a text, as search compares them."""

from __future__ import annotations

import pytest

from threadkeep.words import MAX_TEXT, query_words, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I live in San Francisco!", "live san francisco"),
        ("Running, runs; RAN-away 2.0", "run run ran away 2 0"),
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
