"""One segment's parts and the deletes of its rows, judged (pure).

Takes: read parts, delete bitmaps. Gives: findings, and the columns that the checks over all segments need. Owns: what a segment must be in itself.
Never: reads anything, or compares it with another segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyroaring import BitMap

from contracts.collection import IndexRecord
from contracts.item import IdIndex
from contracts.manifest import SegmentEntry
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, CodedPart, FieldPart, RowsPart
from indexer.verify.findings import Finding

LIVE, DEAD, TOMBSTONE = 0, 1, 2
"""What a version of an id is: a live row, a row that is marked as deleted, or a delete."""
PLACE_COLUMNS = {"offset": np.int64, "item": np.int32, "segment": np.uint32}
ID_COLUMNS = {
    "high": np.uint64,
    "low": np.uint64,
    "owner": np.uint32,
    "row": np.uint32,
    "effective_offset": np.int64,
    "effective_item": np.int64,
    "own_offset": np.int64,
    "own_item": np.int64,
    "kind": np.uint8,
}
"""Columns of a version of an id: its hash, who holds it (a segment's number, or a partition's deletes), and its order."""


def check_rows(entry: SegmentEntry, part: RowsPart, deleted: BitMap, hashes: NDArray[np.uint64] | None) -> Iterator[Finding]:
    """What is wrong with a segment's rows.

    Parameters
    ----------
    entry, part
        The segment, and its rows.
    deleted : BitMap
        Rows that any delete delta names.
    hashes : NDArray[np.uint64] or None
        shape (n, 2): hashes of the rows' ids; None where a row has no id.
    """
    key, rows = entry.parts[ROWS_PART].key, part.batch.num_rows
    span = entry.start_offset, entry.next_offset
    if rows != entry.rows:
        yield Finding("object_unreadable", f"{rows} rows, the manifest says {entry.rows}", object=key).at(*span)
    offset, item = _column(part.batch, "offset"), _column(part.batch, "item")
    disordered = (offset[1:] < offset[:-1]) | ((offset[1:] == offset[:-1]) & (item[1:] < item[:-1]))
    for at in np.flatnonzero(disordered)[:1] + 1:
        yield _row(key, offset, item, int(at), f"row {at} comes after a row with a higher place")
    for at in np.flatnonzero((offset < entry.start_offset) | (offset >= entry.next_offset)):
        yield _row(key, offset, item, int(at), f"row {at} lies outside of the segment's offsets {entry.start_offset} to {entry.next_offset}")
    if hashes is None:
        yield Finding("object_unreadable", "rows without an id", object=key).at(*span)
    elif not _is_index_right(part.ids, hashes):
        yield Finding("id_index_wrong", "the stored id hashes are not those of the rows' ids", object=key).at(*span)
    if deleted and deleted.max() >= rows:
        yield Finding("delete_out_of_range", f"deletes name row {deleted.max()} of {rows}", object=key).at(*span)


def _is_index_right(index: IdIndex, hashes: NDArray[np.uint64]) -> bool:
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    same_rows = bool((np.sort(index.rows) == np.arange(len(index.rows))).all())
    return same_rows and bool((index.hashes == hashes[order]).all()) and bool((hashes[index.rows] == index.hashes).all())


def _row(key: str, offset: NDArray[np.int64], item: NDArray[np.int64], at: int, what: str) -> Finding:
    return Finding("segment_disordered", what, object=key).at_items(int(offset[at]), int(item[at]), int(item[at]) + 1)


def check_parts(entry: SegmentEntry, index: IndexRecord) -> Iterator[Finding]:
    """Parts that a segment should have and has not, or the other way round."""
    wanted = {ROWS_PART, *(FIELD_PART_PREFIX + field.name for field in index.fields)}
    if missing := sorted(wanted - set(entry.parts)):
        what = f"segment {entry.segment_id} has no part {', '.join(missing)}"
        key = next((part.key for part in entry.parts.values()), None)
        yield Finding("object_unreadable", what, object=key).at(entry.start_offset, entry.next_offset)


def check_field(entry: SegmentEntry, key: str, part: FieldPart | CodedPart) -> Iterator[Finding]:
    """What is wrong with a field part of a segment."""
    rows = part.segment_rows if isinstance(part, CodedPart) else part.meta["rows"]
    if rows != entry.rows:
        what = f"vectors of {rows} rows, the segment has {entry.rows}"
        yield Finding("object_unreadable", what, object=key).at(entry.start_offset, entry.next_offset)


def place_columns(part: RowsPart, segment: int) -> dict[str, NDArray[Any]]:
    """Columns of `PLACE_COLUMNS` of a segment's rows, each of shape (n,), by media offset."""
    offset, item = _column(part.batch, "offset"), _column(part.batch, "item")
    order = np.lexsort((item, offset))
    return {"offset": offset[order], "item": item[order], "segment": np.full(len(offset), segment, np.uint32)}


def id_columns(part: RowsPart, owner: int, deleted: BitMap, hashes: NDArray[np.uint64]) -> dict[str, NDArray[Any]]:
    """Columns of `ID_COLUMNS` of a segment's rows, each of shape (n,), by id hash; `hashes` has shape (n, 2)."""
    offset, item = _column(part.batch, "offset"), _column(part.batch, "item")
    origin = part.batch.column("origin_offset")
    has = np.asarray(origin.is_valid())
    effective = np.where(has, origin.fill_null(0).to_numpy(zero_copy_only=False), offset)
    effective_item = np.where(has, part.batch.column("origin_item").fill_null(0).to_numpy(zero_copy_only=False), item)
    kind = np.full(len(offset), LIVE, np.uint8)
    dead = np.array(deleted.to_array(), np.int64)
    kind[dead[dead < len(kind)]] = DEAD
    rows = np.lexsort((hashes[:, 1], hashes[:, 0]))
    owners, numbers = np.full(len(offset), owner, np.uint32), np.arange(len(offset))
    columns: tuple[NDArray[Any], ...] = hashes[:, 0], hashes[:, 1], owners, numbers, effective, effective_item, offset, item, kind
    return {name: column[rows] for name, column in zip(ID_COLUMNS, columns, strict=True)}


def expired_rows(part: RowsPart, deleted: BitMap, expire_at_us: int | None) -> int:
    """Live rows whose event time is at or before `expire_at_us`; none where nothing expires."""
    if expire_at_us is None:
        return 0
    expired = pc.less_equal(part.batch.column("event_time").cast(pa.int64()), expire_at_us).fill_null(False)
    rows = np.flatnonzero(expired.to_numpy(zero_copy_only=False))
    return len(rows) - len(BitMap(rows.astype(np.uint32)) & deleted)


def _column(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
    return values
