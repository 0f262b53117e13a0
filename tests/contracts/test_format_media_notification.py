"""Bucket notifications: an item per entry, objects by their real names, and no exception for any JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import REJECT_REASONS
from contracts.log import Headers
from contracts.media_record import MediaItem, RecordLimits, RejectedItem, read_media_record
from contracts.payload_ref import PayloadRef
from tests.contracts.format_samples import collection, record
from tests.examples import examples

LIMITS = RecordLimits()
NOTIFIED = collection(notifications=True)


def entry(key: Any = "cats/my+cat%2B%C3%A4.jpg", event: Any = "s3:ObjectCreated:Put", **changes: Any) -> dict[str, Any]:
    stored = {"key": key, "size": 5, "eTag": "abc", "versionId": "1"} | changes
    return {
        "eventName": event,
        "eventTime": "1970-01-01T00:00:01.000Z",
        "s3": {"bucket": {"name": "drop"}, "object": {k: v for k, v in stored.items() if v is not ...}},
    }


def read(*entries: Any, where: Any = NOTIFIED, headers: Headers = (), **more: Any) -> list[MediaItem | RejectedItem]:
    return read_media_record(record(json.dumps({"EventName": "x", "Records": list(entries)} | more).encode(), headers=headers), where, LIMITS)


def test_a_created_object_is_an_item_to_be_fetched_by_its_decoded_name() -> None:
    [found] = read(entry())
    assert isinstance(found, MediaItem)
    assert (found.id, found.event_time_us, found.is_delete) == ("drop/cats/my cat+ä.jpg", 1_000_000, False)
    assert [part.ref for part in found.parts] == [PayloadRef("cats/my cat+ä.jpg", 5, None, "drop", "abc", "1")]
    assert found.attributes == {"extra": None}


def test_a_removed_object_is_a_delete_and_entries_are_numbered() -> None:
    found = read(
        entry("a"),
        entry("b", "ObjectRemoved:Delete", size=..., eTag=..., versionId=...),
        entry("c", "s3:ObjectRemoved:DeleteMarkerCreated"),
        entry("d", "?"),
    )
    assert [(one.item, one.id) for one in found] == [(0, "drop/a"), (1, "drop/b"), (2, "drop/c"), (3, None)]
    assert [isinstance(one, MediaItem) and one.is_delete for one in found] == [False, True, True, False]


def test_of_a_deleted_version_the_bucket_is_asked_and_of_a_delete_marker_it_is_not() -> None:
    events = ("ObjectRemoved:Delete", "LifecycleExpiration:Delete", "s3:ObjectRemoved:DeleteMarkerCreated", "LifecycleExpiration:DeleteMarkerCreated")
    found = read(*(entry("a b", event) for event in events))
    assert all(isinstance(one, MediaItem) and one.is_delete for one in found)
    asked = [[part.ref for part in one.parts] for one in found if isinstance(one, MediaItem)]
    assert asked == [[PayloadRef("a b", bucket="drop")]] * 2 + [[]] * 2
    [unversioned] = read(entry("a", "ObjectRemoved:Delete", versionId=...))
    assert isinstance(unversioned, MediaItem) and unversioned.is_delete and unversioned.parts == []


def test_ids_come_from_where_the_collection_says() -> None:
    by_path, by_header = collection(notifications=True, id_from="json:s3.object.eTag"), collection(notifications=True, id_from="header:x")
    assert [one.id for one in read(entry(), where=by_path)] == ["abc"]
    assert [one.id for one in read(entry(), where=by_header, headers=(("x", b"h"),))] == ["h"]
    assert [one.id for one in read(entry("a"), entry("b"), where=by_header, headers=(("x", b"h"),))] == ["drop/a", "drop/b"]


def test_without_the_collections_word_the_same_record_is_no_notification() -> None:
    [found] = read(entry(), where=collection())
    assert isinstance(found, RejectedItem) and found.reason == "unsupported_content_type"


BAD: list[tuple[str, Any]] = [
    ("bad_envelope", 5),
    ("bad_envelope", {}),
    ("bad_envelope", entry(event=5)),
    ("empty", entry(event="s3:ObjectAccessed:Get")),
    ("bad_envelope", entry(key="")),
    ("bad_envelope", entry(key=...)),
    ("bad_envelope", entry(key="..%2Fother%2Fsecret.jpg")),
    ("bad_envelope", entry(key="a/../../other/secret.jpg")),
    ("bad_envelope", entry(key="%ff")),
    ("bad_envelope", entry(key="a%00b")),
    ("bad_envelope", entry(key="x" * 1025)),
    ("bad_envelope", {"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": "../other"}, "object": {"key": "a"}}}),
    ("bad_envelope", {"eventName": "s3:ObjectCreated:Put", "s3": {"object": {"key": "a"}}}),
    ("bad_envelope", entry(size=-1)),
    ("bad_envelope", entry(size="many")),
    ("bad_envelope", entry(eTag="a\r\nb")),
    ("bad_id", entry(key="x" * 1000)),
    ("empty", entry(size=0)),
    ("bad_time", entry() | {"eventTime": "noon"}),
]


@pytest.mark.parametrize(("expected", "bad"), BAD, ids=[f"{n}-{reason}" for n, (reason, _) in enumerate(BAD)])
def test_an_entry_that_can_never_be_indexed_is_rejected_alone(expected: str, bad: Any) -> None:
    good, found, also_good = read(entry("a"), bad, entry("b"))
    assert isinstance(good, MediaItem) and isinstance(also_good, MediaItem)
    assert isinstance(found, RejectedItem) and found.reason == expected, found


@pytest.mark.parametrize(("expected", "value"), [
    ("bad_envelope", b"no json"), ("bad_envelope", b"[" * 10_000 + b"]" * 10_000), ("bad_envelope", b"[]"), ("bad_envelope", b"{}"),
    ("bad_envelope", b'{"Records":{}}'), ("empty", b'{"Records":[]}'), ("empty", b'{"Service":"Amazon S3","Event":"s3:TestEvent"}'),
    ("bad_envelope", b'{"Records":[' + b" " * 4_194_304 + b"]}"), ("too_large", b'{"Records":[' + b",".join([b"0"] * 1001) + b"]}"),
])  # fmt: skip
def test_a_notification_without_entries_is_rejected_whole(expected: str, value: bytes) -> None:
    [found] = read_media_record(record(value), NOTIFIED, LIMITS)
    assert isinstance(found, RejectedItem) and found.reason == expected


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v, max_size=2), max_leaves=3)
texts_and_values = st.text(max_size=8) | values
an_object = st.dictionaries(st.sampled_from(["key", "size", "eTag", "versionId", "x"]), texts_and_values | st.just("a%20b"), max_size=4)
an_s3 = st.fixed_dictionaries({"bucket": st.fixed_dictionaries({"name": st.just("drop") | values}) | values, "object": an_object | values}) | values
an_entry = st.fixed_dictionaries({"eventName": st.sampled_from(["s3:ObjectCreated:Put", "ObjectRemoved:Delete"]) | values, "s3": an_s3})


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(an_entry | values, min_size=1, max_size=3), st.sampled_from([NOTIFIED, collection(notifications=True, id_from="json:s3.object.x")]))
def test_no_entry_makes_reading_raise(entries: list[Any], where: Any) -> None:
    found = read(*entries, where=where)
    assert [one.item for one in found] == list(range(len(entries)))
    for one in found:
        assert one.is_delete or one.parts if isinstance(one, MediaItem) else one.reason in REJECT_REASONS
