"""The history of a session: how items are encoded, read and cached.

A read asks for what came after the `(epoch, seq)` it holds and costs what is new. The cache keeps
each item marshalled: taking it out makes a fresh object, so nobody can change what others get, and
costs a fraction of parsing JSON. It is only ever a head start: the database decides what is valid.
"""

from __future__ import annotations

import json
import logging
import marshal
import re
import secrets
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from uuid_utils import uuid7

from threadkeep.database import SEALED, Database, Row
from threadkeep.errors import InvalidInputError, SealedError, SessionNotFoundError

if TYPE_CHECKING:  # commands need no Agents SDK, which takes long to import
    from agents import TResponseInputItem

CACHE_BYTES = 64 * 1024 * 1024
"""How much history a process keeps of one database, in bytes."""

MAX_ID_LENGTH = 512
"""Of a session id and an owner, in characters."""

MAX_DEPTH = 100
"""Of lists and objects in one another: the SDK copies items by recursion."""

UNSTORABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""What ids and titles may not hold: control characters, and lone surrogates."""

_ITEM_OVERHEAD = 64

_logger = logging.getLogger("threadkeep")


def check_id(value: object, param: str) -> str:
    """Returns a session id or an owner that can be stored, or says what is wrong with it.

    Args:
        value: What the caller gave.
        param: How the caller names it.

    Raises:
        InvalidInputError: It is no text, empty, too long, or has characters that can't be stored.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{param} must be a string.", param=param, code="invalid_type")
    if not 0 < len(value) <= MAX_ID_LENGTH:
        raise InvalidInputError(
            f"{param} must have 1 to {MAX_ID_LENGTH} characters, not {len(value)}.", param=param
        )
    if UNSTORABLE.search(value):
        raise InvalidInputError(
            f"{param} must have no control characters and no lone surrogates.", param=param
        )
    return value


def check_json(value: object, param: str) -> None:
    """Refuses what JSON's readers take and its writers, or models, do not.

    Raises:
        InvalidInputError: It holds half of a surrogate pair, no number, or is nested too deeply; or
            begins as nothing may that is stored.
    """
    if isinstance(value, str) and value.startswith(SEALED):
        raise InvalidInputError(f"{param} begins with a control character.", param=param)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        message = f"{param} holds half of a surrogate pair, which is no character."
        raise InvalidInputError(message, param=param) from error
    except (ValueError, RecursionError) as error:
        message = f"{param} holds what is no number in JSON, or is nested too deeply."
        raise InvalidInputError(message, param=param) from error
    if is_deeper(MAX_DEPTH, value):
        message = f"{param} is nested too deeply: {MAX_DEPTH} levels are taken."
        raise InvalidInputError(message, param=param)


def check_text(text: str | None, param: str) -> None:
    """Refuses a text that no database holds as it is.

    Raises:
        InvalidInputError: It has a NUL, or what `check_json` refuses.
    """
    if text and "\0" in text:
        raise InvalidInputError(f"{param} must have no NUL characters.", param=param)
    check_json(text, param)


def is_deeper(levels: int, value: object) -> bool:
    """Whether lists and objects lie in one another for more than so many levels."""
    if not isinstance(value, (dict, list)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deeper(levels - 1, part) for part in parts)


def encode_item(item: object, param: str) -> str:
    """Turns an item into the JSON text that is stored; it decodes to an equal item.

    Raises:
        InvalidInputError: It is no JSON object, or would not come back as it is.
    """
    try:
        text = json_text(item)
        if isinstance(item, dict) and json.loads(text) == item:
            return text
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{param} can't be stored as JSON.", param=param) from error
    raise InvalidInputError(
        f"{param} must be a JSON object: a dict with text keys, of lists, texts, numbers, true, "
        "false and null.",
        param=param,
        code="invalid_type",
    )


def json_text(value: object) -> str:
    """Compact JSON that any database and client takes: lone surrogates are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text


def encode_items(items: Iterable[object], param: str = "items") -> list[str]:
    """Encodes a batch, or refuses it as a whole; `param` names it in errors."""
    return [encode_item(item, f"{param}[{i}]") for i, item in enumerate(items)]


def decode_item(text: str) -> dict[str, Any] | None:
    """The item of a stored text, or None when the text is damaged.

    Raises:
        SealedError: It is sealed, and nothing is there to open it.
    """
    if text.startswith(SEALED):
        raise SealedError(
            "What is stored is sealed. Set ENCRYPTION_KEY to the key it was sealed with."
        )
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None


@dataclass(frozen=True)
class Position:
    """Up to where a history was read: a session's epoch, a seq, and the time of the item there.

    The fields are named as the statements that read from there name their parameters.
    """

    epoch: int = 0
    seq: int = 0
    tag: int = 0


@dataclass(frozen=True)
class History:
    """The items of a session as of one moment.

    Args:
        position: Where it ends.
        blobs: The items, marshalled. The list may be longer: only `count` belong to this moment.
        seqs: The seq of each of them.
        damaged: The seqs that hold no readable item.
    """

    position: Position = Position()
    blobs: list[bytes] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    count: int = 0
    size: int = 0
    damaged: tuple[int, ...] = ()

    def items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Fresh copies of the newest `limit` items, or of all, in order."""
        start = 0 if limit is None else max(0, self.count - limit)
        return _fresh(self.blobs[start : self.count])

    def between(self, after: int, until: int) -> list[TResponseInputItem]:
        """Fresh copies of the items behind seq `after`, up to `until`."""
        start = bisect_right(self.seqs, after, hi=self.count)
        end = bisect_right(self.seqs, until, hi=self.count)
        return _fresh(self.blobs[start:end])

    def last_seq(self) -> int | None:
        """The seq of the newest readable item."""
        return self.seqs[self.count - 1] if self.count else None

    def extended(self, position: Position, rows: Sequence[tuple[int, str]]) -> History:
        """This history with what came after it."""
        if len(self.blobs) == self.count:
            blobs, seqs = self.blobs, self.seqs
        else:  # somebody went on from here already
            blobs, seqs = self.blobs[: self.count], self.seqs[: self.count]
        damaged, size = list(self.damaged), self.size
        for seq, text in rows:
            item = decode_item(text)
            if item is None:
                damaged.append(seq)
            else:
                blob = marshal.dumps(item)
                blobs.append(blob)
                seqs.append(seq)
                size += len(blob) + _ITEM_OVERHEAD
        return History(position, blobs, seqs, len(blobs), size, tuple(damaged))


def _fresh(blobs: Sequence[bytes]) -> list[TResponseInputItem]:
    return [
        cast("TResponseInputItem", marshal.loads(blob))  # noqa: S302 - made by us, in memory
        for blob in blobs
    ]


class HistoryCache:
    """The histories a process keeps of one database: the least recently used go first."""

    def __init__(self) -> None:
        self._histories: OrderedDict[tuple[str, str], History] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, session_id: str, owner: str) -> History:
        """What is known of a session, or an empty history."""
        with self._lock:
            history = self._histories.get((session_id, owner))
            if history is None:
                return History()
            self._histories.move_to_end((session_id, owner))
            return history

    def keep(
        self,
        session_id: str,
        owner: str,
        base: History,
        position: Position,
        rows: Sequence[tuple[int, str]],
    ) -> History:
        """Adds what was read after `base`, and keeps and returns the result."""
        with self._lock:
            history = base.extended(position, rows)
            self._drop((session_id, owner))
            self._histories[session_id, owner] = history
            self._size += history.size
            while self._size > CACHE_BYTES:
                self._drop(next(iter(self._histories)))
            return history

    def forget(self, session_id: str, owner: str) -> None:
        """Drops what is known of a session."""
        with self._lock:
            self._drop((session_id, owner))

    def _drop(self, key: tuple[str, str]) -> None:
        old = self._histories.pop(key, None)
        if old is not None:
            self._size -= old.size


_caches: weakref.WeakKeyDictionary[Database, HistoryCache] = weakref.WeakKeyDictionary()


def cache_of(database: Database) -> HistoryCache:
    """The one cache of a database in this process."""
    return _caches.setdefault(database, HistoryCache())


def absorb(
    database: Database, session_id: str, owner: str, known: History, rows: Sequence[Row]
) -> History:
    """Adds the rows that `read_items` gave to what was known, and caches the result.

    Args:
        known: The history whose position was asked for.
        rows: As that statement returns them; none when there is no such session.

    Raises:
        SessionNotFoundError: The session is another owner's.
    """
    if not rows:
        cache_of(database).forget(session_id, owner)
        return History()
    head = rows[0]
    if not head["owned"]:
        raise SessionNotFoundError
    if head["base"] == 0:
        known = History()
    new = [(row["seq"], row["data"]) for row in rows if row["seq"] is not None]
    tag = rows[-1]["created_at"] if new else known.position.tag
    position = Position(head["epoch"], head["head"], tag)
    history = cache_of(database).keep(session_id, owner, known, position, new)
    report_damage(session_id, [seq for seq in history.damaged if seq > head["base"]])
    return history


def report_damage(session_id: str, seqs: Sequence[int]) -> None:
    """Logs which items can't be read; they stay where they are."""
    if seqs:
        _logger.warning(
            "Session %s has damaged items, left out and kept in the database: seq %s",
            session_id,
            ", ".join(map(str, seqs)),
        )


async def read_history(database: Database, session_id: str, owner: str) -> History:
    """The whole history of a session, in one round trip that costs what is new.

    Raises:
        SessionNotFoundError: The session is another owner's.
    """
    known = cache_of(database).get(session_id, owner)
    rows = await database.call(
        "read_items",
        session_id=session_id,
        owner=owner,
        **asdict(known.position),
    )
    return absorb(database, session_id, owner, known, rows)


async def branch_session(
    database: Database, session_id: str, owner: str, position: Position, keep: int
) -> str | None:
    """Cuts a session back, if nothing changed since it was read; all that it was is kept as a fork.

    Args:
        database: Where it lies.
        session_id: The session.
        owner: Whose it is; '' is nobody's.
        position: Where it stood.
        keep: The seq of the last item that stays, 0 for none.

    Returns:
        The id of the fork; None: it was changed meanwhile, or a run has it.
    """
    fork_id = str(uuid7())
    rows = await database.call(
        "branch_session",
        session_id=session_id,
        owner=owner,
        epoch=position.epoch,
        seq=position.seq,
        keep=keep,
        fork_id=fork_id,
        fork_epoch=new_epoch(),
        new_epoch=new_epoch(),
    )
    return fork_id if rows else None


def new_epoch() -> int:
    """A random 63-bit number: the next epoch of a session."""
    return secrets.randbits(63)
