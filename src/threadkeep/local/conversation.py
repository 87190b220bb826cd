"""What the embedded model is shown of a conversation: Responses items in, chat messages out.

Prompts are read at 25 to 130 tokens a second, so a long history would cost half a minute a turn.
Only the newest turns are kept, and turns are dropped many at once: between two cuts the beginning
stays the same, which is what llama.cpp's prompt cache needs. Where the cuts fall follows from the
history alone, so every replica and every retry sees the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from openai.types.chat import ChatCompletionMessageParam

from threadkeep.local.errors import UnsupportedByEmbeddedModelError
from threadkeep.reminder import Reminder
from threadkeep.words import says_of_self

# Estimated tokens of history: ten short turns fit, and a cold read of it takes some 15 s.
HISTORY_TOKENS = 1500
KEPT_BY_A_CUT = 0.6
TOOL_OUTPUT_CHARACTERS = 2000
_BYTES_PER_TOKEN = 3.5
_TOKENS_PER_MESSAGE = 4

_TEXT_PARTS = ("input_text", "output_text", "text")
_SENSES = {
    "input_image": "see images",
    "input_file": "read files",
    "input_audio": "hear audio",
}

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    role: Role
    text: str

    @property
    def tokens(self) -> int:
        """About how many tokens this costs; the tokenizer itself is a round trip away."""
        return _TOKENS_PER_MESSAGE + round(len(self.text.encode()) / _BYTES_PER_TOKEN)


@dataclass
class Turn:
    """One user input and what followed.

    Args:
        messages: What the model is shown of it.
        called: The tools called in it, in order.
    """

    messages: list[Message] = field(default_factory=list)
    called: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(message.tokens for message in self.messages)

    @property
    def user_text(self) -> str:
        """What the user said in it; empty where nobody did."""
        return "\n".join(message.text for message in self.messages if message.role == "user")

    def starts_anew_with(self, role: Role) -> bool:
        """Whether a message of this role belongs to a next turn."""
        return role != "assistant" and any(message.role != "system" for message in self.messages)


@dataclass
class Conversation:
    """Messages that are always shown, and the turns, the newest last; and what the model is to be
    reminded of."""

    preamble: list[Message]
    turns: list[Turn]
    reminder: str = ""

    @property
    def newest(self) -> Turn:
        return self.turns[-1] if self.turns else Turn()

    def shown(self, instructions: str = "") -> list[Message]:
        """The messages that the model gets: the preamble and the newest turns that fit.

        What it is reminded of stands before the newest turn, so that it counts, and what was read
        before stays in the cache. Examples show how to make something of it.
        """
        kept = self.turns[first_kept([turn.tokens for turn in self.turns]) :]
        shown = [Message("system", instructions)] if instructions else []
        if self.reminder:
            shown += _REMINDED
        shown += [*self.preamble, *(message for turn in kept[:-1] for message in turn.messages)]
        if self.reminder:
            shown.append(Message("system", self.reminder))
        return [*shown, *self.newest.messages]


def first_kept(
    costs: Sequence[int], limit: int = HISTORY_TOKENS, kept: float = KEPT_BY_A_CUT
) -> int:
    """Which turn is the first to be shown.

    Whenever the turns so far exceed the limit, the oldest go until `kept` of it is left; the newest
    turn always stays. Adding a turn therefore moves the result seldom, and then far.

    Args:
        costs: Tokens of each turn, the oldest first.
        limit: Most tokens that are shown.
        kept: The share of the limit that a cut leaves.
    """
    first = total = 0
    for newest, cost in enumerate(costs):
        total += cost
        if total > limit:
            while total > limit * kept and first < newest:
                total -= costs[first]
                first += 1
    return first


def as_chat(messages: Sequence[Message]) -> list[ChatCompletionMessageParam]:
    """The messages as the Chat Completions API takes them."""
    return [_as_chat(message) for message in messages]


def _as_chat(message: Message) -> ChatCompletionMessageParam:
    match message.role:
        case "system":
            return {"role": "system", "content": message.text}
        case "user":
            return {"role": "user", "content": message.text}
        case "assistant":
            return {"role": "assistant", "content": message.text}


def read(items: str | Sequence[Any]) -> Conversation:
    """Sort Responses input items into turns.

    Args:
        items: A text, or items in Responses input form.

    Raises:
        UnsupportedByEmbeddedModelError: An item or a part is of a kind the model can't take in.
    """
    if isinstance(items, str):
        return Conversation([], [Turn([Message("user", items)])])
    reader = _Reader()
    for index, item in enumerate(items):
        reader.take(item, f"input[{index}]")
    return Conversation(reader.preamble, reader.turns, reader.reminder)


class _Reader:
    def __init__(self) -> None:
        self.preamble: list[Message] = []
        self.turns: list[Turn] = []
        self.reminder = ""
        self._names: dict[str, str] = {}

    def take(self, item: Mapping[str, Any], param: str) -> None:
        match item.get("type", "message"):
            case "message":
                self._message(item, param)
            case "function_call":
                # Not shown: a model that sees calls as text writes calls as text.
                self._names[item["call_id"]] = item["name"]
                self._turn().called.append(item["name"])
            case "function_call_output":
                name = self._names.get(item["call_id"], "the tool")
                self._turn().messages.append(_tool_output(name, item["output"], param))
            case "reasoning":
                pass  # another model's thoughts: of no use to this one
            case other:
                raise UnsupportedByEmbeddedModelError(f"read items of type {other!r}", param=param)

    def _message(self, item: Mapping[str, Any], param: str) -> None:
        if isinstance(item, Reminder):
            self.reminder = _reminder(item)
            return
        role = _role(item.get("role"), param)
        message = Message(role, _text(item["content"], f"{param}.content"))
        if role == "system" and not self.turns:
            self.preamble.append(message)
            return
        if not self.turns or self.turns[-1].starts_anew_with(role):
            self.turns.append(Turn())
        self.turns[-1].messages.append(message)

    def _turn(self) -> Turn:
        if not self.turns:
            self.turns.append(Turn())
        return self.turns[-1]


def _reminder(reminder: Reminder) -> str:
    """What a model this small makes something of: memories and what users said of themselves, and
    no dates. A question among them would be one more fact."""
    return _facts(
        *(
            note.text
            for note in reminder.notes
            if not note.speaker or (note.speaker == "user" and says_of_self(note.text))
        )
    )


def _facts(*facts: str) -> str:
    lines = [f"- {fact}" for fact in facts]
    if not lines:
        return ""
    return "\n".join(["Facts about the user:", *lines, "Every suggestion must fit these facts."])


# With none of them this model names what somebody can't eat in half of its suggestions for dinner,
# with some in one of seven, with these in none of 14. The first is so that it answers a greeting.
_REMINDED = [
    Message("system", _facts("I drink no alcohol.", "My son Tom is 7 and loves trains.")),
    Message("user", "Hello, I am learning Italian!"),
    Message("assistant", "Hello! Good luck with your Italian."),
    Message("user", "Suggest a drink."),
    Message("assistant", "Fresh orange juice with mint."),
    Message("user", "What could I do with my son on Sunday?"),
    Message("assistant", "Visit a railway museum with Tom."),
    Message("user", "What should I pack for lunch?"),
    Message("assistant", "A cheese sandwich and an apple."),
]


def _role(role: object, param: str) -> Role:
    match role:
        case "user":
            return "user"
        case "assistant":
            return "assistant"
        case "system" | "developer":
            return "system"
    raise UnsupportedByEmbeddedModelError(f"read messages of the role {role!r}", param=param)


def _text(content: str | Sequence[Mapping[str, Any]], param: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{param}[{index}]") for index, part in enumerate(content))


def _part(part: Mapping[str, Any], param: str) -> str:
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return str(part["text"])
    if kind == "refusal":
        return str(part["refusal"])
    raise UnsupportedByEmbeddedModelError(
        _SENSES.get(str(kind), f"read content of type {kind!r}"), param=param
    )


def _tool_output(name: str, output: Any, param: str) -> Message:
    text = _text(output, f"{param}.output")
    if len(text) > TOOL_OUTPUT_CHARACTERS:
        text = f"{text[:TOOL_OUTPUT_CHARACTERS]} [… cut: {len(text)} characters]"
    return Message("system", f"Result of {name}: {text}")
