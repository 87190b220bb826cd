"""Requests to llama.cpp's server: the streaming, what they used, what can go wrong with them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam
from openai.types.responses import ResponseUsage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from threadkeep.local.errors import InputTooLongError, LlamaEndedError, LlamaError
from threadkeep.local.server import LlamaServer

# Half of llama.cpp's context (child.py) is one request's: this much to read, the rest to write.
PROMPT_TOKENS = 3072
MOST_OUTPUT_TOKENS = 1024
# llama.cpp's word for a prompt that does not fit (tools/server/README.md, "error").
_TOO_LONG = "exceed_context_size_error"


class Requests:
    """The requests that one answer takes.

    Args:
        server: llama.cpp's process.
    """

    def __init__(self, server: LlamaServer) -> None:
        self._server = server
        self._used: list[CompletionUsage] = []
        self.was_cut = False
        """Whether the last reply ended because no more tokens were allowed."""

    async def text(
        self, messages: Sequence[ChatCompletionMessageParam], parameters: Mapping[str, Any]
    ) -> str:
        """A whole reply. Arguments and errors are those of `stream`."""
        async with aclosing(self.stream(messages, parameters)) as deltas:
            return "".join([delta async for delta in deltas])

    async def stream(
        self, messages: Sequence[ChatCompletionMessageParam], parameters: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        """A reply as it grows. Tried once more when the process ends before the first word.

        Args:
            messages: The prompt.
            parameters: More of a Chat Completions request; llama.cpp's own go in `extra_body`.

        Raises:
            InputTooLongError: The prompt has more tokens than fit.
            LlamaEndedError: The process ended, in mid-answer or twice.
            LlamaError: The process refused the request or took too long.
        """
        for last_try in (False, True):
            begun = False
            try:
                async with self._server.client() as client:
                    await _fit(client, messages)
                    async with aclosing(self._deltas(client, messages, parameters)) as deltas:
                        async for delta in deltas:
                            begun = True
                            yield delta
                return
            except APITimeoutError as error:
                raise LlamaError("The embedded model took too long to answer.") from error
            except APIConnectionError as error:
                if begun or last_try:
                    raise LlamaEndedError(
                        "The embedded model's process ended in mid-answer. It is started again: "
                        "send the request again."
                    ) from error
                await self._server.lost(client)
            except APIError as error:
                raise _refused(error) from error

    async def _deltas(
        self,
        client: AsyncOpenAI,
        messages: Sequence[ChatCompletionMessageParam],
        parameters: Mapping[str, Any],
    ) -> AsyncGenerator[str, None]:
        stream = await client.chat.completions.create(
            model="local",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **parameters,
        )
        async with stream:  # leaving it hangs up, which stops the generation
            async for chunk in stream:
                if chunk.usage is not None:
                    self._used.append(chunk.usage)
                for choice in chunk.choices:
                    self.was_cut = choice.finish_reason == "length"
                    if choice.delta.content:
                        yield choice.delta.content

    def usage(self) -> ResponseUsage:
        """What all requests used together."""
        read = sum(used.prompt_tokens for used in self._used)
        written = sum(used.completion_tokens for used in self._used)
        details = [used.prompt_tokens_details for used in self._used]
        cached = sum(detail.cached_tokens or 0 for detail in details if detail)
        return ResponseUsage(
            input_tokens=read,
            input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=0),
            output_tokens=written,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            total_tokens=read + written,
        )


async def _fit(client: AsyncOpenAI, messages: Sequence[ChatCompletionMessageParam]) -> None:
    """Refuse a prompt that would take room from the request beside it.

    No token is shorter than a byte, so short prompts need not be counted.
    """
    text = "\n".join(str(message.get("content")) for message in messages)
    if len(text.encode()) <= PROMPT_TOKENS:
        return
    address = str(client.base_url.copy_with(path="/tokenize"))
    counted = await client.post(address, body={"content": text}, cast_to=dict[str, list[int]])
    tokens = len(counted["tokens"])
    if tokens > PROMPT_TOKENS:
        raise InputTooLongError(PROMPT_TOKENS, tokens)


def _refused(error: APIError) -> Exception:
    if error.type == _TOO_LONG:
        return InputTooLongError(PROMPT_TOKENS)
    status = error.status_code if isinstance(error, APIStatusError) else "in mid-answer"
    return LlamaError(f"The embedded model refused the request ({status}).")
