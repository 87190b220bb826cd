"""How fast messages and memories are found in a large store, beside dense scans (--large).

One owner has all items, in sessions of 300 on SQLite, stored and indexed as the app does it. Their
words are invented, as often as words are in a language without its commonest; a query is some words
of one message. The dense scan is what many do instead: a product of all vectors with that of the
query, which lie in memory and have nothing to be read or made first.
"""

from __future__ import annotations

import random
import tempfile
import time
from bisect import bisect
from collections.abc import Awaitable, Callable, Iterator
from itertools import accumulate
from typing import Any

from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.memory_form import Draft
from threadkeep.memory_store import MemoryStore
from threadkeep.passages import search_passages
from threadkeep.recall import TOKENS, notes_for
from threadkeep.search_index import catch_up
from threadkeep.settings import DatabaseSettings

OWNER = "ann"
SESSION = 300
"""Items of each session."""

VOCABULARY = 50_000
MESSAGE = (3, 25)
"""Words of a message, from and to."""

QUERY = (2, 6)
QUERIES = 300
DIMENSIONS = 256
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]

Ask = Callable[[str], Awaitable[object]]


async def measure_large(items: int, memories: int) -> None:
    """Makes a store of so many items and memories, measures and prints."""
    dice = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        database = connect(DatabaseSettings.read({"DATABASE_URL": f"sqlite:///{folder}/large.db"}))
        began = time.perf_counter()
        queries = await fill(database, items, dice)
        print(f"{items:,} items stored and indexed in {time.perf_counter() - began:.0f} s")
        print(f"{'':32}   p50    p95 ms    hits read: p50  most")
        read = counted(database)

        async def passages(query: str) -> None:
            read.append(0)
            await search_passages(database, OWNER, query, limit=10)

        show("search_passages", await timed(passages, queries), read)
        began = time.perf_counter()
        asked = await fill_memories(database, memories, dice)
        print(f"{memories:,} memories stored in {time.perf_counter() - began:.0f} s")
        store = MemoryStore(database, OWNER)

        async def of_memories(query: str) -> None:
            read.append(0)
            await store.search(query, limit=10)

        read.clear()
        of_memories_times = await timed(of_memories, asked)
        of_memories_read = list(read)

        async def recall(query: str) -> None:
            read.append(0)
            await notes_for(store, query, user=OWNER, without=None, tokens=TOKENS)

        read.clear()
        recall_times = await timed(recall, asked)
        await database.close()
    show(f"dense scan, float32 x {DIMENSIONS}", await timed(dense_scan(items), queries))
    show("search of memories", of_memories_times, of_memories_read)
    show("recall before a turn, of both", recall_times, read)
    show(f"dense scan of {memories:,}", await timed(dense_scan(memories), asked))


async def fill(database: Database, items: int, dice: random.Random) -> list[str]:
    """Stores and indexes sessions of an owner; gives queries that some of their messages answer."""
    texts = invented(dice)
    asked_every = max(1, items // QUERIES)
    queries = []
    for first in range(0, items, SESSION):
        said = [next(texts) for _ in range(first, min(first + SESSION, items))]
        queries += [
            " ".join(dice.sample(text.split(), min(dice.randint(*QUERY), len(text.split()))))
            for number, text in enumerate(said, first)
            if number % asked_every == 0
        ]
        messages: list[Any] = [
            {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)
        ]
        await Session(f"s{first}", database=database, owner=OWNER).add_items(messages)
        await catch_up(database, OWNER)
    dice.shuffle(queries)
    return queries


async def fill_memories(database: Database, count: int, dice: random.Random) -> list[str]:
    """Stores memories of an owner; gives queries that some of them answer."""
    texts, store, queries = invented(dice), MemoryStore(database, OWNER), []
    asked_every = max(1, count // QUERIES)
    for number in range(count):
        words = next(texts).split()
        draft = Draft(" ".join(words), keywords=words[:1])
        await store.save(f"/memories/{number}.md", draft)
        if number % asked_every == 0:
            queries.append(" ".join(dice.sample(words, min(dice.randint(*QUERY), len(words)))))
    dice.shuffle(queries)
    return queries


def invented(dice: random.Random) -> Iterator[str]:
    """Messages without end."""
    words = ["".join(dice.choices(SYLLABLES, k=dice.randint(2, 4))) for _ in range(VOCABULARY)]
    reach = list(accumulate(1 / (rank + 20) for rank in range(VOCABULARY)))
    while True:
        yield " ".join(
            words[bisect(reach, dice.random() * reach[-1])] for _ in range(dice.randint(*MESSAGE))
        )


def counted(database: Database) -> list[int]:
    """A list whose last number grows by each hit that is read of the index from now on."""
    read = [0]
    ask = database.call

    async def call(statement: str, **parameters: Any) -> Any:
        rows = await ask(statement, **parameters)
        if "postings" in statement:
            # An entry of messages has a hit for each time a word is said; one of memories is one.
            is_of_memories = statement == "read_postings"
            read[-1] += sum(
                1 if is_of_memories else len(row["hits"].split(",")) for row in rows if row["hits"]
            )
        return rows

    database.call = call  # type: ignore[method-assign]
    return read


def dense_scan(items: int) -> Ask:
    """Finds the ten best of so many random vectors by their products with a query's."""
    import numpy as np

    maker = np.random.default_rng(1)
    vectors = np.empty((items, DIMENSIONS), np.float32)
    for first in range(0, items, 10_000):
        part = vectors[first : first + 10_000]
        maker.standard_normal(out=part, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)

    async def scan(query: str) -> None:
        products = vectors @ vectors[hash(query) % items]
        best = np.argpartition(products, -10)[-10:]
        best[np.argsort(products[best])]

    return scan


async def timed(ask: Ask, queries: list[str]) -> list[float]:
    """How long each query takes, in ms; the first ones are asked once before."""
    for query in queries[:10]:
        await ask(query)
    times = []
    for query in queries:
        began = time.perf_counter()
        await ask(query)
        times.append((time.perf_counter() - began) * 1000)
    return times


def show(name: str, times: list[float], read: list[int] | None = None) -> None:
    """Prints a line of the table."""
    ordered = sorted(times)
    line = f"{name:32}{ordered[len(ordered) // 2]:6.1f}{ordered[len(ordered) * 95 // 100]:7.1f}"
    if read:
        hits = sorted(read)
        line += f"{'':10}{hits[len(hits) // 2]:15,}{hits[-1]:7,}"
    print(line, flush=True)
