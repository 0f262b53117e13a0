"""Records with parts, CloudEvents that carry rows, ids in the wrong partition: forms beside the plain ones."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import REJECT_REASONS
from contracts.log import LogRecord
from contracts.media_record import ARROW_TYPE, CLOUDEVENT_TYPE, PARTS_TYPE, MediaItem, RecordLimits, RejectedItem, read_media_record
from contracts.partitioner import partition_of
from tests.contracts.format_samples import collection, field, record
from tests.examples import examples

JPEG = b"\xff\xd8\xff\xe0 picture"
PICTURE = {"data_base64": base64.b64encode(JPEG).decode()}
LIMITS = RecordLimits(max_text_bytes=100, max_rows=50)
TYPED = collection(attributes={"price": "float"})


def parts_record(body: Any, key: bytes | None = None) -> LogRecord:
    value = body if isinstance(body, bytes) else json.dumps(body).encode()
    return record(value, key=key, headers=(("content-type", PARTS_TYPE.encode()),))


def only(one: LogRecord, where: Any = TYPED) -> MediaItem | RejectedItem:
    [found] = read_media_record(one, where, LIMITS)
    return found


def test_parts_fill_the_fields_of_one_item_and_texts_are_joined_by_a_newline() -> None:
    parts = [{"text": "a"}, PICTURE | {"content_type": "image/jpeg"}, {"text": "b", "content_type": "text/plain; charset=utf-8"}]
    found = only(parts_record({"id": "p-1", "parts": parts, "attributes": {"price": 2}, "acl": ["x"], "time": "1970-01-01T00:00:01Z"}, b"key"))
    assert isinstance(found, MediaItem)
    assert (found.id, found.picture, found.text, found.acl, found.event_time_us) == ("p-1", JPEG, "a\nb", ["x"], 1_000_000)
    assert found.attributes == {"price": 2.0, "extra": None}
    assert (found.media_type, found.media_sha256) == ("image/jpeg", hashlib.sha256(JPEG).digest())


def test_parts_without_an_id_take_the_key_and_whole_numbers_are_ids() -> None:
    assert only(parts_record({"parts": [{"text": "a"}]}, b"key")).id == "key"
    assert only(parts_record({"parts": [{"text": "a"}], "id": 7}, b"key")).id == "7"
    assert only(parts_record({"parts": [{"text": "a"}]})).id == "headwater.photos.media/3/42/0"


def test_a_text_of_parts_is_the_medium_that_is_hashed() -> None:
    found = only(parts_record({"parts": [{"text": "a"}, {"data_base64": "Yg==", "content_type": "text/plain"}]}))
    assert isinstance(found, MediaItem) and found.text == "a\nb"
    assert (found.media_type, found.media_sha256) == ("text/plain", hashlib.sha256(b"a\nb").digest())


@pytest.mark.parametrize("text", [{"text": "x" * 101}, {"data_base64": "/w==", "content_type": "text/plain"}])
def test_bad_text_among_parts_is_noted_beside_a_picture(text: dict[str, str]) -> None:
    found = only(parts_record({"parts": [{"text": "a good one"}, text, PICTURE]}))
    assert isinstance(found, MediaItem) and (found.picture, found.text) == (JPEG, None)
    assert found.bad_part is not None and found.bad_part.reason == "bad_text"


BAD: list[tuple[str, Any]] = [
    ("bad_envelope", b"no json"),
    ("bad_envelope", b"[" * 10_000 + b"]" * 10_000),
    ("bad_envelope", {"parts": "text"}),
    ("bad_envelope", {"id": "a"}),
    ("bad_envelope", {"parts": [{"text": "a"}], "atributes": {}}),
    ("bad_envelope", {"parts": ["text"]}),
    ("bad_envelope", {"parts": [{"text": "a", **PICTURE}]}),
    ("bad_envelope", {"parts": [{"content_type": "image/jpeg"}]}),
    ("bad_envelope", {"parts": [{"text": 5}]}),
    ("bad_envelope", {"parts": [{"text": "a", "content_type": "image/jpeg"}]}),
    ("bad_envelope", {"parts": [{"text": "a", "content_type": 5}]}),
    ("bad_envelope", {"parts": [{"data_base64": "!", "content_type": "image/jpeg"}]}),
    ("bad_envelope", {"parts": [{"text": "a"}, {"data_base64": "!", "content_type": "image/jpeg"}]}),
    ("bad_envelope", {"parts": [{"text": "a", "caption": True}]}),
    ("bad_envelope", b'{"parts":[{"text":"\\ud800"}]}'),
    ("too_many_parts", {"parts": [PICTURE, PICTURE]}),
    ("too_many_parts", {"parts": [{"text": "a"}] * 65}),
    ("empty", {"parts": []}),
    ("empty", {"parts": [{"text": ""}]}),
    ("bad_id", {"id": "", "parts": [{"text": "a"}]}),
    ("bad_id", {"id": True, "parts": [{"text": "a"}]}),
    ("bad_id", {"id": "x" * 513, "parts": [{"text": "a"}]}),
    ("bad_text", {"parts": [{"text": "x" * 60}, {"text": "x" * 60}]}),
    ("bad_text", {"parts": [{"data_base64": "/w==", "content_type": "text/plain"}]}),
    ("bad_time", {"parts": [{"text": "a"}], "time": "noon"}),
    ("bad_acl", {"parts": [{"text": "a"}], "acl": "all"}),
    ("bad_attributes", {"parts": [{"text": "a"}], "attributes": {"price": "cheap"}}),
    ("unsupported_content_type", {"parts": [{"data_base64": "AAAA", "content_type": ARROW_TYPE}]}),
    ("unsupported_content_type", {"parts": [{"data_base64": "AAAA"}]}),
]


@pytest.mark.parametrize(("expected", "body"), BAD, ids=[f"{n}-{reason}" for n, (reason, _) in enumerate(BAD)])
def test_parts_that_can_never_be_indexed_are_rejected_with_their_reason(expected: str, body: Any) -> None:
    found = only(parts_record(body))
    assert isinstance(found, RejectedItem) and found.reason == expected, found


def test_a_rejected_record_names_its_id_where_that_could_be_read() -> None:
    found = only(parts_record({"id": "p-1", "parts": [{"text": "a"}], "time": "noon"}))
    assert isinstance(found, RejectedItem) and found.id == "p-1"
    assert only(record(b"%PDF", headers=(("content-type", b"application/pdf"),))).id == "cat-1"


def arrow(ids: list[str]) -> bytes:
    table = pa.table({"id": ids, "image": pa.array([[3.0, 4.0, 0.0, 0.0]] * len(ids), pa.list_(pa.float32(), 4))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_a_structured_cloudevent_may_carry_arrow_rows() -> None:
    event = {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "datacontenttype": ARROW_TYPE}
    body = json.dumps(event | {"data_base64": base64.b64encode(arrow(["a", "b"])).decode()}).encode()
    found = read_media_record(record(body, headers=(("content-type", CLOUDEVENT_TYPE.encode()),)), collection(field(dtype="float32")), LIMITS)
    assert [(one.id, one.item) for one in found] == [("a", 0), ("b", 1)]
    assert isinstance(found[1], MediaItem) and np.allclose(found[1].vectors["image"], [0.6, 0.8, 0, 0])


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
def test_an_id_in_a_partition_that_is_not_its_own_is_rejected_under_a_named_partitioner(partitioner: str) -> None:
    where = collection(field(dtype="float32"), partitioner=partitioner)
    ids = [f"id-{n}" for n in range(40)]
    home = [i for i in ids if partition_of(partitioner, i.encode(), 4) == 3]
    assert 0 < len(home) < len(ids)
    for item_id in ids:
        for value in (JPEG, None):  # a delete too: it could not reach the row in the other partition
            found = only(record(value, key=item_id.encode()), where)
            assert found.id == item_id and isinstance(found, MediaItem) == (item_id in home)
            assert isinstance(found, MediaItem) or found.reason == "wrong_partition"
    rows = read_media_record(record(arrow(ids), headers=(("content-type", ARROW_TYPE.encode()),)), where, LIMITS)
    assert [one.id for one in rows if isinstance(one, MediaItem)] == home
    assert isinstance(only(record(JPEG, key=None), where), MediaItem)  # an id made of its own position is at home


def test_with_producers_as_partitioner_an_id_is_where_it_arrived() -> None:
    assert all(isinstance(only(record(JPEG, key=f"id-{n}".encode())), MediaItem) for n in range(10))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(PICTURE["data_base64"]), lambda v: st.lists(v, max_size=3), max_leaves=4
)
a_part = st.dictionaries(st.sampled_from(["content_type", "text", "data_base64", "ref", "x"]), values | st.just("image/jpeg"), max_size=3)
a_body = st.fixed_dictionaries(
    {"parts": st.lists(a_part | values, max_size=3) | values}, optional={name: values for name in ("id", "acl", "attributes", "time", "y")}
)


@settings(max_examples=examples(300), deadline=None)
@given(a_body | values, st.none() | st.binary(max_size=6))
def test_no_json_of_parts_makes_reading_raise(body: Any, key: bytes | None) -> None:
    found = only(parts_record(body, key))
    if isinstance(found, MediaItem):
        assert found.picture is not None or found.text
    else:
        assert found.reason in REJECT_REASONS and found.message


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_no_damage_to_a_good_record_makes_reading_raise(data: st.DataObject) -> None:
    good = json.dumps({"id": "p-1", "parts": [{"text": "a"}, PICTURE], "attributes": {"price": 2}, "acl": ["x"]}).encode()
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = data.draw(st.sampled_from([good[:at], good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :], good[at:]]))
    found = only(parts_record(damaged))
    assert isinstance(found, MediaItem) or found.reason in REJECT_REASONS
