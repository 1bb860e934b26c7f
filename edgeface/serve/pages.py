"""Serve the OpenAPI document, a page that lists and tries its operations, and those of the door and of the desk."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from edgeface.serve.openapi import PREFIX
from edgeface.serve.routing import Recognises

router = APIRouter()
_FOLDER = Path(__file__).with_name("page")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {"/docs": "page.html", "/docs/page.css": "page.css", "/docs/page.js": "page.js", "/door": "door.html"}
_FILES |= {"/desk": "desk.html", "/forget": "desk.html"}
_FILES |= {f"/page/{file.name}": file.name for file in _FOLDER.iterdir() if file.suffix in (".css", ".js")}
PAGES = frozenset(_FILES)
"""Paths that need no key: the pages hold nothing, and ask for a key before they read anything."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def _page(request: Request) -> Response:
    file = _FOLDER / _FILES[request.scope["route"].path]
    kind = f"{_KINDS[file.suffix]}; charset=utf-8"
    return Response(file.read_bytes(), media_type=kind, headers={"Content-Security-Policy": _POLICY})


for path in _FILES:
    router.add_api_route(path, _page, include_in_schema=False)


@router.get(f"{PREFIX}/openapi.json", include_in_schema=False)
async def openapi(request: Request, caller: Recognises) -> Response:
    """Return the OpenAPI document of this service."""
    document = request.app.openapi() | {"servers": [{"url": request.scope.get("root_path") or "/"}]}
    return Response(json.dumps(document), media_type="application/json")
