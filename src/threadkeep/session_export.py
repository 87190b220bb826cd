"""A session as JSON Lines, and back: with ids, times and the very text that is stored of each item.

The first line is the session, with its `item_count`; each further one is an item, in order:

    {"object":"session","version":1,"id":"…","title":"…","parent_session_id":null,"item_count":2,
     "created_at":1700000000000,"updated_at":1700000000000,"metadata":{}}
    {"object":"item","seq":1,"created_at":1700000000000,"response_id":null,"data":{…}}

The first line of a temporary session has `"temporary":true` as well. Times are milliseconds since
1970. `data` and `metadata` are the stored text itself, cut out and put in as it is: it is never
written anew. Where that text is no JSON object that every reader takes, a string holds it instead;
so what is damaged comes back too, as damaged as it was.

Items that are imported lie under an id that nobody knows, batch by batch, until all are there. One
statement makes a session of them, or they are removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from uuid_utils import uuid7

from threadkeep.database import SEALED, Database, Row
from threadkeep.errors import (
    ConflictError,
    InvalidInputError,
    SessionExistsError,
    SessionFullError,
    SessionNotFoundError,
)
from threadkeep.history import MAX_DEPTH, check_id, is_deeper, json_text, new_epoch
from threadkeep.limits import check_size
from threadkeep.stored_sessions import check_metadata, check_title, session_object

T = TypeVar("T")

VERSION = 1
"""Of the format."""

PAGE = 500
"""Items that are read at once."""

BATCH_ITEMS, BATCH_CHARACTERS = 2_000, 4 * 1024 * 1024
"""What is stored at once."""

MAX_TIME = 253_402_300_799_999
"""The last millisecond of the year 9999."""

_SESSION = {
    "object",
    "version",
    "id",
    "title",
    "parent_session_id",
    "item_count",
    "created_at",
    "updated_at",
    "metadata",
}
_ITEM = {"object", "seq", "created_at", "response_id", "data"}
_SPACE = re.compile(r"[ \t\r\n]*")


async def export_session(database: Database, session_id: str, owner: str) -> AsyncIterator[str]:
    """The lines of a session, as it was when the first were asked for; several at once.

    Raises:
        SessionNotFoundError: There is none of this owner; raised before the first line.
        ConflictError: What was still to be told was changed.
    """
    head, rows = await _begin(database, session_id, owner)
    yield _session_line(head)
    seq = 0
    while rows:
        yield "".join(_item_line(row) for row in rows)
        seq = rows[-1]["seq"]
        if seq >= head["seq"]:
            return
        epoch, rows = await _page(database, session_id, owner, seq, head["seq"])
        if epoch != head["epoch"]:
            raise ConflictError("The session was changed while it was exported. Export it again.")


async def import_session(
    database: Database,
    owner: str,
    lines: AsyncIterator[bytes],
    *,
    item_bytes: int | None = None,
    session_items: int | None = None,
) -> dict[str, Any]:
    """Makes a session of lines, all or nothing.

    Args:
        owner: Whose it will be.
        lines: As `export_session` gives them.
        item_bytes: How large an item may be; None: as large as it is.
        session_items: How many there may be; None: as many as there are.

    Returns:
        The session.

    Raises:
        InvalidInputError: A line can't be used; it is named, and nothing was kept.
        TooLargeError: An item is too large.
        SessionFullError: There are too many.
        SessionExistsError: There is a session with its id, whoever owns it.
    """
    staged = _Staged(database, owner)
    made = False
    try:
        session = await _read_all(lines, staged, item_bytes, session_items)
        rows = await database.call(
            "import_session", owner=owner, staged_id=staged.id, new_epoch=new_epoch(), **session
        )
        made = bool(rows)
    finally:
        if not made:
            await staged.remove()
    if not made:
        raise SessionExistsError
    return session_object(rows[0])


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a text that comes in pieces."""
    parts: list[bytes] = []
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join([*parts, line])
            parts = []
        parts.append(rest)
    yield b"".join(parts)


async def _begin(database: Database, session_id: str, owner: str) -> tuple[Row, list[Row]]:
    """The session, and its first items as of the same epoch."""
    while True:
        heads = await database.call("get_session", session_id=session_id, owner=owner)
        if not heads:
            raise SessionNotFoundError
        epoch, rows = await _page(database, session_id, owner, 0, heads[0]["seq"])
        if epoch == heads[0]["epoch"]:
            return heads[0], rows


async def _page(
    database: Database, session_id: str, owner: str, after: int, until: int
) -> tuple[int | None, list[Row]]:
    """The epoch, and the items behind `after` up to `until`, as many as are read at once."""
    rows = await database.call(
        "read_first_items", session_id=session_id, owner=owner, after=after, limit=PAGE
    )
    epoch = rows[0]["epoch"] if rows and rows[0]["owned"] else None
    return epoch, [row for row in rows if row["seq"] is not None and row["seq"] <= until]


def _session_line(row: Row) -> str:
    fields = {
        "object": "session",
        "version": VERSION,
        "id": row["session_id"],
        "title": row["title"],
        "parent_session_id": row["parent_session_id"],
        "item_count": row["seq"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
    if row["temporary"]:
        fields["temporary"] = True
    return _line(fields, "metadata", row["metadata"])


def _item_line(row: Row) -> str:
    fields = {
        "object": "item",
        "seq": row["seq"],
        "created_at": row["created_at"],
        "response_id": row["run_id"],
    }
    return _line(fields, "data", row["data"])


def _line(fields: dict[str, Any], name: str, stored: str) -> str:
    value = stored if _is_plain(stored) else json_text(stored)
    return f'{json_text(fields)[:-1]},"{name}":{value}}}\n'


def _is_plain(text: str) -> bool:
    """Whether a text is an object on one line, as every reader of JSON takes it."""
    if not (text.startswith("{") and text.endswith("}")) or "\n" in text or "\r" in text:
        return False
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not _is_deep(text, value)


def _is_deep(text: str, value: object) -> bool:
    """Whether it is deeper than is surely read everywhere, whatever is on the stack there."""
    return text.count("{") + text.count("[") > MAX_DEPTH and is_deeper(MAX_DEPTH, value)


@dataclass
class _Staged:
    """Items that are stored, and of no session yet."""

    database: Database
    owner: str
    id: str = field(default_factory=lambda: str(uuid7()))
    count: int = 0
    _stored: int = 0
    _size: int = 0
    _items: list[str] = field(default_factory=list)
    _run_ids: list[str] = field(default_factory=list)
    _times: list[str] = field(default_factory=list)

    async def add(self, data: str, run_id: str | None, time: int) -> None:
        """Takes one more, and stores those that wait when they are enough."""
        self._items.append(data)
        self._run_ids.append(run_id or "")
        self._times.append(str(time))
        self.count += 1
        self._size += len(data)
        if len(self._items) >= BATCH_ITEMS or self._size >= BATCH_CHARACTERS:
            await self.store()

    async def store(self) -> None:
        """Stores those that wait."""
        if not self._items:
            return
        items, run_ids, times = self._items, self._run_ids, self._times
        first_seq, self._stored = self._stored + 1, self.count
        self._items, self._run_ids, self._times, self._size = [], [], [], 0
        await self.database.call(
            "stage_items",
            owner=self.owner,
            staged_id=self.id,
            first_seq=first_seq,
            items=items,
            run_ids=run_ids,
            times=times,
        )

    async def remove(self) -> None:
        """Removes what was stored."""
        if self._stored:
            await self.database.call("unstage_items", staged_id=self.id)


async def _read_all(
    lines: AsyncIterator[bytes], staged: _Staged, item_bytes: int | None, session_items: int | None
) -> dict[str, Any]:
    """Stages the items; gives what `import_session` has to know of their session."""
    session: dict[str, Any] | None = None
    number = 0
    async for line in lines:
        number += 1
        if not line.strip():
            continue
        reader = _Line(line, number)
        if session is None:
            session = _session_of(reader)
            if session_items is not None and session["count"] > session_items:
                raise SessionFullError(session_items)
        else:
            if staged.count == session["count"]:
                reader.fail(f"is one more item than the first line tells of ({staged.count})")
            data, run_id, created_at = _item_of(reader, staged.count + 1)
            if item_bytes is not None:
                check_size(data, f"line {number}", item_bytes)
            await staged.add(data, run_id, created_at)
    if session is None:
        raise InvalidInputError("There is nothing to import: no line of a session.", code="empty")
    if staged.count != session["count"]:
        raise InvalidInputError(
            f"The first line tells of {session['count']} items, and {staged.count} came: the end "
            "is missing.",
            param=f"line {number}",
        )
    await staged.store()
    return session


def _session_of(line: _Line) -> dict[str, Any]:
    line.check("session", _SESSION, optional={"temporary"})
    if line.integer("version", most=10**6) != VERSION:
        line.fail(f"is of a version that this release does not know; it knows {VERSION}")
    line.checked("metadata", check_metadata)
    return {
        "session_id": line.checked("id", check_id),
        "title": line.checked("title", check_title),
        "metadata": line.text("metadata"),
        "parent_session_id": line.checked("parent_session_id", _check_id_or_none),
        "count": line.integer("item_count", most=2**62),
        "created_at": line.integer("created_at", most=MAX_TIME),
        "updated_at": line.integer("updated_at", most=MAX_TIME),
        "temporary": line.flag("temporary"),
    }


def _item_of(line: _Line, seq: int) -> tuple[str, str | None, int]:
    line.check("item", _ITEM)
    if line.value("seq") != seq:
        line.fail(f"must have the seq {seq}: items are numbered from 1, without gaps")
    run_id = line.checked("response_id", _check_id_or_none)
    if line.text("data").startswith(SEALED):
        line.fail("has data that begins as nothing may that is stored")
    return line.text("data"), run_id, line.integer("created_at", most=MAX_TIME)


def _check_id_or_none(value: object, param: str) -> str | None:
    return None if value is None else check_id(value, param)


class _Line:
    """One line: the values of its fields, and the text that each was.

    Args:
        line: As it came.
        number: Which it is, from 1.
    """

    def __init__(self, line: bytes, number: int) -> None:
        self._number = number
        try:
            self._fields = dict(_members(line.decode()))
        except UnicodeDecodeError:
            self.fail("is not UTF-8")
        except (ValueError, RecursionError):
            self.fail("is no JSON object")

    def fail(self, what: str) -> NoReturn:
        raise InvalidInputError(f"Line {self._number} {what}.", param=f"line {self._number}")

    def check(self, kind: str, names: set[str], optional: Set[str] = frozenset()) -> None:
        """Sees that it is of its kind, and has its fields and no others."""
        if self._fields.get("object", ("", ""))[0] != kind:
            self.fail(f'must be {"a" if kind == "session" else "an"} {kind}: "object":"{kind}"')
        if missing := sorted(names - self._fields.keys()):
            self.fail(f"lacks {', '.join(missing)}")
        if unknown := self._fields.keys() - names - optional:
            self.fail(f"has fields that are not known: {json_text(sorted(unknown)[:3])}")

    def value(self, name: str) -> Any:
        return self._fields[name][0]

    def checked(self, name: str, check: Callable[[object, str], T]) -> T:
        """What `check` makes of a value; what is wrong with it is told with the line's number."""
        try:
            return check(self.value(name), name)
        except InvalidInputError as error:
            self.fail(f"can't be used: {str(error).removesuffix('.')}")

    def integer(self, name: str, *, most: int) -> int:
        value = self.value(name)
        if type(value) is not int or not 0 <= value <= most:
            self.fail(f"must have a whole number from 0 to {most} as its {name}")
        return value

    def flag(self, name: str) -> int:
        """1 where it is true; 0 where it is false, or not there."""
        value = self.value(name) if name in self._fields else False
        if not isinstance(value, bool):
            self.fail(f"must have true or false as its {name}")
        return int(value)

    def text(self, name: str) -> str:
        """What is to be stored of an object: the text that it was, or the one that it holds."""
        value, text = self._fields[name]
        if isinstance(value, str):
            if "\0" in value or not _is_unicode(value):
                self.fail(f"holds what can't be stored in its {name}: NUL, or half a surrogate")
            return value
        if not isinstance(value, dict):
            self.fail(f"must have an object, or the text of one, as its {name}")
        if _is_deep(text, value):
            self.fail(f"is nested too deeply in its {name}: {MAX_DEPTH} levels are taken")
        return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


_decoder = json.JSONDecoder(parse_constant=_refuse)


def _members(text: str) -> Iterator[tuple[str, tuple[Any, str]]]:
    """The fields of an object, each with its value and the text of that.

    Raises:
        ValueError: It is no object.
    """
    at = _behind(text, 0, "{")
    while True:
        name, at = _decoder.raw_decode(text, at)
        if not isinstance(name, str):
            raise ValueError("a name that is no string")
        at = _behind(text, at, ":")
        value, end = _decoder.raw_decode(text, at)
        yield name, (value, text[at:end])
        at = _blank(text, end)
        if text[at : at + 1] != ",":
            break
        at = _behind(text, at, ",")
    if _behind(text, at, "}") != len(text):
        raise ValueError("more behind it")


def _behind(text: str, at: int, mark: str) -> int:
    """Where it goes on behind a mark, and the blanks around it."""
    at = _blank(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(mark)
    return _blank(text, at + 1)


def _blank(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
