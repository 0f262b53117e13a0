"""Media of points whose records the log has dropped: read from the archive by range, checked before it is parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from ulid import ULID

from backends.catalog.archive import archive_chain
from contracts.archive_manifest import ArchiveCheckpoint, ArchiveManifest, TarEntry
from contracts.archive_tar import TarWriter
from contracts.log import LogRecord
from contracts.media_record import RecordLimits
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


def archive(made: Writer, records: list[LogRecord]) -> None:
    """Commit an archive of these records, the plain way."""
    writer = TarWriter(made.record, RecordLimits())
    for record in records:
        writer.add(record)
    tar, chain = writer.finish(), archive_chain(made.engines.store, made.record, 0)
    key = chain.keys.tar("b", 1, str(ULID()))
    made.engines.store.put_if_absent(key, tar.data)
    entry = TarEntry(
        start_offset=0, next_offset=records[-1].offset + 1, key=key, size_bytes=len(tar.data), sha256=hashlib.sha256(tar.data).hexdigest(),
        records=tar.records, index_start=tar.index_start, index_bytes=tar.index_bytes, index_sha256=tar.index_sha256,
    )  # fmt: skip
    chain.create(
        ArchiveManifest(
            version=1, previous=None, commit_id=str(ULID()), writer="test", committed_at="2026-01-01T00:00:00Z", incarnation=made.record.incarnation,
            partition=0, cluster_id="c", media_topic_id="m", origin_offset=0, tars=(entry,),
            checkpoint=ArchiveCheckpoint(media_offset=entry.next_offset),
        )
    )  # fmt: skip
