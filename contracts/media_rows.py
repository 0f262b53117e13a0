"""Arrow rows: the form of the media record in which producers bring their own vectors (docs/formats/media_record.md, form e).

One record holds many rows; a row is an item, numbered from 0. Columns: `id` utf8, one list column of floats per vector field, and optionally
`text`, `attributes` (utf8 JSON), `acl` list<utf8>, `time` timestamp.

Takes: records' Arrow streams. Gives: items, wanted or rejected row by row. Owns: the checks on own vectors.
Never: lets a vector with NaN, a wrong length or no direction into a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts import canonical_json
from contracts.arrow_bounds import check_cells, check_columns, check_expansion
from contracts.attributes import MAX_ATTRIBUTES_BYTES, MAX_TIME_US, MIN_TIME_US, coerce_all
from contracts.collection import CollectionRecord, FieldRecord
from contracts.errors import RecordError
from contracts.item import id_text
from contracts.log import LogRecord
from contracts.media_item import MediaItem, RecordLimits, RejectedItem, check_id, checked_text, coerced_attributes, default_id, produced_at

FLOAT16_MAX = 65504.0
MAX_CELLS = 4 * 1024 * 1024
"""Values in nested columns of one record: at 65,536 rows, 64 attributes each."""
_PAYLOAD = ("id", "text", "attributes", "acl")


_Items = list[MediaItem | RejectedItem]


def read_rows(records: Sequence[LogRecord], collection: CollectionRecord, limits: RecordLimits) -> list[_Items]:
    """Items of each of n records whose values are Arrow streams; a record that cannot be read is rejected whole, a bad row alone.

    Records with the same columns are checked as one table: many small records cost little more than one with as many rows.
    """
    out: list[_Items] = [[] for _ in records]
    produced_at_us = [produced_at(record) for record in records]
    alike: dict[pa.Schema, list[tuple[int, list[pa.RecordBatch]]]] = {}
    for at, record in enumerate(records):
        try:
            schema, batches = _open_stream(record.value or b"", limits)
            alike.setdefault(schema, []).append((at, batches))
        except RecordError as error:
            out[at] = [_rejected(record, 0, error, produced_at_us[at])]
    for schema, opened in ((schema, group) for schema, found in alike.items() for group in _groups(found, limits.max_rows)):
        try:
            table = _Table(pa.Table.from_batches([batch for _, batches in opened for batch in batches], schema=schema), collection)
        except RecordError as error:
            if len(opened) == 1:
                out[opened[0][0]] = [_rejected(records[opened[0][0]], 0, error, produced_at_us[opened[0][0]])]
            else:  # one of them is to blame: each by itself
                for at, _ in opened:
                    out[at] = read_rows(records[at : at + 1], collection, limits)[0]
            continue
        first = 0
        for at, batches in opened:
            rows = sum(batch.num_rows for batch in batches)
            out[at] = [table.item(records[at], row, first + row, limits, produced_at_us[at]) for row in range(rows)]
            first += rows
    return out


def _groups(opened: Sequence[tuple[int, list[pa.RecordBatch]]], most_rows: int) -> Iterator[list[tuple[int, list[pa.RecordBatch]]]]:
    """Records to be checked as one table: together not more rows than one record may have, because vectors are widened while they are checked."""
    group: list[tuple[int, list[pa.RecordBatch]]] = []
    rows = 0
    for at, batches in opened:
        more = sum(batch.num_rows for batch in batches)
        if group and rows + more > most_rows:
            yield group
            group, rows = [], 0
        group.append((at, batches))
        rows += more
    yield group


class _Table:
    """Rows of one or more records, read and checked column by column. RecordError: no row of it can be used."""

    def __init__(self, table: pa.Table, collection: CollectionRecord) -> None:
        try:
            table.validate(full=True)
        except pa.ArrowException as error:
            raise RecordError("bad_envelope", f"not an Arrow IPC stream: {error}") from None
        check_columns(table.schema, (*_PAYLOAD, "time"))
        check_cells(table, _PAYLOAD, MAX_CELLS)
        self._collection = collection
        fields = [field for index in collection.indexes for field in index.fields if field.source == "vector"]
        self._columns = {field.name: _vectors(table, field) for field in fields}
        if not any(column is not None for column in self._columns.values()):
            names = ", ".join(field.name for field in fields) or "it has none"
            raise RecordError("bad_vector", f"no column named after a vector field of the collection ({names})")
        self._payload = {name: _values(table.column(name)) for name in _PAYLOAD if name in table.column_names}
        self._times = _times(table)

    def item(self, record: LogRecord, row: int, at: int, limits: RecordLimits, produced_at_us: int) -> MediaItem | RejectedItem:
        """Row `row` of a record, which is row `at` of this table."""
        payload = {name: values[at] for name, values in self._payload.items()}
        try:
            vectors = _row_vectors({name: None if c is None else (c[0][at], int(c[1][at])) for name, c in self._columns.items()}, row)
            item = _row_item(record, row, payload, vectors, self._collection, limits, produced_at_us)
            item.event_time_us = _row_time(None if self._times is None else self._times[at], row, produced_at_us)
        except RecordError as error:
            return _rejected(record, row, error, produced_at_us, _shown_id(payload))
        return item


def _rejected(record: LogRecord, row: int, error: RecordError, produced_at_us: int, item_id: str | None = None) -> RejectedItem:
    return RejectedItem(record.offset, row, error.reason, error.message, produced_at_us, item_id)


def _open_stream(value: bytes, limits: RecordLimits) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Batches with at least one row between them; their buffers are not validated yet."""
    check_expansion(value, limits.max_expanded_bytes)
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as reader:
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > limits.max_rows:
                    raise RecordError("too_large", f"more than {limits.max_rows} rows in one record")
                batches.append(batch)
            names = reader.schema.names
    except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: a column name that is not UTF-8
        raise RecordError("bad_envelope", f"not an Arrow IPC stream: {error}") from None
    if rows == 0:
        raise RecordError("empty", "the Arrow stream has no rows")
    if len(set(names)) != len(names):
        raise RecordError("bad_envelope", "two Arrow columns have the same name")
    return reader.schema, batches


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python's own values; `_UNREADABLE` where it has none, such as a time in the year 300000."""
    try:
        if pa.types.is_struct(column.type) and any(
            map(_has_nanoseconds, column.type)
        ):  # pandas writes no other times; Python has none finer than 1 us
            column = column.cast(pa.struct([_in_microseconds(child) for child in column.type]), safe=False)
        return column.to_pylist()  # type: ignore[no-any-return]
    except (pa.ArrowException, ValueError, OverflowError):
        return [_value(one) for one in column]


def _has_nanoseconds(child: pa.Field) -> bool:
    return bool(pa.types.is_timestamp(child.type) and child.type.unit == "ns")


def _in_microseconds(child: pa.Field) -> pa.Field:
    return child.with_type(pa.timestamp("us", child.type.tz)) if _has_nanoseconds(child) else child


def _value(one: pa.Scalar) -> Any:
    try:
        return one.as_py()
    except (pa.ArrowException, ValueError, OverflowError):
        return _UNREADABLE


def _times(table: pa.Table) -> list[int | None] | None:
    if "time" not in table.column_names:
        return None
    try:
        return table.column("time").cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowException as error:
        raise RecordError("bad_time", f"column time: {error}") from None


def _row_time(time_us: int | None, row: int, otherwise_us: int) -> int:
    if time_us is None:
        return otherwise_us
    if not MIN_TIME_US <= time_us <= MAX_TIME_US:
        raise RecordError("bad_time", f"the time of row {row} lies outside the years 1 to 9999")
    return time_us


_UNREADABLE = object()
_Column = tuple[NDArray[np.float32], NDArray[np.int8]]
_LISTS = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
_NULL, _ZERO = 1, 3
_PROBLEMS = (
    "",
    "is null",
    "has a value that is not finite",
    "has length zero, which has no direction under cosine",
    "is too large for float16",
    "has another length than the field's dimension",
)


def _vectors(table: pa.Table, field: FieldRecord) -> _Column | None:
    """Matrix, shape (n, d), and what is wrong with each row (0: nothing); cosine vectors are brought to length 1."""
    if field.name not in table.column_names:
        return None
    column = table.column(field.name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if not any(is_kind(column.type) for is_kind in _LISTS) or not pa.types.is_floating(column.type.value_type):
        raise RecordError("bad_vector", f"column {field.name} is {column.type}, not a list of floats")
    valid = np.asarray(column.is_valid())
    fits = np.asarray(column.value_lengths().fill_null(-1)) == field.dimension
    wide = np.zeros((len(column), field.dimension), np.float64)
    wide[fits] = np.asarray(column.filter(pa.array(fits)).flatten(), dtype=np.float64).reshape(-1, field.dimension)
    return _checked(wide, field, valid, fits)


def _checked(wide: NDArray[np.float64], field: FieldRecord, valid: NDArray[np.bool_], fits: NDArray[np.bool_]) -> _Column:
    """Vectors, shape (n, d), as float32 and what is wrong with each; computed in float64, in which no finite float32 overflows."""
    problem = np.zeros(len(wide), np.int8)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what overflows is found below
        norms = np.linalg.norm(wide, axis=1)
        if field.metric == "cosine":
            problem[norms == 0] = _ZERO
            wide = wide / np.where(norms > 0, norms, 1.0)[:, None]
        elif field.dtype == "float16":
            problem[np.abs(wide).max(axis=1) > FLOAT16_MAX] = 4
        matrix = wide.astype(np.float32)
    problem[~np.isfinite(norms) | ~np.isfinite(matrix).all(axis=1)] = 2
    problem[~fits] = 5
    problem[~valid] = _NULL
    return matrix, problem


def _row_vectors(columns: Mapping[str, tuple[NDArray[np.float32], int] | None], row: int) -> dict[str, NDArray[np.float32]]:
    """Vectors of one row by field; a null one is left out as long as the row has another."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, column in columns.items():
        if column is None or column[1] == _NULL:
            continue
        vector, code = column
        if code:
            raise RecordError("zero_norm" if code == _ZERO else "bad_vector", f"vector {name} of row {row} {_PROBLEMS[code]}")
        found[name] = vector
    if not found:
        raise RecordError("bad_vector", f"row {row} has no vector: {', '.join(columns)} {_PROBLEMS[_NULL]}")
    return found


def _row_item(
    record: LogRecord,
    row: int,
    payload: dict[str, Any],
    vectors: dict[str, NDArray[np.float32]],
    collection: CollectionRecord,
    limits: RecordLimits,
    produced_at_us: int,
) -> MediaItem:
    item_id, text, acl = id_text(payload.get("id")), payload.get("text"), payload.get("acl")
    if item_id is None and payload.get("id") is not None:
        raise RecordError("bad_id", f"the id of row {row} is neither a string nor a whole number nor a UUID")
    if text is not None and not isinstance(text, str):
        raise RecordError("bad_text", f"the text of row {row} is not a string")
    if acl is not None and not (isinstance(acl, list) and all(isinstance(entry, str) for entry in acl)):
        raise RecordError("bad_acl", f"the acl of row {row} is not a list of strings")
    return MediaItem(
        offset=record.offset,
        item=row,
        id=check_id(default_id(record, row) if item_id is None else item_id),
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
            value = canonical_json.load(value.encode("utf-8", "surrogatepass"), MAX_ATTRIBUTES_BYTES)
        except ValueError as error:
            raise RecordError("bad_attributes", f"attributes: {error}") from None
    return coerced_attributes(value, collection)


def _shown_id(payload: Mapping[str, Any]) -> str | None:
    """The row's id where it is one: what a rejection may name, and remove."""
    value = id_text(payload.get("id"))
    try:
        return None if value is None else check_id(value)
    except RecordError:
        return None
