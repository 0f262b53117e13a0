"""One collection with real workers and the HTTP app, all on memory log and store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.testclient import TestClient

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord, FieldRecord
from contracts.encoder import Encoder
from contracts.engines import Engines
from embedding.decode_pool import DecodePool
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from ingest.producer import MediaProducer
from query.discovery import Collections
from query.http_app import build_app
from query.pipeline import Pipeline
from tests.indexer.conftest import eventually, running
from tests.indexer.stored import read_partition
from tests.query.writer import engines_for_test


@dataclass
class Stack:
    engines: Engines
    record: CollectionRecord
    client: TestClient
    producer: MediaProducer
    collections: Collections

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        answer = self.client.post(f"/collections/things/points/{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, item_id: str, action: str = "") -> Any:
        answer = self.client.get(f"/collections/things/points/{quote(item_id, safe='')}{action}")
        return answer.json()["result"] if answer.status_code == 200 and not action.startswith(("/media", "/thumb")) else answer

    def ids(self, body: Any) -> list[Any]:
        return sorted(point["id"] for point in self.post("scroll", body)["result"]["points"])

    def matching(self, key: str, value: Any) -> list[Any]:
        return self.ids({"filter": {"must": [{"key": key, "match": {"value": value}}]}})

    def settle(self) -> None:
        """Wait until everything sent is searchable."""
        self.producer.flush()
        expected = self.producer.next_offsets
        views = self.collections.get("things")
        eventually(lambda: all(views.snapshot().expected[p] >= offset for p, offset in expected.items()), what="searchable")

    def seal(self) -> None:
        """Commit everything that was sent, and wait until it is served from segments alone."""
        self.settle()
        worker = BuildWorker(self.engines, self.record, self.record.index())
        offset = self.producer.next_offsets[0]
        with running(worker.run):
            eventually(lambda: read_partition(self.engines, self.record, 0).manifest.checkpoint.media_offset >= offset, what="committed")
        view = self.collections.get("things")
        eventually(lambda: view.snapshot().views[0].tail.rows == 0, what="served from segments")


@contextmanager
def stack(fields: list[FieldRecord], encoder: Encoder | None = None, **request: Any) -> Iterator[Stack]:
    """Embed worker and query service run all the time, the builder while `Stack.seal` does."""
    engines = engines_for_test(seal_seconds=0.1, embed_watchdog_seconds=0.5)
    record = create_collection(engines, CollectionRequest("things", fields, 1, **request))
    collections = Collections(engines)
    with (
        ThreadPoolExecutor(2) as pool,
        DecodePool(engines.settings) as decoding,
        MediaProducer(engines.log, record, engines.settings) as producer,
        running(EmbedWorker(engines, record, record.index(), encoder, decoding).run),
    ):
        app = build_app(engines, collections, Pipeline(engines, decoding), pool)
        collections.refresh()
        with TestClient(app) as client:
            eventually(lambda: collections.ready)
            yield Stack(engines, record, client, producer, collections)
        collections.stop()
