"""Which model answers: the embedded one, or one behind Databricks or an OpenAI-compatible server.

An agent without a model of its own gets the one that `AGENT_MODEL` names. By default that is one of
Databricks when its host is set, OpenAI's when a key or a base URL is set, else the embedded model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents import Agent, Model, ModelProvider, OpenAIProvider
from agents.models import get_default_model
from openai import AsyncOpenAI

from threadkeep.embeddings import Embeddings
from threadkeep.errors import ModelError, SettingsError
from threadkeep.serving_endpoints import DEFAULT_MODEL, PREFIX, ServingEndpoints, require_sdk
from threadkeep.settings import Settings

if TYPE_CHECKING:
    from threadkeep.local import LocalRuntime


class Models(ModelProvider):
    """Finds models by name for the SDK's Runner, and owns what they need.

    Args:
        settings: Names the model and the server.
        on_progress: Told, in a line each, how the loading of the embedded model goes.

    Raises:
        SettingsError: `AGENT_MODEL` is one of Databricks and its SDK is not installed.
        EmbeddedModelUnavailableError: The embedded model is asked for and can't be had.
    """

    def __init__(self, settings: Settings, on_progress: Callable[[str], None]) -> None:
        self._settings = settings
        self._openai: OpenAIProvider | None = None
        self._endpoints: ServingEndpoints | None = None
        self._client: AsyncOpenAI | None = None
        self._local: LocalRuntime | None = None
        self._default = settings.agent_model or self._fallback()
        if self._default == PREFIX:
            raise SettingsError("AGENT_MODEL: databricks/ needs the name of a serving endpoint.")
        if self._default.startswith(PREFIX):
            require_sdk(SettingsError)
        if self._default == "local" or self._default.startswith("local:"):
            self._local = _local_runtime(self._default, on_progress)
            self._local.check()

    @property
    def name(self) -> str:
        """The name of the default model, for people and replies."""
        return self._local.name if self._local else self._default

    @property
    def state(self) -> str:
        """Whether the default model answers: `ready`, `loading` or `failed`."""
        return self._local.state if self._local else "ready"

    @property
    def is_local(self) -> bool:
        """Whether the default model is the embedded one, which has to load."""
        return self._local is not None

    async def start(self, agent: Agent[Any] | None = None) -> None:
        """Begins to load the embedded model; requests wait for it meanwhile.

        Args:
            agent: Its instructions and tools are read ahead, so that its first turn is quick.
        """
        if self._local:
            await self._local.start(agent)

    def get_model(self, model_name: str | None) -> Model:
        """The model of a name; None is the default.

        Raises:
            ModelError: It is behind a server for which there is neither a key nor an address, or
                one of Databricks, whose SDK is not installed.
        """
        name = model_name or self._default
        if self._local and name in ("local", self._default):
            return self._local.model()
        if name.startswith(PREFIX):
            require_sdk(ModelError)
            self._endpoints = self._endpoints or ServingEndpoints(self._settings.databricks_host)
            return self._endpoints.model(name.removeprefix(PREFIX), chosen=bool(model_name))
        if not self._settings.openai_api_key and not self._settings.openai_base_url:
            raise ModelError(
                f"The model {name} needs OPENAI_API_KEY or OPENAI_BASE_URL to be set. A serving "
                f"endpoint of Databricks is named databricks/{name}."
            )
        model: Model = self._openai_provider().get_model(name)
        return model

    async def aclose(self) -> None:
        """Ends the embedded model and gives up connections."""
        if self._local:
            await self._local.aclose()
        if self._endpoints:
            await self._endpoints.aclose()
        if self._openai:
            await self._openai.aclose()
        if self._client:
            await self._client.close()

    def _fallback(self) -> str:
        if self._settings.databricks_host:
            return DEFAULT_MODEL
        remote = self._settings.openai_api_key or self._settings.openai_base_url
        return get_default_model() if remote else "local"

    def embeddings(self) -> Embeddings | None:
        """The embedding model that is set, if one is.

        Raises:
            SettingsError: It is behind a server for which there is neither a key nor an address, or
                one of Databricks, whose SDK is not installed.
        """
        name = self._settings.embedding_model
        if name is None:
            return None
        if name.startswith(PREFIX):
            require_sdk(SettingsError)
            self._endpoints = self._endpoints or ServingEndpoints(self._settings.databricks_host)
            return Embeddings(name.removeprefix(PREFIX), self._endpoints.client)
        if not self._settings.openai_api_key and not self._settings.openai_base_url:
            raise SettingsError(
                "EMBEDDING_MODEL needs OPENAI_API_KEY or OPENAI_BASE_URL to be set. A serving "
                f"endpoint of Databricks is named databricks/{name}."
            )

        async def client() -> AsyncOpenAI:
            return self._openai_client()

        return Embeddings(name, client)

    def _openai_client(self) -> AsyncOpenAI:
        if self._client is None:
            self._client = AsyncOpenAI(
                # Servers of one's own often want no key, but the client insists on one.
                api_key=self._settings.openai_api_key or "none",
                base_url=self._settings.openai_base_url,
            )
        return self._client

    def _openai_provider(self) -> OpenAIProvider:
        if self._openai is None:
            default_api = "chat_completions" if self._settings.openai_base_url else "responses"
            self._openai = OpenAIProvider(
                openai_client=self._openai_client(),
                use_responses=(self._settings.openai_api or default_api) == "responses",
            )
        return self._openai


def _local_runtime(name: str, on_progress: Callable[[str], None]) -> LocalRuntime:
    from threadkeep.local import LocalRuntime

    path = name.removeprefix("local").removeprefix(":")
    return LocalRuntime(Path(path).expanduser() if path else None, on_progress=on_progress)
