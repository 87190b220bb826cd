"""The call of the SDK's Runner that a run makes, ended whole whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from agents import Runner, RunResultStreaming, StreamEvent, TResponseInputItem, Usage
from agents.run_error_handlers import RunErrorHandlerInput, RunErrorHandlerResult

from threadkeep.run_request import RunRequest
from threadkeep.turn import TurnSession


class RunnerCall:
    """One call.

    Args:
        request: Who answers, and how.
        items: The input.
        session: What was said before.
    """

    def __init__(
        self, request: RunRequest, items: list[TResponseInputItem], session: TurnSession
    ) -> None:
        agent = request.make_agent()
        self._result = Runner.run_streamed(
            agent,
            items,
            context=request.context,
            run_config=request.run_config,
            session=session,
            error_handlers=None if agent.output_type else {"model_refusal": _refusal},
        )

    @property
    def usage(self) -> Usage:
        """What its models have used so far."""
        return self._result.context_wrapper.usage

    @property
    def is_interrupted(self) -> bool:
        """Whether it waits for approvals."""
        return bool(self._result.interruptions)

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
