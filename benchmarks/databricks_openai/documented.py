"""One turn of the code that databricks-openai's template documents, as a program.

    python documented.py MESSAGE [SESSION_ID]

Prints the session's id and the reply, as JSON. The code between the lines is the documentation's;
interop.py runs it as it is, and with the import of AsyncDatabricksSession changed alone.
"""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from agents import Agent, Runner
from databricks_openai.agents import AsyncDatabricksSession
from uuid_utils import uuid7

from agent_server.utils import resolve_lakebase_instance_name


@dataclass
class ResponsesAgentRequest:
    custom_inputs: dict[str, Any] | None


# --------------------------------------------------------------------------------------------------

_LAKEBASE_INSTANCE_NAME_RAW = os.environ.get("LAKEBASE_INSTANCE_NAME")
LAKEBASE_INSTANCE_NAME = resolve_lakebase_instance_name(_LAKEBASE_INSTANCE_NAME_RAW)


def get_session_id(request: ResponsesAgentRequest) -> str:
    if hasattr(request, "custom_inputs") and request.custom_inputs:  # noqa: SIM102
        if "session_id" in request.custom_inputs:
            return request.custom_inputs["session_id"]
    return str(uuid7())


async def respond(request: ResponsesAgentRequest, agent: Agent, messages: list[Any]) -> Any:
    session = AsyncDatabricksSession(
        session_id=get_session_id(request),
        instance_name=LAKEBASE_INSTANCE_NAME,
    )

    result = await Runner.run(agent, messages, session=session)
    # ----------------------------------------------------------------------------------------------
    return {"session_id": session.session_id, "reply": result.final_output}


if __name__ == "__main__":
    known = {"session_id": sys.argv[2]} if sys.argv[2:] else None
    messages = [{"role": "user", "content": sys.argv[1]}]
    answer = respond(ResponsesAgentRequest(known), Agent("Assistant"), messages)
    print(json.dumps(asyncio.run(answer)))
