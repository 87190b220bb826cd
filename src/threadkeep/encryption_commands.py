"""`threadkeep encryption`: the master key that contents are sealed with."""

from __future__ import annotations

import os

import click

from threadkeep.command_line import command, up_to_date
from threadkeep.errors import SettingsError
from threadkeep.settings import DatabaseSettings


@click.group(short_help="Make and change the master key.")
def encryption() -> None:
    """Look after the master key that contents are sealed with (ENCRYPTION_KEY)."""


@encryption.command("new-key", short_help="Make one.")
@command
async def new_key() -> int:
    """Make a master key, for ENCRYPTION_KEY or the file of ENCRYPTION_KEY_FILE.

    Without it nothing that was sealed can be read: keep it apart from the database's backups.
    """
    from threadkeep.sealing import new_master

    click.echo(new_master())
    return 0


@encryption.command("rotate", short_help="Wrap all keys by the new one.")
@command
async def rotate_master() -> int:
    """Wrap the owners' keys by the first key of ENCRYPTION_KEY; the others open them until then.

    Contents are not written anew. Afterwards the old keys can be left out of the setting.
    """
    from threadkeep.sealing import MasterKeys, SealedDatabase, rotate

    settings = DatabaseSettings.read(os.environ)
    masters = MasterKeys.read(settings.encryption_key, settings.encryption_key_file)
    async with up_to_date() as database:
        if masters is None or not isinstance(database, SealedDatabase):
            raise SettingsError(
                "ENCRYPTION_KEY is not set. Set it to the new key and the old one, in this order."
            )
        count = await rotate(database, masters)
    click.echo(f"Wrapped by the first key: {count} that another one had wrapped.")
    return 0
