"""What a purge asks of the compactors: segments that still hold dead rows of some ids are rewritten, whatever else is due.

    `headwater purge` -> one request per partition of an index -> rewritten -> the request is deleted

Takes: id hashes with the offsets below which their rows go. Gives: segments to rewrite. Owns: the request objects.
Never: holds an id; ends a request while a committed segment holds one of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ulid import ULID

from backends.catalog.objects import upload
from contracts import FORMAT_VERSION
from contracts.archive_manifest import PendingPurge
from contracts.collection import StoredModel
from contracts.manifest import Manifest
from contracts.object_keys import PartitionKeys
from contracts.segment import ROWS_PART
from contracts.store import ObjectStore
from indexer.committed_deletes import CommittedDeletes
from indexer.id_sections import read_ids


class PurgeRequest(StoredModel):
    """Ids of one partition that are purged: rows of each below its offset."""

    format: int = FORMAT_VERSION
    purges: tuple[PendingPurge, ...]


def request_purge(store: ObjectStore, keys: PartitionKeys, below: Mapping[bytes, int]) -> str:
    """Ask for the rows of these ids, by hash, below these media offsets to be rewritten away; returns the request's key.

    Raises
    ------
    UnavailableError
        It may not be stored: ask again.
    """
    key = keys.purge(str(ULID()))
    purges = tuple(PendingPurge(id_hash=found.hex(), below_offset=offset) for found, offset in sorted(below.items()))
    upload(store, key, PurgeRequest(purges=purges).to_bytes())
    return key


class PartitionPurges:
    """The open requests of one partition.

    Parameters
    ----------
    store : ObjectStore
        Where they lie.
    keys : PartitionKeys
        Of the partition.
    """

    def __init__(self, store: ObjectStore, keys: PartitionKeys) -> None:
        self._store, self._keys = store, keys
        self._requests: dict[str, PurgeRequest] = {}
        self._clean: dict[str, set[str]] = {}
        self.segments: frozenset[str] = frozenset()
        """Segments of the loaded manifest that hold dead rows of purged ids."""

    def load(self, manifest: Manifest, deletes: CommittedDeletes) -> None:
        """Find what is to be rewritten of a manifest, whose deltas `deletes` has; requests that are fulfilled are deleted.

        Raises
        ------
        SnapshotError
            A segment was compacted away.
        """
        self._read_requests()
        dirty: set[str] = set()
        for key, request in list(self._requests.items()):
            below = max((purge.below_offset for purge in request.purges), default=0)
            if manifest.checkpoint.media_offset < below:
                continue  # its deletes are not committed yet
            found = self._dirty(key, request, manifest, deletes)
            dirty |= found
            if not found:
                self._store.delete(key)
                del self._requests[key], self._clean[key]
        self.segments = frozenset(dirty)

    def _read_requests(self) -> None:
        listed = {info.key for info in self._store.list(self._keys.purges_prefix)}
        self._requests = {key: request for key, request in self._requests.items() if key in listed}
        for key in sorted(listed - self._requests.keys()):
            found = self._store.get(key)
            if found is not None:
                self._requests[key], self._clean[key] = PurgeRequest.from_bytes(found.data, key), set()

    def _dirty(self, key: str, request: PurgeRequest, manifest: Manifest, deletes: CommittedDeletes) -> set[str]:
        """Segments with dead rows of the ids; a row of an id that is live came after the purge's delete."""
        words = np.array([[int(purge.id_hash[:16], 16), int(purge.id_hash[16:], 16)] for purge in request.purges], np.uint64).reshape(-1, 2)
        dirty = set()
        for segment in manifest.segments:
            if segment.segment_id in self._clean[key]:
                continue
            rows = read_ids(self._store, segment.parts[ROWS_PART]).find(words)
            deleted = deletes.deleted(segment.segment_id)
            if any(int(row) in deleted for row in rows if row >= 0):
                dirty.add(segment.segment_id)
            elif not (rows >= 0).any():
                self._clean[key].add(segment.segment_id)
        return dirty
