"""Is it alive, does it answer, what is it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from threadkeep.migrate import RELEASE

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """200 as long as the process serves requests."""
    return {"status": "healthy"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """200 when the database and the model answer; 503 says which does not yet."""
    state = request.app.state
    # Any statement will do; this one finds nothing and costs one look at an index.
    await state.database.call("get_session", session_id="", owner="")
    model = state.models.state
    content = {"status": model, "model": state.models.name, "message": _SENTENCES[model]}
    return JSONResponse(content, 200 if model == "ready" else 503)


@router.get("/agent/info")
async def agent_info(request: Request) -> dict[str, str]:
    """What serves here, as MLflow's agent server tells it."""
    return {
        "name": request.app.state.settings.databricks_app_name or "threadkeep",
        "use_case": "agent",
        "agent_api": "responses",
        "threadkeep_version": RELEASE,
    }


_SENTENCES = {
    "ready": "Database and model answer.",
    "loading": "The embedded model is loading.",
    "failed": "The embedded model did not start; the next message tries again.",
}
