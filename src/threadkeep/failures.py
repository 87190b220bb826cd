"""What a failed run says of itself: a code for programs and a message for people.

Messages are ours. What a provider or a driver wrote may hold keys, hosts or message contents, so it
stays in the exception.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

import openai
from agents.exceptions import (
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
)

from threadkeep.errors import (
    AgentCodeError,
    ApprovalDecidedError,
    ApprovalExpiredError,
    ConflictError,
    DatabaseError,
    InvalidInputError,
    MemoryChangedError,
    MemoryExistsError,
    ModelError,
    NewerCheckpointError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
    RunTimeoutError,
    SessionBusyError,
    SessionExistsError,
    SessionFullError,
    ThreadkeepError,
    TooLargeError,
    TurnGoneError,
)
from threadkeep.replay import NotDeterministicError

_logger = logging.getLogger("threadkeep")


@dataclass(frozen=True)
class Failure:
    """Why something was not done.

    Args:
        status: The HTTP status.
        code: A stable word for programs.
        message: What happened and what to do.
        param: The field of the request at fault.
    """

    status: int
    code: str
    message: str
    param: str | None = None


def stopped(run_id: str) -> Failure:
    """The server stops, and another process goes on with the run."""
    return Failure(
        503,
        "server_stopped",
        "The server stops before the answer is done. It is made all the same: fetch it by "
        f"GET /responses/{run_id}",
    )


_STATUS = {
    "not_found": 404,
    "conflict": 409,
    "not_deterministic": 500,
    "queue_full": 429,
    "session_busy": 409,
    "session_full": 422,
    "guardrail_tripped": 422,
    "agent_error": 500,
    "database_unavailable": 503,
    "server_stopped": 503,
    "unavailable": 503,
    "timeout": 504,
}


_CONFLICTS: dict[type[ConflictError], str] = {
    ApprovalDecidedError: "approval_decided",
    ApprovalExpiredError: "approval_expired",
    MemoryChangedError: "memory_changed",
    MemoryExistsError: "memory_exists",
    SessionBusyError: "session_busy",
    SessionExistsError: "session_exists",
    TurnGoneError: "turn_gone",
}


def recalled(error: Mapping[str, str]) -> Failure:
    """The failure of a run that was told before.

    Args:
        error: Its `code` and `message`, as its response has them.
    """
    return Failure(_STATUS.get(error["code"], 502), error["code"], error["message"])


def log_fault(where: str, error: BaseException) -> None:
    """Logs a fault of the code: its place, not its words, which may hold what users wrote."""
    place = "".join(traceback.format_tb(error.__traceback__))
    _logger.error("%s: %s\n%s", where, type(error).__name__, place)
    _logger.debug("It says: %s", error)


def describe(error: BaseException) -> Failure:
    """Tells what an exception means to whoever asked."""
    if isinstance(error, TooLargeError):
        return Failure(413, error.code, str(error), error.param)
    if isinstance(error, InvalidInputError):
        status = 422 if error.code.startswith("orphan") else 400
        return Failure(status, error.code, str(error), error.param)
    if isinstance(error, NotFoundError):
        return Failure(404, "not_found", str(error))
    if isinstance(error, ConflictError):
        return Failure(409, _CONFLICTS.get(type(error), "conflict"), str(error))
    if isinstance(error, NewerCheckpointError):
        return Failure(503, "newer_release", str(error))
    if isinstance(error, QueueFullError):
        return Failure(429, "queue_full", str(error))
    if isinstance(error, RateLimitError):
        return Failure(429, "rate_limited", str(error))
    if isinstance(error, SessionFullError):
        return Failure(422, "session_full", str(error))
    if isinstance(error, NotDeterministicError):
        return Failure(500, "not_deterministic", str(error))
    if isinstance(error, DatabaseError):
        return Failure(503, "database_unavailable", str(error))
    if isinstance(error, RunTimeoutError):
        return Failure(504, "timeout", str(error))
    if isinstance(error, AgentCodeError):
        return Failure(500, "agent_error", str(error))
    if isinstance(error, ThreadkeepError) and not isinstance(error, ModelError):
        return Failure(503, "unavailable", str(error))
    return _of_the_agent(error)


def is_passing(error: BaseException) -> bool:
    """Whether the same turn may well succeed when it is gone on with: the fault lay outside."""
    return isinstance(error, (openai.OpenAIError, ModelError, DatabaseError, RunTimeoutError))


def _of_the_agent(error: BaseException) -> Failure:
    if isinstance(error, ModelError):
        return Failure(502, "model_error", str(error))
    if isinstance(error, openai.OpenAIError):
        return Failure(502, "model_error", _of_the_model(error))
    if isinstance(error, ModelRefusalError):
        return Failure(502, "model_error", "The model refused to answer.")
    if isinstance(error, ModelBehaviorError):
        return Failure(502, "model_error", "The model answered in a form that can't be used.")
    if isinstance(error, TimeoutError):
        return Failure(502, "model_error", "The model, or a tool, did not answer in time.")
    if isinstance(error, MaxTurnsExceeded):
        return Failure(502, "max_turns", "The agent used all its turns without a final answer.")
    if isinstance(error, (InputGuardrailTripwireTriggered, OutputGuardrailTripwireTriggered)):
        return Failure(422, "guardrail_tripped", "A guardrail of the agent stopped this turn.")
    return Failure(500, "agent_error", "The agent failed. The server's log says where.")


def _of_the_model(error: openai.OpenAIError) -> str:
    if isinstance(error, openai.AuthenticationError):
        return "The model's server refused the key. Check OPENAI_API_KEY, or the Databricks login."
    if isinstance(error, openai.PermissionDeniedError):
        return (
            "The model's server does not let this key use the model. A serving endpoint needs "
            "CAN_QUERY for whoever asks."
        )
    if isinstance(error, openai.RateLimitError):
        return "The model's server takes no more requests for now. Try again later."
    if isinstance(error, openai.NotFoundError):
        return "The model's server does not know this model. Check AGENT_MODEL and OPENAI_BASE_URL."
    if isinstance(error, openai.APITimeoutError):
        return "The model's server did not answer in time. Try again."
    if isinstance(error, openai.APIConnectionError):
        return "The model's server can't be reached. Check OPENAI_BASE_URL and the network."
    if isinstance(error, openai.APIStatusError):
        return f"The model's server answered with status {error.status_code}."
    return "The model's server gave an answer that can't be used."
