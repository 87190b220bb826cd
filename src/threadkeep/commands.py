"""The `threadkeep` command: what is done to a database, beside serving from it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec
from urllib.parse import urlsplit

import click
from dotenv import load_dotenv

from threadkeep.adoption import Adoption, PeerTables
from threadkeep.connect import connect, connect_postgres
from threadkeep.doctor import examine
from threadkeep.errors import ThreadkeepError
from threadkeep.migrate import RELEASE
from threadkeep.postgres_schema import grants
from threadkeep.settings import DatabaseSettings

P = ParamSpec("P")

_SHOWN = 10
"""Of sessions that differ, so many are named."""


def _command(work: Callable[P, Coroutine[Any, Any, int]]) -> Callable[P, None]:
    """Runs it, with `.env` read; ends with its exit code, or with 2 and one line."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        load_dotenv(Path.cwd() / ".env")
        try:
            code = asyncio.run(work(*args, **kwargs))
        except ThreadkeepError as error:
            click.echo(f"threadkeep: {error}", err=True)
            code = 2
        sys.exit(code)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(RELEASE, prog_name="threadkeep")
def main() -> None:
    """Look after the database of an app.

    Settings come from the environment and from .env in this folder, as for start-app.
    """


@main.command()
@click.option("--check", is_flag=True, help="Say what is missing, change nothing; exit code 1.")
@_command
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


@main.command()
@click.option("--no-turn", is_flag=True, help="Leave out the turn, which asks the model.")
@_command
async def doctor(no_turn: bool) -> int:
    """Check settings, login, database, rights and model; say what to do about each failure."""
    failed = False
    async for result in examine(os.environ, with_turn=not no_turn):
        mark = {"ok": "ok  ", "failed": "FAIL", "skipped": "skip"}[result.outcome]
        click.echo(f"{mark}  {result.name:<10} {result.message}")
        failed = failed or result.outcome == "failed"
    return int(failed)


main.add_command(doctor, "preflight")


@main.command()
@click.argument("role")
@click.option("--run", is_flag=True, help="Run the SQL, as whoever owns the schema.")
@_command
async def grant(role: str, run: bool) -> int:
    """Print the SQL that lets another ROLE use the schema.

    ROLE is a Postgres role; that of a Databricks App is the client id of its service principal.
    """
    settings = DatabaseSettings.read(os.environ)
    database = connect_postgres(settings)
    sql = grants(role, _database_name(settings), settings.schema_name)
    try:
        if run:
            await database.open()
            for line in sql:
                await database.execute(line)
    finally:
        await database.close()
    click.echo("\n".join(sql))
    return 0


def _database_name(settings: DatabaseSettings) -> str:
    if settings.uses_lakebase:
        return settings.pgdatabase
    parts = urlsplit(settings.database_url or "")
    return parts.path.removeprefix("/") or parts.username or "postgres"


@main.command("import")
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
@_command
async def import_sessions(
    source: str, schema: str | None, sessions_table: str, messages_table: str
) -> int:
    """Take over sessions from elsewhere, as they are; what is there stays untouched.

    It may be run again: sessions that are known here are compared, and left alone.
    """
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
        more = len(different) - _SHOWN
        click.echo("Different here, and left alone: " + ", ".join(different[:_SHOWN]))
        click.echo(f"and {more} more" if more > 0 else "", nl=more > 0)
    return 0
