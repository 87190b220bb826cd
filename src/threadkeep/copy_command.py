"""`threadkeep copy`: a whole store moved to another database."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import click

from threadkeep.command_line import command, printable
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import DatabaseError, DatabaseUnavailableError, SettingsError
from threadkeep.sealing import check_keys
from threadkeep.settings import DatabaseSettings
from threadkeep.store_comparison import Comparison
from threadkeep.store_copy import (
    TABLES,
    Told,
    compare_stores,
    copy_store,
    count_items,
    is_same,
)

LINE_SECONDS = 10.0
"""How often progress is told where there is no terminal to draw it on."""


@click.command("copy", short_help="Copy everything to another database.")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--verify", is_flag=True, help="Copy nothing; only compare them.")
@command
async def copy(source: str, target: str, verify: bool) -> int:
    """Copy all sessions, runs, approvals and memories from FROM to TO, then compare both.

    FROM and TO are URLs as in DATABASE_URL, or `lakebase` for the one that the environment names.
    FROM is only read. When it was interrupted, or FROM has changed, run it again: it brings what is
    missing. Exit code 1 when they differ in the end.
    """
    async with (
        _open("FROM", source, makes=False) as one,
        _open("TO", target, makes=not verify) as other,
    ):
        if await is_same(one, other):
            raise SettingsError("FROM and TO are the same database. Name two.")
        if not verify:
            with _progress("Copying", await count_items(one)) as told:
                await copy_store(one, other, told)
        total = await count_items(one) + await count_items(other)
        with _progress("Comparing", total) as told:
            found = await compare_stores(one, other, told)
    _show(found)
    return 1 if found.different else 0


@asynccontextmanager
async def _open(name: str, place: str, *, makes: bool) -> AsyncIterator[Database]:
    """One of the databases; brought up to date where that is wanted.

    Raises:
        SettingsError: It is named in no way that is known.
        DatabaseUnavailableError: It can't be opened, or is not up to date and shall not be changed.
    """
    try:
        database = connect(_lakebase() if place == "lakebase" else place)
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from error
    try:
        try:
            if makes:
                await database.open()
            missing = await database.pending()
        except DatabaseError as error:
            raise DatabaseUnavailableError(f"{name}: {error}") from error
        if missing:
            raise DatabaseUnavailableError(
                f"{name} holds no store, or is not up to date: {database.description}. To bring it "
                "up to date, name it in DATABASE_URL and run: threadkeep migrate"
            )
        await check_keys(database)
        yield database
    finally:
        await database.close()


def _lakebase() -> DatabaseSettings:
    settings = DatabaseSettings.read(os.environ)
    if not settings.uses_lakebase:
        raise SettingsError(
            "`lakebase` is the one that the environment names, and it names none. Set "
            "LAKEBASE_INSTANCE_NAME, or LAKEBASE_AUTOSCALING_ENDPOINT."
        )
    return settings


@contextmanager
def _progress(label: str, total: int) -> Iterator[Told]:
    """Shows how many items are done: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
            yield bar.update
        return
    done, next_line = 0, time.monotonic() + LINE_SECONDS

    def told(count: int) -> None:
        nonlocal done, next_line
        done += count
        if time.monotonic() >= next_line:
            click.echo(f"{label}: {done} of {total} items", err=True)
            next_line = time.monotonic() + LINE_SECONDS

    yield told


def _show(found: Comparison) -> None:
    click.echo(f"{'table':<14} {'FROM':>12} {'TO':>12}")
    for table in TABLES:
        click.echo(f"{table:<14} {found.source[table]:>12} {found.target[table]:>12}")
    different = found.different
    if not different:
        counts = (f"{found.source[table]} {table}" for table in ("sessions", "items", "memories"))
        click.echo(f"Verified: {', '.join(counts)}, equal.")
        return
    click.echo(f"Different: {len(different)} sessions and memories.")
    for an_id, what in different.examples:
        click.echo(f"  {printable(an_id)}: {what}")
    if len(different) > len(different.examples):
        click.echo(f"  and {len(different) - len(different.examples)} more")
