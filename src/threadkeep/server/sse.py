"""Events on the wire: server-sent events, as the Responses API frames them.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse

from threadkeep.errors import ServerStoppingError, ThreadkeepError
from threadkeep.failures import describe
from threadkeep.history import json_text
from threadkeep.response_events import Event
from threadkeep.server.markdown import StreamRenderer

PING_SECONDS = 15.0
"""How often a silent stream says that it is alive, so that no proxy closes it."""


def event_stream(events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """The reply that streams events and ends with `[DONE]`."""
    return StreamingResponse(
        _frames(events),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def with_html(events: AsyncGenerator[Event, None], after: int) -> AsyncGenerator[Event, None]:
    """Adds to each text delta, and to its end, how the rendered text changed.

    `html: {from, blocks}` says: the blocks from that index on are now these.

    Args:
        events: From the first on: what was said before is needed to render what comes.
        after: Events up to this sequence number are left out of the result.
    """
    renderers: dict[tuple[str, int], StreamRenderer] = {}
    async with aclosing(events):
        async for event in events:
            if event["type"] in ("response.output_text.delta", "response.output_text.done"):
                key = (event["item_id"], event["content_index"])
                renderer = renderers.setdefault(key, StreamRenderer())
                # The renderer puts off some of the work on long blocks until the text has ended.
                more = event.get("delta")
                start, blocks = renderer.finish() if more is None else renderer.feed(more)
                event = event | {"html": {"from": start, "blocks": blocks}}
            if event["sequence_number"] > after:
                yield event


async def _frames(events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(_with_pings(events)) as pinged:
            async for event in pinged:
                if event is None:
                    yield ": ping\n\n"
                else:
                    yield f"id: {event['sequence_number']}\ndata: {json_text(event)}\n\n"
    except ServerStoppingError:
        return  # without an end: the run goes on, and whoever comes back follows it elsewhere
    except ThreadkeepError as error:  # its run was deleted, or the database is gone
        failure = describe(error)
        said = {"type": "error", "code": failure.code, "message": failure.message, "param": None}
        yield f"data: {json_text(said)}\n\n"
    yield "data: [DONE]\n\n"


async def _with_pings(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event | None, None]:
    """The events, with a None whenever none came for a while."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=PING_SECONDS)
            if not done:
                yield None
                continue
            event = coming.result()
            if event is None:
                return
            coming = asyncio.ensure_future(anext(events, None))
            yield event
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()  # else what it listens to lasts until somebody collects garbage
