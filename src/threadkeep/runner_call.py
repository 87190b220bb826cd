"""The call of the SDK's Runner that a run makes, ended whole whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from agents import (
    Agent,
    Runner,
    RunResultStreaming,
    RunState,
    StreamEvent,
    TResponseInputItem,
    Usage,
)
from agents.run_error_handlers import RunErrorHandlerInput, RunErrorHandlerResult

from threadkeep.admission import Admitted
from threadkeep.checkpoint import take_checkpoint
from threadkeep.run_log import Question
from threadkeep.run_request import RunRequest
from threadkeep.turn import TurnSession


class RunnerCall:
    """One call.

    Args:
        request: Who answers, and how.
        agent: Who answers.
        given: The input, or the state from which to go on.
        context: The SDK's context.
        session: What was said before.
    """

    def __init__(
        self,
        request: RunRequest,
        agent: Agent[Any],
        given: list[TResponseInputItem] | RunState[Any, Agent[Any]],
        context: Any,
        session: TurnSession,
    ) -> None:
        self._contexts = request.contexts
        self._context = context
        self._session = session
        self._result = Runner.run_streamed(
            agent,
            given,
            context=context,
            run_config=request.run_config,
            session=session,
            error_handlers=None if agent.output_type else {"model_refusal": _refusal},
        )

    @classmethod
    async def begin(
        cls, request: RunRequest, admitted: Admitted, session: TurnSession
    ) -> RunnerCall:
        """Begins a turn, or goes on with one that had stopped for approvals.

        Args:
            request: Who answers, and how.
            admitted: The turn.
            session: What was said before.
        """
        checkpoint, agent = admitted.checkpoint, request.make_agent()
        if checkpoint is None:
            return cls(request, agent, admitted.input, request.contexts.make(), session)
        context = request.contexts.load(checkpoint.context)
        state = await checkpoint.restore(agent, context)
        return cls(request, agent, state, context, session)

    @property
    def usage(self) -> Usage:
        """What its models have used so far."""
        return self._result.context_wrapper.usage

    @property
    def is_interrupted(self) -> bool:
        """Whether it waits for approvals."""
        return bool(self._result.interruptions)

    def checkpoint(self) -> tuple[str, list[Question]]:
        """Where it has stopped, as JSON text, and the calls that wait for approvals."""
        context = self._contexts.dump(self._context)
        return take_checkpoint(self._result, self._session.added, context)

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """What happens, as it happens. Once this has ended, nothing of the call goes on."""
        try:
            async for event in self._result.stream_events():
                yield event
        except BaseException:
            await _stop_runner(self._result)
            raise


async def _stop_runner(result: RunResultStreaming) -> None:
    """Ends the Runner's own tasks, and waits until they are gone."""
    result.cancel()
    # What it raises is known already, or is of no use to anybody any more.
    await asyncio.gather(_drain(result), return_exceptions=True)


async def _drain(result: RunResultStreaming) -> None:
    async for _ in result.stream_events():
        continue


def _refusal(data: RunErrorHandlerInput[Any]) -> RunErrorHandlerResult:
    """A refusal is an answer like any other: the user is told, and the session keeps it."""
    return RunErrorHandlerResult(getattr(data.error, "refusal", None), include_in_history=False)
