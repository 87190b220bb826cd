"""Memories as the database has them: facts and preferences of an owner, each under a path.

A change keeps what the memory was, with the time in which it held; deleting removes all of it. The
words of a memory are in the search index as soon as it is stored.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from threadkeep.database import Database, Row
from threadkeep.errors import (
    InvalidInputError,
    MemoryChangedError,
    MemoryExistsError,
    MemoryNotFoundError,
)
from threadkeep.history import decode_item
from threadkeep.memory_form import NO_SOURCE, Draft, Source, check_path, path_for
from threadkeep.memory_index import now_ms, path_key, scope_of, write_indexed
from threadkeep.memory_ranking import query_terms, rank
from threadkeep.memory_rows import draft_of, legible, memory_object, text_of_memory, version_object
from threadkeep.response_events import new_id
from threadkeep.titles import text_of

MAX_READ = 20_000
"""How many entries of the index a search reads."""

MAX_QUERY = 2_000
"""How much of a query is looked at, in characters."""

_LONG = 200
"""A query of more characters is taken apart in a thread: it takes a millisecond and more."""

_MUCH = 1_000
"""More entries of the index are ranked in a thread."""

_PAGE = 200
_FILTERED = 1_000
"""Of how many memories with words of a query it is looked at whether they may be found at all."""

_ALIKE = 250
"""How many of the newest that are pinned, and of the others, an embedding model looks at."""

_BY_WORDS = 0.3
"""What the words weigh beside it."""

_ENDED = 20
"""How many that a search finds may have ended since they were indexed, without taking room."""

_TRIES = 50
"""Of a change, when others change the same memory at the same time."""

_WAIT_SECONDS = 0.02
"""Before it is tried again, at most: whoever waits for less is first."""

_Scored = tuple[Row, float]
_Postings = dict[str, list[tuple[int, str]]]


async def _ranked(query: str, postings: _Postings, limit: int) -> list[tuple[int, float]]:
    """As `rank`, which takes a second when each of many memories has many names."""
    if sum(map(len, postings.values())) > _MUCH:
        return await asyncio.to_thread(rank, query, postings, limit)
    return rank(query, postings, limit)


def _without(postings: _Postings, numbers: Set[int]) -> _Postings:
    return {
        term: [hit for hit in found if hit[0] not in numbers] for term, found in postings.items()
    }


Likeness = Callable[[str, Sequence[str]], Awaitable[list[float] | None]]
"""The likeness of texts to a query, from -1 to 1; None when it can't be told now."""


class MemoryStore:
    """The memories of one owner.

    Args:
        database: Where they lie.
        owner: Whose; '' is the one user of a server without users.
        likeness: How alike texts are to a query, by an embedding model; None: words alone tell.
    """

    def __init__(self, database: Database, owner: str, likeness: Likeness | None = None) -> None:
        self.database = database
        self.owner = owner
        self.likeness = likeness

    async def save(
        self,
        path: str,
        draft: Draft,
        source: Source = NO_SOURCE,
    ) -> dict[str, Any]:
        """Stores a new memory.

        Args:
            path: Where; must be free.
            draft: What it says.
            source: Where that comes from.

        Returns:
            The memory.

        Raises:
            InvalidInputError: The path or the draft can't be used.
            MemoryExistsError: There is a memory at that path; it is as it was.
            DatabaseError: Nothing was stored.
        """
        check_path(path)
        draft = draft.checked()
        row = await self._write(
            "save_memory",
            path,
            draft,
            source,
            memory_id=new_id("mem"),
        )
        if not row["saved"]:
            raise MemoryExistsError(path)
        return memory_object(row)

    async def add(self, draft: Draft, source: Source = NO_SOURCE) -> dict[str, Any]:
        """Stores a new memory at a free path that is made of what it says; else as `save`."""
        path = path_for(draft.description)
        while True:
            try:
                return await self.save(path, draft, source)
            except MemoryExistsError:
                stem = path_for(draft.description).removesuffix(".md")
                path = f"{stem}-{secrets.token_hex(3)}.md"

    async def get(self, path: str) -> dict[str, Any]:
        """The memory at a path.

        Raises:
            MemoryNotFoundError: There is none.
        """
        return memory_object(await self._find(path_key=path_key(path)))

    async def read(self, memory_id: str) -> dict[str, Any]:
        """One memory by its id, with its `history`, the latest version first (200 at most), and in
        its `source` the `text` of the message that it comes from, while that is there.

        Raises:
            MemoryNotFoundError: There is none.
        """
        row = await self._find(memory_id=memory_id)
        versions = await self.database.call(
            "list_versions", memory_id=row["memory_id"], owner=self.owner, limit=_PAGE
        )
        memory = memory_object(row)
        if memory["source"] is not None:
            item = decode_item(row["data"]) if row["data"] else None
            memory["source"]["text"] = text_of(item.get("content")) if item else None
        memory["history"] = [version_object(version) for version in versions]
        return memory

    async def page(self, *, after: str = "", limit: int) -> list[dict[str, Any]]:
        """Memories, last changed first, from behind the one of an id."""
        rows = await self.database.call("list_memories", owner=self.owner, after=after, limit=limit)
        return [memory_object(row) for row in rows]

    def all(self) -> AsyncIterator[dict[str, Any]]:
        """All memories, the last changed first. None is missing that is there all the time,
        whatever is changed or deleted meanwhile."""

        async def read(memory_id: str) -> dict[str, Any]:
            return memory_object(await self._find(memory_id=memory_id))

        return self._each(read)

    def export(self) -> AsyncIterator[dict[str, Any]]:
        """As `all`, each as `read` gives it."""
        return self._each(self.read)

    async def _each(
        self, read: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> AsyncIterator[dict[str, Any]]:
        times: dict[str, int] = {}
        after = ""
        while rows := await self.database.call(  # by what never changes
            "list_memory_ids", owner=self.owner, after=after, limit=_PAGE
        ):
            times |= {row["memory_id"]: row["updated_at"] for row in rows}
            after = rows[-1]["path_key"]
        for memory_id in sorted(times, key=lambda an_id: (times[an_id], an_id), reverse=True):
            try:
                yield await read(memory_id)
            except MemoryNotFoundError:  # deleted just now
                continue

    async def search(
        self, query: str, *, limit: int, under: Sequence[str] = (), pinned: bool | None = None
    ) -> tuple[list[dict[str, Any]], bool]:
        """Memories that fit a query, the best first; those that do not hold now are left out.

        Args:
            query: What is looked for, in words.
            limit: How many at most.
            under: Only those whose paths begin with one of these.
            pinned: Only those that are, or are not.

        Returns:
            Memories, each with its `score`; and whether all was looked at that may be among them.
        """

        def is_wanted(row: Row) -> bool:
            at_place = not under or row["path"].startswith(tuple(under))
            return at_place and pinned in (None, bool(row["pinned"]))

        query = query[:MAX_QUERY]
        postings, complete = await self._postings(query)
        rows: dict[int, Row] = {}
        if under or pinned is not None:
            mentions = Counter(number for found in postings.values() for number, _ in found)
            numbers = [number for number, _ in mentions.most_common(_FILTERED)]
            read = await self._rows(numbers)
            rows = {number: row for number, row in read.items() if is_wanted(row)}
            postings = _without(postings, mentions.keys() - rows.keys())
            complete = complete and len(mentions) <= _FILTERED
        best = await self._best(query, postings, limit, rows)
        if self.likeness is not None:
            newest = [row for row in await self.latest(_ALIKE) if is_wanted(row)]
            best = await self._by_likeness(query, best, newest, limit)
        return [memory_object(row) | {"score": round(score, 4)} for row, score in best], complete

    async def find(self, query: str, limit: int) -> list[Row]:
        """What fits a query and holds now, the best first; rows of `read_memories`."""
        query = query[:MAX_QUERY]
        postings, _ = await self._postings(query)
        best = await self._best(query, postings, limit, {})
        if self.likeness is not None:
            best = await self._by_likeness(query, best, await self.latest(_ALIKE), limit)
        return [row for row, _ in best]

    async def _by_likeness(
        self, query: str, best: Sequence[_Scored], newest: Sequence[Row], limit: int
    ) -> list[_Scored]:
        """What fits by words, and the newest, by how alike the embedding model finds them and how
        well the words fit, each scaled to 1; by words alone where it does not answer."""
        rows = {row["memory_id"]: row for row in (*(row for row, _ in best), *newest)}
        if not rows or self.likeness is None:
            return list(best)
        texts = [text_of_memory(row["description"], row["contents"]) for row in rows.values()]
        alike = await self.likeness(query, texts)
        if alike is None:
            return list(best)
        most = max((score for _, score in best), default=0.0) or 1.0
        fits = {row["memory_id"]: score / most for row, score in best}
        low, high = min(alike), max(alike)
        scores = {
            memory_id: _BY_WORDS * fits.get(memory_id, 0.0)
            + (1 - _BY_WORDS) * (value - low) / ((high - low) or 1.0)
            for memory_id, value in zip(rows, alike, strict=True)
        }
        order = sorted(rows, key=lambda memory_id: (-round(scores[memory_id], 9), memory_id))
        return [(rows[memory_id], scores[memory_id]) for memory_id in order[:limit]]

    async def _best(
        self, query: str, postings: _Postings, limit: int, rows: Mapping[int, Row]
    ) -> list[_Scored]:
        """What fits a query best and holds now, with its score. Where what does not hold leaves
        room, that is taken out and the others are ranked again. `rows` were read before."""
        held: list[_Scored] = []
        for most in (limit + _ENDED, _FILTERED, limit):
            ranked = await _ranked(query, postings, most)
            numbers = [number for number, _ in ranked]
            rows = {**rows, **await self._rows([n for n in numbers if n not in rows])}
            held = [(rows[number], score) for number, score in ranked if number in rows]
            if len(held) >= limit or len(held) == len(ranked):
                break
            postings = _without(postings, set(numbers) - rows.keys())
        return held[:limit]

    async def _rows(self, numbers: Sequence[int]) -> dict[int, Row]:
        """Memories that hold now by their numbers in the index, in that order."""
        if not numbers:
            return {}
        rows = await self.database.call(
            "read_memories", owner=self.owner, search_nos=[str(number) for number in numbers]
        )
        return {row["search_no"]: row for row in legible(rows)}

    async def _postings(self, query: str) -> tuple[_Postings, bool]:
        """Where the words of a query are, the newest first, and whether that is everywhere."""
        if len(query) > _LONG:
            terms = await asyncio.to_thread(query_terms, query)
        else:
            terms = query_terms(query)
        if not terms:
            return {}, True
        share = MAX_READ // len(terms) - 1
        rows = await self.database.call(
            "read_postings", owner=self.owner, scope=scope_of(self.owner), terms=terms, limit=share
        )
        postings: _Postings = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["search_no"], reverse=True):
            postings[terms[row["place"]]].append((row["search_no"], row["hits"]))
        return postings, all(len(found) <= share for found in postings.values())

    async def update(
        self,
        memory_id: str,
        change: Callable[[Draft], Draft],
        source: Source = NO_SOURCE,
        *,
        version: int | None = None,
    ) -> dict[str, Any]:
        """Changes a memory. What it said is kept in its history.

        Args:
            memory_id: Which.
            change: Makes what it is to say of what it says; may raise.
            source: Where that comes from.
            version: Only if it is in this version still.

        Returns:
            The memory as it is now.

        Raises:
            InvalidInputError: What it is to say can't be used.
            MemoryNotFoundError: There is no such memory.
            MemoryChangedError: It is in another version.
            DatabaseError: Nothing was changed.
        """
        for _ in range(_TRIES):
            row = await self._find(memory_id=memory_id)
            if version is not None and row["version"] != version:
                break
            before = draft_of(row)
            after, supersedes = await self._settled(memory_id, before, change(before).checked())
            if after == before:
                return memory_object(row)
            changed = await self._write(
                "update_memory",
                row["path"],
                after,
                source,
                memory_id=memory_id,
                version=row["version"],
                supersedes=int(supersedes),
                superseded_by=after.superseded_by,
            )
            if changed:
                return memory_object(changed)
            await asyncio.sleep(random.uniform(0, _WAIT_SECONDS))  # noqa: S311 - no secret
        raise MemoryChangedError

    async def _settled(self, memory_id: str, before: Draft, after: Draft) -> tuple[Draft, bool]:
        """A change with the times that go with it, and whether it takes the place of what was."""
        supersedes = (after.description, after.contents) != (before.description, before.contents)
        if after.valid_from is None and not supersedes:
            after = replace(after, valid_from=before.valid_from)
        if after.superseded_by not in (None, before.superseded_by):
            if after.superseded_by == memory_id:
                raise InvalidInputError(
                    "A memory can't hold in its own place: superseded_by must name another one.",
                    param="superseded_by",
                )
            await self._find(memory_id=after.superseded_by)
            if after.valid_to is None:
                after = replace(after, valid_to=max(now_ms(), after.valid_from or 0))
        has_ended = after.valid_to is not None and after.valid_to <= now_ms()
        if supersedes and after.valid_from == before.valid_from and not has_ended:
            after = replace(after, valid_from=None)
        return after, supersedes

    async def delete(self, memory_id: str) -> None:
        """Deletes a memory with all that it was. The messages from which it comes are not recalled
        any more.

        Raises:
            MemoryNotFoundError: There is none.
        """
        await self.database.call("forget_sources", memory_id=memory_id, owner=self.owner)
        rows: list[Row] = []
        while not rows or not rows[0]["gone"]:  # it was changed meanwhile
            rows = await self.database.call("delete_memory", memory_id=memory_id, owner=self.owner)
            if not rows:
                raise MemoryNotFoundError

    async def latest(self, limit: int) -> list[Row]:
        """The newest that are pinned, then the newest others; rows of `read_memories`."""
        rows = await self.database.call("read_latest_memories", owner=self.owner, limit=limit)
        return legible(rows)

    async def _find(self, *, memory_id: str = "", path_key: str = "") -> Row:
        rows = await self.database.call(
            "get_memory", owner=self.owner, memory_id=memory_id, path_key=path_key
        )
        if not rows:
            raise MemoryNotFoundError
        return rows[0]

    async def _write(
        self, statement: str, at: str, draft: Draft, source: Source, **more: Any
    ) -> Any:
        """Calls a statement that stores a draft with its words; gives its row, or None."""
        return await write_indexed(
            self.database,
            statement,
            owner=self.owner,
            path=at,
            description=draft.description,
            contents=draft.contents,
            keywords=draft.keywords,
            valid_to=draft.valid_to,
            pinned=int(draft.pinned),
            valid_from=draft.valid_from,
            source_session=source.session_id,
            source_seq=source.seq,
            source_at=source.at,
            **more,
        )
