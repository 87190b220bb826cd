"""Which memories a query means."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from threadkeep.memory_ranking import MAX_WORDS, entries, query_terms, rank

MEMORIES = {
    "diet": ("Vegetarian, allergic to peanuts and sesame.", ["food", "allergies"]),
    "boss": ("Reports to Priya Raman. They meet on Tuesdays.", ["Priya", "line manager"]),
    "releases": ("Out on Wednesdays; a revert undoes one.", ["rollback", "release train"]),
    "guests": ("getUserName gives None for guests.", ["getUserName"]),
    "database": ("Postgres 15 behind PgBouncer in Frankfurt.", ["Postgres", "pg"]),
    "cluster": ("Six nodes in Frankfurt, with Traefik at the door.", ["k8s", "Kubernetes"]),
    "duty": ("Every fourth week, hand-over at ten.", ["on-call"]),
    "laptop": ("A ThinkPad with Arch Linux and the sway window manager.", []),
    "寿司": ("東京 の 寿司 屋", []),
}


def found(
    query: str, memories: dict[str, tuple[str, list[str]]] = MEMORIES, limit: int = 9
) -> list[str]:
    postings = defaultdict(list)
    for number, (name, (contents, keywords)) in enumerate(memories.items()):
        held = entries(f"/memories/notes/{name}", "", contents, keywords)
        for term in query_terms(query):
            if term in held:
                postings[term].append((number, held[term]))
    names = list(memories)
    return [names[number] for number, _ in rank(query, postings, limit)]


@pytest.mark.parametrize(
    ("query", "memories"),
    [
        ("Is there anything about PRIYA in the long minutes of last month's board?", "boss"),
        ("what should my line manager and the release train have in common?", "releases boss"),
        ("the train is late and the line is long", ""),
        ("why does get_user_name crash?", "guests"),
        ("does getUserName crash?", "guests"),
        ("k8s", "cluster"),
        ("which Linux is on the ThinkPad", "laptop"),
        ("what runs in Frankfurt", "database cluster"),
        ("Postgres in Frankfurt", "database"),
        ("what have we called the new product so far", ""),
        ("the on-call week", "duty"),
        ("寿司 は", "寿司"),
        ("write a haiku about leaves in autumn", ""),
        ("their six children left the door open when it rained on the garden party", ""),
        ("the", ""),
        ("", ""),
    ],
)
def test_what_is_meant_is_found_and_nothing_else(query: str, memories: str) -> None:
    """By a whole name in however long a query, else by a good part of it."""
    assert found(query) == memories.split()


@pytest.mark.parametrize(
    ("query", "memories"),
    [
        ("our postgress is slow", "database"),
        ("our potsgres is slow", "database"),
        ("our posgres is slow", "database"),
        ("our postgras is slow", ""),
        ("our bostgres is slow", ""),
        ("prya", ""),
    ],
)
def test_a_misspelt_name_is_found(query: str, memories: str) -> None:
    """A letter too many, too few or two swapped; not another letter, at the beginning, or in a
    short word, since that is most often another word."""
    assert found(query) == memories.split()


def test_a_name_that_many_have_gives_way_to_a_rare_one() -> None:
    """A tag says little: by itself it finds all, the best at most `limit`, beside a name none."""
    tagged = {f"note{n}": (f"Fact {n}.", ["heron"]) for n in range(20)}
    memories = tagged | {"storage": ("Files are in Oslo.", ["heron", "bucket"])}
    assert found("which bucket does heron use", memories) == ["storage"]
    assert found("heron", memories, limit=5) == [f"note{n}" for n in range(5)]


def test_the_index_holds_no_words() -> None:
    """What is stored with a term is not sealed; a query asks for a bounded number of terms."""
    held = entries("/memories/a/diet", "What Ann eats", "No peanuts, likesHotFood.", ["Ann", "hot"])
    assert all(re.fullmatch(r"[0-9.,;/]+", hits) for hits in held.values())
    assert {"ann", "eat", "peanut", "food", "hot", "~peanuts"} - set(held) == {"~peanuts"}
    assert len(query_terms(" ".join(f"word{n}" for n in range(500)))) == MAX_WORDS


def test_nothing_grows_with_the_square_of_a_word() -> None:
    """However long it is: there is little of it in the index, and in what a query asks for."""
    word = "acgt" * 5000
    names = [word[n : n + 100] for n in range(20)]
    held = entries(f"/memories/{word[:1000]}", word[:500], word, names)
    assert sum(map(len, held)) < 2000
    assert [len(term) for term in query_terms(f"{word} {word[:31]}")] == [64, 31]
    assert len(query_terms(word[:30])) == 30
