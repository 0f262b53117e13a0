"""Metrics: every name, label and bucket, in base units, in one place.

Takes: a registry. Gives: `Metrics`. Owns: names with the prefix ``headwater_`` (docs/metrics.md is tested against them).
Never: makes a metric at import, or labels by anything unbounded (ids, keys).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 300)
ITEM_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The metrics of one process.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they are registered; each process makes one and serves it at ``/metrics``.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.records = self._counter("records", "records by stage and how they ended", "collection", "stage", "outcome")
        self.time_to_searchable = self._histogram("time_to_searchable_seconds", "from produce to searchable on this node", "collection")
        self.staleness = self._gauge("staleness_seconds", "how far answers are behind the media log's head", "collection")
        self.lag_records = self._gauge("lag_records", "records that this stage has yet to do", "collection", "stage", "partition")
        self.lag_seconds = self._gauge("lag_seconds", "age of the oldest record that this stage has not done", "collection", "stage")
        self.paused = self._gauge("paused_partitions", "partitions of this worker that an operator paused", "collection", "stage")
        self.stage = self._histogram("stage_seconds", "time spent in one step of a stage", "stage")
        self.embed_batch_items = self._histogram("embed_batch_items", "items in one call of the encoder", "collection", buckets=ITEM_BUCKETS)
        self.segments = self._gauge("segments", "segments by state", "collection", "state")
        self.segment_bytes = self._gauge("segment_bytes", "bytes of the committed segments", "collection")
        self.archive_bytes = self._gauge("archive_bytes", "bytes of the committed tars of this archiver's partitions", "collection")
        self.commit = self._histogram("commit_seconds", "from sealing to the committed manifest", "collection")
        self.commit_conflicts = self._counter("commit_conflicts", "commits that met another writer's manifest", "collection")
        self.compactions = self._counter("compactions", "commits of the compactor, by why they were due", "collection", "reason")
        self.collected = self._counter("collected_objects", "objects that garbage collection deleted", "collection", "kind")
        self.unreferenced = self._gauge(
            "unreferenced_objects", "objects that no kept manifest names and that are not collected yet", "collection", "partition"
        )
        self.hot_load = self._histogram("hot_load_seconds", "from a manifest's commit to being served", "collection")
        self.query = self._histogram("query_seconds", "time of one query by step", "collection", "stage")
        self.queries = self._counter("query", "queries by how they ended", "collection", "outcome")
        self.dead_letters = self._counter("dead_letters", "dead letters written, once for each reason in them", "collection", "reason")
        self.generation = self._gauge("generation", "generation that new segments are coded in; 0 while they are flat", "collection", "field")
        self.quantization_error_ratio = self._gauge(
            "quantization_error_ratio", "quantization error of the newest segment over that at training", "collection", "field"
        )
        self.list_imbalance = self._gauge("list_imbalance", "imbalance of the newest segment's inverted lists; 1 is even", "collection", "field")
        self.store_requests = self._counter("store_requests", "requests to the object store", "op", "outcome")
        self.tail_rows = self._gauge("tail_rows", "searchable rows that are in no loaded segment", "collection")
        self.index_bytes = self._gauge("index_bytes", "bytes of the index in memory by tier", "collection", "tier")
        self.recall = self._gauge(
            "recall_estimate",
            "share of the true nearest vectors that a search finds at `target_recall`, 0 to 1, as segments measured it when they were written",
            "collection",
            "field",
        )

    def set_lag(self, collection: str, stage: str, records: Mapping[int, int], seconds: float) -> None:
        """Set both lags of a stage: records by partition, and the age of the oldest record that is not done."""
        for partition, count in records.items():
            self.lag_records.labels(collection, stage, str(partition)).set(count)
        self.lag_seconds.labels(collection, stage).set(seconds)

    def forget_lag(self, collection: str, stage: str, partition: int) -> None:
        """Tell no more of a partition that another worker has."""
        self.lag_records.remove(collection, stage, str(partition))

    def set_coding(self, collection: str, field: str, generation: int, statistics: Mapping[str, Any]) -> None:
        """Tell how well the newest coded segment of a field fits its generation (`statistics` of its part; empty without vectors)."""
        self.generation.labels(collection, field).set(generation)
        if statistics:
            self.quantization_error_ratio.labels(collection, field).set(statistics["quantization_error_ratio"])
            self.list_imbalance.labels(collection, field).set(statistics["imbalance"])

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"headwater_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"headwater_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS_BUCKETS) -> Histogram:
        return Histogram(f"headwater_{name}", text, labels, registry=self.registry, buckets=buckets)
