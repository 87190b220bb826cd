"""Models behind the serving endpoints of a Databricks workspace.

They speak OpenAI's chat completions at `{host}/serving-endpoints`. The login is that of the
Databricks SDK: the environment, a profile, or the service principal of a Databricks App. It is
asked for its token before every request, in a daemon thread, because it may go to the network, and
has no time limit there: a login that hangs must hold up neither other work nor the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agents import Model, ModelResponse, ModelSettings, OpenAIChatCompletionsModel
from agents.items import TResponseStreamEvent
from agents.models import get_default_model_settings
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from openai import AsyncOpenAI
from openai.resources.chat import AsyncChat, AsyncCompletions

from threadkeep.errors import ModelError, ThreadkeepError

if TYPE_CHECKING:
    from databricks.sdk.core import Config

PREFIX = "databricks/"
"""What names of models begin with that are endpoints of the workspace."""

DEFAULT_MODEL = f"{PREFIX}databricks-gpt-5-2"
"""An endpoint that every workspace has where Databricks hosts models of OpenAI."""


class ServingEndpoints:
    """The endpoints of one workspace, and the login to it.

    Args:
        host: The workspace's address; by default what the Databricks SDK finds.
    """

    def __init__(self, host: str | None) -> None:
        self._host = host
        self._config: Config | None = None
        self._client: AsyncOpenAI | None = None
        self._lock = threading.Lock()

    def model(self, endpoint: str, *, chosen: bool) -> Model:
        """The model of an endpoint.

        Args:
            endpoint: Its name, without the prefix.
            chosen: Whether the agent names it. Else the SDK gives the agent the settings of its own
                default model, which are left out.
        """
        return _EndpointModel(self, endpoint, chosen)

    async def client(self) -> AsyncOpenAI:
        """The client of the workspace, once there is a login.

        Raises:
            ModelError: There is none.
        """
        if self._client is None:
            host, _ = await self._authorize()
            self._client = self._client or _Client(
                api_key=self._token, base_url=f"{host}/serving-endpoints"
            )
        return self._client

    async def aclose(self) -> None:
        """Gives up connections."""
        if self._client:
            await self._client.close()

    async def _token(self) -> str:
        _, token = await self._authorize()
        return token

    async def _authorize(self) -> tuple[str, str]:
        future = Future[tuple[str, str]]()
        future.set_running_or_notify_cancel()
        threading.Thread(target=self._log_in, args=[future], daemon=True).start()
        host, header = await asyncio.wrap_future(future)
        scheme, _, token = header.partition(" ")
        if not host or scheme.lower() != "bearer" or not token:
            raise ModelError(_NO_LOGIN)
        return host, token

    def _log_in(self, future: Future[tuple[str, str]]) -> None:
        """Brings host and Authorization header; blocks while the login is renewed."""
        try:
            with self._lock:
                future.set_result(self._fresh_header())
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            future.set_exception(error)

    def _fresh_header(self) -> tuple[str, str]:
        from databricks.sdk.core import Config

        try:
            if self._config is None:
                self._config = Config(
                    host=self._host, http_timeout_seconds=30, retry_timeout_seconds=5
                )
            header = self._config.authenticate().get("Authorization", "")
            return self._config.host or "", header
        # What the SDK raises for settings, networks, refused logins, and answers it can't read.
        except (ValueError, OSError, NotImplementedError, LookupError) as error:
            self._config = None  # so that a login made meanwhile is found
            raise ModelError(_NO_LOGIN) from error


_NO_LOGIN = (
    "The login to Databricks failed. Log in with `databricks auth login`, or set DATABRICKS_HOST "
    "and DATABRICKS_TOKEN."
)


def require_sdk(error: type[ThreadkeepError]) -> None:
    """Raises an error of this type when the Databricks SDK is not installed."""
    try:
        found = find_spec("databricks.sdk")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise error(
            "AGENT_MODEL: models served by Databricks need the extra `databricks`. Start with "
            "`uv run --extra databricks start-app`, or `pip install 'threadkeep[databricks]'`."
        )


class _EndpointModel(Model):
    """Logs in when it is first asked: the address is known only then."""

    def __init__(self, endpoints: ServingEndpoints, endpoint: str, chosen: bool) -> None:
        self._endpoints = endpoints
        self._endpoint = endpoint
        self._chosen = chosen
        self._opened: OpenAIChatCompletionsModel | None = None

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,
        model_settings: ModelSettings,
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        """As the SDK's chat completions."""
        model, settings = await self._open(), self._settings(model_settings)
        return await model.get_response(system_instructions, input, settings, *args, **kwargs)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,
        model_settings: ModelSettings,
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """As the SDK's chat completions."""
        model, settings = await self._open(), self._settings(model_settings)
        async for event in model.stream_response(
            system_instructions, input, settings, *args, **kwargs
        ):
            yield event

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        """As the SDK's chat completions."""
        return self._opened.get_retry_advice(request) if self._opened else None

    async def _open(self) -> OpenAIChatCompletionsModel:
        if self._opened is None:
            client = await self._endpoints.client()
            self._opened = OpenAIChatCompletionsModel(self._endpoint, client)
        return self._opened

    def _settings(self, settings: ModelSettings) -> ModelSettings:
        """Without what the SDK sets for OpenAI's default model, which others refuse."""
        if self._chosen:
            return settings
        default = get_default_model_settings()
        return replace(
            settings,
            reasoning=None if settings.reasoning == default.reasoning else settings.reasoning,
            verbosity=None if settings.verbosity == default.verbosity else settings.verbosity,
        )


class _Client(AsyncOpenAI):
    @cached_property
    def chat(self) -> AsyncChat:
        return _Chat(self)


class _Chat(AsyncChat):
    @cached_property
    def completions(self) -> AsyncCompletions:
        return _Completions(self._client)


class _Completions(AsyncCompletions):
    """Leaves out what only models of OpenAI take.

    Other endpoints refuse `strict` in tools, and Claude an empty text beside a tool call
    (https://github.com/databricks/databricks-ai-bridge, integrations/openai, `clients.py`).
    """

    async def create(self, **fields: Any) -> Any:
        endpoint = str(fields.get("model")).lower()
        if "gpt" not in endpoint and isinstance(fields.get("tools"), list):
            fields["tools"] = [_without_strict(tool) for tool in fields["tools"]]
        if "claude" in endpoint:
            fields["messages"] = [_with_content(message) for message in fields["messages"]]
        return await super().create(**fields)


def _without_strict(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    return tool | {"function": {name: function[name] for name in function if name != "strict"}}


def _with_content(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("tool_calls") and not message.get("content"):
        return message | {"content": " "}
    return message
