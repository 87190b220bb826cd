"""Uses AsyncDatabricksSession as it is told to: a line of JSON in, a line of JSON out.

    {"do": "add", "session": {...}, "items": [...]}      stores items
    {"do": "read", "session": {...}, "times": 1}         the items, read so often at once
    {"do": "pop", "session": {...}}                      the newest item, removed
    {"do": "turns", "name": "...", ...}                  turns per second, see `turns`

A session is given by the arguments of its class. interop.py runs this as it is, in the environment
of this folder, and in its own with the import of AsyncDatabricksSession changed alone.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from databricks_openai.agents import AsyncDatabricksSession

MESSAGE: Any = {"role": "user", "content": "What city did I say I live in, and since when? " * 3}
ANSWER: Any = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "In San Francisco. " * 12, "annotations": []}],
}


def session_of(arguments: dict[str, Any]) -> AsyncDatabricksSession:
    """A session, as documented."""
    return AsyncDatabricksSession(instance_name=os.environ["LAKEBASE_INSTANCE_NAME"], **arguments)


async def do(command: dict[str, Any]) -> Any:
    """Carries out a command."""
    match command.pop("do"):
        case "add":
            return await session_of(command["session"]).add_items(command["items"])
        case "read":
            readers = [session_of(command["session"]) for _ in range(command["times"])]
            return await asyncio.gather(*(reader.get_items() for reader in readers))
        case "pop":
            return await session_of(command["session"]).pop_item()
        case "turns":
            return await turns(**command)


async def turns(name: str, history: int, at_once: int, seconds: float, anew: bool) -> float:
    """Turns per second: read the history, store the input, store the answer.

    Args:
        name: Of the sessions.
        history: Items that each holds at first.
        at_once: How many sessions there are.
        seconds: For how long.
        anew: Whether each turn makes its session anew, as a request does.
    """
    sessions = [session_of({"session_id": f"{name}-{n}"}) for n in range(at_once)]
    for session in sessions:
        await session.add_items([MESSAGE, ANSWER] * (history // 2))
        await session.get_items()
    end = time.perf_counter() + seconds
    done = 0

    async def work(session: AsyncDatabricksSession) -> None:
        nonlocal done
        while time.perf_counter() < end:
            if anew:
                session = session_of({"session_id": session.session_id})
            await session.get_items()
            await session.add_items([MESSAGE])
            await session.add_items([ANSWER])
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(work(session) for session in sessions))
    return done / (time.perf_counter() - began)


async def main() -> None:
    """Serves until its input ends."""
    for line in sys.stdin:  # nothing else is under way while it waits
        print(json.dumps(await do(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
