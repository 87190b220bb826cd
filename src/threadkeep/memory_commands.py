"""`threadkeep memories`: what is remembered of an owner, looked after from a shell.

What the HTTP calls do is done by the same store. What a command prints for a person is printable,
whatever it holds; `--json` and `export` give it as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from threadkeep.command_line import OWNER, check_ids, command, printable, up_to_date
from threadkeep.errors import InvalidInputError
from threadkeep.history import check_id, json_text

if TYPE_CHECKING:
    from threadkeep.memory_store import MemoryStore

F = TypeVar("F", bound=Callable[..., Any])

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_SHARED = click.option(
    "--shared", help="Instead of an owner's: those that several share, by the name of their group."
)
_MEMORY = click.argument("memory")
_JSON = click.option(
    "--json", "as_json", is_flag=True, help="As the HTTP calls have it, one a line."
)


def _of_a_draft(valid_from: str, valid_to: str) -> Callable[[F], F]:
    """The options that say what a memory says; with how it is when a time is not named."""

    options = (
        click.option("--valid-to", type=_TIME, help=f"Until when it holds; else {valid_to}."),
        click.option("--valid-from", type=_TIME, help=f"Since when it holds; else {valid_from}."),
        click.option("--keyword", "keywords", multiple=True, help="Another name; may be repeated."),
        click.option("--contents", help="More of it, in as many lines as needed."),
    )

    def decorate(work: F) -> F:
        for option in options:
            work = option(work)
        return work

    return decorate


@asynccontextmanager
async def _opened(owner: str, shared: str | None) -> AsyncIterator[MemoryStore]:
    from threadkeep.memory_form import shared_scope
    from threadkeep.memory_store import MemoryStore

    check_ids(owner)
    if owner and shared is not None:
        raise InvalidInputError("Name an --owner or what is --shared, not both.")
    scope = owner if shared is None else shared_scope(shared)
    async with up_to_date() as database:
        yield MemoryStore(database, scope)


async def _id_of(store: MemoryStore, memory: str) -> str:
    """The id of a memory that is named by its id or its path."""
    check_id(memory, "MEMORY")
    if not memory.startswith("/"):
        return memory
    found: str = (await store.get(memory))["id"]
    return found


@click.group(short_help="Look after what is remembered.")
def memories() -> None:
    """Look after what is remembered: facts and preferences of an owner.

    A MEMORY is named by its id or its path.
    """


@memories.command("list", short_help="Show them, last changed first.")
@OWNER
@_SHARED
@_JSON
@command
async def show_memories(owner: str, shared: str | None, as_json: bool) -> int:
    """Show the memories of an owner: id, path, last change, description.

    What is pinned, has ended or does not hold yet is marked.
    """
    async with _opened(owner, shared) as store:
        async for memory in store.all():
            click.echo(json_text(memory) if as_json else _in_a_line(memory))
    return 0


@memories.command("search", short_help="Find them by what they say.")
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@OWNER
@_SHARED
@_JSON
@command
async def search(
    words: tuple[str, ...], limit: int, owner: str, shared: str | None, as_json: bool
) -> int:
    """Show the memories of an owner that fit WORDS and hold now, the best first.

    Exit code 1 when there is none.
    """
    async with _opened(owner, shared) as store:
        found, complete = await store.search(" ".join(words), limit=limit)
    for memory in found:
        click.echo(json_text(memory) if as_json else _in_a_line(memory))
    if not complete:
        click.echo("Not all was looked at: there may be more. Name a rarer word too.", err=True)
    return 0 if found else 1


def _in_a_line(memory: dict[str, Any]) -> str:
    pinned = "  pinned" if memory["pinned"] else ""
    return printable(
        f"{memory['id']}  {memory['path']}  {_minute(memory['updated_at'])}{pinned}"
        f"{_not_now(memory)}  {memory['description']}"
    )


def _not_now(memory: dict[str, Any]) -> str:
    """Marks what has ended or has not begun."""
    now = time.time()
    if memory["valid_to"] is not None and memory["valid_to"] <= now:
        return "  ended"
    return "  not yet" if memory["valid_from"] > now else ""


def _minute(seconds: int) -> str:
    try:
        moment = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError):  # the year 10000 has begun here
        moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d %H:%M}"


@memories.command("show", short_help="Show one, with what it was before.")
@_MEMORY
@OWNER
@_SHARED
@_JSON
@command
async def show_memory(memory: str, owner: str, shared: str | None, as_json: bool) -> int:
    """Show MEMORY: what it says, where that comes from, since when it holds, what it was before."""
    async with _opened(owner, shared) as store:
        shown = await store.read(await _id_of(store, memory))
    click.echo(json_text(shown) if as_json else "\n".join(_in_lines(shown)))
    return 0


def _in_lines(memory: dict[str, Any]) -> list[str]:
    until = "" if memory["valid_to"] is None else f" until {_minute(memory['valid_to'])}"
    lines = [_in_a_line(memory), f"  since {_minute(memory['valid_from'])}{until}"]
    lines += [f"  {printable(line)}" for line in memory["contents"].splitlines()]
    if memory["keywords"]:
        lines.append(printable(f"  keywords: {', '.join(memory['keywords'])}"))
    if memory["superseded_by"]:
        lines.append(f"  superseded by {memory['superseded_by']}")
    if source := memory["source"]:
        lines.append(printable(f"  from {source['session_id']}, {source['seq']}: {source['text']}"))
    for old in memory["history"]:
        times = f"{_minute(old['valid_from'])} to {_minute(old['valid_to'])}"
        lines.append(printable(f"  before, {times}: {old['description']}"))
        lines += [f"    {printable(line)}" for line in old["contents"].splitlines()]
    return lines


@memories.command("add", short_help="Remember something.")
@click.argument("description")
@click.option("--path", help="Where, such as /memories/diet.md; else made of the description.")
@click.option("--pin", is_flag=True, help="Put it before the model in every conversation.")
@_of_a_draft("from now on", "for good")
@OWNER
@_SHARED
@command
async def add(
    description: str,
    path: str | None,
    pin: bool,
    contents: str | None,
    keywords: tuple[str, ...],
    valid_from: datetime | None,
    valid_to: datetime | None,
    owner: str,
    shared: str | None,
) -> int:
    """Remember DESCRIPTION, one line; print the id and the path."""
    from threadkeep.memory_form import Draft

    draft = Draft(
        description, contents or "", list(keywords), pin, _stored(valid_from), _stored(valid_to)
    )
    async with _opened(owner, shared) as store:
        made = await (store.add(draft) if path is None else store.save(path, draft))
    click.echo(printable(f"{made['id']}  {made['path']}"))
    return 0


@memories.command("edit", short_help="Change one.")
@_MEMORY
@click.option("--description", help="What is to be remembered, in one line.")
@click.option("--pin/--no-pin", default=None, help="Put it before the model, or not any more.")
@click.option("--superseded-by", metavar="MEMORY", help="Which holds in its place, from now on.")
@click.option("--no-valid-to", is_flag=True, help="No end any more, and none in its place.")
@_of_a_draft("as it is", "as it is")
@OWNER
@_SHARED
@command
async def edit(
    memory: str,
    description: str | None,
    pin: bool | None,
    superseded_by: str | None,
    no_valid_to: bool,
    contents: str | None,
    keywords: tuple[str, ...],
    valid_from: datetime | None,
    valid_to: datetime | None,
    owner: str,
    shared: str | None,
) -> int:
    """Change MEMORY. What is not named stays; what it said is kept in its history.

    Other words hold from now on, if --valid-from says nothing else.
    """
    if no_valid_to and (valid_to or superseded_by):
        raise InvalidInputError("Name --no-valid-to, or --valid-to or --superseded-by, not both.")
    async with _opened(owner, shared) as store:
        told: dict[str, Any] = {
            "description": description,
            "pinned": pin,
            "contents": contents,
            "keywords": list(keywords) or None,
            "valid_from": _stored(valid_from),
            "valid_to": _stored(valid_to),
            "superseded_by": superseded_by and await _id_of(store, superseded_by),
        }
        given = {name: value for name, value in told.items() if value is not None}
        if no_valid_to:
            given |= {"valid_to": None, "superseded_by": None}
        if not given:
            raise InvalidInputError("There is nothing to change: name an option.")
        memory_id = await _id_of(store, memory)
        changed = await store.update(memory_id, lambda draft: replace(draft, **given))
    click.echo(_in_a_line(changed))
    return 0


def _stored(moment: datetime | None) -> int | None:
    """In milliseconds since 1970, of a time of this place."""
    if moment is None:
        return None
    try:
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):  # at the ends of what a time can be
        return int(moment.replace(tzinfo=UTC).timestamp() * 1000)


@memories.command("delete", short_help="Forget one.")
@_MEMORY
@OWNER
@_SHARED
@click.confirmation_option("--yes", prompt="Delete it for good?", help="Do not ask.")
@command
async def delete(memory: str, owner: str, shared: str | None) -> int:
    """Delete MEMORY with all that it was."""
    async with _opened(owner, shared) as store:
        await store.delete(await _id_of(store, memory))
    click.echo(f"Deleted: {printable(memory)}")
    return 0


@memories.command("export", short_help="Write all as JSON Lines.")
@OWNER
@_SHARED
@command
async def export(owner: str, shared: str | None) -> int:
    """Write the memories of an owner to the standard output, as JSON Lines, each with what it was
    before."""
    async with _opened(owner, shared) as store:
        async for memory in store.export():
            sys.stdout.buffer.write(f"{json_text(memory)}\n".encode())
    sys.stdout.buffer.flush()
    return 0
