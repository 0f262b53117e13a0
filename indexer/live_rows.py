"""What a builder knows of the committed segments of its partition: where an id's live row is, and which ids are tombstones.

Takes: manifests. Gives: delete bitmaps for a commit, prior versions of ids, the rows that patches change. Owns: a cache of id indexes, one per
segment, and a small one of parts.
Never: decides; a compaction by another process changes the segments, so bits are computed for each manifest that is tried.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyroaring import BitMap

from backends.catalog.objects import download
from contracts.collection import CollectionRecord, FieldRecord, IndexRecord
from contracts.item import IdIndex, VersionOrder, id_hash, id_hashes, version_order
from contracts.manifest import Manifest, ObjectEntry, SegmentEntry
from contracts.media_patch import BaseRow
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, FieldPart, RowsPart, read_field_part, read_rows_part, rows_schema
from contracts.store import ObjectStore
from contracts.vectors_batch import conform
from indexer.committed_deletes import CommittedDeletes
from indexer.field_parts import check_quantizer, vectors_of
from indexer.id_sections import read_ids
from indexer.index_codecs import IndexCodecs

PARTS_BYTES = 128 * 1024 * 1024
"""Parts that are kept for the next seal: a trickle of patches asks for the same ones again and again."""
_LINEAGE = ("offset", "item", "origin_offset", "origin_item")
_Part = TypeVar("_Part")
_Vectors = tuple[NDArray[Any], NDArray[np.bool_]]


class LiveRows:
    """Id indexes and deletes of one partition's committed segments.

    Parameters
    ----------
    store : ObjectStore
        Where parts and deltas are read from, once each.
    codecs : IndexCodecs, optional
        The index's quantizers, for patches of coded rows; opened when they are needed where none are given.
    """

    def __init__(self, store: ObjectStore, codecs: IndexCodecs | None = None) -> None:
        self.store, self._codecs = store, codecs
        self._segments: dict[str, SegmentEntry] = {}
        self._ids: dict[str, IdIndex] = {}
        self._written = ""  # the segment that was written last
        self._deletes = CommittedDeletes(store)
        self._parts: OrderedDict[str, tuple[int, Any]] = OrderedDict()

    def remember(self, segment_id: str, ids: IdIndex) -> None:
        """Keep the ids of a part that was just written, so that it is not read back; the manifests up to its commit do not name it yet."""
        self._ids[segment_id], self._written = ids, segment_id

    def load(self, manifest: Manifest) -> None:
        """Read what the manifest names and is not known yet; forget what it no longer names."""
        for segment in manifest.segments:
            if segment.segment_id not in self._ids:
                self._ids[segment.segment_id] = read_ids(self.store, segment.parts[ROWS_PART])
        self._deletes.load(manifest)
        self._segments = {segment.segment_id: segment for segment in manifest.segments}
        self._ids = {segment_id: ids for segment_id, ids in self._ids.items() if segment_id in self._segments or segment_id == self._written}

    def _read(self, segment: SegmentEntry) -> RowsPart:
        return self._part(segment.parts[ROWS_PART], read_rows_part)

    def _part(self, entry: ObjectEntry, read: Callable[[bytes, str], _Part]) -> _Part:
        found: tuple[int, _Part] | None = self._parts.pop(entry.key, None)
        if found is None:
            found = entry.size_bytes, read(download(self.store, entry), entry.key)
        self._parts[entry.key] = found
        while len(self._parts) > 1 and sum(size_bytes for size_bytes, _ in self._parts.values()) > PARTS_BYTES:
            self._parts.popitem(last=False)
        return found[1]

    def deleted(self, segment_id: str) -> BitMap:
        """Rows of a segment that are deleted by the loaded manifest's deltas."""
        return self._deletes.deleted(segment_id)

    def delete_bits(self, manifest: Manifest, touched: NDArray[np.uint64]) -> dict[str, BitMap]:
        """Rows, by segment, that die because their id has a newer version.

        Parameters
        ----------
        manifest : Manifest
            The manifest that is being extended.
        touched : NDArray[np.uint64]
            shape (k, 2): hashes of the ids with a new row or delete.
        """
        self.load(manifest)
        bits: dict[str, BitMap] = {}
        for segment in manifest.segments:
            found = self._ids[segment.segment_id].find(touched)
            rows = BitMap(found[found >= 0].astype(np.uint32)) - self.deleted(segment.segment_id)
            if rows:
                bits[segment.segment_id] = rows
        return bits

    def prior(self, ids: Sequence[str]) -> list[VersionOrder | None]:
        """Newest committed version of each id, live rows and tombstones alike (asked for replayed records only)."""
        newest: list[VersionOrder | None] = [None] * len(ids)
        hashes = id_hashes(list(ids))
        for segment_id, found in ((segment_id, ids.find(hashes)) for segment_id, ids in self._ids.items()):
            if not (found >= 0).any() or segment_id not in self._segments:
                continue
            part, deleted = self._read(self._segments[segment_id]), self.deleted(segment_id)
            for at, row in enumerate(found):
                if row >= 0 and int(row) not in deleted:
                    newest[at] = _newer(newest[at], version_order(*(part.batch.column(name)[int(row)].as_py() for name in _LINEAGE)))
        deleted_at = self._deletes.tombstones({id_hash(item_id) for item_id in ids})
        for at, item_id in enumerate(ids):
            if (order := deleted_at.get(id_hash(item_id))) is not None:
                newest[at] = _newer(newest[at], order)
        return newest

    def bases(self, ids: Sequence[str], collection: CollectionRecord, index: IndexRecord) -> list[BaseRow | None]:
        """Live committed row of each id with its vectors, copied out of its segment (asked for patches only).

        A coded row's vector is the one that its refine code stands for (`indexer.field_parts.vectors_of`).

        Raises
        ------
        SnapshotError
            A segment was compacted away; load the newest manifest.
        """
        out: list[BaseRow | None] = [None] * len(ids)
        hashes, schema = id_hashes(list(ids)), rows_schema(collection.attributes)
        for segment_id, segment in self._segments.items():
            found = self._ids[segment_id].find(hashes)
            deleted = self.deleted(segment_id)
            places = [int(at) for at in np.flatnonzero(found >= 0) if int(found[at]) not in deleted]
            if not places:
                continue
            chosen = found[places]
            batch = self._read(segment).batch.take(pa.array(chosen))
            batch = batch if batch.schema.equals(schema) else conform(batch, schema, segment_id)
            self._codecs = self._codecs or IndexCodecs(self.store, collection, index)
            vectors = {field.name: self._vectors(segment, field, chosen, self._codecs) for field in index.fields}
            for row, at in enumerate(places):
                out[at] = BaseRow(batch, row, partial(_vector, vectors, row))
        return out

    def _vectors(self, segment: SegmentEntry, field: FieldRecord, rows: NDArray[np.int64], codecs: IndexCodecs) -> _Vectors:
        """Vectors of some rows of a segment, shape (k, d), and which of them have one, shape (k,)."""
        entry = segment.parts.get(FIELD_PART_PREFIX + field.name)
        if entry is None:
            return np.zeros((len(rows), field.dimension), field.dtype), np.zeros(len(rows), np.bool_)
        part = self._part(entry, lambda data, where: read_field_part(data, field, where))
        if isinstance(part, FieldPart):
            return vectors_of(part, rows, None, field)
        quantizer = codecs.quantizer(field, part.generation)
        check_quantizer(part, quantizer, entry.key)
        return vectors_of(part, rows, quantizer, field)


def _vector(vectors: dict[str, _Vectors], row: int, field: str) -> NDArray[Any] | None:
    matrix, present = vectors[field]
    return matrix[row] if present[row] else None


def _newer(a: VersionOrder | None, b: VersionOrder) -> VersionOrder:
    return b if a is None or a < b else a
