"""The HTTP app over one collection, without a port."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.testclient import TestClient

from embedding.decode_pool import DecodePool
from query.collection_view import CollectionView
from query.discovery import Collections
from query.http_app import build_app
from query.pipeline import Pipeline
from tests.query.conftest import caught_up, wait_until
from tests.query.writer import Writer, unit

ATTRIBUTES = {"colour": "keyword", "size": "integer", "tags": "keyword[]", "when": "datetime"}


@dataclass
class Served:
    client: TestClient
    made: Writer
    collections: Collections

    @property
    def view(self) -> CollectionView:
        return self.collections.get("things")

    def settle(self) -> None:
        made = self.made
        wait_until(lambda: caught_up(self.view, made) and self.view.snapshot().views[made.partition].loaded.version >= made.read.manifest.version)

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        answer = self.client.post(f"/collections/things/points/{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def ids(self, body: Any, path: str = "query") -> list[str]:
        return [point["id"] for point in self.post(path, body)["result"]["points"]]


def serve(made: Writer) -> Iterator[Served]:
    collections = Collections(made.engines)
    with ThreadPoolExecutor(2) as pool, DecodePool(made.engines.settings) as decoding:
        app = build_app(made.engines, collections, Pipeline(made.engines, decoding), pool)
        collections.refresh()
        with TestClient(app) as client:
            wait_until(lambda: collections.ready)
            yield Served(client, made, collections)
    collections.stop()


def fill(served: Served) -> None:
    made = served.made
    made.put("east", unit(1, 0, 0, 0), attributes={"colour": "red", "size": 1, "tags": ["a", "b"], "note": "x"}, text="the east")
    made.put("north", unit(0, 1, 0, 0), attributes={"colour": "red", "size": 2, "note": ["x", "y"]})
    made.commit()
    made.put("northeast", unit(1, 0.9, 0, 0), attributes={"colour": "blue", "size": 1, "tags": ["b"], "deep": True})
    made.put("up", unit(0, 0, 1, 0), attributes={"when": "2026-11-01T00:00:00Z", "deep": 1})
    served.settle()
