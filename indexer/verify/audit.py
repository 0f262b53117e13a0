"""The audit of one collection, from its stored bytes and its log. Read `Audit.run` first.

Takes: a store, a log or none, a collection. Gives: an `AuditReport`. Owns: the order of the checks.
Never: writes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from backends.catalog.archive import archive_chain
from backends.catalog.generations import load_generation
from backends.catalog.manifests import ManifestChain, VersionChain
from contracts.collection import CollectionRecord, IndexRecord
from contracts.errors import CorruptError
from contracts.log import Log
from contracts.manifest import Chained
from contracts.object_keys import CollectionKeys
from contracts.store import ObjectStore
from indexer.index_codecs import IndexCodecs
from indexer.verify.archive_check import ArchiveAudit, check_archive, tar_keys
from indexer.verify.dead_letter_check import MissingLetter, describe_expired, describe_missing, extra_letters, missing_letters
from indexer.verify.findings import Finding, Findings
from indexer.verify.id_versions import IdVersions
from indexer.verify.log_check import LogPosition, check_partition_log, check_topics, read_letters
from indexer.verify.orphan_check import Orphan, Place, check_claims, describe_orphans, find_orphans
from indexer.verify.partition_check import TOMBSTONE_DAYS, PartitionAudit, Task, check_partition, manifest_keys
from indexer.verify.tar_check import compare_with_ledger

Tell = Callable[[str, int, int], None]
"""Called with a step's name, how much of it is done, and how much there is."""


@dataclass
class AuditReport:
    """What an audit saw.

    `positions` are by (index, partition), `missing` by index: dead letters that are not in the topic.
    """

    collection: CollectionRecord
    has_log: bool
    findings: Findings = field(default_factory=Findings)
    partitions: list[PartitionAudit] = field(default_factory=list)
    archives: list[ArchiveAudit] = field(default_factory=list)
    positions: dict[tuple[str, int], LogPosition] = field(default_factory=dict)
    missing: dict[str, list[MissingLetter]] = field(default_factory=dict)
    orphans: list[Orphan] = field(default_factory=list)
    objects: int = 0
    size_bytes: int = 0
    seconds: float = 0.0


class Audit:
    """Audits a collection.

    Parameters
    ----------
    store : ObjectStore
        Where its objects lie.
    log : Log or None
        Its log; None looks at stored bytes alone.
    collection : CollectionRecord
        What is audited, all its indexes.
    folder : Path
        Where room is taken for sorting, about 80 bytes for each stored row; given back at the end.
    now_seconds : float
        Seconds since 1970: what has expired, and how old orphans are.
    tell : callable
        Told about progress.
    """

    def __init__(
        self,
        store: ObjectStore,
        log: Log | None,
        collection: CollectionRecord,
        folder: Path,
        now_seconds: float,
        tell: Tell = lambda step, done, total: None,
    ) -> None:
        self.store, self.log, self.collection, self.folder, self.now_seconds, self.tell = store, log, collection, folder, now_seconds, tell
        self.keys = CollectionKeys(collection.name, collection.incarnation)

    def run(self) -> AuditReport:
        """Check everything.

        Raises
        ------
        SnapshotError
            Objects were compacted away again and again while they were read.
        UnavailableError
            Store or log do not answer.
        """
        began = time.monotonic()
        report = AuditReport(self.collection, self.log is not None)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="verify-") as room:
            for index in self.collection.indexes:
                self._check_index(index, Path(room) / index.name, report)
        self._check_archive(report)
        if self.log is None:
            report.findings.add(Finding("not_checked", "the log was not asked: what is not committed yet, and dead letters"))
        elif check_topics(self.log, self.collection, report.findings):
            self._check_log(self.log, report)
            self._check_letters(self.log, report)
        self._check_rest(report)
        audits: list[PartitionAudit | ArchiveAudit] = [*report.partitions, *report.archives]
        report.objects += sum(one.objects + one.walked.versions for one in audits)
        report.size_bytes += sum(one.size_bytes for one in audits)
        report.seconds = time.monotonic() - began
        return report

    # ---- stored bytes ------------------------------------------------------------------------------------------------

    def _check_index(self, index: IndexRecord, room: Path, report: AuditReport) -> None:
        ids = IdVersions(self.store, index.name, room / "ids")
        retention = self.collection.retention_seconds
        expire_at_us = None if retention is None else int((self.now_seconds - retention) * 1_000_000)
        audits, codecs = [], IndexCodecs(self.store, self.collection, index)
        for partition in range(self.collection.partitions):
            task = Task(self.store, self.collection, index, partition, room / "places", expire_at_us, self._is_young(), codecs, self.tell)
            audits.append(check_partition(task, ids, report.findings))
        ids.judge(report.findings, lambda done, total: self.tell(f"ids of {index.name}", done, total))
        for audit in audits:
            audit.states.update({state: count for (partition, state), count in ids.dead.items() if partition == audit.partition})
            for start, end in audit.lost:
                report.findings.add(Finding("offsets_lost", "given up by an operator", index.name, audit.partition).at(start, end))
        self._check_generations(index, audits, report)
        report.partitions += audits

    def _is_young(self) -> bool:
        """Whether no delete of the collection can have been forgotten yet."""
        created = datetime.fromisoformat(self.collection.created_at).timestamp()
        return self.now_seconds - created < TOMBSTONE_DAYS * 86_400

    def _check_generations(self, index: IndexRecord, audits: list[PartitionAudit], report: AuditReport) -> None:
        named = {pair for audit in audits for pair in audit.generations}
        named |= {pair for audit in audits if audit.manifest is not None for pair in audit.manifest.generation.items()}
        keys = self.keys.index(index.name)
        for name, number in sorted(named):
            key, record = keys.generation(number, name), index.field(name)
            if record is None:
                report.findings.add(
                    Finding("object_unreadable", f"generation of field {name}, which the index does not have", index.name, object=key)
                )
                continue
            report.objects += 1
            try:
                if load_generation(self.store, keys, record, number) is None:
                    what = "segments or manifests name this generation, the store does not have it"
                    report.findings.add(Finding("object_missing", what, index.name, object=key))
            except CorruptError as error:
                report.findings.add(Finding("object_damaged", error.message.removeprefix(f"{key}: "), index.name, object=key))

    def _check_archive(self, report: AuditReport) -> None:
        active = {audit.partition: audit for audit in report.partitions if audit.index == self.collection.active_index}
        for partition in range(self.collection.partitions):
            audit = check_archive(self.store, self.collection, partition, report.findings, self.tell)
            report.archives.append(audit)
            if audit.manifest is None:
                continue
            for run in audit.manifest.lost:
                what = "retention took them before they were archived"
                report.findings.add(Finding("offsets_lost", what, partition=partition).at(run.start_offset, run.next_offset))
            mine = active.get(partition)
            if mine is None or mine.manifest is None or not self.collection.owns_source_topic:
                continue  # a topic of others may be compacted: what one reader saw, a later one finds a gap
            low = max(audit.manifest.origin_offset, mine.manifest.origin_offset)
            high = min(audit.manifest.checkpoint.media_offset, mine.manifest.checkpoint.media_offset)
            lost = [(run.start_offset, run.next_offset) for run in audit.manifest.lost]
            unknown = [*lost, *audit.unread, *mine.lost, *mine.unread_ledgers]
            if low < high:
                for finding in compare_with_ledger(audit.absent, mine.gaps, unknown, (low, high)):
                    report.findings.add(replace(finding, index=mine.index, partition=partition))

    # ---- log ---------------------------------------------------------------------------------------------------------

    def _check_log(self, log: Log, report: AuditReport) -> None:
        for done, audit in enumerate(report.partitions):
            self.tell("batches that are not committed", done, len(report.partitions))
            if audit.manifest is None:
                continue
            index = self.collection.index(audit.index)
            chain = ManifestChain(self.store, self.keys.index(audit.index).partition(audit.partition))
            position = check_partition_log(log, self.collection, index, chain, audit.manifest, report.findings)
            if position is not None:
                report.positions[audit.index, audit.partition] = position

    def _check_letters(self, log: Log, report: AuditReport) -> None:
        letters = read_letters(log, self.collection, self.tell)
        if letters is None:
            report.findings.add(Finding("topic_missing", f"topic {self.collection.dead_letter_topic} does not exist"))
            return
        for audit in report.partitions:
            mine = letters.get((audit.index, audit.partition))
            if mine is None or audit.manifest is None:
                continue
            missing, expired = missing_letters(audit.rejects, mine, audit.partition)
            report.missing.setdefault(audit.index, []).extend(missing)
            report.findings.extend(replace(describe_missing(letter), index=audit.index) for letter in missing)
            report.findings.extend(replace(finding, index=audit.index) for finding in describe_expired(expired, audit.partition))
            extra = 0 if audit.unread_ledgers else extra_letters(audit.rejects, mine, audit.manifest.checkpoint.media_offset)
            if extra:
                what = f"{extra} records have a dead letter and were accepted"
                report.findings.add(Finding("dead_letter_extra", what, audit.index, audit.partition))

    # ---- the rest of the store ---------------------------------------------------------------------------------------

    def _check_rest(self, report: AuditReport) -> None:
        objects, size_bytes = check_claims(self.store, self.keys, report.findings, self.tell)
        report.objects, report.size_bytes = report.objects + objects, report.size_bytes + size_bytes
        named = {Place(audit.index, audit.partition): audit.walked.named for audit in report.partitions}
        named |= {Place(None, audit.partition): audit.walked.named for audit in report.archives}
        read_to = {Place(audit.index, audit.partition): audit.walked.last_version for audit in report.partitions}
        read_to |= {Place(None, audit.partition): audit.walked.last_version for audit in report.archives}
        infos = self.store.list(self.keys.prefix)
        report.orphans = find_orphans(infos, named, lambda place: self._newest(place, read_to[place]), self.now_seconds)
        report.findings.extend(describe_orphans(report.orphans))

    def _newest(self, place: Place, version: int) -> tuple[set[str], Mapping[str, int]]:
        """Keys that the manifests of a place after this version name, and the newest one's epochs."""
        try:
            if place.index is None:
                return _since(archive_chain(self.store, self.collection, place.partition), tar_keys, version)
            return _since(ManifestChain(self.store, self.keys.index(place.index).partition(place.partition)), manifest_keys, version)
        except (CorruptError, ValueError):
            return set(), {}  # the chain has its own finding; nothing of it is called dead


def _since(chain: VersionChain[Chained], keys_of: Callable[[Chained], Iterator[str]], version: int) -> tuple[set[str], Mapping[str, int]]:
    head = chain.head()
    if head is None:
        return set(), {}
    reads = (chain.read(number) for number in range(version + 1, head.manifest.version))
    named = {key for read in reads if read is not None for key in keys_of(read.manifest)}
    return named | set(keys_of(head.manifest)), head.manifest.epochs.model_dump()
