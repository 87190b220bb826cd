"""One turn: what of a request is new to its session, and the session the Runner works on.

A request that holds an assistant or tool item is the client's whole view of the conversation. It is
compared with what is stored from the start; what matches is not stored again. Input of user
messages only is always new, even when a text repeats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from agents import RunContextWrapper, SessionSettings, TResponseInputItem

from threadkeep.errors import InvalidInputError, ModelError
from threadkeep.history import encode_items
from threadkeep.mend import is_callers, mended
from threadkeep.response_events import PLACEHOLDER_ID, with_id
from threadkeep.session import Session
from threadkeep.titles import text_of


@dataclass(frozen=True)
class Plan:
    """What a request means for its session.

    Args:
        keep: How many of the stored items stay.
        new: The items to be stored behind them.
    """

    keep: int
    new: list[TResponseInputItem]


def plan_turn(stored: Sequence[TResponseInputItem], request: Sequence[TResponseInputItem]) -> Plan:
    """Compares a request with the stored items.

    Args:
        stored: The readable items of the session, in order.
        request: The items of the request; at least one.

    Raises:
        InvalidInputError: The request leaves nothing to answer, or a tool output has no call.
    """
    if not has_whole_view(request):
        return Plan(len(stored), list(request))
    _check_pairs(request)
    tail = _tail_start(request)
    matched, keep = _match(stored, request)
    if matched > tail:
        matched, keep = tail, _match(stored, request[:tail])[1]
    return Plan(keep, list(request[matched:]))


def has_whole_view(request: Sequence[TResponseInputItem]) -> bool:
    """Whether a request holds what the agent said too, so that it tells the whole conversation."""
    return not all(is_callers(item) for item in request)


def _is_tool(item: TResponseInputItem) -> bool:
    return "call_id" in item


def _tail_start(request: Sequence[TResponseInputItem]) -> int:
    """Where the part begins that waits for an answer: behind the last thing a model said."""
    for index in range(len(request) - 1, -1, -1):
        if not is_callers(request[index]) and not _is_output(request[index]):
            if index == len(request) - 1:
                raise InvalidInputError(
                    "input ends with what the agent said, so there is nothing to answer. "
                    "End it with a message of the user.",
                    param="input",
                    code="nothing_to_answer",
                )
            return index + 1
    return 0


def _is_output(item: TResponseInputItem) -> bool:
    return str(item.get("type", "")).endswith("_output")


def _check_pairs(request: Sequence[TResponseInputItem]) -> None:
    """Every call has one output behind it, every output a call before it: no model takes less."""
    waiting: dict[object, int] = {}
    for index, item in enumerate(request):
        if not _is_tool(item):
            continue
        if not _is_output(item):
            waiting[item.get("call_id")] = index
        elif waiting.pop(item.get("call_id"), None) is None:
            raise InvalidInputError(
                f"input[{index}] is the output of a call that does not stand before it. "
                "Send the call with it.",
                param=f"input[{index}]",
                code="orphan_output",
            )
    for index in waiting.values():
        raise InvalidInputError(
            f"input[{index}] is a call without its output. Send the output behind it.",
            param=f"input[{index}]",
            code="orphan_call",
        )


def _match(
    stored: Sequence[TResponseInputItem], request: Sequence[TResponseInputItem]
) -> tuple[int, int]:
    """How many items of the request are stored already, and how many stored items that covers.

    Clients that show chats send no tool steps; then those stored are passed over. Nobody sends
    reasoning back reliably, so it is never compared.
    """
    with_tools = any(_is_tool(item) for item in request)
    comparable = [i for i, item in enumerate(stored) if _compares(item, with_tools)]
    matched, keep = 0, 0
    for index, item in enumerate(request):
        if not _compares(item, with_tools):
            matched = index + 1
            continue
        if not comparable or _key(stored[comparable[0]]) != _key(item):
            break
        keep = comparable.pop(0) + 1
        matched = index + 1
    return matched, keep


def _compares(item: TResponseInputItem, with_tools: bool) -> bool:
    return item.get("type", "message") == "message" or (with_tools and _is_tool(item))


def _key(item: TResponseInputItem) -> tuple[object, ...]:
    """What makes two items the same to a reader, whatever their ids and forms."""
    values = cast(dict[str, Any], item)
    if _is_tool(item):
        payload = values.get("output", values.get("arguments"))
        return (values.get("type"), values["call_id"], values.get("name"), _canonical(payload))
    content = values.get("content")
    parts = content if isinstance(content, list) else []
    others = [
        {k: v for k, v in part.items() if v is not None}
        for part in parts
        if isinstance(part, dict) and "text" not in part
    ]
    return (values.get("role"), text_of(content), _canonical(others))


def _canonical(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


class ItemLog(Protocol):
    """Where the items of a run go, to be stored by and by."""

    def add_items(self, items: Sequence[str]) -> None:
        """Takes items, as JSON."""
        ...

    async def flush(self) -> None:
        """Stores what it has taken.

        Raises:
            RunLostError: The run has lost its session; nothing was written.
        """
        ...


class TurnSession:
    """The Session that the Runner gets for one run: its input is stored already.

    Args:
        session: The session itself.
        base: The items before this turn.
        log: Takes what the run adds. None: nothing is stored, for requests with `store: false`.
        behind: What the turn has behind its input, when the Runner goes on with it.

    Attributes:
        added: What the turn has behind its input.
    """

    def __init__(
        self,
        session: Session,
        base: list[TResponseInputItem],
        log: ItemLog | None,
        behind: list[TResponseInputItem] | None = None,
    ) -> None:
        self.session_id = session.session_id
        self.session_settings: SessionSettings | None = None
        self.added: list[dict[str, Any]] = []
        self._session = session
        self._items = list(base)
        self._log = log
        self._input_comes = behind is None
        if behind is not None:
            self.append(behind)

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The items before this turn, and what the Runner has added.

        The Runner reads for its model before it adds its input, and gets no half turn. Later it
        reads only to see what has become of what it added.
        """
        items = self._items[0 if limit is None else max(0, len(self._items) - limit) :]
        return mended(items) if self._input_comes else items

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Takes items of the run. The Runner's first batch is its input, which is stored.

        Raises:
            ModelError: The model gave an item that can't be stored.
        """
        if self._input_comes:
            self._input_comes = False
            self._items += items
        else:
            self.append([_with_own_id(item) for item in items])

    def append(self, items: list[TResponseInputItem]) -> None:
        """Takes items of the run, whichever. Raises as `add_items` does."""
        if self._log is not None:
            try:
                self._log.add_items(encode_items(items))
            except InvalidInputError as error:
                raise ModelError("The model gave an item that can't be stored.") from error
        self._items += items
        self.added += cast(list[dict[str, Any]], items)

    async def pop_item(
        self, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> TResponseInputItem | None:
        """Takes the newest item back, for the Runner's own retries."""
        self._input_comes = False
        if self._log is not None:
            await self._log.flush()
            await self._session.pop_item()
        if self.added:
            self.added.pop()
        return self._items.pop() if self._items else None

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Clears the session."""
        self._input_comes = False
        self._items = []
        if self._log is not None:
            await self._log.flush()
            await self._session.clear_session()


def _with_own_id(item: TResponseInputItem) -> TResponseInputItem:
    """A placeholder is good for one answer only: the Responses API takes none back."""
    if item.get("id") != PLACEHOLDER_ID:
        return item
    return cast(TResponseInputItem, with_id(cast(dict[str, Any], item)))
