"""Collections that our own roles made, to be audited as they are and with planted faults."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ulid import ULID

from backends.catalog.archive import ArchiveChain, archive_chain
from backends.catalog.manifests import ManifestChain
from backends.catalog.objects import download, upload
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.manifest import Manifest, ObjectEntry, SegmentEntry
from contracts.media_record import ARROW_TYPE
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from indexer.archive_worker import ArchiveWorker
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from indexer.verify.audit import Audit, AuditReport
from indexer.verify.findings import Finding
from tests.indexer.archived import head as archive_head
from tests.indexer.conftest import delete, eventually, make_collection, produce, running

DAYS = 86_400


def opened(log: str, folder: Path, **more: object) -> Engines:
    settings = load_settings(
        log_url=log, store_url=f"file:///{folder}", cache_dir=folder, seal_seconds=0.3, embed_watchdog_seconds=0.5, archive_seconds=0.3, **more
    )
    return Engines(settings, open_log(settings), open_store(settings))


def all_roles(engines: Engines, collection: CollectionRecord) -> list[Callable[[threading.Event], None]]:
    index = collection.index()
    return [EmbedWorker(engines, collection, index, None).run, BuildWorker(engines, collection, index).run, ArchiveWorker(engines, collection).run]


def send_bad(engines: Engines, collection: CollectionRecord, partition: int, key: str) -> int:
    """A record that is rejected as a whole; its offset."""
    producer = engines.log.producer()
    headers = [("content-type", ARROW_TYPE.encode())]
    future = producer.send(collection.source_topic, partition=partition, key=key.encode(), value=b"not an Arrow stream", headers=headers)
    producer.flush(10)
    producer.close()
    return future.result(10).offset


def settle(engines: Engines, collection: CollectionRecord) -> None:
    """Wait until everything that was produced is committed and archived."""
    bounds = engines.log.bounds(collection.source_topic)

    def is_done() -> bool:
        return all(
            head(engines, collection, p).checkpoint.media_offset >= bound.next_offset
            and archive_chain(engines.store, collection, p).head() is not None
            and archive_head(engines, collection, p).checkpoint.media_offset >= bound.next_offset
            for p, bound in bounds.items()
        )

    eventually(is_done, seconds=30, what="committed and archived")


def make_feed(engines: Engines, name: str = "feed") -> CollectionRecord:
    """Two partitions with three segments each: rows, updates, a delete, a missed delete, two rejects; archived in several tars."""
    collection = make_collection(engines, name, partitions=2)
    with running(*all_roles(engines, collection)):
        for partition in (0, 1):
            produce(engines, collection, partition, [f"{partition}-{n}" for n in range(40)])  # offset 0
            send_bad(engines, collection, partition, f"bad-{partition}")  # 1
        settle(engines, collection)
        for partition in (0, 1):
            produce(engines, collection, partition, [f"{partition}-{n}" for n in range(5)], ["new"] * 5)  # 2
            delete(engines, collection, partition, f"{partition}-7")  # 3
            for n in range(6):
                produce(engines, collection, partition, [f"{partition}-x{n}"])  # 4 to 9
        settle(engines, collection)
        for partition in (0, 1):
            produce(engines, collection, partition, ["twice-" + str(partition), "twice-" + str(partition)])  # 10
            delete(engines, collection, partition, "nobody")  # 11
            send_bad(engines, collection, partition, f"worse-{partition}")  # 12
            produce(engines, collection, partition, [f"{partition}-z{n}" for n in range(3)])  # 13
        settle(engines, collection)
    return collection


def audit(engines: Engines, collection: CollectionRecord, folder: Path, with_log: bool = True, later_seconds: float = 0.0) -> AuditReport:
    now = engines.clock.now_seconds() + later_seconds
    return Audit(engines.store, engines.log if with_log else None, collection, folder, now).run()


def told(report: AuditReport, *levels: str) -> list[Finding]:
    """Findings of these levels; faults and warnings where none are named."""
    return [finding for finding in report.findings.kept if finding.code.level in (levels or ("fault", "warning"))]


def kinds(report: AuditReport) -> set[str]:
    return {finding.kind for finding in told(report)}


# ---- looking ---------------------------------------------------------------------------------------------------------


def chain(engines: Engines, collection: CollectionRecord, partition: int) -> ManifestChain:
    keys = CollectionKeys(collection.name, collection.incarnation).index(collection.active_index)
    return ManifestChain(engines.store, keys.partition(partition))


def tars(engines: Engines, collection: CollectionRecord, partition: int) -> ArchiveChain:
    return archive_chain(engines.store, collection, partition)


def head(engines: Engines, collection: CollectionRecord, partition: int) -> Manifest:
    read = chain(engines, collection, partition).head()
    assert read is not None
    return read.manifest


# ---- planting --------------------------------------------------------------------------------------------------------


def overwrite(engines: Engines, key: str, data: bytes) -> None:
    """Other bytes under a key, as a disk, a hand or a restored backup would leave them."""
    engines.store.delete(key)
    engines.store.put_if_absent(key, data)


def flip(engines: Engines, key: str, at: int | None = None) -> None:
    """One bit of an object is another one."""
    found = engines.store.get(key)
    assert found is not None
    place = len(found.data) // 2 if at is None else at
    overwrite(engines, key, found.data[:place] + bytes([found.data[place] ^ 1]) + found.data[place + 1 :])


def recommit(engines: Engines, collection: CollectionRecord, partition: int, **changes: object) -> Manifest:
    """A well-chained manifest that says something false, as a writer with a bug would commit it."""
    where = chain(engines, collection, partition)
    read = where.head()
    assert read is not None
    made = where.create(read.next(commit_id=str(ULID()), writer="fault", **changes))
    assert made is not None
    return made.manifest


def stored_again(engines: Engines, entry: ObjectEntry, data: bytes) -> ObjectEntry:
    """Other bytes under a new key beside an object's, with their own right hashes."""
    folder, _, name = entry.key.rpartition("/")
    return upload(engines.store, f"{folder}/{ULID()}.{name.partition('.')[2]}", data)


def with_part(segment: SegmentEntry, name: str, entry: ObjectEntry, **changes: object) -> SegmentEntry:
    return segment.model_copy(update={"parts": {**segment.parts, name: entry}, **changes})


def bytes_of(engines: Engines, entry: ObjectEntry) -> bytes:
    return download(engines.store, entry)


def only(report: AuditReport) -> Finding:
    """The one fault or warning there is."""
    found = told(report)
    assert len(found) == 1, [replace(one) for one in found]
    return found[0]
