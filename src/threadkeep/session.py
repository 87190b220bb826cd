"""The Agents SDK's Session over any Database.

A session is an ordered list of items under a `session_id`, with an owner. It is made by its first
item. Appends are all or nothing; every other change names the state it was decided on and is tried
again when somebody else came first, so no concurrent change is ever lost or undone.

Source of the contract: https://openai.github.io/openai-agents-python/sessions/
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any, Self, cast

from agents import RunContextWrapper, SessionSettings, TResponseInputItem

from threadkeep.connect import hold, release
from threadkeep.database import Database
from threadkeep.errors import ClosedError, InvalidInputError, SessionFullError, SessionNotFoundError
from threadkeep.history import (
    cache_of,
    check_id,
    decode_item,
    encode_items,
    new_epoch,
    read_history,
)
from threadkeep.limits import MAX_SESSION_ITEMS, check_size
from threadkeep.mend import is_callers, mended
from threadkeep.session_turn import current_turn, hold_turn
from threadkeep.titles import title_of

NEWEST = 2**62
"""A seq above every other."""


class Session:
    """Conversation history that lasts, as the Agents SDK's Runner takes it.

    Args:
        session_id: The conversation; 1 to 512 characters.
        database: Where it is kept: a Database, or the URL of one. By default what the
            environment says (`LAKEBASE_…`, `DATABASE_URL`), else `sqlite:///./threadkeep.db`.
        owner: Whose it is. Without one it is nobody's, and nobody with an owner sees it.
        session_settings: The SDK's settings, or a dict of them: `limit`, the newest so many items
            that a run gets.

    Raises:
        InvalidInputError: An argument can't be used.
    """

    def __init__(
        self,
        session_id: str,
        *,
        database: Database | str | None = None,
        owner: str | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        self.session_id = check_id(session_id, "session_id")
        self._owner = "" if owner is None else check_id(owner, "owner")
        self.session_settings = session_settings
        if database is None or isinstance(database, str):
            database = hold(database, self)
        self._database: Database | None = database

    @classmethod
    def from_url(
        cls,
        session_id: str,
        *,
        url: str,
        owner: str | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> Self:
        """A session in the database of a URL; sessions of one URL share its resources.

        Args:
            session_id: The conversation.
            url: `sqlite:///relative/path`, `sqlite:////absolute/path`, `sqlite://` (in memory) or
                `postgresql://user:password@host:port/database`.
            owner: Whose it is.
            session_settings: As for the class.

        Raises:
            SettingsError: The URL is not of a kind we know.
        """
        return cls(session_id, database=url, owner=owner, session_settings=session_settings)

    @property
    def owner(self) -> str:
        """Whose it is; '' is nobody's."""
        return self._owner

    @property
    def session_settings(self) -> SessionSettings | None:
        """The SDK's settings of this session. A dict may be assigned."""
        return self._settings

    @session_settings.setter
    def session_settings(self, value: SessionSettings | dict[str, Any] | None) -> None:
        self._settings = _settings_of(value) if isinstance(value, dict) else value

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The newest items, in order; fresh objects that the caller may change.

        Args:
            limit: How many at most. None: the settings' limit, else all.
            wrapper: The run's context; the Runner passes it. What it reads for its model has no
                half turns in it: see `threadkeep.mend`.

        Raises:
            SessionNotFoundError: The session is another owner's.
            DatabaseError: It could not be read.
        """
        items = await self._read(self._limit(limit))
        return mended(items) if self._is_for_a_model(limit, wrapper) else items

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Appends items, all or none.

        Args:
            items: JSON objects; they come back equal.
            wrapper: The run's context; the Runner passes it.

        Raises:
            InvalidInputError: An item can't be stored; nothing was written.
            TooLargeError: An item is larger than 4 MiB; nothing was written.
            SessionFullError: The session has 100,000 items, and this would begin a turn; nothing
                was written.
            SessionNotFoundError: The session is another owner's; nothing was written.
            DatabaseError: Nothing was written.
        """
        encoded = encode_items(items)
        for index, text in enumerate(encoded):
            check_size(text, f"items[{index}]")
        if not encoded:
            return
        turn = current_turn(self._open_database(), self.session_id, self._owner)
        if turn is not None:
            turn.added += encoded
            return
        begins_turn = any(is_callers(item) for item in items)
        if begins_turn and len(items) > MAX_SESSION_ITEMS:
            raise SessionFullError(MAX_SESSION_ITEMS)
        rows = await self._open_database().call(
            "append_items",
            session_id=self.session_id,
            owner=self._owner,
            items=encoded,
            title=title_of(items),
            # What a turn adds that has begun is stored in any case: half a turn helps nobody.
            room_until=MAX_SESSION_ITEMS - len(items) if begins_turn else NEWEST,
            new_epoch=new_epoch(),
        )
        if not rows[0]["owned"]:
            raise SessionNotFoundError
        if rows[0]["full"]:
            raise SessionFullError(MAX_SESSION_ITEMS)

    async def pop_item(
        self, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> TResponseInputItem | None:
        """Removes and returns the newest readable item; None when there is none.

        Raises:
            SessionNotFoundError: The session is another owner's.
            DatabaseError: Nothing was removed.
        """
        turn = current_turn(self._open_database(), self.session_id, self._owner)
        if turn is not None and turn.added:
            return cast(TResponseInputItem, json.loads(turn.added.pop()))
        while True:
            history = await read_history(self._open_database(), self.session_id, self._owner)
            seq = history.last_seq()
            if seq is None:
                return None
            changed = await self._change(
                "remove_item", item_seq=seq, epoch=history.position.epoch, seq=history.position.seq
            )
            if changed:
                return history.items(1)[0]

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Removes every item; the session itself stays.

        Raises:
            SessionNotFoundError: The session is another owner's.
            DatabaseError: Nothing was removed.
        """
        turn = current_turn(self._open_database(), self.session_id, self._owner)
        if turn is not None:
            turn.added.clear()
        while True:
            rows = await self._open_database().call(
                "read_latest_items",
                session_id=self.session_id,
                owner=self._owner,
                before=0,
                limit=1,
            )
            if not rows:
                return
            if not rows[0]["owned"]:
                raise SessionNotFoundError
            if await self._change("cut_items", keep=0, epoch=rows[0]["epoch"], seq=rows[0]["head"]):
                return

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Self]:
        """One turn, alone and whole: `async with session.turn(): await Runner.run(…)`.

        Turns of a session, here, in other processes and in servers, run one after the other. What
        one adds is stored when it ends, all of it; when it raises, nothing is, and the session is
        as before. What was there before, and is popped or cleared in it, goes at once.

        Raises:
            InvalidInputError: This code runs in a turn of the session already.
            SessionNotFoundError: The session is another owner's.
            RunLostError: The process was silent for too long, or the session was deleted; nothing
                was stored.
        """
        async with hold_turn(self._open_database(), self.session_id, self._owner):
            yield self

    async def close(self) -> None:
        """Gives up this session's hold on the database, which closes with its last session.

        A Database that was given to it stays open. Calling it twice is harmless.
        """
        database, self._database = self._database, None
        if database is not None:
            await release(database, self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _open_database(self) -> Database:
        if self._database is None:
            raise ClosedError("This session was closed. Make a new Session to go on.")
        return self._database

    def _limit(self, limit: int | None) -> int | None:
        if limit is None and self._settings is not None:
            limit = self._settings.limit
        if limit is not None and limit < 0:
            raise InvalidInputError("limit must be 0 or more.", param="limit")
        return limit

    def _is_for_a_model(self, limit: int | None, wrapper: RunContextWrapper[Any] | None) -> bool:
        """Whether the Runner reads what its model is to see.

        It also looks for what it has stored, among the newest items: when it takes them back, and
        when a run is resumed. These must be as they are stored. A limit tells: for a model there is
        none but that of the settings, and nothing was asked yet. Where the run itself has set one,
        the SDK leaves out half turns.
        """
        if wrapper is None or limit is None:
            return wrapper is not None
        begun = bool(wrapper.turn_input or wrapper.usage.requests)
        return self._settings is not None and limit == self._settings.limit and not begun

    async def _read(self, limit: int | None) -> list[TResponseInputItem]:
        turn = current_turn(self._open_database(), self.session_id, self._owner)
        added = turn.items() if turn is not None else []
        if limit is None or limit > len(added):
            return await self._read_stored(None if limit is None else limit - len(added)) + added
        return added[len(added) - limit :]

    async def _read_stored(self, limit: int | None) -> list[TResponseInputItem]:
        database = self._open_database()
        if limit is not None and not cache_of(database).get(self.session_id, self._owner).count:
            newest = await self._read_newest(database, limit)
            if newest is not None:
                return newest
        history = await read_history(database, self.session_id, self._owner)
        return history.items(limit)

    async def _read_newest(self, database: Database, limit: int) -> list[TResponseInputItem] | None:
        """The newest items without the rest; None when damage among them asks for a full read."""
        rows = await database.call(
            "read_latest_items",
            session_id=self.session_id,
            owner=self._owner,
            before=NEWEST,
            limit=limit,
        )
        if rows and not rows[0]["owned"]:
            raise SessionNotFoundError
        items: list[Any] = [
            decode_item(row["data"]) for row in reversed(rows) if row["seq"] is not None
        ]
        return None if None in items else items

    async def _change(self, statement: str, *, epoch: int, seq: int, **values: int) -> bool:
        """Runs a change decided on a state; False when that state is gone, to decide anew."""
        rows = await self._open_database().call(
            statement,
            session_id=self.session_id,
            owner=self._owner,
            epoch=epoch,
            seq=seq,
            new_epoch=new_epoch(),
            **values,
        )
        return bool(rows)


def _settings_of(values: dict[str, Any]) -> SessionSettings:
    names = [field.name for field in fields(SessionSettings)]
    try:
        if values.keys() <= set(names):
            return SessionSettings(**values)
        raise ValueError("unknown field")
    except ValueError as error:  # pydantic's errors are ValueErrors too
        raise InvalidInputError(
            f"session_settings may hold what agents.SessionSettings does: {', '.join(names)}.",
            param="session_settings",
        ) from error
