"""Chains of manifests: of a partition of an index, and of a partition of an archive.

Takes: an object store and partition keys. Gives: the head, the next version, a settled attempt to create one.
Owns: the rules on 404 and the GC boundary.
Never: decides what a commit holds; that is `indexer.commit`.

Reader rules (DESIGN section 4): a 404 at v+1 means "v is the head" only if v is above the GC boundary, read *after* the manifest;
every step checks `previous`.
"""

from __future__ import annotations

import sys
import time
from typing import Generic, Protocol

from backends.catalog.objects import read_again
from contracts.errors import CorruptError, SnapshotError, UnavailableError
from contracts.manifest import Chained, Manifest, ReadVersion, object_version
from contracts.object_keys import PartitionKeys
from contracts.store import ObjectStore, PutOutcome, StoredObject

BOUNDARY_ATTEMPTS = 5
NEWEST = sys.maxsize
"""Above every version."""
MOST_DIGITS = 20  # of a version in a key


class ChainKeys(Protocol):
    """Keys of one partition's chain."""

    @property
    def partition(self) -> int:
        """Number of the partition."""
        ...

    @property
    def prefix(self) -> str:
        """Prefix of the partition, for messages."""
        ...

    @property
    def manifests_prefix(self) -> str:
        """Prefix of the chain's versions."""
        ...

    @property
    def boundary(self) -> str:
        """Key of the highest version that may be deleted."""
        ...

    def manifest(self, version: int) -> str:
        """Key of one version."""
        ...


class VersionChain(Generic[Chained]):
    """Reads and extends one chain.

    Parameters
    ----------
    store : ObjectStore
        Where the chain lives.
    keys : ChainKeys
        Its keys.
    model : type
        What its versions are.
    """

    def __init__(self, store: ObjectStore, keys: ChainKeys, model: type[Chained]) -> None:
        self.store, self.keys, self.model = store, keys, model

    def read(self, version: int, before: ReadVersion[Chained] | None = None) -> ReadVersion[Chained] | None:
        """One version, or None when there is no such object; what it lists as an earlier one, `before`, is not checked again."""
        return read_again(lambda: self._read(version, before))

    def _read(self, version: int, before: ReadVersion[Chained] | None) -> ReadVersion[Chained] | None:
        key = self.keys.manifest(version)
        found = self.store.get(key)
        if found is None:
            return None
        read = ReadVersion.parse(self.model, found.data, key, before)
        if read.manifest.version != version or read.manifest.partition != self.keys.partition:
            raise CorruptError(f"{key} says version {read.manifest.version} of partition {read.manifest.partition}")
        return read

    def boundary(self) -> int:
        """Highest manifest version that may have been deleted; 0 where nothing was."""
        found = self._boundary()
        return 0 if found is None else int(found.data)

    def _boundary(self) -> StoredObject | None:
        found = self.store.get(self.keys.boundary)
        if found is not None and not (found.data.isdigit() and len(found.data) <= MOST_DIGITS):
            raise CorruptError(f"{self.keys.boundary} is not a number", hint="restore it, or write the oldest kept version less one")
        return found

    def advance_boundary(self, version: int) -> int:
        """Raise the boundary to `version` by compare-and-swap, never lower it; returns what it is then.

        Raises
        ------
        UnavailableError
            The outcome is unknown: delete nothing.
        """
        for attempt in range(BOUNDARY_ATTEMPTS):
            found = self._boundary()
            if found is not None and int(found.data) >= version:
                return int(found.data)
            outcome = self.store.compare_and_swap(self.keys.boundary, b"%d" % version, None if found is None else found.etag)
            if outcome is not PutOutcome.CREATED:  # lost, or unknown: what is there now decides
                time.sleep(min(0.05 * 2**attempt, 2.0))
        if self.boundary() >= version:
            return self.boundary()
        raise UnavailableError(f"{self.keys.boundary}: the store does not say whether it was raised", hint="check the object store")

    def head(self) -> ReadVersion[Chained] | None:
        """Newest version; None for a partition that has no manifest yet."""
        read = self.listed()
        return None if read is None else self.follow(read)

    def listed(self) -> ReadVersion[Chained] | None:
        """The version that was the newest when a listing was made, in two requests less than `head`; None where there was no manifest yet."""
        while True:
            newest = max((object_version(info.key) for info in self.store.list(self.keys.manifests_prefix)), default=0)
            if newest == 0:
                return None
            read = self.read(newest)
            if read is not None and newest > self.boundary():
                return read

    def follow(self, read: ReadVersion[Chained], version: int = NEWEST) -> ReadVersion[Chained]:
        """Walk from a known version to the newest one, or no farther than to one that is known to be there."""
        while read.manifest.version < version and (following := self.next(read)) is not None:
            read = following
        return read

    def next(self, read: ReadVersion[Chained]) -> ReadVersion[Chained] | None:
        """The version after `read`, or None when `read` is the head.

        Raises
        ------
        SnapshotError
            The GC boundary has passed this place: what lies here may be gone, or be made again; take `head()`.
        CorruptError
            The next version does not name `read` as its `previous`.
        """
        version = read.manifest.version
        following = self.read(version + 1, read)
        # Read after the manifest: a stalled writer may have created a collected number again, and it would look like a link of the chain.
        if (version if following is None else version + 1) <= self.boundary():
            raise SnapshotError(f"{self.keys.prefix}: version {version} was collected", hint="take the newest manifest")
        if following is None:
            return None
        previous = following.manifest.previous
        if previous is None or (previous.version, previous.sha256) != (version, read.sha256):
            raise CorruptError(
                f"{self.keys.manifest(version + 1)} does not follow version {version}",
                hint="a manifest was replaced; restore the folder from a backup",
            )
        return following

    def create(self, manifest: Chained, attempts: int = 10) -> ReadVersion[Chained] | None:
        """Try to create a version and settle how it ended (DESIGN section 4, Commit).

        Returns
        -------
        ReadVersion or None
            The manifest when it is committed; None when another writer's manifest has that number, or the number may have been
            deleted and used again (at or below the boundary): reload and try on top of the newest.

        Raises
        ------
        UnavailableError
            The outcome is unknown after all attempts. Keep every object; a later look at the chain decides.
        """
        key, data = self.keys.manifest(manifest.version), manifest.to_bytes()
        for attempt in range(attempts):
            outcome = self.store.put_if_absent(key, data)
            if outcome is PutOutcome.CREATED:
                return self._above_boundary(manifest, data)
            if outcome is PutOutcome.EXISTS:
                found = self.store.get(key)
                if found is not None:  # 412 after a lost answer: ours if it carries our commit id
                    ours = ReadVersion.parse(self.model, found.data, key).manifest.commit_id == manifest.commit_id
                    return self._above_boundary(manifest, data) if ours else None
            if outcome is PutOutcome.UNKNOWN and self._landed(key, manifest):
                return self._above_boundary(manifest, data)
            time.sleep(min(0.05 * 2**attempt, 2.0))
        raise UnavailableError(f"{key}: the store does not say whether the commit landed", hint="check the object store; nothing is deleted")

    def _landed(self, key: str, manifest: Chained) -> bool:
        try:
            found = self.store.get(key)
        except UnavailableError:
            return False
        return found is not None and ReadVersion.parse(self.model, found.data, key).manifest.commit_id == manifest.commit_id

    def _above_boundary(self, manifest: Chained, data: bytes) -> ReadVersion[Chained] | None:
        return ReadVersion(manifest, data) if manifest.version > self.boundary() else None


class ManifestChain(VersionChain[Manifest]):
    """The chain of one partition of one index.

    Parameters
    ----------
    store : ObjectStore
        Where the chain lives.
    keys : PartitionKeys
        Keys of the partition.
    """

    keys: PartitionKeys

    def __init__(self, store: ObjectStore, keys: PartitionKeys) -> None:
        super().__init__(store, keys, Manifest)
