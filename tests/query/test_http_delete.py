"""Deletes over HTTP: by filter and by id, through the media topic, with what they promise about consistency."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from embedding.decode_pool import DecodePool
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from query import deletes
from query.discovery import Collections
from query.http_app import build_app
from query.pipeline import Pipeline
from tests.encoders import ColourEncoder, colour_fields
from tests.indexer.conftest import eventually, running
from tests.indexer.stored import read_partition
from tests.query.writer import engines_for_test


@contextmanager
def site(collection: CollectionRecord, engines: Engines) -> Iterator[TestClient]:
    """Embed worker, builder and query service in this process."""
    collections = Collections(engines)
    index = collection.index()
    with (
        running(EmbedWorker(engines, collection, index, ColourEncoder()).run, BuildWorker(engines, collection, index).run),
        ThreadPoolExecutor(2) as pool,
        DecodePool(engines.settings) as decoding,
    ):
        collections.start()
        with TestClient(build_app(engines, collections, Pipeline(engines, decoding), pool)) as client:
            eventually(lambda: collections.ready and bool(collections.views()))
            yield client
    collections.stop()


@pytest.fixture
def engines() -> Engines:
    return engines_for_test(query_deletes=True, seal_seconds=0.2, embed_watchdog_seconds=0.2)


def make(engines: Engines, **more: Any) -> CollectionRecord:
    return create_collection(engines, CollectionRequest("things", colour_fields(), 2, attributes={"kind": "keyword"}, **more))


def put(engines: Engines, collection: CollectionRecord, item_id: str, kind: str, partition: int | None = None, **headers: str) -> int:
    producer = engines.log.producer()
    named = [("content-type", b"text/plain"), ("hw_attributes", b'{"kind":"%s"}' % kind.encode()), *((n, v.encode()) for n, v in headers.items())]
    at = hash(item_id) % 2 if partition is None else partition
    sent = producer.send(collection.source_topic, partition=at, key=item_id.encode(), value=f"text of {item_id}".encode(), headers=named)
    producer.flush(5)
    producer.close()
    return sent.result(5).offset


def count(client: TestClient, kind: str | None = None, **consistency: Any) -> int:
    body: dict[str, Any] = {} if kind is None else {"filter": of_kind(kind)}
    answer = client.post("/collections/things/points/count", json=body | ({"consistency": consistency} if consistency else {}))
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["result"]["count"]
    return found


def of_kind(kind: str) -> dict[str, Any]:
    return {"must": [{"key": "kind", "match": {"value": kind}}]}


def delete(client: TestClient, body: Any, status: int = 200, wait: bool = True, **more: Any) -> Any:
    answer = client.post(f"/collections/things/points/delete?wait={'true' if wait else 'false'}", json=body, **more)
    assert answer.status_code == status, answer.text
    return answer.json()["result"] if status == 200 else answer.json()["status"]["error"]


def test_a_filter_deletes_exactly_what_passes_from_tail_and_segments_and_wait_means_gone_here(engines: Engines) -> None:
    collection = make(engines)
    with site(collection, engines) as client:
        for number in range(20):
            put(engines, collection, f"i{number}", "old" if number % 2 else "new", number % 2)
        eventually(lambda: count(client) == 20)
        eventually(lambda: read_partition(engines, collection, 0).live_rows == 10)  # half in segments
        put(engines, collection, "late", "old", 0)
        eventually(lambda: count(client) == 21)
        result = delete(client, {"filter": of_kind("old")})
        assert (result["status"], result["deletes"], result["remaining"]) == ("completed", 11, 0)
        assert count(client, "old") == 0 and count(client) == 10
        assert count(client, min_offsets=result["next_offsets"]) == 10, "another node says so too once it has these offsets"
        assert delete(client, {"filter": of_kind("old")})["deletes"] == 0
        heads = {p: b.next_offset for p, b in engines.log.bounds(collection.source_topic).items()}
        eventually(lambda: all(read_partition(engines, collection, p).manifest.checkpoint.media_offset == h for p, h in heads.items()))
    stored = [read_partition(engines, collection, partition) for partition in (0, 1)]
    assert sum(one.live_rows for one in stored) == 10 and all(one.is_tiled() for one in stored)


def test_what_comes_after_the_delete_stays_and_what_the_snapshot_did_not_show_is_not_deleted(engines: Engines) -> None:
    collection = make(engines)
    with site(collection, engines) as client:
        for item_id in ("a", "b"):
            put(engines, collection, item_id, "old", 0)
        eventually(lambda: count(client) == 2)
        result = delete(client, {"filter": of_kind("old")}, wait=False)
        assert result["status"] == "acknowledged" and result["deletes"] == 2
        put(engines, collection, "a", "old", 0)
        put(engines, collection, "c", "old", 0)

        def ids() -> set[str]:
            return {point["id"] for point in client.post("/collections/things/points/scroll", json={}).json()["result"]["points"]}

        eventually(lambda: ids() == {"a", "c"})  # "a" and "b" were two as well
        assert count(client, "old") == 2


@pytest.mark.parametrize("id_from", ["key", "header:sku"])
def test_ids_are_deleted_where_they_lie_wherever_ids_come_from(engines: Engines, id_from: str) -> None:
    collection = make(engines, id_from=id_from)
    with site(collection, engines) as client:
        for number in range(4):
            put(engines, collection, f"i{number}", "x", number % 2, sku=f"i{number}")
        eventually(lambda: count(client) == 4)
        assert delete(client, {"points": ["i0", "i3", "nothing"]})["deletes"] == 2 + 2  # the unknown one may lie in either partition
        assert count(client) == 2


def test_a_delete_of_very_many_is_done_in_several_requests(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletes, "MAX_DELETES", 3)
    collection = make(engines)
    with site(collection, engines) as client:
        for number in range(7):
            put(engines, collection, f"i{number}", "x", number % 2)
        eventually(lambda: count(client) == 7)
        told = [delete(client, {"filter": of_kind("x")}) for _ in range(3)]
        assert [(one["deletes"], one["remaining"]) for one in told] == [(3, 4), (3, 1), (1, 0)] and count(client) == 0


def test_a_service_that_may_not_delete_does_not_and_web_pages_of_others_cannot_ask() -> None:
    closed = engines_for_test()
    collection = make(closed)
    with site(collection, closed) as client:
        assert delete(client, {"points": ["a"]}, 403)["code"] == "deletes_off"
    engines = engines_for_test(query_deletes=True)
    collection = make(engines)
    with site(collection, engines) as client:
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            answer = client.post("/collections/things/points/delete", content=b'{"points":["a"]}', headers={"content-type": content_type})
            assert answer.status_code == 400 and "application/json" in answer.json()["status"]["error"]["message"], content_type
        for body in (
            {},
            {"points": ["a"], "filter": of_kind("x")},
            {"filter": {}},
            {"points": [""]},
            {"filter": {"must": []}},
            {"filter": {"must": [{"must_not": []}]}},
        ):
            delete(client, body, 400)
        assert delete(client, {"filter": {}}, 400)["code"] == "invalid_filter"
    assert all(bounds.next_offset == 0 for bounds in engines.log.bounds(collection.source_topic).values()), "nothing was sent"


def test_a_log_that_does_not_answer_is_told(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    from contracts.errors import UnavailableError

    collection = make(engines)
    with site(collection, engines) as client:
        put(engines, collection, "a", "x", 0)
        eventually(lambda: count(client) == 1)

        def refuse(*_: Any) -> Any:
            raise UnavailableError("no broker")

        monkeypatch.setattr(deletes, "_send", refuse)
        assert delete(client, {"filter": of_kind("x")}, 503)["code"] == "unavailable"
        assert threading.active_count() > 0 and count(client) == 1
