"""The build worker of one index: follows its share of the vectors topic and commits what grows.

    assign -> claim and seek -> poll -> feed -> commit what is sealed -> announce -> begin the next seal
    beside it, a thread each: seal one segment; train or re-encode flat segments (`indexer.coding`)

Takes: partitions from the consumer group, positions from manifests. Gives: commit notices. Owns: one `PartitionBuilder` per partition.
Never: claims a partition again at once after it was fenced: only if the group assigns it again, or still leaves it here much later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from ulid import ULID

from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, FencedError, HeadwaterError, SnapshotError, UnavailableError
from contracts.log import CommittedOffset, GroupReader, LogProducer, LogRecord
from contracts.manifest import Manifest
from indexer.announce import announce
from indexer.background import Background
from indexer.coding import IndexCoding
from indexer.index_codecs import IndexCodecs
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.reader_position import position_of
from indexer.stage_lag import StageLag
from indexer.ulids import UlidSource

logger = logging.getLogger(__name__)
POLL_SECONDS, SEALING_POLL_SECONDS = 0.1, 0.02
"""How long a turn waits for records: while a segment is being sealed no longer than its commit may wait."""
RETRY_SECONDS = 1.0
METRICS_SECONDS = 5.0
FENCED_SEALS = 2
"""A fenced partition that the group leaves with this process for so many times `seal_seconds` is claimed again: its other owner came and went between
two polls. Should two processes both think that it is theirs, each has time to commit."""


class BuildWorker:
    """Builds the partitions of one index that the group assigns to this process.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics.
    collection, index
        What to build.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, index: IndexRecord) -> None:
        self.engines, self.collection, self.index = engines, collection, index
        self.writer = f"builder-{ULID()}"
        self.ulids = UlidSource()
        self.builders: dict[int, PartitionBuilder] = {}
        self.codecs = IndexCodecs(engines.store, collection, index)
        self.coding = IndexCoding(engines, collection, self.codecs, self.ulids)
        self._seals: Background[None] = Background(f"seal-{collection.name}")
        self._sealing: tuple[int, PartitionBuilder] | None = None
        self._full: frozenset[int] = frozenset()
        self._starts: dict[int, float] = {}
        self._retry_at: dict[int, float] = {}
        self._metrics_due = 0.0
        self._lag = StageLag(engines, collection, index.vectors_topic, "index")
        self._owned: frozenset[int] = frozenset()
        self.take(collection)
        self._producer: LogProducer
        self._renew_producer = threading.Event()

    def take(self, record: CollectionRecord) -> None:
        """Follow the newest version of the collection's record: whether this index is the one that answers (any thread)."""
        self.is_active = record.active_index == self.index.name

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. What has grown but is not committed stays in the log, where the next builder finds it."""
        self._producer = self.engines.log.producer()
        opened: list[LogProducer | GroupReader] = []
        try:
            reader = self.engines.log.group_reader(self.index.vectors_topic, self.collection.group(self.index.name, "index"))
            opened.append(reader)
            while not stop.is_set():
                self._turn(reader, stop)
        finally:
            self.coding.close()
            self._seals.close(self.engines.settings.stop_seconds / 4)  # its objects belong to no manifest, but the store is closed next
            for closable in (*opened, self._producer):
                try:
                    closable.close()
                except HeadwaterError as error:
                    logger.warning("closing failed: %s", error)

    def _turn(self, reader: GroupReader, stop: threading.Event) -> None:
        try:
            self._renew()
            self._start_partitions(reader)  # before the poll: what was polled before a seek is not what a new builder begins with
            records = self._poll(reader)  # between here and `feed` nothing may fail: a polled record does not come again
            self._follow_assignment(reader)
            for record in records:
                builder = self.builders.get(record.partition)
                if builder is not None and record.offset >= builder.vectors_offset:
                    self._guard(record.partition, partial(builder.feed, record))
            self._settle_seal()
            for partition in [partition for partition, builder in self.builders.items() if builder.pending is not None]:
                self._commit(partition, reader)
            self._commit_coded()
            self._begin_seal()
            self._report()
        except UnavailableError as error:
            logger.warning("the log or store does not answer, trying again: %s", error)
            stop.wait(RETRY_SECONDS)
        except DataLossError as error:  # the topic was made again: each partition looks at its manifest anew
            logger.error("partitions of %s start again: %s", self.collection.name, error)
            again = self.engines.clock.monotonic_seconds() + RETRY_SECONDS
            for partition in list(self.builders):
                self._drop(partition)
                self._starts[partition] = again

    def _poll(self, reader: GroupReader) -> list[LogRecord]:
        """The next records of partitions that may grow; one whose next record was truncated was built by somebody else, who committed that far."""
        full = frozenset(partition for partition, builder in self.builders.items() if builder.is_full)
        reader.pause(full - self._full)
        reader.resume(self._full - full)
        self._full = full
        try:
            return reader.poll(POLL_SECONDS if self._seals.is_free else SEALING_POLL_SECONDS)
        except DataLossError:
            held = self.engines.log.bounds(self.index.vectors_topic)
            positions = {partition: position for partition in held if (position := position_of(reader, partition)) >= 0}
            overtaken = [partition for partition, position in positions.items() if position < held[partition].start_offset]
            if not overtaken:
                raise
            for partition in overtaken:
                reader.seek(partition, held[partition].start_offset)
                if partition in self.builders:
                    self._let_go(partition, "its next batch is committed and truncated")
            return []

    def _renew(self) -> None:
        """Take a new producer after a notice was not stored."""
        if self._renew_producer.is_set():
            old, self._producer = self._producer, self.engines.log.producer()
            self._renew_producer.clear()
            old.close()

    def _follow_assignment(self, reader: GroupReader) -> None:
        change = reader.take_assignment()
        if change is None:
            return
        self._owned = self._owned - change.revoked | change.assigned
        for partition in change.revoked:
            self._drop(partition)
        now = self.engines.clock.monotonic_seconds()
        self._starts.update(dict.fromkeys(change.assigned, now))

    def _drop(self, partition: int) -> None:
        self.builders.pop(partition, None)
        self._starts.pop(partition, None)
        self._retry_at.pop(partition, None)

    def _start_partitions(self, reader: GroupReader) -> None:
        now = self.engines.clock.monotonic_seconds()
        for partition in [p for p, due in self._starts.items() if due <= now]:
            del self._starts[partition]
            builder = PartitionBuilder(PartitionSource(self.engines, self.collection, self.index, partition), self.writer, self.ulids, self.codecs)
            try:
                reader.seek(partition, builder.start())
                self.builders[partition] = builder
            except (UnavailableError, SnapshotError) as error:
                logger.warning("partition %d cannot start yet: %s", partition, error)
                self._starts[partition] = now + RETRY_SECONDS
            except CorruptError as error:
                self._stop_partition(partition, error)

    def _guard(self, partition: int, work: Callable[[], object]) -> None:
        try:
            work()
        except FencedError as error:
            self._let_go(partition, error)
        except CorruptError as error:
            self._drop(partition)
            self._stop_partition(partition, error)

    def _let_go(self, partition: int, why: object) -> None:
        logger.warning("letting go of partition %d: %s", partition, why)
        self._drop(partition)
        self._starts[partition] = self.engines.clock.monotonic_seconds() + FENCED_SEALS * self.engines.settings.seal_seconds

    def _stop_partition(self, partition: int, error: CorruptError) -> None:
        logger.error("partition %d is stopped, the others go on: %s", partition, error)
        self.engines.metrics.records.labels(self.collection.name, "index", "stopped").inc()

    def _begin_seal(self) -> None:
        """Seal the segment that has been due for longest, in a thread: meanwhile the next ones grow."""
        if not self._seals.is_free:
            return
        due = [partition for partition, builder in self.builders.items() if builder.pending is None and self._may_try(partition) and builder.is_due()]
        due = [partition for partition in due if not self.coding.holds(partition)]
        if due:
            partition = min(due, key=lambda each: self.builders[each].started_at)
            builder = self.builders[partition]
            builder.close_segment()
            self._sealing = partition, builder
            self._seals.start(lambda stop: builder.seal())

    def _settle_seal(self) -> None:
        """Take note of a seal that ended; its error is the partition's, if that still has the same builder."""
        finished = self._seals.take()
        if finished is None or self._sealing is None:
            return
        (partition, builder), self._sealing = self._sealing, None
        error = finished.error
        if error is not None and self.builders.get(partition) is builder:

            def fail() -> None:
                raise error

            self._try(partition, "seal", fail)

    def _commit(self, partition: int, reader: GroupReader) -> None:
        builder = self.builders[partition]

        def commit() -> None:
            read = builder.commit()
            if read is not None:
                self._announce(read.manifest)
                reader.commit(partition, CommittedOffset(read.manifest.checkpoint.vectors_offset))

        if self._may_try(partition):
            self._try(partition, "commit", commit)

    def _may_try(self, partition: int) -> bool:
        return self._retry_at.get(partition, 0.0) <= self.engines.clock.monotonic_seconds()

    def _try(self, partition: int, what: str, work: Callable[[], None]) -> None:
        try:
            self._guard(partition, work)
        except (UnavailableError, SnapshotError) as error:
            logger.warning("the %s of partition %d is not settled, trying again: %s", what, partition, error)
            self._retry_at[partition] = self.engines.clock.monotonic_seconds() + RETRY_SECONDS

    def _commit_coded(self) -> None:
        """Commit a flat part that was re-encoded in the background, if there is one, between two seals."""
        part = self.coding.turn(self.builders)
        if part is None:
            return
        builder = self.builders[part.partition]

        def commit() -> None:
            read = builder.replace_part(part)
            if read is None:
                self.coding.upload_again(part, builder)
            else:
                self._announce(read.manifest)

        try:
            self._guard(part.partition, commit)
        except (UnavailableError, SnapshotError) as error:
            logger.warning("a re-encoded part of partition %d is not committed, trying again: %s", part.partition, error)
            self.coding.retry_later()

    def _announce(self, manifest: Manifest) -> None:
        """Tell query nodes; a lost notice costs them one poll interval, nothing else."""
        announce(self._producer, self.index.vectors_topic, manifest, self._renew_producer)

    def _report(self) -> None:
        now = self.engines.clock.monotonic_seconds()
        if now < self._metrics_due:
            return
        self._metrics_due = now + METRICS_SECONDS
        metrics, name = self.engines.metrics, self.collection.name
        if not self.is_active:  # two indexes of a collection have one lag: that of the index that answers
            return
        self._lag.measure({partition: builder.vectors_offset for partition, builder in self.builders.items()}, self._owned)
        metrics.segments.labels(name, "committed").set(sum(len(b.manifest.segments) for b in self.builders.values()))
        metrics.segments.labels(name, "growing").set(sum(b.growing is not None for b in self.builders.values()))
        metrics.segment_bytes.labels(name).set(sum(s.size_bytes for b in self.builders.values() for s in b.manifest.segments))
