"""The examples of docs/formats, made by the code that reads and writes the formats: what a page shows cannot be untrue."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from pyroaring import BitMap

from backends.catalog.pins import Pin
from contracts import archive_tar, attributes, canonical_json, object_keys
from contracts.archive_manifest import ArchiveCheckpoint, ArchiveEpochs, ArchiveManifest, PendingPurge, TarEntry
from contracts.archive_tar import TarIndex, TarWriter
from contracts.chain import BatchSpan
from contracts.collection import CollectionRecord, FieldRecord, IndexRecord, NameRecord
from contracts.deletes import DeleteDelta, Tombstone, encode_delete_delta
from contracts.footer_file import FooterFile, write_footer_file
from contracts.generation import Generation, encode_generation
from contracts.hashed_json import without_hash
from contracts.item import id_hash
from contracts.ledger import LedgerRun, decode_ledger, encode_ledger
from contracts.log import LogRecord
from contracts.manifest import Checkpoint, Epochs, LedgerEntry, Manifest, ObjectEntry, ReadManifest, ReadVersion, SegmentEntry
from contracts.media_record import MediaItem, RecordLimits, RejectedItem, read_media_record
from contracts.payload_ref import PayloadRef, encode_payload_ref
from contracts.segment import CodedPart, rows_schema, write_coded_part, write_field_part, write_rows_part
from contracts.vectors_batch import BatchItem, CommitNotice, batch_headers, batch_schema, build_batch, encode_batch, notice_headers
from indexer.purge_requests import PurgeRequest
from vectors.inverted_lists import build_lists, write_lists
from vectors.quantizer import Quantizer
from vectors.quantizer_bytes import QuantizerParts, write_quantizer

INCARNATION = "01JD0PHT0S0000000000000000"
SEGMENT_ID = "01JD0SEGMENT00000000000000"
COMMIT_ID = "01JD0C0MM1T000000000000000"
TIME = "2026-11-23T10:00:00.000+00:00"
IMAGE = FieldRecord(name="image", source="image", encoder="lite", space_id="lite@6f1c0ffee0ddba11", dimension=2, metric="cosine", dtype="float16")
INDEX = IndexRecord(name="main", fields=(IMAGE,), vectors_topic="headwater.photos.main.vectors", vectors_topic_id="9b2e5f0a-vectors")
COLLECTION = CollectionRecord(
    version=1, name="photos", incarnation=INCARNATION, created_at=TIME, partitions=4, cluster_id="kR0z-cluster",
    source_topic="headwater.photos.media",
    source_topic_id="4c7d1a2b-media", owns_source_topic=True, active_index="main", indexes=(INDEX,),
    attributes={"price": "float", "tags": "keyword[]"},
)  # fmt: skip
KEYS = object_keys.CollectionKeys("photos", INCARNATION)
PARTITION = KEYS.index("main").partition(3)
JPEG = b"\xff\xd8\xff\xe0"


def fenced(kind: str, text: str) -> str:
    """Fenced block."""
    return f"```{kind}\n{text.rstrip()}\n```\n"


def shown_json(data: bytes) -> str:
    """The first line of stored JSON, broken into lines for reading, and the second."""
    line = without_hash(data, "the example")
    return fenced("json", json.dumps(json.loads(line), indent=1, ensure_ascii=False) + "\n" + data[len(line) :].decode().strip())


def hexdump(data: bytes, start: int = 0) -> str:
    """Offset, 16 bytes, and their ASCII, a line each."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        lines.append(f"{start + at:08x}  {row.hex(' '):<47}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in row)}")
    return "\n".join(lines)


def shown_headers(headers: Iterable[tuple[str, bytes]]) -> str:
    """Headers, a line each."""
    return fenced("text", "\n".join(f"{name}: {value.decode()}" for name, value in headers))


def shown_schema(schema: pa.Schema | pa.StructType) -> str:
    """Columns of an Arrow schema as a Markdown table."""
    rows = [f"| `{field.name}` | `{field.type}` | {'yes' if field.nullable else 'no'} |" for field in schema]
    return "\n".join(["| column | Arrow type | null? |", "| --- | --- | --- |", *rows]) + "\n"


def shown_file(data: bytes) -> str:
    """Kind, meta and sections of a footer-indexed file."""
    file = FooterFile.read(data, "example")
    lines = [f"kind      {file.kind}", f"meta      {canonical_json.dump(file.meta).decode()}"]
    for name, view in file.sections.items():
        is_arrow = bytes(view[:6]) == b"ARROW1"  # whose size differs between versions of Arrow
        lines.append(f"section   {name}: {'an Arrow IPC file' if is_arrow else f'{len(view)} bytes'}")
    return fenced("text", "\n".join(lines))


def arrow_file(table: pa.Table) -> bytes:
    """Arrow IPC file of a table."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def manifests() -> tuple[Manifest, Manifest]:
    """Manifest 1 and the one that commits a segment."""
    first = Manifest(
        version=1, previous=None, commit_id=INCARNATION, writer="origin", committed_at=TIME, incarnation=INCARNATION, index="main", partition=3,
        cluster_id=COLLECTION.cluster_id, media_topic_id=COLLECTION.source_topic_id, vectors_topic_id=INDEX.vectors_topic_id, schema_version=1,
        origin_offset=100, checkpoint=Checkpoint(vectors_offset=0, media_offset=100),
    )  # fmt: skip
    data = b"an object"
    segment = SegmentEntry(
        segment_id=SEGMENT_ID, rows=2, start_offset=100, next_offset=103,
        min_event_time_us=1_795_428_000_000_000, max_event_time_us=1_795_428_000_500_000,
        schema_version=1, parts={name: ObjectEntry.of(PARTITION.part("b", 1, SEGMENT_ID, name), data) for name in ("rows", "field.image")},
    )  # fmt: skip
    ledger = LedgerEntry(object=ObjectEntry.of(PARTITION.part("b", 1, SEGMENT_ID, "ledger"), data), start_offset=100, next_offset=103)
    second = ReadManifest(first, first.to_bytes()).next(
        commit_id=COMMIT_ID, writer="worker-1/main/3", epochs=Epochs(builder=1), published={"builder-1": SEGMENT_ID},
        checkpoint=Checkpoint(vectors_offset=7, media_offset=103), segments=(segment,), ledger=(ledger,),
    )  # fmt: skip
    return first, second


def key_table() -> str:
    """Every kind of object with an example key."""
    index = KEYS.index("main")
    examples = {
        "name": object_keys.name_key("photos", 1),
        "collection": KEYS.version(1),
        "archive_manifest": KEYS.archive(3).manifest(1),
        "archive_tar": KEYS.archive(3).tar("b", 1, SEGMENT_ID),
        "archive_boundary": KEYS.archive(3).boundary,
        "claim": KEYS.claim("ab" * 32),
        "generation": index.generation(0, "image"),
        "manifest": PARTITION.manifest(2),
        "part": PARTITION.part("b", 1, SEGMENT_ID, "rows"),
        "boundary": PARTITION.boundary,
        "pin": PARTITION.pin(SEGMENT_ID),
        "purge": PARTITION.purge(SEGMENT_ID),
    }
    rows = [f"| `{kind}` | `{examples[kind]}` |" for kind in object_keys.PATTERNS]
    patterns = "\n".join(f"{kind:<17}{pattern}" for kind, pattern in object_keys.PATTERNS.items())
    return "\n".join(["| kind | example |", "| --- | --- |", *rows]) + "\n\n" + fenced("text", patterns)


def media_examples() -> str:
    """Records and the items that reading them gives."""
    event = {"specversion": "1.0", "id": "cat-2", "source": "shop", "type": "new", "datacontenttype": "text/plain", "data": "a cat"}
    rows = pa.table({"id": ["v-1", "v-2"], "image": pa.array([[3.0, 4.0], [0.0, 0.0]], pa.list_(pa.float32(), 2))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    own = COLLECTION.model_copy(
        update={"indexes": (INDEX.model_copy(update={"fields": (IMAGE.model_copy(update={"source": "vector", "encoder": None}),)}),)}
    )
    plain = (
        ("content-type", b"image/jpeg"),
        ("hw_caption", b"a cat"),
        ("hw_attributes", b'{"price":9.5,"colour":"red"}'),
        ("hw_time", b"2026-11-23T10:00:00Z"),
    )
    notified = {"bucket": {"name": "drop"}, "object": {"key": "my+cat.jpg", "size": 4, "eTag": "d3b0"}}
    sha256 = hashlib.sha256(JPEG)
    claim = PayloadRef(KEYS.claim(sha256.hexdigest()), len(JPEG), sha256.digest())
    cases: list[tuple[str, bytes | None, bytes | None, Any, CollectionRecord]] = [
        ("plain", b"cat-1", JPEG, plain, COLLECTION),
        ("CloudEvents binary", None, JPEG, (("ce_specversion", b"1.0"), ("ce_id", b"cat-1"), ("ce_hwcaption", b"a cat")), COLLECTION),
        ("CloudEvents structured", None, json.dumps(event).encode(), (("content-type", b"application/cloudevents+json"),), COLLECTION),
        ("parts", None, json.dumps({"id": "cat-3", "parts": [{"text": "a cat"}, {"data_base64": "/9j/4A=="}], "attributes": {"price": 2}}).encode(),
         (("content-type", b"application/vnd.headwater.record+json"),), COLLECTION),
        ("claim check", b"cat-4", b"", (("content-type", b"image/jpeg"), ("hw_payload_ref", encode_payload_ref(claim))), COLLECTION),
        ("bucket notification", b"drop/my cat.jpg", json.dumps({"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": notified}]}).encode(), (),
         COLLECTION.model_copy(update={"notifications": True})),
        ("Arrow rows", None, sink.getvalue().to_pybytes(), (("content-type", b"application/vnd.apache.arrow.stream"),), own),
        ("patch", b"cat-1", b'{"price":8,"tags":["sale"],"colour":null}', (("hw_op", b"patch"), ("hw_acl", b'["staff"]')), COLLECTION),
        ("delete", b"cat-1", None, (), COLLECTION),
        ("rejected", b"cat-1", b"%PDF-1.7", (("content-type", b"application/pdf"),), COLLECTION),
    ]  # fmt: skip
    out = []
    for name, key, value, headers, collection in cases:
        record = LogRecord("headwater.photos.media", 3, 42, 1_795_428_000_000, key, value, headers)
        shown_value = "null" if value is None else value.decode() if value.isascii() else f"{len(value)} bytes, {value[:4].hex(' ')} ..."
        lines = [f"{name}: key {key.decode() if key else 'null'}, value {shown_value}", *(f"  {n}: {v.decode()}" for n, v in headers)]
        lines += [f"  -> {_shown_item(found)}" for found in read_media_record(record, collection, RecordLimits())]
        out.append("\n".join(lines))
    return fenced("text", "\n\n".join(out))


def _shown_item(found: MediaItem | RejectedItem) -> str:
    if isinstance(found, RejectedItem):
        return f"item {found.item} rejected: {found.reason}, {found.message}"
    kept = {name: getattr(found, name) for name in ("is_delete", "patch", "acl", "text", "media_type", "attributes") if getattr(found, name)}
    kept |= {"to be fetched": [part.ref.key for part in found.parts if part.ref]} if found.parts else {}
    kept |= {"picture": f"{len(found.picture)} bytes"} if found.picture else {}
    kept |= {f"vector {name}": np.round(vector.astype(float), 3).tolist() for name, vector in found.vectors.items()}
    return f"item {found.item} id {found.id}: " + ", ".join(f"{name}={value}" for name, value in kept.items())


def batch() -> pa.RecordBatch:
    """A batch of three rows."""
    items = [
        BatchItem(100, 0, "upsert", "cat-1", vectors={"image": np.array([0.6, 0.8], np.float16)}, attributes={"price": 9.5}, media_type="image/jpeg"),
        BatchItem(101, 0, "reject", "cat-2", reason="decode_failed"),
        BatchItem(102, 0, "delete", "cat-3"),
    ]
    return build_batch(items, batch_schema(INDEX, COLLECTION.attributes))


def batch_block() -> str:
    """Headers of the batch, and its rows; the sha256 is left out because Arrow may lay out the same rows otherwise in another version."""
    headers = [
        (name, value)
        for name, value in batch_headers(BatchSpan(INCARNATION, COLLECTION.source_topic_id, 100, 103), encode_batch(batch()))
        if name != "hw_sha256"
    ]
    rows = [{name: value for name, value in row.items() if value is not None} for row in batch().to_pylist()]
    shown = "\n".join(str({k: (v if k != "vector.image" else [round(float(x), 2) for x in v]) for k, v in row.items()}) for row in rows)
    notice = notice_headers(CommitNotice(2, COMMIT_ID, INCARNATION))
    return (
        shown_headers([*headers, ("hw_sha256", b"64 hex digits of the value's sha256")])
        + "\n"
        + fenced("text", shown)
        + "\nA commit notice:\n\n"
        + shown_headers(notice)
    )


def rows() -> bytes:
    """A rows part of two rows."""
    schema = rows_schema(COLLECTION.attributes)
    stored = [{"offset": 100, "item": 0, "id": "cat-1", "text": "a cat"}, {"offset": 104, "item": 0, "id": "cat-9"}]
    return write_rows_part(pa.RecordBatch.from_pylist(stored, schema=schema), {"segment_id": SEGMENT_ID})


def archive_blocks() -> dict[str, str]:
    """A small tar, its index and the manifest that names it; sizes and hashes of the index are left out, which Arrow may lay out otherwise."""
    headers = (("content-type", b"image/jpeg"), ("hw_caption", b"a cat"), ("hw_attributes", b'{"price":9.5}'))
    writer = TarWriter(COLLECTION, RecordLimits())
    writer.add(LogRecord(COLLECTION.source_topic, 3, 100, 1_795_428_000_000, b"cat-1", JPEG, headers))
    writer.skip(101)
    writer.add(LogRecord(COLLECTION.source_topic, 3, 103, 1_795_428_000_500, b"cat-1", None))
    tar = writer.finish()
    members = tarfile.open(fileobj=io.BytesIO(tar.data)).getmembers()
    lines = ["header at  data at  bytes  name"]
    lines += [f"{m.offset:>9}  {m.offset_data:>7}  {'...' if m.name.startswith('_') else m.size:>5}  {m.name}" for m in members]
    text = tarfile.open(fileobj=io.BytesIO(tar.data)).extractfile(members[2])
    assert text is not None
    index = TarIndex.read(tar.data[tar.index_start : tar.index_start + tar.index_bytes], "example")
    rows = [
        f"offset={r.offset} start={r.start} size_bytes={r.size_bytes} sha256={r.sha256.hex()[:16] or None} ids={[i.hex() for i in r.ids]}"
        for r in index.rows()
    ]
    first = ArchiveManifest(
        version=1, previous=None, commit_id=INCARNATION, writer="origin", committed_at=TIME, incarnation=INCARNATION, partition=3,
        cluster_id=COLLECTION.cluster_id, media_topic_id=COLLECTION.source_topic_id, origin_offset=100,
        checkpoint=ArchiveCheckpoint(media_offset=100),
    )  # fmt: skip
    entry = TarEntry(
        start_offset=100, next_offset=104, key=KEYS.archive(3).tar("b", 1, SEGMENT_ID), size_bytes=7168, sha256="ab" * 32, records=2,
        index_start=4608, index_bytes=1538, index_sha256="cd" * 32,
    )  # fmt: skip
    second = ReadVersion(first, first.to_bytes()).next(
        commit_id=COMMIT_ID, writer="archiver-1", epochs=ArchiveEpochs(archiver=1), checkpoint=ArchiveCheckpoint(media_offset=104), tars=(entry,)
    )
    return {
        "archive.columns": shown_schema(archive_tar._SCHEMA),
        "archive.manifest": shown_json(second.to_bytes()),
        "archive.example": fenced("text", "\n".join(lines))
        + f"\n`{members[2].name}`:\n\n"
        + fenced("json", text.read().decode())
        + "\nThe rows of its index:\n\n"
        + fenced("text", "\n".join(rows)),
    }


def ledger_block() -> str:
    """Runs as they are stored."""
    runs = [
        LedgerRun(100, 140, 0, 1, "row"),
        LedgerRun(140, 141, 0, 1, "reject", "decode_failed"),
        LedgerRun(141, 142, 0, 64, "row"),
        LedgerRun(142, 150, 0, 0, "gap"),
        LedgerRun(150, 151, 0, 1, "row", "decode_failed", partial=True),
    ]
    return fenced("text", "\n".join(str(run) for run in decode_ledger(encode_ledger(runs), "example")))


def generation() -> Generation:
    """A generation of two lists and one byte a vector; its numbers are made up, since trained ones differ between machines."""
    codebook = np.stack([np.linspace(-0.5, 0.5, 256), np.zeros(256)], axis=1).reshape(1, 256, 2).astype(np.float32)
    parts = QuantizerParts(codebook, np.array([[-1, -1], [2, 2]], np.float32))
    centroids = np.array([[1, 0], [0, 1]], np.float32)
    statistics = {"quantization_error": 0.1, "quantization_error_ratio": 1.0, "imbalance": 1.5, "recall": {"1": 0.8, "2": 0.97}}
    return Generation("image", 1, IMAGE.space_id, "cosine", "ivf_pq1x8+sq8", centroids, write_quantizer(parts), 10_000, statistics)


def coded_part() -> bytes:
    """A coded part of three rows, the second without a vector."""
    quantizer = Quantizer.open(generation())
    encoded = quantizer.encode(np.array([[0.6, 0.8], [1, 0]], np.float16))
    rows = np.array([0, 2], np.uint32)
    lists = write_lists(build_lists(2, encoded.list_numbers, encoded.codes, rows.astype(np.int64)))
    statistics = {"quantization_error_ratio": 0.9, "imbalance": 1.0, "recall": {"1": 0.5, "2": 1.0}, "recall_queries": 2, "refine_factor": 10}
    return write_coded_part(IMAGE, CodedPart(1, quantizer.codec.name, 2, 1, lists, encoded.refine, rows, 3, statistics))


def blocks() -> dict[str, str]:
    """Every generated block of docs/formats, by name."""
    small = write_footer_file("example", {"a": b"hello", "b": b"\1\2\3"}, {"answer": 42})
    first, second = manifests()
    delta = DeleteDelta({SEGMENT_ID: BitMap([0, 7])}, [Tombstone(id_hash("cat-3"), 102, 0, 1_795_428_000_000_000)])
    field_part = write_field_part(IMAGE, np.array([[0.6, 0.8], [0, 0]], np.float16), np.array([True, False]))
    field_file = FooterFile.read(field_part, "example")
    coded = FooterFile.read(coded_part(), "example")
    tombstones = pa.ipc.open_file(pa.py_buffer(FooterFile.read(encode_delete_delta(delta), "example").section("tombstones", "example"))).schema
    ledger_schema = pa.ipc.open_file(encode_ledger([])).schema
    return {
        **archive_blocks(),
        "attributes.columns": shown_schema(attributes.struct_type(COLLECTION.attributes)),
        "attributes.example": fenced(
            "text",
            "\n".join(
                f"{name}: {value}"
                for name, value in attributes.coerce_all({"price": 9, "tags": "new", "colour": "red"}, COLLECTION.attributes).items()
            ),
        ),
        "collection.example": shown_json(COLLECTION.to_bytes()),
        "collection.name_example": fenced("json", NameRecord(version=1, name="photos", incarnation=INCARNATION).to_bytes().decode()),
        "deletes.columns": shown_schema(tombstones),
        "deletes.example": shown_file(encode_delete_delta(delta))
        + "\nThe bitmap of rows 0 and 7:\n\n"
        + fenced("text", hexdump(BitMap([0, 7]).serialize())),
        "footer_file.example": fenced("text", hexdump(small)),
        "generation.example": shown_file(encode_generation(generation())),
        "generation.quantizer": shown_file(generation().quantizer),
        "ledger.columns": shown_schema(ledger_schema),
        "ledger.example": ledger_block(),
        "manifest.first": fenced("json", first.to_bytes().decode()),
        "manifest.example": shown_json(second.to_bytes()),
        "media_record.examples": media_examples(),
        "object_keys.table": key_table(),
        "pin.example": shown_json(Pin(version=7, until_seconds=1_795_431_600).to_bytes()),
        "purge_request.example": shown_json(PurgeRequest(purges=(PendingPurge(id_hash=id_hash("cat-3").hex(), below_offset=103),)).to_bytes()),
        "segment.columns": shown_schema(rows_schema(COLLECTION.attributes)),
        "segment.rows_example": shown_file(rows()),
        "segment.field_example": shown_file(field_part)
        + "\nIts two sections:\n\n"
        + fenced("text", "\n".join(f"{name:<8}{bytes(view).hex(' ')}" for name, view in field_file.sections.items())),
        "segment.coded_example": shown_file(coded_part())
        + "\nIts sections:\n\n"
        + fenced("text", "\n\n".join(f"{name}\n{hexdump(bytes(view))}" for name, view in coded.sections.items())),
        "segment.hash_example": fenced("text", f'id "cat-1"  ->  {id_hash("cat-1").hex()}'),
        "vectors_batch.columns": shown_schema(batch().schema),
        "vectors_batch.example": batch_block(),
    }
