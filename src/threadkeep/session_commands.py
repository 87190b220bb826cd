"""`threadkeep sessions`: the conversations that are stored, looked after from a shell.

What the HTTP calls do is done by the same functions. What a command prints for a person is
printable, whatever it holds; `--json` and `export` give it as it is.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, BinaryIO

import click

from threadkeep.command_line import OWNER, check_ids, command, printable, up_to_date
from threadkeep.history import check_id

_PAGE = 200
"""What is read at once."""

_SESSION_ID = click.argument("session_id")
_JSON = click.option(
    "--json", "as_json", is_flag=True, help="As the HTTP calls have it, one a line."
)


@click.group(short_help="Look after what is stored.")
def sessions() -> None:
    """Look after the conversations that are stored."""


@sessions.command("list", short_help="Show them, last changed first.")
@OWNER
@_JSON
@command
async def show_sessions(owner: str, as_json: bool) -> int:
    """Show the sessions of an owner: id, last change, items, title."""
    from threadkeep.stored_sessions import list_sessions

    check_ids(owner)
    after: str | None = ""
    async with up_to_date() as database:
        while after is not None:
            page = await list_sessions(database, owner, after=after, limit=_PAGE)
            for session in page:
                click.echo(json.dumps(session) if as_json else _in_a_line(session))
            after = page[-1]["id"] if len(page) == _PAGE else None
    return 0


@sessions.command("search", short_help="Find them by what was said.")
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@OWNER
@_JSON
@command
async def search(words: tuple[str, ...], limit: int, owner: str, as_json: bool) -> int:
    """Show the sessions of an owner in which all WORDS are said, the best first.

    Under each: the item that fits best, and a passage of it. Exit code 1 when there is none.
    """
    from threadkeep.search import search_sessions

    check_ids(owner)
    async with up_to_date() as database:
        found, complete = await search_sessions(database, owner, " ".join(words), limit=limit)
    for session in found:
        click.echo(json.dumps(session) if as_json else _in_a_line(session))
        if not as_json and session["match"]["seq"]:
            click.echo(f"  {session['match']['seq']}  {printable(session['match']['text'])}")
    if not complete:
        click.echo("Not all was looked at: there may be more. Name a rarer word too.", err=True)
    return 0 if found else 1


def _in_a_line(session: dict[str, Any]) -> str:
    changed = datetime.fromtimestamp(session["updated_at"]).astimezone()
    return printable(
        f"{session['id']}  {changed:%Y-%m-%d %H:%M}  {session['item_count']} items"
        f"  {session['title'] or '(untitled)'}"
    )


@sessions.command("show", short_help="Show one, with what was said.")
@_SESSION_ID
@OWNER
@_JSON
@command
async def show_session(session_id: str, owner: str, as_json: bool) -> int:
    """Show SESSION_ID and its items. With --json: the session, then the items as stored."""
    from threadkeep.history import decode_item, json_text
    from threadkeep.stored_sessions import get_session

    check_ids(owner, SESSION_ID=session_id)
    async with up_to_date() as database:
        session = await get_session(database, session_id, owner)
        click.echo(json_text(session) if as_json else _in_a_line(session))
        after = 0
        while rows := [
            row
            for row in await database.call(
                "read_first_items", session_id=session_id, owner=owner, after=after, limit=_PAGE
            )
            if row["seq"] is not None
        ]:
            after = rows[-1]["seq"]
            for row in rows:
                item = decode_item(row["data"]) or {"type": "unreadable"}
                click.echo(json_text(item) if as_json else _item_in_a_line(row["seq"], item))
    return 0


def _item_in_a_line(seq: int, item: dict[str, Any]) -> str:
    from threadkeep.titles import text_of

    said = text_of(item.get("content"))
    if item.get("type") == "function_call":
        said = f"{item.get('name')}({item.get('arguments')})"
    elif item.get("type") == "function_call_output":
        said = str(item.get("output"))
    return printable(f"{seq}  {item.get('role') or item.get('type')}  {said}")


@sessions.command("export", short_help="Write one as JSON Lines.")
@_SESSION_ID
@OWNER
@command
async def export_one(session_id: str, owner: str) -> int:
    """Write SESSION_ID to the standard output, as JSON Lines."""
    from threadkeep.session_export import export_session

    check_ids(owner, SESSION_ID=session_id)
    async with up_to_date() as database:
        async for lines in export_session(database, session_id, owner):
            sys.stdout.buffer.write(lines.encode())
    sys.stdout.buffer.flush()
    return 0


@sessions.command("import", short_help="Take one from JSON Lines.")
@click.argument("file", type=click.File("rb"))
@OWNER
@command
async def import_one(file: BinaryIO, owner: str) -> int:
    """Make a session of what was exported to FILE, or of the standard input ('-'), all or nothing.

    It has no limit to its size. The session is the owner's that is named here.
    """
    from threadkeep.session_export import import_session

    check_ids(owner)

    async def lines() -> AsyncIterator[bytes]:
        for line in file:
            yield line

    async with up_to_date() as database:
        session = await import_session(database, owner, lines())
    click.echo(f"Imported: {session['id']}, {session['item_count']} items")
    return 0


@sessions.command("fork", short_help="Copy one, up to an item.")
@_SESSION_ID
@click.option("--up-to", type=click.IntRange(1, 2**53), help="The last item that comes along.")
@OWNER
@command
async def fork(session_id: str, up_to: int | None, owner: str) -> int:
    """Copy the items of SESSION_ID, or the first of them, into a new session; print its id."""
    from threadkeep.session_branch import fork_session

    check_ids(owner, SESSION_ID=session_id)
    async with up_to_date() as database:
        forked = await fork_session(database, session_id, owner, up_to=up_to)
    click.echo(forked["id"])
    return 0


@sessions.command("delete", short_help="Delete one, with all that belongs to it.")
@_SESSION_ID
@OWNER
@click.confirmation_option("--yes", prompt="Delete it for good?", help="Do not ask.")
@command
async def delete(session_id: str, owner: str) -> int:
    """Delete SESSION_ID with its items, runs, events and approvals.

    A turn that is at work on it can store nothing more.
    """
    from threadkeep.stored_sessions import delete_session

    check_ids(owner, SESSION_ID=session_id)
    async with up_to_date() as database:
        while not await delete_session(database, session_id, owner):
            pass  # it was changed meanwhile
    click.echo(f"Deleted: {printable(session_id)}")
    return 0


@sessions.command("assign", short_help="Give them to an owner.")
@click.argument("session_ids", metavar="SESSION_ID...", nargs=-1, required=True)
@click.option("--to", "new_owner", required=True, help="Whose they are to be; '' for nobody's.")
@click.option("--from", "owner", default="", help="Whose they are; by default nobody's.")
@command
async def assign(session_ids: tuple[str, ...], new_owner: str, owner: str) -> int:
    """Give sessions to an owner, with their runs and approvals; it says of each what was done.

    By default those of nobody: made before there were users, or adopted. A session whose turn is at
    work, or waits for one, is left alone. Exit code 1 when not all were given.
    """
    from threadkeep.stored_sessions import assign_sessions

    check_ids(owner)
    check_id(new_owner or "-", "--to")
    for session_id in session_ids:
        check_id(session_id, "SESSION_ID")
    whose, news = (printable(name) if name else "nobody" for name in (owner, new_owner))
    async with up_to_date() as database:
        given = await assign_sessions(database, session_ids, owner=owner, new_owner=new_owner)
        for one in given:
            click.echo(
                f"{printable(one.session_id)}: {news}'s now, with {one.items} items, "
                f"{one.runs} runs, {one.approvals} approvals"
            )
        left = [i for i in dict.fromkeys(session_ids) if i not in {s.session_id for s in given}]
        for session_id in left:
            known = await database.call("get_session", session_id=session_id, owner=owner)
            why = "a turn is at work, left alone" if known else f"no such session of {whose}"
            click.echo(f"{printable(session_id)}: {why}")
    return 1 if left else 0


@sessions.command("doctor", short_help="Find broken sessions, and repair them.")
@click.argument("session_id", required=False)
@click.option("--repair", is_flag=True, help="Repair them; each is kept as it was, as a fork.")
@command
async def examine_sessions(session_id: str | None, repair: bool) -> int:
    """Say what is broken in all sessions, or in SESSION_ID; change nothing without --repair.

    Exit code 1 when something is broken, and was not repaired.
    """
    from threadkeep.session_doctor import examine, silent_runs

    counts: Counter[str] = Counter()
    async with up_to_date() as database:
        async for checkup in examine(database, session_id, repair=repair):
            counts[checkup.outcome] += 1
            for trouble in checkup.troubles:
                click.echo(f"{checkup.session_id}: {trouble}")
            if checkup.fork_id:
                click.echo(f"{checkup.session_id}: repaired; the original is {checkup.fork_id}")
        async for run in silent_runs(database, session_id):
            click.echo(
                f"{run.session_id}: run {run.run_id} is {run.status}, and gave no sign of life "
                f"for {run.seconds} s; it is ended when somebody asks for it"
            )
    click.echo(
        f"{counts['sound']} sound, {counts['broken']} broken, {counts['repaired']} repaired, "
        f"{counts['busy']} at work and left alone"
    )
    return 1 if counts["broken"] else 0
