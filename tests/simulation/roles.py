"""The processes of the simulation: the workers and query nodes themselves, on the simulated log and store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from backends.catalog.objects import download
from contracts.collection import CollectionRecord
from contracts.encoder import PictureRecipe
from contracts.engines import Engines
from contracts.errors import RecordError
from contracts.manifest import ObjectEntry
from contracts.store import ObjectStore
from embedding.decode_pool import DecodePool
from indexer.archive_worker import ArchiveWorker
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from indexer.maintain_worker import MaintainWorker
from query.field_indexes import FieldIndexes
from query.follow import ManifestFollower
from query.hot_load import check_identity
from query.load_pool import LoadPool
from query.memory_budget import MemoryBudget
from query.node import Node
from query.partition import Partition
from query.partition_view import PartitionView
from query.segment_cache import SegmentCache
from query.segments import SegmentLoader
from query.tail_reader import TailReader
from tests.simulation.faults import Faults
from tests.simulation.vectors import DIMENSION, SPACE, vector_of

REFUSED_SHARE = 0.12
ATTRIBUTES = {"n": "integer"}


class SmallEncoder:
    """Texts become one of two vectors. Now and then it refuses one: two workers may judge a record differently."""

    space = SPACE
    picture_recipe = PictureRecipe(1, 1, "squash")

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ones((len(pictures), DIMENSION), np.float32)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._faults.draw() < REFUSED_SHARE and any(text.startswith("text") for text in texts):
            raise RecordError("encoder_refused", "not this time")
        return np.array([vector_of(text) for text in texts], np.float32)


class InMemoryCache:
    """`query.segment_cache.SegmentCache` without a disk."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def open(self, entry: ObjectEntry) -> memoryview:
        return memoryview(download(self._store, entry))

    open_partly = open  # what comes later has tests of its own: simulated segments have one chunk


class AtOnce:
    """`query.load_pool.LoadPool` without threads: work is done when it is handed in."""

    def submit(self, rank: int, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)
        return future

    def await_first(self, timeout_seconds: float) -> None:
        """Nothing is ever under way."""

    def give_way(self) -> None:
        """As above."""


class WatchedPartition(Partition):
    """A node's partition, of which every published view is audited."""

    watch: Callable[[PartitionView, PartitionView | None], object]

    def _publish(self) -> None:
        before = self._view
        super()._publish()
        assert self._view is not None
        self.watch(self._view, before)


@dataclass
class Roles:
    """What runs in a process, by the name of its role; each gets the process's stop event."""

    engines: Engines
    record: CollectionRecord
    watch: Callable[[str, PartitionView, PartitionView | None], object]
    faults: Faults

    def embed(self, name: str, stop: Any) -> None:
        pool = cast(DecodePool, object())  # no field wants pictures, so that nobody asks it
        batch = {"embed_batch_items": self.faults.rng.randint(1, 5)}  # two workers cut the log at different offsets
        engines = replace(self.engines, settings=self.engines.settings.model_copy(update=batch))
        EmbedWorker(engines, self.record, self.record.index(), SmallEncoder(self.faults), pool).run(stop)

    def build(self, name: str, stop: Any) -> None:
        BuildWorker(self.engines, self.record, self.record.index()).run(stop)

    def archive(self, name: str, stop: Any) -> None:
        sizes = {"archive_seconds": self.faults.rng.choice([0.3, 1.5]), "archive_bytes": self.faults.rng.choice([2_000, 20_000])}
        ArchiveWorker(replace(self.engines, settings=self.engines.settings.model_copy(update=sizes)), self.record).run(stop)

    def maintain(self, name: str, stop: Any) -> None:
        MaintainWorker(self.engines, self.record).run(stop)

    def node(self, name: str, stop: Any, nodes: dict[str, dict[int, WatchedPartition]]) -> None:
        """The threads of a `CollectionView` that read: tail reader and manifest follower."""
        engines, record, index = self.engines, self.record, self.record.index()
        check_identity(engines.log, record, index)
        partitions = {number: WatchedPartition(record, index, number) for number in range(record.partitions)}
        for partition in partitions.values():
            partition.watch = lambda view, before: self.watch(name, view, before)
        memory = MemoryBudget(0)
        shared = Node(cast(SegmentCache, InMemoryCache(engines.store)), memory, cast(LoadPool, AtOnce()))
        segments = SegmentLoader(shared, index, record.attributes, FieldIndexes(engines.store, record, index))
        followers: list[ManifestFollower] = []
        tail = TailReader(engines, record, index, partitions, lambda number, version: followers[0].notice(number, version), memory)
        followers.append(ManifestFollower(engines, record, index, partitions, segments, shared.pool, tail.start_partition, lambda: None))
        nodes[name] = partitions
        tail.start()
        followers[0].start()
        followers[0].serve()
        while not stop.wait(1.0):
            failure = tail.failure or followers[0].failure
            if failure is not None:
                raise failure
