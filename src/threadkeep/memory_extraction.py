"""Memories that a model proposes of what users say, behind their turns (MEMORY_EXTRACTION=on).

Only what a user wrote is looked at: no answers, no tool's outputs, no documents. Each memory names
the message that it comes from, and a proposal is dropped that quotes nothing from there, or says
what the message does not. How far each session was looked through is stored with it, so nothing is
lost or done twice when a process dies, and any number of replicas may do it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from agents import Agent, ModelProvider, RunConfig, Runner, TResponseInputItem
from pydantic import BaseModel, Field

from threadkeep.database import Database, Row
from threadkeep.errors import (
    DatabaseError,
    InvalidInputError,
    MemoryChangedError,
    MemoryExistsError,
    MemoryNotFoundError,
)
from threadkeep.failures import log_fault
from threadkeep.history import decode_item
from threadkeep.memory_form import MAX_DESCRIPTION, Draft, Source
from threadkeep.memory_origins import NEGATION, claims
from threadkeep.memory_store import MemoryStore
from threadkeep.search_index import DOCUMENT_CHARACTERS
from threadkeep.titles import text_of
from threadkeep.words import negates, says_of_self

PAUSE_SECONDS = 2.0
"""Between two looks for what is new."""

QUIET_MS = 1000
"""How long after its last change a session is left alone: who writes on has not ended."""

_RECENT_MS = 24 * 3600 * 1000
_LEASE_MS = 10 * 60 * 1000
_ITEMS = 100
_KNOWN = 12
_ALIKE = 0.8
"""Of the words of two facts together, what both must have to be one fact."""

_NEAR = 0.5
"""How much of a fact its quotation must say."""

_BORNE_OUT = 0.8
"""How much, for the fact to be kept as the model puts it."""

_SENTENCE_END = re.compile(r"[.!?]|$")
_SLUG = re.compile(r"[^\w]+")

_INSTRUCTIONS = """\
Find lasting facts that the user tells about themselves: name, home, work, family, health, diet, \
tastes, habits, plans, wishes for how to be answered. Leave out questions, requests, small talk, \
secrets, and what is said of others or of the world. Most messages hold none: then give an empty \
list.
For each fact give `quote`, the user's words exactly as they stand there; `fact`, a short sentence \
that holds without the message; `topic`, one or two words; and `replaces`, the path of a known \
memory that it makes untrue, or null."""

_logger = logging.getLogger("threadkeep")


class Proposal(BaseModel):
    """A fact that a model has found in what a user said."""

    quote: str = Field(description="The user's words, exactly.")
    fact: str = Field(description="The fact in one short sentence.")
    topic: str = Field(description="One or two words.")
    replaces: str | None = Field(description="The path of a known memory that is untrue now.")


class Proposals(BaseModel):
    """All of them."""

    facts: list[Proposal]


@dataclass(frozen=True)
class Said:
    """What a user said: the seq of the item, its text, and when it was stored, in ms."""

    seq: int
    text: str
    at: int = 0


def _asked(known: Sequence[str], said: Sequence[str]) -> TResponseInputItem:
    lines = ["Known memories:", *(known or ["none"]), "", "The user said:", *said]
    return {"role": "user", "content": "\n".join(lines)}


def _found(*facts: Proposal) -> TResponseInputItem:
    return {"role": "assistant", "content": Proposals(facts=list(facts)).model_dump_json()}


_EXAMPLES = [
    _asked([], ["Hi, I'm Tom and I work as a baker. What's the time in Rome?"]),
    _found(
        Proposal(
            quote="I'm Tom and I work as a baker",
            fact="Their name is Tom, and they work as a baker.",
            topic="person",
            replaces=None,
        )
    ),
    _asked([], ["Write a poem about the sea.", "Thank you!"]),
    _found(),
    _asked(["/memories/profile/home.md: They live in Oslo."], ["I moved to Bergen in May."]),
    _found(
        Proposal(
            quote="I moved to Bergen in May",
            fact="They live in Bergen, since May.",
            topic="home",
            replaces="/memories/profile/home.md",
        )
    ),
    _asked(["/memories/profile/home.md: They live in Oslo."], ["What is the capital of Peru?"]),
    _found(),
]
"""Two of four find nothing: a small model would find something in everything."""


Propose = Callable[[Sequence[Said], Sequence[dict[str, object]]], Awaitable[Sequence[Proposal]]]
"""Finds facts in what a user said; knows what is remembered already."""


def proposing(models: ModelProvider, *, small: bool = False) -> Propose:
    """Has the agent's model find the facts.

    Args:
        models: Gives the model.
        small: Whether it is told nothing of what is known, which it would only repeat, and gives
            only what users say of themselves, as far as words tell: it finds facts in anything.
            Then a fact takes the place of no other: both are kept, with their dates.
    """
    agent = Agent[None](name="Memory", instructions=_INSTRUCTIONS, output_type=Proposals)
    config = RunConfig(model_provider=models, tracing_disabled=True)

    async def propose(
        said: Sequence[Said], known: Sequence[dict[str, object]]
    ) -> Sequence[Proposal]:
        listed = [] if small else [f"{m['path']}: {m['description']}" for m in known]
        asked = _asked(listed, [one.text for one in said])
        result = await Runner.run(agent, [*_EXAMPLES, asked], run_config=config, max_turns=1)
        facts = result.final_output_as(Proposals).facts
        if not small:
            return facts
        # It has one topic for all.
        return [f.model_copy(update={"topic": f.quote}) for f in facts if says_of_self(f.quote)]

    return propose


async def keep_extracting(database: Database, propose: Propose) -> None:
    """Looks for what is worth to be remembered, again and again, until it is cancelled."""
    told = False
    while True:
        try:
            while await extract_next(database, propose):
                told = False
        except DatabaseError as error:
            if not told:
                _logger.warning("Memories are not extracted: %s", error)
            told = True
        except Exception as error:  # noqa: BLE001 - others wait to be looked through
            log_fault("The extraction of memories", error)
        await asyncio.sleep(PAUSE_SECONDS)


async def extract_next(database: Database, propose: Propose) -> bool:
    """Looks through one session for what is worth to be remembered.

    Args:
        database: Where sessions and memories lie.
        propose: Finds the facts.

    Returns:
        False when there is none to look through.

    Raises:
        DatabaseError: It could not be done.
    """
    rows = await database.call(
        "claim_session_to_remember", recent=_RECENT_MS, quiet=QUIET_MS, lease=_LEASE_MS
    )
    if not rows:
        return False
    session_id, owner = rows[0]["session_id"], rows[0]["owner"]
    items = await database.call(
        "read_first_items",
        session_id=session_id,
        owner=owner,
        after=rows[0]["remembered_seq"],
        limit=_ITEMS,
    )
    items = [row for row in items if row["seq"] is not None]
    said = list(_said(items))
    store = MemoryStore(database, owner)
    proposals: Sequence[Proposal] = ()
    if said:
        try:
            proposals = await propose(said, await _known(store, said))
        except Exception as error:  # noqa: BLE001 - whatever a model does; it is tried again later
            log_fault("The extraction of memories", error)
            return True
    done = items[-1]["seq"] if items else rows[0]["seq"]
    taken = [await _take(store, session_id, said, proposal) for proposal in proposals]
    ended = await database.call(
        "end_remembering", session_id=session_id, owner=owner, epoch=rows[0]["epoch"], seq=done
    )
    if not ended:
        await _take_back(store, rows[0], [one for one in taken if one is not None])
    return True


def _said(rows: Iterable[Row]) -> Iterable[Said]:
    """What the user wrote; a text that is too long is a document."""
    for row in rows:
        item = decode_item(row["data"])
        if item and item.get("role") == "user":
            text = text_of(item.get("content")).strip()
            if 0 < len(text) <= DOCUMENT_CHARACTERS:
                yield Said(row["seq"], text, row["created_at"])


async def _known(store: MemoryStore, said: Sequence[Said]) -> list[dict[str, object]]:
    """Memories that what was said may be about, and the newest."""
    found, _ = await store.search(" ".join(one.text for one in said), limit=_KNOWN)
    newest = await store.page(limit=_KNOWN)
    return list({memory["id"]: memory for memory in (*found, *newest)}.values())[:_KNOWN]


async def _take(
    store: MemoryStore, session_id: str, said: Sequence[Said], proposal: Proposal
) -> tuple[str, bool] | None:
    """Remembers a proposal that is borne out, unless it is known; gives its id, and whether it is
    new."""
    origin = _origin(said, proposal)
    if origin is None:
        return None
    fact = _borne_out(proposal)[:MAX_DESCRIPTION]
    source = Source(session_id, origin.seq, origin.at)
    found, _ = await store.search(fact, limit=_KNOWN)
    if any(_is_alike(fact, memory["description"]) for memory in found):
        return None
    draft = Draft(fact)
    try:
        if proposal.replaces:
            with suppress(MemoryNotFoundError):  # it made that path up
                known = await store.get(proposal.replaces)
                await store.update(
                    known["id"], lambda before: replace(before, description=fact), source
                )
                return known["id"], False
        saved = await _save(store, proposal.topic, draft, source)
        return (saved, True) if saved else None
    except (InvalidInputError, MemoryChangedError):  # it is no fact, or changes all the time
        return None


async def _take_back(store: MemoryStore, session: Row, taken: Iterable[tuple[str, bool]]) -> None:
    """Deletes what comes from a session that was deleted meanwhile; from one that was cut back,
    what is new."""
    found = await store.database.call(
        "get_session", session_id=session["session_id"], owner=store.owner
    )
    if found and found[0]["epoch"] == session["epoch"]:
        return
    for memory_id, is_new in taken:
        if is_new or not found:
            with suppress(MemoryNotFoundError):
                await store.delete(memory_id)


async def _save(store: MemoryStore, topic: str, draft: Draft, source: Source) -> str | None:
    slug = _SLUG.sub("-", topic.lower()).strip("-_")[:40] or "fact"
    for number in range(1, 100):
        end = "" if number == 1 else f"-{number}"
        try:
            saved = await store.save(f"/memories/profile/{slug}{end}.md", draft, source)
        except MemoryExistsError:
            continue
        return str(saved["id"])
    return None


def _origin(said: Sequence[Said], proposal: Proposal) -> Said | None:
    """The message that a proposal comes from: it says the quotation, and does not ask it."""
    quote = _plain(proposal.quote).rstrip(".,;:!?")
    if not quote or _share(proposal) < _NEAR:
        return None
    for one in reversed(said):
        _, found, behind = _plain(one.text).partition(quote)
        if found and not _asks(behind):
            return one
    return None


def _share(proposal: Proposal) -> float:
    """How much of a fact its quotation says, by words."""
    words = claims(proposal.fact) - {NEGATION}
    return len(words & claims(proposal.quote)) / len(words) if words else 0.0


def _borne_out(proposal: Proposal) -> str:
    """The fact, or what the user said where that is not the same: it is true in any case."""
    same = negates(proposal.fact) == negates(proposal.quote) and _share(proposal) >= _BORNE_OUT
    text = proposal.fact if same else proposal.quote
    return " ".join(text.split())


def _asks(behind: str) -> bool:
    """Whether a sentence that goes on like this is a question."""
    end = _SENTENCE_END.search(behind)
    return end is not None and end[0] == "?"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" \"'")


def _is_alike(one: str, other: str) -> bool:
    a, b = claims(one), claims(other)
    return bool(a) and (NEGATION in a) == (NEGATION in b) and len(a & b) >= _ALIKE * len(a | b)
