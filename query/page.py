"""The search page: one HTML, one style sheet, one script, out of the package; nothing is loaded from elsewhere.

Takes: nothing. Gives: routes for ``/`` and ``/static``. Owns: the page's headers. Never: puts data into HTML; the script does, as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Request, Response

_FILES = {
    "/": ("search.html", "text/html; charset=utf-8"),
    "/static/search.css": ("search.css", "text/css; charset=utf-8"),
    "/static/search.js": ("search.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def router() -> APIRouter:
    """Routes of the page's three files, read once."""
    made = APIRouter(include_in_schema=False)
    folder = files("query") / "static"
    for path, (name, content_type) in _FILES.items():
        made.add_api_route(path, _serve((folder / name).read_bytes(), content_type), methods=["GET"], response_class=Response)
    return made


def _serve(data: bytes, content_type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'

    async def serve(request: Request) -> Response:
        headers = _HEADERS | {"etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(None, 304, headers)
        return Response(data, 200, headers, content_type)

    return serve
