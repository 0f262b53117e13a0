"""What the delete deltas of a partition's newest manifest take away; each is read once.

Takes: manifests. Gives: deleted rows of a segment, tombstones of ids. Owns: the deltas in memory.
Never: keeps a delta that the manifest no longer names.
"""

from __future__ import annotations

from collections.abc import Collection

from pyroaring import BitMap

from backends.catalog.objects import download
from contracts.deletes import DeleteDelta, decode_delete_delta
from contracts.item import VersionOrder
from contracts.manifest import Manifest
from contracts.store import ObjectStore


class CommittedDeletes:
    """The deltas of one partition.

    Parameters
    ----------
    store : ObjectStore
        Where they are read from.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._deltas: dict[str, DeleteDelta] = {}

    def load(self, manifest: Manifest) -> None:
        """Read what the manifest names and is not known yet.

        Raises
        ------
        SnapshotError
            A delta was merged away: take the newest manifest.
        CorruptError
            A delta is not what the manifest says.
        """
        before = self._deltas
        self._deltas = {
            entry.key: before.get(entry.key) or decode_delete_delta(download(self._store, entry), entry.key) for entry in manifest.deletes
        }

    @property
    def deltas(self) -> list[DeleteDelta]:
        """Deltas in the manifest's order, oldest first."""
        return list(self._deltas.values())

    def deleted(self, segment_id: str) -> BitMap:
        """Rows of a segment that are deleted."""
        return BitMap.union(BitMap(), *(delta.bitmaps[segment_id] for delta in self._deltas.values() if segment_id in delta.bitmaps))

    def tombstones(self, id_hashes: Collection[bytes]) -> dict[bytes, VersionOrder]:
        """Newest delete of each of these ids that has a tombstone."""
        newest: dict[bytes, VersionOrder] = {}
        for delta in self._deltas.values():
            for tombstone in delta.tombstones:
                if tombstone.id_hash in id_hashes and (tombstone.id_hash not in newest or newest[tombstone.id_hash] < tombstone.order):
                    newest[tombstone.id_hash] = tombstone.order
        return newest
