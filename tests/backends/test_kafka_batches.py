"""Compressed batches of Kafka within their bound: what is larger is a record without bytes at every offset, and the stream goes on."""

from __future__ import annotations

import inspect
import threading
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatch, LegacyRecordBatchBuilder

from backends.kafka_batches import ExpansionBound, UnreadableHeaders, _PartitionRecords, expanded
from backends.kafka_consumer import to_record
from backends.kafka_log import KafkaLog
from contracts.log import Log, LogReader, LogRecord, TopicSpec
from contracts.media_record import RecordLimits, RejectedItem, read_media_record
from contracts.settings import MEBIBYTE, Settings
from tests.contracts.format_samples import collection

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
BOUND = MEBIBYTE
AT = TopicPartition("t", 0)
Pairs = list[tuple[bytes | None, bytes | None]]


def batch(kind: int, pairs: Pairs, offset: int = 0) -> bytes:
    """A record batch as kafka-python's producer makes it, at an offset of a broker's choice."""
    builder = DefaultRecordBatchBuilder(2, kind, False, -1, -1, -1, 1 << 30)
    for number, (key, value) in enumerate(pairs):
        builder.append(number, 1000 + number, key, value, [("h", b"x")])
    data = bytearray(builder.build())
    data[:8] = offset.to_bytes(8, "big")
    return bytes(data)


def fetched(data: bytes, bound: ExpansionBound | None = None, fetch_offset: int = 0, **options: Any) -> Any:
    kind = Fetcher.PartitionRecords if bound is None else partial(_PartitionRecords, bound)
    return kind(fetch_offset, AT, MemoryRecords(data), **options)


def room() -> ExpansionBound:
    return ExpansionBound(BOUND, BOUND)


def places(records: list[Any]) -> list[tuple[int, bool]]:
    return [(record.offset, record.unreadable is not None) for record in map(to_record, records)]


SMALL: Pairs = [(b"a", b"one"), (None, b""), (b"c", None), (b"d", b"four" * 1000)]


@pytest.mark.parametrize("kind", [0, GZIP, LZ4, ZSTD])
def test_what_is_within_the_bound_comes_as_kafka_python_reads_it(kind: int) -> None:
    data = batch(kind, SMALL, 10) + batch(kind, SMALL, 14)
    assert fetched(data, room(), 11).take() == fetched(data, None, 11).take() != []


@pytest.mark.parametrize("kind", [GZIP, LZ4, ZSTD])
def test_a_batch_beyond_the_bound_is_a_record_without_bytes_at_every_offset(kind: int) -> None:
    bomb = batch(kind, [(b"k", bytes(BOUND)), (b"k", b"small"), (b"k", b"small")], 10)
    assert len(bomb) < BOUND // 100
    found = fetched(batch(kind, SMALL, 6) + bomb + batch(kind, SMALL, 13), room(), 6).take()
    assert places(found) == [(at, 10 <= at < 13) for at in range(6, 17)]
    gone = to_record(found[5])
    assert gone.unreadable is not None and (gone.key, gone.value, gone.headers, gone.timestamp_ms) == (None, None, (), 1002)
    assert (gone.unreadable.reason, str(BOUND) in gone.unreadable.message) == ("too_large", True)
    assert to_record(found[-1]).value == SMALL[-1][1]


def test_a_bomb_takes_no_more_memory_than_the_bound() -> None:
    data = batch(ZSTD, [(None, bytes(200 * MEBIBYTE))])
    assert len(data) < 10_000
    tracemalloc.start()
    assert places(fetched(data, room()).take()) == [(0, True)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * BOUND


def test_reading_goes_on_inside_such_a_batch_and_few_at_a_time() -> None:
    records = fetched(batch(ZSTD, [(None, bytes(BOUND))] * 5, 10), room(), 12)
    assert [places(records.take(2)), records.next_fetch_offset, places(records.take(2))] == [[(12, True), (13, True)], 14, [(14, True)]]


def test_one_poll_brings_no_more_expanded_bytes_than_the_bound_and_the_rest_is_fetched_again() -> None:
    """Twenty batches within the bound, together far beyond it: a poll of 500 records must not hold them all."""
    data = b"".join(batch(ZSTD, [(None, bytes(BOUND // 4)), (None, b"x")], 2 * at) for at in range(20))
    bound, seen, position = room(), [], 0
    while position < 40:
        bound.left_bytes = BOUND
        records = fetched(data, bound, position)
        found = records.take(500)
        assert 0 < sum(len(record.value) for record in found) <= BOUND + BOUND // 4
        assert bool(records) is False
        seen += [record.offset for record in found]
        assert records.next_fetch_offset > position
        position = records.next_fetch_offset
    assert seen == list(range(40))


def test_a_partition_for_which_a_poll_has_no_room_stays_where_it_is() -> None:
    bound, drained = ExpansionBound(BOUND, 0), []
    records = fetched(batch(ZSTD, SMALL, 3), bound, 3, on_drain=drained.append)
    assert (records.take(10), records.next_fetch_offset, drained) == ([], 3, [records])


def xerial(blocks: list[bytes]) -> bytes:
    """Framing of the Java client: marker, two versions, then blocks with their lengths."""
    return b"\x82SNAPPY\0" + (1).to_bytes(4, "big") * 2 + b"".join(len(block).to_bytes(4, "big") + block for block in blocks)


def test_snappy_is_read_raw_and_in_the_framing_of_java_and_never_beyond_the_bound() -> None:
    snappy = pa.Codec("snappy")
    part = bytes(range(256)) * 100
    raw, framed = snappy.compress(part, asbytes=True), xerial([snappy.compress(part, asbytes=True)] * 3)
    assert expanded(SNAPPY, memoryview(raw), BOUND) == part and expanded(SNAPPY, memoryview(framed), BOUND) == part * 3
    liar = b"\xff\xff\xff\xff\x07" + bytes(20)  # says that it is 2 GiB
    for data, reason in ((xerial([raw] * 100), "too_large"), (liar, "too_large"), (b"\x85", "bad_envelope"), (raw[:50], "bad_envelope")):
        with pytest.raises(Exception, match="its Kafka batch") as caught:
            expanded(SNAPPY, memoryview(data), BOUND)
        assert caught.value.unreadable.reason == reason  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [GZIP, SNAPPY, LZ4, ZSTD, 7])
def test_what_cannot_be_expanded_is_a_record_without_bytes_too(kind: int) -> None:
    """A broker that does not look into batches takes it; it must not end every consumer again and again."""
    data = bytearray(batch(0, SMALL, 5))
    data[21:23] = kind.to_bytes(2, "big")  # the attributes
    found = fetched(bytes(data), room(), 5, check_crcs=False).take()
    assert places(found) == [(at, True) for at in range(5, 9)]
    assert {record.headers.unreadable.reason for record in found} == {"bad_envelope"}


def test_batches_of_old_formats_are_bounded_too() -> None:
    def old(value: bytes) -> bytes:
        builder = LegacyRecordBatchBuilder(1, GZIP, 1 << 30)
        for number in range(3):
            builder.append(number, 1000, b"k", value)
        data = bytearray(builder.build())
        data[:8] = (12).to_bytes(8, "big")  # its last offset
        return bytes(data)

    assert fetched(old(b"v" * 100), room(), 10, check_crcs=False).take() == fetched(old(b"v" * 100), None, 10, check_crcs=False).take() != []
    assert places(fetched(old(bytes(BOUND)), room(), 10, check_crcs=False).take()) == [(12, True)]


def test_kafka_python_has_the_seams_that_are_used() -> None:
    """Fails where an upgrade moves them: then the bound must find another place before that version is allowed."""
    assert "self.PartitionRecords(" in inspect.getsource(Fetcher._parse_fetched_data)
    assert "next_batch()" in inspect.getsource(Fetcher.PartitionRecords._unpack_records)
    assert "in batch:" in inspect.getsource(Fetcher.PartitionRecords._unpack_records)
    assert "self._unpack_records(" in inspect.getsource(Fetcher.PartitionRecords.__init__)
    assert "self.record_iterator" in inspect.getsource(Fetcher.PartitionRecords.take)
    assert {"_buffer", "_pos", "_decompressed"} <= set(DefaultRecordBatch.__slots__)
    assert "self._decompress(" in inspect.getsource(LegacyRecordBatch.__iter__)
    decoders = [line for line in inspect.getsource(DefaultRecordBatch).splitlines() if "_decode(" in line]
    assert len(decoders) == 4, "a codec that is not bounded yet"


def test_no_producer_can_write_the_mark() -> None:
    found = fetched(batch(ZSTD, [(b"k", b"v")]), room()).take()
    assert not isinstance(found[0].headers, UnreadableHeaders)


def test_it_is_a_rejection_and_no_delete() -> None:
    gone = to_record(fetched(batch(ZSTD, [(b"k", bytes(BOUND))]), room()).take()[0])
    for kind in (collection(), collection(notifications=True), collection(on_reject="remove")):
        (item,) = read_media_record(gone, kind, RecordLimits())
        assert isinstance(item, RejectedItem) and (item.reason, item.id) == ("too_large", None)


# ---- on a broker ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bombed(kafka_settings: Settings) -> Iterator[tuple[Log, str]]:
    """A topic of three records in one partition; the second is 5 KB of zstd that hold 150 MiB."""
    log, name = KafkaLog(kafka_settings), f"headwater-test.{uuid.uuid4().hex}"
    log.create_topic(TopicSpec(name, partitions=1, retention_ms=-1))
    try:
        where = kafka_settings.log_url.removeprefix("kafka://")
        producer = KafkaProducer(bootstrap_servers=where, compression_type="zstd", max_request_size=1 << 30)
        for value in (b"before", bytes(150 * MEBIBYTE), b"behind"):
            producer.send(name, key=b"k", value=value, partition=0).get(30)
        producer.close()
        yield log, name
    finally:
        log.delete_topic(name)
        log.close()


def read(reader: LogReader, records: int) -> list[LogRecord]:
    found: list[LogRecord] = []
    deadline = time.monotonic() + 20
    while len(found) < records and time.monotonic() < deadline:
        found += reader.poll(0.2)
    reader.close()
    return found


@pytest.mark.kafka
def test_every_reader_of_a_broker_passes_over_a_bomb(bombed: tuple[Log, str]) -> None:
    log, name = bombed
    group = log.group_reader(name, f"g-{uuid.uuid4().hex}")
    stop = threading.Event()
    while group.take_assignment() is None and not stop.wait(0.05):
        group.poll(0.1)
    group.seek(0, 0)
    pointed = [log.read_at(name, 0, at) for at in range(3)]
    for records in (read(log.reader(name, {0: 0}), 3), read(group, 3), [one for one in pointed if one is not None]):
        assert [(one.offset, one.value, one.unreadable is not None) for one in records] == [
            (0, b"before", False),
            (1, None, True),
            (2, b"behind", False),
        ]
