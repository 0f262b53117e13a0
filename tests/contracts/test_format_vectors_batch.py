"""The vectors batch: rows go in and come out, and damage or another space never gets through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.chain import BatchSpan
from contracts.errors import CorruptError
from contracts.log import LogRecord
from contracts.vectors_batch import (
    OPS,
    BatchItem,
    CommitNotice,
    batch_headers,
    batch_schema,
    build_batch,
    decode_batch,
    encode_batch,
    notice_headers,
    read_headers,
    vector_matrix,
)
from tests.contracts.format_samples import field, index
from tests.examples import examples

ATTRIBUTES = {"kind": "keyword", "price": "float", "tags": "keyword[]"}
INDEX = index(field("image", 4, "float16"), field("text", 3, "float32", "euclid"))
SCHEMA = batch_schema(INDEX, ATTRIBUTES)
SPAN = BatchSpan("inc", "t-media", 10, 20)
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
stamps = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


def vectors(size: int, dtype: type) -> st.SearchStrategy[Any]:
    width = 16 if dtype is np.float16 else 32
    numbers = st.floats(-60_000, 60_000, width=width)
    return st.none() | st.lists(numbers, min_size=size, max_size=size).map(lambda v: np.array(v, dtype))


attributes = st.none() | st.fixed_dictionaries(
    {
        "kind": st.none() | plain,
        "price": st.none() | st.floats(allow_nan=False),
        "tags": st.none() | st.lists(plain, max_size=2),
        "extra": st.none() | plain,
    }
)
items = st.builds(
    BatchItem,
    offset=st.integers(0, 2**63 - 1),
    item=st.integers(0, 2**31 - 1),
    op=st.sampled_from(OPS),
    id=st.none() | plain,
    origin_offset=st.none() | st.integers(0, 2**63 - 1),
    origin_item=st.none() | st.integers(0, 2**31 - 1),
    vectors=st.fixed_dictionaries({"image": vectors(4, np.float16), "text": vectors(3, np.float32)}),
    patch=st.none() | plain,
    text=st.none() | plain,
    attributes=attributes,
    acl=st.none() | st.lists(plain, max_size=2),
    event_time_us=st.none() | stamps,
    produced_at_us=st.none() | stamps,
    media_type=st.none() | plain,
    media_sha256=st.none() | st.binary(min_size=32, max_size=32),
    reason=st.none() | plain,
)


def as_record(value: bytes | None, headers: Any) -> LogRecord:
    return LogRecord("headwater.photos.main.vectors", 1, 7, 0, None, value, tuple(headers))


def round_trip(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    value = encode_batch(batch)
    record = as_record(value, batch_headers(SPAN, value))
    assert read_headers(record) == SPAN
    return decode_batch(record, schema)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(items, max_size=5))
def test_items_come_back_from_the_bytes_as_they_went_in(rows: list[BatchItem]) -> None:
    batch = round_trip(build_batch(rows, SCHEMA), SCHEMA)
    batch.validate(full=True)
    assert batch.num_rows == len(rows)
    for name in (
        "offset",
        "item",
        "op",
        "id",
        "origin_offset",
        "origin_item",
        "patch",
        "text",
        "attributes",
        "acl",
        "media_type",
        "media_sha256",
        "reason",
    ):
        assert batch.column(name).to_pylist() == [getattr(row, name) for row in rows]
    for name in ("event_time", "produced_at"):
        assert batch.column(name).cast(pa.int64()).to_pylist() == [getattr(row, f"{name}_us") for row in rows]
    for name, dtype in (("image", np.float16), ("text", np.float32)):
        matrix, present = vector_matrix(batch.column(f"vector.{name}"))
        assert matrix.dtype == dtype and matrix.shape == (len(rows), INDEX.field(name).dimension)  # type: ignore[union-attr]
        for row, item in enumerate(rows):
            vector = item.vectors[name]
            assert present[row] == (vector is not None)
            if vector is not None:
                assert np.array_equal(matrix[row], vector)


def sample() -> pa.RecordBatch:
    return build_batch(
        [BatchItem(10, 0, "upsert", "a", vectors={"image": np.ones(4, np.float16)}, text="t"), BatchItem(11, 0, "delete", "b")], SCHEMA
    )


def test_a_slice_of_a_batch_shows_its_own_vectors() -> None:
    batch = build_batch([BatchItem(n, 0, "upsert", vectors={"image": np.full(4, n, np.float16)}) for n in range(5)], SCHEMA).slice(2, 2)
    matrix, present = vector_matrix(batch.column("vector.image"))
    assert matrix[:, 0].tolist() == [2, 3] and present.all()


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_one_flipped_byte_is_refused(at: int, flip: int) -> None:
    value = bytearray(encode_batch(sample()))
    headers = batch_headers(SPAN, bytes(value))
    value[at % len(value)] ^= flip
    with pytest.raises(CorruptError, match="sha256"):
        decode_batch(as_record(bytes(value), headers), SCHEMA)


@pytest.mark.parametrize("value", [b"", b"garbage", encode_batch(sample())[:-200]])
def test_bytes_that_are_no_arrow_batch_are_refused_even_under_a_matching_hash(value: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_batch(as_record(value, batch_headers(SPAN, value)), SCHEMA)


def test_a_batch_of_an_older_schema_gets_todays_columns_with_nulls() -> None:
    newer = batch_schema(index(*INDEX.fields, field("vector", 5, "float16")), {**ATTRIBUTES, "added": "integer"})
    batch = round_trip(sample(), newer)
    assert batch.schema.equals(newer, check_metadata=True)
    batch.validate(full=True)
    matrix, present = vector_matrix(batch.column("vector.vector"))
    assert matrix.shape == (2, 5) and not present.any()
    assert vector_matrix(batch.column("vector.image"))[1].tolist() == [True, False]
    assert batch.column("text").to_pylist() == ["t", None]
    with_attributes = round_trip(build_batch([BatchItem(1, 0, "upsert", attributes={"kind": "x", "tags": ["y"]})], SCHEMA), newer)
    assert with_attributes.column("attributes").to_pylist() == [{"added": None, "kind": "x", "price": None, "tags": ["y"], "extra": None}]


def test_vectors_of_another_space_are_refused() -> None:
    other = batch_schema(index(field("image", 4, "float16", space_id="lite@0000"), INDEX.fields[1]), ATTRIBUTES)
    with pytest.raises(CorruptError, match="another embedding space"):
        round_trip(sample(), other)


@pytest.mark.parametrize("changed", [field("image", 4, "float32"), field("image", 5, "float16", space_id=INDEX.fields[0].space_id)])
def test_a_changed_vector_type_is_refused(changed: Any) -> None:
    with pytest.raises(CorruptError):
        round_trip(sample(), batch_schema(index(changed, INDEX.fields[1]), ATTRIBUTES))


def test_a_changed_attribute_type_is_refused() -> None:
    with pytest.raises(CorruptError):
        round_trip(sample(), batch_schema(INDEX, {**ATTRIBUTES, "price": "keyword"}))


def test_a_batch_without_offsets_is_refused() -> None:
    batch = sample()
    with pytest.raises(CorruptError, match="offset is missing"):
        round_trip(batch.drop_columns(["offset"]), SCHEMA)


def test_a_commit_notice_is_read_back() -> None:
    notice = CommitNotice(12, "01JD0000000000000000000000", "inc")
    assert read_headers(as_record(None, notice_headers(notice))) == notice


@pytest.mark.parametrize("name", ["hw_type", "hw_format", "hw_incarnation", "hw_topic_id", "hw_start_offset", "hw_next_offset"])
@pytest.mark.parametrize("bad", [None, b"", b"\xff", b"x"])
def test_a_missing_or_unreadable_header_is_corrupt(name: str, bad: bytes | None) -> None:
    if name in ("hw_incarnation", "hw_topic_id") and bad in (b"", b"x"):
        bad = None  # any ASCII is an identity; another one is dropped by the chain rule
    headers = [(key, bad if key == name else value) for key, value in batch_headers(SPAN, b"") if key != name or bad is not None]
    with pytest.raises(CorruptError):
        read_headers(as_record(b"", headers))


def test_another_format_version_is_named_as_such() -> None:
    headers = [(name, b"2" if name == "hw_format" else value) for name, value in batch_headers(SPAN, b"")]
    with pytest.raises(CorruptError) as caught:
        read_headers(as_record(b"", headers))
    assert caught.value.error_code == "unknown_format"
