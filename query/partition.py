"""One partition of one index on this node: the only place where its view changes.

Two writers meet here under one lock: the tail reader brings records, the hot loader brings manifests. Both end by publishing a new view. The rules
are the protocol model's (`node` in its specification): new segments are loaded before the tail is cut; at a swap, expected offset and
vectors position become the maximum of both; tail rows and tail deletes mask rows of all segments, later ones too.

While a partition starts, it may be served segment by segment; its tail is not read before, since a patch needs its base row. Rows are coded, here
and by `query.coding`, without anybody seeing it: a view names rows by the codes only that were findable before it was published.

Takes: records, loaded manifests, codes. Gives: the newest `PartitionView`. Owns: chain, tail and masks. Never: waits for I/O under its lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts.chain import BatchSpan, Chain
from contracts.collection import CollectionRecord, IndexRecord
from contracts.errors import HeadwaterError
from contracts.item import VersionOrder, id_hash, id_hashes
from contracts.log import LogRecord
from contracts.media_patch import BaseRow
from contracts.vectors_batch import CommitNotice, batch_schema, decode_batch, read_headers
from query.partition_view import LoadedManifest, PartitionView
from query.parts import CodedColumn, Part
from query.segments import LoadedSegment
from query.tail import Entry, Tail, newest_time_us
from vectors.logical_index import LogicalIndex


class Partition:
    """The changing state behind a partition's views.

    Parameters
    ----------
    record : CollectionRecord
        Names incarnation, media topic and attributes.
    index : IndexRecord
        The index that is served.
    number : int
        The partition.
    """

    def __init__(self, record: CollectionRecord, index: IndexRecord, number: int) -> None:
        self.number = number
        self._record = record
        self._schema = batch_schema(index, record.attributes)
        self._lock = threading.Lock()
        self._chain = Chain(record.incarnation, record.source_topic_id, 0)
        self._tail = Tail(index, record.attributes)
        self._vectors_offset = 0
        self._loaded: LoadedManifest | None = None
        self._live: dict[str, NDArray[np.bool_]] = {}
        self._sealed: tuple[Part, ...] = ()
        self._sealed_changed = True
        self._reads_tail = False
        self._view: PartitionView | None = None

    @property
    def view(self) -> PartitionView | None:
        """The newest view; None until a manifest is loaded. Reading it pins it."""
        return self._view

    @property
    def vectors_offset(self) -> int:
        """Offset of the next record of the vectors topic that may count."""
        return self._vectors_offset

    # ---- the tail reader's arrow --------------------------------------------------------------------------------
    def take_record(self, record: LogRecord) -> CommitNotice | list[int] | None:
        """Apply the next record of the vectors topic.

        Returns
        -------
        CommitNotice, list of int, or None
            A notice of our incarnation; or the produce times (microseconds) of the rows that a batch made searchable, perhaps none;
            None for a record that does not count.

        Raises
        ------
        CorruptError
            The record is damaged; the state is as before, and the record comes again after a seek.
        UnavailableError
            A patch needs the vector of a row whose refine code is not here yet and cannot be had now; the state is as before. SnapshotError as well.
        """
        if record.offset < self._vectors_offset:  # behind a checkpoint that a manifest brought: must not meet the newer `expected`
            return None
        span = read_headers(record)
        if isinstance(span, CommitNotice):
            with self._lock:
                self._vectors_offset = max(self._vectors_offset, record.offset + 1)
            return span if span.incarnation == self._record.incarnation else None
        return self._take_batch(record, span)

    def _take_batch(self, record: LogRecord, span: BatchSpan) -> list[int] | None:
        # decoded before the lock is taken, so that a swap need not wait; the rule itself is applied under it
        batch = decode_batch(record, self._schema) if self._covers(span) else None
        if batch is not None:
            self._bring_bases(batch)
        with self._lock:
            if record.offset < self._vectors_offset or not self._reads_tail:
                return None
            before = self._chain.expected
            accepted = self._chain.accept(span)
            if accepted is not None:
                try:
                    batch = decode_batch(record, self._schema) if batch is None else batch
                    changed = self._tail.apply(batch, accepted, self._loses, self._bases, f"{record.topic}/{record.partition}/{record.offset}")
                except HeadwaterError:
                    self._chain.expected = before
                    raise
                self._mask(changed)
            self._vectors_offset = record.offset + 1
            if accepted is None or batch is None:
                return None
            self._publish()
        return newest_time_us(batch, "produced_at")

    def _bring_bases(self, batch: pa.RecordBatch) -> None:
        """Let the vectors that a batch's patches build on come, where they are not here yet: nobody waits for a store under the lock."""
        loaded = self._loaded
        coming = [] if loaded is None else [segment for segment in loaded.segments.values() if segment.missing_bytes]
        patched = batch.filter(pc.equal(batch.column("op"), "patch")).column("id").drop_null().to_pylist() if coming else []
        if patched:
            hashes = id_hashes(patched)
            for segment in coming:
                for row in segment.ids.find(hashes):
                    for column in segment.vectors.values() if row >= 0 else ():
                        column.vector(int(row))

    def _covers(self, span: BatchSpan) -> bool:
        return (span.incarnation, span.topic_id) == (self._chain.incarnation, self._chain.topic_id) and (
            span.start_offset <= self._chain.expected < span.next_offset
        )

    def _loses(self, item_id: str, order: VersionOrder) -> bool:
        """Whether a replayed version is older than a stored row or a tombstone of its id (also where the row is dead: deletes stay)."""
        assert self._loaded is not None, "take_record looked"
        hashed = id_hash(item_id)
        tombstones = (delta.tombstones.get(hashed) for delta in self._loaded.deltas.values())
        if any(tombstone is not None and tombstone > order for tombstone in tombstones):
            return True
        found = self._stored(id_hashes([item_id]))
        return any(self._loaded.segments[name].part(self._live[name]).order(int(rows[0])) > order for name, rows in found if rows[0] >= 0)

    def _bases(self, ids: Sequence[str]) -> list[BaseRow | None]:
        """Live rows of ids in segments, for patches: what the tail took away is masked already."""
        assert self._loaded is not None, "take_record looked"
        out: list[BaseRow | None] = [None] * len(ids)
        for name, rows in self._stored(id_hashes(ids)):
            segment = self._loaded.segments[name]
            for at in np.flatnonzero(rows >= 0):
                row = int(rows[at])
                if self._live[name][row]:
                    out[at] = BaseRow(segment.batch, row, partial(_vector, segment, row))
        return out

    def _stored(self, hashes: NDArray[np.uint64]) -> list[tuple[str, NDArray[np.int64]]]:
        assert self._loaded is not None
        return [(name, segment.ids.find(hashes)) for name, segment in self._loaded.segments.items()]

    def _mask(self, changed: Sequence[tuple[str, Entry]]) -> None:
        """Take away the older rows that segments hold of these ids; arrays that a view holds are copied first."""
        assert self._loaded is not None
        if not changed or not self._loaded.segments:
            return
        entries = [entry for _, entry in changed]
        hashes = self._tail.hashes(entries)
        for name, rows in self._stored(hashes):
            hit = np.flatnonzero(rows >= 0)
            hit = hit[self._live[name][rows[hit]]]
            part = self._loaded.segments[name].part(self._live[name])
            older = [at for at in hit if not entries[at].is_replay or part.order(int(rows[at])) < entries[at].order]
            if older:
                live = self._live[name].copy()
                live[rows[older]] = False
                self._live[name] = live
                self._sealed_changed = True

    def _mask_new(self, name: str) -> None:
        """Take away the rows of a segment that has just come for which the tail holds something newer."""
        assert self._loaded is not None
        segment, newest = self._loaded.segments[name], self._tail.newest
        if len(newest) <= segment.rows:
            ids = list(newest)
            rows = segment.ids.find(self._tail.hashes([newest[item_id] for item_id in ids]))
            met = [(int(rows[at]), newest[ids[at]]) for at in np.flatnonzero(rows >= 0)]
        else:  # a small segment beside a long tail
            ids = segment.batch.column("id").to_pylist()
            met = [(row, newest[item_id]) for row, item_id in enumerate(ids) if item_id in newest]
        part = segment.part(self._live[name])
        older = [row for row, entry in met if not entry.is_replay or part.order(row) < entry.order]
        if older:
            live = self._live[name].copy()
            live[older] = False
            self._live[name] = live

    # ---- the hot loader's arrow ---------------------------------------------------------------------------------
    def swap(self, loaded: LoadedManifest, reads_tail: bool = True) -> int | None:
        """Serve a newer manifest, or more of the same one's segments, from now on.

        Parameters
        ----------
        loaded : LoadedManifest
            What is loaded of it.
        reads_tail : bool
            Whether the tail may be read from now on. Once it is read, that stays so.

        Returns
        -------
        int or None
            Vectors offset to which the tail reader must seek: where the manifest is ahead of it, and where it may read for the first time.
        """
        checkpoint = loaded.read.manifest.checkpoint
        with self._lock:
            first = reads_tail and not self._reads_tail
            self._reads_tail |= reads_tail
            before = self._loaded
            self._loaded, self._sealed_changed = self._with_codes(loaded), True
            self._tail = self._tail.trimmed(checkpoint.media_offset)
            self._chain.expected = max(self._chain.expected, checkpoint.media_offset)
            ahead = first or (self._reads_tail and checkpoint.vectors_offset > self._vectors_offset)
            self._vectors_offset = max(self._vectors_offset, checkpoint.vectors_offset)
            self._live = {name: self._still_live(name, live, before) for name, live in loaded.live.items()}
            for name in loaded.segments:
                if before is None or name not in before.segments:
                    self._mask_new(name)
            self._publish()
            return self._vectors_offset if ahead else None

    def _still_live(self, name: str, live: NDArray[np.bool_], before: LoadedManifest | None) -> NDArray[np.bool_]:
        """Live rows of a segment by a manifest, without those that the tail took away already: what is dead stays dead."""
        if before is None or name not in before.live:
            return live
        return self._live[name] if before.live[name] is live else self._live[name] & live

    def _with_codes(self, loaded: LoadedManifest) -> LoadedManifest:
        """The manifest with the segments that are here already, which may have been coded since the loader took them."""
        mine = {} if self._loaded is None else self._loaded.segments
        chosen = {name: mine[name] if name in mine and mine[name].is_of(segment.parts) else segment for name, segment in loaded.segments.items()}
        return replace(loaded, segments=chosen)

    # ---- coding -------------------------------------------------------------------------------------------------
    def recode(self, of: LoadedSegment, field: str, column: CodedColumn) -> None:
        """Find the rows of one field of a segment by codes from now on; nothing where the segment, as it was loaded, has gone."""
        segment_id = of.segment_id
        with self._lock:
            segment = None if self._loaded is None else self._loaded.segments.get(segment_id)
            if self._loaded is None or segment is None or not segment.is_of(of.parts):
                return
            coded = replace(segment, vectors={**segment.vectors, field: column})
            self._loaded, self._sealed_changed = replace(self._loaded, segments={**self._loaded.segments, segment_id: coded}), True
            self._publish()

    def code_tail(self, field: str, index: LogicalIndex, most_rows: int) -> bool:
        """Code up to `most_rows` of the tail's rows that are not coded yet; whether all are, and will be from now on."""
        with self._lock:
            done = self._tail.code(field, index, most_rows)
            if done and self._loaded is not None:
                self._publish()
            return done

    def _publish(self) -> None:
        assert self._loaded is not None
        if self._sealed_changed:
            old = {part.name: part for part in self._sealed}
            self._sealed = tuple(_part(segment, self._live[name], old.get(name)) for name, segment in self._loaded.segments.items())
            self._sealed_changed = False
        self._view = PartitionView(self.number, self._loaded, self._sealed, self._tail.part(), self._chain.expected)


def _part(segment: LoadedSegment, live: NDArray[np.bool_], before: Part | None) -> Part:
    same = before is not None and before.live is live and before.vectors is segment.vectors
    return before if same and before is not None else segment.part(live)


def _vector(segment: LoadedSegment, row: int, field: str) -> NDArray[Any] | None:
    return segment.vectors[field].vector(row)
