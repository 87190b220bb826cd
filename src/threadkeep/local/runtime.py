"""The embedded model as an app holds it: weights found, process run, SDK models handed out."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from agents import Agent

from threadkeep.errors import ThreadkeepError
from threadkeep.local.errors import LlamaMissingError
from threadkeep.local.model import LocalModel
from threadkeep.local.server import LlamaServer, State
from threadkeep.local.weights import Weights, cache_folder, find


class LocalRuntime:
    """Owns the embedded model's weights and process. Used from one event loop.

    Args:
        path: A GGUF file of the user's own; None for the packaged weights.
        on_progress: Gets one line at a time for the person who waits.
    """

    def __init__(self, path: Path | None = None, *, on_progress: Callable[[str], None]) -> None:
        self._path = path
        self._on_progress = on_progress
        self._server = LlamaServer(self._ready_weights, on_progress)
        self._warming: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Make sure, quickly and before anything is started, that there is a model to run.

        Raises:
            LlamaMissingError: llama.cpp is not installed.
            WeightsMissingError: No weights are installed and no path was given.
            WeightsNotReadableError: The path is not a GGUF file that can be read.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            raise LlamaMissingError
        _ = self._weights

    @property
    def name(self) -> str:
        """The model's name. Raises what `check` raises for weights."""
        return self._weights.name

    @property
    def state(self) -> State:
        """`loading`; `ready`; or `failed`, when the next request tries again."""
        return self._server.state

    @property
    def pid(self) -> int | None:
        """The id of llama.cpp's process, while there is one."""
        return self._server.pid

    async def start(self, agent: Agent[Any] | None = None) -> None:
        """Begin to load in the background. A failure shows in `state` and to the next request.

        Args:
            agent: Whose instructions and tools are read once loaded, so that its first turn is
                quick. Instructions made by a function are left out.
        """
        await self._server.start()
        if agent is not None:
            self._warming = asyncio.create_task(self._warm(agent))

    def model(self) -> LocalModel:
        """A model for the SDK's agents. Requests that come while it loads wait."""
        return LocalModel(self._server, self.name)

    async def aclose(self) -> None:
        """End the process and wait until it is gone. May be called twice."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait((self._warming,))
        await self._server.aclose()

    @cached_property
    def _weights(self) -> Weights:
        return find(self._path)

    async def _ready_weights(self) -> Path:
        return await asyncio.to_thread(self._weights.ready, cache_folder(), self._on_progress)

    async def _warm(self, agent: Agent[Any]) -> None:
        instructions = agent.instructions if isinstance(agent.instructions, str) else None
        # Whatever is wrong shows in `state` and, said better, to the request that needs it.
        with suppress(ThreadkeepError):
            await self.model().warm(instructions, agent.tools)
