"""A partition that starts again in the middle of reading: what was polled at the old position is not taken for what comes at the new one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from ulid import ULID

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.clock import ManualClock
from contracts.engines import Engines
from contracts.errors import DataLossError, SnapshotError, UnavailableError
from contracts.log import OffsetBounds
from contracts.settings import load_settings
from indexer.build_worker import FENCED_SEALS, BuildWorker
from indexer.commit import Committer
from indexer.embed_worker import RETRY_SECONDS, EmbedWorker
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource, chain_end
from indexer.ulids import UlidSource
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition


@pytest.fixture
def timed(engines: Engines) -> tuple[Engines, ManualClock]:
    clock = ManualClock()
    return replace(engines, clock=clock), clock


def test_a_new_run_does_not_begin_with_records_that_were_polled_before_it(timed: tuple[Engines, ManualClock]) -> None:
    """It took them for the first ones after its start, and all between for offsets at which the log has nothing: those records were lost."""
    engines, clock = timed
    collection = make_collection(engines, "feed", partitions=1)
    worker = EmbedWorker(engines, collection, collection.index(), None)
    reader = engines.log.group_reader(collection.source_topic, collection.group("main", "embed"))
    with ThreadPoolExecutor(1) as pool:

        def turn() -> None:
            worker._fetch_once(reader, pool)

        turn()
        produce(engines, collection, 0, ["first"])
        produce(engines, collection, 0, ["second"])
        turn()
        turn()
        assert worker.runs[0].fetched_next == 2
        worker._produce_failed(UnavailableError("nothing was stored"))
        clock.advance(2 * RETRY_SECONDS)
        produce(engines, collection, 0, ["third"])  # the reader's position is still behind "second"
        turn()
        turn()
    newest = [fetched for fetched, _ in worker.queue._slices if fetched.run == worker.runs[0].number]
    assert [record.offset for fetched in newest for record in fetched.records] == [0, 1, 2]
    worker._pool.close()


class Built:
    """A build worker whose turns a test takes, and what it reads."""

    def __init__(self, engines: Engines) -> None:
        self.engines, self.collection = engines, make_collection(engines, "feed", partitions=1)
        self.index, self.stop = self.collection.index(), threading.Event()
        self.worker = BuildWorker(engines, self.collection, self.index)
        self.worker._producer = engines.log.producer()
        self.reader = engines.log.group_reader(self.index.vectors_topic, self.collection.group("main", "index"))
        self.source = PartitionSource(engines, self.collection, self.index, 0)

    def turn(self) -> None:
        self.worker._turn(self.reader, self.stop)

    def seal(self) -> None:
        """A turn that begins a seal, and one that commits it."""
        self.turn()
        self.worker._seals.wait(30)
        self.turn()

    def embed(self, item_id: str) -> None:
        end = self.end()
        produce(self.engines, self.collection, 0, [item_id])
        with running(EmbedWorker(self.engines, self.collection, self.index, None).run):
            eventually(lambda: self.end() > end, what="embedded")

    def end(self) -> int:
        return self.engines.log.bounds(self.index.vectors_topic)[0].next_offset

    def live(self) -> set[str]:
        return set(read_partition(self.engines, self.collection, 0).live)


def test_a_fenced_builder_whose_group_leaves_it_the_partition_claims_it_again_later_and_misses_nothing(timed: tuple[Engines, ManualClock]) -> None:
    """The other owner may have come and gone between two polls: then the group says nothing, and nobody would build any more."""
    engines, clock = timed
    built, seal_seconds = Built(engines), engines.settings.seal_seconds
    built.turn()
    built.turn()
    built.embed("first")
    built.turn()
    Committer(built.source.chain, "builder", f"other-{ULID()}", clock, lambda: None).claim()
    clock.advance(2 * seal_seconds)
    built.seal()
    assert not built.worker.builders, "it was fenced"
    clock.advance(FENCED_SEALS * seal_seconds / 2)
    built.turn()
    assert not built.worker.builders, "it does not claim back at once"
    clock.advance(FENCED_SEALS * seal_seconds)
    built.embed("second")  # the reader's position is behind "first"
    built.turn()
    built.turn()
    clock.advance(2 * seal_seconds)
    built.seal()
    assert built.live() == {"first", "second"}
    built.reader.close()


def test_a_builder_whose_next_batch_another_one_committed_and_maintenance_truncated_lets_go(timed: tuple[Engines, ManualClock]) -> None:
    """It ended its process, other partitions with it, and reported lost data."""
    engines, clock = timed
    built = Built(engines)
    built.turn()
    built.turn()
    assert built.worker.builders
    built.embed("first")
    other = PartitionBuilder(built.source, f"builder-{ULID()}", UlidSource())
    record = engines.log.read_at(built.index.vectors_topic, 0, other.start())
    assert record is not None
    other.feed(record)
    other.commit()
    engines.log.truncate(built.index.vectors_topic, {0: built.end()})
    built.turn()
    assert not built.worker.builders
    clock.advance(2 * FENCED_SEALS * engines.settings.seal_seconds)
    built.embed("second")
    built.turn()
    built.turn()
    clock.advance(2 * engines.settings.seal_seconds)
    built.seal()
    assert built.live() == {"first", "second"}
    built.reader.close()


class Maintained(MemoryLog):
    """Somebody truncates the vectors topic just after its bounds were read."""

    truncates: str | None = None

    def bounds(self, topic: str) -> dict[int, OffsetBounds]:
        found = super().bounds(topic)
        if topic == self.truncates:
            self.truncates = None
            self.truncate(topic, {0: found[0].next_offset})
        return found


def test_a_scan_whose_next_batch_is_truncated_under_it_asks_for_a_newer_manifest() -> None:
    """It said that data was lost, and the partition stood still for ever."""
    log = Maintained()
    engines = Engines(load_settings(log_url="memory://", store_url="memory://"), log, MemoryStore())
    collection = make_collection(engines, "feed", partitions=1)
    topic = collection.index().vectors_topic
    scan = PartitionSource(engines, collection, collection.index(), 0).chain_scan()
    log.producer().send(topic, partition=0, key=b"any", value=b"batch")
    log.truncates = topic
    with pytest.raises(SnapshotError):
        scan.advance()


def test_what_another_worker_embedded_and_retention_took_while_a_partition_starts_is_not_lost(engines: Engines) -> None:
    """Retention took it between the look at the chain's end and the one at the topic's start: the partition was stopped as having lost records."""
    collection = make_collection(engines, "feed", partitions=1)
    source = PartitionSource(engines, collection, collection.index(), 0)
    scan = source.chain_scan()
    assert scan.advance() == 0
    with running(EmbedWorker(engines, collection, collection.index(), None).run):
        produce(engines, collection, 0, ["first"])
        produce(engines, collection, 0, ["second"])
        eventually(lambda: chain_end(source).chain.expected == 2)
    engines.log.truncate(collection.source_topic, {0: 2})
    assert source.check_media_bounds(scan) == 2

    produce(engines, collection, 0, ["third"])
    engines.log.truncate(collection.source_topic, {0: 3})
    with pytest.raises(DataLossError, match="offsets 2 to 3 were removed by retention before they were embedded"):
        source.check_media_bounds(scan)
