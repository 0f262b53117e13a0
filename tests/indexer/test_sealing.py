"""A segment is sealed beside the worker's loop: the next one grows meanwhile, bounded, and nothing of either is lost whatever becomes of the seal."""

from __future__ import annotations

import threading

import pytest

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.clock import Clock, ManualClock, SystemClock
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.log import Assignment, CommittedOffset, LogRecord
from contracts.settings import load_settings
from contracts.store import PutOutcome
from indexer.build_worker import BuildWorker
from indexer.coding import IndexCoding
from indexer.embed_worker import EmbedWorker
from indexer.partition_builder import PartitionBuilder
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition

SEAL_ROWS = 4


class Slow(MemoryStore):
    """Holds the rows parts of segments while `open` is not set, or refuses so many of them."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.waiting, self.refuse = threading.Event(), threading.Event(), 0
        self.open.set()

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if key.endswith(".rows"):
            if self.refuse:
                self.refuse -= 1
                raise UnavailableError("the store is away")
            self.waiting.set()
            assert self.open.wait(60)
        return super().put_if_absent(key, data)


class Site:
    """A collection of one partition or more, an embed worker that has made batches of one row, and a build worker."""

    def __init__(self, partitions: int = 1, seal_seconds: float = 3600.0, clock: Clock | None = None) -> None:
        self.store = Slow()
        values = {"log_url": "memory://", "store_url": "memory://", "seal_rows": SEAL_ROWS, "seal_seconds": seal_seconds}
        self.engines = Engines(load_settings(**values), MemoryLog(), self.store, clock=clock or SystemClock())
        self.collection = make_collection(self.engines, "feed", partitions=partitions)
        self.index = self.collection.index()
        self.worker = BuildWorker(self.engines, self.collection, self.index)

    def embed(self, partition: int, *ids: str) -> None:
        ends = self.ends()
        with running(EmbedWorker(self.engines, self.collection, self.index, None).run):
            for number, item_id in enumerate(ids, 1):
                produce(self.engines, self.collection, partition, [item_id])
                eventually(lambda wanted=ends[partition] + number: self.ends()[partition] >= wanted, what="embedded")  # type: ignore[misc]

    def ends(self) -> dict[int, int]:
        return {partition: bounds.next_offset for partition, bounds in self.engines.log.bounds(self.index.vectors_topic).items()}

    def builder(self, partition: int = 0) -> PartitionBuilder:
        return self.worker.builders[partition]

    def grows(self, partition: int) -> bool:
        return partition in self.worker.builders and self.builder(partition).growing is not None

    def live(self, partition: int = 0) -> set[str]:
        stored = read_partition(self.engines, self.collection, partition)
        assert stored.is_tiled()
        return set(stored.live)


def names(first: int, stop: int) -> list[str]:
    return [f"id-{number}" for number in range(first, stop)]


def test_while_a_segment_is_sealed_the_next_one_grows_to_its_size_and_no_further() -> None:
    site = Site()
    site.store.open.clear()
    site.embed(0, *names(0, SEAL_ROWS))
    with running(site.worker.run):
        assert site.store.waiting.wait(60)
        site.embed(0, *names(SEAL_ROWS, 2 * SEAL_ROWS))
        eventually(lambda: site.worker._full == {0}, what="the next segment has its size, and the partition is paused")
        at = site.builder().vectors_offset
        site.embed(0, "later")
        assert site.builder().closed is not None and site.builder().vectors_offset == at and site.live() == set()
        site.store.open.set()
        eventually(lambda: site.live() == set(names(0, 2 * SEAL_ROWS)), what="both are committed")
        eventually(lambda: site.builder().vectors_offset > at, what="the partition goes on")
    assert site.worker._full == frozenset()


@pytest.mark.parametrize("refused", [1, 3])
def test_a_seal_that_the_store_refuses_is_done_again_with_the_same_rows(refused: int) -> None:
    site = Site()
    site.store.refuse = refused
    site.embed(0, *names(0, 2 * SEAL_ROWS))
    with running(site.worker.run):
        eventually(lambda: site.live() == set(names(0, 2 * SEAL_ROWS)), what="committed")
    assert site.store.refuse == 0


def test_a_partition_that_is_taken_away_during_its_seal_leaves_nothing_behind_and_the_next_builder_has_all_rows() -> None:
    site = Site()
    site.store.open.clear()
    site.embed(0, *names(0, SEAL_ROWS))
    moves: list[Assignment] = []
    reader = Moved(site, moves)
    stop = threading.Event()
    site.worker._producer = site.engines.log.producer()
    site.worker._turn(reader, stop)
    while not site.store.waiting.is_set():
        site.worker._turn(reader, stop)
    first = site.builder()
    moves.append(Assignment(assigned=frozenset(), revoked=frozenset({0})))
    site.worker._turn(reader, stop)
    assert not site.worker.builders
    moves.append(Assignment(assigned=frozenset({0}), revoked=frozenset()))
    site.worker._turn(reader, stop)
    site.store.open.set()
    site.worker._seals.wait(60)
    assert first.pending is not None, "its parts are stored"
    eventually(lambda: (site.worker._turn(reader, stop), site.live() == set(names(0, SEAL_ROWS)))[1], what="the next builder commits them")
    assert site.builder() is not first and read_partition(site.engines, site.collection, 0).manifest.epochs.builder == 2
    reader.close()


class Moved:
    """A group reader whose assignments a test gives, after the first one."""

    def __init__(self, site: Site, moves: list[Assignment]) -> None:
        self._reader = site.engines.log.group_reader(site.index.vectors_topic, site.collection.group("main", "index"))
        self._moves = moves

    def take_assignment(self) -> Assignment | None:
        return self._moves.pop() if self._moves else self._reader.take_assignment()

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        return self._reader.poll(timeout_seconds, max_records)

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        self._reader.commit(partition, committed, is_awaited=is_awaited)

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)


def test_of_partitions_whose_segments_are_due_the_one_that_began_first_is_sealed_first() -> None:
    clock, stop = ManualClock(), threading.Event()
    site = Site(2, 5.0, clock)
    site.worker._producer = site.engines.log.producer()
    reader = site.engines.log.group_reader(site.index.vectors_topic, site.collection.group("main", "index"))
    for partition in (1, 0):
        site.embed(partition, f"of {partition}")
        eventually(lambda wanted=partition: (site.worker._turn(reader, stop), site.grows(wanted))[1], what="it grows")  # type: ignore[misc]
        clock.advance(1.0)
    clock.advance(5.0)
    site.worker._turn(reader, stop)
    assert site.worker._sealing is not None and site.worker._sealing[0] == 1
    eventually(lambda: (site.worker._turn(reader, stop), site.live(0) | site.live(1))[1] == {"of 0", "of 1"}, what="both are committed")
    reader.close()


def test_no_seal_begins_while_a_part_that_came_too_late_is_stored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a backlog the next seal would overtake the part each time, for as long as there is one."""
    site = Site()
    held = {0}
    monkeypatch.setattr(IndexCoding, "holds", lambda self, partition: partition in held)
    site.embed(0, *names(0, SEAL_ROWS))
    with running(site.worker.run):
        eventually(lambda: 0 in site.worker.builders and site.builder().is_due(), what="it is due")
        assert not site.builder().is_committing
        held.clear()
        eventually(lambda: site.live() == set(names(0, SEAL_ROWS)), what="committed")
