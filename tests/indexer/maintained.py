"""A partition whose vectors topic is written by hand, with a builder, compactors and collectors that a test drives step by step, and its oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from ulid import ULID

from backends.catalog.manifests import ManifestChain
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.chain import BatchSpan
from contracts.clock import ManualClock
from contracts.collection import FieldRecord
from contracts.engines import Engines
from contracts.manifest import ReadManifest
from contracts.settings import load_settings
from contracts.store import PutOutcome
from contracts.vectors_batch import BatchItem, batch_headers, batch_schema, build_batch, encode_batch
from indexer.compactor import PartitionCompactor
from indexer.garbage import Collected, PartitionCollector
from indexer.index_codecs import IndexCodecs
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource
from tests.indexer.conftest import DIMENSION, make_collection, vector_of
from tests.indexer.stored import StoredPartition, read_partition

KEEP_SECONDS = 100.0


def unit(item_id: str) -> np.ndarray:
    vector = vector_of(item_id)
    return vector / np.linalg.norm(vector)


class HookedStore(MemoryStore):
    """A memory store that calls `before_put` with each key that is to be created; the next manifests' puts end as `script` says."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.before_put: Callable[[str], None] = lambda key: None
        self.before_delete: Callable[[str], None] = lambda key: None
        self.script: list[tuple[bool, PutOutcome]] = []

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        self.before_put(key)
        if not self.script or "/manifest/" not in key:
            return super().put_if_absent(key, data)
        stored, answer = self.script.pop(0)
        if stored:
            super().put_if_absent(key, data)
        return answer

    def delete(self, key: str) -> None:
        self.before_delete(key)
        super().delete(key)


class Site:
    """One partition; `live` is what a dictionary says should be found: id -> text."""

    def __init__(self, *, retention: int | None = None, fields: list[FieldRecord] | None = None, **settings: object) -> None:
        self.clock = ManualClock()
        self.store = HookedStore(self.clock)
        options = {"log_url": "memory://", "store_url": "memory://", "gc_seconds": KEEP_SECONDS, "compact_fan_in": 4} | settings
        self.engines = Engines(load_settings(**options), MemoryLog(), self.store, clock=self.clock)
        self.collection = make_collection(self.engines, f"feed-{ULID()}"[:40], partitions=1, fields=fields, retention_seconds=retention)
        self.index = self.collection.index()
        self.codecs = IndexCodecs(self.store, self.collection, self.index)
        self.source = PartitionSource(self.engines, self.collection, self.index, 0)
        self.chain: ManifestChain = self.source.chain
        self.next_offset = 0
        self.live: dict[str, str | None] = {}
        self.expected: dict[tuple[int, int], str] = {}
        self.builder = self.new_builder()

    def new_builder(self) -> PartitionBuilder:
        builder = PartitionBuilder(PartitionSource(self.engines, self.collection, self.index, 0), f"builder-{ULID()}", UlidSource(), self.codecs)
        self.at = builder.start()
        return builder

    def new_compactor(self) -> PartitionCompactor:
        source = PartitionSource(self.engines, self.collection, self.index, 0)
        compactor = PartitionCompactor(source, f"compactor-{ULID()}", UlidSource(), IndexCodecs(self.store, self.collection, self.index))
        compactor.start()
        return compactor

    def collector(self) -> PartitionCollector:
        return PartitionCollector(ManifestChain(self.store, self.source.keys), self.clock, self.engines.settings.gc_seconds)

    def collect(self) -> Collected:
        return self.collector().collect()

    def feed(self, *items: BatchItem) -> None:
        """Append a batch, one media record an item, and feed it to the builder."""
        numbered = [replace(item, offset=self.next_offset + n) for n, item in enumerate(items)]
        data = encode_batch(build_batch(numbered, batch_schema(self.index, self.collection.attributes)))
        span = BatchSpan(self.collection.incarnation, self.collection.source_topic_id, self.next_offset, self.next_offset + len(items))
        producer = self.engines.log.producer()
        producer.send(self.index.vectors_topic, partition=0, value=data, headers=batch_headers(span, data))
        producer.flush(10)
        producer.close()
        for item in numbered:
            if item.op == "upsert" and item.id is not None:
                self.live[item.id] = item.text
            elif item.op == "delete" and item.id is not None:
                self.live.pop(item.id, None)
        self.next_offset += len(items)
        record = self.engines.log.read_at(self.index.vectors_topic, 0, self.at)
        assert record is not None
        self.builder.feed(record)
        self.at += 1

    def commit(self, *items: BatchItem) -> ReadManifest:
        self.feed(*items)
        read = self.builder.commit()
        assert read is not None
        return read

    def read(self) -> StoredPartition:
        return read_partition(self.engines, self.collection, 0)

    def check(self) -> StoredPartition:
        """What is stored is what the dictionary says, the ledger tiles, and its `row` runs are the stored rows."""
        stored = self.read()
        assert stored.texts == self.live
        for item_id in stored.vectors:
            assert np.abs(np.array(stored.vectors[item_id]) - unit(item_id)).max() < 0.1
        assert stored.is_tiled() and stored.manifest.checkpoint.media_offset <= self.next_offset
        assert sum(run.items for run in stored.ledger if run.verdict == "row") == stored.manifest.rows
        return stored

    def unreferenced(self) -> set[str]:
        """Parts that the newest manifest does not name."""
        read = self.chain.head()
        assert read is not None
        manifest = read.manifest
        named = {entry.key for segment in manifest.segments for entry in segment.parts.values()}
        named |= {entry.key for entry in manifest.deletes} | {entry.object.key for entry in manifest.ledger}
        keys = {info.key for info in self.store.list(self.source.keys.prefix)}
        return {key for key in keys if "/manifest/" not in key and "/gc/" not in key and "/pins/" not in key and "/purge/" not in key} - named

    def versions(self) -> list[int]:
        return [int(info.key[-25:-5]) for info in self.store.list(self.source.keys.manifests_prefix)]


def up(*ids: str, text: str | None = None, **more: object) -> list[BatchItem]:
    return [BatchItem(0, 0, "upsert", item_id, vectors={"vec": unit(item_id)}, text=text or f"text of {item_id}", **more) for item_id in ids]  # type: ignore[arg-type]


def gone(*ids: str) -> list[BatchItem]:
    return [BatchItem(0, 0, "delete", item_id) for item_id in ids]


def random_items(choice: random.Random, ids: Sequence[str], number: int) -> list[BatchItem]:
    """A few upserts and deletes of these ids."""
    items: list[BatchItem] = []
    for at in range(choice.randint(1, 6)):
        item_id = choice.choice(ids)
        items += gone(item_id) if choice.random() < 0.3 else up(item_id, text=f"{item_id} at {number}-{at}")
    return items


__all__ = ["DIMENSION", "KEEP_SECONDS", "HookedStore", "Site", "gone", "random_items", "unit", "up"]
