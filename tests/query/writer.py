"""A small embed worker and builder for tests: it writes vectors batches and commits manifests by hand, following docs/formats."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyroaring import BitMap
from ulid import ULID

from backends.catalog.admin import CollectionRequest, create_collection
from backends.catalog.manifests import ManifestChain
from backends.catalog.objects import upload
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts import attributes as typed
from contracts.chain import BatchSpan
from contracts.collection import CollectionRecord, FieldRecord, own_vector_space
from contracts.deletes import DeleteDelta, Tombstone, encode_delete_delta
from contracts.engines import Engines
from contracts.generation import encode_generation
from contracts.item import VersionOrder, id_hash, version_order
from contracts.manifest import Checkpoint, Manifest, ObjectEntry, ReadManifest, SegmentEntry
from contracts.object_keys import CollectionKeys
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, FieldPart, read_field_part, rows_schema, stored_rows, write_coded_part, write_rows_part
from contracts.settings import Settings, load_settings
from contracts.vectors_batch import (
    NOTICE_KEY,
    VECTOR_PREFIX,
    BatchItem,
    CommitNotice,
    batch_headers,
    batch_schema,
    build_batch,
    encode_batch,
    notice_headers,
    vector_matrix,
)
from indexer.field_parts import coded_part, field_part
from vectors.quantizer import Quantizer
from vectors.train import train

DIMENSION = 4


def own_field(name: str = "own", metric: str = "cosine", dimension: int = DIMENSION, dtype: str = "float32") -> FieldRecord:
    space = own_vector_space(name, dimension, metric)
    return FieldRecord(name=name, source="vector", encoder=None, space_id=space, dimension=dimension, metric=metric, dtype=dtype)  # type: ignore[arg-type]


def engines_for_test(**settings: Any) -> Engines:
    options: dict[str, Any] = {"query_port": 0, "query_poll_seconds": 3600.0, "log_url": "memory://", "store_url": "memory://"} | settings
    options.setdefault("cache_dir", cache_folder())
    made: Settings = load_settings(**options)
    return Engines(made, MemoryLog(), MemoryStore())


@cache
def cache_folder() -> Path:
    """One for all tests of a process: files in it are named by what they hold."""
    folder = tempfile.mkdtemp(prefix="headwater-test-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


@dataclass
class Writer:
    """One partition's embed worker and builder. `pending` are items that were sent and not yet committed."""

    engines: Engines
    record: CollectionRecord
    partition: int = 0
    pending: list[tuple[int, BatchItem]] = field(default_factory=list)
    rows: dict[str, tuple[str, int, VersionOrder]] = field(default_factory=dict)
    tombstones: dict[str, VersionOrder] = field(default_factory=dict)
    items: dict[str, BatchItem] = field(default_factory=dict)
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    writes_codes: bool = True

    def __post_init__(self) -> None:
        self.index = self.record.index()
        self.schema = batch_schema(self.index, self.record.attributes)
        self.producer = self.engines.log.producer()
        keys = CollectionKeys(self.record.name, self.record.incarnation).index(self.index.name)
        self.keys = keys.partition(self.partition)
        self.chain = ManifestChain(self.engines.store, self.keys)
        head = self.chain.head()
        assert head is not None
        self.read: ReadManifest = head
        self.next_offset = head.manifest.checkpoint.media_offset
        self.next_vectors_offset = head.manifest.checkpoint.vectors_offset

    # ---- embed worker -------------------------------------------------------------------------------------------
    def upsert(self, item_id: str, vector: np.ndarray | None = None, offset: int | None = None, **more: Any) -> BatchItem:
        offset = self.next_offset if offset is None else offset
        attributes = typed.coerce_all(more.pop("attributes", {}), self.record.attributes)
        vectors = more.pop("vectors", None) or {self.index.fields[0].name: unit(1, 0, 0, 0) if vector is None else vector}
        now_us = int(self.engines.clock.now_seconds() * 1e6)
        stamps = {"event_time_us": now_us, "produced_at_us": now_us} | more
        return BatchItem(offset, stamps.pop("item", 0), "upsert", item_id, vectors=vectors, attributes=attributes, **stamps)

    def delete(self, item_id: str, offset: int | None = None, **more: Any) -> BatchItem:
        return BatchItem(self.next_offset if offset is None else offset, 0, "delete", item_id, **more)

    def patch(self, item_id: str, patch: dict[str, Any], offset: int | None = None, **more: Any) -> BatchItem:
        return BatchItem(self.next_offset if offset is None else offset, 0, "patch", item_id, patch=json.dumps(patch), **more)

    def send(self, items: Sequence[BatchItem], start: int | None = None, next_offset: int | None = None, zombie: bool = False) -> int:
        """Append one batch; a zombie's is not part of this writer's own chain. Returns the offset after it."""
        start = self.next_offset if start is None else start
        end = next_offset if next_offset is not None else max((item.offset for item in items), default=start) + 1
        value = encode_batch(build_batch(items, self.schema))
        span = BatchSpan(self.record.incarnation, self.record.source_topic_id, start, end)
        at = self._append(value, batch_headers(span, value))
        if not zombie:
            self.pending += [(at, item) for item in items if item.offset >= self.next_offset]
            self.next_offset = end
        return end

    def put(self, item_id: str, vector: np.ndarray | None = None, **more: Any) -> int:
        """One upsert in a batch of its own; its media offset."""
        offset = self.next_offset
        self.send([self.upsert(item_id, vector, **more)])
        return offset

    def remove(self, item_id: str, **more: Any) -> int:
        offset = self.next_offset
        self.send([self.delete(item_id, **more)])
        return offset

    def _append(self, value: bytes | None, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> int:
        sent = self.producer.send(self.index.vectors_topic, partition=self.partition, key=key, value=value, headers=headers)
        return sent.result().offset

    # ---- builder ------------------------------------------------------------------------------------------------
    def commit(self, notice: bool = True, upto: int | None = None) -> ReadManifest:
        """Seal what is pending (below media offset `upto`) and commit it."""
        cut = self.next_offset if upto is None else upto
        taken = [item for _, item in self.pending if item.offset < cut]
        rest = [(at, item) for at, item in self.pending if item.offset >= cut]
        vectors_offset = rest[0][0] if rest else self.engines.log.bounds(self.index.vectors_topic)[self.partition].next_offset
        segments, deletes = self._seal(taken)
        manifest = self.read.next(
            commit_id=str(ULID()),
            writer="test",
            committed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            checkpoint=Checkpoint(vectors_offset=vectors_offset, media_offset=cut),
            segments=(*self.read.manifest.segments, *segments),
            deletes=(*self.read.manifest.deletes, *deletes),
        )
        self.pending = rest
        return self.publish(manifest, notice)

    def train(self, sample: np.ndarray, nlist: int, notice: bool = True) -> ReadManifest:
        """Train the next generation of the first field, and name it in a manifest."""
        target = self.index.fields[0]
        number = self.read.manifest.generation.get(target.name, 0) + 1
        made = train(target, sample, nlist, "auto", 0, number)
        keys = CollectionKeys(self.record.name, self.record.incarnation).index(self.index.name)
        self.engines.store.put_if_absent(keys.generation(number, target.name), encode_generation(made))
        self.quantizers[target.name] = Quantizer.open(made)
        changes = {"commit_id": str(ULID()), "committed_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        return self.publish(self.read.next(**changes, generation={**self.read.manifest.generation, target.name: number}), notice)

    def recode(self, notice: bool = True) -> ReadManifest | None:
        """Store the vectors of the first flat segment anew, in the codes of the newest generation; the segment stays what it is."""
        target, name = self.index.fields[0], FIELD_PART_PREFIX + self.index.fields[0].name
        for at, segment in enumerate(self.read.manifest.segments):
            stored = self.engines.store.get(segment.parts[name].key)
            assert stored is not None
            found = read_field_part(stored.data, target, "test")
            if isinstance(found, FieldPart) and target.name in self.quantizers:
                data = write_coded_part(target, coded_part(self.quantizers[target.name], found.matrix, found.rows, segment.rows))
                part = upload(self.engines.store, self.keys.part("b", 1, str(ULID()), name), data)
                segments = list(self.read.manifest.segments)
                segments[at] = segment.model_copy(update={"parts": {**segment.parts, name: part}})
                changes = {"commit_id": str(ULID()), "committed_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
                return self.publish(self.read.next(**changes, segments=tuple(segments)), notice)
        return None

    def compact(self, notice: bool = True) -> ReadManifest | None:
        """Rewrite all live rows into one segment, as a compactor does; the deltas stay for their tombstones."""
        if not self.rows:
            return None
        ulid, ids = str(ULID()), sorted(self.rows)
        entry = self.write_segment(ulid, [self.items[item_id] for item_id in ids])
        for row, item_id in enumerate(ids):
            self.rows[item_id] = (ulid, row, self.rows[item_id][2])
        changes = {"commit_id": str(ULID()), "writer": "compactor", "committed_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        return self.publish(self.read.next(**changes, segments=(entry,)), notice)

    def publish(self, manifest: Manifest, notice: bool = True) -> ReadManifest:
        created = self.chain.create(manifest)
        assert created is not None
        self.read = created
        if notice:
            self.announce()
        return created

    def announce(self) -> None:
        manifest = self.read.manifest
        self._append(None, notice_headers(CommitNotice(manifest.version, manifest.commit_id, manifest.incarnation)), NOTICE_KEY)

    def _seal(self, taken: Sequence[BatchItem]) -> tuple[list[SegmentEntry], list[ObjectEntry]]:
        newest: dict[str, tuple[VersionOrder, BatchItem]] = {}
        for item in taken:
            if item.op not in ("upsert", "delete"):
                continue
            assert item.id is not None
            order = version_order(item.offset, item.item, item.origin_offset, item.origin_item)
            older = [newest[item.id][0]] if item.id in newest else []
            older += [self.rows[item.id][2]] if item.id in self.rows else []
            older += [self.tombstones[item.id]] if item.id in self.tombstones else []
            if all(order > other for other in older):
                newest[item.id] = (order, item)
        ulid, bitmaps, stones = str(ULID()), {}, []
        for item_id, (order, item) in newest.items():
            if item_id in self.rows:
                segment_id, row, _ = self.rows.pop(item_id)
                bitmaps.setdefault(segment_id, BitMap()).add(row)
            if item.op == "delete":
                self.tombstones[item_id] = order
                stones.append(Tombstone(id_hash(item_id), item.offset, item.item, 0, item.origin_offset, item.origin_item))
        alive = [(order, item) for order, item in newest.values() if item.op == "upsert"]
        deletes = []
        if bitmaps or stones:
            deletes = [upload(self.engines.store, self.keys.part("b", 1, str(ULID()), "deletes"), encode_delete_delta(DeleteDelta(bitmaps, stones)))]
        if not alive:
            return [], deletes
        for row, (order, item) in enumerate(alive):
            assert item.id is not None
            self.rows[item.id] = (ulid, row, order)
            self.items[item.id] = item
        return [self.write_segment(ulid, [item for _, item in alive])], deletes

    def write_segment(self, ulid: str, items: Sequence[BatchItem]) -> SegmentEntry:
        batch = build_batch(items, self.schema)
        rows = stored_rows(batch, rows_schema(self.record.attributes))
        parts = {ROWS_PART: upload(self.engines.store, self.keys.part("b", 1, ulid, ROWS_PART), write_rows_part(rows, {}))}
        for target in self.index.fields:
            matrix, present = vector_matrix(batch.column(VECTOR_PREFIX + target.name))
            data, _ = field_part(target, matrix, present, self.quantizers.get(target.name) if self.writes_codes else None)
            name = FIELD_PART_PREFIX + target.name
            parts[name] = upload(self.engines.store, self.keys.part("b", 1, ulid, name), data)
        offsets = [item.offset for item in items]
        return SegmentEntry(segment_id=ulid, rows=len(items), start_offset=min(offsets), next_offset=max(offsets) + 1, schema_version=1, parts=parts)


def create(engines: Engines, name: str = "things", **request: Any) -> CollectionRecord:
    options: dict[str, Any] = {"fields": [own_field()], "partitions": 1} | request
    return create_collection(engines, CollectionRequest(name, **options))


def writer(engines: Engines, name: str = "things", **request: Any) -> Writer:
    return Writer(engines, create(engines, name, **request))


__all__ = ["Writer", "create", "engines_for_test", "own_field", "pa", "replace", "unit", "writer"]
