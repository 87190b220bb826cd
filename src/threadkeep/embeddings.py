"""How alike texts are by an embedding model, where one is set (EMBEDDING_MODEL).

Vectors tell what was said, so none is stored: those of texts that were asked for are kept in
memory, by a hash of the text. A process that has just started asks for them anew, in one request.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from operator import mul

from openai import AsyncOpenAI, OpenAIError

from threadkeep.errors import ThreadkeepError

MAX_TEXT = 2_000
"""How much of a text is embedded, in characters."""

_KEPT = 5_000
"""How many vectors a process keeps."""

_logger = logging.getLogger("threadkeep")


class Embeddings:
    """Vectors of texts, from a server that speaks OpenAI's API.

    Args:
        model: The name of the model there.
        client: Gives the client of the server.
    """

    def __init__(self, model: str, client: Callable[[], Awaitable[AsyncOpenAI]]) -> None:
        self._model = model
        self._client = client
        self._vectors: OrderedDict[bytes, array[float]] = OrderedDict()
        self._told = False

    async def likeness(self, query: str, texts: Sequence[str]) -> list[float] | None:
        """How alike texts are to a query: the cosine of each, from -1 to 1.

        Args:
            query: What is looked for.
            texts: What is there, `_KEPT` at most.

        Returns:
            None when the model does not answer: a line in the log says so, once.
        """
        asked = [text[:MAX_TEXT] for text in (query, *texts)]
        try:
            # Whoever stops waiting leaves the vectors to the next who asks.
            asking = asyncio.create_task(self._vectors_of(asked))
            asking.add_done_callback(lambda task: task.cancelled() or task.exception())
            vectors = await asyncio.shield(asking)
        except (OpenAIError, ThreadkeepError) as error:
            if not self._told:
                _logger.warning("The embedding model does not answer: %s", type(error).__name__)
            self._told = True
            return None
        self._told = False
        return await asyncio.to_thread(_cosines, vectors[0], vectors[1:])

    async def _vectors_of(self, texts: Sequence[str]) -> list[array[float]]:
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        missing = {k: text for k, text in zip(keys, texts, strict=True) if k not in found}
        if missing:
            client = await self._client()
            answer = await client.embeddings.create(
                model=self._model, input=list(missing.values()), encoding_format="float"
            )
            found |= zip(missing, (_unit(one.embedding) for one in answer.data), strict=True)
        for key in keys:
            self._vectors[key] = found[key]
            self._vectors.move_to_end(key)
        while len(self._vectors) > _KEPT:
            self._vectors.popitem(last=False)
        return [found[key] for key in keys]


def _unit(vector: Sequence[float]) -> array[float]:
    length = math.sqrt(sum(map(mul, vector, vector))) or 1.0
    return array("f", (value / length for value in vector))


def _cosines(query: array[float], vectors: Sequence[array[float]]) -> list[float]:
    return [sum(map(mul, query, vector)) for vector in vectors]
