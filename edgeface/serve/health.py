"""Say whether the service lives and can answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from edgeface.serve.routing import Served

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live")
async def live(service: Served) -> dict[str, Any]:
    """Answer while the event loop does."""
    return {"live": True}


@router.get("/ready")
async def ready(request: Request, service: Served) -> JSONResponse:
    """Answer 200 if models answer, galleries are open, and the next request would be accepted; else 503."""
    missing = [] if service.models.names() else ["no model is loaded"]
    missing += ["the queue is full"] if request.app.state.work.full else []
    return JSONResponse({"ready": not missing, "reasons": missing}, 503 if missing else 200)
