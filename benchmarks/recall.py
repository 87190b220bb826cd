"""How well past messages are found: recall of turns that answer questions, and how fast.

    uv run --group dev python benchmarks/recall.py [PATH.json …] [--conversations 1,2]
        [--database URL] [--postgres URL]
    uv run --group dev --group benchmarks python benchmarks/recall.py --large
        [--items 1000000] [--memories 100000]

A file has LoCoMo's published form (Maharana et al., ACL 2024): samples of a `conversation`, whose
`session_1`, `session_2`, … are lists of turns, and `qa`, whose `evidence` names the turns that
answer a question. Without one it is recall_small.json, which shows the form and measures little.
Each conversation is an owner's sessions in a new store, the same on SQLite and on Postgres, and
both must rank alike. Recall at k is the share of a question's turns among the best k, on average.

--large makes an owner of so many items and memories, and searches them beside a plain dense scan of
as many vectors in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the databases of the tests

from recall_large import measure_large  # noqa: E402

from tests.backends import new_postgres, postgres_server  # noqa: E402
from threadkeep import Session  # noqa: E402
from threadkeep.connect import connect  # noqa: E402
from threadkeep.database import Database  # noqa: E402
from threadkeep.passages import search_passages  # noqa: E402
from threadkeep.search_index import catch_up  # noqa: E402
from threadkeep.settings import DatabaseSettings  # noqa: E402

SMALL = Path(__file__).parent / "recall_small.json"
DEPTHS = (5, 10, 20)
LIMIT = 50
"""How many passages are asked for; a turn behind them counts as not found."""

_TURN = re.compile(r"D(\d+):(\d+)")
_SESSION = re.compile(r"session_(\d+)")


@dataclass(frozen=True)
class Question:
    """A question, and the turns that answer it."""

    text: str
    evidence: frozenset[str]


@dataclass(frozen=True)
class Conversation:
    """A sample: its sessions of turns, each its id and text, and its questions."""

    name: str
    sessions: list[list[tuple[str, str]]]
    questions: list[Question]


@dataclass(frozen=True)
class Answer:
    """The ids of turns as they were ranked for a question, and how long that took, in ms."""

    question: Question
    ranked: list[str]
    took: float


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[SMALL])
    parser.add_argument("--conversations", help="numbers of samples, as 26,30; all without")
    parser.add_argument("--database", help="measure on this one alone; it should be empty")
    parser.add_argument("--postgres", help="an empty one, instead of a server started for this")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--memories", type=int, default=100_000)
    given = parser.parse_args()
    if given.large:
        asyncio.run(measure_large(given.items, given.memories))
        return
    wanted = given.conversations.split(",") if given.conversations else None
    conversations = [c for path in given.paths for c in read(path) if is_wanted(c, wanted)]
    print(f"{'':9}{'':12}questions   R@5  R@10  R@20   MRR    p50    p95 ms")
    with ExitStack() as stack:
        answers = [asyncio.run(measure(url, conversations)) for url in urls(given, stack)]
    if len(answers) > 1:
        alike = sum(a.ranked == b.ranked for a, b in zip(answers[0], answers[1], strict=True))
        print(f"ranked alike on both: {alike} of {len(answers[0])} questions")
        sys.exit(alike < len(answers[0]))


def read(path: Path) -> Iterator[Conversation]:
    """The conversations of a file, with the questions that can be answered."""
    for sample in json.loads(path.read_text("utf-8")):
        parts = sample["conversation"]
        names = sorted(filter(_SESSION.fullmatch, parts), key=lambda n: int(n.split("_")[1]))
        sessions = [
            [(turn_ids(turn["dia_id"])[0], f"{turn['speaker']}: {turn['text']}") for turn in turns]
            for turns in (parts[name] for name in names)
        ]
        known = {turn_id for turns in sessions for turn_id, _ in turns}
        questions = [
            Question(qa["question"], evidence)
            for qa in sample["qa"]
            if qa["category"] in (1, 2, 3, 4)
            and (evidence := known.intersection(turn_ids(" ".join(qa["evidence"]))))
        ]
        yield Conversation(sample["sample_id"], sessions, questions)


def turn_ids(text: str) -> list[str]:
    """The ids of turns in a text, however they are written: D1:03 is D1:3."""
    return [f"D{int(session)}:{int(turn)}" for session, turn in _TURN.findall(text)]


def is_wanted(conversation: Conversation, wanted: list[str] | None) -> bool:
    """Whether it was chosen, by its number or whole name."""
    return wanted is None or conversation.name.rpartition("-")[2] in wanted


def urls(given: argparse.Namespace, stack: ExitStack) -> Iterator[str]:
    """The databases to measure on: two that are new, or the one that was named."""
    if given.database:
        yield given.database
        return
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    yield f"sqlite:///{folder}/recall.db"
    yield given.postgres or new_postgres(stack.enter_context(postgres_server())).url


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A database, until it is done with."""
    database = connect(DatabaseSettings.read({"DATABASE_URL": url}))
    try:
        yield database
    finally:
        await database.close()


async def measure(url: str, conversations: list[Conversation]) -> list[Answer]:
    """Stores conversations, asks their questions, and prints how that went."""
    kind = "SQLite" if url.startswith("sqlite") else "Postgres"
    answers: list[Answer] = []
    async with opened(url) as database:
        for conversation in conversations:
            turns = await store(database, conversation)
            of_one = [
                await answer(database, conversation.name, question, turns)
                for question in conversation.questions
            ]
            show(kind, conversation.name, of_one)
            answers += of_one
    show(kind, "all", answers)
    return answers


async def store(database: Database, conversation: Conversation) -> dict[tuple[str, int], str]:
    """Stores a conversation as its owner's sessions; gives which turn lies where."""
    where = {}
    first = conversation.sessions[0][0][1].partition(":")[0]
    for number, turns in enumerate(conversation.sessions):
        await asyncio.sleep(0.002)  # those that are made in the same ms have no order
        session_id = f"{conversation.name}-{number}"
        items: list[Any] = [
            {"role": "user" if text.startswith(f"{first}:") else "assistant", "content": text}
            for _, text in turns
        ]
        await Session(session_id, database=database, owner=conversation.name).add_items(items)
        where |= {(session_id, seq): turn_id for seq, (turn_id, _) in enumerate(turns, 1)}
    await catch_up(database, conversation.name)
    return where


async def answer(
    database: Database, owner: str, question: Question, turns: dict[tuple[str, int], str]
) -> Answer:
    """Asks one question."""
    began = time.perf_counter()
    passages, _ = await search_passages(database, owner, question.text, limit=LIMIT)
    took = (time.perf_counter() - began) * 1000
    return Answer(question, [turns[p.session_id, p.seq] for p in passages], took)


def show(kind: str, name: str, answers: list[Answer]) -> None:
    """Prints a line of the table."""
    recalls = [
        statistics.mean(
            len(a.question.evidence.intersection(a.ranked[:depth])) / len(a.question.evidence)
            for a in answers
        )
        for depth in DEPTHS
    ]
    ranks = (
        next((n for n, turn in enumerate(a.ranked, 1) if turn in a.question.evidence), 0)
        for a in answers
    )
    reciprocal = statistics.mean(1 / rank if rank else 0 for rank in ranks)
    times = sorted(a.took for a in answers)
    figures = "".join(f"{100 * value:6.1f}" for value in (*recalls, reciprocal))
    p50, p95 = times[len(times) // 2], times[len(times) * 95 // 100]
    print(f"{kind:9}{name:12}{len(answers):9}{figures}{p50:7.1f}{p95:7.1f}", flush=True)


if __name__ == "__main__":
    main()
