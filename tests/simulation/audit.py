"""The audit of each manifest as it is stored, from stored bytes alone, and of each view that a query node publishes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backends.memory_store import MemoryStore
from contracts.deletes import decode_delete_delta
from contracts.errors import CorruptError
from contracts.ledger import decode_ledger
from contracts.manifest import Manifest, ReadManifest, SegmentEntry, object_version
from contracts.object_keys import CollectionKeys
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, read_rows_part
from indexer.garbage import named_by
from query.partition_view import PartitionView
from query.parts import Part
from tests.simulation.reference import Fail, Reference, Shown, shown_row
from tests.simulation.vectors import small_field, stored_ways, way_of, ways_of

VECTORS_PART = FIELD_PART_PREFIX + small_field().name
_MAY_BECOME = {
    "upsert": ("row", "superseded", "deleted", "expired"),
    "patch": ("row", "patch", "superseded", "deleted", "expired"),
    "delete": ("delete", "superseded"),
    "reject": ("reject",),
}


class Audit:
    """Checks one partition of one incarnation; decoded objects are kept by key, since stored objects never change."""

    def __init__(self, reference: Reference, store: MemoryStore, fail: Fail, partition: int) -> None:
        self.reference, self.store, self.fail = reference, store, fail
        self._where = f"partition {partition}, "
        self.history: dict[int, ReadManifest] = {}
        self.recoded = 0
        self._claims: dict[tuple[str, int], str] = {}
        self._decoded: dict[str, Any] = {}
        self._agreed: set[tuple[str, str]] = set()
        record = reference.record
        self._boundary = CollectionKeys(record.name, record.incarnation).index(reference.index.name).partition(partition).boundary

    @property
    def newest(self) -> Manifest:
        """The newest manifest ever stored."""
        return self.history[max(self.history)].manifest

    # ---- manifests ---------------------------------------------------------------------------------------------------
    def manifest(self, key: str, data: bytes) -> None:
        """A manifest was stored: the first of its number decides history; all invariants hold for it."""
        version = object_version(key)
        if version in self.history:
            return  # a collected number, used again by somebody who slept; the boundary tells readers so
        read = ReadManifest.parse(Manifest, data, key)
        self.history[version] = read
        before = self.history.get(version - 1)
        if before is not None:
            self._follows(before, read.manifest)
        elif version > 1:
            self.fail(f"{self._where}version {version} was stored, and there never was a version {version - 1}")
        self._offsets(read.manifest)
        self._rows(read.manifest)

    def _follows(self, before: ReadManifest, manifest: Manifest) -> None:
        where, old = f"{self._where}version {manifest.version}", before.manifest
        if manifest.previous is None or (manifest.previous.version, manifest.previous.sha256) != (old.version, before.sha256):
            self.fail(f"{where} does not follow version {old.version}")
        new_at, old_at = manifest.checkpoint, old.checkpoint
        if new_at.media_offset < old_at.media_offset or new_at.vectors_offset < old_at.vectors_offset:
            self.fail(f"{where}: the checkpoint moved back from {old_at} to {new_at}")
        for role in ("builder", "compactor", "gc"):
            epoch, old_epoch = getattr(manifest.epochs, role), getattr(old.epochs, role)
            if epoch < old_epoch:
                self.fail(f"{where}: the epoch of the {role} went back")
            if epoch > old_epoch:
                self._claims[role, epoch] = manifest.writer
        mine = {segment.segment_id: segment.parts[VECTORS_PART].key for segment in manifest.segments}
        self.recoded += any(mine.get(segment.segment_id, key) != key for segment in old.segments for key in [segment.parts[VECTORS_PART].key])
        changes = manifest.segments != old.segments or manifest.checkpoint != old.checkpoint
        owners = [self._claims.get((role, getattr(manifest.epochs, role))) for role in ("builder", "compactor")]
        if changes and manifest.writer not in owners:
            self.fail(f"{where}: {manifest.writer} changed the index after it was fenced")

    def _offsets(self, manifest: Manifest) -> None:
        """Every item of every media offset is in exactly one run, with a verdict that its batch allows; and the checkpoint is one of the chain."""
        where, at = f"{self._where}version {manifest.version}", manifest.checkpoint
        if at.media_offset > self.reference.expected:
            self.fail(f"{where} ends at {at.media_offset}, the chain at {self.reference.expected}")
        end = self.reference.ends.get(at.media_offset)
        if end is None or at.vectors_offset <= end:
            self.fail(f"{where}: checkpoint {at} is not behind the batch {end} that ends there")
        seen: dict[int, str] = {}
        for entry in manifest.ledger:
            for offset, verdict in self._read(entry.object.key, _ledger):
                if offset in seen:
                    self.fail(f"{where}: media offset {offset} is in two runs: {seen[offset]} and {verdict}")
                seen[offset] = verdict
        if sorted(seen) != list(range(manifest.origin_offset, at.media_offset)):
            self.fail(f"{where}: {at.media_offset - len(seen)} of {at.media_offset} media offsets are in no run, or a run is beyond the checkpoint")
        for offset, verdict in seen.items():
            op = self.reference.decided[offset].op
            if verdict not in _MAY_BECOME[op]:
                self.fail(f"{where}: media offset {offset} is {verdict}, the log decided {op}")
        stored = sorted(row.offset for segment in manifest.segments for row in self._stored(segment.parts[ROWS_PART].key))
        if stored != sorted(offset for offset, verdict in seen.items() if verdict == "row"):
            self.fail(f"{where}: the ledger's rows are not the stored rows")

    def _rows(self, manifest: Manifest) -> None:
        """Live rows are exactly those of the reference at the checkpoint; every object is there."""
        where, live = f"{self._where}version {manifest.version}", []
        deltas = [self._read(entry.key, _delta) for entry in manifest.deletes]
        for segment in manifest.segments:
            for part in segment.parts.values():
                if part.key not in self.store._objects:
                    self.fail(f"{where} names {part.key}, which is not stored")
            self._vectors(segment, manifest, where)
            dead = set().union(*(delta.get(segment.segment_id, ()) for delta in deltas))
            live += [row for at, row in enumerate(self._stored(segment.parts[ROWS_PART].key)) if at not in dead]
        self._equal(sorted(live), self.reference.live(manifest.checkpoint.media_offset), where)

    def _vectors(self, segment: SegmentEntry, manifest: Manifest, where: str) -> None:
        """Every row of a segment has the vector of its text, flat or in the codes of the manifest's generation, and nothing else has one."""
        key, rows_key = segment.parts[VECTORS_PART].key, segment.parts[ROWS_PART].key
        generation, ways = self._read(key, stored_ways)
        if generation is not None and manifest.generation != {small_field().name: generation}:
            self.fail(f"{where}: {key} is in codes of generation {generation}, the manifest says {manifest.generation}")
        if (key, rows_key) not in self._agreed:
            self._agreed.add((key, rows_key))
            wanted = {at: way_of(row.text) for at, row in enumerate(self._stored(rows_key))}
            if ways != wanted:
                self.fail(f"{where}: vectors of {key} point {ways}, its texts {wanted}")

    def _stored(self, key: str) -> list[Shown]:
        found: list[Shown] = self._read(key, _rows)
        return found

    def _read(self, key: str, decode: Callable[[bytes, str], Any]) -> Any:
        if key not in self._decoded:
            found = self.store._objects.get(key)
            if found is None:
                self.fail(f"a manifest names {key}, which is not stored")
            try:
                self._decoded[key] = decode(found[0], key)  # type: ignore[index]
            except CorruptError as error:
                self.fail(f"a manifest names an object that cannot be read: {error}")
        return self._decoded[key]

    # ---- what garbage collection and committers do -----------------------------------------------------------------
    def deleted(self, key: str) -> None:
        """An object was deleted: no manifest above the boundary names it."""
        found = self.store._objects.get(self._boundary)
        if found is None:
            return
        boundary = int(found[0])
        for version, read in self.history.items():
            if version > boundary and key in named_by(read.manifest):
                self.fail(f"{key} was deleted, version {version} of {max(self.history)} names it, the boundary is {boundary}")

    def believed(self, writer: str, read: ReadManifest) -> None:
        """A committer believes that it has committed: history says the same."""
        stored = self.history.get(read.manifest.version)
        if stored is None or stored.sha256 != read.sha256:
            self.fail(f"{writer} believes that it committed version {read.manifest.version}, history says otherwise")

    # ---- views -------------------------------------------------------------------------------------------------------
    def view(self, name: str, view: PartitionView, before: PartitionView | None) -> None:
        """A node shows what a dictionary would hold at its offset, and never less than before."""
        where = f"{self._where}{name} at version {view.loaded.version}, media offset {view.expected}"
        if before is not None and (view.expected < before.expected or view.loaded.version < before.loaded.version):
            self.fail(f"{where}: it showed version {before.loaded.version}, media offset {before.expected} before")
        if self.history[view.loaded.version].sha256 != view.loaded.read.sha256:
            self.fail(f"{where}: another manifest had that number before")
        if view.expected > self.reference.expected:
            self.fail(f"{where}: the chain ends at {self.reference.expected}")
        if not view.loaded.complete:
            return
        rows: list[Shown] = []
        for part in view.parts:
            for batch, start in zip(part.batches, part.starts, strict=True):
                rows += [row for at, row in enumerate(self._batch(batch)) if part.live[start + at]]
            self._shown_vectors(part, where)
        self._equal(sorted(rows), self.reference.live(view.expected), where)

    def _shown_vectors(self, part: Part, where: str) -> None:
        """Every row of a part has the vector of its text; looked at once, and kept, so that no other gets its number."""
        key, column = f"vectors {id(part.vectors)}", part.vectors[small_field().name]
        if key in self._decoded:
            return
        self._decoded[key] = part.vectors
        texts = [row.text for batch in part.batches for row in self._batch(batch)]
        found = [column.vector(at) for at in range(len(texts))]
        if any(vector is None for vector in found) or (texts and ways_of(np.stack(found)) != [way_of(text) for text in texts]):  # type: ignore[arg-type]
            self.fail(f"{where}: vectors {found} of texts {texts} in {part.name}")

    def _batch(self, batch: Any) -> list[Shown]:
        """Rows of an Arrow batch, decoded once; it is kept, so that no other gets its number."""
        key = f"batch {id(batch)}"
        if key not in self._decoded:
            self._decoded[key] = batch, [shown_row(row) for row in batch.select(["id", "offset", "text", "attributes"]).to_pylist()]
        rows: list[Shown] = self._decoded[key][1]
        return rows

    def _equal(self, found: list[Shown], wanted: list[Shown], where: str) -> None:
        if found != wanted:
            twice = ", an id twice" if len({row.id for row in found}) < len(found) else ""
            self.fail(f"{where}: too much {sorted(set(found) - set(wanted))}, missing {sorted(set(wanted) - set(found))}{twice}")


def _ledger(data: bytes, key: str) -> list[tuple[int, str]]:
    return [(offset, run.verdict) for run in decode_ledger(data, key) for offset in range(run.start_offset, run.next_offset)]


def _delta(data: bytes, key: str) -> dict[str, set[int]]:
    return {name: set(rows) for name, rows in decode_delete_delta(data, key).bitmaps.items()}


def _rows(data: bytes, key: str) -> list[Shown]:
    return [shown_row(row) for row in read_rows_part(data, key).batch.select(["id", "offset", "text", "attributes"]).to_pylist()]
