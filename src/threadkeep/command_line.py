"""What the commands share: how one is run and ends, the database, and what may be printed."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click

from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import DatabaseUnavailableError, ThreadkeepError
from threadkeep.history import check_id
from threadkeep.sealing import SealedDatabase, check_keys
from threadkeep.settings import load_env

P = ParamSpec("P")

_INTERRUPTED = 130

OWNER = click.option(
    "--owner", default="", help="Whose; by default nobody's, as on a laptop without a proxy."
)


def command(work: Callable[P, Coroutine[Any, Any, int]]) -> Callable[P, None]:
    """Runs it, with `.env` read; ends with its exit code, or with one line on what failed."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        _set_up_logs()
        try:
            load_env(Path.cwd())
            code = asyncio.run(work(*args, **kwargs))
        except ThreadkeepError as error:
            click.echo(f"threadkeep: {error}", err=True)
            code = 2
        except KeyboardInterrupt:
            code = _INTERRUPTED
        except BrokenPipeError:  # whoever read has gone; click knows how to end then
            raise
        except Exception as error:  # noqa: BLE001 - its words may hold secrets
            from threadkeep.failures import log_fault

            log_fault("threadkeep", error)
            click.echo("threadkeep: a fault in Threadkeep itself. Please report it.", err=True)
            code = 2
        sys.exit(code)

    return run


def _set_up_logs() -> None:
    """Where a fault of the code is; others' logs may tell hosts and contents, and tell nothing."""
    logging.getLogger().addHandler(logging.NullHandler())
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger("threadkeep").addHandler(handler)


@asynccontextmanager
async def up_to_date() -> AsyncIterator[Database]:
    """The database, which is not made and not changed for this.

    Raises:
        DatabaseUnavailableError: It lacks migrations.
    """
    database = connect()
    try:
        if await database.pending():
            raise DatabaseUnavailableError(
                "The database is not up to date. Run first: threadkeep migrate"
            )
        if not isinstance(database, SealedDatabase):
            await check_keys(database, None)
        else:
            await database.open()
        yield database
    finally:
        await database.close()


def check_ids(owner: str, **ids: str) -> None:
    """Refuses what can't be an owner, who may be nobody, or an id."""
    check_id(owner or "-", "--owner")
    for name, value in ids.items():
        check_id(value, name)


def printable(text: str) -> str:
    """What others wrote must not get at the terminal: only what can be printed is."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
