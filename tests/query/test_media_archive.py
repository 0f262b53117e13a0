"""Media of points whose records the log has dropped: read from the archive by range, checked before it is parsed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from ulid import ULID

from backends.catalog.archive import archive_chain
from backends.memory_store import open_memory_store
from backends.payloads import PayloadReader
from contracts.archive_manifest import ArchiveCheckpoint, ArchiveManifest, TarEntry
from contracts.archive_tar import TarWriter
from contracts.log import LogRecord, TopicSpec
from contracts.media_record import RecordLimits
from contracts.object_keys import CollectionKeys
from contracts.payload_ref import PayloadRef, encode_payload_ref
from tests.query.served import Served, serve
from tests.query.writer import Writer, engines_for_test, writer


@pytest.fixture
def served() -> Iterator[Served]:
    yield from serve(writer(engines_for_test()))


def test_media_comes_from_the_archive_once_the_log_no_longer_holds_it(served: Served) -> None:
    data, made = b"\xff\xd8\xff\xe0" + b"a picture" * 50, served.made
    producer = made.engines.log.producer()
    for key in (b"kept", b"gone"):
        producer.send(made.record.source_topic, partition=0, key=key, value=data, headers=[("content-type", b"image/jpeg")]).result()
        made.put(key.decode(), media_type="image/jpeg", media_sha256=hashlib.sha256(data).digest())
    served.settle()
    kept = made.engines.log.read_at(made.record.source_topic, 0, 0)
    assert kept is not None
    archive(made, [kept])
    made.engines.log.truncate(made.record.source_topic, {0: 2})
    assert served.client.get("/collections/things/points/kept/media").content == data
    assert served.client.get("/collections/things/points/gone/media").json()["status"]["error"]["code"] == "media_not_found"


def test_a_payload_that_is_gone_is_shown_as_it_was_archived(served: Served) -> None:
    made, picture, text = served.made, b"\xff\xd8\xff\xe0" + b"a picture" * 50, b"<script>only words</script>"
    keys = CollectionKeys(made.record.name, made.record.incarnation)
    payloads = {"picture": (picture, "image/jpeg"), "text": (text, "text/plain"), "late": (picture + b"!", "image/jpeg")}
    producer, records = made.engines.log.producer(), []
    for name, (data, content_type) in payloads.items():
        digest = hashlib.sha256(data)
        ref = PayloadRef(keys.claim(digest.hexdigest()), len(data), digest.digest())
        if name != "late":  # its payload was gone before the archiver came
            made.engines.store.put_if_absent(ref.key, data)
        headers = [("content-type", content_type.encode()), ("hw_payload_ref", encode_payload_ref(ref))]
        producer.send(made.record.source_topic, partition=0, key=name.encode(), value=b"", headers=headers).result()
        records.append(made.engines.log.read_at(made.record.source_topic, 0, len(records)))
        made.put(name, media_type=content_type, media_sha256=digest.digest())
    served.settle()
    archive(made, records)
    for info in list(made.engines.store.list(keys.prefix + "claim/")):
        made.engines.store.delete(info.key)
    shown = {name: served.client.get(f"/collections/things/points/{name}/media") for name in payloads}
    assert (shown["picture"].content, shown["picture"].headers["content-type"]) == (picture, "image/jpeg")
    assert (shown["text"].content, shown["text"].headers["content-type"]) == (text, "text/plain; charset=utf-8")
    problem = shown["late"].json()["status"]["error"]
    assert problem["code"] == "media_not_found" and "the payload that the record names" in problem["message"]


def test_an_object_of_a_notified_bucket_that_was_replaced_is_shown_as_it_was_archived_where_that_is_what_was_indexed() -> None:
    engines, bucket, old = engines_for_test(), f"bucket-{ULID()}", b"\xff\xd8\xff\xe0" + b"old" * 50
    engines.log.create_topic(TopicSpec("drops", 1, -1))
    made, objects = writer(engines, source_topic="drops", start="earliest", notifications=True), open_memory_store(bucket)
    objects.put_if_absent("cat.jpg", old)
    found = objects.get("cat.jpg")
    assert found is not None
    stored = {"key": "cat.jpg", "size": len(old), "eTag": found.etag}
    entry = {"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": stored}}
    records = []
    for item_id, indexed in (("cat", old), ("other", b"what was indexed is not what was archived")):
        engines.log.producer().send("drops", partition=0, value=json.dumps({"Records": [entry]}).encode()).result()
        records.append(engines.log.read_at("drops", 0, len(records)))
        made.put(item_id, media_type="image/jpeg", media_sha256=hashlib.sha256(indexed).digest())
    archive(made, records)
    objects.compare_and_swap("cat.jpg", b"\xff\xd8\xff\xe0" + b"new" * 50, found.etag)
    with contextmanager(serve)(made) as served:
        served.settle()
        assert served.client.get("/collections/things/points/cat/media").content == old
        assert served.client.get("/collections/things/points/other/media").json()["status"]["error"]["code"] == "media_not_found"


def archive(made: Writer, records: Sequence[LogRecord | None]) -> None:
    """Commit an archive of these records, the plain way."""
    writer = TarWriter(made.record, RecordLimits(), PayloadReader(made.engines.store, RecordLimits()).fill)
    for record in records:
        assert record is not None
        writer.add(record)
    tar, chain = writer.finish(), archive_chain(made.engines.store, made.record, 0)
    key = chain.keys.tar("b", 1, str(ULID()))
    made.engines.store.put_if_absent(key, tar.data)
    entry = TarEntry(
        start_offset=0, next_offset=len(records), key=key, size_bytes=len(tar.data), sha256=hashlib.sha256(tar.data).hexdigest(),
        records=tar.records, index_start=tar.index_start, index_bytes=tar.index_bytes, index_sha256=tar.index_sha256,
    )  # fmt: skip
    chain.create(
        ArchiveManifest(
            version=1, previous=None, commit_id=str(ULID()), writer="test", committed_at="2026-01-01T00:00:00Z", incarnation=made.record.incarnation,
            partition=0, cluster_id="c", media_topic_id="m", origin_offset=0, tars=(entry,),
            checkpoint=ArchiveCheckpoint(media_offset=entry.next_offset),
        )
    )  # fmt: skip
