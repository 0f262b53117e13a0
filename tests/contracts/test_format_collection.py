"""Collection and name records: strict, frozen, canonical."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.collection import CollectionRecord, NameRecord, dead_letter_topic, media_topic, own_vector_space, vectors_topic
from contracts.errors import CorruptError
from contracts.hashed_json import with_hash, without_hash
from tests.contracts.format_samples import ULID_A, collection, field, index

RECORD = collection(field("image"), field("text", 3, "float32", "dot"), attributes={"kind": "keyword", "spots": "geo[]"}, retention_seconds=60)
NAME = NameRecord(version=2, name="photos", incarnation=ULID_A)


@pytest.mark.parametrize("stored", [RECORD, NAME, NameRecord(version=3, name="photos", incarnation=None, deleted=True)])
def test_a_record_comes_back_from_its_canonical_bytes(stored: CollectionRecord | NameRecord) -> None:
    data = stored.to_bytes()
    assert type(stored).from_bytes(data, "here") == stored
    assert type(stored).from_bytes(data, "here").to_bytes() == data
    assert json.loads(without_hash(data, "here"))["format"] == 1


def changed(**changes: Any) -> bytes:
    return with_hash(json.dumps(json.loads(without_hash(RECORD.to_bytes(), "here")) | changes).encode())


@pytest.mark.parametrize("data", [
    b"", *map(with_hash, (b"", b"[]", b"null", b"{}", b"\xff", b'{"format":1}')),
    changed(surprise=1), changed(version=0), changed(version="1"), changed(version=True),
    changed(version=1.5),
    changed(partitions=0), changed(partitions=-4), changed(partitions=5000), changed(incarnation="x"), changed(incarnation=ULID_A + "\n"),
    changed(name="../x"), changed(name="a\n"), changed(attributes={"a": "int"}), changed(attributes={"extra": "keyword"}),
    changed(attributes={"a/b": "keyword"}),
    changed(active_index="other"), changed(indexes=[]), changed(partitioner="md5"), changed(id_from="key2"), changed(retention_seconds=0),
    changed(acl="on"),
    changed(owns_source_topic="yes"),
])  # fmt: skip
def test_bytes_that_are_no_record_of_this_format_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError, match="^here: "):
        CollectionRecord.from_bytes(data, "here")


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_another_format_version_is_named_as_such(found: Any) -> None:
    with pytest.raises(CorruptError) as caught:
        CollectionRecord.from_bytes(changed(format=found), "here")
    assert caught.value.error_code == "unknown_format"


def test_an_error_of_a_stored_record_does_not_show_the_value() -> None:
    with pytest.raises(CorruptError) as caught:
        CollectionRecord.from_bytes(changed(partitions="hunter2"), "here")
    assert "hunter2" not in str(caught.value) and "partitions" in str(caught.value)


@given(st.binary(max_size=60))
def test_random_bytes_are_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(CorruptError):
        NameRecord.from_bytes(data, "here")


def test_a_record_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        RECORD.version = 2  # type: ignore[misc]


@pytest.mark.parametrize("dimension", [0, -1, 16_385])
def test_a_dimension_out_of_range_is_refused(dimension: int) -> None:
    with pytest.raises(ValidationError):
        field(dimension=dimension)


def test_the_active_index_and_its_fields_are_found_by_name() -> None:
    assert RECORD.index() == RECORD.index("main") and RECORD.index().field("text") == field("text", 3, "float32", "dot")
    assert RECORD.index().field("other") is None and index().field("image") == field("image")


def test_topics_and_groups_have_these_names() -> None:
    assert media_topic("photos") == "headwater.photos.media" and vectors_topic("photos", "main") == "headwater.photos.main.vectors"
    assert RECORD.dead_letter_topic == dead_letter_topic("photos") == "headwater.photos.dead-letter"
    assert RECORD.group("main", "embed") == "headwater.photos.main.embed"


def test_a_space_of_own_vectors_differs_by_field_dimension_and_metric() -> None:
    spaces = {own_vector_space(*args) for args in [("a", 4, "cosine"), ("b", 4, "cosine"), ("a", 5, "cosine"), ("a", 4, "dot")]}
    assert len(spaces) == 4 and own_vector_space("a", 4, "cosine") in spaces
