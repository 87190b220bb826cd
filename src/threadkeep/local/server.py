"""The parent's side of the embedded model's process: started, watched, started again, ended.

`LlamaServer` loads in a task of its own, so an app answers `/health` meanwhile; a request that
comes early waits in `client()`. When the process ends by itself it is started again at once. It is
used from one event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from openai import AsyncOpenAI

from threadkeep.errors import ClosedError
from threadkeep.local.child import SLOTS
from threadkeep.local.errors import LlamaStartError

State = Literal["loading", "ready", "failed"]

_START_SECONDS = 180.0
_END_SECONDS = 5.0
_REQUEST_SECONDS = 600.0
_TAIL_LINES = 20
_CLOSED = "The embedded model was closed. Make a new LocalRuntime."
# More threads than this make a 0.5B model slower: it waits for memory, not for cores.
_MOST_THREADS = 4
# What an interpreter and llama.cpp need. The rest, keys among it, is none of their business.
_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "SYSTEMROOT",
    "TEMP",
    "TMP",
    "TMPDIR",
    "USERPROFILE",
    "VIRTUAL_ENV",
)


class LlamaServer:
    """llama.cpp's server in a process of its own.

    Args:
        weights: Gives the path of a checked GGUF file; awaited before every start.
        on_progress: Gets one line at a time for the person who waits.
    """

    def __init__(
        self, weights: Callable[[], Awaitable[Path]], on_progress: Callable[[str], None]
    ) -> None:
        self._weights = weights
        self._on_progress = on_progress
        self._state: State = "loading"
        self._launching: asyncio.Task[AsyncOpenAI] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._client: AsyncOpenAI | None = None
        self._slots = asyncio.Semaphore(SLOTS)
        self._tail: deque[str] | None = None
        self._closed = False

    @property
    def state(self) -> State:
        """Whether requests are answered at once, wait for the loading, or would try a new start."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Begin to load in the background. A failure shows in `state` and to the next request."""
        self._launch()

    async def aclose(self) -> None:
        """End the process and wait until it is gone. May be called twice."""
        self._closed = True
        for task in (self._launching, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        await self._end()
        self._state = "failed"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncOpenAI]:
        """A client for one request, when the model is loaded and one of its slots is free.

        Raises:
            LlamaStartError: The process did not get ready.
            EmbeddedModelUnavailableError: There are no weights, or they can't be used.
            ClosedError: `aclose` was called.
        """
        async with self._slots:
            launching = self._launch()
            await asyncio.wait((launching,))  # not awaited itself: `aclose` cancels it, not us
            if launching.cancelled():
                raise ClosedError(_CLOSED)
            yield launching.result()

    async def lost(self, client: AsyncOpenAI) -> None:
        """Wait, after a broken connection, for its process to end, so that a new one is started.

        Args:
            client: The client whose connection broke.
        """
        process = self._process
        if process is None or client is not self._client:
            return  # already replaced
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
            self._ended(process)

    def _launch(self) -> asyncio.Task[AsyncOpenAI]:
        if self._closed:
            raise ClosedError(_CLOSED)
        if self._launching is None or (self._launching.done() and self._state == "failed"):
            self._state = "loading"
            self._launching = asyncio.create_task(self._load())
            self._launching.add_done_callback(self._loaded)
        return self._launching

    def _loaded(self, task: asyncio.Task[AsyncOpenAI]) -> None:
        if task.cancelled() or (error := task.exception()) is not None:
            self._state = "failed"
            if not task.cancelled():
                self._on_progress(f"The embedded model did not start: {error}")

    async def _load(self) -> AsyncOpenAI:
        began = time.monotonic()
        await self._end()
        path = await self._weights()
        self._on_progress("Loading the embedded model.")
        key = secrets.token_urlsafe(32)
        self._process = await self._spawn()
        self._tail = deque(maxlen=_TAIL_LINES)
        self._watching = asyncio.create_task(self._watch(self._process))
        address = await self._address(self._process, path, key)
        self._tail = None  # from here on errors could quote what users said
        self._client = AsyncOpenAI(
            base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=_REQUEST_SECONDS
        )
        self._state = "ready"
        self._on_progress(f"The embedded model is ready ({time.monotonic() - began:.1f} s).")
        return self._client

    async def _spawn(self) -> asyncio.subprocess.Process:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # Busy waiting took 5 of 6 tokens a second on cores that others use too.
        environment["OMP_WAIT_POLICY"] = "passive"
        pipe = asyncio.subprocess.PIPE
        child = str(Path(__file__).with_name("child.py"))
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-P", child, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
            )
        except OSError as error:
            raise LlamaStartError(
                f"The embedded model's process could not be started: {error.strerror}."
            ) from error

    async def _address(self, process: asyncio.subprocess.Process, path: Path, key: str) -> str:
        settings = {"path": str(path), "api_key": key, "threads": _threads()}
        stdin, stdout, _ = _pipes(process)
        try:
            stdin.write(json.dumps(settings).encode() + b"\n")
            async with asyncio.timeout(_START_SECONDS):
                line = await stdout.readline()
        except TimeoutError as error:
            await self._end()
            raise LlamaStartError(
                f"The embedded model did not load within {_START_SECONDS:.0f} seconds."
            ) from error
        if not line:
            raise LlamaStartError(await self._said_last(process))
        return str(json.loads(line)["address"])

    async def _said_last(self, process: asyncio.subprocess.Process) -> str:
        """What to raise. What llama.cpp said holds paths, so it goes to the terminal alone."""
        code = await process.wait()
        if self._watching is not None:
            await self._watching
        for line in self._tail or ():
            self._on_progress(line)
        return f"The embedded model's process ended while it loaded (exit code {code})."

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Read what llama.cpp prints, or it would block; start it again when it ends by itself."""
        _, _, stderr = _pipes(process)
        while line := await stderr.readline():
            if self._tail is not None:
                self._tail.append(line.decode(errors="replace").strip())
        await process.wait()
        self._ended(process)

    def _ended(self, process: asyncio.subprocess.Process) -> None:
        if self._state == "ready" and process is self._process and not self._closed:
            self._on_progress(f"The embedded model's process ended ({process.returncode}).")
            self._state = "failed"
            self._launch()

    async def _end(self) -> None:
        """End the process: by closing its standard input, by force if that does not do."""
        process, self._process = self._process, None
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        if process is None:
            return
        stdin, _, _ = _pipes(process)
        stdin.close()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _threads() -> int:
    return max(1, min(os.cpu_count() or 1, _MOST_THREADS))


def _pipes(
    process: asyncio.subprocess.Process,
) -> tuple[asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamReader]:
    """The pipes that `_spawn` asked for: input, output, errors."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise AssertionError("the process was started without its pipes")
    return process.stdin, process.stdout, process.stderr
