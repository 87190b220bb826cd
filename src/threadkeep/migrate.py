"""Numbered migrations: which there are, and which of them a database still needs.

Each is a file `sql/<dialect>/migrations/0001_name.sql`, applied once, in order, in the same
transaction that records it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files

from threadkeep.errors import DatabaseUnavailableError

RELEASE = version("threadkeep")


@dataclass(frozen=True)
class Migration:
    """One step of the schema: its number, its name and its SQL."""

    version: int
    name: str
    sql: str

    @property
    def full_name(self) -> str:
        """Number and name, as its file is called."""
        return f"{self.version:04}_{self.name}"


def load_migrations(dialect: str) -> list[Migration]:
    """Reads the migrations of a dialect, in order."""
    folder = files("threadkeep.sql").joinpath(dialect, "migrations")
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return [
        Migration(int(name[:4]), name[5:-4], folder.joinpath(name).read_text("utf-8"))
        for name in names
    ]


def pending(migrations: Collection[Migration], applied: Collection[int]) -> list[Migration]:
    """Which migrations a database needs.

    Args:
        migrations: All that this release knows.
        applied: The versions recorded in the database.

    Raises:
        DatabaseUnavailableError: A newer release has changed the database already.
    """
    newest = max((m.version for m in migrations), default=0)
    if any(version > newest for version in applied):
        raise DatabaseUnavailableError(
            f"The database was made by a newer Threadkeep than this one ({RELEASE}). "
            "Upgrade with: uv sync --upgrade-package threadkeep"
        )
    return [m for m in migrations if m.version not in applied]
