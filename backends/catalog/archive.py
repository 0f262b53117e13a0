"""The archive as stored: its chain of manifests, and single records read back by range.

    manifest (cached) -> tar's index (one range read, cached) -> the record's bytes (one range read) -> sha256 -> record

Takes: an object store. Gives: media records by partition and offset. Owns: caches of manifests and indexes.
Never: writes; hands out bytes that were not compared with the hash that the manifest leads to.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict

from backends.catalog.manifests import VersionChain
from contracts.archive_manifest import ArchiveManifest, TarEntry
from contracts.archive_record import from_tar, media_from_tar
from contracts.archive_tar import IndexRow, TarIndex
from contracts.collection import CollectionRecord
from contracts.errors import CorruptError, SnapshotError
from contracts.footer_file import check_bytes
from contracts.log import LogRecord
from contracts.manifest import ReadVersion
from contracts.object_keys import ArchiveKeys, CollectionKeys
from contracts.store import ObjectStore

INDEX_CACHE_BYTES = 64 * 1024 * 1024
REFRESH_SECONDS = 5.0
"""How often at most a partition's manifest is looked for again because of an offset that the cached one does not know."""


class ArchiveChain(VersionChain[ArchiveManifest]):
    """The chain of one partition's archive.

    Parameters
    ----------
    store : ObjectStore
        Where the chain lives.
    keys : ArchiveKeys
        Keys of the partition's archive.
    """

    keys: ArchiveKeys

    def __init__(self, store: ObjectStore, keys: ArchiveKeys) -> None:
        super().__init__(store, keys, ArchiveManifest)


def archive_chain(store: ObjectStore, collection: CollectionRecord, partition: int) -> ArchiveChain:
    """Chain of one partition of a collection's archive."""
    return ArchiveChain(store, CollectionKeys(collection.name, collection.incarnation).archive(partition))


def read_tar_index(store: ObjectStore, tar: TarEntry) -> TarIndex:
    """The index of a tar, by one range read.

    Raises
    ------
    SnapshotError
        The tar is gone: it was rewritten without purged records; reload the manifest.
    CorruptError
        Its bytes are not those of the manifest.
    """
    data = store.get_range(tar.key, tar.index_start, tar.index_bytes)
    if data is None:
        raise SnapshotError(f"object {tar.key} is gone", hint="reload the manifest")
    check_bytes(data, tar.index_bytes, tar.index_sha256, f"{tar.key} (index)")
    return TarIndex.read(data, tar.key)


def read_tar(store: ObjectStore, tar: TarEntry) -> bytes:
    """All bytes of a tar; raises as `read_tar_index`."""
    found = store.get(tar.key)
    if found is None:
        raise SnapshotError(f"object {tar.key} is gone", hint="reload the manifest")
    check_bytes(found.data, tar.size_bytes, tar.sha256, tar.key)
    return found.data


class ArchiveReader:
    """Reads records back, with caches of manifests and indexes; thread-safe.

    Parameters
    ----------
    store : ObjectStore
        Where archives live.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._manifests: dict[tuple[str, int], tuple[float, ReadVersion[ArchiveManifest] | None]] = {}
        self._indexes: OrderedDict[str, TarIndex] = OrderedDict()

    def read(self, collection: CollectionRecord, partition: int, offset: int) -> LogRecord | None:
        """The record at a media offset, or None where the archive does not hold it (not yet, lost, purged, or archived without its media).

        Raises
        ------
        CorruptError
            Stored bytes differ from their hash.
        UnavailableError
            The store does not answer.
        """
        found = self._bytes(collection, partition, offset)
        return None if found is None else from_tar(found[0], collection.source_topic, found[1])

    def read_media(self, collection: CollectionRecord, partition: int, offset: int, media_sha256: bytes) -> bytes | None:
        """The media with this sha256 that was archived with the record, or None; it is there also where the record only names its payload.

        Raises
        ------
        CorruptError
            Stored bytes differ from their hash.
        UnavailableError
            The store does not answer.
        """
        found = self._bytes(collection, partition, offset)
        return None if found is None else media_from_tar(found[0], media_sha256, found[1])

    def read_run(
        self, collection: CollectionRecord, partition: int, offset: int, most_records: int, most_bytes: int
    ) -> tuple[list[LogRecord], int] | None:
        """Records from a media offset on, by one range read, and the offset behind them; gaps and purged records are passed over.

        Returns
        -------
        tuple or None
            None where the archive does not hold `offset`: before it began, lost, not archived yet, or archived without its media.

        Raises
        ------
        CorruptError
            Stored bytes differ from their hash.
        SnapshotError
            A tar that the newest manifest names is gone.
        UnavailableError
            The store does not answer.
        """
        for is_retry in (False, True):
            manifest = self._manifest(collection, partition, offset, is_retry)
            if manifest is None or not manifest.holds(offset):
                return None
            tar = manifest.tar_of(offset)
            if tar is None:
                return [], manifest.gap_end(offset)
            try:
                return self._run(collection.source_topic, tar, offset, *self._index(tar).run(offset, most_records, most_bytes))
            except SnapshotError:
                if is_retry:
                    raise
        return None

    def _run(self, topic: str, tar: TarEntry, offset: int, rows: list[IndexRow], are_last: bool) -> tuple[list[LogRecord], int] | None:
        held = [(row, row.start) for row in rows if row.start is not None]
        next_offset = tar.next_offset if are_last else rows[-1].offset + 1
        if not held:
            return [], next_offset
        start, (last, last_start) = held[0][1], held[-1]
        data = self.store.get_range(tar.key, start, last_start + last.size_bytes - start)
        if data is None:
            raise SnapshotError(f"object {tar.key} is gone", hint="reload the manifest")
        records: list[LogRecord] = []
        for row, at in held:
            try:
                mine = data[at - start : at - start + row.size_bytes]
                record = from_tar(mine, topic, _check_record(mine, tar, row))
            except CorruptError:
                if row.offset == offset:
                    raise
                record = None
            if record is None:  # what lies before it can be read: whoever comes as far as this is told
                return None if row.offset == offset else (records, row.offset)
            records.append(record)
        return records, next_offset

    def _bytes(self, collection: CollectionRecord, partition: int, offset: int) -> tuple[bytes, str] | None:
        """A record's bytes in its tar, and how messages call them."""
        for is_retry in (False, True):
            manifest = self._manifest(collection, partition, offset, is_retry)
            tar = None if manifest is None else manifest.tar_of(offset)
            if tar is None:
                return None
            try:
                row = self._index(tar).find(offset)
                return None if row is None or row.start is None else self._checked(tar, row, row.start)
            except SnapshotError:
                if is_retry:
                    raise
        return None

    def _checked(self, tar: TarEntry, row: IndexRow, start: int) -> tuple[bytes, str]:
        data = self.store.get_range(tar.key, start, row.size_bytes)
        if data is None:
            raise SnapshotError(f"object {tar.key} is gone", hint="reload the manifest")
        return data, _check_record(data, tar, row)

    def _manifest(self, collection: CollectionRecord, partition: int, offset: int, is_stale: bool) -> ArchiveManifest | None:
        """A manifest that knows the offset, as far as there is one; the cached one where it does."""
        place = (collection.incarnation, partition)
        with self._lock:
            checked_at, known = self._manifests.get(place, (float("-inf"), None))
        is_known = known is not None and offset < known.manifest.checkpoint.media_offset
        if is_stale or (not is_known and time.monotonic() - checked_at > REFRESH_SECONDS):
            chain = archive_chain(self.store, collection, partition)
            known = chain.head() if known is None else self._newer(chain, known)
            with self._lock:
                self._manifests[place] = (time.monotonic(), known)
        return None if known is None else known.manifest

    @staticmethod
    def _newer(chain: ArchiveChain, known: ReadVersion[ArchiveManifest]) -> ReadVersion[ArchiveManifest] | None:
        try:
            return chain.follow(known)
        except SnapshotError:
            return chain.head()

    def _index(self, tar: TarEntry) -> TarIndex:
        with self._lock:
            found = self._indexes.get(tar.key)
            if found is not None:
                self._indexes.move_to_end(tar.key)
                return found
        found = read_tar_index(self.store, tar)
        with self._lock:
            self._indexes[tar.key] = found
            size_bytes = sum(index.size_bytes for index in self._indexes.values())
            while size_bytes > INDEX_CACHE_BYTES and len(self._indexes) > 1:
                size_bytes -= self._indexes.popitem(last=False)[1].size_bytes
        return found


def _check_record(data: bytes, tar: TarEntry, row: IndexRow) -> str:
    """How messages call a record of a tar, once its bytes equal the index's hash; CorruptError where they do not."""
    where = f"{tar.key} (offset {row.offset})"
    if hashlib.sha256(data).digest() != row.sha256:
        raise CorruptError(f"{where}: sha256 differs from the index's", hint="restore the object from a backup")
    return where
