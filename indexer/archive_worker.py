"""The archive worker of one collection: follows its share of the media topic and commits tars.

    assign -> claim and seek -> poll -> feed -> close and commit

Takes: partitions from the consumer group, positions from archive manifests. Gives: committed archives. Owns: one `PartitionArchiver` per partition.
Never: claims a partition again at once after it was fenced: only if the group assigns it again, or still leaves it here much later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from ulid import ULID

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, FencedError, HeadwaterError, SettingsError, SnapshotError, UnavailableError
from contracts.log import CommittedOffset, GroupReader, LogRecord
from indexer.archive_care import ArchiveCare
from indexer.partition_archiver import PartitionArchiver
from indexer.stage_lag import StageLag
from indexer.ulids import UlidSource

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.2
RETRY_SECONDS = 1.0
FENCED_CLOSINGS = 2
"""A fenced partition that the group leaves with this process for so many times `archive_seconds` is claimed again, as by `indexer.build_worker`."""
METRICS_SECONDS = 5.0


class ArchiveWorker:
    """Archives the partitions of one collection that the group assigns to this process.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics.
    collection : CollectionRecord
        What to archive.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord) -> None:
        self.engines, self.collection = engines, collection
        self.writer = f"archiver-{ULID()}"
        self.ulids = UlidSource()
        self.archivers: dict[int, PartitionArchiver] = {}
        self._starts: dict[int, float] = {}
        self._retry_commit: dict[int, float] = {}
        self._metrics_due = 0.0
        self.care = ArchiveCare()
        self._lag = StageLag(engines, collection, collection.source_topic, "archive")
        self._owned: frozenset[int] = frozenset()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. What lies in open tars stays in the log, where the next archiver finds it."""
        reader = self.engines.log.group_reader(self.collection.source_topic, self.collection.archive_group)
        try:
            while not stop.is_set():
                self._turn(reader, stop)
        finally:
            self.care.forget(reader)
            try:
                reader.close()
            except HeadwaterError as error:
                logger.warning("closing failed: %s", error)

    def _turn(self, reader: GroupReader, stop: threading.Event) -> None:
        try:
            self._start_partitions(reader)  # before the poll: what was polled before a seek is not what a new archiver begins with
            records = self._poll(reader)
            self._follow_assignment(reader)
            is_stalled = self._feed(records, reader)
            for partition, archiver in self.archivers.items():
                if self.care.is_walked(partition, archiver.next_offset):
                    archiver.close()
            for partition in list(self.archivers):
                self.archivers[partition].close_if_due(is_caught_up=not records)
            self._bound_memory(reader)
            for partition in list(self.archivers):
                self._commit(partition, reader)
            self._report()
            if is_stalled:
                stop.wait(RETRY_SECONDS)
        except UnavailableError as error:
            logger.warning("the log or store does not answer, trying again: %s", error)
            stop.wait(RETRY_SECONDS)

    def _poll(self, reader: GroupReader) -> list[LogRecord]:
        try:
            return reader.poll(POLL_SECONDS)
        except DataLossError as error:  # retention took records under the reader: commit what is here, then start again and record the loss
            now = self.engines.clock.monotonic_seconds()
            for partition, archiver in list(self.archivers.items()):
                archiver.close()
                self._commit(partition, reader)
                if archiver.closed and partition in self.archivers:
                    raise UnavailableError(f"{error.message}; what was read before is not committed yet") from error
                self._drop(partition)
                self._starts[partition] = now
            logger.error("partitions of %s start again: %s", self.collection.name, error)
            return []

    def _follow_assignment(self, reader: GroupReader) -> None:
        change = reader.take_assignment()
        if change is None:
            return
        self._owned = self._owned - change.revoked | change.assigned
        self.care.forget(reader, change.revoked)
        for partition in change.revoked:
            self._drop(partition)
        now = self.engines.clock.monotonic_seconds()
        self._starts.update(dict.fromkeys(change.assigned, now))

    def _drop(self, partition: int) -> None:
        self.archivers.pop(partition, None)
        self._starts.pop(partition, None)
        self._retry_commit.pop(partition, None)

    def _start_partitions(self, reader: GroupReader) -> None:
        now = self.engines.clock.monotonic_seconds()
        for partition in [p for p, due in self._starts.items() if due <= now]:
            del self._starts[partition]
            archiver = PartitionArchiver(self.engines, self.collection, partition, self.writer, self.ulids)
            try:
                offset = archiver.start()
                self.care.start(reader, partition, offset, self.engines.log.bounds(self.collection.source_topic)[partition].next_offset)
                reader.seek(partition, offset)
                self.archivers[partition] = archiver
            except (UnavailableError, SnapshotError) as error:
                logger.warning("partition %d cannot be archived yet: %s", partition, error)
                self._starts[partition] = now + RETRY_SECONDS
            except FencedError as error:
                self._let_go(partition, error)
            except CorruptError as error:
                self._stop_partition(partition, error)

    def _feed(self, records: list[LogRecord], reader: GroupReader) -> bool:
        """Give each record to its archiver; True where one could not be taken and is read again."""
        stalled: set[int] = set()
        for record in records:
            archiver = self.archivers.get(record.partition)
            if archiver is None or record.partition in stalled:
                continue
            try:
                archiver.feed(record, is_unread=self.care.is_unread(reader, record, archiver.next_offset))
            except UnavailableError as error:
                logger.warning("a record cannot be taken, reading partition %d again: %s", record.partition, error)
                stalled.add(record.partition)
                with suppress(SettingsError):  # revoked a moment ago; take_assignment tells in the next turn
                    reader.seek(record.partition, archiver.next_offset)
        if records:
            return bool(stalled)
        for partition, archiver in self.archivers.items():
            with suppress(SettingsError):
                archiver.pass_gap(reader.position(partition))
        return False

    def _bound_memory(self, reader: GroupReader) -> None:
        """Close the largest open tars while all together are too large; stop reading while closed ones wait for the store."""
        limit = self.engines.settings.archive_buffer_bytes
        buffered = sum(archiver.buffered_bytes for archiver in self.archivers.values())
        while buffered > limit and (largest := max(self.archivers.values(), key=lambda a: a.open_bytes)).open_bytes:
            buffered -= largest.open_bytes
            largest.close()
        waiting = sum(archiver.buffered_bytes - archiver.open_bytes for archiver in self.archivers.values())
        if waiting > limit:
            reader.pause(self.archivers)
        else:
            reader.resume(self.archivers)

    def _guard(self, partition: int, work: Callable[[], None]) -> None:
        try:
            work()
        except FencedError as error:
            self._let_go(partition, error)
        except CorruptError as error:
            self._drop(partition)
            self._stop_partition(partition, error)

    def _let_go(self, partition: int, error: FencedError) -> None:
        logger.warning("letting go of partition %d: %s", partition, error)
        self._drop(partition)
        self._starts[partition] = self.engines.clock.monotonic_seconds() + FENCED_CLOSINGS * self.engines.settings.archive_seconds

    def _stop_partition(self, partition: int, error: CorruptError) -> None:
        logger.error("archiving partition %d is stopped, the others go on: %s", partition, error)
        self.engines.metrics.records.labels(self.collection.name, "archive", "stopped").inc()

    def _commit(self, partition: int, reader: GroupReader) -> None:
        archiver = self.archivers[partition]
        now = self.engines.clock.monotonic_seconds()
        if not archiver.closed or self._retry_commit.get(partition, 0.0) > now:
            return

        def commit() -> None:
            archiver.commit()
            reader.commit(partition, CommittedOffset(archiver.manifest.checkpoint.media_offset))

        try:
            self._guard(partition, commit)
        except (UnavailableError, SnapshotError) as error:
            logger.warning("the archive commit of partition %d is not settled, trying again: %s", partition, error)
            self._retry_commit[partition] = now + RETRY_SECONDS

    def _report(self) -> None:
        now = self.engines.clock.monotonic_seconds()
        if now < self._metrics_due:
            return
        self._metrics_due = now + METRICS_SECONDS
        metrics, name = self.engines.metrics, self.collection.name
        self._lag.measure({partition: archiver.next_offset for partition, archiver in self.archivers.items()}, self._owned)
        metrics.archive_bytes.labels(name).set(sum(archiver.manifest.size_bytes for archiver in self.archivers.values()))
