"""Arrow rows: the form of the media record in which producers bring their own vectors (docs/formats/media_record.md, form e).

One record holds many rows; a row is an item, numbered from 0. Columns: `id` utf8, one list column of floats per vector field, and optionally
`text`, `attributes` (utf8 JSON), `acl` list<utf8>, `time` timestamp.

Takes: the record's Arrow stream. Gives: items, wanted or rejected row by row. Owns: the checks on own vectors.
Never: lets a vector with NaN, a wrong length or no direction into a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts import canonical_json
from contracts.attributes import coerce_all
from contracts.collection import CollectionRecord, FieldRecord
from contracts.errors import RecordError
from contracts.log import LogRecord
from contracts.media_record import MediaItem, RecordLimits, RejectedItem, check_id, checked_text, coerced_attributes, default_id

FLOAT16_MAX = 65504.0


def read_rows(record: LogRecord, collection: CollectionRecord, limits: RecordLimits, produced_at_us: int) -> list[MediaItem | RejectedItem]:
    """Items of an Arrow record; RecordError rejects the record whole, a bad row is rejected alone."""
    table = _open_stream(record.value or b"", limits)
    fields = [field for index in collection.indexes for field in index.fields if field.source == "vector"]
    columns = {field.name: _vectors(table, field) for field in fields}
    if not any(column is not None for column in columns.values()):
        raise RecordError(
            "bad_vector", f"no column named after a vector field of the collection ({', '.join(f.name for f in fields) or 'it has none'})"
        )
    payload = {name: table.column(name).to_pylist() for name in ("id", "text", "attributes", "acl") if name in table.column_names}
    times = _times(table)
    out: list[MediaItem | RejectedItem] = []
    for row in range(table.num_rows):
        try:
            vectors = {name: _row_vector(column, row, name) for name, column in columns.items() if column is not None}
            out.append(_row_item(record, row, {n: values[row] for n, values in payload.items()}, vectors, collection, limits, produced_at_us))
            if times is not None and times[row] is not None:
                out[-1].event_time_us = times[row]  # type: ignore[union-attr]
        except RecordError as error:
            out.append(RejectedItem(record.offset, row, error.reason, error.message, produced_at_us, _shown_id(payload, row)))
    return out


def _open_stream(value: bytes, limits: RecordLimits) -> pa.Table:
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as reader:
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > limits.max_rows:
                    raise RecordError("too_large", f"more than {limits.max_rows} rows in one record")
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, schema=reader.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise RecordError("bad_envelope", f"not an Arrow IPC stream: {error}") from None
    if table.num_rows == 0:
        raise RecordError("empty", "the Arrow stream has no rows")
    if len(set(table.column_names)) != len(table.column_names):
        raise RecordError("bad_envelope", "two Arrow columns have the same name")
    return table


def _times(table: pa.Table) -> list[int | None] | None:
    if "time" not in table.column_names:
        return None
    try:
        return table.column("time").cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RecordError("bad_time", f"column time: {error}") from None


_Column = tuple[NDArray[np.float32], NDArray[np.int8]]
_PROBLEMS = ("", "is null", "has a value that is not finite", "has length zero, which has no direction under cosine", "is too large for float16")


def _vectors(table: pa.Table, field: FieldRecord) -> _Column | None:
    """Matrix, shape (n, d), and what is wrong with each row (0: nothing); cosine vectors are brought to length 1."""
    if field.name not in table.column_names:
        return None
    column = table.column(field.name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if not (pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)) or not pa.types.is_floating(column.type.value_type):
        raise RecordError("bad_vector", f"column {field.name} is {column.type}, not a list of floats")
    lengths = {length for length in column.value_lengths().unique().to_pylist() if length is not None} if pa.types.is_list(column.type) else set()
    if pa.types.is_fixed_size_list(column.type):
        lengths = {column.type.list_size}
    if lengths - {field.dimension}:
        raise RecordError("bad_vector", f"column {field.name} has vectors of length {sorted(lengths)}, the field's dimension is {field.dimension}")
    valid = np.asarray(column.is_valid())
    matrix = np.zeros((len(column), field.dimension), np.float32)
    matrix[valid] = np.asarray(column.flatten(), dtype=np.float32).reshape(-1, field.dimension)
    problem = np.zeros(len(column), np.int8)
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
    if field.metric == "cosine":
        problem[norms == 0] = 3
        np.divide(matrix, norms[:, None].astype(np.float32), out=matrix, where=(norms > 0)[:, None] & np.isfinite(norms)[:, None])
    elif field.dtype == "float16":
        problem[np.abs(matrix).max(axis=1) > FLOAT16_MAX] = 4
    problem[~np.isfinite(norms)] = 2
    problem[~valid] = 1
    return matrix, problem


def _row_vector(column: _Column, row: int, name: str) -> NDArray[np.float32]:
    matrix, problem = column
    code = int(problem[row])
    if code:
        raise RecordError("zero_norm" if code == 3 else "bad_vector", f"vector {name} of row {row} {_PROBLEMS[code]}")
    vector: NDArray[np.float32] = matrix[row]
    return vector


def _row_item(
    record: LogRecord,
    row: int,
    payload: dict[str, Any],
    vectors: dict[str, NDArray[np.float32]],
    collection: CollectionRecord,
    limits: RecordLimits,
    produced_at_us: int,
) -> MediaItem:
    item_id, text, acl = payload.get("id"), payload.get("text"), payload.get("acl")
    if item_id is not None and not isinstance(item_id, str | int):
        raise RecordError("bad_id", f"the id of row {row} is not a string")
    if text is not None and not isinstance(text, str):
        raise RecordError("bad_text", f"the text of row {row} is not a string")
    if acl is not None and not all(isinstance(entry, str) for entry in acl):
        raise RecordError("bad_acl", f"the acl of row {row} is not a list of strings")
    return MediaItem(
        offset=record.offset,
        item=row,
        id=check_id(default_id(record, row) if item_id is None else str(item_id)),
        produced_at_us=produced_at_us,
        event_time_us=produced_at_us,
        text=None if text is None else checked_text(text, limits),
        vectors=vectors,
        attributes=_row_attributes(payload.get("attributes"), collection),
        acl=acl,
    )


def _row_attributes(value: Any, collection: CollectionRecord) -> dict[str, Any]:
    if value is None:
        return coerce_all({}, collection.attributes)
    if isinstance(value, str):
        try:
            value = canonical_json.load(value)
        except ValueError as error:
            raise RecordError("bad_attributes", f"attributes: {error}") from None
    return coerced_attributes(value, collection)


def _shown_id(payload: dict[str, list[Any]], row: int) -> str | None:
    value = payload["id"][row] if "id" in payload else None
    return value if isinstance(value, str) and len(value) <= 512 else None
