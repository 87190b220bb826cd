"""A history that a model takes: each tool call has its output, each output its call.

A process that dies between a call and its output leaves half a turn, and so does a program that
stores turns side by side. Models refuse such a history, for ever. So it is mended where a model
reads it; what is stored stays as it is.

An answer's calls stand together, and their outputs behind them, before anything else is said: the
Chat Completions API takes nothing else. Models give the same call id twice, so an output belongs to
the last call before it that has its id.

Source: https://platform.openai.com/docs/guides/function-calling#handling-function-calls
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from agents import TResponseInputItem

UNKNOWN_OUTCOME = "outcome unknown"
"""The output of a call of which nobody can say whether it happened."""

_CALLERS = ("user", "system", "developer")

_OUTPUT_TYPES = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "shell_call": "shell_call_output",
    "local_shell_call": "local_shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "computer_call": "computer_call_output",
}
"""The calls that whoever runs the agent answers. The provider answers those of its own tools."""

_OUTPUTS = frozenset(_OUTPUT_TYPES.values())


class Flaw(StrEnum):
    """What can be wrong with an item among the others."""

    OPEN_CALL = "calls without output"
    LONE_OUTPUT = "outputs without call"
    SECOND_OUTPUT = "second outputs of a call"
    FAR_OUTPUT = "outputs away from their call"
    LONE_REASONING = "reasoning that leads to nothing"


@dataclass(frozen=True)
class Mended:
    """A history as a model takes it, and what was wrong with it.

    Args:
        order: The place of each item in the history it was, or an item that had to be added.
        flaws: What was wrong, and the place of the item.
        spans: The first and the last place of what belongs together, as a call and its output; the
            last one is behind the end where the rest may be still to come.
    """

    order: list[int | TResponseInputItem]
    flaws: list[tuple[Flaw, int]]
    spans: list[tuple[int, int]]


def mended(items: Sequence[TResponseInputItem]) -> list[TResponseInputItem]:
    """A history as a model takes it; equal to what it was when nothing is wrong with it.

    A call without output is closed with one that says so, an output away from its call moves
    behind it. Left out are outputs without call, second outputs, reasoning that leads to nothing,
    and calls that no made-up output can close.
    """
    found = mend(items)
    if not found.flaws:
        return list(items)
    return [items[entry] if isinstance(entry, int) else entry for entry in found.order]


def mend(items: Sequence[TResponseInputItem], waiting: Collection[int] = ()) -> Mended:
    """Finds what is wrong with a history, and how it is to be.

    Args:
        items: The history.
        waiting: The places of calls that may stay open at its end: somebody is to decide on them.
    """
    mender = _Mender(waiting)
    for index, item in enumerate(items):
        mender.take(index, cast(Mapping[str, Any], item))
    return mender.finish()


def whole_cuts(items: Sequence[TResponseInputItem], keep: int) -> tuple[int, int | None]:
    """Where a history can be cut without parting a call from its output, or from its reasoning.

    Args:
        items: The history.
        keep: How many of its first items are to be kept.

    Returns:
        The most that can be kept up to there, and the least from there on; None when there is none:
        the output of the last call is not there yet.
    """
    spans = mend(items).spans
    below = keep
    while firsts := [first for first, last in spans if first < below <= last]:
        below = min(firsts)
    above = keep
    while lasts := [last for first, last in spans if first < above <= last]:
        above = max(lasts) + 1
    return below, above if above <= len(items) else None


def is_callers(item: Mapping[str, Any]) -> bool:
    """Whether it is a message to the agent, not of it."""
    return item.get("type", "message") == "message" and item.get("role") in _CALLERS


@dataclass(eq=False)
class _Call:
    """A call, and in the order of items also the place where its output belongs."""

    index: int
    item: Mapping[str, Any]
    thoughts: list[int] = field(default_factory=list)
    passed: bool = False
    output: int | None = None

    @property
    def first(self) -> int:
        """The place where it begins, with its reasoning."""
        return self.thoughts[0] if self.thoughts else self.index

    def closing(self) -> TResponseInputItem | None:
        """An output that says that there is none; None where that can't be said."""
        kind = self.item["type"]
        output: dict[str, Any] = {"type": _OUTPUT_TYPES[kind], "call_id": self.item["call_id"]}
        if kind == "computer_call":  # whose output is a picture
            return None
        if kind == "shell_call":
            outcome = {"type": "exit", "exit_code": 1}
            output["output"] = [{"stdout": "", "stderr": UNKNOWN_OUTCOME, "outcome": outcome}]
        else:
            output["output"] = UNKNOWN_OUTCOME
        if kind == "apply_patch_call":
            output["status"] = "failed"
        if self.item.get("caller") is not None:
            output["caller"] = self.item["caller"]
        return cast("TResponseInputItem", output)


class _Mender:
    """Goes through a history once."""

    def __init__(self, waiting: Collection[int]) -> None:
        self._waiting = waiting
        self._order: list[int | _Call] = []
        self._flaws: list[tuple[Flaw, int]] = []
        self._thoughts: list[int] = []  # reasoning whose item is still to come
        self._open: list[_Call] = []  # the calls of this answer that have no output yet
        self._answered = False  # whether another one of them has
        self._unanswered: dict[tuple[str, str], list[_Call]] = {}
        self._known: set[tuple[str, str]] = set()
        self._spans: list[tuple[int, int]] = []
        self._count = 0

    def take(self, index: int, item: Mapping[str, Any]) -> None:
        """Takes the next item."""
        self._count += 1
        kind, call_id = item.get("type"), item.get("call_id")
        if isinstance(kind, str) and kind in _OUTPUTS and isinstance(call_id, str):
            self._take_output(index, (kind, call_id))
        elif is_callers(item):
            self._drop_thoughts()
            self._pass()
            self._order.append(index)
        else:
            if self._answered:
                self._pass()
            if kind == "reasoning":
                self._thoughts.append(index)
            elif isinstance(kind, str) and kind in _OUTPUT_TYPES:
                self._take_call(_Call(index, item, self._thoughts), kind, call_id)
                self._thoughts = []
            else:
                self._order += [*self._thoughts, index]
                self._spans += [(thought, index) for thought in self._thoughts]
                self._thoughts = []

    def finish(self) -> Mended:
        """What came of it, when all items were taken."""
        self._spans += [(place, self._count) for place in self._thoughts]
        self._spans += [(call.first, self._count) for call in self._open]
        self._drop_thoughts()
        self._open = [call for call in self._open if call.index not in self._waiting]
        self._pass()
        order: list[int | TResponseInputItem] = []
        left_out: set[int] = set()
        for entry in self._order:
            if isinstance(entry, int):
                order.append(entry)
            elif entry.output is not None:
                order.append(entry.output)
            else:
                self._flaws.append((Flaw.OPEN_CALL, entry.index))
                closing = entry.closing()
                if closing is not None:
                    order.append(closing)
                else:
                    left_out.update((entry.index, *entry.thoughts))
        kept = [entry for entry in order if not isinstance(entry, int) or entry not in left_out]
        return Mended(kept, self._flaws, self._spans)

    def _take_call(self, call: _Call, kind: str, call_id: object) -> None:
        if not isinstance(call_id, str):
            self._flaws.append((Flaw.OPEN_CALL, call.index))
            return
        key = _OUTPUT_TYPES[kind], call_id
        # An output behind this call is of this call, or of one beside it.
        others = [other for other in self._unanswered.get(key, ()) if not other.passed]
        self._unanswered[key] = [*others, call]
        self._known.add(key)
        self._spans.append((call.first, call.index))
        self._open.append(call)
        self._order += [*call.thoughts, call.index]

    def _take_output(self, index: int, key: tuple[str, str]) -> None:
        calls = self._unanswered.get(key)
        if not calls:
            flaw = Flaw.SECOND_OUTPUT if key in self._known else Flaw.LONE_OUTPUT
            self._flaws.append((flaw, index))
            return
        call = calls.pop(0)
        self._spans.append((call.first, index))
        if call.passed:
            call.output = index
            self._flaws.append((Flaw.FAR_OUTPUT, index))
            return
        self._drop_thoughts()
        self._open.remove(call)
        self._order.append(index)
        self._answered = bool(self._open)

    def _pass(self) -> None:
        """What comes now is behind this answer: the outputs it still lacks belong here."""
        for call in self._open:
            call.passed = True
        self._order += self._open
        self._open, self._answered = [], False

    def _drop_thoughts(self) -> None:
        self._flaws += [(Flaw.LONE_REASONING, index) for index in self._thoughts]
        self._thoughts = []
