"""Segments and delete deltas in memory, read from a manifest's entries.

Takes: a store, manifest entries. Gives: `LoadedSegment`, `LoadedDelta`. Owns: the one conversion of stored vectors to float32.
Never: parses bytes whose sha256 was not checked, or keeps one of a segment's parts without the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from backends.catalog.generations import load_generation
from backends.catalog.objects import download
from contracts.collection import FieldRecord, IndexRecord
from contracts.deletes import decode_delete_delta
from contracts.errors import CorruptError
from contracts.item import IdIndex, VersionOrder
from contracts.manifest import ObjectEntry, SegmentEntry
from contracts.object_keys import CollectionKeys, parse_key
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, CodedPart, read_field_part, read_rows_part, rows_schema
from contracts.store import ObjectStore
from contracts.vectors_batch import conform
from query.filter_index import FilterIndex
from query.parts import Part, RowColumns, VectorColumn
from vectors.flat import as_float32
from vectors.quantizer import Quantizer


@dataclass(frozen=True, slots=True)
class LoadedSegment:
    """A segment's rows and vectors; which of its rows are live is the partition view's matter."""

    segment_id: str
    batch: pa.RecordBatch
    ids: IdIndex
    columns: RowColumns
    vectors: Mapping[str, VectorColumn]
    filter_index: FilterIndex

    @property
    def rows(self) -> int:
        """Stored rows."""
        return int(self.batch.num_rows)

    @property
    def size_bytes(self) -> int:
        """Bytes in memory: vectors and Arrow rows."""
        return int(self.batch.nbytes) + sum(column.matrix.nbytes for column in self.vectors.values())

    def part(self, live: NDArray[np.bool_]) -> Part:
        """The segment as a part with that mask of live rows, shape (rows,)."""
        return Part(self.segment_id, (self.batch,), (0,), self.columns, self.vectors, live, filter_index=self.filter_index)


@dataclass(frozen=True, slots=True)
class LoadedDelta:
    """A delete delta: deleted rows by segment, and the newest deleted version of each id."""

    rows: Mapping[str, NDArray[np.uint32]]
    tombstones: Mapping[str, VersionOrder]


def load_segment(store: ObjectStore, entry: SegmentEntry, index: IndexRecord, attributes: Mapping[str, str]) -> LoadedSegment:
    """Download, check and open a segment.

    Raises
    ------
    SnapshotError
        A part is gone: compacted away; take the newest manifest.
    CorruptError
        A part is not what the manifest or the index says.
    """
    where = entry.parts.get(ROWS_PART)
    if where is None:
        raise CorruptError(f"segment {entry.segment_id} has no part {ROWS_PART}", hint="restore the manifest from a backup")
    rows = read_rows_part(download(store, where), where.key)
    if rows.batch.num_rows != entry.rows:
        raise CorruptError(f"{where.key}: {rows.batch.num_rows} rows, the manifest says {entry.rows}")
    batch = _conformed(rows.batch, attributes, where.key)
    vectors: dict[str, VectorColumn] = {}
    for field in index.fields:
        part = entry.parts.get(FIELD_PART_PREFIX + field.name)
        if part is None:  # written before the field was added, or no row has it
            vectors[field.name] = VectorColumn(np.zeros((0, field.dimension), np.float32), np.zeros(0, np.uint32))
            continue
        stored = read_field_part(download(store, part), field, part.key)
        segment_rows = stored.segment_rows if isinstance(stored, CodedPart) else stored.meta["rows"]
        if segment_rows != entry.rows:
            raise CorruptError(f"{part.key}: vectors of {segment_rows} rows, the segment has {entry.rows}")
        complete = len(stored.rows) == entry.rows
        matrix = _decoded(store, stored, field, part.key) if isinstance(stored, CodedPart) else as_float32(stored.matrix)
        vectors[field.name] = VectorColumn(matrix, None if complete else stored.rows)
    return LoadedSegment(entry.segment_id, batch, rows.ids, RowColumns.of(batch), vectors, FilterIndex(batch, rows.ids))


def _decoded(store: ObjectStore, part: CodedPart, field: FieldRecord, key: str) -> NDArray[np.float32]:
    """Vectors that the refine codes of a part stand for, shape (m, d)."""
    place = parse_key(key)
    keys = None if place is None else CollectionKeys(place.fields["name"], place.fields["incarnation"]).index(place.fields["index"])
    generation = None if keys is None else load_generation(store, keys, field, part.generation)
    if generation is None:
        raise CorruptError(f"{key}: generation {part.generation} of field {field.name} is not there", hint="restore the object from a backup")
    return Quantizer.open(generation, key).decode(part.refine)


def _conformed(batch: pa.RecordBatch, attributes: Mapping[str, str], where: str) -> pa.RecordBatch:
    """Rows with today's attribute columns: a segment of an older schema version lacks the newer ones."""
    schema = rows_schema(attributes)
    return batch if batch.schema.equals(schema) else conform(batch, schema, where)


def load_delta(store: ObjectStore, entry: ObjectEntry) -> LoadedDelta:
    """Download, check and open a delete delta; raises as `load_segment`."""
    delta = decode_delete_delta(download(store, entry), entry.key)
    tombstones: dict[str, VersionOrder] = {}
    for tombstone in delta.tombstones:
        before = tombstones.get(tombstone.id)
        if before is None or tombstone.order > before:
            tombstones[tombstone.id] = tombstone.order
    return LoadedDelta({name: np.array(bitmap.to_array(), np.uint32) for name, bitmap in delta.bitmaps.items()}, tombstones)
