"""Every error Threadkeep raises on purpose: told apart by type, each saying what to do."""

from __future__ import annotations


class ThreadkeepError(Exception):
    """Threadkeep could not do what was asked. All errors below are of this type."""


class SettingsError(ThreadkeepError):
    """A setting is missing or can't be used. Correct it in the environment or in `.env`."""


class InvalidInputError(ThreadkeepError, ValueError):
    """An argument or a part of a request can't be used. Nothing was written.

    Args:
        message: What is wrong and what would be right.
        param: The argument or field, as the caller names it (`input[0].role`).
        code: A stable word for programs.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value"):
        super().__init__(message)
        self.param = param
        self.code = code


class TooLargeError(InvalidInputError):
    """A message or an item is larger than it may be. Send less, or in several. Nothing was written.

    Args:
        message: What is too large, by how much, and which setting says so.
        param: Which one, as the caller names it (`items[0]`).
        code: `message_too_large` or `item_too_large`.
    """


class SessionFullError(ThreadkeepError):
    """The session has as many items as it may. Fork or rewind it, or start another."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"This session is full: it may have {limit} items (SESSION_MAX_ITEMS). Go on in a new "
            "session, or in a fork that ends earlier, or rewind this one."
        )


class RateLimitError(ThreadkeepError):
    """The owner has sent too many requests. Send it again when there is one left.

    Args:
        per_minute: How many there may be.
        wait_ms: When there is one left, in milliseconds.
    """

    def __init__(self, per_minute: int, wait_ms: int) -> None:
        self.retry_after = -(-wait_ms // 1000)
        super().__init__(
            f"That was too fast: {per_minute} requests a minute are taken (REQUESTS_PER_MINUTE). "
            f"Send it again in {self.retry_after} s."
        )


class NeedsStoreError(InvalidInputError):
    """A tool needs an approval, and a turn that is not stored can't wait for one."""

    def __init__(self) -> None:
        super().__init__(
            "A tool needs an approval, and a turn that is not stored can't wait for one. "
            "Leave store out.",
            param="store",
            code="needs_store",
        )


class NotFoundError(ThreadkeepError, LookupError):
    """There is no such thing for this owner: it never was, is deleted, or is somebody else's."""


class SessionNotFoundError(NotFoundError):
    """The session does not exist for this owner. Start a new one, or use the owner that made it."""

    def __init__(self) -> None:
        super().__init__(
            "No such session for this owner. Leave the session id out to start a new session."
        )


class ResponseNotFoundError(NotFoundError):
    """There is no such response of this owner. It never was, or was deleted with its session."""

    def __init__(self) -> None:
        super().__init__(
            "No such response of this owner. It never was, or was deleted with its session."
        )


class ApprovalNotFoundError(NotFoundError):
    """There is no such approval of this owner. It never was, or was deleted with its session."""

    def __init__(self) -> None:
        super().__init__(
            "No such approval of this owner. It never was, or was deleted with its session."
        )


class MemoryNotFoundError(NotFoundError):
    """There is no such memory of this owner. It never was, or was deleted."""

    def __init__(self) -> None:
        super().__init__("No such memory of this owner. It never was, or was deleted.")


class ConflictError(ThreadkeepError):
    """Somebody else changed the same thing first. Read it again, then decide."""


class IdempotencyKeyError(ConflictError):
    """The Idempotency-Key was used for another request. Use a new one for each."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for another request. Use a new one for each."
        )


class RunLostError(ConflictError):
    """The session was deleted or taken over while this answer was being made. Ask again."""

    def __init__(self) -> None:
        super().__init__(
            "The session was deleted or taken over while this answer was being made. Ask again."
        )


class RunStoppedError(ThreadkeepError):
    """The run was asked to stop. What it had said is kept, unless it was to be rolled back."""

    def __init__(self) -> None:
        super().__init__("The run was asked to stop.")


class SessionBusyError(ConflictError):
    """A turn of the session is at work, and this was not to wait for it."""

    def __init__(
        self,
        remedy: str = 'Wait for its end, or send "concurrency": "enqueue" in custom_inputs.',
    ) -> None:
        super().__init__(f"A turn of this session is at work. {remedy}")


class SessionExistsError(ConflictError):
    """The id of a session that was to be imported is taken. Delete that one, or change the id."""

    def __init__(self) -> None:
        super().__init__(
            "The id of this session is taken, so it was not imported. Delete the session that has "
            "it, or give it another id in its first line."
        )


class MemoryExistsError(ConflictError):
    """There is a memory at this path already. Change that one, or take another path.

    Args:
        path: Where.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"A memory exists at {path} already. Change it, or take another path.")


class MemoryChangedError(ConflictError):
    """The memory was changed meanwhile. Read it again, then decide."""

    def __init__(self) -> None:
        super().__init__("The memory was changed meanwhile. Read it again, then decide.")


class RollbackError(ConflictError):
    """The turn at work has called a tool that can't be called again, so it can't be undone."""

    def __init__(self) -> None:
        super().__init__(
            "The turn at work has called a tool already, so it can't be undone. Send "
            '"concurrency": "interrupt" to stop it and keep what it did.'
        )


class NewerCheckpointError(ThreadkeepError):
    """A newer release than this server's has stopped this turn. Ask again when all are upgraded."""

    def __init__(self) -> None:
        super().__init__(
            "A newer release than this server's waits for this decision, and only that can go on "
            "with the turn. Nothing was decided. Send it again, or upgrade all servers."
        )


class ApprovalExpiredError(ConflictError):
    """Nobody decided in time, so the call is not made. Ask the agent again."""

    def __init__(self) -> None:
        super().__init__(
            "Nobody decided this in time (APPROVAL_EXPIRY_DAYS), so the call is not made. "
            "Ask the agent again."
        )


class ApprovalDecidedError(ConflictError):
    """The approval was decided before. A decision can't be taken back."""

    def __init__(self) -> None:
        super().__init__("This was decided before, and a decision can't be taken back.")


class TurnGoneError(ConflictError):
    """The turn can't be gone on with: its session has gone on, or it was cancelled."""

    def __init__(self) -> None:
        super().__init__(
            "The session has gone on, or the turn was cancelled, so it can't be taken up again."
        )


class QueueFullError(ThreadkeepError):
    """Too many turns wait for this session. Send it again when some of them are done."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} turns wait for this session already. Send it again later.")


class AttemptsError(ThreadkeepError):
    """Every process that worked on the run ended before it was done, so it was given up."""

    def __init__(self, attempts: int) -> None:
        super().__init__(
            f"{attempts} processes that worked on this answer ended before it was done, so it was "
            "given up. See in the server's log what ends them."
        )


class RunTimeoutError(ThreadkeepError):
    """The answer took longer than TASK_TIMEOUT_SECONDS, so it was stopped."""

    def __init__(self) -> None:
        super().__init__("The answer took longer than TASK_TIMEOUT_SECONDS, so it was stopped.")


class ServerStoppingError(ThreadkeepError):
    """The server is about to stop and takes nothing new. Send it again in a moment."""

    def __init__(self) -> None:
        super().__init__("The server is about to stop. Send it again in a moment.")


class AgentCodeError(ThreadkeepError):
    """A function in agent_server/agent.py gave what can't be used. Its author must mend it."""


class DatabaseError(ThreadkeepError):
    """The database refused or failed. The cause is kept as `__cause__`."""


class DatabaseUnavailableError(DatabaseError):
    """The database can't be opened or reached. Check its address, that it runs, and your rights."""


class DatabasePermissionError(DatabaseUnavailableError):
    """The database role lacks a right. The message names the grant and the SQL for it."""


class WorkspaceError(DatabaseUnavailableError):
    """The Databricks workspace did not let us in or did not answer. The message says which."""


class SealedError(DatabaseError):
    """Contents are sealed, and can't be opened: without the master key, or for good."""


class DatabaseBusyError(DatabaseError):
    """Another process holds the database for longer than we wait. Try again."""


class DuplicateError(DatabaseError):
    """What was to be stored is there already: somebody else did it at the same moment."""


class ClosedError(ThreadkeepError):
    """This session or database was closed. Make a new one."""


class ModelError(ThreadkeepError):
    """The model did not answer. Nothing of the turn was kept if no tool had started."""


class NonconformanceError(ThreadkeepError, AssertionError):
    """A Session does not do what a check of `threadkeep.testing` claims. The message says what."""
