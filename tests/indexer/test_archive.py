"""The archiver: every record once, whatever happens to it, to the log, or to another archiver."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ulid import ULID

from backends.catalog.admin import delete_collection
from backends.catalog.archive import ArchiveReader, archive_chain
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.archive_manifest import ArchiveCheckpoint, ArchiveManifest
from contracts.clock import ManualClock
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, FencedError, UnavailableError
from contracts.log import LogRecord, TopicSpec
from contracts.object_keys import CollectionKeys
from contracts.payload_ref import PayloadRef, encode_payload_ref
from contracts.settings import load_settings
from contracts.store import PutOutcome
from headwater.wiring import open_engines
from indexer.archive_role import run_archive
from indexer.archive_worker import ArchiveWorker
from indexer.partition_archiver import PartitionArchiver, ensure_archive
from indexer.ulids import UlidSource
from tests.indexer.archived import archived, head, logged, media, send, tar_keys
from tests.indexer.conftest import delete, eventually, make_collection, produce, running

ROOT = Path(__file__).parents[2]


def tuned(engines: Engines, **changes: object) -> Engines:
    """The same log and store under other settings."""
    settings = engines.settings.model_copy(update={"archive_seconds": 0.2, "archive_bytes": 4000, **changes})
    return Engines(settings, engines.log, engines.store, engines.metrics, engines.clock)


def archiver(engines: Engines, collection: CollectionRecord, partition: int = 0) -> PartitionArchiver:
    return PartitionArchiver(engines, collection, partition, f"archiver-{ULID()}", UlidSource())


def feed(mine: PartitionArchiver, engines: Engines, collection: CollectionRecord) -> None:
    for record in logged(engines, collection, mine.partition).values():
        mine.feed(record)


@contextmanager
def archiving(engines: Engines, collection: CollectionRecord) -> Iterator[ArchiveWorker]:
    worker = ArchiveWorker(engines, collection)
    with running(worker.run):
        yield worker


def caught_up(engines: Engines, collection: CollectionRecord) -> bool:
    bounds = engines.log.bounds(collection.source_topic)
    heads = {p: archive_chain(engines.store, collection, p).head() for p in bounds}
    return all(read is not None and read.manifest.checkpoint.media_offset == bounds[p].next_offset for p, read in heads.items())


def test_every_record_is_archived_once_whatever_its_verdict_and_read_back_when_the_log_is_gone(
    engines: Engines, collection: CollectionRecord
) -> None:
    quick = tuned(engines)
    for partition in (0, 1):
        send(engines, collection, partition, [f"p{partition}-{n}" for n in range(20)], hw_attributes='{"colour":"red"}')
        produce(engines, collection, partition, ["v-1", "v-2"], ["one", "two"])
        delete(engines, collection, partition, "p0-3")
        send(engines, collection, partition, [None])
        send(engines, collection, partition, ["rejected"], hw_attributes="{")
    wanted = {p: logged(engines, collection, p) for p in (0, 1)}
    with archiving(quick, collection):
        eventually(lambda: caught_up(engines, collection), what="archived")
    reader = ArchiveReader(engines.store)
    for partition in (0, 1):
        engines.log.truncate(collection.source_topic, {partition: 24})
        assert archived(engines, collection, partition) == wanted[partition] and len(wanted[partition]) == 24
        assert [reader.read(collection, partition, offset) for offset in range(25)] == [*wanted[partition].values(), None]
        assert len(head(engines, collection, partition).tars) > 2
    assert max(tar.index_start for tar in head(engines, collection, 0).tars) <= 4000 + 512


def test_a_restarted_archiver_goes_on_exactly_where_the_manifest_stands(engines: Engines, collection: CollectionRecord) -> None:
    quick = tuned(engines)
    for turn in range(3):
        send(engines, collection, 0, [f"{turn}-{n}" for n in range(7)])
        with archiving(quick, collection):
            eventually(lambda: caught_up(engines, collection), what=f"turn {turn}")
    assert archived(engines, collection, 0) == logged(engines, collection, 0)
    assert head(engines, collection, 0).epochs.archiver == 3


def test_of_two_archivers_the_older_is_fenced_and_nothing_is_archived_twice(engines: Engines, collection: CollectionRecord) -> None:
    quick = tuned(engines)
    send(engines, collection, 0, [f"a-{n}" for n in range(5)])
    old, new = archiver(quick, collection), archiver(quick, collection)
    old.start()
    feed(old, engines, collection)
    old.close()
    new.start()
    with pytest.raises(FencedError):
        old.commit()
    feed(new, engines, collection)
    new.close()
    assert new.commit()
    assert archived(engines, collection, 0) == logged(engines, collection, 0)
    with pytest.raises(FencedError):
        old.commit()
    third = archiver(quick, collection)
    third.start()  # sweeps what the fenced one had uploaded
    assert tar_keys(engines, collection) == {tar.key for tar in head(engines, collection, 0).tars}


class LosesAnswers(MemoryStore):
    """Stores, and does not say so, while `silent`."""

    silent = 0
    stored = True

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if self.silent and "/archive/" in key:
            self.silent -= 1
            if self.stored:
                super().put_if_absent(key, data)
            return PutOutcome.UNKNOWN
        return super().put_if_absent(key, data)


@pytest.mark.parametrize("stored", [True, False])
def test_a_commit_whose_answer_was_lost_is_found_again_and_not_made_twice(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("manifests", "objects"):
        monkeypatch.setattr(f"backends.catalog.{module}.time.sleep", lambda seconds: None)
    store = LosesAnswers()
    settings = load_settings(log_url="memory://", store_url="memory://", archive_bytes=2000)
    engines = Engines(settings, MemoryLog(), store)
    collection = make_collection(engines, "feed", partitions=1)
    send(engines, collection, 0, [f"a-{n}" for n in range(10)])
    mine = archiver(engines, collection)
    mine.start()
    feed(mine, engines, collection)
    mine.close()
    store.stored, store.silent = stored, 30
    tries = 0
    while mine.closed:
        try:
            mine.commit()
        except UnavailableError:
            tries += 1
            assert tries < 20
    assert archived(engines, collection, 0) == logged(engines, collection, 0)
    assert tar_keys(engines, collection) == {tar.key for tar in head(engines, collection, 0).tars}


def test_what_retention_took_before_the_archiver_came_is_recorded_as_lost_and_the_rest_is_archived(
    engines: Engines, collection: CollectionRecord, caplog: pytest.LogCaptureFixture
) -> None:
    send(engines, collection, 0, [f"a-{n}" for n in range(10)])
    engines.log.truncate(collection.source_topic, {0: 4})
    with archiving(tuned(engines), collection):
        eventually(lambda: caught_up(engines, collection), what="archived")
    manifest = head(engines, collection, 0)
    assert [(run.start_offset, run.next_offset) for run in manifest.lost] == [(0, 4)]
    assert manifest.is_lost(3) and not manifest.is_lost(4)
    assert set(archived(engines, collection, 0)) == set(range(4, 10))
    assert "offsets 0 to 4 are recorded as lost" in caplog.text
    assert engines.metrics.registry.get_sample_value("headwater_records_total", {"collection": "feed", "stage": "archive", "outcome": "lost"}) == 4
    assert ArchiveReader(engines.store).read(collection, 0, 2) is None


def test_what_retention_takes_under_a_running_archiver_is_lost_only_as_far_as_it_was_not_read(engines: Engines, collection: CollectionRecord) -> None:
    worker, stop = ArchiveWorker(tuned(engines, archive_seconds=3600, archive_bytes=10**6), collection), threading.Event()
    reader = engines.log.group_reader(collection.source_topic, collection.archive_group)

    def turn_until(done: Callable[[], bool]) -> None:
        for _ in range(100):
            worker._turn(reader, stop)
            if done():
                return
        raise AssertionError("not within 100 turns")

    send(engines, collection, 0, [f"a-{n}" for n in range(3)])
    turn_until(lambda: 0 in worker.archivers and worker.archivers[0].next_offset == 3)
    send(engines, collection, 0, ["gone-1", "gone-2"])
    engines.log.truncate(collection.source_topic, {0: 5})
    send(engines, collection, 0, ["kept"])
    turn_until(lambda: 0 in worker.archivers and worker.archivers[0].next_offset == 6)
    worker.archivers[0].close()
    worker.archivers[0].commit()
    reader.close()
    assert [(run.start_offset, run.next_offset) for run in head(engines, collection, 0).lost] == [(3, 5)]
    assert set(archived(engines, collection, 0)) == {0, 1, 2, 5}


def test_offsets_without_records_belong_to_a_tar_as_gaps_and_never_stop_the_archive(engines: Engines, collection: CollectionRecord) -> None:
    clock = ManualClock()
    settings = engines.settings.model_copy(update={"archive_seconds": 60.0})
    timed = Engines(settings, engines.log, engines.store, engines.metrics, clock)
    send(engines, collection, 0, [f"a-{n}" for n in range(30)])
    mine = archiver(timed, collection)
    mine.start()
    records = logged(engines, collection, 0)
    for offset in (2, 3, 9):
        mine.feed(records[offset])
    mine.close()
    mine.commit()
    (tar,) = head(engines, collection, 0).tars
    assert (tar.start_offset, tar.next_offset, tar.records) == (0, 10, 3)
    reader = ArchiveReader(engines.store)
    assert [reader.read(collection, 0, offset) for offset in (1, 2, 5, 9)] == [None, records[2], None, records[9]]
    mine.pass_gap(15)  # the log's end is a gap: after a while the checkpoint moves over it
    mine.close_if_due(is_caught_up=True)
    assert not mine.closed
    clock.advance(61)
    mine.close_if_due(is_caught_up=True)
    mine.commit()
    manifest = head(engines, collection, 0)
    assert manifest.checkpoint == ArchiveCheckpoint(media_offset=15) and manifest.tars == (tar,) and manifest.lost == ()


def test_tars_are_closed_by_bytes_by_age_and_after_a_start_by_the_age_of_the_records(engines: Engines, collection: CollectionRecord) -> None:
    clock = ManualClock(start_seconds=2_000_000_000.0)
    settings = engines.settings.model_copy(update={"archive_seconds": 60.0, "archive_bytes": 3000})
    timed = Engines(settings, engines.log, engines.store, engines.metrics, clock)
    mine = archiver(timed, collection)
    mine.start()
    now_ms = int(clock.now_seconds() * 1000)

    def one(offset: int, timestamp_ms: int, size_bytes: int = 300) -> LogRecord:
        return LogRecord(collection.source_topic, 0, offset, timestamp_ms, b"k", media("x", size_bytes), ())

    mine.feed(one(0, now_ms - 100_000))
    mine.close_if_due(is_caught_up=False)
    assert not mine.closed
    mine.close_if_due(is_caught_up=True)  # the first after a start, and old
    assert len(mine.closed) == 1
    mine.feed(one(1, now_ms - 100_000))
    mine.close_if_due(is_caught_up=True)  # not the first: old times of producers make no tar of every record
    assert len(mine.closed) == 1
    clock.advance(61)
    mine.close_if_due(is_caught_up=False)
    assert len(mine.closed) == 2
    mine.feed(one(2, now_ms))
    mine.feed(one(3, now_ms, 2900))  # does not fit beside the first
    assert len(mine.closed) == 3
    mine.close_if_due(is_caught_up=False)
    assert len(mine.closed) == 4
    with pytest.raises(DataLossError):
        archiver(timed, collection).start() if mine.commit() else None  # four records that this topic never had


def test_open_tars_of_all_partitions_together_stay_below_the_buffer(engines: Engines) -> None:
    collection = make_collection(engines, "wide", partitions=4)
    limited = tuned(engines, archive_seconds=3600, archive_bytes=10**6, archive_buffer_bytes=20_000)
    for partition in range(4):
        send(engines, collection, partition, [f"{partition}-{n}" for n in range(20)], size_bytes=1000)
    with archiving(limited, collection) as worker:
        eventually(lambda: sum(a.next_offset for a in worker.archivers.values()) == 80, what="all read")
        eventually(lambda: not any(a.closed for a in worker.archivers.values()), what="all committed")
        eventually(lambda: sum(a.buffered_bytes for a in worker.archivers.values()) <= 20_000, what="the largest are closed")
    assert sum(head(engines, collection, p).records for p in range(4)) >= 60


def test_an_archive_begins_where_its_collection_begins(engines: Engines, collection: CollectionRecord) -> None:
    send(engines, collection, 0, ["before"])
    late = make_collection(engines, "late", source_topic=collection.source_topic, start="latest")
    send(engines, collection, 0, ["after"])
    with archiving(tuned(engines), late):
        eventually(lambda: caught_up(engines, late), what="archived")
    assert head(engines, late, 0).origin_offset == 1 and set(archived(engines, late, 0)) == {1}
    assert head(engines, late, 0).lost == ()


def test_a_topic_that_was_made_again_stops_the_archiver_before_it_claims(engines: Engines, collection: CollectionRecord) -> None:
    ensure_archive(engines, collection, 0)
    changed = collection.model_copy(update={"source_topic": f"{collection.source_topic}-other"})
    engines.log.create_topic(TopicSpec(changed.source_topic, 2, -1))
    with pytest.raises(DataLossError, match="the archive was begun for"):
        archiver(engines, changed).start()
    assert head(engines, collection, 0).version == 1


def test_a_changed_byte_in_a_tar_is_never_handed_out(engines: Engines, collection: CollectionRecord) -> None:
    send(engines, collection, 0, ["a", "b"])
    with archiving(tuned(engines, archive_bytes=100_000), collection):
        eventually(lambda: caught_up(engines, collection), what="archived")
    (tar,) = head(engines, collection, 0).tars
    found = engines.store.get(tar.key)
    assert found is not None
    for at in (600, tar.index_start + 5):
        damaged = bytearray(found.data)
        damaged[at] ^= 1
        engines.store.compare_and_swap(tar.key, bytes(damaged), engines.store.get(tar.key).etag)  # type: ignore[union-attr]
        with pytest.raises(CorruptError):
            ArchiveReader(engines.store).read(collection, 0, 0)


def test_without_media_the_role_runs_and_keeps_the_records(engines: Engines) -> None:
    collection = make_collection(engines, "elsewhere", archive="off")
    send(engines, collection, 0, ["a"])
    delete(engines, collection, 0, "a")
    with archiving(tuned(engines), collection):
        eventually(lambda: caught_up(engines, collection), what="archived")
    manifest = head(engines, collection, 0)
    assert manifest.records == 2
    reader = ArchiveReader(engines.store)
    assert reader.read(collection, 0, 0) is None
    assert reader.read(collection, 0, 1) == logged(engines, collection, 0)[1]


def claim(engines: Engines, collection: CollectionRecord, data: bytes) -> bytes:
    digest = hashlib.sha256(data).digest()
    key = CollectionKeys(collection.name, collection.incarnation).claim(digest.hex())
    engines.store.put_if_absent(key, data)
    return encode_payload_ref(PayloadRef(key, len(data), digest))


def claim_check(engines: Engines, collection: CollectionRecord, reference: bytes) -> None:
    producer = engines.log.producer()
    headers = [("content-type", b"image/jpeg"), ("hw_payload_ref", reference)]
    producer.send(collection.source_topic, partition=0, key=b"big", value=b"", headers=headers).result(10)
    producer.close()


class IsAway(MemoryStore):
    """Does not answer for payloads while `away`."""

    away = True

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        if self.away and "/claim/" in key:
            raise UnavailableError("the store is away")
        return super().get_range(key, start, length)


def test_a_claim_checks_payload_is_in_its_sample_and_while_the_store_is_away_the_record_waits() -> None:
    settings = load_settings(log_url="memory://", store_url="memory://", archive_seconds=0.2)
    store = IsAway()
    engines = Engines(settings, MemoryLog(), store)
    on, off = make_collection(engines, "on", partitions=1), make_collection(engines, "off", partitions=1, archive="off")
    for collection in (on, off):
        send(engines, collection, 0, ["before"])
        claim_check(engines, collection, claim(engines, collection, media("big")))
        claim_check(engines, collection, claim(engines, collection, media("gone")))
        store.delete(CollectionKeys(collection.name, collection.incarnation).claim(hashlib.sha256(media("gone")).hexdigest()))
        send(engines, collection, 0, ["after"])
    with archiving(engines, on) as worker:
        eventually(lambda: 0 in worker.archivers and worker.archivers[0].next_offset == 1, what="the first record")
        time.sleep(0.5)
        assert worker.archivers[0].next_offset == 1
        store.away = False
        eventually(lambda: caught_up(engines, on), what="archived")
    with archiving(engines, off):
        eventually(lambda: caught_up(engines, off), what="archived")
    assert archived(engines, on, 0) == logged(engines, on, 0)
    tars = {c.name: b"".join(store.get(tar.key).data for tar in head(engines, c, 0).tars) for c in (on, off)}  # type: ignore[union-attr]
    assert tars["on"].count(media("big")) == 1 and media("big") not in tars["off"]
    assert f"{1:020d}.jpg".encode() in tars["on"] and f"{2:020d}.jpg".encode() not in tars["on"]
    assert ArchiveReader(store).read(off, 0, 1) == logged(engines, off, 0)[1], "a claim check is whole without its media"


def test_the_role_follows_collections_as_they_come_and_go(engines: Engines, collection: CollectionRecord) -> None:
    quick = tuned(engines)
    with running(lambda stop: run_archive(quick, None, stop)):
        send(engines, collection, 0, ["a"])
        second = make_collection(engines, "second")
        send(engines, second, 1, ["b"])
        eventually(lambda: caught_up(engines, collection) and caught_up(engines, second), what="both archived")
        delete_collection(engines, "second")
        send(engines, collection, 0, ["c"])
        eventually(lambda: caught_up(engines, collection), what="the other goes on")


@pytest.mark.parametrize("commit", [1, 2])
@pytest.mark.slow
def test_an_archiver_killed_between_a_tars_upload_and_its_commit_loses_nothing_and_archives_nothing_twice(tmp_path: Path, commit: int) -> None:
    settings = {
        "log_url": f"sqlite:///{tmp_path}/log.sqlite",
        "store_url": f"file:///{tmp_path}/store",
        "archive_seconds": "0.3",
        "archive_bytes": "3000",
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **{f"HEADWATER_{name.upper()}": value for name, value in settings.items()}}  # noqa: TID251
    with open_engines(load_settings(**settings)) as engines:
        collection = make_collection(engines, "feed", partitions=1)
        send(engines, collection, 0, [f"a-{n}" for n in range(12)])
        command = [sys.executable, "-m", "tests.indexer.archive_victim", "feed", str(commit)]
        ended = subprocess.run(command, cwd=ROOT, env=environment, timeout=60, check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        named = {tar.key for tar in head(engines, collection, 0).tars}
        assert len(named) == commit - 1 and len(tar_keys(engines, collection)) == commit, "the kill came between upload and commit"
        with archiving(engines, collection):
            eventually(lambda: caught_up(engines, collection), what="the next archiver does the work")
        assert archived(engines, collection, 0) == logged(engines, collection, 0)
        assert tar_keys(engines, collection) == {tar.key for tar in head(engines, collection, 0).tars}, "the left-over tar is swept"


def test_a_manifest_object_is_what_its_bytes_say(engines: Engines, collection: CollectionRecord) -> None:
    made = ensure_archive(engines, collection, 1)
    assert ensure_archive(engines, collection, 1) == made
    found = engines.store.get(archive_chain(engines.store, collection, 1).keys.manifest(1))
    assert found is not None and ArchiveManifest.from_bytes(found.data, "here") == made


def test_an_archiver_that_is_fenced_while_it_starts_claims_the_partition_again_later(
    engines: Engines, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group leaves it the partition, whose other owner may be gone: nobody would have archived it any more."""
    send(engines, collection, 0, ["gone", "kept"])
    quick = tuned(engines)
    ensure_archive(quick, collection, 0)
    engines.log.truncate(collection.source_topic, {0: 1})  # a start that has a loss to record
    claimed: list[int] = []
    record_loss = PartitionArchiver._commit_lost

    def overtaken(self: PartitionArchiver, base: ArchiveCheckpoint, start_offset: int) -> object:
        claimed.append(self.committer.epoch)
        if len(claimed) == 1:
            archiver(quick, collection).committer.claim()
        return record_loss(self, base, start_offset)

    monkeypatch.setattr(PartitionArchiver, "_commit_lost", overtaken)
    with archiving(quick, collection):
        eventually(lambda: head(engines, collection, 0).checkpoint.media_offset == 2, what="archived")
    assert claimed == [1, 3] and set(archived(engines, collection, 0)) == {1}
