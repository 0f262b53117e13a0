"""Errors on the wire: one shape, stable codes, and a limit on bodies while they stream in.

    {"status": {"error": {"code": ..., "message": ..., "hint": ...}}, "result": null, "time": seconds}

Takes: errors of `contracts.errors`. Gives: HTTP answers. Owns: the status of each class. Never: shows a trace, or an unexpected error's text.
"""

from __future__ import annotations

import json
import logging
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts.errors import CorruptError, HeadwaterError, NotFoundError, SettingsError, SnapshotError, UnavailableError

logger = logging.getLogger(__name__)


class BodyTooLargeError(SettingsError):
    """The body is larger than `max_body_bytes`."""

    code = "body_too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is larger than {max_bytes} bytes", hint="send less, or raise HEADWATER_MAX_BODY_BYTES")


class DeletesOffError(SettingsError):
    """The operator has not allowed deletes through this service."""

    code = "deletes_off"

    def __init__(self) -> None:
        super().__init__(
            "this service takes no deletes", hint="set HEADWATER_QUERY_DELETES=true where all callers may delete; producers always can, by key"
        )


_STATUS: tuple[tuple[type[HeadwaterError], int, str], ...] = (
    (BodyTooLargeError, 413, "invalid"),
    (DeletesOffError, 403, "invalid"),
    (NotFoundError, 404, "not_found"),
    (SettingsError, 400, "invalid"),
    (UnavailableError, 503, "unavailable"),
    (SnapshotError, 503, "unavailable"),
    (CorruptError, 500, "error"),
)
NO_SNIFF = {"x-content-type-options": "nosniff"}


def status_of(error: HeadwaterError) -> tuple[int, str]:
    """HTTP status, and the outcome that `query_total` counts."""
    return next(((status, outcome) for kind, status, outcome in _STATUS if isinstance(error, kind)), (500, "error"))


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON with the headers that every answer has."""
    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    return Response(data, status, NO_SNIFF | (headers or {}), "application/json")


def error_response(status: int, code: str, message: str, hint: str, started: float | None = None) -> Response:
    """One error in the envelope; a 503 says when to come back."""
    body = {
        "status": {"error": {"code": code, "message": message, "hint": hint}},
        "result": None,
        "time": 0.0 if started is None else round(perf_counter() - started, 6),
    }
    extra = {503: {"retry-after": "1"}, 413: {"connection": "close"}}  # 413: what is left of the body is not read
    return json_response(body, status, extra.get(status))


def of_error(error: HeadwaterError, started: float | None = None) -> Response:
    """Answer for one of our errors."""
    return error_response(status_of(error)[0], error.error_code, error.message, error.hint, started)


def install_handlers(app: FastAPI) -> None:
    """Give every error of the app, the framework's included, the one shape."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, HeadwaterError)
        return of_error(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        return error_response(400, "invalid_request", f"{name}: {first['msg']}", "the API is described at /docs")

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        return error_response(error.status_code, code, str(error.detail), "the API is described at /docs")

    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("a request failed unexpectedly", exc_info=error, extra={"path": request.url.path[:200]})
        return error_response(500, "internal", "the request failed unexpectedly", "look at the service's log, and report it")

    app.add_exception_handler(HeadwaterError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


class BodyLimit:
    """ASGI middleware: refuses a body as soon as it is known to be too large, by its length or by what has come in.

    Parameters
    ----------
    app : ASGIApp
        What is protected.
    max_bytes : int
        Largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._max_bytes:
            await of_error(BodyTooLargeError(self._max_bytes))(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise BodyTooLargeError(self._max_bytes)  # the app's handler answers
            return message

        await self._app(scope, counted, send)
