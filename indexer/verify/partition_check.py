"""One partition of one index, read whole from its newest manifest, one object at a time.

    walk the chain -> deltas -> segments -> ledgers, each with the rows of its offsets

Takes: a partition. Gives: its report, findings, and what the checks over all partitions need. Owns: beginning again when objects are compacted away.
Never: judges (the pure `*_check` modules do), or asks the log.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyroaring import BitMap

from backends.catalog.manifests import ManifestChain
from contracts.collection import CollectionRecord, FieldRecord, IndexRecord
from contracts.deletes import decode_delete_delta
from contracts.errors import CorruptError, SnapshotError
from contracts.item import id_hashes
from contracts.ledger import LedgerRun, decode_ledger
from contracts.manifest import LedgerEntry, Manifest, ObjectEntry, SegmentEntry
from contracts.object_keys import CollectionKeys
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, CodedPart, read_field_part, read_rows_part
from contracts.store import ObjectStore
from indexer.field_parts import check_quantizer
from indexer.index_codecs import IndexCodecs
from indexer.verify.chain_walk import Walked, walk_chain
from indexer.verify.findings import Finding, Findings
from indexer.verify.id_versions import IdVersions
from indexer.verify.ledger_check import Runs, check_entries, check_runs, count_states
from indexer.verify.object_reader import ObjectReader
from indexer.verify.row_check import StoredRows, match_rows
from indexer.verify.segment_check import PLACE_COLUMNS, check_field, check_parts, check_rows, expired_rows, place_columns
from indexer.verify.spill import WINDOW_ROWS, Spill
from vectors.inverted_lists import read_lists

ATTEMPTS = 8
"""How often a partition is begun again because its objects were compacted away while it was read."""
TOMBSTONE_DAYS = 31
_LOWEST, _HIGHEST = -(2**63), 2**63
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class Task:
    """What is checked and where.

    `expire_at_us`: rows with an event time at or before it have expired, None where nothing does. `is_young`: no delete of the collection can have
    been forgotten yet. `codecs` are the index's quantizers.
    """

    store: ObjectStore
    collection: CollectionRecord
    index: IndexRecord
    partition: int
    folder: Path
    expire_at_us: int | None
    is_young: bool
    codecs: IndexCodecs
    tell: Callable[[str, int, int], None]

    @property
    def chain(self) -> ManifestChain:
        """The partition's chain of manifests."""
        keys = CollectionKeys(self.collection.name, self.collection.incarnation).index(self.index.name)
        return ManifestChain(self.store, keys.partition(self.partition))


@dataclass
class PartitionAudit:
    """What was seen of one partition.

    `states` counts items by state, `gaps` and `lost` are intervals of media offsets, `rejects` the runs of items that must have a dead letter,
    `generations` the (field, number)s that its parts are coded in.
    """

    index: str
    partition: int
    manifest: Manifest | None = None
    walked: Walked[Manifest] = field(default_factory=Walked)
    states: Counter[str] = field(default_factory=Counter)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)
    rejects: list[LedgerRun] = field(default_factory=list)
    generations: set[tuple[str, int]] = field(default_factory=set)
    unread_ledgers: list[tuple[int, int]] = field(default_factory=list)
    objects: int = 0
    size_bytes: int = 0
    attempts: int = 1


def check_partition(task: Task, ids: IdVersions, findings: Findings) -> PartitionAudit:
    """Read and judge a partition; begun again while compaction takes its objects away.

    Raises
    ------
    SnapshotError
        It was compacted faster than it could be read, `ATTEMPTS` times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        own, mark = Findings(), ids.mark()
        check = _PartitionCheck(task, ids, own)
        try:
            audit = check.run()
        except SnapshotError:
            ids.rewind(mark)
            continue
        finally:
            check.close()
        audit.attempts = attempt
        findings.join(own)
        return audit
    raise SnapshotError(
        f"{task.chain.keys.prefix}: objects were compacted away {ATTEMPTS} times while they were read",
        hint="run verify again when less is written, or stop compaction for that time",
    )


def manifest_keys(manifest: Manifest) -> Iterator[str]:
    """Keys of all objects that a manifest names."""
    for segment in manifest.segments:
        yield from (entry.key for entry in segment.parts.values())
    yield from (entry.key for entry in manifest.deletes)
    yield from (entry.object.key for entry in manifest.ledger)


class _PartitionCheck:
    def __init__(self, task: Task, ids: IdVersions, findings: Findings) -> None:
        self.task, self.ids, self.findings = task, ids, findings
        self.audit = PartitionAudit(task.index.name, task.partition)
        self.reader = ObjectReader(task.store, findings, self._is_named, lambda size: self._tell(), task.index.name, task.partition)
        self.deleted: dict[str, BitMap] = defaultdict(BitMap)
        self.places: Spill | None = None
        self.keys: list[str] = []
        self.unknown: list[tuple[int, int]] = []
        self.total = 0

    def close(self) -> None:
        if self.places is not None:
            self.places.close()
        shutil.rmtree(self.task.folder, ignore_errors=True)

    def run(self) -> PartitionAudit:
        audit, task = self.audit, self.task
        audit.walked = walk_chain(task.chain, manifest_keys, self.findings, task.index.name)
        if audit.walked.head is None:
            self._add(Finding("manifest_missing", "the partition has no manifest that can be read", object=task.chain.keys.manifests_prefix))
            return audit
        manifest = audit.manifest = audit.walked.head.manifest
        self._check_identity(manifest)
        self.total = sum(1 for _ in manifest_keys(manifest))
        self.places = Spill(task.folder, PLACE_COLUMNS, "offset")
        for entry in manifest.deletes:
            self._deletes(entry)
        for segment in manifest.segments:
            self._segment(segment)
        if task.collection.retention_seconds is not None or self.unknown or (manifest.epochs.compactor and not task.is_young):
            self.ids.without_causes.add(task.partition)
        self._ledgers(manifest, self.places)
        audit.objects, audit.size_bytes = self.reader.objects, self.reader.size_bytes
        return audit

    def _add(self, finding: Finding) -> None:
        self.findings.add(replace(finding, index=self.task.index.name, partition=self.task.partition))

    def _tell(self) -> None:
        self.task.tell(f"{self.task.index.name} partition {self.task.partition}", self.reader.objects, self.total)

    def _is_named(self, key: str) -> bool:
        try:
            newest = self.task.chain.head()
        except (CorruptError, ValueError):
            return True  # the chain has its own finding
        return newest is not None and key in set(manifest_keys(newest.manifest))

    def _check_identity(self, manifest: Manifest) -> None:
        record, index, key = self.task.collection, self.task.index, self.task.chain.keys.manifest(manifest.version)
        expected = (record.incarnation, index.name, record.cluster_id, record.source_topic_id, index.vectors_topic_id)
        found = (manifest.incarnation, manifest.index, manifest.cluster_id, manifest.media_topic_id, manifest.vectors_topic_id)
        if expected != found:
            self._add(Finding("manifest_out_of_order", f"it was written for {found}, the collection is {expected}", object=key))

    def _parsed(self, parse: Callable[[], _Parsed], key: str, start_offset: int | None = None, next_offset: int | None = None) -> _Parsed | None:
        """What a parser makes of an object's bytes, which are those that were written; None with a finding where it refuses them."""
        try:
            return parse()
        except (CorruptError, KeyError, pa.ArrowException) as error:
            what = error.message.removeprefix(f"{key}: ") if isinstance(error, CorruptError) else repr(error)[:200]
            self._add(Finding("object_unreadable", what, object=key, start_offset=start_offset, next_offset=next_offset))
            return None

    # ---- deletes and segments ----------------------------------------------------------------------------------------

    def _deletes(self, entry: ObjectEntry) -> None:
        data = self.reader.read(entry)
        delta = None if data is None else self._parsed(lambda: decode_delete_delta(data, entry.key), entry.key)
        if delta is None:
            self.ids.without_deletes.add(self.task.partition)
            return
        for segment_id, rows in delta.bitmaps.items():
            self.deleted[segment_id] |= rows
        self.ids.add_tombstones(self.task.partition, delta.tombstones)

    def _segment(self, segment: SegmentEntry) -> None:
        span = segment.start_offset, segment.next_offset
        for finding in check_parts(segment, self.task.index):
            self._add(finding)
        entry = segment.parts.get(ROWS_PART)
        data = None if entry is None else self.reader.read(entry, *span)
        if entry is None or data is None or not self._rows(segment, entry, data):
            self.unknown.append(span)
            self.audit.states["unknown"] += segment.rows
        for record in self.task.index.fields:
            part = segment.parts.get(FIELD_PART_PREFIX + record.name)
            data = None if part is None else self.reader.read(part, *span)
            if part is None or data is None:
                continue
            found = self._parsed(lambda d=data, r=record, p=part: read_field_part(d, r, p.key), part.key, *span)  # type: ignore[misc]
            if found is None:
                continue
            for finding in check_field(segment, part.key, found):
                self._add(finding)
            if isinstance(found, CodedPart):
                self.audit.generations.add((record.name, found.generation))
                self._parsed(lambda c=found, r=record, p=part: self._read_lists(c, r, p.key), part.key, *span)  # type: ignore[misc]

    def _read_lists(self, part: CodedPart, field: FieldRecord, key: str) -> None:
        """Hold a part's codes and lists against its generation and rows; a generation that cannot be read has its own finding."""
        try:
            quantizer = self.task.codecs.quantizer(field, part.generation)
        except CorruptError:
            return
        check_quantizer(part, quantizer, key)
        read_lists(part.lists, quantizer, part.rows, key)

    def _rows(self, segment: SegmentEntry, entry: ObjectEntry, data: bytes) -> bool:
        """Take a segment's rows; False where they cannot be read."""
        assert self.places is not None, "opened before the first segment"
        part = self._parsed(lambda: read_rows_part(data, entry.key), entry.key, segment.start_offset, segment.next_offset)
        if part is None:
            return False
        deleted = self.deleted[segment.segment_id]
        ids, rows = part.batch.column("id"), part.batch.num_rows
        hashes = None if ids.null_count else id_hashes(ids.to_pylist())
        for finding in check_rows(segment, part, deleted, hashes):
            self._add(finding)
        if hashes is None:
            return False
        self.places.add(place_columns(part, len(self.keys)))
        self.keys.append(entry.key)
        self.ids.add_rows(self.task.partition, entry, part, deleted, hashes)
        live = rows - (deleted.rank(rows - 1) if rows else 0)
        expired = expired_rows(part, deleted, self.task.expire_at_us)
        self.audit.states.update({"indexed": live - expired, "expired": expired})
        return True

    # ---- ledgers -----------------------------------------------------------------------------------------------------

    def _ledgers(self, manifest: Manifest, places: Spill) -> None:
        for finding in check_entries(manifest.ledger, manifest.origin_offset, manifest.checkpoint.media_offset):
            self._add(finding)
        at = _LOWEST
        for entry in sorted(manifest.ledger, key=lambda one: (one.start_offset, one.next_offset)):
            if entry.start_offset > at:
                self._match(Runs.of(()), places, at, entry.start_offset)
            self._ledger(entry, places, max(at, entry.start_offset))
            at = max(at, entry.next_offset)
        self._match(Runs.of(()), places, at, _HIGHEST)

    def _ledger(self, entry: LedgerEntry, places: Spill, start_offset: int) -> None:
        span = entry.start_offset, entry.next_offset
        data = self.reader.read(entry.object, *span)
        decoded = None if data is None else self._parsed(lambda: decode_ledger(data, entry.object.key), entry.object.key, *span)
        if decoded is None:
            self.audit.unread_ledgers.append(span)
            return
        runs = Runs.of(decoded)
        for finding in check_runs(runs, entry):
            self._add(finding)
        counts = count_states(decoded)
        self.audit.states.update({state: count for state, count in counts.items() if state != "gap"})
        self.audit.gaps += [(run.start_offset, run.next_offset) for run in decoded if run.verdict == "gap"]
        self.audit.lost += [(run.start_offset, run.next_offset) for run in decoded if run.verdict == "lost"]
        self.audit.rejects += [run for run in decoded if run.rejects or run.partial]
        items = int(((runs.next - runs.start) * (runs.next_item - runs.start_item)).sum())
        step = max(1, WINDOW_ROWS * (entry.next_offset - start_offset) // max(items, 1))
        for at in range(start_offset, entry.next_offset, step):
            end = min(at + step, entry.next_offset)
            self._match(runs.within(at, end), places, at, end)

    def _match(self, runs: Runs, places: Spill, start_offset: int, next_offset: int) -> None:
        columns = places.between(start_offset, next_offset)
        stored = StoredRows(columns["offset"], columns["item"], columns["segment"])
        for finding in match_rows(runs, stored, self.keys, self.unknown):
            self._add(finding)
