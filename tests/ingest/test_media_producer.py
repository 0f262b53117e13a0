from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np
import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, RecordError, SettingsError, UnavailableError
from contracts.log import LogRecord, RecordPosition
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from contracts.partitioner import murmur2, partition_of
from ingest.producer import MediaProducer

Stored = Callable[[CollectionRecord], list[LogRecord]]


class HeldProducer:
    """A log producer whose acknowledgements the test gives out: the broker that is slow, or fails."""

    def __init__(self) -> None:
        self.futures: list[Future[RecordPosition]] = []

    def send(
        self, topic: str, *, partition: int, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> Future[RecordPosition]:
        future: Future[RecordPosition] = Future()
        self.futures.append(future)
        return future

    def flush(self, timeout_seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


class HeldLog:
    """The log under test with `HeldProducer` in place of its own."""

    def __init__(self, engines: Engines) -> None:
        self.held = HeldProducer()
        self.describe_topic = engines.log.describe_topic

    def producer(self, *, linger_seconds: float = 0.0) -> HeldProducer:
        return self.held


def items(records: list[LogRecord], collection: CollectionRecord) -> list[MediaItem]:
    found = [item for record in records for item in read_media_record(record, collection, RecordLimits())]
    assert all(isinstance(item, MediaItem) for item in found), found
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("bulk", [False, True])
def test_what_is_sent_can_be_read_from_the_media_topic(engines: Engines, collection: CollectionRecord, stored: Stored, bulk: bool) -> None:
    with MediaProducer(engines.log, collection, engines.settings, bulk=bulk) as producer:
        position = producer.send_picture("a", b"\xff\xd8\xff1", "image/jpeg", caption="one", attributes={"year": 2026}, acl=["x"]).result()
        producer.send_text("b", "hello", caption="greeting")
        producer.delete("c")
        producer.patch("d", {"year": 2027}, acl=["y"])
    found = {item.id: item for item in items(stored(collection), collection)}
    assert found["a"].picture == b"\xff\xd8\xff1"
    assert found["a"].text == "one"
    assert found["a"].acl == ["x"]
    assert found["a"].attributes is not None
    assert found["a"].attributes["year"] == 2026
    assert found["b"].text == "greeting\nhello"
    assert found["c"].is_delete
    assert (found["d"].patch, found["d"].acl) == ('{"year":2027}', ["y"])
    assert position.partition == producer.partition("a")
    assert sum(producer.next_offsets.values()) == 4


def test_every_id_lands_in_the_partition_of_javas_murmur2(engines: Engines, collection: CollectionRecord, stored: Stored) -> None:
    with MediaProducer(engines.log, collection, engines.settings) as producer:
        for number in range(50):
            producer.send_text(f"id-{number}", "x")
    for record in stored(collection):
        assert record.partition == partition_of("murmur2", record.key or b"", 4)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_java_test(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected & 0xFFFFFFFF


def test_a_named_partitioner_of_the_collection_is_obeyed(engines: Engines, make_collection: Callable[..., CollectionRecord], stored: Stored) -> None:
    collection = make_collection("crc", partitioner="crc32", partitions=7)
    with MediaProducer(engines.log, collection, engines.settings) as producer:
        for number in range(30):
            producer.send_text(f"id-{number}", "x")
    assert all(record.partition == partition_of("crc32", record.key or b"", 7) for record in stored(collection))


def test_rows_of_own_vectors_are_grouped_so_that_each_id_stays_in_its_partition(
    engines: Engines, collection: CollectionRecord, stored: Stored
) -> None:
    names = [f"id-{number}" for number in range(200)]
    matrix = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    with MediaProducer(engines.log, collection, engines.settings) as producer:
        futures = producer.send_vectors(
            names, {"v": matrix}, texts=[f"text {number}" for number in range(200)], attributes=[{"year": n} for n in range(200)]
        )
    records = stored(collection)
    assert len(records) == len(futures) == 4
    seen = {}
    for record in records:
        for item in items([record], collection):
            assert record.partition == partition_of("murmur2", item.id.encode(), 4)
            seen[item.id] = item
    for row, name in enumerate(names):
        assert np.array_equal(seen[name].vectors["v"], matrix[row])
        assert seen[name].text == f"text {row}"
        assert seen[name].attributes is not None
        assert seen[name].attributes["year"] == row


def test_many_rows_become_several_records_in_order(engines: Engines, make_collection: Callable[..., CollectionRecord], stored: Stored) -> None:
    collection = make_collection("one", partitions=1)
    names = [f"id-{number:05d}" for number in range(10_000)]
    with MediaProducer(engines.log, collection, engines.settings) as producer:
        producer.send_vectors(names, {"v": np.zeros((10_000, 4), np.float32)})
    records = stored(collection)
    assert len(records) == 3
    assert [item.id for item in items(records, collection)] == names


def test_vectors_that_do_not_fit_the_collection_are_refused_and_nothing_is_sent(
    engines: Engines, collection: CollectionRecord, stored: Stored
) -> None:
    with MediaProducer(engines.log, collection, engines.settings) as producer:
        with pytest.raises(NotFoundError, match="'w'"):
            producer.send_vectors(["a"], {"w": np.zeros((1, 4), np.float32)})
        with pytest.raises(SettingsError, match=r"\(1, 3\), not \(1, 4\)"):
            producer.send_vectors(["a"], {"v": np.zeros((1, 3), np.float32)})
        with pytest.raises(SettingsError, match="column of 2"):
            producer.send_vectors(["a"], {"v": np.zeros((1, 4), np.float32)}, texts=["x", "y"])
        with pytest.raises(SettingsError, match="no vectors"):
            producer.send_vectors(["a"], {})
    assert stored(collection) == []


def test_a_record_that_is_too_large_is_refused_before_it_is_sent(engines: Engines, collection: CollectionRecord) -> None:
    with MediaProducer(engines.log, collection, engines.settings) as producer:
        with pytest.raises(RecordError) as caught:
            producer.send_picture("a", bytes(1_000_001), "image/jpeg")
        assert caught.value.reason == "too_large"
        assert producer.in_flight_bytes == 0


def test_a_delivery_error_ends_the_future_and_is_raised_by_flush_once(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)
    producer = MediaProducer(log, collection, engines.settings)  # type: ignore[arg-type]
    futures = [producer.send_text(name, "x") for name in "abc"]
    log.held.futures[0].set_exception(UnavailableError("the broker is gone"))
    log.held.futures[1].set_exception(UnavailableError("still gone"))
    log.held.futures[2].set_result(RecordPosition("t", 0, 4))
    with pytest.raises(UnavailableError, match="2 records were not stored.*the broker is gone") as caught:
        producer.flush()
    assert caught.value.error_code == "not_stored"
    assert isinstance(futures[0].exception(), UnavailableError)
    assert producer.next_offsets == {0: 5}
    producer.flush()


def test_a_delivery_error_is_raised_when_the_context_ends(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)
    with pytest.raises(UnavailableError, match="not stored"), MediaProducer(log, collection, engines.settings) as producer:  # type: ignore[arg-type]
        producer.send_text("a", "x")
        log.held.futures[0].set_exception(UnavailableError("the broker is gone"))


def test_the_callers_own_error_is_not_hidden_by_a_delivery_error(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)
    with pytest.raises(KeyError), MediaProducer(log, collection, engines.settings) as producer:  # type: ignore[arg-type]
        producer.send_text("a", "x")
        log.held.futures[0].set_exception(UnavailableError("the broker is gone"))
        raise KeyError("mine")


def test_flush_gives_up_in_time_when_nothing_is_acknowledged(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)
    producer = MediaProducer(log, collection, engines.settings)  # type: ignore[arg-type]
    producer.send_text("a", "x")
    with pytest.raises(UnavailableError, match="not acknowledged"):
        producer.flush(timeout_seconds=0.05)


def test_sending_blocks_while_too_many_bytes_are_in_flight_and_goes_on_after_an_acknowledgement(
    engines: Engines, collection: CollectionRecord
) -> None:
    log = HeldLog(engines)
    producer = MediaProducer(log, collection, engines.settings, max_in_flight_bytes=10_000)  # type: ignore[arg-type]
    sent = threading.Semaphore(0)

    def send_three() -> None:
        for name in "abc":
            producer.send_picture(name, bytes(4_000), "image/jpeg")
            sent.release()

    thread = threading.Thread(target=send_three)
    thread.start()
    assert sent.acquire(timeout=5)
    assert sent.acquire(timeout=5)
    assert not sent.acquire(timeout=0.2), "the third record went out although 8 kB of 10 kB were in flight"
    log.held.futures[0].set_result(RecordPosition("t", 0, 0))
    assert sent.acquire(timeout=5)
    thread.join(5)
    assert 8_000 < producer.in_flight_bytes < 8_400


def test_a_record_larger_than_all_the_room_goes_alone(engines: Engines, collection: CollectionRecord, stored: Stored) -> None:
    with MediaProducer(engines.log, collection, engines.settings, max_in_flight_bytes=10) as producer:
        producer.send_picture("a", bytes(500), "image/jpeg")
        producer.send_picture("b", bytes(500), "image/jpeg")
    assert len(stored(collection)) == 2


def test_a_topic_that_is_gone_or_was_made_again_is_refused_at_the_start(engines: Engines, make_collection: Callable[..., CollectionRecord]) -> None:
    gone, again = make_collection("gone"), make_collection("again")
    engines.log.delete_topic(gone.source_topic)
    with pytest.raises(NotFoundError, match="does not exist"):
        MediaProducer(engines.log, gone, engines.settings)
    other = again.model_copy(update={"source_topic_id": "another"})
    with pytest.raises(SettingsError, match="made again"):
        MediaProducer(engines.log, other, engines.settings)
