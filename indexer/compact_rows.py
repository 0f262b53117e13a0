"""The rows of several segments in one: which stay, and what became of those that do not.

Takes: segments, their deleted rows, the time before which rows have expired. Gives: kept rows as one batch, verdicts of the dropped ones.
Owns: the verdicts `superseded`, `deleted` and `expired`. Never: drops a row that is live and not expired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from backends.catalog.objects import download
from contracts.deletes import DeleteDelta
from contracts.errors import CorruptError
from contracts.item import VersionOrder, id_hash, version_order
from contracts.manifest import SegmentEntry
from contracts.segment import ROWS_PART, read_rows_part
from contracts.store import ObjectStore
from contracts.vectors_batch import conform
from indexer.committed_deletes import CommittedDeletes
from indexer.ledger_rewrite import Position

_LINEAGE = ("offset", "item", "origin_offset", "origin_item")


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Rows of a segment that stay, shape (k,), ascending; they get the numbers from `base` on."""

    segment: SegmentEntry
    kept: NDArray[np.int64]
    base: int


@dataclass(slots=True)
class CompactedRows:
    """Kept rows of all inputs as one batch, and the new verdict of every dropped one."""

    batch: pa.RecordBatch
    inputs: list[KeptRows] = field(default_factory=list)
    dropped: dict[Position, str] = field(default_factory=dict)


def compact_rows(
    store: ObjectStore, segments: Sequence[SegmentEntry], deletes: CommittedDeletes, expired_before_us: int | None, schema: pa.Schema
) -> CompactedRows:
    """Read the rows of segments, given in the order of their offsets, and leave out what is dead.

    Raises
    ------
    SnapshotError
        A segment was compacted away by another process.
    CorruptError
        Its bytes are not what the manifest says.
    """
    out = CompactedRows(pa.RecordBatch.from_pylist([], schema=schema))
    batches: list[pa.RecordBatch] = []
    base = 0
    for segment in segments:
        entry = segment.parts[ROWS_PART]
        batch = read_rows_part(download(store, entry), entry.key).batch
        if batch.num_rows != segment.rows:
            raise CorruptError(f"{entry.key}: {batch.num_rows} rows, the manifest says {segment.rows}")
        batch = batch if batch.schema.equals(schema) else conform(batch, schema, entry.key)
        dead = np.zeros(batch.num_rows, np.bool_)
        dead[np.array(deletes.deleted(segment.segment_id).to_array(), np.int64)] = True
        expired = ~dead & _expired(batch, expired_before_us)
        kept = np.flatnonzero(~dead & ~expired)
        out.dropped |= dict.fromkeys(_positions(batch, np.flatnonzero(expired)), "expired")
        out.dropped |= _verdicts(batch, np.flatnonzero(dead), [delta for delta in deletes.deltas if segment.segment_id in delta.bitmaps], segment)
        out.inputs.append(KeptRows(segment, kept, base))
        batches.append(batch.take(pa.array(kept)))
        base += len(kept)
    if base:
        out.batch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    return out


def _expired(batch: pa.RecordBatch, before_us: int | None) -> NDArray[np.bool_]:
    if before_us is None:
        return np.zeros(batch.num_rows, np.bool_)
    found = pc.fill_null(pc.less_equal(batch.column("event_time").cast(pa.int64()), before_us), False)
    mask: NDArray[np.bool_] = found.to_numpy(zero_copy_only=False).astype(np.bool_)
    return mask


def _positions(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> list[Position]:
    columns = [batch.column(name).take(pa.array(rows)).to_pylist() for name in ("offset", "item")]
    return list(zip(*columns, strict=True))


def _verdicts(batch: pa.RecordBatch, rows: NDArray[np.int64], deltas: Sequence[DeleteDelta], segment: SegmentEntry) -> dict[Position, str]:
    """What took dead rows away: a delete where the delta with the row's bit has a newer tombstone of its id, else a newer row.

    Where both came between two compactions, whose deltas are merged, it is the delete.
    """
    taken = batch.take(pa.array(rows))
    hashes = [id_hash(item_id) for item_id in taken.column("id").to_pylist()]
    lineage = list(zip(*(taken.column(name).to_pylist() for name in _LINEAGE), strict=True))
    orders = [version_order(*each) for each in lineage]
    deleted = np.zeros(len(rows), np.bool_)
    places = {int(row): at for at, row in enumerate(rows)}
    for delta in deltas:
        newest: dict[bytes, VersionOrder] = {}
        for tombstone in delta.tombstones:
            newest[tombstone.id_hash] = max(tombstone.order, newest.get(tombstone.id_hash, tombstone.order))
        for at in (places[row] for row in delta.bitmaps[segment.segment_id] if row in places):
            order = newest.get(hashes[at])
            deleted[at] |= order is not None and order > orders[at]
    return {(offset, item): "deleted" if gone else "superseded" for (offset, item, _, _), gone in zip(lineage, deleted.tolist(), strict=True)}
