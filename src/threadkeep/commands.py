"""The `threadkeep` command: what is done to a database, beside serving from it.

Exit codes: 0 it is done, or well; 1 a check failed; 2 it could not be done, and one line says why;
130 for Ctrl-C. What takes long to import is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from threadkeep.command_line import OWNER, check_ids, command, printable, up_to_date
from threadkeep.connect import connect, connect_postgres
from threadkeep.copy_command import copy
from threadkeep.encryption_commands import encryption
from threadkeep.errors import DatabasePermissionError, InvalidInputError, NotFoundError
from threadkeep.history import check_id, check_text
from threadkeep.memory_commands import memories
from threadkeep.migrate import RELEASE
from threadkeep.owner_commands import owners
from threadkeep.postgres import PostgresDatabase
from threadkeep.postgres_schema import grants
from threadkeep.session_commands import sessions
from threadkeep.settings import DatabaseSettings

_SHOWN = 10
"""Of sessions that differ, so many are named."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(RELEASE, prog_name="threadkeep")
def main() -> None:
    """Look after the database of an app.

    Settings come from the environment and from .env in this folder, as for start-app.
    """


@main.command(short_help="Bring the schema up to date.")
@click.option("--check", is_flag=True, help="Say what is missing, change nothing; exit code 1.")
@command
async def migrate(check: bool) -> int:
    """Bring the schema up to date. `start-app` does so too, if its role may."""
    database = connect()
    try:
        missing = await database.pending()
        if not check:
            await database.open()
    finally:
        await database.close()
    for name in missing:
        click.echo(f"{'Missing' if check else 'Applied'}: {name}")
    if not missing:
        click.echo(f"Up to date: {database.description}")
    return 1 if check and missing else 0


main.add_command(encryption)
main.add_command(owners)

_DOCTOR = "Check all that an app needs; say what to do."


@main.command(short_help=_DOCTOR)
@click.option("--no-turn", is_flag=True, help="Leave the model alone.")
@command
async def doctor(no_turn: bool) -> int:
    """Check settings, login, database, rights, agent and model, and make a turn of the app in this
    folder; say what to do about each failure. Exit code 1 when something failed.
    """
    from threadkeep.doctor import examine

    failed = False
    async for result in examine(os.environ, with_turn=not no_turn):
        mark = {"ok": "ok  ", "failed": "FAIL", "skipped": "skip"}[result.outcome]
        message = result.message.replace("\n", "\n" + " " * 17)
        click.echo(f"{mark}  {result.name:<9}  {message}")
        failed = failed or result.outcome == "failed"
    return int(failed)


main.add_command(doctor, "preflight")
main.add_command(sessions)
main.add_command(memories)
main.add_command(copy)


@main.command(short_help="Let another role use the schema.")
@click.argument("role")
@click.option("--run", is_flag=True, help="Run the SQL, as whoever owns the schema.")
@command
async def grant(role: str, run: bool) -> int:
    """Print the SQL that lets another ROLE use the schema.

    ROLE is a Postgres role; that of a Databricks App is the client id of its service principal.
    """
    settings = DatabaseSettings.read(os.environ)
    database = connect_postgres(settings)
    sql = grants(role, _database_name(settings), settings.schema_name)
    try:
        if run:
            await _run_grants(database, role, sql)
    finally:
        await database.close()
    click.echo("\n".join(sql))
    if run:
        click.echo(f"Done: {role} may use the schema {settings.schema_name}.")
    return 0


async def _run_grants(database: PostgresDatabase, role: str, sql: list[str]) -> None:
    """Runs them, and sees that they did it: Postgres only warns where it grants nothing."""
    await database.open()
    found = await database.rights_of(role)
    if found is None:
        raise NotFoundError(
            f"There is no role {role} in the database. That of a Databricks App is made when it is "
            "deployed with the `database` resource."
        )
    if found["may_grant"]:
        for line in sql:
            await database.execute(line)
        found = await database.rights_of(role)
    if not (found and found["may_grant"] and found["lets_in"]):
        who = await database.whoami()
        raise DatabasePermissionError(
            f"Permission denied: {who['role']} does not own the schema {database.schema} and all "
            "its tables. Let their owner do it, or run the SQL that is shown without --run."
        )


def _database_name(settings: DatabaseSettings) -> str:
    if settings.uses_lakebase:
        return settings.pgdatabase
    parts = urlsplit(settings.database_url or "")
    return unquote(parts.path.removeprefix("/") or parts.username or "postgres")


@main.command("import", short_help="Take over sessions from elsewhere.")
@click.option(
    "--from",
    "source",
    type=click.Choice(["databricks-openai"]),
    required=True,
    help="Whose history: what AsyncDatabricksSession of databricks-openai stored in this database.",
)
@click.option("--schema", help="Where its tables lie; by default in public.")
@click.option("--sessions-table", default="agent_sessions", show_default=True)
@click.option("--messages-table", default="agent_messages", show_default=True)
@command
async def import_sessions(
    source: str, schema: str | None, sessions_table: str, messages_table: str
) -> int:
    """Take over sessions from elsewhere, as they are; what is there stays untouched.

    It may be run again: sessions that are known here are compared, and left alone.
    """
    from threadkeep.adoption import Adoption, PeerTables

    database = connect_postgres()
    counts = dict.fromkeys(("adopted", "same", "different", "empty", "unusable"), 0)
    different: list[str] = []
    try:
        adoption = Adoption(database, PeerTables(schema, sessions_table, messages_table))
        with click.progressbar(length=await adoption.count(), label=f"From {source}") as bar:
            async for imported in adoption.adopt_all():
                counts[imported.outcome] += 1
                if imported.outcome == "different":
                    different.append(imported.session_id)
                bar.update(1)
    finally:
        await database.close()
    click.echo(
        f"{counts['adopted']} adopted, {counts['same']} the same here already, "
        f"{counts['different']} different, {counts['empty']} empty, {counts['unusable']} with an "
        "id that can't be used"
    )
    if different:
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        click.echo(f"Different here, and left alone: {', '.join(different[:_SHOWN])}{more}")
    return 0


@main.group(short_help="Make keys for programs.")
def keys() -> None:
    """Make keys for programs that talk to a server (THREADKEEP_API_KEYS)."""


@keys.command("new", short_help="Make one.")
@click.argument("owner")
@command
async def new_api_key(owner: str) -> int:
    """Make a key whose requests are OWNER's; with an OWNER of '*', of whoever they name.

    It is shown once. The setting holds its hash alone.
    """
    from threadkeep.api_keys import ANY, new_key

    if owner != ANY:
        check_id(owner, "OWNER")
    key, entry = new_key(owner)
    click.echo(f"Key, for the program: {key}")
    click.echo(f"Add to THREADKEEP_API_KEYS, behind a comma: {entry}")
    return 0


@main.group(short_help="Decide about tool calls that wait for it.")
def approvals() -> None:
    """Look at tool calls that wait for a person, and decide about them."""


@approvals.command("list", short_help="Show them, in the order they came.")
@OWNER
@click.option(
    "--status",
    type=click.Choice(["pending", "approved", "rejected", "expired", "closed", "all"]),
    default="pending",
    show_default=True,
    help="closed: the session has gone on without it.",
)
@click.option("--json", "as_json", is_flag=True, help="As GET /approvals has them, one a line.")
@command
async def show_approvals(owner: str, status: str, as_json: bool) -> int:
    """Show the calls of an owner that wait for a decision, or have."""
    from threadkeep.approvals import list_approvals

    check_ids(owner)
    count, after = 0, ""
    async with up_to_date() as database:
        while page := await list_approvals(
            database, owner, status="" if status == "all" else status, after=after
        ):
            count, after = count + len(page), page[-1]["id"]
            for approval in page:
                click.echo(json.dumps(approval) if as_json else _in_a_line(approval))
    if not as_json and not count:
        click.echo("None." if status == "all" else f"None is {status}.")
    return 0


def _in_a_line(approval: dict[str, Any]) -> str:
    expires = datetime.fromtimestamp(approval["expires_at"]).astimezone()
    call = f"{approval['name']}({approval['arguments']})"
    if approval["kind"] == "in_doubt":
        call += ", which may have happened"
    return printable(
        f"{approval['id']}  {approval['status']}  {call}  session {approval['session_id']}"
        f"  until {expires:%Y-%m-%d %H:%M}"
    )


_REASON = click.option("--reason", help="Why; the model is told when the call is not made.")


@approvals.command("approve", short_help="Let a call be made.")
@click.argument("approval_id")
@OWNER
@_REASON
@click.option("--always", is_flag=True, help="Nor ask again for this tool, in this session.")
@command
async def approve(approval_id: str, owner: str, reason: str | None, always: bool) -> int:
    """Let the call of APPROVAL_ID be made: now, or once more if it may have happened."""
    return await _decide(approval_id, owner, reason, approve=True, always=always)


@approvals.command("reject", short_help="Refuse a call.")
@click.argument("approval_id")
@OWNER
@_REASON
@command
async def reject(approval_id: str, owner: str, reason: str | None) -> int:
    """Refuse the call of APPROVAL_ID; the model is told, and goes on."""
    return await _decide(approval_id, owner, reason, approve=False)


async def _decide(
    approval_id: str, owner: str, reason: str | None, *, approve: bool, always: bool = False
) -> int:
    from threadkeep.approvals import Verdict, decide, get_approval, list_approvals
    from threadkeep.server.requests import MAX_REASON

    check_ids(owner, APPROVAL_ID=approval_id)
    check_text(reason, "--reason")
    if reason and len(reason) > MAX_REASON:
        raise InvalidInputError(f"--reason must have at most {MAX_REASON} characters.")
    async with up_to_date() as database:
        await decide(database, None, owner, Verdict(approval_id, approve, reason), always=always)
        decided = await get_approval(database, approval_id, owner)
        others = [
            other["id"]
            for other in await list_approvals(
                database, owner, status="pending", session_id=decided["session_id"]
            )
            if other["previous_response_id"] == decided["previous_response_id"]
        ]
    click.echo(f"{decided['status'].capitalize()}: {decided['name']}")
    if others:
        click.echo(f"Its turn waits for a decision about {', '.join(others)} as well.")
    else:
        click.echo("A running server goes on with its turn, within a few seconds.")
    return 0
