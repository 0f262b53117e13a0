"""What every log promises, asked of the log in memory, in SQLite and in Kafka by the same test bodies."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from backends.memory_log import MemoryLog
from contracts.errors import DataLossError, NotFoundError, SettingsError
from contracts.log import CommittedOffset, GroupReader, Log, LogReader, LogRecord, OffsetBounds, RecordPosition, TopicSpec

WAIT_SECONDS = 30.0


def read_records(reader: LogReader, count: int) -> list[LogRecord]:
    """Poll until `count` records came; fails when they do not come in time or more come than asked for."""
    found: list[LogRecord] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found) < count and time.monotonic() < deadline:
        found += reader.poll(0.2)
    assert len(found) == count
    return found


def fill(log: Log, topic: str, count: int, partition: int = 0, value: bytes = b"value") -> None:
    producer = log.producer()
    futures = [producer.send(topic, partition=partition, value=value, timestamp_ms=1_000_000 + 1000 * n) for n in range(count)]
    assert [future.result(WAIT_SECONDS).offset for future in futures] == list(range(count))
    producer.close()


def wait_for_assignment(readers: dict[str, GroupReader], owned: dict[str, set[int]], wanted: set[int]) -> None:
    """Poll all readers until their partitions are disjoint, cover `wanted`, and every reader has at least one."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        for name, reader in readers.items():
            assert reader.poll(0.1) == []
            changed = reader.take_assignment()
            if changed is not None:
                owned[name] = (owned[name] - changed.revoked) | changed.assigned
        shares = [owned[name] for name in readers]
        if all(shares) and set().union(*shares) == wanted and sum(map(len, shares)) == len(wanted):
            return
    pytest.fail(f"partitions were not shared out: {owned}")


# ---- topics -------------------------------------------------------------------------------------------------------


def test_creating_a_topic_twice_returns_the_same_topic(log: Log, topic: str) -> None:
    spec = TopicSpec(topic, partitions=2, retention_ms=-1, max_record_bytes=8 * 1024 * 1024)
    first, second = log.create_topic(spec), log.create_topic(spec)
    assert first.topic_id == second.topic_id
    assert uuid.UUID(first.topic_id)
    described = log.describe_topic(topic)
    assert described is not None
    assert (described.name, described.partitions, described.topic_id) == (topic, 2, first.topic_id)
    assert described.config["retention.ms"] == "-1"
    assert described.config["cleanup.policy"] == "delete"
    assert topic in log.list_topics()


def test_a_topic_with_another_number_of_partitions_is_refused(log: Log, topic: str) -> None:
    with pytest.raises(SettingsError, match="2 partitions"):
        log.create_topic(TopicSpec(topic, partitions=3, retention_ms=-1))


@pytest.mark.parametrize("name", ["", "..", "a b", "ä", "x" * 250, "a/b"])
def test_a_name_that_kafka_would_refuse_is_refused_everywhere(log: Log, name: str) -> None:
    with pytest.raises(SettingsError):
        log.create_topic(TopicSpec(name, partitions=1, retention_ms=-1))


def test_a_topic_made_again_has_another_identity(log: Log) -> None:
    spec = TopicSpec(f"headwater-test.{uuid.uuid4().hex}", partitions=1, retention_ms=-1)
    first = log.create_topic(spec)
    log.delete_topic(spec.name)
    deadline = time.monotonic() + WAIT_SECONDS
    while log.describe_topic(spec.name) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    second = log.create_topic(spec)
    assert first.topic_id != second.topic_id
    assert log.bounds(spec.name) == {0: OffsetBounds(0, 0)}
    log.delete_topic(spec.name)


def test_a_topic_that_does_not_exist_is_told_apart_from_an_empty_one(log: Log) -> None:
    name = f"headwater-test.{uuid.uuid4().hex}"
    assert log.describe_topic(name) is None
    log.delete_topic(name)  # no error
    producer = log.producer()
    for ask in (
        lambda: log.bounds(name),
        lambda: log.offsets_for_time(name, 0),
        lambda: log.truncate(name, {0: 0}),
        lambda: log.read_at(name, 0, 0),
        lambda: log.reader(name, {0: 0}),
        lambda: log.group_reader(name, "group"),
        lambda: producer.send(name, partition=0, value=b"x"),
    ):
        with pytest.raises(NotFoundError, match=name):
            ask()
    assert name not in log.list_topics()
    producer.close()


def test_the_cluster_has_a_stable_identity(log: Log) -> None:
    assert log.cluster_id()
    assert log.cluster_id() == log.cluster_id()


# ---- records ------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_sent(log: Log, topic: str) -> None:
    producer = log.producer()
    headers = (("content-type", b"image/jpeg"), ("twice", b"1"), ("twice", b"\x00\xff"))
    sent = producer.send(topic, partition=1, key="schlüssel".encode(), value=bytes(range(256)), headers=headers, timestamp_ms=1_700_000_000_123)
    assert sent.result(WAIT_SECONDS) == RecordPosition(topic, 1, 0)
    deleted = producer.send(topic, partition=1, key=b"k", value=None)
    assert deleted.result(WAIT_SECONDS) == RecordPosition(topic, 1, 1)
    empty = producer.send(topic, partition=1, key=None, value=b"")
    empty.result(WAIT_SECONDS)
    reader = log.reader(topic, {0: 0, 1: 0})
    first, second, third = read_records(reader, 3)
    assert first == LogRecord(topic, 1, 0, 1_700_000_000_123, "schlüssel".encode(), bytes(range(256)), headers)
    assert first.header("twice") == b"\x00\xff"
    assert (second.key, second.value, second.headers) == (b"k", None, ())
    assert abs(second.timestamp_ms - time.time() * 1000) < 60_000
    assert (third.key, third.value) == (None, b"")
    reader.close()
    producer.close()


def test_sends_of_one_producer_keep_their_order(log: Log, topic: str) -> None:
    producer = log.producer(linger_seconds=0.005)
    for n in range(500):
        producer.send(topic, partition=n % 2, value=str(n).encode())
    producer.flush(WAIT_SECONDS)
    assert log.bounds(topic) == {0: OffsetBounds(0, 250), 1: OffsetBounds(0, 250)}
    reader = log.reader(topic, {0: 0, 1: 0})
    records = read_records(reader, 500)
    for partition in (0, 1):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(250))
        assert [int(record.value or b"") for record in mine] == list(range(partition, 500, 2))
    reader.close()
    producer.close()


def test_threads_that_send_at_once_lose_nothing_and_leave_no_hole(log: Log, topic: str) -> None:
    def produce(name: int) -> None:
        producer = log.producer()
        for n in range(50):
            producer.send(topic, partition=0, value=f"{name}/{n}".encode())
        producer.flush(WAIT_SECONDS)
        producer.close()

    threads = [threading.Thread(target=produce, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    reader = log.reader(topic, {0: 0})
    records = read_records(reader, 200)
    assert [record.offset for record in records] == list(range(200))
    for name in range(4):
        mine = [int((record.value or b"").split(b"/")[1]) for record in records if (record.value or b"").startswith(b"%d/" % name)]
        assert mine == list(range(50))
    reader.close()


def test_media_sized_records_pass_and_larger_ones_are_refused_at_once(log: Log, topic: str) -> None:
    producer = log.producer()
    body = bytes(range(256)) * (8 * 4096 - 4)  # 8 MiB less 1 KiB
    producer.send(topic, partition=0, value=body).result(WAIT_SECONDS)
    with pytest.raises(SettingsError, match="larger"):
        producer.send(topic, partition=0, value=bytes(8 * 1024 * 1024 + 64 * 1024))
    producer.send(topic, partition=0, value=b"small").result(WAIT_SECONDS)
    reader = log.reader(topic, {0: 0})
    assert [record.value == expected for record, expected in zip(read_records(reader, 2), [body, b"small"], strict=True)] == [True, True]
    reader.close()
    producer.close()


def test_a_partition_that_the_topic_lacks_is_refused(log: Log, topic: str) -> None:
    producer = log.producer()
    for ask in (
        lambda: producer.send(topic, partition=2, value=b"x"),
        lambda: log.reader(topic, {2: 0}),
        lambda: log.read_at(topic, 2, 0),
        lambda: log.truncate(topic, {2: 0}),
    ):
        with pytest.raises(SettingsError, match="no partition 2"):
            ask()
    producer.close()


def test_a_record_with_neither_key_nor_value_is_refused(log: Log, topic: str) -> None:
    producer = log.producer()
    with pytest.raises(SettingsError, match="neither key nor value"):
        producer.send(topic, partition=0)
    producer.close()


def test_a_closed_producer_refuses_and_has_flushed(log: Log, topic: str) -> None:
    producer = log.producer(linger_seconds=0.05)
    sent = [producer.send(topic, partition=0, value=b"x") for _ in range(10)]
    producer.close()
    assert [future.result(0).offset for future in sent] == list(range(10))
    with pytest.raises(SettingsError, match="closed"):
        producer.send(topic, partition=0, value=b"x")
    producer.close()  # closing twice is fine


# ---- reading ------------------------------------------------------------------------------------------------------


def test_a_reader_starts_exactly_where_it_is_told(log: Log, topic: str) -> None:
    fill(log, topic, 10)
    reader = log.reader(topic, {0: 7})
    assert reader.position(0) == 7
    assert [record.offset for record in read_records(reader, 3)] == [7, 8, 9]
    assert reader.position(0) == 10
    reader.seek(0, 2)
    assert reader.position(0) == 2
    assert [record.offset for record in read_records(reader, 8)] == list(range(2, 10))
    reader.close()


def test_a_leader_that_lasts_has_one_epoch(log: Log, topic: str) -> None:
    before = {partition: held.leader_epoch for partition, held in log.bounds(topic).items()}
    fill(log, topic, 3)
    assert {partition: held.leader_epoch for partition, held in log.bounds(topic).items()} == before and min(before.values()) >= 0


def test_a_poll_returns_no_more_than_it_was_asked_for(log: Log, topic: str) -> None:
    fill(log, topic, 10)
    reader = log.reader(topic, {0: 0})
    found: list[int] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found) < 10 and time.monotonic() < deadline:
        records = reader.poll(0.2, max_records=3)
        assert len(records) <= 3
        found += [record.offset for record in records]
        assert reader.position(0) == len(found)
    assert found == list(range(10))
    reader.close()


def test_a_poll_waits_for_its_time_and_wakes_early_for_a_record(log: Log, topic: str) -> None:
    producer = log.producer()
    producer.send(topic, partition=0, value=b"first").result(WAIT_SECONDS)
    reader = log.reader(topic, {0: 0})
    read_records(reader, 1)
    begun = time.monotonic()
    assert reader.poll(0.3) == []
    assert 0.25 < time.monotonic() - begun < 15
    timer = threading.Timer(0.2, lambda: producer.send(topic, partition=0, value=b"second"))
    timer.start()
    begun = time.monotonic()
    assert [record.value for record in reader.poll(60.0)] == [b"second"]
    assert time.monotonic() - begun < 30
    timer.join()
    reader.close()
    producer.close()


def test_a_paused_partition_returns_nothing_and_keeps_its_position(log: Log, topic: str) -> None:
    fill(log, topic, 5, partition=0)
    fill(log, topic, 5, partition=1)
    reader = log.reader(topic, {0: 0, 1: 0})
    reader.pause([0])
    assert {record.partition for record in read_records(reader, 5)} == {1}
    assert reader.poll(0.3) == []
    assert reader.position(0) == 0
    reader.pause([0, 1])
    assert reader.poll(0.1) == []
    reader.resume([0])
    assert [(record.partition, record.offset) for record in read_records(reader, 5)] == [(0, n) for n in range(5)]
    reader.close()


def test_a_pause_after_a_partial_poll_loses_nothing(log: Log, topic: str) -> None:
    fill(log, topic, 20)
    reader = log.reader(topic, {0: 0})
    first: list[LogRecord] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while not first and time.monotonic() < deadline:
        first = reader.poll(0.2, max_records=3)
    reader.pause([0])
    assert reader.poll(0.3) == []
    reader.resume([0])
    rest = read_records(reader, 20 - len(first))
    assert [record.offset for record in first + rest] == list(range(20))
    reader.close()


@pytest.mark.parametrize("position", [0, 99])
def test_a_position_outside_the_log_is_an_error_and_never_a_jump(log: Log, topic: str, position: int) -> None:
    fill(log, topic, 10)
    log.truncate(topic, {0: 5})
    reader = log.reader(topic, {0: position})
    for _ in range(2):
        deadline = time.monotonic() + WAIT_SECONDS
        with pytest.raises(DataLossError, match=f"{topic}/0"):
            while time.monotonic() < deadline:
                assert reader.poll(0.2) == []
        assert reader.position(0) == position
    reader.seek(0, 5)
    assert [record.offset for record in read_records(reader, 5)] == [5, 6, 7, 8, 9]
    reader.close()


def test_a_reader_knows_only_its_own_partitions(log: Log, topic: str) -> None:
    reader = log.reader(topic, {0: 0})
    with pytest.raises(SettingsError, match="does not read"):
        reader.position(1)
    with pytest.raises(SettingsError, match="does not read"):
        reader.seek(1, 0)
    reader.close()
    with pytest.raises(SettingsError, match="closed"):
        reader.poll(0.0)
    reader.close()


# ---- offsets ------------------------------------------------------------------------------------------------------


def test_truncate_moves_the_start_and_nothing_else(log: Log, topic: str) -> None:
    fill(log, topic, 10, partition=0)
    fill(log, topic, 4, partition=1)
    log.truncate(topic, {0: 6})
    assert log.bounds(topic) == {0: OffsetBounds(6, 10), 1: OffsetBounds(0, 4)}
    log.truncate(topic, {0: 3, 1: 4})  # 3 lies below the start: nothing to do there
    assert log.bounds(topic) == {0: OffsetBounds(6, 10), 1: OffsetBounds(4, 4)}
    assert log.read_at(topic, 0, 5) is None
    producer = log.producer()
    assert producer.send(topic, partition=1, value=b"x").result(WAIT_SECONDS).offset == 4
    producer.close()
    with pytest.raises(SettingsError, match="next offset is 10"):
        log.truncate(topic, {0: 11})


def test_one_record_can_be_read_by_its_offset(log: Log, topic: str) -> None:
    fill(log, topic, 5)
    record = log.read_at(topic, 0, 3)
    assert record is not None
    assert (record.offset, record.value) == (3, b"value")
    assert log.read_at(topic, 0, 5) is None
    assert log.read_at(topic, 0, 500) is None
    assert log.read_at(topic, 1, 0) is None
    again = log.read_at(topic, 0, 0)
    assert again is not None
    assert again.offset == 0


def test_times_lead_to_offsets(log: Log, topic: str) -> None:
    fill(log, topic, 10)  # timestamps 1,000,000 to 1,009,000
    assert log.offsets_for_time(topic, 0) == {0: 0, 1: 0}
    assert log.offsets_for_time(topic, 1_003_000) == {0: 3, 1: 0}
    assert log.offsets_for_time(topic, 1_003_001) == {0: 4, 1: 0}
    assert log.offsets_for_time(topic, 1_009_001) == {0: 10, 1: 0}


# ---- groups -------------------------------------------------------------------------------------------------------


def test_an_assigned_partition_waits_for_its_position(log: Log, topic: str) -> None:
    fill(log, topic, 5)
    reader = log.group_reader(topic, f"group-{topic}")
    owned: dict[str, set[int]] = {"a": set()}
    wait_for_assignment({"a": reader}, owned, {0, 1})
    assert reader.take_assignment() is None
    assert reader.poll(0.5) == []
    reader.seek(0, 2)
    assert [record.offset for record in read_records(reader, 3)] == [2, 3, 4]
    reader.seek(1, 0)
    assert reader.position(1) == 0
    reader.close()


def test_members_share_the_partitions_and_take_over_when_one_leaves(log: Log, topic: str) -> None:
    fill(log, topic, 3, partition=0)
    fill(log, topic, 3, partition=1)
    group = f"group-{topic}"
    readers = {"a": log.group_reader(topic, group)}
    owned: dict[str, set[int]] = {"a": set(), "b": set()}
    wait_for_assignment(readers, owned, {0, 1})
    readers["b"] = log.group_reader(topic, group)
    wait_for_assignment(readers, owned, {0, 1})
    gone = readers.pop("a")
    gone.close()
    owned["a"] = set()
    wait_for_assignment(readers, owned, {0, 1})
    for partition in (0, 1):
        readers["b"].seek(partition, 1)
    records = read_records(readers["b"], 4)
    assert sorted((record.partition, record.offset) for record in records) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    readers["b"].close()


def test_membership_stays_while_everything_is_paused(log: Log, topic: str) -> None:
    paused_seconds = 0.5 if isinstance(log, MemoryLog) else 3.5  # longer than SQLite's session; the memory log knows none
    reader = log.group_reader(topic, f"group-{topic}")
    owned: dict[str, set[int]] = {"a": set()}
    wait_for_assignment({"a": reader}, owned, {0, 1})
    fill(log, topic, 3)
    reader.seek(0, 0)
    reader.seek(1, 0)
    reader.pause([0, 1])
    until = time.monotonic() + paused_seconds
    while time.monotonic() < until:
        assert reader.poll(0.5) == []
    assert reader.take_assignment() is None
    reader.resume([0])
    assert [record.offset for record in read_records(reader, 3)] == [0, 1, 2]
    reader.close()


def test_committed_offsets_are_kept_with_their_metadata(log: Log, topic: str) -> None:
    group = f"group-{topic}"
    reader = log.group_reader(topic, group)
    wait_for_assignment({"a": reader}, {"a": set()}, {0, 1})
    assert reader.committed(0) is None
    reader.commit(0, CommittedOffset(7, "attempts=1"), is_awaited=True)
    assert reader.committed(0) == CommittedOffset(7, "attempts=1")
    reader.commit(0, CommittedOffset(7, "attempts=2"))
    deadline = time.monotonic() + 10
    while reader.committed(0) != CommittedOffset(7, "attempts=2") and time.monotonic() < deadline:
        reader.poll(0.05)  # a commit need not be waited for
    assert reader.committed(0) == CommittedOffset(7, "attempts=2")
    reader.close()
    again = log.group_reader(topic, group)
    wait_for_assignment({"a": again}, {"a": set()}, {0, 1})
    assert again.committed(0) == CommittedOffset(7, "attempts=2")
    assert again.committed(1) is None
    again.close()


def test_seeking_a_partition_that_was_taken_away_is_no_error(log: Log, topic: str) -> None:
    reader = log.group_reader(topic, f"group-{topic}")
    reader.seek(0, 0)  # not assigned yet
    reader.pause([1])
    reader.resume([1])
    wait_for_assignment({"a": reader}, {"a": set()}, {0, 1})
    reader.close()
