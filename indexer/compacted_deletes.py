"""Delete deltas after a compaction: what is known of dropped rows goes, what came meanwhile moves to the new segment, small deltas become one.

Takes: a manifest's deltas, what was compacted. Gives: the merged delta. Owns: for how long tombstones are kept.
Never: forgets a row that was deleted after the compaction read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pyroaring import BitMap

from contracts.deletes import DeleteDelta, Tombstone
from contracts.manifest import Manifest
from indexer.committed_deletes import CommittedDeletes
from indexer.compact_rows import KeptRows
from indexer.compaction_policy import first_to_merge

TOMBSTONE_US = 31 * 86400 * 1_000_000
"""Longer than dead letters can be replayed."""


@dataclass(frozen=True, slots=True)
class MergedDeletes:
    """Deltas of the manifest that stay as they are, by number, and the one that takes the others' place, None where it would be empty."""

    kept: tuple[int, ...]
    merged: DeleteDelta | None


def merged_deletes(manifest: Manifest, deletes: CommittedDeletes, inputs: Sequence[KeptRows], segment_id: str | None, now_us: int) -> MergedDeletes:
    """Deltas of the manifest that follows `manifest`, in which the inputs are one segment.

    Parameters
    ----------
    manifest : Manifest
        The one that is being extended; `deletes` has its deltas.
    deletes : CommittedDeletes
        What is deleted by now, also since the inputs were read.
    inputs : sequence of KeptRows
        Segments that go, with their rows that are in the new one.
    segment_id : str or None
        The new segment; None where no row is left.
    now_us : int
        For the age of tombstones.
    """
    gone = {each.segment.segment_id for each in inputs}
    present = {segment.segment_id for segment in manifest.segments} - gone
    deltas, first = deletes.deltas, first_to_merge([entry.size_bytes for entry in manifest.deletes])
    kept = tuple(at for at, delta in enumerate(deltas[:first]) if present & delta.bitmaps.keys() or _young(delta.tombstones, now_us))
    bitmaps = {name: deletes_of for name in sorted(present) if (deletes_of := _union([delta.bitmaps.get(name) for delta in deltas[first:]]))}
    meanwhile = _meanwhile(deletes, inputs)
    if segment_id is not None and meanwhile:
        bitmaps[segment_id] = meanwhile
    tombstones: dict[bytes, Tombstone] = {}
    for tombstone in (each for delta in deltas[first:] for each in _young(delta.tombstones, now_us)):
        before = tombstones.get(tombstone.id_hash)
        if before is None or before.order < tombstone.order:
            tombstones[tombstone.id_hash] = tombstone
    ordered = sorted(tombstones.values(), key=lambda each: (each.offset, each.item, each.id_hash))
    return MergedDeletes(kept, DeleteDelta(bitmaps, ordered) if bitmaps or ordered else None)


def _meanwhile(deletes: CommittedDeletes, inputs: Sequence[KeptRows]) -> BitMap:
    """Rows of the new segment that were deleted after the compaction had read them."""
    found = BitMap()
    for each in inputs:
        dead = np.array(deletes.deleted(each.segment.segment_id).to_array(), np.int64)
        rows = np.searchsorted(each.kept, dead)
        is_kept = rows < len(each.kept)
        is_kept[is_kept] = each.kept[rows[is_kept]] == dead[is_kept]
        found |= BitMap((rows[is_kept] + each.base).astype(np.uint32))
    return found


def _union(bitmaps: Sequence[BitMap | None]) -> BitMap:
    return BitMap.union(BitMap(), *(bitmap for bitmap in bitmaps if bitmap is not None))


def _young(tombstones: Sequence[Tombstone], now_us: int) -> list[Tombstone]:
    return [tombstone for tombstone in tombstones if tombstone.committed_at_us > now_us - TOMBSTONE_US]
