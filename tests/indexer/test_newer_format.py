"""Objects and batches of format 2, planted beside ours: refused with the advice to upgrade; what does not need them goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from backends.catalog.collections import CollectionCatalog
from backends.catalog.manifests import ManifestChain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError
from contracts.hashed_json import with_hash, without_hash
from contracts.object_keys import CollectionKeys
from contracts.segment import read_rows_part, write_rows_part
from indexer import embed_worker, role
from indexer.embed_role import run_embed
from indexer.index_role import run_index
from query.discovery import Collections
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition

ADVICE = "upgrade headwater on this machine"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "DISCOVERY_SECONDS", 0.2)
    monkeypatch.setattr(embed_worker, "RETRY_SECONDS", 0.1)


def work(engines: Engines) -> Sequence[Any]:
    return [lambda stop: run_embed(engines, None, stop), lambda stop: run_index(engines, None, stop)]


def index(engines: Engines, collection: CollectionRecord, partition: int, ids: list[str]) -> None:
    with running(*work(engines)):
        for item_id in ids:
            produce(engines, collection, partition, [item_id])
        head = engines.log.bounds(collection.source_topic)[partition].next_offset
        eventually(lambda: read_partition(engines, collection, partition).manifest.checkpoint.media_offset == head)


def stopped(engines: Engines, stage: str) -> float:
    return engines.metrics.registry.get_sample_value("headwater_records_total", {"collection": "feed", "stage": stage, "outcome": "stopped"}) or 0.0


def newer(data: bytes, **changes: Any) -> bytes:
    return with_hash(json.dumps({**json.loads(without_hash(data, "here")), "format": 2, "new_field": {"of": "version 2"}, **changes}).encode())


def test_a_manifest_of_format_2_stops_its_partition_for_writers_and_the_other_goes_on(
    engines: Engines, collection: CollectionRecord, caplog: pytest.LogCaptureFixture
) -> None:
    index(engines, collection, 0, ["a"])
    chain = ManifestChain(engines.store, CollectionKeys("feed", collection.incarnation).index("main").partition(0))
    head = chain.head()
    assert head is not None
    planted = chain.keys.manifest(head.manifest.version + 1)
    engines.store.put_if_absent(planted, newer(head.manifest.to_bytes(), version=head.manifest.version + 1))
    with pytest.raises(CorruptError) as caught:
        chain.head()
    assert caught.value.error_code == "unknown_format" and caught.value.hint == ADVICE and planted in caught.value.message
    with running(*work(engines)):
        produce(engines, collection, 1, ["b"])
        eventually(lambda: sorted(read_partition(engines, collection, 1).live) == ["b"])
        eventually(lambda: stopped(engines, "index") == 1 and stopped(engines, "embed") == 1)
    assert ADVICE in caplog.text
    assert engines.store.get(chain.keys.manifest(head.manifest.version + 2)) is None, "nothing was written behind it"


def test_a_batch_of_format_2_stops_its_partition_under_running_workers_and_the_other_goes_on(
    engines: Engines, collection: CollectionRecord, caplog: pytest.LogCaptureFixture
) -> None:
    with running(*work(engines)):
        produce(engines, collection, 0, ["a"])
        eventually(lambda: sorted(read_partition(engines, collection, 0).live) == ["a"])
        producer = engines.log.producer()
        headers = [("hw_type", b"batch"), ("hw_format", b"2"), ("hw_incarnation", collection.incarnation.encode())]
        producer.send(collection.index().vectors_topic, partition=0, value=b"of version 2", headers=headers)
        producer.close()
        eventually(lambda: stopped(engines, "index") == 1 and stopped(engines, "embed") == 1)
        produce(engines, collection, 0, ["after"])
        produce(engines, collection, 1, ["b"])
        eventually(lambda: sorted(read_partition(engines, collection, 1).live) == ["b"])
    assert sorted(read_partition(engines, collection, 0).live) == ["a"] and ADVICE in caplog.text


def test_a_collection_record_of_format_2_is_refused_and_what_runs_goes_on(
    engines: Engines, collection: CollectionRecord, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_collection(engines, "other", partitions=1)
    collections = Collections(engines)
    collections.refresh()
    with running(*work(engines)):
        produce(engines, collection, 0, ["a"])
        eventually(lambda: sorted(read_partition(engines, collection, 0).live) == ["a"])
        keys = CollectionKeys("other", other.incarnation)
        engines.store.put_if_absent(keys.version(2), newer(other.to_bytes(), version=2))
        with pytest.raises(CorruptError) as caught:
            CollectionCatalog(engines.store).get("other")
        assert caught.value.error_code == "unknown_format" and caught.value.hint == ADVICE and keys.version(2) in caught.value.message
        eventually(lambda: "what runs goes on" in caplog.text)
        produce(engines, collection, 0, ["b"])
        eventually(lambda: sorted(read_partition(engines, collection, 0).live) == ["a", "b"])
    with pytest.raises(CorruptError):
        collections.refresh()
    assert {view.record.name for view in collections.views()} == {"feed", "other"}, "what is served stays"
    collections.stop()
    with pytest.raises(CorruptError, match="format 2"):  # at its start nothing runs yet: the process ends with exit code 6
        run_embed(engines, None, threading.Event())


def test_a_segment_of_format_2_is_refused_before_its_rows_are_read(
    engines: Engines, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(engines, collection, 0, ["a"])
    part = read_partition(engines, collection, 0).manifest.segments[0].parts["rows"]
    found = engines.store.get(part.key)
    assert found is not None
    rows = read_rows_part(found.data, "there")
    with monkeypatch.context() as future:
        future.setattr("contracts.footer_file.FORMAT_VERSION", 2)
        data = write_rows_part(rows.batch, {"partition": 0, "start_offset": 0, "next_offset": 1, "schema_version": 1})
    with pytest.raises(CorruptError) as caught:
        read_rows_part(data, "there")
    assert caught.value.error_code == "unknown_format" and caught.value.hint == ADVICE
