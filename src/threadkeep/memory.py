"""What an agent remembers of its user across conversations, for code that uses the Agents SDK.

from threadkeep import Memory, Session

memory = Memory("ann")
agent = Agent("Assistant", instructions=memory.instructions, tools=memory.tools())
session = Session("2026-11-27", owner="ann")
result = await Runner.run(
    agent, "Suggest a dinner", session=session, run_config=memory.run_config(session)
)
"""

from __future__ import annotations

from dataclasses import replace

from agents import FunctionTool, RunConfig

from threadkeep.connect import hold, release
from threadkeep.database import Database
from threadkeep.errors import InvalidInputError
from threadkeep.history import check_id
from threadkeep.memory_form import shared_scope
from threadkeep.memory_store import Likeness, MemoryStore
from threadkeep.memory_tools import INSTRUCTIONS, memory_tools
from threadkeep.recall import TOKENS, Recall
from threadkeep.session import Session


class Memory(MemoryStore):
    """The memories of one owner, with the tools and the recall for an agent.

    Args:
        owner: Whose they are. The model never says it.
        shared: Instead: the name of memories that several users share. Past sessions are never
            shared.
        database: Where they are kept, as for `Session`.

    Raises:
        InvalidInputError: There is no owner, or it can't be used.
    """

    instructions = INSTRUCTIONS

    def __init__(
        self,
        owner: str | None = None,
        *,
        shared: str | None = None,
        database: Database | str | None = None,
    ) -> None:
        if owner is None and shared is None:
            raise InvalidInputError(
                "Memories need an owner: Memory(owner), or Memory(shared=name).", param="owner"
            )
        if database is None or isinstance(database, str):
            database = hold(database, self)
        self.user = owner if owner is None else check_id(owner, "owner")
        scope = check_id(owner, "owner") if shared is None else shared_scope(shared)
        super().__init__(database, scope)

    @classmethod
    def of(
        cls,
        database: Database,
        user: str,
        shared: str | None = None,
        likeness: Likeness | None = None,
    ) -> Memory:
        """The memories of a server's user; '' is the one user of a server without users."""
        memory = cls.__new__(cls)
        memory.user = user
        scope = shared_scope(shared) if shared else user
        MemoryStore.__init__(memory, database, scope, likeness)
        return memory

    def tools(self) -> list[FunctionTool]:
        """The agent's tools: save_memory, get_memory, list_memories, update_memory,
        delete_memory, search_memories and, unless they are shared alone, search_history."""
        return memory_tools(self, self.user)

    def run_config(
        self,
        session: Session | str | None = None,
        config: RunConfig | None = None,
        *,
        tokens: int = TOKENS,
        temporary: bool = False,
    ) -> RunConfig:
        """The config of one run that recalls before the model answers.

        Args:
            session: The session of the run, or its id.
            config: What else the run is to have; a filter of the model's input comes after recall.
            tokens: How many tokens may be recalled, about; 0: none.
            temporary: Nothing is recalled or remembered in the run.

        Returns:
            A new config. Its `call_model_input_filter` is a `Recall`, and has as `references` what
            was recalled.
        """
        config = config or RunConfig()
        recall = Recall(
            self,
            session_id=session.session_id if isinstance(session, Session) else session,
            session_owner=session.owner if isinstance(session, Session) else self.user,
            user=self.user,
            tokens=tokens,
            temporary=temporary,
            then=config.call_model_input_filter,
        )
        return replace(config, call_model_input_filter=recall)

    async def aclose(self) -> None:
        """Gives up the database, if this made it."""
        await release(self.database, self)
