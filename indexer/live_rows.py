"""What a builder knows of the committed segments of its partition: where an id's live row is, and which ids are tombstones.

Takes: manifests. Gives: delete bitmaps for a commit, prior versions of ids. Owns: a cache of id indexes, one per segment.
Never: decides; a compaction by another process changes the segments, so bits are computed for each manifest that is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from backends.catalog.objects import download
from contracts.deletes import DeleteDelta, Tombstone, decode_delete_delta
from contracts.item import IdIndex, VersionOrder, id_hashes, version_order
from contracts.manifest import Manifest, SegmentEntry
from contracts.segment import ROWS_PART, RowsPart, read_rows_part
from contracts.store import ObjectStore

TOMBSTONE_SECONDS = 31 * 86400
_LINEAGE = ("offset", "item", "origin_offset", "origin_item")


class LiveRows:
    """Id indexes and deletes of one partition's committed segments.

    Parameters
    ----------
    store : ObjectStore
        Where parts and deltas are read from, once each.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._segments: dict[str, SegmentEntry] = {}
        self._ids: dict[str, IdIndex] = {}
        self._deltas: dict[str, DeleteDelta] = {}

    def remember(self, segment_id: str, ids: IdIndex) -> None:
        """Keep the ids of a part that was just written, so that it is not read back."""
        self._ids[segment_id] = ids

    def load(self, manifest: Manifest) -> None:
        """Read what the manifest names and is not known yet; forget what it no longer names."""
        for segment in manifest.segments:
            if segment.segment_id not in self._ids:
                self._ids[segment.segment_id] = self._read(segment).ids
        for entry in manifest.deletes:
            if entry.key not in self._deltas:
                self._deltas[entry.key] = decode_delete_delta(download(self.store, entry), entry.key)
        self._segments = {segment.segment_id: segment for segment in manifest.segments}
        self._ids = {segment_id: self._ids[segment_id] for segment_id in self._segments}
        self._deltas = {entry.key: self._deltas[entry.key] for entry in manifest.deletes}

    def _read(self, segment: SegmentEntry) -> RowsPart:
        entry = segment.parts[ROWS_PART]
        return read_rows_part(download(self.store, entry), entry.key)

    def deleted(self, segment_id: str) -> BitMap:
        """Rows of a segment that are deleted by the loaded manifest's deltas."""
        return BitMap.union(BitMap(), *(delta.bitmaps[segment_id] for delta in self._deltas.values() if segment_id in delta.bitmaps))

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
        tombstones: dict[str, list[Tombstone]] = {}
        for delta in self._deltas.values():
            for tombstone in delta.tombstones:
                tombstones.setdefault(tombstone.id, []).append(tombstone)
        for at, item_id in enumerate(ids):
            for tombstone in tombstones.get(item_id, ()):
                newest[at] = _newer(newest[at], tombstone.order)
        return newest


def _newer(a: VersionOrder | None, b: VersionOrder) -> VersionOrder:
    return b if a is None or a < b else a
