"""One partition of a collection's archive, read whole, one tar at a time.

Takes: a partition. Gives: its report, findings, and the offsets without a record. Owns: beginning again when a purge replaces tars meanwhile.
Never: judges (`indexer.verify.tar_check` does).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from backends.catalog.archive import archive_chain
from contracts.archive_manifest import ArchiveManifest, TarEntry
from contracts.archive_tar import TarIndex
from contracts.collection import CollectionRecord
from contracts.errors import CorruptError, SnapshotError
from contracts.store import ObjectStore
from indexer.verify.chain_walk import Walked, walk_chain
from indexer.verify.findings import Finding, Findings
from indexer.verify.partition_check import ATTEMPTS
from indexer.verify.tar_check import Interval, check_archive_tiling, check_tar, damaged_records, holes, minus


@dataclass
class ArchiveAudit:
    """What was seen of one partition's archive; `absent` are offsets without a record, `unread` those of tars that could not be read."""

    partition: int
    manifest: ArchiveManifest | None = None
    walked: Walked[ArchiveManifest] = field(default_factory=Walked)
    absent: list[Interval] = field(default_factory=list)
    unread: list[Interval] = field(default_factory=list)
    objects: int = 0
    size_bytes: int = 0


def check_archive(
    store: ObjectStore, collection: CollectionRecord, partition: int, findings: Findings, tell: Callable[[str, int, int], None]
) -> ArchiveAudit:
    """Read and judge the archive of a partition; a partition that was never archived has no manifest.

    Raises
    ------
    SnapshotError
        Purges replaced its tars faster than they could be read.
    """
    for _ in range(ATTEMPTS):
        own = Findings()
        try:
            audit = _ArchiveCheck(store, collection, partition, own, tell).run()
        except SnapshotError:
            continue
        findings.join(own)
        return audit
    raise SnapshotError(f"the archive of {collection.name} partition {partition} changed again and again", hint="run verify again after the purge")


def tar_keys(manifest: ArchiveManifest) -> Iterator[str]:
    """Keys of all tars that a manifest names, also of those that wait for their deletion."""
    yield from (tar.key for tar in manifest.tars)
    yield from manifest.condemned


class _ArchiveCheck:
    def __init__(
        self, store: ObjectStore, collection: CollectionRecord, partition: int, findings: Findings, tell: Callable[[str, int, int], None]
    ) -> None:
        self.store, self.collection, self.findings, self.tell = store, collection, findings, tell
        self.chain = archive_chain(store, collection, partition)
        self.audit = ArchiveAudit(partition)

    def run(self) -> ArchiveAudit:
        audit, chain = self.audit, self.chain
        audit.walked = walk_chain(chain, tar_keys, self.findings, None)
        if audit.walked.head is None:
            return audit
        manifest = audit.manifest = audit.walked.head.manifest
        expected = (self.collection.incarnation, self.collection.cluster_id, self.collection.source_topic_id)
        found = (manifest.incarnation, manifest.cluster_id, manifest.media_topic_id)
        if expected != found:
            key = chain.keys.manifest(manifest.version)
            self._add(Finding("manifest_out_of_order", f"it was written for {found}, the collection is {expected}", object=key))
        for finding in check_archive_tiling(manifest):
            self._add(finding)
        for done, tar in enumerate(manifest.tars):
            self.tell(f"archive partition {audit.partition}", done + 1, len(manifest.tars))
            self._tar(tar)
        spoken_for = [(entry.start_offset, entry.next_offset) for entry in (*manifest.tars, *manifest.lost)]
        audit.absent += minus([(manifest.origin_offset, manifest.checkpoint.media_offset)], spoken_for)
        return audit

    def _add(self, finding: Finding) -> None:
        self.findings.add(replace(finding, partition=self.audit.partition))

    def _tar(self, tar: TarEntry) -> None:
        found = self.store.get(tar.key)
        span = tar.start_offset, tar.next_offset
        if found is None:
            if not self._is_named(tar.key):
                raise SnapshotError(f"object {tar.key} is gone", hint="take the newest manifest")
            self._unreadable(tar, "object_missing", "the archive's manifest names it, the store does not have it")
            return
        self.audit.objects += 1
        self.audit.size_bytes += len(found.data)
        index = self._index(tar, found.data)
        if len(found.data) != tar.size_bytes:
            cut = f", it was cut short by {tar.size_bytes - len(found.data)}" if len(found.data) < tar.size_bytes else ""
            self._unreadable(tar, "object_damaged", f"{len(found.data)} bytes, the manifest says {tar.size_bytes}{cut}")
        elif hashlib.sha256(found.data).hexdigest() != tar.sha256:
            self._unreadable(tar, "object_damaged", f"sha256 differs from the manifest's{_named(index, found.data)}")
        elif index is None:
            self._unreadable(tar, "object_unreadable", "its index is not the one that the manifest names")
        else:
            for finding in check_tar(tar, index.rows(), found.data):
                self._add(finding)
            self.audit.absent += holes(index.offsets, *span)

    def _index(self, tar: TarEntry, data: bytes) -> TarIndex | None:
        part = data[tar.index_start : tar.index_start + tar.index_bytes]
        if hashlib.sha256(part).hexdigest() != tar.index_sha256:
            return None
        try:
            return TarIndex.read(part, tar.key)
        except CorruptError:
            return None

    def _unreadable(self, tar: TarEntry, kind: str, what: str) -> None:
        self.audit.unread.append((tar.start_offset, tar.next_offset))
        self._add(Finding(kind, what, object=tar.key, start_offset=tar.start_offset, next_offset=tar.next_offset))

    def _is_named(self, key: str) -> bool:
        try:
            newest = self.chain.head()
        except (CorruptError, ValueError):
            return True  # the chain has its own finding
        return newest is not None and any(tar.key == key for tar in newest.manifest.tars)


def _named(index: TarIndex | None, data: bytes) -> str:
    if index is None:
        return "; its index is damaged"
    offsets = damaged_records(index.rows(), data)
    return f"; damaged records: offsets {', '.join(map(str, offsets[:10]))}{' and more' if len(offsets) > 10 else ''}" if offsets else ""
