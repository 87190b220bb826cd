"""Whether the embedded model answers or calls a tool, and with which arguments.

Native tool calling fails on models this small, and one JSON reply for both ("action" and "text")
chose by what had been said before rather than by what was asked. So the choice is a short request
of its own, over the user's newest words only: a prompt that stays the same for an agent (its cache
stays warm), examples of answers and one per tool, and a grammar that leaves nothing but `answer`
and the tools' names. What the figures were is in docs/embedded-model.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents import FunctionTool, Handoff, ModelSettings, Tool
from openai.types.chat import ChatCompletionMessageParam

from threadkeep.local.conversation import Message, Turn, as_chat
from threadkeep.local.errors import UnsupportedByEmbeddedModelError
from threadkeep.tool_names import FOR_LARGER_MODELS

ANSWER = "answer"
# The beginning of the reply is given, so that what is generated is the name alone.
PREFIX = '{"action": "'
_USER_CHARACTERS = 600
_NAME_TOKENS = 32

_ANSWERED = (
    "Hello!",
    "My birthday is in March.",
    "When is my birthday?",
    "What is the capital of Italy?",
    "Thanks!",
    "What day did I say we leave?",
    "Give me a tip.",
)
_ANSWERED_LAST = "What did I say about my job?"
# With an answer as the last example, this model holds back with tools by about this much (natural
# logarithm of the odds); measured over 48 messages that need no tool and 18 that do.
_HELD_BACK = 1.2


@dataclass(frozen=True)
class Option:
    """A tool or a handoff, as the model may choose it.

    Args:
        name: What a function call names.
        description: What it does, for the model.
        parameters: JSON schema of its arguments.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    @property
    def purpose(self) -> str:
        """The description's first sentence, to stand inside another one."""
        text = " ".join(self.description.split()) or self.name.replace("_", " ")
        first = text.split(". ")[0].rstrip(".")
        return first[:1].lower() + first[1:]

    @property
    def takes_arguments(self) -> bool:
        return bool(self.parameters.get("properties"))


def options_of(tools: Sequence[Tool], handoffs: Sequence[Handoff[Any, Any]]) -> list[Option]:
    """What an agent's tools and handoffs come to, without those that are for larger models.

    Raises:
        UnsupportedByEmbeddedModelError: A tool is not a function (a hosted tool of OpenAI's).
    """
    found = []
    for tool in tools:
        if not isinstance(tool, FunctionTool):
            raise UnsupportedByEmbeddedModelError(f"use the tool {tool.name!r}", param="tools")
        if getattr(tool, FOR_LARGER_MODELS, False):
            continue
        found.append(Option(tool.name, tool.description, tool.params_json_schema))
    return found + [
        Option(handoff.tool_name, handoff.tool_description, handoff.input_json_schema)
        for handoff in handoffs
    ]


@dataclass(frozen=True)
class Choice:
    """What the model may do now.

    Args:
        options: Tools that may be called.
        may_answer: Whether it may also answer in words.
    """

    options: list[Option]
    may_answer: bool

    @property
    def settled(self) -> str | None:
        """The only possibility, where there is but one."""
        if not self.options:
            return ANSWER
        if len(self.options) == 1 and not self.may_answer:
            return self.options[0].name
        return None


def open_choice(options: Sequence[Option], turn: Turn, settings: ModelSettings) -> Choice:
    """What may be chosen in this turn.

    A tool that was called in this turn is not offered again: a model this small would call it for
    ever. `tool_choice` is the SDK's: `none`, `auto`, `required` or a tool's name.

    Args:
        options: All tools and handoffs.
        turn: The newest turn.
        settings: Whose `tool_choice` counts.
    """
    left = [option for option in options if option.name not in turn.called]
    match settings.tool_choice:
        case None | "auto":
            return Choice(left if turn.user_text else [], may_answer=True)
        case "none":
            return Choice([], may_answer=True)
        case "required":
            return Choice(left, may_answer=not left)
        case str(name):
            named = [option for option in left if option.name == name]
            return Choice(named, may_answer=not named)
    raise UnsupportedByEmbeddedModelError("take this tool_choice", param="tool_choice")


def choosing(options: Sequence[Option], user_text: str) -> list[ChatCompletionMessageParam]:
    """The prompt that makes the model choose; its reply continues `PREFIX`."""
    listed = "\n".join(f"{option.name} = {option.purpose}" for option in options)
    messages = [
        Message(
            "system",
            f"Pick the action for the user's last message.\n{listed}\n{ANSWER} = anything else: "
            "talk, what the user tells about themselves, questions about the user, general "
            "questions",
        )
    ]
    examples = [(text, ANSWER) for text in _ANSWERED]
    examples += [(f"Please {option.purpose}.", option.name) for option in options]
    examples.append((_ANSWERED_LAST, ANSWER))
    for text, name in examples:
        messages += (Message("user", text), Message("assistant", json.dumps({"action": name})))
    messages += (Message("user", _clipped(user_text)), Message("assistant", PREFIX))
    return as_chat(messages)


def choosing_parameters(choice: Choice) -> dict[str, Any]:
    """The request's parameters: nothing but a choice's names may follow `PREFIX`.

    `grammar` and `logit_bias` with a word are llama.cpp's own (tools/server/README.md).
    """
    names = [option.name for option in choice.options]
    if choice.may_answer:
        names.insert(0, ANSWER)
    either = " | ".join(json.dumps(name) for name in names)
    return {
        "temperature": 0,
        "max_tokens": _NAME_TOKENS,
        "extra_body": {
            "grammar": f'root ::= ({either}) "\\""',
            "logit_bias": [[ANSWER, -_HELD_BACK]],
        },
    }


def arguing(option: Option, shown: Sequence[Message]) -> list[ChatCompletionMessageParam]:
    """The prompt that makes the model fill in a tool's arguments."""
    parameters = option.parameters.get("properties", {})
    described = "\n".join(
        f"{name}: {about.get('description') or about.get('type', 'value')}"
        for name, about in parameters.items()
    )
    system = (
        f"The user's last message asks to {option.purpose}. Reply with the arguments for that as "
        f"JSON, in the user's own words.\n{described}"
    )
    return as_chat([Message("system", system), *shown])


def _clipped(text: str) -> str:
    """The beginning and end of a long message: that is where people ask."""
    if len(text) <= _USER_CHARACTERS:
        return text
    half = _USER_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"
