"""Purge: what a collection stores of some ids, found and removed (privacy).

    find -> send deletes -> forbid archiving what lies below them -> rewrite tars -> delete old tars
    -> ask the compactors to rewrite segments -> look at what came since `find` -> delete the claim-check objects that nothing else names

Takes: ids. Gives: what was found, and a report of what was done. Owns: the order of steps, which makes a purge that was killed repeatable.
Never: promises more than it did: logs keep their records until retention, and segments theirs until a compactor has rewritten them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ulid import ULID

from backends.catalog.archive import ArchiveChain, archive_chain, read_tar, read_tar_index
from backends.catalog.objects import upload
from contracts.archive_manifest import ArchiveManifest, PendingPurge, TarEntry
from contracts.archive_tar import claims_of, ids_of
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, SnapshotError
from contracts.item import id_hash
from contracts.log import LogRecord, OffsetBounds
from contracts.media_record import check_id, read_media_record
from contracts.object_keys import CollectionKeys
from contracts.partitioner import partition_of
from indexer.archive_rewrite import rewrite_tar
from indexer.archive_sweep import condemn_unnamed, delete_condemned
from indexer.commit import Committer
from indexer.partition_archiver import archive_limits, ensure_archive, tar_entry
from indexer.purge_requests import request_purge

logger = logging.getLogger(__name__)
DELIVERY_SECONDS = 60.0
Tell = Callable[[str, int, int], None]
"""Called with a step's name, how much of it is done, and how much there is."""


@dataclass(slots=True)
class Findings:
    """What is stored of the ids; counts by partition."""

    archived: dict[int, int] = field(default_factory=dict)
    unarchived: dict[int, int] = field(default_factory=dict)
    tars: list[TarEntry] = field(default_factory=list)
    claims: set[bytes] = field(default_factory=set)
    other_claims: set[bytes] = field(default_factory=set)
    seen_to: dict[int, int] = field(default_factory=dict)
    """First offset of the media topic that was not looked at."""

    @property
    def partitions(self) -> set[int]:
        """Where something was found."""
        return {*self.archived, *self.unarchived}


@dataclass(slots=True)
class PurgeReport:
    """What a purge did."""

    deletes: dict[int, int] = field(default_factory=dict)
    tars_rewritten: int = 0
    tar_bytes: int = 0
    records_removed: int = 0
    records_emptied: int = 0
    dead_tars_deleted: int = 0
    claims_deleted: int = 0
    claims_kept: int = 0


class Purge:
    """Finds and removes ids of one collection.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, clock.
    collection : CollectionRecord
        Whose ids.
    ids : sequence of str
        The ids.
    tell : callable
        Told about progress.

    Raises
    ------
    RecordError
        ``bad_id``: an id that no record can have.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, ids: Sequence[str], tell: Tell = lambda step, done, total: None) -> None:
        self.engines, self.collection, self.tell = engines, collection, tell
        self.ids = [check_id(item_id) for item_id in dict.fromkeys(ids)]
        self.hashes = {id_hash(item_id) for item_id in self.ids}
        self._clean: set[str] = set()  # keys of tars that hold none of the ids

    # ---- find --------------------------------------------------------------------------------------------------------

    def find(self) -> Findings:
        """Look through the index of every tar, and through the records of the media topic that are not archived yet."""
        findings = Findings()
        heads = {partition: self._chain(partition).head() for partition in range(self.collection.partitions)}
        tars = [(p, tar) for p, read in heads.items() if read is not None for tar in read.manifest.tars]
        for done, (partition, tar) in enumerate(tars):
            self.tell("looking through tars", done, len(tars))
            rows = [row for row in read_tar_index(self.engines.store, tar).with_ids(self.hashes) if row.start is not None]
            if not rows:
                self._clean.add(tar.key)
                continue
            findings.tars.append(tar)
            findings.archived[partition] = findings.archived.get(partition, 0) + len(rows)
            findings.claims |= {claim for row in rows for claim in row.claims}
        starts = {partition: 0 if read is None else read.manifest.checkpoint.media_offset for partition, read in heads.items()}
        self._find_in_log(starts, findings)
        return findings

    def _find_in_log(self, starts: Mapping[int, int], findings: Findings) -> None:
        bounds = self.engines.log.bounds(self.collection.source_topic)
        findings.seen_to = {p: max(start, bounds[p].next_offset) for p, start in starts.items()}
        for record, ids, claims in self._claiming(self._records(starts, bounds)):
            if self.hashes.isdisjoint(ids):
                findings.other_claims.update(claims)
                continue
            findings.unarchived[record.partition] = findings.unarchived.get(record.partition, 0) + 1
            findings.claims.update(claims)

    def _look_again(self, findings: Findings, below: Mapping[int, Mapping[bytes, int]]) -> None:
        """Sort the payloads that records name which came after `find` looked: what a record that stays names, stays."""
        bounds = self.engines.log.bounds(self.collection.source_topic)
        for record, ids, claims in self._claiming(self._records(findings.seen_to, bounds)):
            deletes = below.get(record.partition, {})
            goes = any(record.offset < deletes.get(found, 0) for found in ids)
            (findings.claims if goes else findings.other_claims).update(claims)

    def _claiming(self, records: Iterable[LogRecord]) -> Iterator[tuple[LogRecord, list[bytes], list[bytes]]]:
        """Each record with the hashes of its ids and the payloads that it names."""
        limits = archive_limits(self.engines.settings)
        for record in records:
            items = read_media_record(record, self.collection, limits)
            yield record, ids_of(record, items, self.collection), claims_of(record, items, self.collection)

    def _records(self, starts: Mapping[int, int], bounds: Mapping[int, OffsetBounds]) -> Iterator[LogRecord]:
        """Records of the media topic from these offsets to these ends."""
        topic = self.collection.source_topic
        positions = {p: max(start, bounds[p].start_offset) for p, start in starts.items() if start < bounds[p].next_offset}
        total = sum(bounds[p].next_offset - at for p, at in positions.items())
        if not positions:
            return
        reader = self.engines.log.reader(topic, positions)
        try:
            left = dict(positions)
            while left:
                records = reader.poll(0.2)
                for record in records:
                    if record.offset < bounds[record.partition].next_offset:
                        yield record
                at = {p: reader.position(p) for p in left}
                left = {p: offset for p, offset in at.items() if offset < bounds[p].next_offset}
                self.tell("looking through the media topic", total - sum(bounds[p].next_offset - offset for p, offset in left.items()), total)
        finally:
            reader.close()

    # ---- remove ------------------------------------------------------------------------------------------------------

    def run(self, findings: Findings) -> PurgeReport:
        """Remove what was found, and what was archived since.

        Raises
        ------
        FencedError
            Another purge of this collection began: run this one again.
        UnavailableError
            Log or store do not answer: run it again, what is done stays done.
        """
        report = PurgeReport()
        below = self._send_deletes(findings, report)
        for done, (partition, purges) in enumerate(sorted(below.items())):
            self.tell("rewriting tars", done, len(below))
            self._purge_partition(partition, purges, report)
        self._request_compaction(below)
        self._look_again(findings, below)
        self._delete_claims(findings, report)
        return report

    def _send_deletes(self, findings: Findings, report: PurgeReport) -> dict[int, dict[bytes, int]]:
        """Delete the ids through the media topic; per partition, the offset below which each id's records go, the delete itself included."""
        topic, producer = self.collection.source_topic, self.engines.log.producer()
        id_header = self.collection.id_from.removeprefix("header:") if self.collection.id_from.startswith("header:") else None
        below: dict[int, dict[bytes, int]] = {}
        try:
            sent = {
                (partition, item_id): producer.send(
                    topic,
                    partition=partition,
                    key=item_id.encode("utf-8"),
                    value=None,
                    headers=[] if id_header is None else [(id_header, item_id.encode("utf-8"))],
                )
                for item_id in self.ids
                for partition in self._homes(item_id)
            }
            producer.flush(DELIVERY_SECONDS)
            for (partition, item_id), future in sent.items():
                offset = future.result(DELIVERY_SECONDS).offset
                below.setdefault(partition, {})[id_hash(item_id)] = offset + 1
                report.deletes[partition] = max(offset, report.deletes.get(partition, 0))
        finally:
            producer.close()
        bounds = self.engines.log.bounds(topic)
        for partition in findings.partitions:  # records of an id that lie where its partitioner would not put them
            for found in self.hashes:
                below.setdefault(partition, {}).setdefault(found, bounds[partition].next_offset)
        return below

    def _homes(self, item_id: str) -> list[int]:
        """Partitions in which the id is deleted; with the producers' own partitioner every one in which it may live."""
        collection = self.collection
        if collection.partitioner != "producer":
            return [partition_of(collection.partitioner, item_id.encode("utf-8"), collection.partitions)]
        return list(range(collection.partitions))

    def _purge_partition(self, partition: int, purges: Mapping[bytes, int], report: PurgeReport) -> None:
        store = self.engines.store
        ensure_archive(self.engines, self.collection, partition)
        chain = self._chain(partition)
        committer = Committer(chain, "purge", f"purge-{ULID()}", self.engines.clock, lambda: None)
        committer.claim()
        read = committer.commit(None, lambda manifest: {"purges": _with_purges(manifest, purges)}, str(ULID()))
        read = condemn_unnamed(store, chain, committer, read)
        report.dead_tars_deleted += len(read.manifest.condemned)
        read = delete_condemned(store, committer, read)
        while (tar := self._next_hit(read.manifest, purges)) is not None:
            try:
                self._rewrite(chain, committer, tar, purges, report)
            except SnapshotError as error:
                logger.warning("a tar was replaced meanwhile, looking again: %s", error)
            head = chain.head()
            if head is None:
                raise NotFoundError(f"{chain.keys.prefix} has no manifest any more", hint="was the collection deleted?")
            read = head
        delete_condemned(store, committer, read)

    def _request_compaction(self, below: Mapping[int, Mapping[bytes, int]]) -> None:
        keys = CollectionKeys(self.collection.name, self.collection.incarnation)
        for index in self.collection.indexes:
            for partition, purges in sorted(below.items()):
                request_purge(self.engines.store, keys.index(index.name).partition(partition), purges)

    def _next_hit(self, manifest: ArchiveManifest, purges: Mapping[bytes, int]) -> TarEntry | None:
        """The first tar that holds a record of the ids below their deletes."""
        for tar in manifest.tars:
            if tar.key in self._clean or tar.start_offset >= max(purges.values()):
                continue
            rows = read_tar_index(self.engines.store, tar).with_ids(purges)
            if any(row.start is not None and any(row.offset < purges.get(found, 0) for found in row.ids) for row in rows):
                return tar
            self._clean.add(tar.key)
        return None

    def _rewrite(
        self, chain: ArchiveChain, committer: Committer[ArchiveManifest], tar: TarEntry, purges: Mapping[bytes, int], report: PurgeReport
    ) -> None:
        store = self.engines.store
        rows = read_tar_index(store, tar).rows()
        done = rewrite_tar(read_tar(store, tar), rows, purges, self.collection, archive_limits(self.engines.settings))
        key = chain.keys.tar("m", committer.epoch, str(ULID()))
        upload(store, key, done.tar.data)
        entry = tar_entry(key, done.tar, tar.start_offset, tar.next_offset)

        def replace(manifest: ArchiveManifest) -> dict[str, object]:
            if tar not in manifest.tars:
                raise SnapshotError(f"{tar.key} is not in the manifest any more", hint="look again")
            tars = tuple(entry if other.key == tar.key else other for other in manifest.tars)
            return {"tars": tars, "condemned": (*manifest.condemned, tar.key)}

        committer.commit(None, replace, str(ULID()))
        store.delete(tar.key)
        self._clean.add(key)
        report.tars_rewritten += 1
        report.tar_bytes += tar.size_bytes
        report.records_removed += done.removed
        report.records_emptied += done.redacted

    def _delete_claims(self, findings: Findings, report: PurgeReport) -> None:
        """Delete the payloads that only the purged records referred to."""
        if not findings.claims:
            return
        kept = findings.claims & findings.other_claims
        for partition in range(self.collection.partitions):
            read = self._chain(partition).head()
            for tar in () if read is None else read.manifest.tars:
                rows = read_tar_index(self.engines.store, tar).with_claims(findings.claims)
                kept |= findings.claims & {claim for row in rows for claim in row.claims}
        keys = CollectionKeys(self.collection.name, self.collection.incarnation)
        for digest in findings.claims - kept:
            self.engines.store.delete(keys.claim(digest.hex()))
        report.claims_deleted, report.claims_kept = len(findings.claims - kept), len(kept)

    def _chain(self, partition: int) -> ArchiveChain:
        return archive_chain(self.engines.store, self.collection, partition)


def _with_purges(manifest: ArchiveManifest, purges: Mapping[bytes, int]) -> tuple[PendingPurge, ...]:
    """Purges of the manifest and these, as far as they concern records that are not archived yet."""
    merged = {purge.id_hash: purge.below_offset for purge in manifest.purges}
    for found, below_offset in purges.items():
        merged[found.hex()] = max(below_offset, merged.get(found.hex(), 0))
    archived_to = manifest.checkpoint.media_offset
    return tuple(PendingPurge(id_hash=found, below_offset=offset) for found, offset in sorted(merged.items()) if offset > archived_to)
