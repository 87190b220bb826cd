"""`threadkeep owners`: what is done about all of an owner."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

import click

from threadkeep.command_line import command, printable, up_to_date
from threadkeep.history import check_id


@click.group(short_help="Forget all of an owner.")
def owners() -> None:
    """Look after owners: the users whose sessions they are."""


@owners.command("forget", short_help="Delete all of an owner.")
@click.argument("owner")
@click.option("--yes", is_flag=True, help="Do it; without, only say what would go.")
@command
async def forget_owner(owner: str, yes: bool) -> int:
    """Delete all of OWNER: sessions, items, runs and their events, journals and approvals.

    Runs at work are stopped first. "" is nobody: what one person makes on a laptop. It may be
    interrupted, and run again. Exit code 1 when something is left.
    """
    from threadkeep.owners import count_of, forget

    check_id(owner or "-", "OWNER")
    whose = printable(owner) or "nobody"
    async with up_to_date() as database:
        if not yes:
            _show(f"Would be deleted of {whose} (--yes does it):", await count_of(database, owner))
            return 0
        began = time.monotonic()
        receipt = await forget(database, owner)
        now = datetime.now(UTC)
        seconds = time.monotonic() - began
        _show(f"Deleted of {whose}, {now:%Y-%m-%d %H:%M:%S} UTC, {seconds:.1f} s:", receipt.deleted)
        if receipt.left:
            _show(
                f"Still there, as {receipt.at_work} runs are at work or were begun:", receipt.left
            )
            click.echo("Run it again when they have ended.")
        if not await database.scrub():
            click.echo(
                "Deleted, but not yet overwritten in the file: another program reads or writes it. "
                "Run it again when that has ended, or is idle."
            )
            return 1
    return 1 if receipt.left else 0


def _show(title: str, counts: Mapping[str, int]) -> None:
    click.echo(title)
    for name, count in counts.items():
        click.echo(f"  {name:<12} {count}")
