"""Memory that lasts for agents built on the OpenAI Agents SDK.

from threadkeep import Session

session = Session("user-123")
result = await Runner.run(agent, "Hello, I live in SF!", session=session)
"""

from threadkeep.session import Session

__all__ = ["Session"]
