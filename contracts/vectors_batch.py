"""The vectors batch: what an embed worker says about an interval of media offsets (docs/formats/vectors_batch.md).

One Kafka record is one batch. Its headers name the interval; its value is an Arrow IPC stream with one row per item.
A `commit` notice shares the topic: headers only, outside the chain rule.

Takes: items or a record's bytes. Gives: a record's headers and value, or a checked Arrow batch. Owns: the schema.
Never: trusts a value before its sha256 is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts import FORMAT_VERSION
from contracts.attributes import struct_type
from contracts.chain import BatchSpan
from contracts.collection import FieldRecord, IndexRecord
from contracts.errors import CorruptError
from contracts.log import Headers, LogRecord

Op = Literal["upsert", "delete", "patch", "reject", "superseded", "gap", "lost"]
OPS: tuple[Op, ...] = ("upsert", "delete", "patch", "reject", "superseded", "gap", "lost")
RUN_OPS: tuple[Op, ...] = ("gap", "lost")
"""For these, `item` is the number of consecutive media offsets covered, beginning at `offset`."""

VECTOR_PREFIX = "vector."
NOTICE_KEY = b"commit"
"""Key of a commit notice: Kafka clients refuse a record that has neither key nor value."""
TIMESTAMP = pa.timestamp("us", tz="UTC")
LINEAGE_FIELDS = (
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("item", pa.int32(), nullable=False),
    pa.field("origin_offset", pa.int64()),
    pa.field("origin_item", pa.int32()),
    pa.field("id", pa.utf8()),
)
PAYLOAD_FIELDS = (
    pa.field("acl", pa.list_(pa.utf8())),
    pa.field("event_time", TIMESTAMP),
    pa.field("produced_at", TIMESTAMP),
    pa.field("media_type", pa.utf8()),
    pa.field("media_sha256", pa.binary(32)),
    pa.field("reason", pa.utf8()),
)


@dataclass(slots=True)
class BatchItem:
    """One row of a batch, before it is a column: see the format page for each field's meaning."""

    offset: int
    item: int
    op: Op
    id: str | None = None
    origin_offset: int | None = None
    origin_item: int | None = None
    vectors: dict[str, NDArray[np.floating[Any]] | None] = field(default_factory=dict)
    patch: str | None = None
    text: str | None = None
    attributes: dict[str, Any] | None = None
    acl: list[str] | None = None
    event_time_us: int | None = None
    produced_at_us: int | None = None
    media_type: str | None = None
    media_sha256: bytes | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CommitNotice:
    """A record that announces a committed manifest."""

    version: int
    commit_id: str
    incarnation: str


def vector_field(record: FieldRecord) -> pa.Field:
    """Arrow field of a vector column; its space stands in the field's metadata."""
    value = pa.float16() if record.dtype == "float16" else pa.float32()
    return pa.field(
        VECTOR_PREFIX + record.name, pa.list_(value, record.dimension), metadata={"hw_space": record.space_id, "hw_metric": record.metric}
    )


def batch_schema(index: IndexRecord, attributes: Mapping[str, str]) -> pa.Schema:
    """Schema of a batch of this index, for a collection with these typed attributes."""
    offset, item, *rest = LINEAGE_FIELDS
    acl, *payload = PAYLOAD_FIELDS
    vectors = [vector_field(record) for record in index.fields]
    middle = [pa.field("patch", pa.utf8()), pa.field("text", pa.utf8()), pa.field("attributes", struct_type(attributes)), acl]
    return pa.schema([offset, item, pa.field("op", pa.utf8(), nullable=False), *rest, *vectors, *middle, *payload])


def _vector_column(items: Sequence[BatchItem], target: pa.Field) -> pa.Array:
    name, size = target.name.removeprefix(VECTOR_PREFIX), target.type.list_size
    flat = np.zeros((len(items), size), dtype=target.type.value_type.to_pandas_dtype())
    missing = np.ones(len(items), dtype=bool)
    for row, item in enumerate(items):
        vector = item.vectors.get(name)
        if vector is not None:
            flat[row], missing[row] = vector, False
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), size, mask=mask)


def build_batch(items: Sequence[BatchItem], schema: pa.Schema) -> pa.RecordBatch:
    """Turn n items into an Arrow batch of n rows with the schema of `batch_schema`."""
    plain = [target for target in schema if not target.name.startswith(VECTOR_PREFIX)]
    sources = [(target.name, f"{target.name}_us" if target.name in ("event_time", "produced_at") else target.name) for target in plain]
    # One call for all plain columns: each call into Arrow lets go of the interpreter, and small batches are made of such calls.
    rows = pa.array([{name: getattr(item, source) for name, source in sources} for item in items], pa.struct(plain))
    columns = dict(zip((target.name for target in plain), rows.flatten(), strict=True))
    vectors = {target.name: _vector_column(items, target) for target in schema if target.name.startswith(VECTOR_PREFIX)}
    return pa.RecordBatch.from_arrays([(columns | vectors)[target.name] for target in schema], schema=schema)


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """Arrow IPC stream of one batch, uncompressed (vectors do not compress; Kafka may)."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def batch_headers(span: BatchSpan, value: bytes) -> Headers:
    """Headers of a batch record, all ASCII."""
    return (
        ("hw_type", b"batch"),
        ("hw_format", str(FORMAT_VERSION).encode()),
        ("hw_incarnation", span.incarnation.encode()),
        ("hw_topic_id", span.topic_id.encode()),
        ("hw_start_offset", str(span.start_offset).encode()),
        ("hw_next_offset", str(span.next_offset).encode()),
        ("hw_sha256", hashlib.sha256(value).hexdigest().encode()),
    )


def notice_headers(notice: CommitNotice) -> Headers:
    """Headers of a commit notice, which has no value."""
    return (
        ("hw_type", b"commit"),
        ("hw_format", str(FORMAT_VERSION).encode()),
        ("hw_incarnation", notice.incarnation.encode()),
        ("hw_version", str(notice.version).encode()),
        ("hw_commit_id", notice.commit_id.encode()),
    )


def read_headers(record: LogRecord) -> BatchSpan | CommitNotice:
    """What kind of record of the vectors topic this is.

    Raises
    ------
    CorruptError
        A header is missing, not a number, or of another format version.
    """
    where = f"{record.topic}/{record.partition}/{record.offset}"
    found = {name: value for name, value in record.headers if value is not None}
    try:
        if found["hw_format"] != str(FORMAT_VERSION).encode():
            raise CorruptError(
                f"{where}: vectors batch of format {found['hw_format']!r}", hint="upgrade headwater on this machine", code="unknown_format"
            )
        incarnation = found["hw_incarnation"].decode("ascii")
        if found["hw_type"] == b"commit":
            return CommitNotice(int(found["hw_version"]), found["hw_commit_id"].decode("ascii"), incarnation)
        if found["hw_type"] == b"batch":
            return BatchSpan(incarnation, found["hw_topic_id"].decode("ascii"), int(found["hw_start_offset"]), int(found["hw_next_offset"]))
    except (KeyError, ValueError) as error:
        raise CorruptError(f"{where}: header {error} is missing or unreadable", hint="only headwater may write to a vectors topic") from None
    raise CorruptError(f"{where}: hw_type is neither batch nor commit", hint="only headwater may write to a vectors topic")


def decode_batch(record: LogRecord, schema: pa.Schema) -> pa.RecordBatch:
    """Read a batch's value, checked by its sha256 first, and conform it to the index's schema of today.

    Raises
    ------
    CorruptError
        Bytes differ from their hash, are not one Arrow batch, or have another space or type.
    """
    where = f"{record.topic}/{record.partition}/{record.offset}"
    value = record.value or b""
    if hashlib.sha256(value).hexdigest().encode() != record.header("hw_sha256"):
        raise CorruptError(f"{where}: the batch's sha256 does not match its bytes", hint="the log returned damaged data; check the broker's disks")
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as reader:
            batch = reader.read_next_batch()
            batch.validate(full=False)
    except (pa.ArrowException, StopIteration, OSError) as error:
        raise CorruptError(f"{where}: not an Arrow batch: {error}", hint="only headwater may write to a vectors topic") from None
    return batch if batch.schema.equals(schema, check_metadata=True) else conform(batch, schema, where)


def conform(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """Give a batch of an older schema version today's columns: new ones are null; a changed type or space is an error."""
    columns: list[pa.Array] = []
    for target in schema:
        at = batch.schema.get_field_index(target.name)
        if at < 0:
            columns.append(_missing_column(batch.num_rows, target, where))
            continue
        column, found = batch.column(at), batch.schema.field(at)
        if target.name.startswith(VECTOR_PREFIX) and (found.metadata or {}).get(b"hw_space") != target.metadata[b"hw_space"]:
            raise CorruptError(
                f"{where}: column {target.name} is in another embedding space", hint="two encoders wrote to one index; stop the wrong one"
            )
        if target.name == "attributes" and pa.types.is_struct(found.type) and not found.type.equals(target.type):
            column = _conform_struct(column, target.type, where)
        if not column.type.equals(target.type):
            raise CorruptError(f"{where}: column {target.name} is {column.type}, the index says {target.type}", hint="a type change is a new index")
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _missing_column(rows: int, target: pa.Field, where: str) -> pa.Array:
    if not target.nullable:
        raise CorruptError(f"{where}: column {target.name} is missing", hint="only headwater may write to a vectors topic")
    if not target.name.startswith(VECTOR_PREFIX):
        return pa.nulls(rows, target.type)
    zeros = np.zeros(rows * target.type.list_size, dtype=target.type.value_type.to_pandas_dtype())  # not nulls, so that `vector_matrix` can view them
    return pa.FixedSizeListArray.from_arrays(pa.array(zeros), target.type.list_size, mask=pa.array(np.ones(rows, bool)))


def _conform_struct(column: pa.StructArray, target: pa.StructType, where: str) -> pa.StructArray:
    for child in target:
        at = column.type.get_field_index(child.name)
        if at >= 0 and not column.type.field(at).type.equals(child.type):
            raise CorruptError(f"{where}: attribute {child.name} changed its type", hint="a type change is a new index")
    children = [column.field(child.name) if column.type.get_field_index(child.name) >= 0 else pa.nulls(len(column), child.type) for child in target]
    return pa.StructArray.from_arrays(children, fields=list(target), mask=column.is_null())


def vector_matrix(column: pa.FixedSizeListArray) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """View a vector column without copying.

    Returns
    -------
    matrix : NDArray[np.float16 | np.float32]
        shape (n, d); rows of null vectors hold zeros or noise.
    present : NDArray[np.bool_]
        shape (n,); False where the vector is null.
    """
    size = column.type.list_size
    flat = column.values.slice(column.offset * size, len(column) * size)
    matrix = flat.to_numpy(zero_copy_only=True).reshape(len(column), size)
    present = np.ones(len(column), bool) if column.null_count == 0 else np.asarray(column.is_valid())
    return matrix, present
