"""Reads an archive back from stored bytes alone, the plain way, and produces media to fill one."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

from backends.catalog.archive import archive_chain, read_tar, read_tar_index
from contracts.archive_manifest import ArchiveManifest
from contracts.archive_record import from_tar
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.log import LogRecord
from contracts.object_keys import CollectionKeys

JPEG = b"\xff\xd8\xff\xe0"


def media(name: str, size_bytes: int = 500) -> bytes:
    """Bytes that begin like a JPEG and hold `name` all over, so that a search for them finds every trace."""
    body = f"<{name}>".encode()
    return JPEG + (body * (size_bytes // len(body) + 1))[:size_bytes]


def send(
    engines: Engines, collection: CollectionRecord, partition: int, ids: Sequence[str | None], size_bytes: int = 500, **headers: str
) -> list[int]:
    """Append plain records; their offsets."""
    producer = engines.log.producer()
    named = [("content-type", b"image/jpeg"), *((name, text.encode()) for name, text in headers.items())]
    futures = [
        producer.send(
            collection.source_topic,
            partition=partition,
            key=None if item_id is None else item_id.encode(),
            value=media(item_id or "anonymous", size_bytes),
            headers=[*named, ("hw_caption", f"caption of {item_id}".encode())],
        )
        for item_id in ids
    ]
    producer.flush(10)
    producer.close()
    return [future.result(10).offset for future in futures]


def logged(engines: Engines, collection: CollectionRecord, partition: int) -> dict[int, LogRecord]:
    """What the media topic holds of a partition."""
    bounds = engines.log.bounds(collection.source_topic)[partition]
    found = (engines.log.read_at(collection.source_topic, partition, offset) for offset in range(bounds.start_offset, bounds.next_offset))
    return {record.offset: record for record in found if record is not None}


def head(engines: Engines, collection: CollectionRecord, partition: int) -> ArchiveManifest:
    read = archive_chain(engines.store, collection, partition).head()
    assert read is not None
    return read.manifest


def archived(engines: Engines, collection: CollectionRecord, partition: int) -> dict[int, LogRecord]:
    """Every record of a partition's tars, read whole; asserts that tars and lost intervals tile without overlap and hold what they say."""
    manifest = head(engines, collection, partition)
    out: dict[int, LogRecord] = {}
    spoken_for = sorted((run.start_offset, run.next_offset) for run in (*manifest.tars, *manifest.lost))
    at = manifest.origin_offset
    for start, end in spoken_for:
        assert start == at, f"offsets {at} to {start} belong to nothing"
        at = end
    for tar in manifest.tars:
        data = read_tar(engines.store, tar)
        names = tarfile.open(fileobj=io.BytesIO(data)).getnames()
        index = read_tar_index(engines.store, tar)
        assert {int(name.partition(".")[0]) for name in names if not name.startswith("__")} == {r.offset for r in index.rows() if r.start is not None}
        for row in index.rows():
            if row.start is None:
                continue
            assert tar.start_offset <= row.offset < tar.next_offset and row.offset not in out
            record = from_tar(data[row.start : row.start + row.size_bytes], collection.source_topic, tar.key)
            assert record is not None
            out[row.offset] = record
    return out


def tar_keys(engines: Engines, collection: CollectionRecord) -> set[str]:
    """Keys of all tars in the store, whether a manifest names them or not."""
    prefix = CollectionKeys(collection.name, collection.incarnation).prefix + "archive/"
    return {info.key for info in engines.store.list(prefix) if info.key.endswith(".tar")}


def all_bytes(engines: Engines, prefix: str) -> bytes:
    """All objects under a prefix, one after the other."""
    found = [engines.store.get(info.key) for info in engines.store.list(prefix)]
    return b"".join(one.data for one in found if one is not None)
