"""Segment parts: the bytes of one immutable piece of the index (docs/formats/segment.md).

    rows            Arrow rows with lineage and payload, and their sorted id hashes
    field.<name>    vectors of one field: flat below the training size (layout ``flat``), inverted lists of a generation above (``ivf``)

Takes: Arrow rows, vector matrices, coded vectors. Gives: part bytes, and parts read back without copying. Owns: both layouts, but not the bytes in
the section `lists`, which `vectors.inverted_lists` writes and reads.
Never: holds a verdict or a delete (the ledger and the delete delta do); a segment's bytes never change.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.attributes import struct_type
from contracts.collection import FieldRecord
from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, write_footer_file
from contracts.item import IdIndex, id_hashes
from contracts.vectors_batch import LINEAGE_FIELDS, PAYLOAD_FIELDS

ROWS_PART = "rows"
FIELD_PART_PREFIX = "field."
MEDIA_FIELDS = (pa.field("media_offset", pa.int64()), pa.field("media_item", pa.int32()))
"""Where a patched row's media lie in the media log; null where they lie at the row's own place."""
_OPTIONAL_FIELDS = tuple(
    field for field in (*LINEAGE_FIELDS, pa.field("text", pa.utf8()), *PAYLOAD_FIELDS, *MEDIA_FIELDS) if field.nullable and field.name != "id"
)
"""Left out of a part in which all are null: Arrow would store a row's length of zeros for each. Attributes stay, since they have no fixed type."""
_WIDEST_BYTES = 32
"""Of a row in one of these columns: a sha256."""


def rows_schema(attributes: Mapping[str, str]) -> pa.Schema:
    """Schema of stored rows: a batch's columns without `op`, `patch` and the vectors, and where the media lie."""
    return pa.schema([*LINEAGE_FIELDS, pa.field("text", pa.utf8()), pa.field("attributes", struct_type(attributes)), *PAYLOAD_FIELDS, *MEDIA_FIELDS])


def stored_rows(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `rows_schema` of upserts of a vectors batch, whose media lie at their own place."""
    names = batch.schema.names
    columns = [batch.column(target.name) if target.name in names else pa.nulls(batch.num_rows, target.type) for target in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass(frozen=True, slots=True)
class RowsPart:
    """A read `rows` part. `batch` has n rows; `ids` finds a row by id hash."""

    batch: pa.RecordBatch
    ids: IdIndex
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FieldPart:
    """A read flat field part.

    `matrix` has shape (m, d) and the field's dtype; `rows` has shape (m,), dtype uint32: the segment row of each vector.
    """

    matrix: NDArray[Any]
    rows: NDArray[np.uint32]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CodedPart:
    """Vectors of one field of a segment in the codes of a generation (layout ``ivf``), to be written or read.

    `lists` holds the inverted lists, whose ids are segment rows; `refine` has shape (m, refine_bytes), dtype uint8, and `rows` shape (m,), dtype
    uint32, ascending: the segment row of each refine code. `lists` is the section as it lies in the object: `vectors.inverted_lists` checks it.
    """

    generation: int
    codec: str
    nlist: int
    code_bytes: int
    lists: bytes | memoryview
    refine: NDArray[np.uint8]
    rows: NDArray[np.uint32]
    segment_rows: int
    statistics: Mapping[str, Any]


def write_rows_part(rows: pa.RecordBatch, meta: Mapping[str, Any], ids: IdIndex | None = None) -> bytes:
    """Bytes of the `rows` part of n rows whose ids are unique and not null; `ids` is the index of their hashes, made here where it is None."""
    names = [field.name for field in _OPTIONAL_FIELDS if field.name in rows.schema.names and rows.column(field.name).null_count == rows.num_rows]
    rows = rows.drop_columns(names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_batch(rows)
    index = IdIndex.of(id_hashes(rows.column("id").to_pylist())) if ids is None else ids
    sections: dict[str, bytes | memoryview] = {
        "rows": memoryview(sink.getvalue()),
        "id_hashes": index.hashes.astype(">u8").tobytes(),
        "id_rows": index.rows.astype("<u4").tobytes(),
    }
    return write_footer_file("rows", sections, {**meta, "rows": rows.num_rows})


def read_rows_part(data: bytes | memoryview, where: str) -> RowsPart:
    """Read a `rows` part whose bytes were checked against the manifest.

    Raises
    ------
    CorruptError
        Not a rows part, or its sections disagree on the number of rows.
    """
    file = FooterFile.read(data, where, "rows")
    try:
        table = pa.ipc.open_file(pa.py_buffer(file.section("rows", where)))
        batch = table.get_batch(0) if table.num_record_batches else pa.RecordBatch.from_pylist([], schema=table.schema)
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{where}: the Arrow rows cannot be read: {error}") from None
    try:
        hashes = np.frombuffer(file.section("id_hashes", where), dtype=">u8").reshape(-1, 2)
        rows = np.frombuffer(file.section("id_rows", where), dtype="<u4")
    except ValueError as error:
        raise CorruptError(f"{where}: the id hashes cannot be read: {error}") from None
    if not len(rows) == len(hashes) == batch.num_rows == file.meta.get("rows"):
        raise CorruptError(f"{where}: {batch.num_rows} rows, {len(hashes)} id hashes, meta says {file.meta.get('rows')}")
    return RowsPart(_whole(batch), IdIndex(hashes, rows), file.meta)


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with the columns that were left out of its part, in the order of `rows_schema`."""
    stored = {name: (batch.schema.field(name), batch.column(name)) for name in batch.schema.names}
    left_out = {field.name: (field, column) for field, column in _nulls(batch.num_rows, stored.keys())}
    known = [field.name for field in rows_schema({})]
    order = [*known, *(name for name in stored if name not in known)]
    found = [(left_out | stored)[name] for name in order if name in stored or name in left_out]
    return pa.RecordBatch.from_arrays([column for _, column in found], schema=pa.schema([field for field, _ in found]))


def _nulls(rows: int, stored: Collection[str]) -> Iterator[tuple[pa.Field, pa.Array]]:
    """Columns of nulls for the optional fields that are not stored; all lie in one mapping of zeros, which takes no memory, unlike `pa.nulls`."""
    zeros = pa.py_buffer(mmap.mmap(-1, _WIDEST_BYTES * (rows + 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ))
    for field in _OPTIONAL_FIELDS:
        if field.name not in stored:
            children = [pa.array([], field.type.value_type)] if pa.types.is_list(field.type) else None
            buffers = [zeros] * (field.type.num_buffers if children is None else 2)
            yield field, pa.Array.from_buffers(field.type, rows, buffers, null_count=rows, children=children)


def write_field_part(field: FieldRecord, matrix: NDArray[Any], present: NDArray[np.bool_]) -> bytes:
    """Bytes of a flat field part.

    Parameters
    ----------
    field : FieldRecord
        Name, space, metric and dtype; they stand in the part's meta.
    matrix : NDArray
        shape (n, d), one row per segment row, in the field's dtype.
    present : NDArray[np.bool_]
        shape (n,); rows without a vector are left out of the part.
    """
    if matrix.ndim != 2 or matrix.shape[1] != field.dimension or len(matrix) != len(present):
        raise ValueError(f"field {field.name}: matrix {matrix.shape}, present {present.shape}, dimension {field.dimension}")
    kept = matrix if present.all() else matrix[present]
    sections: dict[str, bytes | memoryview] = {
        "vectors": np.ascontiguousarray(kept.astype(np.dtype(field.dtype).newbyteorder("<"), copy=False)).tobytes()
    }
    meta = _meta(field, len(matrix), int(present.sum())) | {"layout": "flat", "generation": None, "statistics": {}}
    return write_footer_file("field", _with_rows(sections, np.flatnonzero(present), len(matrix)), meta)


def write_coded_part(field: FieldRecord, part: CodedPart) -> bytes:
    """Bytes of a field part in the codes of a generation."""
    if not len(part.refine) == len(part.rows) <= part.segment_rows:
        raise ValueError(f"field {field.name}: {len(part.refine)} refine codes, {len(part.rows)} rows of {part.segment_rows}")
    sections: dict[str, bytes | memoryview] = {
        "lists": part.lists,
        "refine": np.ascontiguousarray(part.refine).data.cast("B") if part.refine.size else b"",
    }
    meta = _meta(field, part.segment_rows, len(part.rows)) | {
        "layout": "ivf",
        "generation": part.generation,
        "codec": part.codec,
        "nlist": part.nlist,
        "code_bytes": part.code_bytes,
        "refine_bytes": part.refine.shape[1],
        "statistics": dict(part.statistics),
    }
    return write_footer_file("field", _with_rows(sections, part.rows, part.segment_rows), meta)


def _meta(field: FieldRecord, rows: int, vectors: int) -> dict[str, Any]:
    return {**_field_meta(field), "rows": rows, "vectors": vectors}


def _field_meta(field: FieldRecord) -> dict[str, Any]:
    return {"field": field.name, "space_id": field.space_id, "metric": field.metric, "dtype": field.dtype, "dimension": field.dimension}


def _with_rows(sections: dict[str, bytes | memoryview], rows: NDArray[np.integer[Any]], segment_rows: int) -> dict[str, bytes | memoryview]:
    """Sections with the one that names the rows, where some rows have no vector."""
    return sections if len(rows) == segment_rows else {**sections, "rows": rows.astype("<u4").tobytes()}


def read_field_part(data: bytes | memoryview, field: FieldRecord, where: str) -> FieldPart | CodedPart:
    """Read a field part, flat or coded, whose bytes were checked against the manifest.

    Raises
    ------
    CorruptError
        Another space, dimension or dtype than the index's field, a layout that is not known, or sizes that disagree.
    """
    file = FooterFile.read(data, where, "field")
    meta = file.meta
    for name, value in _field_meta(field).items():
        if meta.get(name) != value:
            raise CorruptError(f"{where}: {name} is {meta.get(name)!r}, the index's field {field.name} says {value!r}")
    if meta.get("layout") not in ("flat", "ivf"):
        raise CorruptError(f"{where}: layout {meta.get('layout')!r} is not known", hint="upgrade headwater on this machine", code="unknown_format")
    try:
        if type(meta["rows"]) is not int or meta["rows"] < 0:
            raise ValueError("its number of rows is no number")
        rows = np.frombuffer(file.sections["rows"], dtype="<u4") if "rows" in file.sections else np.arange(meta["rows"], dtype=np.uint32)
        part = _flat(file, field, rows, where) if meta["layout"] == "flat" else _coded(file, rows, where)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{where}: the vectors cannot be read: {error}") from None
    vectors = len(part.matrix) if isinstance(part, FieldPart) else len(part.refine)
    if not vectors == len(rows) == meta.get("vectors") or (len(rows) and (int(rows[-1]) >= meta["rows"] or (rows[1:] <= rows[:-1]).any())):
        raise CorruptError(f"{where}: {vectors} vectors for {len(rows)} rows, meta says {meta.get('vectors')} of {meta.get('rows')}")
    return part


def _flat(file: FooterFile, field: FieldRecord, rows: NDArray[np.uint32], where: str) -> FieldPart:
    matrix = np.frombuffer(file.section("vectors", where), dtype=np.dtype(field.dtype).newbyteorder("<")).reshape(-1, field.dimension)
    return FieldPart(matrix, rows, file.meta)


def _coded(file: FooterFile, rows: NDArray[np.uint32], where: str) -> CodedPart:
    names = ("generation", "nlist", "code_bytes", "refine_bytes", "rows")
    generation, nlist, code_bytes, refine_bytes, segment_rows = (file.meta[name] for name in names)
    if not all(type(number) is int and number > 0 for number in (nlist, code_bytes, refine_bytes)) or type(generation) is not int or generation < 0:
        raise ValueError("its generation and sizes are not whole numbers")
    refine = np.frombuffer(file.section("refine", where), dtype=np.uint8).reshape(-1, refine_bytes)
    lists = file.section("lists", where)
    return CodedPart(generation, str(file.meta["codec"]), nlist, code_bytes, lists, refine, rows, segment_rows, dict(file.meta["statistics"]))
