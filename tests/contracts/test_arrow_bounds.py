"""Arrow streams that are small in a record and large in memory: refused by what they declare, before it is there."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.arrow_bounds import check_expansion
from contracts.errors import RecordError
from contracts.media_record import ARROW_TYPE, MediaItem, RecordLimits, RejectedItem, read_media_record
from tests.contracts.format_samples import collection, field, record
from tests.examples import examples

WHERE = collection(field("image", 4, "float32"), attributes={"price": "float"})
LIMITS = RecordLimits()


def stream(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read(value: bytes, limits: RecordLimits = LIMITS) -> list[MediaItem | RejectedItem]:
    return read_media_record(record(value, headers=(("content-type", ARROW_TYPE.encode()),)), WHERE, limits)


def reason(table: pa.Table) -> str | None:
    [found] = {one.reason if isinstance(one, RejectedItem) else None for one in read(stream(table))}
    return found


def rows(count: int, **columns: Any) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(count * 4, np.float32)), 4)
    return pa.table({"id": pa.array([str(n) for n in range(count)]), "image": vectors} | columns)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_rows_are_read_like_others_and_refused_by_the_size_they_declare(compression: str) -> None:
    table = rows(2000)
    value = stream(table, compression)
    assert len(value) < 40_000 and [one.id for one in read(value)] == [one.id for one in read(stream(table))]
    declared = 2000 * 16 + 2001 * 4 + sum(len(str(n)) for n in range(2000))
    check_expansion(value, declared)
    with pytest.raises(RecordError, match="expand") as refused:
        check_expansion(value, declared - 1)
    assert refused.value.reason == "too_large"
    assert [one.reason for one in read(value, RecordLimits(max_expanded_bytes=declared - 1)) if isinstance(one, RejectedItem)] == ["too_large"]


@pytest.mark.parametrize("count", [1, 2000])
def test_a_stream_that_is_not_compressed_expands_to_nothing_whatever_its_size(count: int) -> None:
    table = rows(count)
    like_a_frame = table.set_column(0, "id", pa.array([b"\x04\x22\x4d\x18"] * count))
    for each in (table, like_a_frame):
        check_expansion(stream(each), 0)
    with pytest.raises(RecordError, match="not an Arrow IPC stream"):
        check_expansion(stream(rows(2000))[:-40] + b"\x04\x22\x4d\x18" * 20, 0)


def test_a_compressed_dictionary_counts_too() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0]), pa.array(["x" * 1_000_000]))
    value = stream(rows(1, other=words), "zstd")
    assert len(value) < 3000
    with pytest.raises(RecordError, match="expand"):
        check_expansion(value, 1_000_000)
    check_expansion(value, 1_001_000)


BOMB = """
import resource, sys
import numpy as np, pyarrow as pa
from contracts.media_record import ARROW_TYPE, RecordLimits, read_media_record
from tests.contracts.format_samples import collection, field, record
value = sys.stdin.buffer.read()
headers = (("content-type", ARROW_TYPE.encode()),)
where = collection(field("image", 4, "float32"))
read_media_record(record(b"warm", headers=headers), where, RecordLimits())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
[found] = read_media_record(record(value, headers=headers), where, RecordLimits())
sys.stdout.write(f"{found.reason} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}")
"""


def test_a_zstd_batch_that_expands_thirty_thousand_times_is_refused_without_taking_the_memory() -> None:
    size = 400 * 1024 * 1024
    offsets = pa.array([0, size], pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(bytes(size))])
    value = stream(pa.table({"id": ["a"], "image": pa.array([[1.0, 0, 0, 0]], pa.list_(pa.float32(), 4)), "text": text}), "zstd")
    assert size > 30_000 * len(value)
    done = subprocess.run([sys.executable, "-c", BOMB], input=value, capture_output=True, check=True)
    found, grown_kib = done.stdout.decode().split()
    assert found == "too_large" and int(grown_kib) < 64 * 1024, done.stdout


SHARED = [
    {"text": pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["x"]))},
    {"id": pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["x"]))},
    {"text": pa.array(["x", "y"], pa.string_view())},
    {"acl": pa.array([["x"], ["y"]], pa.list_(pa.string_view()))},
    {"acl": pa.array([["x"], ["y"]], pa.list_view(pa.string()))},
    {"attributes": pa.StructArray.from_arrays([pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["x"]))], ["a"])},
    {"text": pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["x"]))},
]


@pytest.mark.parametrize("columns", SHARED, ids=[str(next(iter(columns.values())).type)[:30] for columns in SHARED])
def test_a_column_whose_rows_may_share_one_value_is_refused(columns: dict[str, Any]) -> None:
    assert reason(rows(2, **columns)) == "bad_envelope"
    assert reason(rows(2, other=next(iter(columns.values())))) is None  # a column that is not read may be anything


def test_nested_columns_that_take_no_bytes_and_many_objects_are_refused() -> None:
    wide = pa.FixedSizeListArray.from_arrays(pa.nulls(2 * 10**8), 10**8)
    assert reason(rows(2, acl=wide)) == "too_large"
    many = pa.StructArray.from_arrays([pa.nulls(60_000)] * 100, [f"a{n}" for n in range(100)])
    assert reason(rows(60_000, attributes=many)) == "too_large"
    assert reason(rows(2, acl=pa.array([["a"], ["b"]]), attributes=pa.array([{"price": 1.0}] * 2))) is None


SOUND = stream(rows(40, text=pa.array(["t"] * 40)), "zstd")


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, len(SOUND)))
def test_a_damaged_compressed_stream_is_rejected_or_read_but_never_raises(flips: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(SOUND)
    for at, value in flips:
        damaged[at] = value
    for data in (bytes(damaged), bytes(damaged[:length])):
        for one in read(data):
            assert isinstance(one, RejectedItem) or np.isfinite(one.vectors["image"]).all()
