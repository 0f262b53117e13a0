"""Arrow rows: the producers' own vectors, checked row by row."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import REJECT_REASONS
from contracts.media_record import ARROW_TYPE, MediaItem, RecordLimits, RejectedItem, read_media_record, read_media_records
from tests.contracts.format_samples import collection, field, record
from tests.examples import examples

LIMITS = RecordLimits(max_text_bytes=20, max_rows=6)
COSINE = collection(field("image", 2, "float16"), attributes={"price": "float"})
DOT = collection(field("image", 2, "float16", "dot"))
VECTORS = [[3.0, 4.0], [0.0, 2.0]]


def stream(columns: dict[str, Any] | pa.Table, batches: int = 1) -> bytes:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for _ in range(batches):
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read(value: bytes, where: Any = COSINE) -> list[MediaItem | RejectedItem]:
    found = read_media_record(record(value, headers=(("content-type", ARROW_TYPE.encode()),)), where, LIMITS)
    assert [one.item for one in found] == list(range(len(found)))
    return found


def reasons(columns: dict[str, Any] | pa.Table, where: Any = COSINE) -> list[str | None]:
    return [one.reason if isinstance(one, RejectedItem) else None for one in read(stream(columns), where)]


def test_rows_become_items_with_unit_vectors() -> None:
    when = datetime(2026, 11, 23, tzinfo=UTC)
    columns = {
        "id": ["a", None], "image": VECTORS, "text": ["t", None], "attributes": ['{"price":1,"x":2}', None], "acl": [["g"], None],
        "time": pa.array([when, None], pa.timestamp("ms", tz="UTC")), "ignored": [1, 2],
    }  # fmt: skip
    first, second = read(stream(columns))
    assert isinstance(first, MediaItem) and isinstance(second, MediaItem)
    assert (first.id, first.text, first.acl, first.event_time_us) == ("a", "t", ["g"], 1_795_392_000_000_000)
    assert first.attributes == {"price": 1.0, "extra": '{"x":2}'} and second.attributes == {"price": None, "extra": None}
    assert np.allclose(first.vectors["image"], [0.6, 0.8]) and first.vectors["image"].dtype == np.float32
    assert (second.id, second.text, second.acl) == ("headwater.photos.media/3/42/1", None, None)
    assert second.event_time_us == second.produced_at_us


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.list_(pa.float16(), 2), pa.list_(pa.float16())])
def test_every_kind_of_float_list_is_read(kind: pa.DataType) -> None:
    found = read(stream({"image": pa.array(VECTORS, kind)}), DOT)
    assert [one.vectors["image"].tolist() for one in found if isinstance(one, MediaItem)] == VECTORS


def test_one_bad_row_never_rejects_its_neighbours() -> None:
    rows = [[1.0, 0.0], None, [float("nan"), 1.0], [0.0, 0.0], [1.0], [float("inf"), 0.0]]
    expected = [None, "bad_vector", "bad_vector", "zero_norm", "bad_vector", "bad_vector"]
    assert reasons({"image": pa.array(rows, pa.list_(pa.float32()))}) == expected
    assert reasons({"image": [[1.0, None], [1.0, 0.0]]}) == ["bad_vector", None]
    columns = {"image": [[1.0, 0.0]] * 4, "id": ["ok", "", "x" * 513, "ok2"], "text": ["t", "t", "t", "x" * 21]}
    assert reasons(columns) == [None, "bad_id", "bad_id", "bad_text"]
    assert reasons({"image": VECTORS, "attributes": ['{"price":"x"}', '{"price":1}']}) == ["bad_attributes", None]
    assert reasons({"image": VECTORS, "time": pa.array([2**62, 1], pa.timestamp("us", tz="UTC"))}) == ["bad_time", None]


def test_own_vectors_under_dot_keep_their_length_and_must_fit_float16() -> None:
    assert reasons({"image": [[0.0, 0.0], [65504.0, 0.0], [70000.0, 0.0], [1e300, 0.0]]}, DOT) == [None, None, "bad_vector", "bad_vector"]


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 3e38])
def test_a_very_short_or_long_vector_still_has_its_direction_under_cosine(scale: float) -> None:
    (found,) = read(stream({"image": pa.array([[0.6 * scale, 0.8 * scale]], pa.list_(pa.float64()))}))
    assert isinstance(found, MediaItem) and np.allclose(found.vectors["image"], [0.6, 0.8], atol=1e-3)


@pytest.mark.parametrize(("expected", "columns"), [
    ("bad_vector", {"other": VECTORS}),
    ("bad_vector", {"image": ["x", "y"]}),
    ("bad_vector", {"image": pa.array([[1, 2]], pa.list_(pa.int64()))}),
    ("bad_time", {"image": VECTORS, "time": ["soon", "later"]}),
    ("empty", {"image": pa.array([], pa.list_(pa.float32()))}),
    ("too_large", {"image": VECTORS * 4}),
    ("bad_envelope", pa.Table.from_arrays([pa.array(VECTORS), pa.array(VECTORS)], names=["image", "image"])),
])  # fmt: skip
def test_a_record_that_is_wrong_as_a_whole_is_rejected_once(expected: str, columns: Any) -> None:
    found = read(stream(columns))
    assert len(found) == 1 and isinstance(found[0], RejectedItem) and found[0].reason == expected


def test_a_column_of_another_width_rejects_every_row() -> None:
    assert reasons({"image": pa.array([[1.0, 2.0, 3.0]] * 2, pa.list_(pa.float32(), 3))}) == ["bad_vector", "bad_vector"]


@pytest.mark.parametrize(("expected", "columns"), [
    ("bad_id", {"id": [True, False]}), ("bad_id", {"id": [1.5, 2.5]}), ("bad_text", {"text": [1, 2]}), ("bad_acl", {"acl": ["all", "some"]}),
    ("bad_acl", {"acl": [1, 2]}), ("bad_acl", {"acl": [[1], [2]]}), ("bad_attributes", {"attributes": [1, 2]}),
    ("bad_attributes", {"attributes": [{"sum": Decimal("1.5")}] * 2}), ("bad_attributes", {"attributes": [{"raw": b"x"}] * 2}),
    ("bad_attributes", {"attributes": [{"price": "cheap"}] * 2}), ("bad_attributes", {"attributes": [json.dumps({"x": "y" * 262_144})] * 2}),
    ("bad_attributes", {"attributes": [{"x": "y" * 262_144}] * 2}),
    ("bad_id", {"id": pa.array([b"0123456789abcdef"] * 2, pa.binary(16))}),
])  # fmt: skip
def test_a_payload_column_of_another_type_rejects_its_rows(expected: str, columns: dict[str, Any]) -> None:
    assert reasons({"image": VECTORS, **columns}) == [expected, expected]


FAR = pa.array([0, 2**60]).view(pa.timestamp("s", "UTC"))


@pytest.mark.parametrize(("expected", "columns"), [
    ("bad_id", {"id": FAR}), ("bad_text", {"text": FAR}), ("bad_acl", {"acl": FAR}), ("bad_attributes", {"attributes": FAR}),
    ("bad_attributes", {"attributes": pa.StructArray.from_arrays([FAR], ["when"])}),
])  # fmt: skip
def test_a_value_that_python_cannot_hold_rejects_its_row_and_never_raises(expected: str, columns: dict[str, Any]) -> None:
    found = reasons({"image": VECTORS, **columns})
    assert found[1] == expected


@pytest.mark.parametrize(("ids", "texts"), [
    (pa.array([5, 2**64 - 1], pa.uint64()), ["5", "18446744073709551615"]), (pa.array([-5, 7], pa.int8()), ["-5", "7"]),
    (pa.array([UUID(int=1).bytes, UUID(int=2).bytes], pa.uuid()), [str(UUID(int=1)), str(UUID(int=2))]),
    (pa.array(["a", "ü/#?"], pa.large_utf8()), ["a", "ü/#?"]),
    (pa.array(["x" * 512, "ü" * 256]), ["x" * 512, "ü" * 256]),
])  # fmt: skip
def test_ids_of_every_sensible_column_become_text(ids: pa.Array, texts: list[str]) -> None:
    assert [one.id for one in read(stream({"image": VECTORS, "id": ids}))] == texts


def test_times_of_a_struct_are_read_with_and_without_a_declared_type_and_in_nanoseconds() -> None:
    when = [1_795_392_000_000_001_000, None]
    columns = {name: pa.array(when, pa.timestamp("ns", zone)) for name, zone in (("taken", "Europe/Berlin"), ("seen", "UTC"), ("local", None))}
    rows = {"image": VECTORS, "attributes": pa.StructArray.from_arrays(list(columns.values()), list(columns))}
    first, second = read(stream(rows), collection(field("image", 2, "float16"), attributes={"taken": "datetime"}))
    assert isinstance(first, MediaItem) and isinstance(second, MediaItem)
    assert first.attributes == {
        "taken": 1_795_392_000_000_001,
        "extra": '{"local":"2026-11-23T00:00:00.000001","seen":"2026-11-23T00:00:00.000001Z"}',
    }
    assert second.attributes == {"taken": None, "extra": '{"local":null,"seen":null}'}


def test_rows_of_several_batches_count_together() -> None:
    assert len(read(stream({"image": VECTORS}, batches=3))) == 6
    assert [one.reason for one in read(stream({"image": VECTORS}, batches=4)) if isinstance(one, RejectedItem)] == ["too_large"]


def test_a_collection_without_own_vectors_takes_no_arrow_rows() -> None:
    found = read(stream({"image": VECTORS}), collection(field(source="image", encoder="lite", space_id="lite@0")))
    assert isinstance(found[0], RejectedItem) and found[0].reason == "bad_vector"


SOUND = stream({"id": ["a", "b"], "image": VECTORS, "text": ["t", None], "acl": [["g"], None], "attributes": ["{}", None]})


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, len(SOUND)))
def test_a_damaged_stream_is_rejected_or_read_but_never_raises(flips: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(SOUND)
    for at, value in flips:
        damaged[at] = value
    for data in (bytes(damaged), bytes(damaged[:length])):
        for one in read_media_record(record(data, headers=(("content-type", ARROW_TYPE.encode()),)), COSINE, LIMITS):
            if isinstance(one, RejectedItem):
                assert one.reason in REJECT_REASONS
            else:
                assert np.isfinite(one.vectors["image"]).all()


def _plain(one: MediaItem | RejectedItem) -> tuple[object, ...]:
    if isinstance(one, RejectedItem):
        return (one.offset, one.item, one.reason, one.message, one.id)
    vectors = {name: vector.tolist() for name, vector in one.vectors.items()}
    return (one.offset, one.item, one.id, one.text, one.acl, one.event_time_us, one.attributes, vectors)


FAR = pa.array([2**62], pa.timestamp("s", tz="UTC"))
KINDS = [
    {"id": ["a"], "image": VECTORS[:1]},
    {"id": ["b", "c"], "image": VECTORS},
    {"id": ["zero"], "image": [[0.0, 0.0]]},
    {"id": ["short"], "image": [[1.0]]},
    {"id": ["text"], "image": ["no vector"]},
    {"id": ["far"], "image": VECTORS[:1], "time": FAR},
    {"id": ["near"], "image": VECTORS[:1], "time": pa.array([1], pa.timestamp("s", tz="UTC"))},
    {"id": pa.array([], pa.string()), "image": pa.array([], pa.list_(pa.float64()))},
]
VALUES = [stream(columns) for columns in KINDS] + [SOUND, SOUND[:100], b"", b"\xff\xd8\xff no arrow"]


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.sampled_from(VALUES), max_size=8))
def test_records_read_together_give_what_each_gives_alone(values: list[bytes]) -> None:
    headers = (("content-type", ARROW_TYPE.encode()),)
    records = [replace(record(value, headers=headers), offset=100 + at) for at, value in enumerate(values)]
    together = read_media_records(records, COSINE, LIMITS)
    alone = [read_media_record(one, COSINE, LIMITS) for one in records]
    assert [list(map(_plain, items)) for items in together] == [list(map(_plain, items)) for items in alone]
