"""The run context of the user's own type: made for a turn, stored while that waits for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter

from threadkeep.errors import AgentCodeError

_REMEDY = (
    "create_context in agent_server/agent.py must give what can be stored while a turn waits for "
    "an approval, and say so (`-> MyContext`): a dataclass, a pydantic model or a dict whose "
    "values have a form in JSON."
)


@dataclass(frozen=True)
class ContextType:
    """The user's `create_context`, and how what it makes is stored.

    Args:
        create: Makes a context.
        adapter: Of its type.
    """

    create: Callable[[Any], Any]
    adapter: TypeAdapter[Any]

    @classmethod
    def of(cls, create: Callable[[Any], Any]) -> ContextType:
        """Looks at what the function says that it gives.

        Raises:
            AgentCodeError: It says nothing, or what can't be stored.
        """
        try:
            adapter = TypeAdapter(get_type_hints(create)["return"])
            adapter.json_schema(mode="serialization")
        except (KeyError, NameError, TypeError, PydanticUserError) as error:
            raise AgentCodeError(_REMEDY) from error
        return cls(create, adapter)


@dataclass(frozen=True)
class OwnContexts:
    """The contexts of one run.

    Args:
        kind: How they are made and stored.
        about: What `create_context` is given.
    """

    kind: ContextType
    about: Any

    def make(self) -> Any:
        """A new one. It must come back from its JSON form, or the turn is not begun.

        Raises:
            AgentCodeError: It does not.
        """
        context = self.kind.create(self.about)
        self.load(self.dump(context))
        return context

    def dump(self, context: Any) -> str:
        """As JSON text.

        Raises:
            AgentCodeError: It has no form in JSON.
        """
        try:
            return self.kind.adapter.dump_json(context, warnings="error").decode()
        except ValueError as error:
            raise AgentCodeError(_REMEDY) from error

    def load(self, text: str | None) -> Any:
        """One again from its JSON form; a new one for a turn that had none.

        Raises:
            AgentCodeError: It can't be made of that.
        """
        if text is None:
            return self.kind.create(self.about)
        try:
            return self.kind.adapter.validate_json(text)
        except ValueError as error:
            raise AgentCodeError(_REMEDY) from error
