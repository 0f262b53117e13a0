"""The compactor of one partition: neighbouring segments, ledgers and delete deltas become one of each. Read `compact` and `_change` first.

    look -> choose (pure) -> read rows, drop dead ones -> upload rows, fields, ledger -> validate anew and commit

Takes: a partition under a claim of its own. Gives: manifests with fewer, cleaner objects. Owns: one claim, prefix `m` of keys.
Never: moves the checkpoint; deletes an object; believes at the commit what it read at the start.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from backends.catalog.objects import download, upload
from contracts.deletes import encode_delete_delta
from contracts.errors import CorruptError, SnapshotError
from contracts.ledger import decode_ledger, encode_ledger
from contracts.manifest import LedgerEntry, Manifest, ObjectEntry, ReadManifest, SegmentEntry
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, read_field_part, rows_schema, write_rows_part
from indexer.commit import Committer
from indexer.committed_deletes import CommittedDeletes
from indexer.compact_rows import CompactedRows, KeptRows, compact_rows
from indexer.compacted_deletes import merged_deletes
from indexer.compacted_fields import FieldInput, compacted_field
from indexer.compaction_policy import Compaction, CompactionRules, Piece, choose
from indexer.index_codecs import IndexCodecs
from indexer.ledger_rewrite import without_rows
from indexer.partition_source import PartitionSource
from indexer.purge_requests import PartitionPurges
from indexer.segment_frame import SegmentFrame
from indexer.ulids import UlidSource

logger = logging.getLogger(__name__)
IDLE_SECONDS = 60.0
"""How often at most rows are looked at for expiry, and purge requests are listed, where nothing is committed: a listing costs a dozen reads."""


@dataclass(frozen=True, slots=True)
class PieceParts:
    """What a piece of the policy stands for: a ledger entry and the segments of its offsets."""

    ledger: LedgerEntry
    segments: tuple[SegmentEntry, ...]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A compaction that is uploaded and waits for its commit; `entry` is None where no row is left."""

    commit_id: str
    inputs: tuple[KeptRows, ...]
    old_ledgers: tuple[LedgerEntry, ...]
    entry: SegmentEntry | None
    ledger: LedgerEntry
    newest_ulid: str


class PartitionCompactor:
    """Compacts one partition of one index under one claim.

    Parameters
    ----------
    source : PartitionSource
        The partition.
    writer : str
        Name of this writer, unique per process.
    ulids : UlidSource
        Mints ids in publish order.
    codecs : IndexCodecs
        The index's quantizers.
    """

    def __init__(self, source: PartitionSource, writer: str, ulids: UlidSource, codecs: IndexCodecs) -> None:
        self.source, self.engines, self.ulids, self.codecs = source, source.engines, ulids, codecs
        self.collection, self.index = source.collection, source.index
        self.committer = Committer(source.chain, "compactor", writer, self.engines.clock, self._count_conflict)
        self.deletes = CommittedDeletes(self.engines.store)
        self.purges = PartitionPurges(self.engines.store, source.keys)
        self._idle_version, self._idle_until = 0, 0.0
        settings, retention = self.engines.settings, self.collection.retention_seconds
        self.rules = CompactionRules(
            settings.compact_fan_in,
            settings.compact_bytes,
            settings.compact_dead_share,
            None if retention is None else retention * 1_000_000,
        )

    def start(self) -> None:
        """Claim the partition: every older compactor of it is fenced.

        Raises
        ------
        DataLossError
            The topics are not the ones that the manifest was written for.
        """
        self.source.head()  # identity first, as a builder does
        self.committer.claim()

    def compact(self) -> ReadManifest | None:
        """Do the next compaction that is due; None where none is.

        Raises
        ------
        FencedError
            A newer compactor owns the partition: drop this one.
        SnapshotError
            Inputs went away meanwhile: call again.
        UnavailableError
            Store or outcome unknown: call again; whatever landed is a good manifest, and the rest is garbage.
        """
        manifest, settings = self.committer.look().manifest, self.engines.settings
        now = self.engines.clock.monotonic_seconds()
        if manifest.version == self._idle_version and now < self._idle_until:
            return None
        self._idle_version = 0
        self.deletes.load(manifest)
        self.purges.load(manifest, self.deletes)
        parts = pieces_of(manifest)
        now_us = int(self.engines.clock.now_seconds() * 1_000_000)
        plan = choose([self._piece(each) for each in parts], self.rules, now_us)
        if plan is None:
            self._idle_version, self._idle_until = manifest.version, now + max(settings.maintain_seconds, min(IDLE_SECONDS, settings.gc_seconds))
            return None
        with self.engines.metrics.stage.labels("compact").time():
            rewritten = self._rewrite(manifest, parts[plan.first : plan.end], now_us)
            read = self.committer.commit(None, lambda head: self._change(head, rewritten), rewritten.commit_id)
        self._tell(read.manifest, plan, rewritten)
        return read

    def _piece(self, parts: PieceParts) -> Piece:
        times = [(each.min_event_time_us, each.max_event_time_us) for each in parts.segments]
        return Piece(
            size_bytes=parts.ledger.object.size_bytes + sum(each.size_bytes for each in parts.segments),
            rows=sum(each.rows for each in parts.segments),
            dead_rows=sum(len(self.deletes.deleted(each.segment_id)) for each in parts.segments),
            min_event_time_us=min((low for low, _ in times if low is not None), default=None),
            max_event_time_us=None if None in [high for _, high in times] else max((high for _, high in times if high is not None), default=None),
            is_purged=any(each.segment_id in self.purges.segments for each in parts.segments),
        )

    # ---- rewrite -----------------------------------------------------------------------------------------------------

    def _rewrite(self, manifest: Manifest, parts: Sequence[PieceParts], now_us: int) -> Rewritten:
        retention_us = self.rules.retention_us
        segments = [segment for each in parts for segment in each.segments]
        schema = rows_schema(self.collection.attributes)
        rows = compact_rows(self.engines.store, segments, self.deletes, None if retention_us is None else now_us - retention_us, schema)
        segment_id, inputs = self.ulids.mint(), tuple(rows.inputs)
        entry = self._upload_segment(segment_id, manifest, rows, inputs) if rows.batch.num_rows else None
        ledger_ulid = self.ulids.mint()
        old = tuple(each.ledger for each in parts)
        runs = [run for each in old for run in decode_ledger(download(self.engines.store, each.object), each.object.key)]
        ledger = LedgerEntry(
            object=self._upload(ledger_ulid, "ledger", encode_ledger(without_rows(runs, rows.dropped, old[0].object.key))),
            start_offset=old[0].start_offset,
            next_offset=old[-1].next_offset,
        )
        for verdict in ("superseded", "deleted", "expired"):
            count = sum(found == verdict for found in rows.dropped.values())
            self.engines.metrics.records.labels(self.collection.name, "maintain", verdict).inc(count)
        return Rewritten(self.ulids.mint(), inputs, old, entry, ledger, ledger_ulid)

    def _upload_segment(self, segment_id: str, manifest: Manifest, rows: CompactedRows, inputs: Sequence[KeptRows]) -> SegmentEntry:
        start_offset, next_offset = inputs[0].segment.start_offset, inputs[-1].segment.next_offset
        frame = SegmentFrame.of(rows.batch, start_offset, next_offset, self.collection.schema_version)
        parts = {ROWS_PART: self._upload(segment_id, ROWS_PART, write_rows_part(rows.batch, frame.meta(self.source.partition)))}
        rows.batch = pa.RecordBatch.from_pylist([], schema=rows.batch.schema)  # one part in memory at a time
        for field in self.index.fields:
            name = FIELD_PART_PREFIX + field.name
            found = []
            for each in inputs:
                part = each.segment.parts.get(name)
                read = None if part is None else read_field_part(download(self.engines.store, part), field, part.key)
                found.append(FieldInput(read, each.kept, each.base, name if part is None else part.key))
            chosen = self.codecs.chosen(field, manifest)
            data = compacted_field(field, found, frame.rows, chosen, lambda number, f=field: self.codecs.quantizer(f, number))  # type: ignore[misc]
            parts[name] = self._upload(segment_id, name, data)
        return frame.entry(segment_id, parts)

    def _upload(self, ulid: str, part: str, data: bytes) -> ObjectEntry:
        return upload(self.engines.store, self.source.keys.part("m", self.committer.epoch, ulid, part), data)

    # ---- commit ------------------------------------------------------------------------------------------------------

    def _change(self, manifest: Manifest, rewritten: Rewritten) -> Mapping[str, Any]:
        """Fields of the next manifest, for exactly this one before it: inputs and their deletes are looked at anew.

        A field part of an input may have been re-encoded meanwhile: its rows are the same, so what was made of the flat one is right.
        """
        segments = _replaced(
            manifest.segments,
            [each.segment.segment_id for each in rewritten.inputs],
            [segment.segment_id for segment in manifest.segments],
            rewritten.entry,
        )
        ledgers = [entry.object.key for entry in manifest.ledger]
        ledger = _replaced(manifest.ledger, [entry.object.key for entry in rewritten.old_ledgers], ledgers, rewritten.ledger)
        deletes, newest = self._deletes(manifest, rewritten)
        return {
            "segments": segments,
            "ledger": ledger,
            "deletes": deletes,
            "published": self.committer.published(manifest.published, newest),
        }

    def _deletes(self, manifest: Manifest, rewritten: Rewritten) -> tuple[tuple[ObjectEntry, ...], str]:
        """Delta entries of the next manifest, and the newest ULID that it names."""
        self.deletes.load(manifest)
        segment_id = None if rewritten.entry is None else rewritten.entry.segment_id
        now_us = int(self.engines.clock.now_seconds() * 1_000_000)
        found = merged_deletes(manifest, self.deletes, rewritten.inputs, segment_id, now_us)
        kept = tuple(manifest.deletes[at] for at in found.kept)
        if found.merged is None:
            return kept, rewritten.newest_ulid
        ulid = self.ulids.mint()
        return (*kept, self._upload(ulid, "deletes", encode_delete_delta(found.merged))), ulid

    def _tell(self, manifest: Manifest, plan: Compaction, rewritten: Rewritten) -> None:
        self.engines.metrics.compactions.labels(self.collection.name, plan.reason).inc()
        logger.info(
            "version %d of partition %d: %d segments and %d ledgers became one (%s)",
            manifest.version,
            self.source.partition,
            len(rewritten.inputs),
            len(rewritten.old_ledgers),
            plan.reason,
        )

    def _count_conflict(self) -> None:
        self.engines.metrics.commit_conflicts.labels(self.collection.name).inc()


def _replaced(entries: Sequence[Any], gone: Sequence[str], names: Sequence[str], new: Any) -> tuple[Any, ...]:
    """Entries with `new` in place of the ones named `gone`, which must all be there, side by side."""
    if not gone:
        return tuple(entries)
    first = names.index(gone[0]) if gone[0] in names else -1
    if first < 0 or list(names[first : first + len(gone)]) != list(gone):
        raise SnapshotError("an input of the compaction was compacted away", hint="take the newest manifest")
    return (*entries[:first], *(() if new is None else (new,)), *entries[first + len(gone) :])


def pieces_of(manifest: Manifest) -> list[PieceParts]:
    """Ledger entries with the segments of their offsets.

    Raises
    ------
    CorruptError
        A segment's offsets are not those of whole ledger entries.
    """
    out, segments = [], list(manifest.segments)
    for ledger in manifest.ledger:
        end = sum(1 for segment in segments if segment.next_offset <= ledger.next_offset)
        out.append(PieceParts(ledger, tuple(segments[:end])))
        segments = segments[end:]
    if segments or any(segment.start_offset < each.ledger.start_offset for each in out for segment in each.segments):
        raise CorruptError(f"manifest {manifest.version} of partition {manifest.partition}: a segment has offsets that its ledger does not tile")
    return out
