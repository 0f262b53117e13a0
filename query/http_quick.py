"""The short way to the two reads that are asked most, past the framework's own.

That one looks through all routes, checks parameters that are not there, and opens and closes what none of our handlers uses.

Takes: requests for `points/query` and its batch. Gives: the answers of the same handlers that the app's routes name. Owns: nothing.
Never: answers otherwise than the route would; what is not plainly one of the two is the app's matter.
"""

from __future__ import annotations

import re

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from query.http_points import LONGEST_NAME, PointRoutes

_PATH = re.compile(rf"/collections/([^/\n]{{1,{LONGEST_NAME}}})/points/query(/batch)?")


class QuickReads:
    """ASGI middleware.

    Parameters
    ----------
    app : ASGIApp
        The rest of the app.
    routes : PointRoutes
        Whose handlers answer.
    """

    def __init__(self, app: ASGIApp, routes: PointRoutes) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        handler = self._routes.query if found[2] is None else self._routes.batch
        response = await handler(Request(scope, receive), found[1])
        await response(scope, receive, send)
