"""The builder of one partition: accepted batches in, committed segments out. Read `feed` and `commit` first.

    accept (chain rule) -> grow -> close -> seal: decide, code, upload parts -> commit the manifest -> announce

Takes: records of the vectors topic from the manifest's checkpoint on. Gives: segments, delete deltas, ledgers, manifests.
Owns: one claim, one growing segment and one that is being sealed, the exchange of a flat part for a coded one.
Never: cuts inside a batch; commits what does not begin exactly at the checkpoint; seals two segments at a time.

`seal` may run in another thread than the rest, one call at a time: it takes what `close_segment` put aside, and what it leaves is `pending`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from backends.catalog.objects import upload
from contracts.chain import BatchSpan, Chain
from contracts.deletes import DeleteDelta, Tombstone, encode_delete_delta
from contracts.errors import SnapshotError
from contracts.item import VersionOrder, id_hash
from contracts.ledger import encode_ledger
from contracts.log import LogRecord
from contracts.manifest import Checkpoint, LedgerEntry, Manifest, ObjectEntry, ReadManifest, SegmentEntry
from contracts.media_patch import BaseRow
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, write_rows_part
from contracts.vectors_batch import RUN_OPS, batch_schema, decode_batch, read_headers
from indexer.commit import Committer
from indexer.field_parts import field_part
from indexer.index_codecs import IndexCodecs
from indexer.live_rows import LiveRows
from indexer.partition_source import PartitionSource
from indexer.recode import RecodedPart
from indexer.seal import SealedSegment, seal
from indexer.seal_policy import should_seal
from indexer.segment_frame import SegmentFrame
from indexer.ulids import UlidSource
from vectors.quantizer import Quantizer

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class GrowingSegment:
    """Accepted rows that are in no committed segment yet."""

    started_at: float
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ClosedSegment:
    """A growing segment that takes no more rows: it is being sealed, or waits to be.

    `manifest` was the newest one when it was closed; the segment covers the log from `base` to `checkpoint`.
    """

    growing: GrowingSegment
    manifest: Manifest
    base: Checkpoint
    checkpoint: Checkpoint


@dataclass(slots=True)
class PendingCommit:
    """A sealed segment on its way into the manifest; kept until its outcome is known.

    Its parts are uploaded once; only the delete delta is made anew for each manifest that is tried.
    """

    commit_id: str
    sealed: SealedSegment
    base: Checkpoint
    checkpoint: Checkpoint
    entry: SegmentEntry | None
    ledger: LedgerEntry
    newest_ulid: str
    generation: Mapping[str, int]
    coded: frozenset[str]


class PartitionBuilder:
    """Builds one partition of one index under one claim.

    Parameters
    ----------
    source : PartitionSource
        The partition.
    writer : str
        Name of this writer, unique per process.
    ulids : UlidSource
        Mints ids in publish order.
    codecs : IndexCodecs, optional
        The index's quantizers, shared by the builders of one process.
    """

    def __init__(self, source: PartitionSource, writer: str, ulids: UlidSource, codecs: IndexCodecs | None = None) -> None:
        self.source, self.engines, self.ulids = source, source.engines, ulids
        self.collection, self.index = source.collection, source.index
        self.schema = batch_schema(self.index, self.collection.attributes)
        self.committer = Committer(source.chain, "builder", writer, self.engines.clock, self._count_conflict)
        self.codecs = codecs or IndexCodecs(self.engines.store, source.collection, source.index)
        self.live = LiveRows(self.engines.store, self.codecs)
        self.coded: set[str] = set()
        self.growing: GrowingSegment | None = None
        self.closed: ClosedSegment | None = None
        self.pending: PendingCommit | None = None

    def start(self) -> int:
        """Claim the partition and return the vectors offset to read from.

        Raises
        ------
        DataLossError
            The topics are not the ones that the manifest was written for.
        SnapshotError
            The vectors topic no longer holds the checkpoint's batch.
        """
        self.source.head()  # identity first: a claim on another cluster's manifest would fence the real builder
        manifest = self.committer.claim().manifest
        self.codecs.load(manifest)
        self.live.load(manifest)
        self._begin(manifest)
        start_offset = self.engines.log.bounds(self.index.vectors_topic)[self.source.partition].start_offset
        if self.checkpoint.vectors_offset < start_offset:
            raise SnapshotError(
                f"{self.index.vectors_topic}/{self.source.partition}: the checkpoint {self.checkpoint.vectors_offset} is below the log's start",
                hint="take the newest manifest",
            )
        return self.checkpoint.vectors_offset

    def _begin(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.checkpoint = manifest.checkpoint
        self.vectors_offset = manifest.checkpoint.vectors_offset
        self.chain = Chain(manifest.incarnation, manifest.media_topic_id, manifest.checkpoint.media_offset)
        self.growing, self.closed, self.pending = None, None, None

    # ---- grow --------------------------------------------------------------------------------------------------------

    def feed(self, record: LogRecord) -> None:
        """Take the next record of the vectors topic: accept, trim, grow.

        Raises
        ------
        CorruptError
            The record is damaged or from a newer version.
        """
        self.vectors_offset = record.offset + 1
        found = read_headers(record)
        if not isinstance(found, BatchSpan):
            return
        accepted = self.chain.accept(found)
        if accepted is None:
            self.engines.metrics.records.labels(self.collection.name, "index", "dropped").inc()
            return
        batch = trim(decode_batch(record, self.schema), accepted.start_offset)
        if self.growing is None:
            self.growing = GrowingSegment(self.engines.clock.monotonic_seconds())
        self.growing.batches.append(batch)
        self.growing.rows += batch.num_rows
        self.growing.size_bytes += len(record.value or b"")
        self.engines.metrics.records.labels(self.collection.name, "index", "accepted").inc(batch.num_rows)

    def is_due(self) -> bool:
        """True when the growing segment should be sealed, or one before it still waits for its seal or its commit."""
        if self.is_committing:
            return True
        growing = self.growing
        if growing is None:
            return False
        age = self.engines.clock.monotonic_seconds() - growing.started_at
        return should_seal(growing.rows, growing.size_bytes, age, self.engines.settings)

    @property
    def is_committing(self) -> bool:
        """True from the moment when a segment takes no more rows until it is committed."""
        return self.closed is not None or self.pending is not None

    @property
    def is_full(self) -> bool:
        """True when the growing segment has its size while the one before it is not committed: feed nothing more, memory is bounded so."""
        growing = self.growing
        return growing is not None and self.is_committing and should_seal(growing.rows, growing.size_bytes, 0, self.engines.settings)

    @property
    def started_at(self) -> float:
        """When the oldest rows that are in no manifest came, by the monotonic clock; infinity where there are none."""
        oldest = self.growing if self.closed is None else self.closed.growing
        return math.inf if oldest is None else oldest.started_at

    # ---- seal and commit ---------------------------------------------------------------------------------------------

    def close_segment(self) -> bool:
        """Put the growing segment aside for `seal`; what is fed from now on grows into the next one. False where there is none to be sealed."""
        if self.growing is not None and not self.is_committing:
            end = Checkpoint(vectors_offset=self.vectors_offset, media_offset=self.chain.expected)
            self.closed, self.growing = ClosedSegment(self.growing, self.manifest, self.checkpoint, end), None
        return self.closed is not None

    def seal(self) -> None:
        """Decide, code and upload the closed segment; it is `pending` then. Any thread may do so, while the others feed.

        Raises
        ------
        UnavailableError
            The store does not answer: the segment is still closed; call again.
        """
        closed = self.closed
        if closed is not None:
            self.pending = self._seal(closed)
            self.closed = None

    def commit(self) -> ReadManifest | None:
        """Commit what is sealed (the outcome of an earlier try may be unknown), after sealing what has grown; None when there is nothing.

        Raises
        ------
        FencedError
            A newer builder owns the partition: drop this one.
        UnavailableError
            Store or outcome unknown: everything is kept; call again.
        """
        if self.pending is None and self.close_segment():
            self.seal()
        if self.pending is None:
            return None
        pending = self.pending
        with self.engines.metrics.commit.labels(self.collection.name).time():
            read = self.committer.commit(pending.base, lambda manifest: self._change(manifest, pending), pending.commit_id)
        self.coded |= pending.coded
        self._take(read.manifest)
        self.checkpoint = pending.checkpoint
        self.pending = None
        logger.info("committed version %d of partition %d: %d rows", read.manifest.version, self.source.partition, pending.sealed.rows.num_rows)
        return read

    def replace_part(self, part: RecodedPart) -> ReadManifest | None:
        """Commit a segment's field part in the codes of a generation in place of the flat one; nothing else of the partition changes.

        Returns
        -------
        ReadManifest or None
            None where an object with a newer ULID was published since the part was uploaded, or the partition was claimed again: garbage collection
            may take the part for forgotten, so upload it again.

        Raises
        ------
        SnapshotError
            The segment was compacted away, or its part is another one by now; the newest manifest is loaded.
        FencedError, UnavailableError
            As `commit`. After an unknown outcome drop the part: either manifest is a good one.
        """
        name = FIELD_PART_PREFIX + part.field.name
        if part.epoch != self.committer.epoch or self.manifest.published.get(self.committer.claim_name, "") > part.ulid:
            return None

        def change(manifest: Manifest) -> Mapping[str, Any]:
            found = next((segment for segment in manifest.segments if segment.segment_id == part.segment_id), None)
            if found is None or found.parts.get(name) != part.replaced:
                self._take(manifest)
                raise SnapshotError(f"segment {part.segment_id}: its part {name} is another one by now", hint="take the newest manifest")
            replaced = found.model_copy(update={"parts": {**found.parts, name: part.entry}})
            return {
                "segments": tuple(replaced if segment is found else segment for segment in manifest.segments),
                "generation": {part.field.name: part.generation, **manifest.generation},
                "published": self.committer.published(manifest.published, part.ulid),
            }

        read = self.committer.commit(self.checkpoint, change, self.ulids.mint())
        self.coded.add(part.entry.key)
        self._take(read.manifest)
        logger.info("version %d of partition %d: %s of a segment is coded", read.manifest.version, self.source.partition, name)
        return read

    def look_again(self) -> None:
        """Take the newest manifest, since a segment of the last one was compacted away.

        Raises
        ------
        UnavailableError
            The store does not answer.
        """
        self._take(self.committer.look().manifest)

    def _take(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.coded &= {entry.key for segment in manifest.segments for entry in segment.parts.values()}

    def _seal(self, closed: ClosedSegment) -> PendingCommit:
        sealed = self._decide(closed)
        segment_id, checkpoint = self.ulids.mint(), closed.checkpoint
        chosen = {record.name: quantizer for record in self.index.fields if (quantizer := self.codecs.chosen(record, closed.manifest))}
        entry = self._upload_segment(segment_id, sealed, closed, chosen) if sealed.rows.num_rows else None
        ledger_ulid = self.ulids.mint()
        ledger = LedgerEntry(
            object=self._upload(ledger_ulid, "ledger", encode_ledger(sealed.ledger)),
            start_offset=closed.base.media_offset,
            next_offset=checkpoint.media_offset,
        )
        generation = {name: quantizer.number for name, quantizer in chosen.items()}
        coded = frozenset(() if entry is None else (entry.parts[FIELD_PART_PREFIX + name].key for name in chosen))
        return PendingCommit(self.ulids.mint(), sealed, closed.base, checkpoint, entry, ledger, ledger_ulid, generation, coded)

    def _decide(self, closed: ClosedSegment) -> SealedSegment:
        try:
            return self._seal_on(closed.manifest, closed.growing)
        except SnapshotError:  # a segment with an older row was compacted away; the newest manifest has the row elsewhere
            return self._seal_on(self.source.head().manifest, closed.growing)

    def _seal_on(self, manifest: Manifest, growing: GrowingSegment) -> SealedSegment:
        def prior(ids: Sequence[str]) -> Sequence[VersionOrder | None]:
            self.live.load(manifest)  # only where it is asked for: most seals hold neither replays nor patches
            return self.live.prior(ids)

        def bases(ids: Sequence[str]) -> Sequence[BaseRow | None]:
            self.live.load(manifest)
            return self.live.bases(ids, self.collection, self.index)

        return seal(growing.batches, self.collection, self.index, prior, bases)

    def _upload_segment(self, segment_id: str, sealed: SealedSegment, closed: ClosedSegment, quantizers: Mapping[str, Quantizer]) -> SegmentEntry:
        offsets = closed.base.media_offset, closed.checkpoint.media_offset
        frame = SegmentFrame.of(sealed.rows, *offsets, self.collection.schema_version)
        rows_part = write_rows_part(sealed.rows, frame.meta(self.source.partition), sealed.ids)
        self.live.remember(segment_id, sealed.ids)
        parts = {ROWS_PART: self._upload(segment_id, ROWS_PART, rows_part)}
        for record in self.index.fields:
            name = FIELD_PART_PREFIX + record.name
            quantizer = quantizers.get(record.name)
            data, statistics = field_part(record, *sealed.vectors[record.name], quantizer)
            parts[name] = self._upload(segment_id, name, data)
            if quantizer is not None:
                self.engines.metrics.set_coding(self.collection.name, record.name, quantizer.number, statistics)
        return frame.entry(segment_id, parts)

    def _upload(self, ulid: str, part: str, data: bytes) -> ObjectEntry:
        return upload(self.engines.store, self.source.keys.part("b", self.committer.epoch, ulid, part), data)

    def _change(self, manifest: Manifest, pending: PendingCommit) -> Mapping[str, Any]:
        """Fields of the next manifest, for exactly this one before it."""
        segments, deletes = manifest.segments, manifest.deletes
        newest = pending.newest_ulid
        bits = self.live.delete_bits(manifest, pending.sealed.touched)
        if bits or pending.sealed.tombstones:
            now_us = int(self.engines.clock.now_seconds() * 1_000_000)
            tombstones = [Tombstone(id_hash(i), offset, item, now_us, origin, at) for i, offset, item, origin, at in pending.sealed.tombstones]
            newest = self.ulids.mint()
            deletes = (*deletes, self._upload(newest, "deletes", encode_delete_delta(DeleteDelta(bits, tombstones))))
        if pending.entry is not None:
            segments = (*segments, pending.entry)
        return {
            "segments": segments,
            "deletes": deletes,
            "ledger": (*manifest.ledger, pending.ledger),
            "checkpoint": pending.checkpoint,
            "schema_version": self.collection.schema_version,
            "generation": {**pending.generation, **manifest.generation},
            "published": self.committer.published(manifest.published, newest),
        }

    def _count_conflict(self) -> None:
        self.engines.metrics.commit_conflicts.labels(self.collection.name).inc()


def trim(batch: pa.RecordBatch, start_offset: int) -> pa.RecordBatch:
    """Drop rows below `start_offset`; a gap or lost run that reaches across it is cut at it."""
    offsets = batch.column("offset")
    if batch.num_rows == 0 or pc.min(offsets).as_py() >= start_offset:
        return batch
    runs = pc.is_in(batch.column("op"), pa.array(RUN_OPS))
    ends = pc.add(offsets, pc.if_else(runs, batch.column("item").cast(pa.int64()), 1))
    kept = batch.filter(pc.greater(ends, start_offset))
    begin = pc.max_element_wise(kept.column("offset"), start_offset)
    cut = pc.subtract(begin, kept.column("offset"))
    is_run = pc.is_in(kept.column("op"), pa.array(RUN_OPS))
    items = pc.if_else(is_run, pc.subtract(kept.column("item").cast(pa.int64()), cut), kept.column("item").cast(pa.int64())).cast(pa.int32())
    columns = {name: kept.column(name) for name in kept.schema.names}
    columns["offset"] = pc.if_else(is_run, begin, kept.column("offset"))
    columns["item"] = items
    return pa.RecordBatch.from_arrays([columns[name] for name in kept.schema.names], schema=kept.schema)
