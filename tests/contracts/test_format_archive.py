"""The archive's formats: any record is rebuilt byte by byte from its tar members, and damage is never read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.archive_manifest import ArchiveCheckpoint, ArchiveEpochs, ArchiveManifest, PendingPurge, TarEntry
from contracts.archive_record import from_tar
from contracts.archive_tar import INDEX_MEMBER, FinishedTar, TarIndex, TarWriter
from contracts.errors import CorruptError
from contracts.item import id_hash
from contracts.log import LogRecord, Unreadable
from contracts.manifest import Interval, ReadVersion
from contracts.media_record import RecordLimits
from tests.contracts.format_samples import ULID_A, collection
from tests.examples import examples

TOPIC = "headwater.photos.media"
COLLECTION = collection(attributes={"price": "float", "when": "datetime", "at": "geo"})
OFF = COLLECTION.model_copy(update={"archive": "off"})
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 5
LIMITS = RecordLimits(max_text_bytes=1000)


def record(value: bytes | None, key: bytes | None = b"cat-1", offset: int = 7, **headers: str | bytes) -> LogRecord:
    named = tuple((name.replace("_type", "-type"), text.encode() if isinstance(text, str) else text) for name, text in headers.items())
    return LogRecord(TOPIC, 3, offset, 1_795_428_000_123, key, value, named)


def tar_of(*records: LogRecord, of: object = COLLECTION) -> FinishedTar:
    writer = TarWriter(of, LIMITS)  # type: ignore[arg-type]
    for one in records:
        writer.add(one)
    return writer.finish()


def index_of(tar: FinishedTar) -> TarIndex:
    data = tar.data[tar.index_start : tar.index_start + tar.index_bytes]
    assert hashlib.sha256(data).hexdigest() == tar.index_sha256
    return TarIndex.read(data, "here")


def bytes_of(tar: FinishedTar, offset: int) -> bytes:
    row = index_of(tar).find(offset)
    assert row is not None and row.start is not None
    data = tar.data[row.start : row.start + row.size_bytes]
    assert hashlib.sha256(data).digest() == row.sha256
    return data


def names(tar: FinishedTar) -> list[str]:
    return tarfile.open(fileobj=io.BytesIO(tar.data)).getnames()


def told(tar: FinishedTar, offset: int = 7) -> dict:  # type: ignore[type-arg]
    file = tarfile.open(fileobj=io.BytesIO(tar.data)).extractfile(f"{offset:020d}.json")
    assert file is not None
    return json.loads(file.read())  # type: ignore[no-any-return]


def envelope(picture: bytes, **more: object) -> bytes:
    event = {"specversion": "1.0", "id": "e-1", "source": "s", "type": "t", "datacontenttype": "image/jpeg", **more}
    return json.dumps({**event, "data_base64": base64.b64encode(picture).decode(), "hwcaption": "a cat"}, indent=2).encode()


def arrow(ids: list[str | None]) -> bytes:
    table = pa.table({"id": ids, "image": pa.array([[1.0, 0.0, 0.0, 0.0]] * len(ids), pa.list_(pa.float32(), 4))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


TEXT_EVENT = b'{"specversion":"1.0","id":"e","datacontenttype":"text/plain","data":"a"}'
FORMS = {
    "picture": record(JPEG, content_type="image/jpeg", hw_caption="a cat", hw_attributes='{"price":9.5,"when":"2026-01-01T00:00:00Z","x":[1]}'),
    "picture without a type": record(JPEG, key=None),
    "picture without an id": record(JPEG, key=None, content_type="image/jpeg"),
    "text": record("schön".encode(), content_type="text/plain"),
    "text with a caption": record(b"body", content_type="text/plain", hw_caption="head"),
    "caption alone": record(b"", hw_caption="words"),
    "empty": record(b""),
    "delete": record(None),
    "structured": record(envelope(JPEG), key=None, content_type="application/cloudevents+json"),
    "structured, escaped base64": record(envelope(JPEG).replace(b"/", b"\\/"), key=None, content_type="application/cloudevents+json"),
    "structured, not JSON": record(b'{"specversion": ', content_type="application/cloudevents+json"),
    "structured text": record(TEXT_EVENT, content_type="application/cloudevents+json"),
    "rows": record(arrow(["a", None, "c"]), key=None, content_type="application/vnd.apache.arrow.stream"),
    "text declared as a picture": record(b"no picture", content_type="image/jpeg"),
    "unknown type": record(b"%PDF-1.7", content_type="application/pdf"),
    "bad caption": record(JPEG, content_type="image/jpeg", hw_caption=b"\xff\xfe"),
    "text too long": record(b"x" * 2000, content_type="text/plain"),
    "attributes 99 deep": record(JPEG, content_type="image/jpeg", hw_attributes='{"a":' + "[" * 98 + "]" * 98 + "}"),
    "headers twice": LogRecord(TOPIC, 3, 7, -5, b"\xff\x00", JPEG, (("a", b""), ("a", b"\xff"), ("", b"x"))),
    "far future": LogRecord(TOPIC, 3, 7, 2**62, b"k", JPEG, ()),
    "unreadable": LogRecord(TOPIC, 3, 7, 5, None, None, (), Unreadable("too_large", "it expands too far", 6400)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_record_is_rebuilt_byte_by_byte(form: str) -> None:
    tar = tar_of(FORMS[form])
    assert from_tar(bytes_of(tar, 7), TOPIC, "here") == FORMS[form]


header_names = st.sampled_from(["content-type", "hw_caption", "hw_attributes", "hw_acl", "ce_id", "ce_specversion", "x", ""]) | st.text(max_size=5)
headers_of_any_kind = st.lists(st.tuples(header_names, st.none() | st.binary(max_size=30)), max_size=5)
values = (
    st.none()
    | st.binary(max_size=300)
    | st.builds(lambda head, rest: head + rest, st.sampled_from([JPEG, b"\x89PNG\r\n\x1a\n", b"GIF8", b"{"]), st.binary(max_size=600))
)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**40),
            st.none() | st.binary(max_size=40),
            values,
            headers_of_any_kind,
            st.integers(-(2**63), 2**63 - 1),
            st.sampled_from([None, b"image/jpeg", b"text/plain", b"application/cloudevents+json", b"application/vnd.apache.arrow.stream"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_records_are_rebuilt_byte_by_byte_and_the_tar_is_one_that_tarfile_reads(found) -> None:  # type: ignore[no-untyped-def]
    records, offset = [], 0
    for step, key, value, headers, timestamp_ms, kind in found:
        offset += step
        typed = [*headers, ("content-type", kind)] if kind else headers
        records.append(LogRecord(TOPIC, 3, offset, timestamp_ms, key, value, tuple(typed)))
    tar = tar_of(*records)
    index = index_of(tar)
    assert [from_tar(bytes_of(tar, one.offset), TOPIC, "here") for one in records] == records
    assert (tar.records, len(index), index.offsets) == (len(records), len(records), [one.offset for one in records])
    listed = names(tar)
    assert listed[-1] == INDEX_MEMBER and len(set(listed)) == len(listed)
    assert {name.partition(".")[0] for name in listed[:-1]} == {f"{one.offset:020d}" for one in records}


def test_a_sample_is_picture_text_and_json_and_the_picture_is_stored_once_in_an_envelope_too() -> None:
    key = f"{7:020d}"
    assert names(tar_of(FORMS["picture"])) == [f"{key}.txt", f"{key}.jpg", f"{key}.json", INDEX_MEMBER]
    tar = tar_of(FORMS["structured"])
    assert names(tar) == [f"{key}.txt", f"{key}.jpg", f"{key}.json", INDEX_MEMBER]
    assert tar.data.count(JPEG) == 1 and base64.b64encode(JPEG) not in tar.data
    assert names(tar_of(FORMS["text"])) == [f"{key}.txt", f"{key}.json", INDEX_MEMBER]
    assert names(tar_of(FORMS["delete"])) == [f"{key}.json", INDEX_MEMBER]
    assert names(tar_of(FORMS["rows"])) == [f"{key}.arrow", f"{key}.json", INDEX_MEMBER]


def test_the_json_tells_people_what_the_record_asked_for_or_why_it_was_rejected() -> None:
    found = told(tar_of(FORMS["picture"]))
    assert (found["id"], found["items"], found["attributes"]["price"], found["attributes"]["x"]) == ("cat-1", 1, 9.5, [1])
    assert told(tar_of(FORMS["unknown type"]))["rejected"] == "unsupported_content_type"
    assert told(tar_of(FORMS["rows"]))["items"] == 3


@pytest.mark.parametrize(("form", "ids"), [
    ("picture", ["cat-1"]), ("delete", ["cat-1"]), ("rows", ["a", "c"]), ("structured", ["e-1"]), ("unknown type", ["cat-1"]),
    ("bad caption", ["cat-1"]), ("structured, not JSON", ["cat-1"]), ("picture without an id", [f"{TOPIC}/3/7/0"]),
])  # fmt: skip
def test_a_record_is_found_by_each_of_its_ids_also_where_it_was_rejected(form: str, ids: list[str]) -> None:
    index = index_of(tar_of(record(JPEG, key=b"other", offset=1), FORMS[form]))
    for item_id in ids:
        assert [row.offset for row in index.with_ids([id_hash(item_id)])] == [7]
    assert index.with_ids([id_hash("nobody")]) == [] == index.with_ids([])
    assert [row.offset for row in index.with_ids([id_hash("other"), id_hash(ids[0])])] == [1, 7]


@pytest.mark.parametrize("form", ["picture", "text", "text with a caption", "structured", "structured, escaped base64", "unknown type"])
def test_without_media_a_record_keeps_everything_but_the_media(form: str) -> None:
    tar = tar_of(FORMS[form], of=OFF)
    found = told(tar)
    assert found["id"] if form != "unknown type" else found["rejected"]
    assert from_tar(bytes_of(tar, 7), TOPIC, "here") is None
    assert JPEG not in tar.data and base64.b64encode(JPEG) not in tar.data and b"body" not in tar.data
    (left_out,) = [piece for piece in found["value"] if "left_out" in piece]
    assert set(left_out) == {"left_out", "size_bytes", "sha256"}


@pytest.mark.parametrize("form", ["caption alone", "delete", "rows", "empty", "structured text"])
def test_a_record_that_carries_no_media_is_whole_also_without_media(form: str) -> None:
    assert from_tar(bytes_of(tar_of(FORMS[form], of=OFF), 7), TOPIC, "here") == FORMS[form]


NOTICE = {"s3": {"bucket": {"name": "b"}, "object": {"key": "cat.jpg", "size": 5, "eTag": "x"}}, "eventName": "s3:ObjectCreated:Put"}


@pytest.mark.parametrize("value", [json.dumps({"Records": [NOTICE, NOTICE]}).encode(), json.dumps({"Records": [NOTICE]}).encode(), b"{"])
def test_a_bucket_notification_is_whole_also_without_media(value: bytes) -> None:
    notified = OFF.model_copy(update={"notifications": True})
    tar = tar_of(record(value, key=b"b/cat.jpg"), of=notified)
    assert from_tar(bytes_of(tar, 7), TOPIC, "here") == record(value, key=b"b/cat.jpg")
    assert [row.offset for row in index_of(tar).with_ids([id_hash("b/cat.jpg")])] == [7]


def test_a_claim_check_is_found_by_its_payload() -> None:
    digest = "ab" * 32
    reference = json.dumps({"key": f"c/photos-{ULID_A}/claim/{digest}", "sha256": digest, "size": 5})
    index = index_of(
        tar_of(record(JPEG, offset=1), record(b"", content_type="image/jpeg", hw_payload_ref=reference), record(b"", offset=9, hw_payload_ref="{"))
    )
    assert [row.offset for row in index.with_claims([bytes.fromhex(digest)])] == [7]


def test_a_purged_offset_is_told_from_a_gap() -> None:
    writer = TarWriter(COLLECTION, LIMITS)
    writer.add(record(JPEG, offset=1))
    writer.skip(2)
    tar = writer.finish()
    index, purged = index_of(tar), index_of(tar).find(2)
    assert purged is not None and purged.start is None and index.find(3) is None and tar.records == 1 and len(index) == 2


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_bytes_that_are_no_index_or_no_record_are_corrupt_and_nothing_else(data) -> None:  # type: ignore[no-untyped-def]
    tar = tar_of(FORMS["picture"])
    for whole, read in (
        (bytes_of(tar, 7), lambda d: from_tar(d, TOPIC, "here")),
        (tar.data[tar.index_start :][: tar.index_bytes], lambda d: TarIndex.read(d, "here")),
    ):
        at = data.draw(st.integers(0, len(whole) - 1))
        damaged = bytearray(whole)
        damaged[at] ^= data.draw(st.integers(1, 255))
        try:
            read(bytes(damaged))
        except CorruptError:
            continue
        except (TypeError, KeyError, IndexError, AttributeError, UnicodeDecodeError) as error:
            raise AssertionError("a damaged member escaped") from error


# ---- the manifest ----------------------------------------------------------------------------------------------------

FIRST = ArchiveManifest(
    version=1, previous=None, commit_id=ULID_A, writer="origin", committed_at="2026-01-01T00:00:00+00:00", incarnation=ULID_A, partition=3,
    cluster_id="c", media_topic_id="m", origin_offset=10, checkpoint=ArchiveCheckpoint(media_offset=10),
)  # fmt: skip


def entry(start: int, end: int, **more: object) -> TarEntry:
    sizes = {"size_bytes": 100, "index_start": 10, "index_bytes": 90, "records": 1} | more
    return TarEntry(start_offset=start, next_offset=end, key=f"k/{start}.tar", sha256="0" * 64, index_sha256="0" * 64, **sizes)  # type: ignore[arg-type]


def test_a_manifest_survives_its_bytes_and_finds_the_tar_of_an_offset() -> None:
    second = ReadVersion(FIRST, FIRST.to_bytes()).next(
        checkpoint=ArchiveCheckpoint(media_offset=60), epochs=ArchiveEpochs(archiver=2, purge=1), tars=(entry(20, 30), entry(30, 50)),
        lost=(Interval(start_offset=10, next_offset=20),), purges=(PendingPurge(id_hash="ab" * 16, below_offset=99),), condemned=("k/old.tar",),
    )  # fmt: skip
    read = ReadVersion.parse(ArchiveManifest, second.to_bytes(), "here").manifest
    assert read == second and read.to_bytes() == second.to_bytes()
    assert [tar and tar.key for tar in map(read.tar_of, (10, 19, 20, 29, 30, 49, 50, 59))] == [
        None,
        None,
        *["k/20.tar"] * 2,
        *["k/30.tar"] * 2,
        None,
        None,
    ]
    assert [read.is_lost(offset) for offset in (9, 10, 19, 20)] == [False, True, True, False]
    assert (read.records, read.size_bytes) == (2, 200)


@pytest.mark.parametrize("wrong", [
    {"tars": (entry(20, 30), entry(29, 40))},
    {"tars": (entry(30, 40), entry(20, 30))},
    {"tars": (entry(20, 61),)},
    {"lost": (Interval(start_offset=10, next_offset=61),)},
    {"condemned": ("../x",)},
    {"purges": ({"id_hash": "xy", "below_offset": 1},)},
    {"checkpoint": {"media_offset": -1}},
    {"surprise": 1},
])  # fmt: skip
def test_a_manifest_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        ReadVersion(FIRST, FIRST.to_bytes()).next(**{"checkpoint": ArchiveCheckpoint(media_offset=60), **wrong})


def test_an_index_outside_its_tar_is_refused() -> None:
    with pytest.raises(ValueError):
        entry(1, 2, index_bytes=91)
