from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.collection import CollectionRecord, FieldRecord, IndexRecord, own_vector_space
from contracts.errors import RecordError, SettingsError
from contracts.log import LogRecord
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from ingest.records import Annotations, OutgoingRecord, RowColumns, cloudevent_record, delete_record, patch_record, plain_record, rfc3339, rows_record

FIELD = FieldRecord(name="v", source="vector", encoder=None, space_id=own_vector_space("v", 3, "dot"), dimension=3, metric="dot", dtype="float32")
COLLECTION = CollectionRecord(
    version=1,
    name="photos",
    incarnation="01J00000000000000000000000",
    created_at="2026-11-23T00:00:00Z",
    attributes={"category": "keyword", "year": "integer"},
    partitions=4,
    cluster_id="c",
    source_topic="t",
    source_topic_id="i",
    owns_source_topic=True,
    active_index="main",
    indexes=(IndexRecord(name="main", fields=(FIELD,), vectors_topic="vt", vectors_topic_id="vi"),),
)

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60)
ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=100)
attributes = st.none() | st.fixed_dictionaries({}, optional={"category": text, "year": st.integers(-(2**63), 2**63 - 1), "other": st.booleans()})
NAIVE = (datetime(1970, 1, 2), datetime(2200, 1, 1))  # noqa: DTZ001 - hypothesis adds the zone
times = st.none() | st.datetimes(*NAIVE, timezones=st.just(UTC))
acls = st.none() | st.lists(text, max_size=3)
annotations = st.builds(Annotations, caption=st.none() | text, attributes=attributes, acl=acls, time=times)


def read_back(record: OutgoingRecord) -> list[Any]:
    return read_media_record(LogRecord("t", 1, 7, 1_000, record.key, record.value, record.headers), COLLECTION, RecordLimits())


def microseconds(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def check_item(item: MediaItem, said: Annotations) -> None:
    said_attributes = said.attributes or {}
    assert item.text == said.caption
    assert item.acl == said.acl
    assert item.event_time_us == (1_000_000 if said.time is None else microseconds(said.time))
    assert item.attributes is not None
    assert item.attributes.get("category") == said_attributes.get("category")
    assert item.attributes.get("year") == said_attributes.get("year")
    assert ("other" in said_attributes) == (item.attributes["extra"] is not None)


@given(ids, st.binary(min_size=1, max_size=50), annotations)
def test_a_plain_record_reads_back_as_what_was_said(item_id: str, data: bytes, said: Annotations) -> None:
    (item,) = read_back(plain_record(item_id, data, "image/jpeg", said))
    assert isinstance(item, MediaItem)
    assert (item.id, item.picture, item.media_type) == (item_id, data, "image/jpeg")
    check_item(item, said)


@given(ids, st.binary(min_size=1, max_size=50), annotations)
def test_a_cloudevent_reads_back_as_what_was_said(item_id: str, data: bytes, said: Annotations) -> None:
    record = cloudevent_record(item_id, data, "image/png", said, source="/camera/1")
    (item,) = read_back(record)
    assert isinstance(item, MediaItem)
    assert (item.id, item.picture, item.media_type) == (item_id, data, "image/png")
    assert dict(record.headers)["ce_specversion"] == b"1.0"
    check_item(item, said)


@given(
    st.lists(
        st.tuples(ids, annotations, st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_an_arrow_record_reads_back_row_by_row(rows: list[tuple[str, Annotations, list[float]]]) -> None:
    said = [row[1] for row in rows]
    columns = RowColumns([a.caption for a in said], [a.attributes for a in said], [a.acl for a in said], [a.time for a in said])  # type: ignore[misc]
    matrix = np.array([row[2] for row in rows], np.float32)
    items = read_back(rows_record([row[0] for row in rows], {"v": matrix}, columns))
    assert [item.item for item in items] == list(range(len(rows)))
    for item, (item_id, annotation, vector) in zip(items, rows, strict=True):
        assert isinstance(item, MediaItem)
        assert item.id == item_id
        assert np.array_equal(item.vectors["v"], np.array(vector, np.float32))
        check_item(item, annotation)


@given(ids)
def test_a_delete_reads_back_as_a_delete_of_its_id(item_id: str) -> None:
    (item,) = read_back(delete_record(item_id))
    assert isinstance(item, MediaItem)
    assert item.is_delete
    assert item.id == item_id


def test_a_patch_reads_back_as_a_patch_of_its_id() -> None:
    (found,) = read_back(patch_record("a", {"b": None, "a": {"x": 1}}, ["staff"]))
    assert (found.id, found.patch, found.acl) == ("a", '{"a":{"x":1},"b":null}', ["staff"])
    (found,) = read_back(patch_record("a", {}))
    assert (found.patch, found.acl) == ("{}", None)


@pytest.mark.parametrize("item_id", ["", "x" * 513, "a\0b", "\udcff"])
def test_an_id_that_cannot_be_stored_is_refused_before_it_is_sent(item_id: str) -> None:
    for build in (
        lambda: plain_record(item_id, b"x", "image/jpeg"),
        lambda: delete_record(item_id),
        lambda: rows_record([item_id], {"v": np.ones((1, 3))}),
    ):
        with pytest.raises(RecordError, match="id") as caught:
            build()
        assert caught.value.reason == "bad_id"


def test_half_precision_vectors_are_sent_as_they_are() -> None:
    matrix = np.array([[0.1, 0.2, 0.3]], np.float16)
    record = rows_record(["a"], {"v": matrix})
    (item,) = read_back(record)
    assert np.array_equal(item.vectors["v"], matrix[0].astype(np.float32))
    assert record.size_bytes == len(record.value or b"") + sum(len(k) + len(v) for k, v in record.headers)


def test_a_time_without_a_zone_is_refused_and_others_are_written_in_utc() -> None:
    with pytest.raises(SettingsError, match="zone"):
        rfc3339(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
    east = timezone(timedelta(hours=2))
    assert rfc3339(datetime(2026, 1, 1, 2, tzinfo=east)) == "2026-01-01T00:00:00Z"
    assert math.isclose(microseconds(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)), 1_000_000)
