"""A walk record by record: what it asks of the log for each, and what it does where offsets are skipped or gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.log import CommittedOffset, GroupReader, LogRecord
from embedding.decode_pool import DecodePool
from indexer import careful
from indexer.attempts import REJECT_AFTER, AttemptBook, Attempts
from indexer.careful import Walks
from indexer.decode import Decoder
from indexer.partition_source import PartitionSource
from tests.indexer.conftest import make_collection, produce

RECORDS = 6


class CountingGroup:
    """A group of one member with one partition; counts what it is asked."""

    def __init__(self, stored: CommittedOffset) -> None:
        self.stored, self.asked = stored, Counter[str]()

    def committed(self, partition: int) -> CommittedOffset:
        self.asked["committed"] += 1
        return self.stored

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        assert is_awaited
        self.asked["commit"] += 1
        self.stored = committed


class SkippingReader:
    """Reads records between which the log skips offsets; the last ones before `end` are skipped, too."""

    def __init__(self, records: list[LogRecord], end: int) -> None:
        self.records, self.end = records, end

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        return [self.records.pop(0)] if self.records else []

    def pause(self, partitions: list[int]) -> None:
        pass

    resume = pause

    def seek(self, partition: int, offset: int) -> None:
        pass

    def position(self, partition: int) -> int:
        return self.records[0].offset if self.records else self.end

    def close(self) -> None:
        pass


@pytest.fixture
def fed(engines: Engines) -> CollectionRecord:
    collection = make_collection(engines, "walked", partitions=1)
    for number in range(RECORDS):
        produce(engines, collection, 0, [f"v{number}"])
    return collection


@pytest.fixture
def walks(engines: Engines, fed: CollectionRecord, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walks]:
    monkeypatch.setattr(careful, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(careful, "STEP_SECONDS", 0.0)
    pool = DecodePool(engines.settings)
    made = Walks(engines, fed, fed.index(), None, Decoder(fed, fed.index(), None, engines.settings, engines.store, pool), AttemptBook())
    yield made
    made.close()
    pool.close()


def batches(engines: Engines, collection: CollectionRecord) -> int:
    return engines.log.bounds(collection.index().vectors_topic)[0].next_offset


def chain_end(engines: Engines, collection: CollectionRecord) -> int:
    return PartitionSource(engines, collection, collection.index(), 0).chain_scan().advance()


def walk_on(walks: Walks, group: CountingGroup) -> careful.CarefulWalk:
    reader: GroupReader = group  # type: ignore[assignment]
    for _ in range(10 * RECORDS):
        if (ended := walks.step(reader)) is not None:
            return ended
    raise AssertionError("the walk does not end")


def test_each_record_is_written_down_before_it_is_worked_on_and_nothing_else_is_asked_for_it(
    engines: Engines, fed: CollectionRecord, walks: Walks, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, opened = CountingGroup(CommittedOffset(0, Attempts(attempts=2).to_metadata())), Counter[str]()
    real = engines.log.reader
    monkeypatch.setattr(engines.log, "reader", lambda topic, *more: (opened.update([topic]), real(topic, *more))[1])
    monkeypatch.setattr(engines.log, "read_at", lambda *_: pytest.fail("a walk reads ahead, not record by record"))
    walks.begin(0, 0, RECORDS)
    for done in range(RECORDS):
        assert batches(engines, fed) == done
        walks.step(group)  # type: ignore[arg-type]
        assert group.stored.offset == done and Attempts.from_metadata(group.stored.metadata).alone == 1
    assert chain_end(engines, fed) == RECORDS == batches(engines, fed)
    assert group.asked == {"committed": 1, "commit": RECORDS} and opened[fed.source_topic] == 1


def test_a_record_with_which_two_lives_ended_is_found_behind_others_of_the_same_walk(engines: Engines, fed: CollectionRecord, walks: Walks) -> None:
    group = CountingGroup(CommittedOffset(3, Attempts(alone=REJECT_AFTER, careful_next=RECORDS).to_metadata()))
    walks.begin(0, 2, RECORDS)  # its chain was found one record earlier than the last life's
    assert walk_on(walks, group).is_done
    letter = engines.log.read_at(fed.dead_letter_topic, 0, 0)
    original = engines.log.read_at(fed.source_topic, 0, 3)
    assert letter is not None and original is not None and letter.value == original.value
    assert engines.log.bounds(fed.dead_letter_topic)[0].next_offset == 1 and batches(engines, fed) == RECORDS - 2


def test_offsets_that_the_log_skips_are_passed_with_the_record_behind_them(
    engines: Engines, fed: CollectionRecord, walks: Walks, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [engines.log.read_at(fed.source_topic, 0, offset) for offset in (1, 3)]
    monkeypatch.setattr(engines.log, "reader", lambda *_: SkippingReader(records, RECORDS))
    walks.begin(0, 0, RECORDS)
    assert walk_on(walks, CountingGroup(CommittedOffset(0))).is_done
    monkeypatch.undo()
    assert chain_end(engines, fed) == RECORDS and batches(engines, fed) == 3


def test_records_that_retention_takes_amid_a_walk_are_not_passed_over(engines: Engines, fed: CollectionRecord, walks: Walks) -> None:
    group = CountingGroup(CommittedOffset(0))
    walks.begin(0, 0, RECORDS)
    walks.step(group)  # type: ignore[arg-type]
    engines.log.truncate(fed.source_topic, {0: 4})
    ended = walk_on(walks, group)
    assert not ended.is_done and ended.offset == 1 == chain_end(engines, fed)
