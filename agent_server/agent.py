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

    `context` has the `session_id`, the `owner` (None when you are the only user) and the `request`;
    tools get it too, as the SDK's run context. Without a `model=` here, AGENT_MODEL says which.
    """
    return Agent[AgentContext](
        name="Assistant",
        instructions=INSTRUCTIONS,
        tools=[get_current_time],
    )


def get_session_id(request: ResponsesRequest) -> str:
    """Tell which conversation a request goes on with, or start a new one."""
    if request.custom_inputs and "session_id" in request.custom_inputs:
        return str(request.custom_inputs["session_id"])
    if request.context and request.context.conversation_id:
        return request.context.conversation_id
    return getattr(request, "conversation_id", None) or str(uuid7())
