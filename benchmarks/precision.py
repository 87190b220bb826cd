"""Does a search give the memories that are meant, and no others? PrecisionMemBench, scored.

Its 77 cases ask about 35 beliefs of two users, some replaced, some settled; 43 of the cases expect
memories, the others none. A case is exact when what is found is just what is expected. Only the
search is scored: what is pinned is before a model anyway, and so is what holds everywhere.

    git clone https://github.com/tenurehq/precisionMemBench
    uv run python benchmarks/precision.py precisionMemBench/fixtures

A belief is a memory at /memories/<scope>/<canonical name> in a database in memory, its aliases are
the keywords, its content the contents; what is replaced or settled has ended, and open questions
have a folder of their own. As the benchmark's own adapters do it, a case is searched in its scopes
alone, without pinned beliefs, and finds no more than its budget leaves when the pinned ones are in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadkeep.connect import connect
from threadkeep.memory_form import Draft
from threadkeep.memory_store import MemoryStore

Belief = Mapping[str, Any]

BUDGET = 20
"""Of a case that names none, in beliefs; the benchmark's."""

USER = "test-user"
"""Of a case that names none; the benchmark's."""


@dataclass(frozen=True)
class Filters:
    folders: tuple[str, ...]
    """Where the memories must be: beginnings of paths."""
    limit: int


@dataclass(frozen=True)
class Outcome:
    case: Mapping[str, Any]
    found: tuple[str, ...]

    @property
    def owner(self) -> str:
        return str(self.case.get("userId", USER))

    @property
    def expected(self) -> frozenset[str]:
        return frozenset(self.case["expect"]["relevantBeliefs"].get("shouldOnlyInclude", ()))

    @property
    def is_exact(self) -> bool:
        wanted = self.case["expect"]["relevantBeliefs"]
        if not set(wanted.get("mustExclude", ())).isdisjoint(self.found):
            return False
        return "shouldOnlyInclude" not in wanted or self.expected == frozenset(self.found)

    @property
    def right(self) -> int:
        return len(self.expected.intersection(self.found))


class Store:
    """Beliefs as memories of a database in memory. Replaced or settled ones have ended."""

    def __init__(self, beliefs: list[Belief]) -> None:
        self.beliefs = beliefs
        self._database = connect("sqlite://")
        self._ids: dict[str, str] = {}

    async def fill(self) -> None:
        """Stores them."""
        for number, belief in enumerate(self.beliefs):
            draft = Draft(
                belief["canonical_name"].replace("_", " "),
                belief["content"],
                belief["aliases"],
                bool(belief["pinned"]),
                valid_from=0,
                valid_to=None if is_active(belief) else 1,
            )
            path = path_of(belief) if is_active(belief) else f"{path_of(belief)}-{number}"
            saved = await MemoryStore(self._database, belief["user_id"]).save(path, draft)
            self._ids[saved["id"]] = belief["_id"]

    async def search(self, owner: str, query: str, filters: Filters) -> list[str]:
        """The ids of an owner's memories that a query means, the best first."""
        found, _ = await MemoryStore(self._database, owner).search(
            query, limit=filters.limit, under=filters.folders, pinned=False
        )
        return [self._ids[memory["id"]] for memory in found]

    async def close(self) -> None:
        await self._database.close()


def path_of(belief: Belief) -> str:
    if belief["type"] == "open_question":
        return f"/memories/open-questions/{belief['canonical_name']}"
    return f"{folder_of(belief['scope'][0])}{belief['canonical_name']}"


def folder_of(scope: str) -> str:
    return f"/memories/{scope.replace(':', '/')}/"


def is_active(belief: Belief) -> bool:
    return not belief["superseded_by"] and not belief["resolved_at"]


async def outcome_of(store: Store, case: Mapping[str, Any]) -> Outcome:
    owner = case.get("userId", USER)
    folders = tuple(folder_of(scope) for scope in case["scope"])
    pinned = sum(
        belief["pinned"]
        and is_active(belief)
        and belief["user_id"] == owner
        and path_of(belief).startswith(folders)
        for belief in store.beliefs
    )
    limit = max(0, case.get("budget", {}).get("maxBeliefs", BUDGET) - pinned)
    found = await store.search(owner, case["query"], Filters(folders, limit))
    return Outcome(case, tuple(found))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def report(store: Store, outcomes: Sequence[Outcome]) -> None:
    """Prints what is not exact, and the figures. As the benchmark has it, a case in which nothing
    is expected has a precision only when something is found: 0."""
    by_id = {belief["_id"]: belief for belief in store.beliefs}
    hits = [(one.owner, by_id[found]) for one in outcomes for found in one.found]
    asking = [one for one in outcomes if one.expected]
    others = [one for one in outcomes if not one.expected]
    precisions = [
        one.right / max(1, len(one.found)) for one in outcomes if one.expected or one.found
    ]
    for one in outcomes:
        if not one.is_exact:
            print(f"{one.case['caseId']}: {one.case['query']!r}")
            print(f"    missing {sorted(one.expected.difference(one.found))}")
            print(f"    too many {sorted(set(one.found) - one.expected)}")
    print(f"exact, memories expected    {sum(one.is_exact for one in asking)} of {len(asking)}")
    print(f"exact, none expected        {sum(one.is_exact for one in others)} of {len(others)}")
    print(f"mean precision              {mean(precisions):.3f}")
    print(
        f"mean recall                 {mean([one.right / len(one.expected) for one in asking]):.3f}"
    )
    print(f"replaced or settled, found  {sum(not is_active(belief) for _, belief in hits)}")
    print(f"another user's, found       {sum(belief['user_id'] != who for who, belief in hits)}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with beliefs.seed.json, retrieval.cases.json")
    folder = parser.parse_args().folder
    store = Store(json.loads((folder / "beliefs.seed.json").read_text()))
    cases = json.loads((folder / "retrieval.cases.json").read_text())
    await store.fill()
    scored = [case for case in cases if "relevantBeliefs" in case["expect"]]
    report(store, [await outcome_of(store, case) for case in scored])
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
