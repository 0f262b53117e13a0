"""The audit of each archive manifest as it is stored: its tars hold every record of the media log below the checkpoint, byte for byte, once."""

from __future__ import annotations

import hashlib

from backends.memory_store import MemoryStore
from contracts.archive_manifest import ArchiveManifest, TarEntry
from contracts.archive_record import from_tar
from contracts.archive_tar import TarIndex
from contracts.manifest import ReadVersion, object_version
from contracts.object_keys import CollectionKeys
from tests.simulation.reference import Fail, Reference


class ArchiveAudit:
    """Checks the archive of one partition of one incarnation; a tar is compared once, since stored objects never change."""

    def __init__(self, reference: Reference, store: MemoryStore, fail: Fail, partition: int) -> None:
        self.reference, self.store, self.fail = reference, store, fail
        self.history: dict[int, ReadVersion[ArchiveManifest]] = {}
        self._claims: dict[int, str] = {}
        self._compared: set[str] = set()
        record = reference.record
        self._boundary = CollectionKeys(record.name, record.incarnation).archive(partition).boundary

    @property
    def archived_to(self) -> int:
        """The newest manifest's checkpoint; 0 before there is one."""
        return self.history[max(self.history)].manifest.checkpoint.media_offset if self.history else 0

    def manifest(self, key: str, data: bytes) -> None:
        """A manifest was stored: the first of its number decides history."""
        version = object_version(key)
        if version in self.history:
            return
        read = ReadVersion.parse(ArchiveManifest, data, key)
        self.history[version] = read
        before = self.history.get(version - 1)
        if before is not None:
            self._follows(before, read.manifest)
        elif version > 1:
            self.fail(f"archive version {version} was stored, and there never was a version {version - 1}")
        self._tiles(read.manifest)

    def _follows(self, before: ReadVersion[ArchiveManifest], manifest: ArchiveManifest) -> None:
        where, old = f"archive version {manifest.version}", before.manifest
        if manifest.previous is None or (manifest.previous.version, manifest.previous.sha256) != (old.version, before.sha256):
            self.fail(f"{where} does not follow version {old.version}")
        if manifest.tars[: len(old.tars)] != old.tars:
            self.fail(f"{where} changed tars that were committed")
        epoch = manifest.epochs.archiver
        if epoch < old.epochs.archiver:
            self.fail(f"{where}: the epoch of the archiver went back")
        if epoch > old.epochs.archiver:
            self._claims[epoch] = manifest.writer
        if manifest.tars != old.tars and self._claims.get(epoch) != manifest.writer:
            self.fail(f"{where}: {manifest.writer} archived after it was fenced")

    def _tiles(self, manifest: ArchiveManifest) -> None:
        where, at = f"archive version {manifest.version}", manifest.origin_offset
        for tar in manifest.tars:
            if tar.start_offset != at:
                self.fail(f"{where}: a tar begins at {tar.start_offset}, the one before ends at {at}")
            at = tar.next_offset
            self._compare(tar, where)
        if at != manifest.checkpoint.media_offset or manifest.lost:
            self.fail(f"{where}: tars end at {at}, the checkpoint is {manifest.checkpoint.media_offset}, lost {manifest.lost}")

    def _compare(self, tar: TarEntry, where: str) -> None:
        found = self.store._objects.get(tar.key)
        if found is None:
            self.fail(f"{where} names {tar.key}, which is not stored")
        if tar.key in self._compared:
            return
        self._compared.add(tar.key)
        data: bytes = found[0]  # type: ignore[index]
        if hashlib.sha256(data).hexdigest() != tar.sha256:
            self.fail(f"{where}: {tar.key} holds other bytes")
        rows = TarIndex.read(data[tar.index_start : tar.index_start + tar.index_bytes], tar.key).rows()
        if [row.offset for row in rows] != list(range(tar.start_offset, tar.next_offset)):
            self.fail(f"{where}: {tar.key} does not hold every offset of its own once")
        for row in rows:
            start = row.start or 0
            record, media = from_tar(data[start : start + row.size_bytes], "media", tar.key), self.reference.media[row.offset]
            if record is None or (record.offset, record.key, record.value, record.headers) != (media.offset, media.key, media.value, media.headers):
                self.fail(f"{where}: the archive has another record at media offset {row.offset}")

    def deleted(self, key: str) -> None:
        """An object was deleted: no manifest above the boundary names it."""
        found = self.store._objects.get(self._boundary)
        boundary = 0 if found is None else int(found[0])
        for version, read in self.history.items():
            if version > boundary and key in {tar.key for tar in read.manifest.tars}:
                self.fail(f"{key} was deleted, archive version {version} of {max(self.history)} names it, the boundary is {boundary}")

    def believed(self, writer: str, read: ReadVersion[ArchiveManifest]) -> None:
        """A committer believes that it has committed: history says the same."""
        stored = self.history.get(read.manifest.version)
        if stored is None or stored.sha256 != read.sha256:
            self.fail(f"{writer} believes that it committed archive version {read.manifest.version}, history says otherwise")
