"""Contents sealed on their way into a database, and opened on their way out.

What is said (items, titles, metadata, memories and their paths, requests, events, answers of
models, calls of tools and their outputs, reasons, checkpoints) is sealed with AES-256-GCM by a key
of its owner. That key lies in the database, wrapped by a master key that does not: so another
master means to wrap the keys anew, and an owner is forgotten with their key, in every backup too.
Words in the search index, and paths that are looked up, are told by a keyed hash. Ids, owners,
times, names of tools and models' names are not sealed.

Features know nothing of it: a `SealedDatabase` does it by the names of parameters and columns.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from threadkeep.database import SEALED, Damaged, Database, Row, Signal, Value
from threadkeep.errors import DatabaseUnavailableError, SealedError, SettingsError
from threadkeep.settings import DatabaseSettings

SEALED_COLUMNS = {
    *("data", "title", "metadata", "request", "checkpoint"),
    *("response", "call", "reason", "output"),
    *("path", "description", "contents", "keywords"),
    *("was", "was_contents"),
}
"""The columns of tables and results that hold contents."""

SEALED_PARAMETERS = SEALED_COLUMNS | {
    *("items", "fork_metadata", "created", "events", "model_responses"),
    *("tool_calls", "tool_outputs", "approval_calls", "reasons"),
}
"""The parameters of statements that do."""

HASHED_PARAMETERS = {"terms", "path_key"}
"""The parameters that are looked up, and so are told by a keyed hash."""

KEY_SECONDS = 10.0
"""How long a process uses a key without looking whether it is still there."""

_KEY_BYTES = 32
_NONCE_BYTES = 12
_MANY = 200
_INDEXING = {"index_session", "save_memory", "update_memory", "copy_memory"}
_PURPOSE = b"threadkeep contents 1"
_WRAP = b"threadkeep owner key 1"
_NO_MASTER = (
    "The contents of this database are sealed with another master key. Set ENCRYPTION_KEY to the "
    "one it was sealed with; while you change to a new one, to both, the new one first."
)


@dataclass(frozen=True)
class MasterKeys:
    """The keys that wrap the owners' keys.

    Args:
        by_id: Each by its id; the first one wraps, the others are there to unwrap.
    """

    by_id: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def read(cls, setting: str | None, file: Path | None) -> MasterKeys | None:
        """Reads them from the setting, or a file that has the same form.

        Args:
            setting: One or several, in base64, separated by commas or white space.
            file: Where they lie otherwise.

        Returns:
            None when there is neither.

        Raises:
            SettingsError: They can't be read, or are of another form; none of them is told.
        """
        name = "ENCRYPTION_KEY"
        if setting and file:
            raise SettingsError("Set ENCRYPTION_KEY or ENCRYPTION_KEY_FILE, not both.")
        if file:
            name = "ENCRYPTION_KEY_FILE"
            try:
                setting = file.read_text("ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{name}: the file can't be read.") from error
        if setting is None:
            return None
        keys = [_master(text, name) for text in re.split(r"[,\s]+", setting) if text]
        if not keys:
            raise SettingsError(f"{name} holds no key. Make one: threadkeep encryption new-key")
        return cls({hashlib.sha256(key).hexdigest()[:16]: key for key in keys})

    @property
    def current(self) -> str:
        """The id of the one that wraps."""
        return next(iter(self.by_id))

    def wrap(self, key: bytes, key_id: str) -> str:
        """A key as it may lie in the database, wrapped by the current master."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self.by_id[self.current]).encrypt(nonce, key, _WRAP + key_id.encode())
        return _text(nonce + sealed)

    def unwrap(self, row: Row) -> bytes:
        """The key of a row of `owner_keys`.

        Raises:
            SealedError: None of the masters has wrapped it.
        """
        master = self.by_id.get(row["master_id"])
        if master is None:
            raise SealedError(_NO_MASTER)
        blob = base64.urlsafe_b64decode(row["wrapped"])
        try:
            return AESGCM(master).decrypt(
                blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], _WRAP + row["key_id"].encode()
            )
        except InvalidTag as error:
            raise SealedError("An owner's key in the database is damaged.") from error


def new_master() -> str:
    """A new master key, in base64."""
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def sealed_as_set(database: Database, settings: DatabaseSettings) -> Database:
    """A database with its contents sealed, when there is a master key for that.

    Raises:
        SettingsError: The key can't be used.
    """
    masters = MasterKeys.read(settings.encryption_key, settings.encryption_key_file)
    return SealedDatabase(database, masters) if masters else database


def _master(text: str, name: str) -> bytes:
    try:
        key = base64.b64decode(text, altchars=b"-_" if "-" in text or "_" in text else None)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise SettingsError(
            f"{name} must hold keys of 32 bytes in base64. Make one: threadkeep encryption new-key"
        )
    return key


class _Key:
    """The key of an owner: seals and opens their contents."""

    def __init__(self, key_id: str, key: bytes) -> None:
        self.key_id = key_id
        self.good_until = time.monotonic() + KEY_SECONDS
        self._cipher = AESGCM(key)
        self._words = hmac.digest(key, b"threadkeep words 1", "sha256")

    def seal(self, text: str) -> str:
        """Seals a text; an empty one tells nothing and stays."""
        if not text:
            return text
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, text.encode("utf-8", "surrogatepass"), _PURPOSE)
        return f"{SEALED}{self.key_id}.{_text(nonce + sealed)}"

    def open(self, sealed: str) -> str:
        """The text that was sealed; of one that is damaged what is there, which is no JSON, as
        `Damaged`."""
        try:
            blob = base64.urlsafe_b64decode(sealed.partition(".")[2])
            text = self._cipher.decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], _PURPOSE)
        except (ValueError, InvalidTag):
            return Damaged(sealed.removeprefix(SEALED))
        return text.decode("utf-8", "surrogatepass")

    def word(self, word: str) -> str:
        """A word as the search index has it; no word of a text begins like that."""
        return "~" + _text(hmac.digest(self._words, word.encode(), "sha256")[:9])


class SealedDatabase:
    """A database that has contents only sealed; what was stored plain before is given as it is.

    Args:
        inner: Where they lie.
        masters: What wraps the keys.

    Attributes:
        inner, masters: As they were given.
    """

    def __init__(self, inner: Database, masters: MasterKeys) -> None:
        self.inner = inner
        self.masters = masters
        self._by_owner: dict[str, _Key] = {}
        self._by_id: dict[str, _Key] = {}

    @property
    def description(self) -> str:
        return f"{self.inner.description}, sealed"

    async def call(self, statement: str, **parameters: Value) -> list[Row]:
        if names := SEALED_PARAMETERS & parameters.keys():
            parameters = await self._sealed(statement, parameters, names)
        if hashed := {name for name in HASHED_PARAMETERS & parameters.keys() if parameters[name]}:
            key = await self._key_of(parameters, make=statement in _INDEXING)
            if key is None:
                return []  # nothing of this owner was ever stored
            for name in hashed:
                parameters[name] = _told(key, parameters[name])
        return await self._opened(await self.inner.call(statement, **parameters))

    async def _sealed(
        self, statement: str, parameters: dict[str, Value], names: set[str]
    ) -> dict[str, Value]:
        given = {name: parameters[name] for name in names if parameters[name]}
        if not given:
            return parameters
        key = await self._key_of(parameters, make=True)
        assert key is not None  # noqa: S101 - it was made

        def seal(value: Value) -> Value:
            if isinstance(value, str):
                return key.seal(value)
            texts = cast(Sequence[str], value)
            if statement == "rebuild_session":  # where the number of an item stands for it
                return [text if text.isdecimal() else key.seal(text) for text in texts]
            return [key.seal(text) for text in texts]

        return parameters | {name: seal(value) for name, value in given.items()}

    async def _opened(self, rows: list[Row]) -> list[Row]:
        columns = SEALED_COLUMNS.intersection(rows[0].keys() if rows else ())
        sealed = [
            (number, column)
            for number, row in enumerate(rows)
            for column in columns
            if isinstance(row[column], str) and row[column].startswith(SEALED)
        ]
        if not sealed:
            return rows
        opened = [dict(row) for row in rows]
        keys = {}
        for number, column in sealed:
            key_id = _key_id(opened[number][column])
            if key_id not in keys:
                keys[key_id] = await self._key(key_id)

        def open_all() -> None:
            for number, column in sealed:
                text = opened[number][column]
                opened[number][column] = keys[_key_id(text)].open(text)

        if len(sealed) > _MANY:
            await asyncio.to_thread(open_all)
        else:
            open_all()
        return cast(list[Row], opened)

    async def _key_of(self, parameters: Mapping[str, Value], *, make: bool) -> _Key | None:
        """The key of the owner that a call names; None: there is none, and none is made."""
        owner = cast(str, parameters["owner"])
        known = self._by_owner.get(owner)
        if known is not None and time.monotonic() < known.good_until:
            return known
        rows = await self.inner.call("get_owner_key", owner=owner)
        if not rows and make:
            key_id = secrets.token_hex(8)
            wrapped = self.masters.wrap(secrets.token_bytes(_KEY_BYTES), key_id)
            await self.inner.call(
                "add_owner_key",
                owner=owner,
                key_id=key_id,
                wrapped=wrapped,
                master_id=self.masters.current,
            )
            rows = await self.inner.call("get_owner_key", owner=owner)
        if not rows:
            self._by_owner.pop(owner, None)
            return None
        self._by_owner[owner] = self._remember(rows[0])
        return self._by_owner[owner]

    async def _key(self, key_id: str) -> _Key:
        known = self._by_id.get(key_id)
        if known is not None and time.monotonic() < known.good_until:
            return known
        rows = await self.inner.call("get_key", key_id=key_id)
        if not rows:
            self._by_id.pop(key_id, None)
            raise SealedError(
                "Contents in the database can't be opened: the key of their owner was destroyed."
            )
        return self._remember(rows[0])

    def _remember(self, row: Row) -> _Key:
        key = _Key(row["key_id"], self.masters.unwrap(row))
        self._by_id[key.key_id] = key
        return key

    def signals(self, topic: str) -> AbstractAsyncContextManager[Signal]:
        return self.inner.signals(topic)

    async def open(self) -> None:
        await self.inner.open()
        await check_keys(self)

    async def pending(self) -> list[str]:
        return await self.inner.pending()

    async def scrub(self) -> bool:
        return await self.inner.scrub()

    async def close(self) -> None:
        await self.inner.close()


async def check_keys(database: Database) -> None:
    """Refuses a database whose contents can't be opened.

    Args:
        database: Up to date.

    Raises:
        DatabaseUnavailableError: They are sealed, with another master key than there is.
    """
    masters = database.masters if isinstance(database, SealedDatabase) else None
    master_ids = list(masters.by_id) if masters else []
    found = (await database.call("count_keys", master_ids=master_ids))[0]
    if found["known"] < found["count"]:
        raise DatabaseUnavailableError(_NO_MASTER)


async def rotate(database: SealedDatabase) -> int:
    """Wraps all keys by the current master; no contents are written anew.

    Returns:
        How many were wrapped by another one before.

    Raises:
        SealedError: A key can't be unwrapped.
    """
    masters, count, after = database.masters, 0, ""
    while rows := await database.inner.call(
        "list_keys", master_id=masters.current, after=after, limit=_MANY
    ):
        for row in rows:
            after = row["key_id"]
            count += len(
                await database.inner.call(
                    "rewrap_key",
                    key_id=after,
                    old_master_id=row["master_id"],
                    master_id=masters.current,
                    wrapped=masters.wrap(masters.unwrap(row), after),
                )
            )
    return count


def _told(key: _Key, value: Value) -> Value:
    """A parameter as it is looked up."""
    if isinstance(value, str):
        return key.word(value)
    return [key.word(word) for word in cast(Sequence[str], value)]


def _key_id(sealed: str) -> str:
    return sealed[len(SEALED) :].partition(".")[0]


def _text(blob: bytes) -> str:
    return base64.urlsafe_b64encode(blob).decode()
