"""The maintain worker of one collection: compaction, garbage collection and truncation of the partitions that the group gives to this process.

    assign -> claim -> look: compact while something is due -> announce -> collect -> truncate the vectors topic

Takes: partitions from a consumer group per index, in which nothing is read. Gives: commit notices. Owns: one compactor and collector per partition.
Never: claims a partition again at once after it was fenced: only if the group assigns it again, or still leaves it here much later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ulid import ULID

from backends.catalog.archive import archive_chain
from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, FencedError, HeadwaterError, SnapshotError, UnavailableError
from contracts.log import GroupReader, LogProducer
from contracts.manifest import Manifest
from indexer.announce import announce
from indexer.compactor import PartitionCompactor
from indexer.garbage import PartitionCollector, collect_archive
from indexer.index_codecs import IndexCodecs
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0
FENCED_LOOKS = 6
"""A fenced partition that the group leaves with this process for so many times `maintain_seconds` is claimed again, as by `indexer.build_worker`."""
COLLECT_SECONDS = 600.0
"""How often at most a partition's objects are listed: a request for every thousand of them."""


class IndexMaintenance:
    """Maintains one index.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics.
    collection, index
        What is maintained.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, index: IndexRecord) -> None:
        self.engines, self.collection, self.index = engines, collection, index
        self.writer = f"compactor-{ULID()}"
        self.ulids = UlidSource()
        self.codecs = IndexCodecs(engines.store, collection, index)
        self.compactors: dict[int, PartitionCompactor] = {}
        self.collectors: dict[int, PartitionCollector] = {}
        self._starts: dict[int, float] = {}
        self._looks: dict[int, float] = {}
        self._collects: dict[int, float] = {}
        self._producer: LogProducer | None = None
        self._renew_producer = threading.Event()
        self._reader: GroupReader = engines.log.group_reader(index.vectors_topic, collection.group(index.name, "maintain"))

    def close(self) -> None:
        """Leave the group."""
        for closable in (self._reader, self._producer):
            try:
                if closable is not None:
                    closable.close()
            except HeadwaterError as error:
                logger.warning("closing failed: %s", error)

    def turn(self, stop: threading.Event) -> None:
        """Follow the assignment, and do what is due.

        Raises
        ------
        UnavailableError
            Log or store do not answer.
        """
        self._reader.poll(POLL_SECONDS)  # membership alone: no partition is ever sought, so no record comes
        self._follow_assignment()
        now = self.engines.clock.monotonic_seconds()
        for partition in [p for p, due in self._starts.items() if due <= now]:
            self._start(partition, now)
        for partition in [p for p, due in self._looks.items() if due <= now]:
            if stop.is_set():
                return
            self._looks[partition] = now + self.engines.settings.maintain_seconds
            self._guard(partition, lambda p=partition: self._maintain(p))  # type: ignore[misc]

    def _follow_assignment(self) -> None:
        change = self._reader.take_assignment()
        if change is None:
            return
        for partition in change.revoked:
            self._drop(partition)
        now = self.engines.clock.monotonic_seconds()
        self._starts.update(dict.fromkeys(change.assigned, now))

    def _drop(self, partition: int) -> None:
        for held in (self.compactors, self.collectors, self._starts, self._looks, self._collects):
            held.pop(partition, None)

    def _start(self, partition: int, now: float) -> None:
        source = PartitionSource(self.engines, self.collection, self.index, partition)
        compactor = PartitionCompactor(source, self.writer, self.ulids, self.codecs)
        self._starts[partition] = now + RETRY_SECONDS

        def start() -> None:
            compactor.start()
            del self._starts[partition]
            self.compactors[partition] = compactor
            self.collectors[partition] = PartitionCollector(source.chain, self.engines.clock, self.engines.settings.gc_seconds)
            self._looks[partition] = self._collects[partition] = now

        self._guard(partition, start)

    def _guard(self, partition: int, work: Callable[[], None]) -> None:
        try:
            work()
        except FencedError as error:
            logger.warning("letting go of partition %d: %s", partition, error)
            self._drop(partition)
            self._starts[partition] = self.engines.clock.monotonic_seconds() + FENCED_LOOKS * self.engines.settings.maintain_seconds
        except (SnapshotError, UnavailableError) as error:
            logger.warning("partition %d is looked at again later: %s", partition, error)
        except CorruptError as error:
            self._drop(partition)
            logger.error("maintenance of partition %d is stopped, the others go on: %s", partition, error)
            self.engines.metrics.records.labels(self.collection.name, "maintain", "stopped").inc()

    # ---- the work ----------------------------------------------------------------------------------------------------

    def _maintain(self, partition: int) -> None:
        read = self.compactors[partition].compact()
        now, settings = self.engines.clock.monotonic_seconds(), self.engines.settings
        if read is not None:
            self._announce(read.manifest)
            self._looks[partition] = now  # there may be more to do, but the group is to hear from us in between
            return
        if self._collects[partition] > now:
            return
        self._collects[partition] = now + max(settings.maintain_seconds, min(COLLECT_SECONDS, settings.gc_seconds / 4))
        self._collect(partition)

    def _collect(self, partition: int) -> None:
        metrics, name = self.engines.metrics, self.collection.name
        with metrics.stage.labels("collect").time():
            done = self.collectors[partition].collect()
            archived = self._collect_archive(partition)
        for kind, count in (*done.deleted.items(), *archived.items()):
            metrics.collected.labels(name, kind).inc(count)
        metrics.unreferenced.labels(name, str(partition)).set(done.waiting)
        start_offset = self.engines.log.bounds(self.index.vectors_topic)[partition].start_offset
        if done.vectors_offset > start_offset:
            self.engines.log.truncate(self.index.vectors_topic, {partition: done.vectors_offset})

    def _collect_archive(self, partition: int) -> dict[str, int]:
        """The archive belongs to the collection: its garbage goes with that of the first index."""
        if self.index.name != self.collection.indexes[0].name:
            return {}
        return collect_archive(archive_chain(self.engines.store, self.collection, partition), self.engines.clock, self.engines.settings.gc_seconds)

    def _announce(self, manifest: Manifest) -> None:
        """Tell query nodes; a lost notice costs them one poll interval, nothing else."""
        if self._producer is None or self._renew_producer.is_set():
            old, self._producer = self._producer, self.engines.log.producer()
            self._renew_producer.clear()
            if old is not None:
                old.close()
        announce(self._producer, self.index.vectors_topic, manifest, self._renew_producer)


class MaintainWorker:
    """Maintains all indexes of one collection.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics.
    collection : CollectionRecord
        Which collection.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord) -> None:
        self.engines, self.collection = engines, collection

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        indexes: list[IndexMaintenance] = []
        try:
            for index in self.collection.indexes:
                indexes.append(IndexMaintenance(self.engines, self.collection, index))
            while not stop.is_set():
                for each in indexes:
                    self._turn(each, stop)
        finally:
            for each in indexes:
                each.close()

    def _turn(self, index: IndexMaintenance, stop: threading.Event) -> None:
        try:
            index.turn(stop)
        except UnavailableError as error:
            logger.warning("the log or store does not answer, trying again: %s", error)
            stop.wait(RETRY_SECONDS)
