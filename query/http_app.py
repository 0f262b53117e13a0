"""The HTTP service: an app over the collections of this node.

Takes: engines, collections, a thread pool. Gives: a FastAPI app. Owns: the list of routes. Never: opens a port (query_role does).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic.json_schema import models_json_schema

from contracts.engines import Engines
from contracts.errors import UnavailableError
from query import page
from query.collection_view import CollectionView
from query.discovery import Collections
from query.http_errors import BodyLimit, install_handlers, json_response
from query.http_models import MODELS
from query.http_points import PointRoutes
from query.http_quick import QuickReads
from query.pipeline import Pipeline
from query.scan import count

_QDRANT_DISTANCE = {"cosine": "Cosine", "dot": "Dot", "euclid": "Euclid"}


def build_app(engines: Engines, collections: Collections, pipeline: Pipeline, pool: ThreadPoolExecutor) -> FastAPI:
    """Assemble the app; the caller starts and stops `collections` and `pool`."""
    app = FastAPI(title="Headwater", summary="Live multimodal search over a stream", redoc_url=None)
    app.include_router(_CollectionRoutes(collections, pool).router())
    points = PointRoutes(engines, collections, pipeline, pool)
    app.include_router(points.router())
    app.include_router(_operation_routes(engines, collections))
    app.include_router(page.router())
    app.add_middleware(QuickReads, routes=points)
    app.add_middleware(BodyLimit, max_bytes=engines.settings.max_body_bytes)
    install_handlers(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The app's description with the bodies, which the routes read by themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
        _, bodies = models_json_schema([(model, "validation") for model in MODELS], ref_template="#/components/schemas/{model}")
        schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema


class _CollectionRoutes:
    """What collections there are, and how they are."""

    def __init__(self, collections: Collections, pool: ThreadPoolExecutor) -> None:
        self._collections, self._pool = collections, pool

    def router(self) -> APIRouter:
        router = APIRouter(tags=["collections"])
        router.add_api_route("/collections", self.all, methods=["GET"], response_class=Response)
        router.add_api_route("/collections/{collection}", self.one, methods=["GET"], response_class=Response)
        return router

    async def all(self) -> Response:
        """Names of the collections."""
        started = perf_counter()
        names = [{"name": view.record.name} for view in self._collections.views()]
        return _envelope({"collections": names}, started)

    async def one(self, collection: str) -> Response:
        """Schema, fields and state of one collection."""
        started = perf_counter()
        view = self._collections.get(collection)
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: _envelope(_described(view), started))


def _described(view: CollectionView) -> dict[str, Any]:
    record, index, state = view.record, view.index, view.state()
    points = segments = vectors = 0
    freshness: dict[str, object] | None = None
    try:
        snapshot = view.snapshot()
        points = count(snapshot, None)
        segments = sum(len(pinned.loaded.segments) for pinned in snapshot.views.values())
        vectors = sum(column.vectors for _, part in snapshot.parts for column in part.vectors.values())
        freshness = view.freshness(snapshot)
        status = "green" if view.ready and not state["errors"] else "yellow"
    except UnavailableError:
        status = "red" if state["errors"] else "grey"
    fields = {
        field.name: {"source": field.source, "encoder": field.encoder, "space_id": field.space_id, "dtype": field.dtype} for field in index.fields
    }
    sizes = {field.name: {"size": field.dimension, "distance": _QDRANT_DISTANCE[field.metric]} for field in index.fields}
    return {
        "status": status,
        "points_count": points,
        "indexed_vectors_count": vectors,
        "segments_count": segments,
        "config": {"params": {"vectors": sizes, "shard_number": record.partitions}},
        "name": record.name,
        "incarnation": record.incarnation,
        "index": index.name,
        "fields": fields,
        "attributes": dict(record.attributes),
        "source_topic": record.source_topic,
        "retention_seconds": record.retention_seconds,
        "freshness": freshness,
        **state,
    }


def _operation_routes(engines: Engines, collections: Collections) -> APIRouter:
    router = APIRouter(tags=["operation"])

    async def metrics() -> Response:
        """Prometheus metrics of this process."""
        return Response(generate_latest(engines.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def livez() -> Response:
        """Whether the process answers."""
        return json_response({"live": True})

    async def readyz() -> Response:
        """Whether every known collection is loaded; says how far it is where not."""
        ready = collections.ready
        states = {view.record.name: view.state() for view in collections.views()}
        return json_response({"ready": ready, "collections": states}, 200 if ready else 503)

    for path, handler in (("/metrics", metrics), ("/livez", livez), ("/readyz", readyz)):
        router.add_api_route(path, handler, methods=["GET"], response_class=Response)
    return router


def _envelope(result: Any, started: float) -> Response:
    return json_response({"result": result, "status": "ok", "time": round(perf_counter() - started, 6)})
