"""Replays: headers that say where a record's original lay, and what is read with them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.log import LogRecord
from contracts.media_origin import Items, MediaOrigin, SupersededItem, read_items, read_origin, rejected_unread, replay_headers
from contracts.media_record import MediaItem, RecordLimits, RejectedItem
from tests.contracts.format_samples import collection

HOUR_MS = 3_600_000


def record(*headers: tuple[str, bytes | None], key: bytes | None = b"cat-1", value: bytes | None = b"a cat", offset: int = 9) -> LogRecord:
    kind = (("content-type", b"text/plain"),) if value else ()
    return LogRecord("headwater.photos.media", 2, offset, 5 * HOUR_MS, key, value, (*kind, *headers))


def read(one: LogRecord) -> list[MediaItem | RejectedItem | SupersededItem]:
    return read_items([one], collection(), RecordLimits())[0]


def test_an_item_of_a_replay_carries_its_origin_and_its_own_position() -> None:
    (item,) = read(record(("hw_origin", b"2/4")))
    assert isinstance(item, MediaItem)
    assert (item.offset, item.item, item.origin_offset, item.origin_item) == (9, 0, 4, 0)
    assert item.text == "a cat" and item.id == "cat-1"


def test_a_record_that_is_no_replay_has_no_origin() -> None:
    (item,) = read(record())
    assert isinstance(item, MediaItem) and (item.origin_offset, item.origin_item) == (None, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"hw_origin": b"1/4"},  # another partition
        {"hw_origin": b"2/9"},  # the record itself
        {"hw_origin": b"2/10"},  # behind it
        {"hw_origin": b"2/-1"},
        {"hw_origin": b"4"},
        {"hw_origin": b""},
        {"hw_origin": b"2/" + b"9" * 4000},
        {"hw_origin": b"\xff/1"},
        {"hw_origin": b"2/4", "hw_items": b"3,x"},
        {"hw_origin": b"2/4", "hw_items": b"7,3"},
        {"hw_origin": b"2/4", "hw_items": b""},
    ],
)
def test_an_origin_that_cannot_be_is_rejected_as_bad_origin(headers: dict[str, bytes]) -> None:
    (item,) = read(record(*headers.items()))
    assert isinstance(item, RejectedItem) and item.reason == "bad_origin" and (item.offset, item.item) == (9, 0)


def test_items_that_a_replay_does_not_mean_are_superseded() -> None:
    (item,) = read(record(("hw_origin", b"2/4"), ("hw_items", b"3,7")))
    assert isinstance(item, SupersededItem) and (item.offset, item.item) == (9, 0)


def test_a_rejection_without_reading_the_value_keeps_the_place_of_the_original_and_acts_on_no_item_that_is_not_meant() -> None:
    def unread(*headers: tuple[str, bytes | None]) -> tuple[str | None, int | None, int | None]:
        rejected = rejected_unread(record(*headers), collection(), "embed_crashed", "it ended the worker")
        assert (rejected.offset, rejected.item, rejected.reason) == (9, 0, "embed_crashed")
        return rejected.id, rejected.origin_offset, rejected.origin_item

    assert unread() == ("cat-1", None, None)
    assert unread(("hw_origin", b"2/4")) == ("cat-1", 4, 0)
    assert unread(("hw_origin", b"2/4"), ("hw_items", b"3,7")) == (None, 4, 0)
    assert unread(("hw_origin", b"2/9")) == (None, None, None)  # a false origin


def test_hw_items_without_an_origin_says_nothing() -> None:
    (item,) = read(record(("hw_items", b"3,7")))
    assert isinstance(item, MediaItem) and item.origin_offset is None


def test_an_item_without_id_or_time_keeps_those_of_its_original() -> None:
    """The default id is the original's place, and the default time the original's timestamp, or a replay would be another item."""
    original = read(record(key=None, offset=4))[0]
    again = read(replace(record(("hw_origin", b"2/4"), ("hw_timestamp_ms", str(5 * HOUR_MS).encode()), key=None), timestamp_ms=90 * HOUR_MS))[0]
    assert isinstance(original, MediaItem) and isinstance(again, MediaItem)
    assert again.id == original.id == "headwater.photos.media/2/4/0"
    assert again.event_time_us == original.event_time_us == 5 * HOUR_MS * 1000
    assert again.produced_at_us == 90 * HOUR_MS * 1000


def test_a_replayed_delete_has_its_origin_too() -> None:
    (item,) = read(record(("hw_origin", b"2/4"), value=None))
    assert isinstance(item, MediaItem) and item.is_delete and item.origin_offset == 4


def test_a_rejected_replay_keeps_its_origin() -> None:
    (item,) = read(record(("hw_origin", b"2/4"), ("hw_acl", b"no")))
    assert isinstance(item, RejectedItem) and item.reason == "bad_acl" and (item.offset, item.origin_offset, item.origin_item) == (9, 4, 0)


def test_records_that_are_read_together_keep_their_places() -> None:
    records = [record(offset=7), record(("hw_origin", b"0/0"), offset=8), record(("hw_origin", b"2/4")), record(offset=10)]
    found = read_items(records, collection(), RecordLimits())
    assert [type(items[0]).__name__ for items in found] == ["MediaItem", "RejectedItem", "MediaItem", "MediaItem"]
    assert [items[0].offset for items in found] == [7, 8, 9, 10]


@given(st.sets(st.integers(0, 2**31), max_size=40), st.integers(0, 2**31))
def test_item_numbers_are_written_as_runs_and_read_back(numbers: set[int], other: int) -> None:
    items = Items.of(numbers)
    assert all(number in items for number in numbers) and (other in items) == (other in numbers)
    if numbers:
        assert Items.parse(str(items)) == items


def test_runs_of_items_are_short() -> None:
    assert str(Items.of([3, 7, 8, 9, 11])) == "3,7-9,11"
    assert str(Items.of(range(65_536))) == "0-65535"


@given(
    st.lists(st.tuples(st.sampled_from(["a", "hw_origin", "hw_items", "content-type"]), st.binary(max_size=3) | st.none()), max_size=6),
    st.integers(0, 8),
    st.none() | st.sets(st.integers(0, 99), min_size=1).map(Items.of),
    st.none() | st.integers(0, 10**15),
)
def test_a_replays_headers_are_the_originals_and_say_its_origin(
    headers: list[tuple[str, bytes | None]], offset: int, items: Items | None, timestamp_ms: int | None
) -> None:
    origin = MediaOrigin(offset, items, timestamp_ms)
    original = LogRecord("t", 2, 9, 0, b"k", b"v", tuple(headers))
    made = replay_headers(original, origin)
    assert read_origin(replace(original, headers=made)) == origin
    assert [h for h in made if h[0] in ("a", "content-type")] == [h for h in headers if h[0] in ("a", "content-type") and h[1] is not None]
