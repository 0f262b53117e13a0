"""The routes of points: query, batch, scroll, count, and one point with its media, thumbnail and lineage.

Takes: HTTP requests. Gives: Qdrant's envelope with `freshness` beside it. Owns: the way from a request to a search thread and back.
Never: searches, encodes or decodes on the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from contracts.engines import Engines
from contracts.errors import HeadwaterError, SettingsError
from query.collection_view import CollectionSnapshot, CollectionView
from query.deletes import SentDeletes, send_deletes
from query.discovery import Collections
from query.freshness import fresh_snapshot
from query.http_errors import NO_SNIFF, DeletesOffError, of_error, status_of
from query.http_models import (
    ANYHOW,
    Body,
    BodyType,
    Consistency,
    CountRequest,
    DeleteRequest,
    QueryBatchRequest,
    QueryRequest,
    ScrollRequest,
    read_body,
)
from query.pipeline import Answer, Pipeline

MEDIA_HEADERS = NO_SNIFF | {
    "content-security-policy": "default-src 'none'; sandbox",  # media come from strangers; opened as a page they may do nothing
    "cache-control": "private, max-age=300",
    "cross-origin-resource-policy": "same-origin",
}
PREFIX = "/collections/{collection}/points"
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
Work = Callable[[CollectionSnapshot], Answer | Response]
LONGEST_NAME = 200
CollectionName = Annotated[str, Path(max_length=LONGEST_NAME)]


class _AnyText(PathConvertor):
    """Starlette's `path` stops at a line break, which an id may hold."""

    regex = "(?s:.*)"


register_url_convertor("any_text", _AnyText())


class PointRoutes:
    """Handlers of one app.

    Parameters
    ----------
    engines : Engines
        Settings and metrics.
    collections : Collections
        What is served.
    pipeline : Pipeline
        Answers requests.
    pool : ThreadPoolExecutor
        Threads that search, encode and read media.
    """

    def __init__(self, engines: Engines, collections: Collections, pipeline: Pipeline, pool: ThreadPoolExecutor) -> None:
        self._engines, self._collections, self._pipeline, self._pool = engines, collections, pipeline, pool

    def router(self) -> APIRouter:
        """The routes, with their bodies described for OpenAPI."""
        router = APIRouter(tags=["points"])
        for path, handler, model in (
            ("/query", self.query, QueryRequest),
            ("/query/batch", self.batch, QueryBatchRequest),
            ("/scroll", self.scroll, ScrollRequest),
            ("/count", self.count, CountRequest),
        ):
            router.add_api_route(PREFIX + path, handler, methods=["POST"], openapi_extra=_body_of(model), response_class=Response)
        router.add_api_route(PREFIX + "/delete", self.delete, methods=["POST"], openapi_extra=_body_of(DeleteRequest), response_class=Response)
        for action in ("/media", "/thumbnail", "/lineage", ""):
            router.add_api_route(
                PREFIX + "/{item_id:any_text}" + action,
                self.point,
                methods=["GET"],
                response_class=Response,
                operation_id=f"point{action.replace('/', '_')}",
            )
        return router

    async def query(self, request: Request, collection: CollectionName) -> Response:
        """Find the points closest to a vector, an id, a text or a picture."""
        return await self._read(request, collection, QueryRequest, lambda body: lambda pinned: self._pipeline.query(pinned, body))

    async def batch(self, request: Request, collection: CollectionName) -> Response:
        """Answer several queries from one snapshot."""

        def work(body: QueryBatchRequest) -> Work:
            if any(search.consistency != ANYHOW for search in body.searches):
                raise SettingsError(
                    "a search of a batch has a consistency of its own", hint="give one consistency beside `searches`", code="invalid_request"
                )

            return lambda pinned: self._pipeline.query_batch(pinned, body)

        return await self._read(request, collection, QueryBatchRequest, work)

    async def scroll(self, request: Request, collection: CollectionName) -> Response:
        """List points page by page, every one exactly once."""
        return await self._read(request, collection, ScrollRequest, lambda body: lambda pinned: self._pipeline.scroll(pinned, body))

    async def count(self, request: Request, collection: CollectionName) -> Response:
        """Count the points that pass a filter."""
        return await self._read(request, collection, CountRequest, lambda body: lambda pinned: self._pipeline.count(pinned, body))

    async def delete(
        self,
        request: Request,
        collection: CollectionName,
        wait: Annotated[bool, Query(description="answer once this node no longer shows the items")] = False,
    ) -> Response:
        """Delete points by id or filter: one delete for each item of the snapshot, through the media topic."""
        sent: list[SentDeletes] = []

        async def work() -> tuple[Consistency, Work]:
            if not self._engines.settings.query_deletes:
                raise DeletesOffError
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise SettingsError(
                    "a delete is a body of type application/json", hint="send content-type: application/json"
                )  # no form of a web page is
            body = read_body(await request.body(), DeleteRequest, self._engines.settings.max_body_bytes)

            def send(pinned: CollectionSnapshot) -> Answer:
                sent.append(send_deletes(self._engines, pinned, body))
                return _deleted(sent[0], pinned.record.source_topic, "acknowledged")

            return body.consistency, send

        answer = await self._answer(collection, work)
        if not wait or not sent or answer.status_code != 200:
            return answer

        async def seen() -> tuple[Consistency, Work]:
            offsets = {str(partition): offset for partition, offset in sent[0].next_offsets.items()}
            return Consistency(min_offsets=offsets), lambda pinned: _deleted(sent[0], pinned.record.source_topic, "completed")

        waited = await self._answer(collection, seen)
        return waited if waited.status_code == 200 else answer  # it is in the log: the caller may ask with min_offsets

    async def point(
        self, request: Request, collection: CollectionName, size: Annotated[int, Query(description="longer side of a thumbnail, in pixels")] = 256
    ) -> Response:
        """One point; with `/media`, `/thumbnail` or `/lineage` behind its id, those. An id may hold slashes, plain or as %2F."""

        async def work() -> tuple[Consistency, Work]:
            item_id, action = point_path(request)
            if action == "media":
                return Consistency(), lambda pinned: _media(self._pipeline.media(pinned, item_id))
            if action == "thumbnail":
                return Consistency(), lambda pinned: _media(self._pipeline.thumbnail(pinned, item_id, size))
            if action == "lineage":
                return Consistency(), lambda pinned: self._pipeline.lineage(pinned, item_id)
            return Consistency(), lambda pinned: self._pipeline.point(pinned, item_id)

        return await self._answer(collection, work)

    # ---- the common way -----------------------------------------------------------------------------------------
    async def _read(self, request: Request, collection: str, model: type[BodyType], to_work: Callable[[BodyType], Work]) -> Response:
        async def work() -> tuple[Consistency, Work]:
            body = read_body(await request.body(), model, self._engines.settings.max_body_bytes)
            consistency: Consistency = getattr(body, "consistency", ANYHOW)
            return consistency, to_work(body)

        return await self._answer(collection, work)

    async def _answer(self, collection: str, prepare: Callable[[], Any]) -> Response:
        started = perf_counter()
        view: CollectionView | None = None
        outcome = "error"
        try:
            view = self._collections.get(collection)
            consistency, work = await prepare()
            pinned = await fresh_snapshot(view, consistency)
            response = await asyncio.get_running_loop().run_in_executor(self._pool, _run, view, pinned, work, started)
            outcome = "ok"
            return response
        except HeadwaterError as error:
            outcome = status_of(error)[1]
            return of_error(error, started)
        finally:
            if view is not None:  # names that do not exist are no labels: anyone can make up more of them
                self._engines.metrics.queries.labels(collection, outcome).inc()
                self._engines.metrics.query.labels(collection, "total").observe(perf_counter() - started)


def _run(view: CollectionView, pinned: CollectionSnapshot, work: Work, started: float) -> Response:
    """On a search thread: do the work and write the JSON."""
    answer = work(pinned)
    if isinstance(answer, Response):
        return answer
    body: dict[str, Any] = {"result": answer.result, "status": "ok", "time": round(perf_counter() - started, 6)}
    if answer.usage:
        body["usage"] = answer.usage
    body["freshness"] = view.freshness(answer.snapshot or pinned)
    return Response(_to_json(body).encode("utf-8"), 200, NO_SNIFF, "application/json")


def _deleted(sent: SentDeletes, topic: str, status: str) -> Answer:
    offsets = {f"{topic}/{partition}": offset for partition, offset in sorted(sent.next_offsets.items())}
    return Answer({"operation_id": None, "status": status, "deletes": sent.sent, "remaining": sent.remaining, "next_offsets": offsets})


def _media(media: Any) -> Response:
    return Response(media.data, 200, MEDIA_HEADERS, media.content_type)


def point_path(request: Request) -> tuple[str, str]:
    """The id and the action that a path names.

    The raw path decides: ``a%2Fmedia`` is the id ``a/media``, while ``a/media`` is the media of ``a``.

    Raises
    ------
    SettingsError
        ``invalid_id``: the id is empty or not UTF-8.
    """
    raw: bytes = request.scope["raw_path"].split(b"?", 1)[0]
    rest = raw.split(b"/points/", 1)[1]
    name, _, last = rest.rpartition(b"/")
    action = last.decode("ascii", "replace") if name and last in (b"media", b"thumbnail", b"lineage") else ""
    try:
        item_id = unquote((name if action else rest).decode("ascii"), errors="strict")
    except UnicodeDecodeError:
        item_id = ""
    if not item_id:
        raise SettingsError("the id in the path is empty or not UTF-8", hint="percent-encode the id", code="invalid_id")
    return item_id, action


def _body_of(model: type[Body]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
