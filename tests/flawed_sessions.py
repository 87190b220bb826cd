"""A Session in memory that keeps to all the suite asks, and Sessions with one flaw each.

`FLAWS` says of each flaw which checks must find it. Between them they fail every check.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from agents.memory.session_settings import resolve_session_limit

from threadkeep.mend import mended


@dataclass
class Store:
    """What several Session objects share."""

    rows: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def damage(self, session_id: str) -> None:
        self.rows[session_id][-1] = "{broken"


class MemorySession:
    """Has no flaw. Each call lets others go first, once, as one that waits for a database does."""

    def __init__(self, session_id: str, store: Store) -> None:
        self.session_id = session_id
        self.session_settings: Any = None
        self.store = store
        self.key = session_id

    @property
    def rows(self) -> list[Any]:
        return self.store.rows[self.key]

    async def get_items(self, limit: int | None = None, *, wrapper: Any = None) -> list[Any]:
        await asyncio.sleep(0)
        limit = self.limit(limit)
        items = self.newest(self.readable(), limit)
        return self.repaired(items) if wrapper is not None and limit is None else items

    async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
        texts = [self.encode(item) for item in items]
        await asyncio.sleep(0)
        self.rows.extend(texts)

    async def pop_item(self, *, wrapper: Any = None) -> Any:
        await asyncio.sleep(0)
        while self.rows:
            item = self.decode(self.rows.pop())
            if item is not None:
                return item
        return None

    async def clear_session(self, *, wrapper: Any = None) -> None:
        await asyncio.sleep(0)
        self.rows.clear()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self.store.turns[self.key]:
            before = list(self.rows)
            try:
                yield
            except ConnectionError:
                self.rows[:] = before
                raise

    def limit(self, limit: int | None) -> int | None:
        return resolve_session_limit(limit, self.session_settings)

    def newest(self, items: list[Any], limit: int | None) -> list[Any]:
        return items if limit is None else items[max(0, len(items) - max(0, limit)) :]

    def repaired(self, items: list[Any]) -> list[Any]:
        return mended(items)

    def readable(self) -> list[Any]:
        items = [self.decode(row) for row in self.rows]
        return [item for item in items if item is not None]

    def encode(self, item: Any) -> Any:
        return json.dumps(item)

    def decode(self, row: Any) -> Any:
        try:
            return json.loads(row)
        except ValueError:
            return None


class MakesItsTableTwice(MemorySession):
    async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
        if items and self.key not in self.store.rows:
            texts = [self.encode(item) for item in items]
            await asyncio.sleep(0)
            self.store.rows[self.key] = texts
        else:
            await super().add_items(items)


class AddsOneByOne(MemorySession):
    async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
        for text in [self.encode(item) for item in items]:
            await asyncio.sleep(0)
            self.rows.append(text)


class CachesForEver(MemorySession):
    cached: list[Any] | None = None

    def readable(self) -> list[Any]:
        if not self.cached:
            self.cached = super().readable()
        return list(self.cached)


class PutsBatchesInFront(MemorySession):
    async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
        texts = [self.encode(item) for item in items]
        await asyncio.sleep(0)
        self.rows[:0] = texts


class LooksThenPops(MemorySession):
    async def pop_item(self, *, wrapper: Any = None) -> Any:
        row = self.rows[-1] if self.rows else None
        await asyncio.sleep(0)
        if row is None:
            return None
        with contextlib.suppress(ValueError):
            self.rows.remove(row)
        return self.decode(row)


class WritesAllBackAfterAPop(MemorySession):
    async def pop_item(self, *, wrapper: Any = None) -> Any:
        rows = list(self.rows)
        await asyncio.sleep(0)
        item = self.decode(rows.pop()) if rows else None
        self.store.rows[self.key] = rows
        return item


class ClearsOneByOne(MemorySession):
    async def clear_session(self, *, wrapper: Any = None) -> None:
        for _ in range(len(self.rows)):
            await asyncio.sleep(0)
            del self.rows[-1:]


class KeepsWhatWasThere(MemorySession):
    async def clear_session(self, *, wrapper: Any = None) -> None:
        await asyncio.sleep(0)


class IsOneForAll(MemorySession):
    def __init__(self, session_id: str, store: Store) -> None:
        super().__init__(session_id, store)
        self.key = ""


class FoldsCase(MemorySession):
    def __init__(self, session_id: str, store: Store) -> None:
        super().__init__(session_id, store)
        self.key = session_id.lower()


class CutsIds(MemorySession):
    def __init__(self, session_id: str, store: Store) -> None:
        super().__init__(session_id, store)
        self.key = session_id[:255]


class HasAnotherId(MemorySession):
    def __init__(self, session_id: str, store: Store) -> None:
        super().__init__(session_id, store)
        self.session_id = session_id.upper()


class KnowsNoUnknownSession(MemorySession):
    async def get_items(self, limit: int | None = None, *, wrapper: Any = None) -> list[Any]:
        if self.key not in self.store.rows:
            raise LookupError(f"no such session: {self.key}")
        return await super().get_items(limit, wrapper=wrapper)


class RefusesNothing(MemorySession):
    async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
        if not items:
            raise ValueError("nothing to add")
        await super().add_items(items)


class PopsTheOldest(MemorySession):
    async def pop_item(self, *, wrapper: Any = None) -> Any:
        await asyncio.sleep(0)
        return self.decode(self.rows.pop(0)) if self.rows else None


class PopsWithoutRemoving(MemorySession):
    async def pop_item(self, *, wrapper: Any = None) -> Any:
        await asyncio.sleep(0)
        return self.decode(self.rows[-1]) if self.rows else None


class KnowsNoContext(MemorySession):
    async def get_items(self, limit: int | None = None) -> list[Any]:  # type: ignore[override]
        return await super().get_items(limit)


class SortsByText(MemorySession):
    def readable(self) -> list[Any]:
        return sorted(super().readable(), key=json.dumps)


class ReadsAPage(MemorySession):
    def readable(self) -> list[Any]:
        return super().readable()[:1000]


class GivesTheOldest(MemorySession):
    def newest(self, items: list[Any], limit: int | None) -> list[Any]:
        return items[:limit]


class TakesZeroForNone(MemorySession):
    def newest(self, items: list[Any], limit: int | None) -> list[Any]:
        return items[-limit:] if limit else items


class TakesAnyLimit(MemorySession):
    def newest(self, items: list[Any], limit: int | None) -> list[Any]:
        return items if limit is None or limit < 0 else super().newest(items, limit)


class KnowsNoSettings(MemorySession):
    def limit(self, limit: int | None) -> int | None:
        return limit


class PrefersItsSettings(MemorySession):
    def limit(self, limit: int | None) -> int | None:
        return resolve_session_limit(None, self.session_settings) or limit


class TakesNoDict(MemorySession):
    def limit(self, limit: int | None) -> int | None:
        settings = self.session_settings
        return limit if limit is not None or settings is None else settings.limit


class Normalises(MemorySession):
    def encode(self, item: Any) -> Any:
        return unicodedata.normalize("NFC", json.dumps(item, ensure_ascii=False))


class DropsNulls(MemorySession):
    def encode(self, item: Any) -> Any:
        return json.dumps({name: value for name, value in item.items() if value is not None})


class ReadsFloats(MemorySession):
    def decode(self, row: Any) -> Any:
        return None if row == "{broken" else json.loads(row, parse_int=float)


class RefusesNesting(MemorySession):
    def encode(self, item: Any) -> Any:
        text = json.dumps(item)
        if text.count("[") > 40:
            raise ValueError("nested too deep")
        return text


class CutsText(MemorySession):
    def encode(self, item: Any) -> Any:
        return super().encode({**item, "content": item["content"][:65535]})


class EndsAtNul(MemorySession):
    def encode(self, item: Any) -> Any:
        text = json.dumps(item).partition("\\u0000")[0]
        return text if text.endswith("}") else f'{text}"}}'


class ReplacesSurrogates(MemorySession):
    def encode(self, item: Any) -> Any:
        return json.dumps(item, ensure_ascii=False).encode("utf-8", "replace")


class SharesWhatIsRead(MemorySession):
    cached: tuple[list[Any], list[Any]] = ([], [])

    def readable(self) -> list[Any]:
        if self.cached[0] != self.rows:
            self.cached = (list(self.rows), super().readable())
        return self.cached[1]


class SharesWhatIsAdded(MemorySession):
    def encode(self, item: Any) -> Any:
        json.dumps(item)
        return item

    def decode(self, row: Any) -> Any:
        return json.loads(json.dumps(row)) if isinstance(row, dict) else None


class AddsWhatItCan(MemorySession):
    async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
        await asyncio.sleep(0)
        self.rows.extend(self.encode(item) for item in items)


class TakesWhatIsNoJSON(MemorySession):
    def encode(self, item: Any) -> Any:
        return json.dumps(item, default=str)


class ForgetsAnOpenCall(MemorySession):
    def repaired(self, items: list[Any]) -> list[Any]:
        ends = [i for i, item in enumerate(items) if item.get("type") == "function_call"]
        return super().repaired(items[ends[-1] + 1 :] if ends else items)


class RepairsNothing(MemorySession):
    def repaired(self, items: list[Any]) -> list[Any]:
        return items


class FailsAtDamage(MemorySession):
    def decode(self, row: Any) -> Any:
        return json.loads(row)


class PopsDamage(MemorySession):
    async def pop_item(self, *, wrapper: Any = None) -> Any:
        await asyncio.sleep(0)
        return self.decode(self.rows.pop()) if self.rows else None


class KeepsMessagesOnly(MemorySession):
    def readable(self) -> list[Any]:
        return [item for item in super().readable() if "role" in item]


class HasNoTurns(MemorySession):
    turn = None  # type: ignore[assignment]


class KeepsWhatFailed(MemorySession):
    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self.store.turns[self.key]:
            yield


FLAWS: dict[type[MemorySession], set[str]] = {
    MakesItsTableTwice: {"the first touch may be at once", "appends at once stay in one piece"},
    AddsOneByOne: {
        "appends at once stay in one piece",
        "readers see it grow at its end",
        "a cancelled append is whole or nothing",
    },
    CachesForEver: {"others see a change at once"},
    PutsBatchesInFront: {"batches keep their order", "readers see it grow at its end"},
    LooksThenPops: {"pops at once give each item once"},
    WritesAllBackAfterAPop: {"pops and appends at once lose nothing"},
    ClearsOneByOne: {"a clear removes whole batches"},
    KeepsWhatWasThere: {"clear leaves nothing and goes on", "a clear removes whole batches"},
    IsOneForAll: {"sessions do not meet"},
    FoldsCase: {"any session id will do"},
    CutsIds: {"long session ids are not cut"},
    HasAnotherId: {"is a session"},
    KnowsNoUnknownSession: {"an unknown session is empty"},
    RefusesNothing: {"adding nothing changes nothing"},
    PopsTheOldest: {"pop takes the newest"},
    PopsWithoutRemoving: {"goes on after a pop", "pops at once give each item once"},
    KnowsNoContext: {"takes the context of a run"},
    SortsByText: {"the same second keeps its order", "a large batch keeps its order"},
    ReadsAPage: {"a large batch keeps its order"},
    GivesTheOldest: {"a limit gives the newest in order", "a limit leaves no half of a call"},
    TakesZeroForNone: {"a limit of 0 gives nothing"},
    TakesAnyLimit: {"a negative limit gives no history"},
    KnowsNoSettings: {"settings limit what is read", "settings may be a dict"},
    PrefersItsSettings: {"settings limit what is read"},
    TakesNoDict: {"settings may be a dict"},
    Normalises: {"any language comes back"},
    DropsNulls: {"what models say comes back"},
    ReadsFloats: {"numbers come back"},
    RefusesNesting: {"nesting comes back"},
    CutsText: {"a megabyte comes back"},
    EndsAtNul: {"a nul comes back"},
    ReplacesSurrogates: {"a lone surrogate comes back"},
    SharesWhatIsRead: {"what is read is a copy"},
    SharesWhatIsAdded: {"what is added is a copy"},
    AddsWhatItCan: {"a batch with no json is refused whole"},
    TakesWhatIsNoJSON: {"a batch with no json is refused whole"},
    ForgetsAnOpenCall: {"a model gets no call without output"},
    RepairsNothing: {
        "a model gets no output without call",
        "a damaged call hides its output from models",
    },
    FailsAtDamage: {"a damaged item hides nothing else", "pop passes over a damaged item"},
    PopsDamage: {"pop passes over a damaged item"},
    KeepsMessagesOnly: {"a run is given the turns before"},
    HasNoTurns: {
        "turns at once stay in one piece",
        "a run is given whole turns",
        "a failed turn is stored once when sent again",
    },
    KeepsWhatFailed: {"a failed turn is stored once when sent again"},
}
