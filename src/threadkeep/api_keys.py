"""Keys for programs: each says whose requests it makes, or may make anybody's.

A key is 256 random bits, shown once; the setting holds only its SHA-256, so whoever reads the
setting has no key. `THREADKEEP_API_KEYS` is a list of `OWNER=HASH`, separated by commas or white
space; an OWNER of `*` may name any owner with each request, in a header.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from threadkeep.errors import SettingsError

ANY = "*"
"""The owner of a key that may name one."""

_PREFIX = "tk_"
_FORM = (
    "must be a list of OWNER=HASH, separated by commas. `threadkeep keys new OWNER` makes a key "
    "and its entry."
)


@dataclass(frozen=True)
class ApiKeys:
    """The keys that a server takes.

    Args:
        owners: Whose a key is, by its SHA-256 in hexadecimal digits.
    """

    owners: Mapping[str, str]

    @classmethod
    def parse(cls, setting: str) -> ApiKeys:
        """Reads the setting.

        Raises:
            SettingsError: It has another form, or a key twice; says which entry, not what it is.
        """
        owners: dict[str, str] = {}
        entries = [entry for entry in re.split(r"[,\s]+", setting) if entry]
        for number, entry in enumerate(entries, 1):
            owner, _, digest = entry.rpartition("=")
            if not owner or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise SettingsError(f"THREADKEEP_API_KEYS, entry {number}: it {_FORM}")
            if digest in owners:
                raise SettingsError(f"THREADKEEP_API_KEYS, entry {number}: the key is there twice.")
            owners[digest] = owner if owner == ANY else unquote(owner)
        if not owners:
            raise SettingsError(f"THREADKEEP_API_KEYS {_FORM}")
        return cls(owners)

    def owner_of(self, key: str) -> str | None:
        """Whose a key is; `ANY` when it may name one, None when there is no such key."""
        return self.owners.get(_digest(key))


def new_key(owner: str) -> tuple[str, str]:
    """A new key, and its entry for the setting.

    Args:
        owner: Whose requests it makes; `ANY`: whoever's it names.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, f"{owner if owner == ANY else quote(owner, safe='@+')}={_digest(key)}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
