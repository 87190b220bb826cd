"""The server: the Responses API over durable sessions, and a page to talk to it."""

from threadkeep.server.app import create_app
from threadkeep.server.requests import ResponsesRequest
from threadkeep.server.run_requests import AgentContext
from threadkeep.server.serve import serve

__all__ = ["AgentContext", "ResponsesRequest", "create_app", "serve"]
