"""Puts the original AsyncDatabricksSession to the conformance suite; prints the outcome as JSON.

../conformance.py runs this in the environment of this folder, on a Lakebase of its machine.
"""

import asyncio
import json
import os
from importlib.metadata import version

from databricks_openai.agents import AsyncDatabricksSession
from sqlalchemy import text

from threadkeep.testing import score

NEWEST = "SELECT max(id) FROM agent_messages WHERE session_id = :session_id"
DAMAGE = text(f"UPDATE agent_messages SET message_data = '{{broken' WHERE id = ({NEWEST})")


async def make(session_id: str) -> AsyncDatabricksSession:
    """A session, as documented."""
    return AsyncDatabricksSession(session_id, instance_name=os.environ["LAKEBASE_INSTANCE_NAME"])


async def damage(session_id: str) -> None:
    """Makes its newest item unreadable."""
    session = await make(session_id)
    async with session.engine.begin() as connection:
        await connection.execute(DAMAGE, {"session_id": session_id})


async def main() -> None:
    """Prints why each check failed, '' for those that passed, and the versions."""
    report = await score(make, damage=damage)
    reasons = {result.check.name: result.reason for result in report.results}
    versions = {name: version(name) for name in ("databricks-openai", "openai-agents")}
    print(json.dumps({"reasons": reasons, "versions": versions}))


if __name__ == "__main__":
    asyncio.run(main())
