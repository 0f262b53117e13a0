"""A dead letter holds its original byte for byte on every log: key, value, headers, their order, duplicates and nulls."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contracts.log import Headers, Log, LogRecord, ReadHeaders, Unreadable
from contracts.media_origin import MediaOrigin, replay_headers
from indexer.dead_letter import dead_letter_record, read_dead_letter
from indexer.slices import Rejection
from tests.contracts.format_samples import collection
from tests.examples import examples

NAMES = st.sampled_from(["content-type", "hw_origin", "hw_items", "hw_reason", "__connect.errors.topic", "ce_id", "ü", ""]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=8).map(tuple)
REJECTED = st.lists(
    st.tuples(st.integers(0, 70_000), st.sampled_from(["bad_id", "zero_norm"]), st.text(max_size=30), st.booleans()), min_size=1, max_size=5
)


def append(log: Log, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> LogRecord:
    producer = log.producer()
    sent = producer.send(topic, partition=1, key=key, value=value, headers=headers)
    producer.flush(10)
    producer.close()
    record = log.read_at(topic, 1, sent.result(10).offset)
    assert record is not None
    return record


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(key=st.none() | st.binary(max_size=60), value=st.none() | st.binary(max_size=300), headers=HEADERS, rejected=REJECTED)
@example(key=b"", value=None, headers=(("a", b"2"), ("a", b""), ("a", b"1"), ("a", b"2")), rejected=[(0, "bad_id", "no", False)])
@example(key=b"k", value=b"", headers=(("__connect.errors.topic", b"another queue"), ("hw_null_value", b"1")), rejected=[(0, "bad_id", "no", True)])
def test_the_original_is_byte_identical_and_comes_back_for_the_replay(
    log: Log, topic: str, key: bytes | None, value: bytes | None, headers: Headers, rejected: list[tuple[int, str, str, bool]]
) -> None:
    if key is None and value is None:
        key = b"a delete needs a key where clients are to send it"
    original = append(log, topic, key, value, headers)
    assert (original.key, original.value, original.headers) == (key, value, headers)
    rejections = [Rejection(original, *one) for one in {one[0]: one for one in rejected}.values()]
    letter = dead_letter_record(collection(), "main", rejections)
    copy = append(log, topic, letter.key, letter.value, letter.headers)
    assert (copy.key, copy.value) == (key, value) and copy.headers[: len(headers)] == headers
    found = read_dead_letter(copy)
    assert found is not None and found.original == original
    assert found.place == (1, original.offset) and found.timestamp_ms == original.timestamp_ms and found.written_ms == copy.timestamp_ms
    assert found.items == type(found.items).of(one[0] for one in rejected) and found.reasons == letter.reasons
    replayed = append(log, topic, original.key, original.value, replay_headers(original, MediaOrigin(original.offset)))
    assert (replayed.key, replayed.value) == (key, value)
    ours = ("hw_origin", "hw_items", "hw_timestamp_ms")
    assert [h for h in replayed.headers if h[0] not in ours] == [h for h in headers if h[0] not in ours]


def test_the_headers_are_those_of_kafka_connect_and_every_value_is_text() -> None:
    """Names of org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter; partition, offset and task id are decimal texts there."""
    record = LogRecord("feed", 3, 42, 1_700_000_000_000, b"k", b"v", (("own", b"\xff"),))
    letter = dead_letter_record(collection(), "main", [Rejection(record, 0, "bad_id", "the id is empty")])
    assert letter.headers[0] == ("own", b"\xff")
    said = {name: (value or b"").decode() for name, value in letter.headers[1:]}
    assert {name.removeprefix("__connect.errors."): value for name, value in said.items() if name.startswith("__connect")} == {
        "topic": "feed",
        "partition": "3",
        "offset": "42",
        "connector.name": "headwater.photos",
        "task.id": "3",
        "stage": "VALUE_CONVERTER",
        "class.name": "indexer.decode.Decoder",
        "exception.class.name": "contracts.errors.RecordError",
        "exception.message": "the id is empty",
    }


NULLABLE = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=40)), max_size=8).map(tuple)


@given(st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=9), NULLABLE)
def test_an_original_that_our_client_could_not_send_comes_back_as_it_was(key: bytes | None, value: bytes | None, headers: ReadHeaders) -> None:
    """Null headers, and a record with neither key nor value: other clients send them."""
    original = LogRecord("feed", 1, 5, 9, key, value, headers)
    letter = dead_letter_record(collection(), "main", [Rejection(original, 0, "bad_id", "no")])
    assert all(isinstance(sent, bytes) for _, sent in letter.headers) and (letter.key, letter.value) != (None, None)
    found = read_dead_letter(LogRecord("dlq", 1, 0, 10, letter.key, letter.value, letter.headers))
    assert found is not None and found.original == original


def test_a_record_whose_bytes_cannot_be_had_leaves_its_place_and_its_size() -> None:
    original = LogRecord("feed", 1, 5, 9, None, None, (), Unreadable("too_large", "it expands too far", 6400))
    letter = dead_letter_record(collection(), "main", [Rejection(original, 0, "too_large", "it expands too far")])
    assert (letter.key, letter.value) == (None, b"")
    found = read_dead_letter(LogRecord("dlq", 1, 0, 10, letter.key, letter.value, letter.headers))
    assert found is not None and (found.place, found.size_bytes, found.original) == ((1, 5), 6400, None)
    assert (found.reasons, found.message) == (("too_large",), "it expands too far")


def test_a_record_of_another_dead_letter_queue_is_none_of_ours() -> None:
    assert read_dead_letter(LogRecord("dlq", 0, 0, 0, b"k", b"v", ())) is None
    foreign = (("__connect.errors.topic", b"t"), ("__connect.errors.partition", b"0"), ("__connect.errors.offset", b"1"))
    assert read_dead_letter(LogRecord("dlq", 0, 0, 0, b"k", b"v", foreign)) is None
