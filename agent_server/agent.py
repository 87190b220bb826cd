"""The agent: what it is told, what it can do, and which conversation a request belongs to.

This is the file to edit. `create_agent` is called for every turn.
"""

from datetime import datetime

from agents import Agent, function_tool
from uuid_utils import uuid7

from threadkeep.server import AgentContext, ResponsesRequest

INSTRUCTIONS = (
    "You are a helpful assistant. Remember what the user tells you about themselves and use it "
    "to answer their questions. Keep answers short."
)


@function_tool
def get_current_time() -> str:
    """Get the current date and time."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def create_agent(context: AgentContext) -> Agent[AgentContext]:
    """Make the agent of one turn.

    `context` has the `session_id`, the `owner` (None when you are the only user), the `request` and
    what is remembered of the user, `memory`; tools get it too, as the SDK's run context. Without a
    `model=` here, AGENT_MODEL says which.
    """
    return Agent[AgentContext](
        name="Assistant",
        instructions=INSTRUCTIONS,
        tools=[get_current_time, *context.memory.tools()],
    )


def get_session_id(request: ResponsesRequest) -> str:
    """Tell which conversation a request goes on with, or start a new one."""
    session_id: str | None = (request.custom_inputs or {}).get("session_id")
    if session_id is None and request.context:
        session_id = request.context.conversation_id
    if session_id is None:
        # The Responses API's own way; requests made for MLflow don't have it.
        session_id = getattr(request, "conversation_id", None)
    return str(uuid7()) if session_id is None else session_id
