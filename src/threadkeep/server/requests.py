"""What a client may ask: the body of `POST /responses`, and the items of its input."""

from __future__ import annotations

from typing import Any, cast

from agents import TResponseInputItem
from pydantic import BaseModel, ConfigDict, Field, model_validator

from threadkeep.approvals import Verdict
from threadkeep.errors import InvalidInputError, TooLargeError
from threadkeep.history import check_id, check_json, check_text, json_text
from threadkeep.limits import check_size
from threadkeep.response_events import new_id
from threadkeep.titles import text_of

MAX_ITEMS = 10_000
"""Of one request."""

MAX_REASON = 2_000
"""Of what somebody says about a decision, in characters."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "include": ([],),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
    "truncation": ("disabled", "auto"),
    "top_logprobs": (0,),
    "service_tier": ("auto", "default"),
}
_IGNORED = {
    "stream_options",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "databricks_options",
}
_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
_OTHER_PARTS = ("input_image", "input_file", "input_audio")
_KEPT = {
    "message": ("type", "role", "content"),
    "function_call": ("type", "call_id", "name", "arguments"),
    "function_call_output": ("type", "call_id", "output"),
}


class ChatContext(BaseModel):
    """MLflow's `context`: who talks, and in which conversation."""

    model_config = ConfigDict(extra="allow")
    conversation_id: str | None = None
    user_id: str | None = None


class ConversationRef(BaseModel):
    """A conversation named by an object, as the Responses API has it."""

    id: str


class ResponsesRequest(BaseModel):
    """The body of `POST /responses` and `POST /invocations`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    input: str | list[dict[str, Any]] = Field(
        description="A text of the user, or items in Responses form.",
        examples=[[{"role": "user", "content": "Hello, I live in SF!"}]],
    )
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    background: bool = Field(
        default=False, description="Answer at once; poll or follow the run by its id."
    )
    custom_inputs: dict[str, Any] | None = Field(
        default=None, description="`session_id`: the session to go on with.", examples=[None]
    )
    context: ChatContext | None = None
    conversation: str | ConversationRef | None = None
    previous_response_id: str | None = None
    model: str | None = Field(
        default=None, description="Taken and ignored: the agent has its model."
    )
    metadata: dict[str, str] | None = None
    store: bool = Field(default=True, description="false: nothing of this turn is kept.")
    user: str | None = Field(
        default=None, description="Taken and ignored: a body can't say whose it is."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_neutral_fields(cls, body: object) -> object:
        """Takes fields of the Responses API as long as they change nothing here."""
        if not isinstance(body, dict):
            return body
        return {
            name: value
            for name, value in body.items()
            if not (name in _IGNORED or (value is None and name != "input"))
            and not any(value == neutral for neutral in _NEUTRAL.get(name, ()))
        }

    @property
    def conversation_id(self) -> str | None:
        """The id in `conversation`, in either of its forms."""
        if isinstance(self.conversation, ConversationRef):
            return self.conversation.id
        return self.conversation


def input_items(value: str | list[dict[str, Any]]) -> list[TResponseInputItem]:
    """The items of an `input`, checked, with what the Responses API knows of them and no more.

    Args:
        value: As the request has it.

    Raises:
        InvalidInputError: An item can't be used; `param` says which.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not value:
        raise InvalidInputError("input is empty. Send a message.", param="input", code="empty")
    if len(value) > MAX_ITEMS:
        raise InvalidInputError(
            f"input has {len(value)} items; {MAX_ITEMS} at most can be sent at once.", param="input"
        )
    return [_checked(item, f"input[{index}]") for index, item in enumerate(value)]


def check_sizes(items: list[TResponseInputItem], message_chars: int, item_bytes: int) -> None:
    """Refuses an input of which a part is too large.

    Args:
        items: The input.
        message_chars: How long the text of a message may be.
        item_bytes: How large an item may be as it is stored.

    Raises:
        TooLargeError: It is; `param` says which.
    """
    for index, item in enumerate(items):
        length = len(text_of(item.get("content")))
        if length > message_chars:
            raise TooLargeError(
                f"This message has {length} characters; {message_chars} are taken "
                "(MESSAGE_MAX_CHARS). Shorten it, or send it in several.",
                param=f"input[{index}].content",
                code="message_too_large",
            )
        check_size(json_text(item), f"input[{index}]", item_bytes)


def verdicts(value: str | list[dict[str, Any]]) -> list[Verdict]:
    """The decisions in an `input`; empty when it is a message.

    Raises:
        InvalidInputError: One can't be used, or there is something else beside them.
    """
    if isinstance(value, str) or not any(map(_is_verdict, value)):
        return []
    if len(value) > MAX_ITEMS:
        raise InvalidInputError(f"{MAX_ITEMS} items at most can be sent at once.", param="input")
    return [_verdict(item, f"input[{index}]") for index, item in enumerate(value)]


def _is_verdict(item: dict[str, Any]) -> bool:
    return item.get("type") == "mcp_approval_response"


def _verdict(item: dict[str, Any], at: str) -> Verdict:
    if not _is_verdict(item):
        raise InvalidInputError(
            f"{at} stands beside a decision. Send decisions alone, and a message when the answer "
            "to them is done.",
            param=at,
            code="mixed_input",
        )
    approval_id, reason = item.get("approval_request_id"), item.get("reason")
    if not isinstance(approval_id, str):
        raise _wrong(f"{at}.approval_request_id", "must be the id of an approval")
    if not isinstance(item.get("approve"), bool):
        raise _wrong(f"{at}.approve", "must be true or false")
    if reason is not None and not (isinstance(reason, str) and len(reason) <= MAX_REASON):
        raise _wrong(f"{at}.reason", f"must be a string of {MAX_REASON} characters at most")
    check_text(reason, f"{at}.reason")
    check_id(approval_id, f"{at}.approval_request_id")
    return Verdict(approval_id, item["approve"], reason or None)


def _checked(item: dict[str, Any], at: str) -> TResponseInputItem:
    kind = item.get("type", "message")
    if kind == "message":
        _check_message(item, at)
    elif kind == "function_call":
        _check_texts(item, at, "call_id", "name", "arguments")
    elif kind == "function_call_output":
        _check_texts(item, at, "call_id")
        if not isinstance(item.get("output"), (str, list)):
            raise _wrong(f"{at}.output", "must be a string or a list of parts")
    elif kind != "reasoning":
        raise InvalidInputError(
            f"{at}.type is not one that can be sent here: use message, function_call, "
            "function_call_output, reasoning or mcp_approval_response.",
            param=f"{at}.type",
            code="unsupported_item",
        )
    check_json(item, at)
    if kind in _KEPT:
        item = {name: item[name] for name in _KEPT[kind] if name in item}
    if kind == "message" and item["role"] == "assistant":
        item = _said_by_agent(item["content"])
    return cast(TResponseInputItem, item)


def _said_by_agent(content: str | list[dict[str, Any]]) -> dict[str, Any]:
    """A message of the agent in the one form that every model of the SDK takes back."""
    if isinstance(content, str):
        content = [{"type": "output_text", "text": content}]
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": part["text"], "annotations": []}
            if "text" in part
            else part
            for part in content
        ],
    }


def _check_message(item: dict[str, Any], at: str) -> None:
    if item.get("role") not in _ROLES:
        raise _wrong(f"{at}.role", f"must be one of {', '.join(_ROLES)}")
    content = item.get("content")
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{at}.content[{index}]")
    elif not isinstance(content, str):
        raise _wrong(f"{at}.content", "must be a string or a list of parts")
    if not content:
        raise InvalidInputError(
            f"{at}.content is empty. Write something.", param=f"{at}.content", code="empty"
        )


def _check_part(part: object, at: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        name = "refusal" if kind == "refusal" else "text"
        _check_texts(cast(dict[str, Any], part), at, name)
    elif kind not in _OTHER_PARTS:
        kinds = ", ".join((*_TEXT_PARTS, *_OTHER_PARTS))
        raise _wrong(f"{at}.type", f"must be one of {kinds}")


def _check_texts(values: dict[str, Any], at: str, *names: str) -> None:
    for name in names:
        if not isinstance(values.get(name), str):
            raise _wrong(f"{at}.{name}", "must be a string")


def _wrong(param: str, what: str) -> InvalidInputError:
    return InvalidInputError(f"{param} {what}.", param=param, code="invalid_type")
