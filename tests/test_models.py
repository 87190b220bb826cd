"""Which model answers, by the settings."""

from __future__ import annotations

import pytest
from agents import OpenAIChatCompletionsModel, OpenAIResponsesModel

from threadkeep.errors import ModelError, SettingsError
from threadkeep.local import LocalModel
from threadkeep.models import Models
from threadkeep.settings import Settings


def models(**environment: str) -> Models:
    return Models(Settings.read(environment), on_progress=print)


def test_the_embedded_model_is_the_default() -> None:
    """Where neither a key nor a server is set."""
    assert isinstance(models().get_model(None), LocalModel)
    assert isinstance(models(AGENT_MODEL="local").get_model("local"), LocalModel)


def test_a_key_makes_it_openai() -> None:
    """Over the Responses API, with the SDK's own default model."""
    assert isinstance(models(OPENAI_API_KEY="k").get_model(None), OpenAIResponsesModel)


def test_a_base_url_makes_it_chat_completions() -> None:
    """Which every compatible server has; OPENAI_API says otherwise."""
    url = "http://127.0.0.1:9/v1"
    model = models(OPENAI_BASE_URL=url, AGENT_MODEL="m").get_model(None)
    assert isinstance(model, OpenAIChatCompletionsModel)
    assert model.model == "m"
    model = models(OPENAI_BASE_URL=url, OPENAI_API="responses").get_model("other")
    assert isinstance(model, OpenAIResponsesModel)


def test_an_agent_may_name_a_model_of_its_own() -> None:
    """It needs a server, and says so when there is none."""
    assert isinstance(models(OPENAI_API_KEY="k").get_model("gpt-x"), OpenAIResponsesModel)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        models().get_model("gpt-x")


def test_databricks_is_not_taken_for_something_else() -> None:
    """It would otherwise be sent to OpenAI as a name."""
    with pytest.raises(SettingsError, match="AGENT_MODEL"):
        models(AGENT_MODEL="databricks/endpoint")
