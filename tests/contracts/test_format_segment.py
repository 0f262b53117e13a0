"""Segment parts: rows, their id index, and vectors with holes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, write_footer_file
from contracts.item import IdIndex, id_hash, id_hashes, version_order
from contracts.segment import CodedPart, FieldPart, read_field_part, read_rows_part, rows_schema, write_coded_part, write_field_part, write_rows_part
from tests.contracts.format_samples import field

ids = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10), unique=True, max_size=30)


def rows_of(found: list[str]) -> pa.RecordBatch:
    schema = rows_schema({"kind": "keyword"})
    values = [{"offset": 100 + n, "item": 0, "id": item_id, "text": f"text {n}"} for n, item_id in enumerate(found)]
    return pa.RecordBatch.from_pylist(values, schema=schema)


@settings(deadline=None)
@given(ids, ids)
def test_the_id_index_finds_every_id_and_no_other(stored: list[str], asked: list[str]) -> None:
    part = read_rows_part(write_rows_part(rows_of(stored), {"segment_id": "x"}), "here")
    assert part.batch.to_pylist() == rows_of(stored).to_pylist() and part.meta == {"segment_id": "x", "rows": len(stored)}
    expected = [stored.index(item_id) if item_id in stored else -1 for item_id in [*stored, *asked]]
    assert part.ids.find(id_hashes([*stored, *asked])).tolist() == expected


def test_columns_without_a_value_take_no_room_and_come_back_in_their_place() -> None:
    schema = rows_schema({"kind": "keyword"})
    values = [{"offset": n, "item": 0, "id": f"id {n}", "event_time": n} for n in range(1000)]
    rows = pa.RecordBatch.from_pylist(values, schema=schema)
    data = write_rows_part(rows, {})
    part = read_rows_part(data, "here")
    assert part.batch.schema.equals(schema) and part.batch.equals(rows)
    part.batch.validate(full=True)
    stored = sum(rows.column(name).nbytes for name in ("offset", "item", "id", "event_time", "attributes"))
    assert len(data) < stored + 20 * len(rows) + 8192  # hashes and rows of ids, padding, schema and footer
    some = pa.RecordBatch.from_pylist([*values[:2], {**values[2], "media_sha256": bytes(32), "acl": ["me"], "media_offset": 7}], schema=schema)
    assert read_rows_part(write_rows_part(some, {}), "here").batch.equals(some)


words = st.integers(0, 3) | st.just(2**64 - 1)


@given(st.lists(st.tuples(words, words), unique=True, max_size=15), st.lists(st.tuples(words, words), max_size=15))
def test_ids_that_share_the_high_word_of_their_hash_are_told_apart(stored: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    index = IdIndex.of(np.array(stored, np.uint64).reshape(-1, 2))
    found = index.find(np.array(asked, np.uint64).reshape(-1, 2))
    assert found.tolist() == [stored.index(pair) if pair in stored else -1 for pair in asked]
    as_stored = IdIndex(index.hashes.astype(">u8"), index.rows)
    assert as_stored.find(np.array(asked, np.uint64).reshape(-1, 2)).tolist() == found.tolist()


def test_the_hash_of_an_id_is_blake2b_of_16_bytes_in_two_big_endian_words() -> None:
    assert id_hash("cat-1").hex() == "1e9970014b465ff2e92a0bd071bd3164"
    high, low = id_hashes(["cat-1"])[0]
    assert int(high).to_bytes(8, "big") + int(low).to_bytes(8, "big") == id_hash("cat-1")


def test_hashes_of_another_shape_make_no_index() -> None:
    with pytest.raises(ValueError):
        IdIndex(np.zeros((3, 2), np.uint64), np.zeros(2, np.uint32))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_a_replay_of_an_old_record_loses_to_what_came_after_the_original(origin: int, later: int, own: int) -> None:
    if origin < later < own:
        assert version_order(own, 0, origin, 0) < version_order(later, 0) < version_order(own, 0)
    assert version_order(own, 0, origin, 0) > version_order(origin, 0) or own <= origin


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@given(present=st.lists(st.booleans(), max_size=12))
def test_vectors_come_back_with_the_rows_they_belong_to(dtype: str, present: list[bool]) -> None:
    record = field("image", 3, dtype)
    matrix = np.arange(len(present) * 3, dtype=dtype).reshape(-1, 3)
    mask = np.array(present, bool)
    part = read_field_part(write_field_part(record, matrix, mask), record, "here")
    assert isinstance(part, FieldPart)
    assert np.array_equal(part.matrix, matrix[mask]) and part.matrix.dtype == np.dtype(dtype)
    assert part.rows.tolist() == np.flatnonzero(mask).tolist()
    assert part.meta["rows"] == len(present) and part.meta["vectors"] == int(mask.sum())


@pytest.mark.parametrize(
    "other",
    [field("text", 3), field("image", 3, space_id="lite@0"), field("image", 3, "float32"), field("image", 3, metric="dot"), field("image", 4)],
)
def test_a_part_of_another_field_space_type_or_dimension_is_refused(other) -> None:  # type: ignore[no-untyped-def]
    data = write_field_part(field("image", 3), np.ones((2, 3), np.float16), np.ones(2, bool))
    with pytest.raises(CorruptError):
        read_field_part(data, other, "here")


def rewritten(data: bytes, sections: dict[str, bytes], **meta: object) -> bytes:
    file = FooterFile.read(data, "here")
    return write_footer_file(file.kind, {**{n: bytes(v) for n, v in file.sections.items()}, **sections}, {**file.meta, **meta})


@pytest.mark.parametrize("change", [
    lambda d: rewritten(d, {"vectors": b"123"}), lambda d: rewritten(d, {"vectors": b"\0" * 6}), lambda d: rewritten(d, {"rows": b"\1\0\0\0"}),
    lambda d: rewritten(d, {"rows": b"\xff\0\0\0" * 2}), lambda d: rewritten(d, {}, vectors=5), lambda d: rewritten(d, {}, rows=None),
    lambda d: rewritten(d, {}, layout="ivf2"), lambda d: rewritten(d, {}, rows="x"),
])  # fmt: skip
def test_a_field_part_whose_sizes_disagree_is_corrupt(change) -> None:  # type: ignore[no-untyped-def]
    record = field("image", 3)
    data = write_field_part(record, np.ones((2, 3), np.float16), np.ones(2, bool))
    with pytest.raises(CorruptError):
        read_field_part(change(data), record, "here")


def coded(rows: list[int], segment_rows: int, lists: bytes = b"lists") -> CodedPart:
    refine = np.arange(3 * len(rows), dtype=np.uint8).reshape(-1, 3)
    return CodedPart(4, "ivf_pq1x8+sq8", 7, 1, lists, refine, np.array(rows, np.uint32), segment_rows, {"imbalance": 1.5, "recall": {"1": 0.5}})


@given(st.lists(st.booleans(), max_size=12), st.binary(max_size=40))
def test_coded_vectors_come_back_with_the_rows_they_belong_to(present: list[bool], lists: bytes) -> None:
    record, one = field("image", 3), coded(np.flatnonzero(np.array(present, bool)).tolist(), len(present), lists)
    part = read_field_part(write_coded_part(record, one), record, "here")
    assert isinstance(part, CodedPart) and bytes(part.lists) == lists
    assert np.array_equal(part.refine, one.refine) and np.array_equal(part.rows, one.rows)
    for name in ("generation", "codec", "nlist", "code_bytes", "segment_rows", "statistics"):
        assert getattr(part, name) == getattr(one, name)
    assert write_coded_part(record, part) == write_coded_part(record, one)


def test_a_coded_part_of_another_field_is_refused_and_one_with_more_vectors_than_rows_is_not_written() -> None:
    data = write_coded_part(field("image", 3), coded([0, 1], 2))
    for other in (field("text", 3), field("image", 3, "float32"), field("image", 3, metric="dot"), field("image", 4)):
        with pytest.raises(CorruptError):
            read_field_part(data, other, "here")
    with pytest.raises(ValueError):
        write_coded_part(field("image", 3), coded([0, 1], 1))


@pytest.mark.parametrize("change", [
    lambda d: rewritten(d, {"refine": b"1234567"}), lambda d: rewritten(d, {"refine": b"123"}), lambda d: rewritten(d, {"rows": b"\1\0\0\0"}),
    lambda d: rewritten(d, {"rows": b"\1\0\0\0\0\0\0\0"}), lambda d: rewritten(d, {"rows": b"\1\0\0\0" * 2}),
    lambda d: rewritten(d, {"rows": b"\0\0\0\0\3\0\0\0"}), lambda d: rewritten(d, {}, vectors=3), lambda d: rewritten(d, {}, rows=2),
    lambda d: rewritten(d, {}, rows="3"), lambda d: rewritten(d, {}, refine_bytes=0), lambda d: rewritten(d, {}, refine_bytes=-3),
    lambda d: rewritten(d, {}, refine_bytes=2), lambda d: rewritten(d, {}, generation=None), lambda d: rewritten(d, {}, generation=-1),
    lambda d: rewritten(d, {}, nlist=True), lambda d: rewritten(d, {}, code_bytes="1"), lambda d: rewritten(d, {}, statistics=5),
    lambda d: rewritten(d, {}, layout="flat"), lambda d: rewritten(d, {}, layout="ivf2"),
])  # fmt: skip
def test_a_coded_part_whose_sizes_disagree_is_corrupt(change) -> None:  # type: ignore[no-untyped-def]
    record = field("image", 3)
    with pytest.raises(CorruptError):
        read_field_part(change(write_coded_part(record, coded([0, 2], 3))), record, "here")


@pytest.mark.parametrize("change", [{"rows": b"no arrow"}, {"id_hashes": b"123"}, {"id_hashes": b"\0" * 16}, {"id_rows": b"12345"}, {"id_rows": b""}])
def test_a_rows_part_whose_sections_disagree_is_corrupt(change: dict[str, bytes]) -> None:
    with pytest.raises(CorruptError):
        read_rows_part(rewritten(write_rows_part(rows_of(["a", "b"]), {}), change), "here")


def test_a_rows_part_is_not_taken_for_a_field_part() -> None:
    with pytest.raises(CorruptError, match="holds rows, not field"):
        read_field_part(write_rows_part(rows_of(["a"]), {}), field(), "here")


def test_a_matrix_of_another_width_is_not_written() -> None:
    with pytest.raises(ValueError):
        write_field_part(field("image", 3), np.ones((2, 4), np.float16), np.ones(2, bool))
