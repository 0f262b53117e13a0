"""The archive below the media topic's start: read in one order with the log, by a new index and by one that stayed behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.catalog.archive import ArchiveReader, archive_chain, read_tar_index
from backends.catalog.collections import CollectionCatalog
from backends.catalog.indexes import add_index
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, SettingsError
from contracts.log import CommittedOffset, LogRecord
from contracts.store import ObjectStore
from indexer import role
from indexer.archive_worker import ArchiveWorker
from indexer.attempts import Attempts
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from indexer.media_history import HistoryReader, MediaHistory
from indexer.partition_run import PartitionRun
from indexer.partition_source import PartitionSource
from indexer.publish import Publisher
from indexer.reset import catch_up, earliest_offsets, offsets_for_time, plan_reset
from indexer.slices import DecodedSlice
from tests.indexer.archived import head, logged
from tests.indexer.conftest import delete, engines_on, eventually, make_collection, produce, running
from tests.indexer.stored import read_partition
from tests.system.sites import unique

QUICK = {"seal_seconds": 0.1, "embed_watchdog_seconds": 0.3, "archive_seconds": 0.2}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "DISCOVERY_SECONDS", 0.1)


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.minio])])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engines]:
    with engines_on(request.param, tmp_path, **QUICK) as made:
        yield made


@pytest.fixture
def feed(engines: Engines) -> CollectionRecord:
    """Partition 0: a, b, c, a again, b deleted, d, e; all archived, and offsets 0 to 4 gone from the topic."""
    collection = make_collection(engines, unique("feed"), partitions=1)
    for item in "abca":
        produce(engines, collection, 0, [item], [f"text of {item}"])
    delete(engines, collection, 0, "b")
    for item in "de":
        produce(engines, collection, 0, [item])
    with running(ArchiveWorker(engines, collection).run, *indexing(engines, collection)):
        eventually(lambda: archive_end(engines, collection) == 7 and checkpoint(engines, collection) == 7)
    return collection


def indexing(engines: Engines, collection: CollectionRecord, name: str = "main"):  # type: ignore[no-untyped-def]
    index = collection.index(name)
    return EmbedWorker(engines, collection, index, None).run, BuildWorker(engines, collection, index).run


def checkpoint(engines: Engines, collection: CollectionRecord) -> int:
    return read_partition(engines, collection, 0).manifest.checkpoint.media_offset


def archive_end(engines: Engines, collection: CollectionRecord, partition: int = 0) -> int:
    read = archive_chain(engines.store, collection, partition).head()
    return 0 if read is None else read.manifest.checkpoint.media_offset


def active(collection: CollectionRecord, name: str) -> CollectionRecord:
    return collection.model_copy(update={"active_index": name})


def test_an_index_begun_below_the_topics_start_has_what_one_from_the_whole_topic_has(engines: Engines, feed: CollectionRecord) -> None:
    whole = read_partition(engines, feed, 0)
    engines.log.truncate(feed.source_topic, {0: 5})
    with pytest.raises(SettingsError, match=r"offset 0 is gone, the topic begins at 5, what is archived at 0") as refused:
        plan_reset(engines, feed, {0: 0})
    assert "--from-archive" in refused.value.hint
    assert earliest_offsets(engines, feed) == {0: 5} and earliest_offsets(engines, feed, from_archive=True) == {0: 0}
    (planned,) = plan_reset(engines, feed, {0: 0}, from_archive=True)
    assert (planned.origin_offset, planned.embedded_offset, planned.left_out_rows, planned.archived_offsets) == (0, 7, 0, 5)
    begun = add_index(engines, feed, {0: 0})
    name = begun.indexes[-1].name
    with running(*indexing(engines, begun), *indexing(engines, begun, name)):
        eventually(lambda: catch_up(engines, begun, name).is_complete)
        produce(engines, begun, 0, ["f"])  # from here on both live on the stream
        eventually(lambda: checkpoint(engines, active(begun, name)) == 8 and checkpoint(engines, begun) == 8)
    again, old = read_partition(engines, active(begun, name), 0), read_partition(engines, begun, 0)
    assert again.live == old.live == whole.live | {"f": (7, 0)} and again.texts == old.texts
    assert again.is_tiled() and set(again.verdicts()) == set(old.verdicts()) and again.manifest.origin_offset == 0
    assert CollectionCatalog(engines.store).get(feed.name).active_index == "main"


def test_an_index_that_stayed_behind_retention_goes_on_from_the_archive(engines: Engines) -> None:
    collection = make_collection(engines, unique("late"), partitions=1)
    for number in range(6):
        produce(engines, collection, 0, [f"v{number}"])
    with running(ArchiveWorker(engines, collection).run):
        eventually(lambda: archive_end(engines, collection) == 6)
    engines.log.truncate(collection.source_topic, {0: 6})
    produce(engines, collection, 0, ["v6"])
    with running(*indexing(engines, collection)):
        eventually(lambda: checkpoint(engines, collection) == 7)
    stored = read_partition(engines, collection, 0)
    assert stored.live == {f"v{number}": (number, 0) for number in range(7)} and stored.is_tiled()


def test_what_the_archive_does_not_hold_is_never_passed_over_and_no_target(engines: Engines) -> None:
    collection = make_collection(engines, unique("lossy"), partitions=1)
    for number in range(6):
        produce(engines, collection, 0, [f"v{number}"])
    engines.log.truncate(collection.source_topic, {0: 2})
    with running(ArchiveWorker(engines, collection).run):
        eventually(lambda: archive_end(engines, collection) == 6)
    assert [(run.start_offset, run.next_offset) for run in head(engines, collection, 0).lost] == [(0, 2)]
    engines.log.truncate(collection.source_topic, {0: 4})
    assert earliest_offsets(engines, collection, from_archive=True) == {0: 2}
    with pytest.raises(SettingsError, match="offset 1 is gone, the topic begins at 4, what is archived at 2"):
        plan_reset(engines, collection, {0: 1}, from_archive=True)
    history = MediaHistory(engines, collection)
    for offset in (1, 6):
        with pytest.raises(DataLossError, match=f"offset {offset} of .* is in the topic no longer, and not whole in the archive"):
            history.read(0, offset, 10)
    reader = HistoryReader(engines.log.reader(collection.source_topic, {0: 2}), history)
    reader.seek(0, 2)
    assert read_all(reader, 6) == [2, 3, 4, 5]
    reader.close()


def read_all(reader: HistoryReader, end: int, most: int = 500) -> list[int]:
    found: list[int] = []
    eventually(lambda: found.extend(record.offset for record in reader.poll(0.05, most)) or reader.position(0) == end)  # type: ignore[func-returns-value]
    return found


def test_reading_goes_from_the_archive_over_to_the_log_without_a_gap_or_a_double(engines: Engines, feed: CollectionRecord) -> None:
    before = logged(engines, feed, 0)
    engines.log.truncate(feed.source_topic, {0: 4})
    reader = HistoryReader(engines.log.reader(feed.source_topic, {0: 0}), MediaHistory(engines, feed))
    reader.seek(0, 1)
    assert reader.position(0) == 1 and read_all(reader, 7, most=2) == [1, 2, 3, 4, 5, 6]
    reader.seek(0, 3)
    reader.pause([0])
    assert [reader.poll(0.01) for _ in range(4)] == [[]] * 4
    reader.resume([0])
    read: list[LogRecord] = []
    eventually(lambda: read.extend(reader.poll(0.05)) or reader.position(0) == 7)  # type: ignore[func-returns-value]
    assert read == [before[offset] for offset in range(3, 7)]
    reader.close()


def test_archived_records_are_read_as_runs_of_bounded_bytes(engines: Engines, feed: CollectionRecord) -> None:
    reader, (tar, *_) = ArchiveReader(engines.store), head(engines, feed, 0).tars
    found = reader.read_run(feed, 0, tar.start_offset, 500, 2**20)
    assert found is not None and [record.offset for record in found[0]] == list(range(tar.start_offset, tar.next_offset))
    assert reader.read_run(feed, 0, 0, 500, 1) == ([logged(engines, feed, 0)[0]], 1), "one record comes whatever its size"
    assert reader.read_run(feed, 0, 7, 500, 2**20) is None


class SpoiltStore:
    """Gives what another store gives, with one byte of one object changed."""

    def __init__(self, store: ObjectStore, key: str, at: int) -> None:
        self._store, self._key, self._at = store, key, at

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes | None:
        data = self._store.get_range(key, start, size_bytes)
        at = self._at - start
        return data if data is None or key != self._key or not 0 <= at < len(data) else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_spoilt_record_stops_its_partition_alone_and_at_itself(engines: Engines, caplog: pytest.LogCaptureFixture) -> None:
    collection = make_collection(engines, unique("spoilt"), partitions=2)
    for number in range(12):
        produce(engines, collection, number % 2, [f"v{number}"])
    with running(ArchiveWorker(engines, collection).run):
        eventually(lambda: [archive_end(engines, collection, partition) for partition in (0, 1)] == [6, 6])
    engines.log.truncate(collection.source_topic, {0: 6, 1: 6})
    tar = head(engines, collection, 0).tar_of(3)
    row = None if tar is None else read_tar_index(engines.store, tar).find(3)
    assert tar is not None and row is not None and row.start is not None
    spoilt = Engines(engines.settings, engines.log, SpoiltStore(engines.store, tar.key, row.start + 1000))  # type: ignore[arg-type]
    reader = ArchiveReader(spoilt.store)
    found = reader.read_run(collection, 0, tar.start_offset, 500, 2**20)
    assert found is None or found[1] == 3, "what lies before it can be read"
    with pytest.raises(CorruptError, match="offset 3"):
        reader.read_run(collection, 0, 3, 500, 2**20)
    with running(*indexing(spoilt, collection)):
        eventually(lambda: "partition 0 is stopped, the others go on" in caplog.text and chain_ends(engines, collection) == [3, 6])


def chain_ends(engines: Engines, collection: CollectionRecord) -> list[int]:
    return [PartitionSource(engines, collection, collection.index(), partition).chain_scan().advance() for partition in range(collection.partitions)]


@pytest.mark.parametrize("batches", [0, 2, 5, 6])
def test_a_worker_that_ends_amid_it_goes_on_where_its_chain_stands(
    engines: Engines, feed: CollectionRecord, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    engines.log.truncate(feed.source_topic, {0: 5})
    begun = add_index(engines, feed, {0: 0})
    index = begun.indexes[-1]
    one_by_one = Engines(engines.settings.model_copy(update={"embed_batch_items": 1}), engines.log, engines.store)
    real, sent = Publisher.publish, []

    def publish(publisher: Publisher, decoded: DecodedSlice, run: PartitionRun | None = None) -> None:
        if len(sent) == batches:
            raise RuntimeError("killed")
        real(publisher, decoded, run)
        sent.append(decoded.fetched.start_offset)

    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "publish", publish)
        with pytest.raises(RuntimeError, match="killed"):
            EmbedWorker(one_by_one, begun, index, None).run(threading.Event())
    assert sent == list(range(batches))
    with running(*indexing(one_by_one, begun, index.name)):
        eventually(lambda: checkpoint(engines, active(begun, index.name)) == 7)
    again, old = read_partition(engines, active(begun, index.name), 0), read_partition(engines, begun, 0)
    assert again.live == old.live and again.texts == old.texts and set(again.verdicts()) == set(old.verdicts()) and again.is_tiled()


def test_a_walk_record_by_record_reads_the_archive_too(engines: Engines, feed: CollectionRecord) -> None:
    engines.log.truncate(feed.source_topic, {0: 5})
    begun = add_index(engines, feed, {0: 0})
    index = begun.indexes[-1]
    with closing(engines.log.group_reader(feed.source_topic, feed.group(index.name, "embed"))) as member:
        eventually(lambda: not member.poll(0.05) and member.take_assignment() is not None)
        member.commit(0, CommittedOffset(0, Attempts(attempts=2).to_metadata()), is_awaited=True)
    with running(*indexing(engines, begun, index.name)):
        eventually(lambda: checkpoint(engines, active(begun, index.name)) == 7)
    assert read_partition(engines, active(begun, index.name), 0).live == read_partition(engines, begun, 0).live
    assert engines.log.bounds(index.vectors_topic)[0].next_offset >= 7, "a batch for each record"


def test_a_time_is_found_among_archived_records(engines: Engines, feed: CollectionRecord) -> None:
    times = [record.timestamp_ms for _, record in sorted(logged(engines, feed, 0).items())]
    engines.log.truncate(feed.source_topic, {0: 5})
    for wanted in {times[0] - 1, *times, times[-1] + 1}:
        first = next((offset for offset, time in enumerate(times) if time >= wanted), 7)
        assert offsets_for_time(engines, feed, wanted, from_archive=True) == {0: first}
    assert offsets_for_time(engines, feed, times[0]) == {0: 5}


def test_an_archive_without_media_is_no_source(engines: Engines) -> None:
    collection = make_collection(engines, unique("bare"), partitions=1, archive="off")
    with pytest.raises(SettingsError, match="keeps no media"):
        plan_reset(engines, collection, {0: 0}, from_archive=True)
