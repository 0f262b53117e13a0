"""The media record: every form, every reject reason that reading can give, and no exception for any bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import REJECT_REASONS
from contracts.log import Headers, LogRecord
from contracts.media_record import MediaItem, RecordLimits, RejectedItem, id_outside_value, read_media_record
from tests.contracts.format_samples import collection, field, record
from tests.examples import examples

JPEG = b"\xff\xd8\xff\xe0 picture"
LIMITS = RecordLimits(max_text_bytes=100, max_rows=50)
TYPED = collection(attributes={"price": "float", "tags": "keyword[]"})
PRODUCED_US = 1_700_000_000_000_000


def read(one: LogRecord, where: Any = TYPED) -> MediaItem | RejectedItem:
    found = read_media_record(one, where, LIMITS)
    assert len(found) == 1 and (found[0].offset, found[0].item) == (42, 0)
    return found[0]


def item(one: LogRecord, where: Any = TYPED) -> MediaItem:
    found = read(one, where)
    assert isinstance(found, MediaItem), found
    return found


def reason(one: LogRecord, where: Any = TYPED) -> str:
    found = read(one, where)
    assert isinstance(found, RejectedItem), found
    assert found.reason in REJECT_REASONS and found.message
    return found.reason


def headers(**values: str | bytes) -> Headers:
    return tuple(
        (name.replace("content_type", "content-type"), value.encode() if isinstance(value, str) else value) for name, value in values.items()
    )


@pytest.mark.parametrize(
    ("declared", "data", "kind"),
    [
        ("image/jpg", JPEG, "image/jpeg"),
        ("Image/PJPEG; q=1", JPEG, "image/jpeg"),
        ("image/x-png", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("image/x-ms-bmp", b"BM..", "image/bmp"),
        ("application/octet-stream", b"GIF89a", "image/gif"),
        ("binary/octet-stream", JPEG, "image/jpeg"),
    ],
)
def test_what_uploaders_call_pictures_is_a_picture_in_every_form(declared: str, data: bytes, kind: str) -> None:
    coded = base64.b64encode(data).decode()
    event = {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "datacontenttype": declared, "data_base64": coded}
    parts = {"parts": [{"content_type": declared, "data_base64": coded}]}
    forms = [
        record(data, headers=headers(content_type=declared)),
        record(data, headers=headers(content_type=declared, ce_specversion="1.0", ce_id="e")),
        record(json.dumps(event).encode(), headers=headers(content_type="application/cloudevents+json")),
        record(json.dumps(parts).encode(), headers=headers(content_type="application/vnd.headwater.record+json")),
    ]
    for one in forms:
        found = item(one)
        assert (found.media_type, found.picture, found.media_sha256) == (kind, data, hashlib.sha256(data).digest())


def test_octet_stream_without_a_picture_in_it_is_told_as_it_was_declared() -> None:
    found = read(record(b"%PDF-1.7", headers=headers(content_type="application/octet-stream")))
    assert isinstance(found, RejectedItem) and found.reason == "unsupported_content_type" and "'application/octet-stream'" in found.message


def test_a_claim_check_of_octet_stream_is_told_by_its_payload() -> None:
    digest = hashlib.sha256(JPEG).hexdigest()
    ref = {"key": f"c/{TYPED.name}-{TYPED.incarnation}/claim/{digest}", "sha256": digest, "size": len(JPEG)}
    found = item(record(b"", headers=headers(content_type="application/octet-stream", hw_payload_ref=json.dumps(ref))))
    assert (found.media_type, [part.content_type for part in found.parts]) == (None, [""])


def event(**changes: Any) -> LogRecord:
    body = {
        "specversion": "1.0",
        "id": "e-1",
        "type": "t",
        "source": "s",
        "datacontenttype": "image/jpeg",
        "data_base64": base64.b64encode(JPEG).decode(),
    }
    body |= changes
    return record(
        json.dumps({k: v for k, v in body.items() if v is not ...}).encode(), headers=headers(content_type="application/cloudevents+json"), key=None
    )


def test_a_plain_picture_with_all_its_headers() -> None:
    found = item(
        record(
            JPEG,
            headers=headers(
                content_type="Image/JPEG; q=1",
                hw_caption="a cat",
                hw_attributes='{"price":2,"x":1}',
                hw_acl='["a"]',
                hw_time="2026-11-23T00:00:00.000001Z",
            ),
        )
    )
    assert (found.id, found.picture, found.text, found.acl, found.media_type) == ("cat-1", JPEG, "a cat", ["a"], "image/jpeg")
    assert found.attributes == {"price": 2.0, "tags": None, "extra": '{"x":1}'}
    assert found.event_time_us == 1_795_392_000_000_001 and found.produced_at_us == PRODUCED_US
    assert found.media_sha256 == hashlib.sha256(JPEG).digest() and not found.is_delete


def test_a_record_with_a_header_twice_means_its_last_one() -> None:
    assert item(record(JPEG, headers=headers(hw_caption="old") + headers(hw_caption="new"))).text == "new"


@pytest.mark.parametrize(("value", "kind"), [
    (JPEG, "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF89a", "image/gif"), (b"BM..", "image/bmp"), (b"RIFF\0\0\0\0WEBP", "image/webp"),
    (b"II*\0", "image/tiff"), (b"MM\0*", "image/tiff"),
])  # fmt: skip
def test_a_picture_without_a_content_type_is_known_by_its_first_bytes(value: bytes, kind: str) -> None:
    found = item(record(value))
    assert found.media_type == kind and found.picture == value and found.event_time_us == PRODUCED_US


@pytest.mark.parametrize("caption", [b"\xff", b"x" * 101])
def test_a_bad_caption_beside_a_picture_is_noted_and_the_picture_stays(caption: bytes) -> None:
    found = item(record(JPEG, headers=headers(content_type="image/jpeg", hw_caption=caption)))
    assert (found.picture, found.text, found.media_sha256) == (JPEG, None, hashlib.sha256(JPEG).digest())
    assert found.bad_part is not None and found.bad_part.reason == "bad_text"
    assert item(record(JPEG, headers=headers(hw_caption="a cat"))).bad_part is None


def test_a_text_record_carries_its_caption_before_its_text() -> None:
    assert item(record("grün".encode(), headers=headers(content_type="text/plain; charset=utf-8"))).text == "grün"
    assert item(record(b"body", headers=headers(content_type="text/plain", hw_caption="title"))).text == "title\nbody"
    only_caption = item(record(b"", headers=headers(hw_caption="title")))
    assert (only_caption.text, only_caption.picture, only_caption.media_type, only_caption.media_sha256) == ("title", None, "text/plain", None)


def test_a_null_value_is_a_delete_of_the_key() -> None:
    found = item(record(None))
    assert found.is_delete and found.id == "cat-1"
    assert item(record(None, key=None, headers=headers(ce_id="e-7"))).id == "e-7"


def test_ids_are_sought_in_this_order() -> None:
    by_header, by_json = collection(id_from="header:x-id"), collection(id_from="json:meta.id")
    assert item(record(JPEG, headers=headers(**{"x-id": "h"})), by_header).id == "h"
    assert item(record(JPEG), by_header).id == "cat-1"
    assert item(record(b'{"meta":{"id":5}}', headers=headers(content_type="text/plain")), by_json).id == "5"
    assert item(record(b'{"meta":{"id":true}}', headers=headers(content_type="text/plain")), by_json).id == "cat-1"
    assert item(record(b"no json", headers=headers(content_type="text/plain")), by_json).id == "cat-1"
    assert item(record(JPEG, headers=headers(ce_specversion="1.0", ce_id="e"))).id == "cat-1"
    assert item(record(JPEG, key=None, headers=headers(ce_specversion="1.0", ce_id="e"))).id == "e"
    assert item(record(JPEG, key=None)).id == "headwater.photos.media/3/42/0"
    assert item(record(JPEG, key=b"")).id == "headwater.photos.media/3/42/0"


def test_a_cloudevent_in_binary_mode_is_read_by_its_extensions() -> None:
    found = item(
        record(
            JPEG,
            key=None,
            headers=headers(
                content_type="image/jpeg",
                ce_specversion="1.0",
                ce_id="e-1",
                ce_hwcaption="c",
                ce_hwattributes='{"price":1}',
                ce_hwacl="[]",
                ce_time="1970-01-01T00:00:01Z",
                hw_caption="no",
            ),
        )
    )
    assert (found.id, found.text, found.acl, found.event_time_us) == ("e-1", "c", [], 1_000_000)
    assert found.attributes is not None and found.attributes["price"] == 1.0


def test_a_cloudevent_in_structured_mode_is_read_from_its_json() -> None:
    found = item(event(hwcaption="c", hwattributes={"price": 1, "tags": "x"}, hwacl=["a"], time="1970-01-01T00:00:01Z"))
    assert (found.id, found.text, found.acl, found.event_time_us, found.picture) == ("e-1", "c", ["a"], 1_000_000, JPEG)
    assert found.attributes == {"price": 1.0, "tags": ["x"], "extra": None}
    assert item(event(hwattributes='{"price":3}', datacontenttype="text/plain", data="hello", data_base64=...)).text == "hello"
    assert item(event(datacontenttype=...)).media_type == "image/jpeg"


REJECTED: list[tuple[str, LogRecord]] = [
    ("missing_id", record(None, key=None)),
    ("missing_id", record(JPEG, headers=headers(ce_specversion="1.0"))),
    ("missing_id", event(id="")),
    ("missing_id", event(id=5)),
    ("bad_id", record(JPEG, key=b"\xff")),
    ("bad_id", record(JPEG, key=b"x" * 513)),
    ("bad_id", record(JPEG, key=b"a\0b")),
    ("missing_id", record(None, key=b"")),
    ("bad_id", record(JPEG, key=None, headers=headers(ce_specversion="1.0", ce_id=b"\xff"))),
    ("bad_envelope", record(JPEG, headers=headers(hw_op="replace"))),
    ("bad_envelope", record(JPEG, headers=headers(hw_op=""))),
    ("bad_envelope", record(JPEG, headers=tuple(("x", b"") for _ in range(1001)))),
    ("bad_envelope", record(b"no json", headers=headers(content_type="application/cloudevents+json"))),
    ("bad_envelope", event(specversion=...)),
    ("bad_envelope", event(data_base64="not base64!")),
    ("bad_envelope", event(data_base64=7)),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes="[1]"))),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes="{"))),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes='{"price":"cheap"}'))),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes='{"a":1,"a":2}'))),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes='{"a":"\\ud800"}'))),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes='{"a":1e999}'))),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes='{"a":' + "[" * 900 + "]" * 900 + "}"))),
    ("bad_attributes", record(JPEG, headers=headers(hw_attributes='{"a":"' + "x" * 262_144 + '"}'))),
    ("bad_acl", record(JPEG, headers=headers(hw_acl='"all"'))),
    ("bad_acl", record(JPEG, headers=headers(hw_acl="[1]"))),
    ("bad_acl", record(JPEG, headers=headers(hw_acl="all"))),
    ("bad_text", record(b"", headers=headers(hw_caption=b"\xff"))),
    ("bad_text", record(b"a text", headers=headers(content_type="text/plain", hw_caption="x" * 101))),
    ("bad_text", record(b"\xff", headers=headers(content_type="text/plain"))),
    ("bad_text", record(b"x" * 101, headers=headers(content_type="text/plain"))),
    ("bad_time", record(JPEG, headers=headers(hw_time="yesterday"))),
    ("bad_time", record(JPEG, headers=headers(hw_time=b"\xff"))),
    ("bad_time", record(JPEG, headers=headers(hw_time="0001-01-01T00:00:00+09:00"))),
    ("missing_id", record(b"{}", key=None, headers=headers(hw_op="patch"))),
    ("empty", record(None, headers=headers(hw_op="patch", hw_acl="[]"))),
    ("empty", record(b"", headers=headers(hw_op="patch"))),
    ("bad_attributes", record(b"[]", headers=headers(hw_op="patch"))),
    ("bad_attributes", record(b"{", headers=headers(hw_op="patch"))),
    ("bad_attributes", record(b'{"price":"cheap"}', headers=headers(hw_op="patch"))),
    ("bad_attributes", record(b'{"tags":[null]}', headers=headers(hw_op="patch"))),
    ("bad_attributes", record(b'{"a":"' + b"x" * 262_144 + b'"}', headers=headers(hw_op="patch"))),
    ("bad_acl", record(b"{}", headers=headers(hw_op="patch", hw_acl="{}"))),
    ("unsupported_content_type", record(b"{}", headers=headers(hw_op="patch", content_type="image/jpeg"))),
    ("empty", record(b"")),
    ("empty", record(b"", headers=headers(hw_caption=""))),
    ("empty", event(data_base64=..., datacontenttype=...)),
    ("unsupported_content_type", record(b"%PDF", headers=headers(content_type="application/pdf"))),
    ("unsupported_content_type", record(b"who knows")),
]


def test_a_patch_changes_attributes_and_acl_and_asks_for_nothing_else() -> None:
    found = item(record(b'{ "tags": "new", "price": null, "deep": {"x": 1.0} }', headers=headers(hw_op="patch", hw_acl='["staff"]')))
    assert (found.id, found.patch, found.acl) == ("cat-1", '{"deep":{"x":1.0},"price":null,"tags":"new"}', ["staff"])
    assert (found.is_delete, found.picture, found.text, found.media_sha256, found.attributes) == (False, None, None, None, None)
    only_acl = item(record(b"", headers=headers(hw_op="patch", ce_specversion="1.0", ce_id="e", ce_hwacl="[]", content_type="application/json")))
    assert (only_acl.patch, only_acl.acl) == ("{}", [])
    assert item(record(b"{}", headers=headers(hw_op="patch"))).acl is None


@pytest.mark.parametrize(("expected", "one"), REJECTED, ids=[f"{n}-{name}" for n, (name, _) in enumerate(REJECTED)])
def test_a_record_that_can_never_be_indexed_is_rejected_with_its_reason(expected: str, one: LogRecord) -> None:
    assert reason(one) == expected


def test_a_structured_event_with_hostile_extensions_is_rejected() -> None:
    for text in ('"\\ud800"', "1e999", '{"a":"\\udc00"}'):
        body = b'{"specversion":"1.0","id":"e","datacontenttype":"image/jpeg","data_base64":"/9j/","hwattributes":' + text.encode() + b"}"
        assert reason(record(body, headers=headers(content_type="application/cloudevents+json"))) == "bad_envelope"
    assert reason(event(hwattributes=[1])) == "bad_attributes" and reason(event(hwacl={"a": 1})) == "bad_acl" and reason(event(time=5)) == "bad_time"


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**63), 2**63 - 1, 0])
def test_any_timestamp_a_producer_can_write_becomes_a_time_that_can_be_stored(timestamp_ms: int) -> None:
    found = item(record(JPEG, timestamp_ms=timestamp_ms))
    assert 0 <= found.produced_at_us < 2**58 and found.event_time_us == found.produced_at_us


known = st.sampled_from(
    ["content-type", "hw_caption", "hw_attributes", "hw_acl", "hw_time", "hw_op", "ce_specversion", "ce_id", "ce_time", "ce_hwattributes", "x-id"]
)
telling = st.sampled_from(
    [
        b"image/jpeg",
        b"text/plain",
        b"application/cloudevents+json",
        b"application/vnd.apache.arrow.stream",
        b"{}",
        b"[]",
        b"1.0",
        b'{"price":1}',
        b"upsert",
        b"patch",
    ]
)
header_lists = st.lists(st.tuples(known, telling | st.binary(max_size=12)), max_size=6).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), lambda v: st.lists(v, max_size=3), max_leaves=5
)
events = st.fixed_dictionaries(
    {"specversion": st.just("1.0") | json_values, "id": st.just("e") | json_values},
    optional={name: json_values for name in ("data", "data_base64", "datacontenttype", "time", "hwcaption", "hwattributes", "hwacl")},
)
bodies = st.none() | st.binary(max_size=40) | st.just(JPEG) | events.map(lambda e: json.dumps(e).encode())
sources = st.sampled_from([TYPED, collection(id_from="header:x-id"), collection(id_from="json:id"), collection(field("image", 4, "float32"))])


@settings(max_examples=examples(400), deadline=None)
@given(st.none() | st.binary(max_size=12), bodies, header_lists, sources)
def test_no_key_value_or_header_makes_reading_raise(key: bytes | None, value: bytes | None, found_headers: Headers, where: Any) -> None:
    for one in read_media_record(record(value, key=key, headers=found_headers), where, LIMITS):
        if isinstance(one, MediaItem):
            assert one.is_delete or one.picture or one.text is not None or one.vectors or one.patch is not None
            one.id.encode("utf-8")
        else:
            assert one.reason in REJECT_REASONS


@settings(max_examples=examples(400), deadline=None)
@given(st.none() | st.binary(max_size=12), bodies, header_lists, sources)
def test_an_id_that_is_told_without_the_value_is_the_one_that_reading_the_value_gives(
    key: bytes | None, value: bytes | None, found_headers: Headers, where: Any
) -> None:
    one = record(value, key=key, headers=found_headers)
    told = id_outside_value(one, where)
    assert told is None or {found.id for found in read_media_record(one, where, LIMITS)} <= {told, None}


def test_an_id_is_told_by_key_and_headers_alone_where_they_tell_it() -> None:
    plain, named = headers(content_type="image/jpeg"), collection(id_from="header:x-id")
    assert id_outside_value(record(JPEG, headers=plain), TYPED) == "cat-1"
    assert id_outside_value(record(JPEG, key=None, headers=headers(ce_specversion="1.0", ce_id="e-1")), TYPED) == "e-1"
    assert id_outside_value(record(JPEG, headers=(*plain, ("x-id", b"x-1"))), named) == "x-1"
    assert id_outside_value(record(None), TYPED) == "cat-1"
    assert id_outside_value(record(b"{}", headers=headers(hw_op="patch")), TYPED) == "cat-1"
    assert id_outside_value(record(JPEG, key=None), TYPED) is None and id_outside_value(record(JPEG, key=b"\xff"), TYPED) is None
    assert id_outside_value(event(), TYPED) is None and id_outside_value(record(b'{"id":"a"}'), collection(id_from="json:id")) is None
    assert id_outside_value(record(JPEG), collection(partitioner="murmur2")) is None  # it belongs in another partition
