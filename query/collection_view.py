"""A collection on this node: all partitions of its active index, their threads, and how fresh they are.

Takes: engines, a collection record. Gives: `CollectionSnapshot`, pinned per query. Owns: the tail reader and the manifest follower.
Never: answers for a collection whose stored identity is not the log's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import HeadwaterError, UnavailableError
from contracts.head_lag import HeadLag
from query.coding import Coder
from query.field_indexes import FieldIndexes
from query.field_numbers import FieldNumbers, FieldNumbersCache
from query.follow import ManifestFollower
from query.hot_load import check_identity
from query.node import Node
from query.partition import Partition
from query.partition_view import PartitionView
from query.parts import CodedColumn, Part, VectorColumn
from query.segments import SegmentLoader
from query.tail_reader import TailReader
from vectors.logical_index import LogicalIndex
from vectors.tiers import Tiers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CollectionSnapshot:
    """What one query sees: the views of all loaded partitions, taken once, and the tiers of the logical indexes that hold their rows."""

    record: CollectionRecord
    index: IndexRecord
    views: Mapping[int, PartitionView]
    taken_at_us: int
    tiers: Mapping[LogicalIndex, Tiers]
    row_numbers: FieldNumbersCache
    _numbers: dict[str, FieldNumbers] = field(default_factory=dict)

    @property
    def parts(self) -> Iterator[tuple[int, Part]]:
        """Every part with its partition."""
        for partition, view in self.views.items():
            for part in view.parts:
                yield partition, part

    @property
    def expired_before_us(self) -> int | None:
        """Rows with an event time at or before this have expired; None where nothing does."""
        retention = self.record.retention_seconds
        return None if retention is None else self.taken_at_us - retention * 1_000_000

    @property
    def expected(self) -> dict[int, int]:
        """Next media offset of each loaded partition."""
        return {partition: view.expected for partition, view in self.views.items()}

    @property
    def coverage(self) -> float:
        """Share of the committed rows that answers are from: the mean over all partitions, of which one without a manifest counts nothing."""
        return sum(view.coverage for view in self.views.values()) / self.record.partitions

    def numbers(self, field_name: str) -> FieldNumbers:
        """How the rows of one field are searched."""
        found = self._numbers.get(field_name)
        if found is None:
            found = self._numbers[field_name] = self.row_numbers.get(field_name, self.views, self.expired_before_us)
        return found


class CollectionView:
    """The live state of one incarnation of a collection, at one version of its record.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics, clock.
    record : CollectionRecord
        The collection; its active index is served.
    node : Node, optional
        What it shares with the other collections of this node; its own where it is None.
    """

    def __init__(self, engines: Engines, record: CollectionRecord, node: Node | None = None) -> None:
        self.record, self.index = record, record.index()
        self._engines = engines
        self._node, self._owns_node = node or Node.of(engines), node is None
        self._partitions = {number: Partition(record, self.index, number) for number in range(record.partitions)}
        self._staleness = HeadLag()
        self._tail = TailReader(engines, record, self.index, self._partitions, self._notice, self._node.memory)
        self._indexes = FieldIndexes(engines.store, record, self.index)
        self._numbers = FieldNumbersCache()
        self._coder = Coder(record.name, self._partitions, self._indexes, self.snapshot, lambda: self._follower.starting, self._is_filling)
        self._segments = SegmentLoader(self._node, self.index, record.attributes, self._indexes)
        self._follower = self._new_follower()
        self._loads_early, self._started = True, False
        self._last: CollectionSnapshot | None = None
        self._error: HeadwaterError | None = None

    def _new_follower(self) -> ManifestFollower:
        start, pool = self._tail.start_partition, self._node.pool
        return ManifestFollower(self._engines, self.record, self.index, self._partitions, self._segments, pool, start, self._swapped)

    def _notice(self, partition: int, version: int) -> None:
        self._follower.notice(partition, version)

    def _swapped(self) -> None:
        """Make the row numbers of the newest views before the next question needs them; while a node starts, they are made for questions alone."""
        if not self._follower.starting:
            with suppress(UnavailableError):
                snapshot = self.snapshot()
                for each in self.index.fields:
                    snapshot.numbers(each.name)
        self._coder.look()

    def start(self) -> None:
        """Check identities and start loading; called again, it tries again where identities did not match.

        The first time, loading does not wait for the check, which takes as long as it takes to find and read the manifests. What is loaded is not
        served before, and let go of where identities do not match; then nothing is loaded until they do.
        """
        if self._started:
            return
        if self._loads_early:
            self._follower.start()
        try:
            check_identity(self._engines.log, self.record, self.index)
        except HeadwaterError as error:
            if self._error is None or str(self._error) != str(error):
                logger.error("a collection cannot be served: %s", error, extra={"collection": self.record.name})
            self._error = error
            if self._loads_early:
                self._follower.stop(self._engines.settings.stop_seconds)
                self._follower, self._loads_early = self._new_follower(), False
            return
        self._error, self._started = None, True
        self._tail.start()
        self._coder.start()
        if not self._loads_early:
            self._follower.start()
        self._follower.serve()

    def stop(self) -> None:
        """End the threads; views that queries hold stay good."""
        seconds = self._engines.settings.stop_seconds
        if self._owns_node:
            self._node.pool.close()
        self._follower.stop(seconds)
        self._tail.stop(seconds)
        self._coder.stop(seconds)
        self._node.memory.set_growing(self.record.name, 0)

    @property
    def failure(self) -> Exception | None:
        """The mistake that ended one of the threads, or None."""
        return self._tail.failure or self._follower.failure or self._coder.failure

    @property
    def ready(self) -> bool:
        """Whether every segment of every partition is loaded."""
        return self._started and all(partition.view is not None and partition.view.loaded.complete for partition in self._partitions.values())

    def state(self) -> dict[str, object]:
        """What `/readyz` and `GET /collections/{c}` say: readiness, coverage, and what stands in the way."""
        views = [view for partition in self._partitions.values() if (view := partition.view) is not None]
        coverage = sum(view.coverage for view in views) / len(self._partitions)
        errors = {str(number): text for number, text in sorted(self._follower.errors.items())}
        for number in self._tail.held:
            errors.setdefault(str(number), "the next record of the vectors topic cannot be read; an older state is served")
        if self._error is not None:
            errors["collection"] = str(self._error)
        coming = [file for view in views for segment in view.loaded.segments.values() for file in segment.coming]
        for file in coming:
            if file.error is not None:
                errors.setdefault("refine codes", str(file.error))
        return {"ready": self.ready, "coverage": coverage, "pending_bytes": sum(file.missing_bytes for file in coming), "errors": errors}

    def snapshot(self) -> CollectionSnapshot:
        """Pin the newest views.

        Raises
        ------
        UnavailableError
            Identities do not match, or no partition is loaded yet.
        """
        if self._error is not None:
            raise UnavailableError(self._error.message, hint=self._error.hint, code=self._error.error_code)
        if self._last is not None and self._is_newest(self._last):
            return self._last
        views, tiers = self._pinned()
        if not views:
            raise UnavailableError(f"collection {self.record.name!r} is being loaded", hint="try again in a moment", code="collection_loading")
        now_us = int(self._engines.clock.now_seconds() * 1_000_000)
        self._last = CollectionSnapshot(self.record, self.index, views, now_us, tiers, self._numbers)
        return self._last

    def _is_newest(self, last: CollectionSnapshot) -> bool:
        """Whether a snapshot can be given once more: nothing has changed, and nothing in it expires."""
        if self.record.retention_seconds is not None or len(last.views) != len(self._partitions) or len(last.tiers) != len(self._indexes):
            return False
        for number, view in last.views.items():  # loops: every query comes by, and a generator costs as much as what it looks at
            if self._partitions[number].view is not view:
                return False
        for index, tiers in last.tiers.items():  # noqa: SIM110 - as above
            if index.tiers is not tiers:
                return False
        return True

    def _pinned(self) -> tuple[dict[int, PartitionView], dict[LogicalIndex, Tiers]]:
        """Views and tiers that fit: rows are put into tiers before a view names them, and only new tiers lack what no view names any more."""
        while True:
            tiers = self._indexes.tiers()
            views = {number: view for number, partition in self._partitions.items() if (view := partition.view) is not None}
            if tiers == self._indexes.tiers():
                return views, tiers

    def staleness_seconds(self, snapshot: CollectionSnapshot) -> float:
        """How far a snapshot is behind the media log's head."""
        return self._staleness.seconds(snapshot.expected, self._engines.clock.monotonic_seconds())

    def freshness(self, snapshot: CollectionSnapshot) -> dict[str, object]:
        """The `freshness` object of an answer; its `offsets` can be handed back as `min_offsets`."""
        topic = self.record.source_topic
        return {
            "versions": {str(partition): view.loaded.version for partition, view in snapshot.views.items()},
            "offsets": {f"{topic}/{partition}": offset for partition, offset in snapshot.expected.items()},
            "staleness_ms": round(self.staleness_seconds(snapshot) * 1000, 1),
            "coverage": snapshot.coverage,
        }

    def observe(self) -> None:
        """Look at the media log's heads and set the gauges; about once a second.

        Raises
        ------
        UnavailableError
            The log does not answer.
        """
        if not self._started:
            return
        self._fill()
        heads = {partition: held.next_offset for partition, held in self._engines.log.bounds(self.record.source_topic).items()}
        now = self._engines.clock.monotonic_seconds()
        self._staleness.observe(heads, now)
        try:
            snapshot = self.snapshot()
        except UnavailableError:
            return
        self._numbers.forget(snapshot.views)
        expected = snapshot.expected
        self._staleness.forget(expected)
        self._set_gauges(snapshot, self._staleness.seconds(expected, now), self._staleness.records(expected))

    def _is_filling(self) -> bool:
        """Whether refine codes are on their way."""
        views = [view for partition in self._partitions.values() if (view := partition.view) is not None]
        files = (file for view in views for segment in view.loaded.segments.values() for file in segment.coming)
        return any(file.missing_bytes and file.error is None for file in files)

    def _fill(self) -> None:
        """Go on with files of which something is missing, where the store did not give it."""
        for partition in self._partitions.values():
            for segment in () if partition.view is None else partition.view.loaded.segments.values():
                for file in segment.coming:
                    file.fill(self._node.pool)

    def _set_gauges(self, snapshot: CollectionSnapshot, staleness_seconds: float, lag: Mapping[int, int]) -> None:
        metrics, name = self._engines.metrics, self.record.name
        metrics.staleness.labels(name).set(staleness_seconds)
        for partition, records in lag.items():
            metrics.lag_records.labels(name, "query", str(partition)).set(records)
        views = snapshot.views.values()
        segments = [segment for view in views for segment in view.loaded.segments.values()]
        tails = [view.tail for view in views]
        metrics.tail_rows.labels(name).set(sum(int(tail.live.sum()) for tail in tails))
        metrics.segments.labels(name, "loaded").set(len(segments))
        tail_bytes = sum(column.size_bytes for tail in tails for column in tail.vectors.values())
        filter_bytes = sum(segment.filter_index.size_bytes for segment in segments)
        self._node.memory.set_growing(name, tail_bytes + filter_bytes)
        columns = [column for segment in segments for column in segment.vectors.values()]
        for tier, kind in (("flat", VectorColumn), ("refine", CodedColumn)):
            metrics.index_bytes.labels(name, tier).set(sum(column.size_bytes for column in columns if isinstance(column, kind)))
        metrics.index_bytes.labels(name, "tail").set(tail_bytes)
        sizes = [index.size_bytes for index in self._indexes.all().values()]
        for tier in ("big", "small"):
            metrics.index_bytes.labels(name, tier).set(sum(size[tier] for size in sizes))
        metrics.index_bytes.labels(name, "mapped").set(sum(column.mapped_bytes for column in columns))
        metrics.index_bytes.labels(name, "filters").set(filter_bytes)
        metrics.index_bytes.labels(name, "pending").set(sum(segment.missing_bytes for segment in segments))
        self._set_recall(snapshot)

    def _set_recall(self, snapshot: CollectionSnapshot) -> None:
        for each in self.index.fields:
            recall = snapshot.numbers(each.name).recall(self._engines.settings.target_recall)
            if recall is not None:
                self._engines.metrics.recall.labels(self.record.name, each.name).set(recall)
