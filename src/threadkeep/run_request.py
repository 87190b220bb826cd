"""What a run is asked to do, what another process had done of it, and what holds for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agents import Agent, RunConfig, TResponseInputItem

from threadkeep.database import Row
from threadkeep.limits import MAX_ITEM_BYTES, MAX_SESSION_ITEMS
from threadkeep.response_events import Event
from threadkeep.run_log import LOST_AFTER_MS

Concurrency = Literal["enqueue", "reject", "interrupt", "rollback"]
"""What becomes of a turn whose session has one at work: it waits; it is refused; the other one is
stopped and keeps what it said; or it is stopped and undone."""

MAX_ATTEMPTS = 10
"""How many processes may work on a run before it counts as what ends them."""


class Contexts(Protocol):
    """Where the SDK's context of a run comes from: what tools and instructions are given."""

    def make(self) -> Any:
        """A new one."""
        ...

    def dump(self, context: Any) -> str | None:
        """One as JSON text, for a run that waits for people; None: it is made anew."""
        ...

    def load(self, text: str | None) -> Any:
        """One again from what `dump` gave."""
        ...


@dataclass(frozen=True)
class OneContext:
    """The same context whenever a run is made."""

    context: Any = None

    def make(self) -> Any:
        """It."""
        return self.context

    def dump(self, context: Any) -> None:
        """It needs not be stored."""

    def load(self, text: str | None) -> Any:
        """It."""
        return self.context


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do.

    Args:
        session_id: The conversation it belongs to.
        owner: Whose it is; '' is nobody's.
        items: The input, in Responses form.
        make_agent: Makes whoever answers.
        contexts: Where the SDK's context comes from.
        run_config: The SDK's settings of the run.
        model: The name of the model, for the reply.
        source: What it takes to make this request again, as JSON text.
        store: False: nothing of it is written anywhere.
        background: Whether the client said that it comes back for the answer.
        metadata: The client's own, given back in the reply.
        previous_response_id: The response it follows, given back in the reply.
        idempotency_key: What the client names the request by, so that a repeat does nothing.
        request_hash: Of all that the client has sent.
        concurrency: What to do when the session has a turn at work.
        goes_on_from: A run that has ended, whose turn this one takes up; '' for a turn of its own.
        temporary: Whether nothing of a session that it makes is remembered.
        recalled: Tells what the model was reminded of, by ids.
    """

    session_id: str
    owner: str
    items: list[TResponseInputItem]
    make_agent: Callable[[], Agent[Any]]
    contexts: Contexts
    run_config: RunConfig
    model: str
    source: str = "{}"
    store: bool = True
    background: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    previous_response_id: str | None = None
    idempotency_key: str | None = None
    request_hash: str = ""
    concurrency: Concurrency = "enqueue"
    goes_on_from: str = ""
    temporary: bool = False
    recalled: Callable[[], list[dict[str, Any]]] = list


@dataclass(frozen=True)
class TakenOver:
    """A run that another process had begun.

    Args:
        row: As `claim_lost_run` returns it.
        events: What was told of it.
    """

    row: Row
    events: list[Event]


@dataclass(frozen=True)
class Limits:
    """What holds for every run of a process.

    Args:
        timeout: How long a run may work, in seconds.
        queue: How many turns may wait for one session.
        lost_after_ms: After how long a silent run has lost its process, in milliseconds.
        attempts: How many processes may work on a run.
        approval_expiry_ms: For how long a call may wait for a decision, in milliseconds.
        item_bytes: How large an item may be as it is stored; what a tool gives is cut to that.
        session_items: How many items a session may have with the input of a turn.
    """

    timeout: float
    queue: int = 100
    lost_after_ms: int = LOST_AFTER_MS
    attempts: int = MAX_ATTEMPTS
    approval_expiry_ms: int = 7 * 24 * 3600 * 1000
    item_bytes: int = MAX_ITEM_BYTES
    session_items: int = MAX_SESSION_ITEMS
