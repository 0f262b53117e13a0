"""What a worker wrote itself need not be read back, and what it goes past is what it would have read, whoever else writes and whatever is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.chain import BatchSpan
from contracts.engines import Engines
from contracts.log import OffsetBounds
from contracts.settings import load_settings
from contracts.vectors_batch import CommitNotice, batch_headers, notice_headers
from indexer.embed_worker import EmbedWorker
from indexer.partition_source import ChainScan, OwnBatch, PartitionSource
from tests.examples import examples
from tests.indexer.conftest import eventually, make_collection, produce, running


class LosingLog(MemoryLog):
    """A log whose leaders change, and may lose with that the newest records that they acknowledged; it counts who opens a reader of what."""

    def __init__(self) -> None:
        super().__init__()
        self.leader_epoch = 0
        self.readers: list[str] = []

    def bounds(self, topic: str) -> dict[int, OffsetBounds]:
        return {number: replace(held, leader_epoch=self.leader_epoch) for number, held in super().bounds(topic).items()}

    def reader(self, topic: str, positions: Mapping[int, int]) -> Any:
        self.readers.append(topic)
        return super().reader(topic, positions)

    def lose(self, topic: str, count: int) -> None:
        records = self._cluster.topics[topic].partitions[0].records
        del records[max(0, len(records) - count) :]
        self.leader_epoch += 1


class Written:
    """A vectors topic that a worker and others write to, and two walks along it: one is told what the worker wrote, the other reads everything."""

    def __init__(self) -> None:
        self.log = LosingLog()
        self.engines = Engines(load_settings(log_url="memory://", store_url="memory://"), self.log, MemoryStore())
        self.collection = make_collection(self.engines, "feed", partitions=1)
        source = PartitionSource(self.engines, self.collection, self.collection.index(), 0)
        self.topic = self.collection.index().vectors_topic
        self.told, self.reading = source.chain_scan(), source.chain_scan()
        self.own: deque[OwnBatch] = deque()
        self.unsettled: list[OwnBatch] = []
        self.sent_next = 0
        self.look()

    def send(self, start_offset: int, next_offset: int) -> OwnBatch:
        span = BatchSpan(self.collection.incarnation, self.collection.source_topic_id, start_offset, next_offset)
        epoch = self.told.leader_epoch
        sent = self.log.producer().send(self.topic, partition=0, value=b"", headers=batch_headers(span, b""))
        return OwnBatch(sent.result(0).offset, span, epoch)

    def write(self) -> None:
        self.unsettled.append(self.send(self.sent_next, self.sent_next + 2))
        self.sent_next += 2

    def notice(self) -> None:
        headers = notice_headers(CommitNotice(1, "c", self.collection.incarnation))
        self.log.producer().send(self.topic, partition=0, key=b"commit", headers=headers).result(0)

    def settle(self) -> None:
        self.own += self.unsettled
        self.unsettled.clear()

    def look(self) -> None:
        assert self.told.advance(self.own) == self.reading.advance()
        assert self.told.vectors_offset == self.reading.vectors_offset

    @property
    def opened(self) -> int:
        """Readers of the vectors topic that the told walk has opened; the other one has one as soon as there is something."""
        return self.log.readers.count(self.topic) - _has_reader(self.reading)


def _has_reader(scan: ChainScan) -> bool:
    return scan._reader is not None


def test_what_this_worker_wrote_and_nobody_else_in_between_is_not_read() -> None:
    written = Written()
    for _ in range(3):
        for _ in range(4):
            written.write()
        written.settle()
        written.look()
    assert written.told.chain.expected == 24 and written.opened == 0 and not written.own
    written.notice()
    written.look()
    assert written.opened == 1


def test_a_batch_of_another_one_in_between_is_read_and_decides() -> None:
    written = Written()
    written.write()
    written.send(2, 3)  # a zombie, or a `skip`
    written.write()  # 2 to 4: accepted, from 3 on
    written.send(9, 10)
    written.settle()
    written.look()
    assert written.told.chain.expected == 4 and written.opened == 1


def test_an_acknowledgement_before_another_leader_came_proves_nothing() -> None:
    written = Written()
    written.write()
    written.log.lose(written.topic, 1)
    written.notice()  # where the lost batch lay
    written.write()  # next to it
    written.settle()
    assert [batch.vectors_offset for batch in written.own] == [0, 1]
    written.look()
    assert written.told.chain.expected == 0, "the batch that is gone was believed"
    written.sent_next = 0  # the worker goes back
    written.write()
    written.settle()
    written.look()
    assert written.told.chain.expected == 2 and written.opened == 1 and not written.own


def test_a_log_that_cannot_tell_its_leaders_is_read() -> None:
    written = Written()
    written.log.leader_epoch = -1
    written.look()
    written.write()
    written.settle()
    written.look()
    assert written.told.chain.expected == 2 and written.opened == 1


STEPS = st.one_of(
    st.sampled_from(["write", "write", "write", "settle", "look", "look", "notice"]).map(lambda name: (name, 0)),
    st.tuples(st.just("lose"), st.integers(0, 3)),
    st.tuples(st.just("foreign"), st.integers(-4, 4)),
    st.just(("back", 0)),
)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_both_walks_agree_whoever_writes_and_whatever_is_lost(steps: list[tuple[str, int]]) -> None:
    written = Written()
    for name, number in steps:
        if name == "lose":
            written.log.lose(written.topic, number)
        elif name == "foreign":
            start = max(0, written.sent_next + number)
            written.send(start, start + 2)
        elif name == "back":  # another run
            written.unsettled.clear()
            written.own = deque()
            written.sent_next = written.told.chain.expected
        else:
            getattr(written, name)()
    written.settle()
    written.look()


def test_a_worker_that_is_alone_never_reads_back_what_it_wrote() -> None:
    log = LosingLog()
    engines = Engines(load_settings(log_url="memory://", store_url="memory://", embed_watchdog_seconds=0.05), log, MemoryStore())
    collection = make_collection(engines, "feed", partitions=1)
    worker = EmbedWorker(engines, collection, collection.index(), None)
    with running(worker.run):
        for number in range(20):
            produce(engines, collection, 0, [f"r{number}"])
        eventually(lambda: 0 in worker.runs and worker.runs[0].scan.chain.expected == 20 and not worker.runs[0].own)
    assert collection.index().vectors_topic not in log.readers
