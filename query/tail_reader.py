"""The tail reader: one thread that brings new records of the vectors topic to the partitions of a collection.

Takes: a log reader over all partitions. Gives: records to `Partition.take_record`, notices to the manifest follower.
Owns: the reader's positions and which partitions stand still. Never: skips a record that it cannot read, or a stretch that the log has lost.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping

from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, HeadwaterError, SnapshotError, UnavailableError
from contracts.log import LogReader, LogRecord
from contracts.vectors_batch import CommitNotice
from query.memory_budget import MemoryBudget
from query.partition import Partition

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
"""Longest wait inside one poll; records end it at once, so this only bounds how late a seek is noticed."""
RETRY_SECONDS = 0.5


class TailReader:
    """Reads the vectors topic of one index.

    Parameters
    ----------
    engines : Engines
        Log, metrics, clock.
    record, index
        The collection and its served index.
    partitions : Mapping of int to Partition
        Where records go.
    on_notice : callable
        Told (partition, version) of commits, and (partition, 0) when only a newer manifest can help.
    memory : MemoryBudget
        Where it is exceeded, nothing is read until a manifest has cut the tails.
    """

    def __init__(
        self,
        engines: Engines,
        record: CollectionRecord,
        index: IndexRecord,
        partitions: Mapping[int, Partition],
        on_notice: Callable[[int, int], None],
        memory: MemoryBudget,
    ) -> None:
        self._engines, self._record, self._topic = engines, record, index.vectors_topic
        self._partitions, self._on_notice, self._memory = partitions, on_notice, memory
        self._starts: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._still = set(partitions)  # written by the thread alone
        self._retry_at: dict[int, float] = {}
        self._stop = threading.Event()
        self._started_at = engines.clock.now_seconds()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"tail-{record.name}", daemon=True)

    @property
    def held(self) -> frozenset[int]:
        """Loaded partitions that are not read on: a record is damaged, or the log lost what comes next."""
        return frozenset(self._retry_at)

    def start(self) -> None:
        """Start the thread; it reads nothing until `start_partition`."""
        self._thread.start()

    def start_partition(self, partition: int) -> None:
        """Read a partition from its `vectors_offset` on, also after it stood still."""
        self._starts.put(partition)

    def stop(self, timeout_seconds: float) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - a mistake of ours; the role ends with it rather than serving ever older answers
            self.failure = error

    def _read(self) -> None:
        reader: LogReader | None = None
        while not self._stop.is_set():
            try:
                if reader is None:
                    reader = self._open()
                self._turn(reader)
            except UnavailableError as error:
                logger.warning("the vectors topic cannot be read now: %s", error, extra={"collection": self._record.name})
                self._stop.wait(RETRY_SECONDS)
            except HeadwaterError as error:  # the topic was deleted, say; discovery decides what becomes of the collection
                logger.error("the vectors topic cannot be read: %s", error, extra={"collection": self._record.name})
                self._close(reader)
                reader = None
                self._stop.wait(RETRY_SECONDS)
        self._close(reader)

    def _open(self) -> LogReader:
        reader = self._engines.log.reader(self._topic, {number: partition.vectors_offset for number, partition in self._partitions.items()})
        reader.pause(self._still)
        return reader

    def _close(self, reader: LogReader | None) -> None:
        if reader is not None:
            try:
                reader.close()
            except HeadwaterError as error:
                logger.warning("a reader did not close: %s", error)

    def _turn(self, reader: LogReader) -> None:
        self._revive()
        while not self._starts.empty():
            number = self._starts.get()
            self._retry_at.pop(number, None)
            reader.seek(number, self._partitions[number].vectors_offset)
            reader.resume((number,))
            self._still.discard(number)
        if self._memory.exceeded:
            self._stop.wait(POLL_SECONDS)
            return
        try:
            records = reader.poll(POLL_SECONDS)
        except DataLossError as error:
            self._hold_lost(reader, error)
            return
        for record in records:
            if record.partition not in self._still:
                self._take(reader, record)

    def _take(self, reader: LogReader, record: LogRecord) -> None:
        metrics, name = self._engines.metrics, self._record.name
        try:
            taken = self._partitions[record.partition].take_record(record)
        except CorruptError as error:
            logger.error("a record of the vectors topic is damaged; its partition stands still: %s", error, extra={"collection": name})
            metrics.records.labels(name, "query", "corrupt").inc()
            self._hold(reader, record.partition, self._engines.settings.query_poll_seconds)
            return
        except (UnavailableError, SnapshotError) as error:
            logger.warning("a patch's row cannot be read now: %s", error, extra={"collection": name})
            self._hold(reader, record.partition, RETRY_SECONDS)
            return
        if isinstance(taken, CommitNotice):
            self._on_notice(record.partition, taken.version)
        elif taken is not None:
            now = self._engines.clock.now_seconds()
            metrics.records.labels(name, "query", "searchable").inc(len(taken))
            histogram = metrics.time_to_searchable.labels(name)
            for produced_at_us in taken:
                if produced_at_us >= self._started_at * 1e6:  # what lay there before this node came says nothing about its speed
                    histogram.observe(max(0.0, now - produced_at_us / 1e6))

    def _hold(self, reader: LogReader, partition: int, seconds: float) -> None:
        reader.pause((partition,))
        self._still.add(partition)
        self._retry_at[partition] = self._engines.clock.monotonic_seconds() + seconds

    def _revive(self) -> None:
        """Let partitions that were held try again from where they are, now and then: what was wrong may have been mended."""
        if self._retry_at:
            now = self._engines.clock.monotonic_seconds()
            for number in [number for number, due in self._retry_at.items() if now >= due]:
                self._starts.put(number)

    def _hold_lost(self, reader: LogReader, error: DataLossError) -> None:
        """Hold the partitions whose position the log does not hold; only a manifest with a later checkpoint can move them on."""
        bounds = self._engines.log.bounds(self._topic)
        lost = []
        for number in set(self._partitions) - self._still:
            held = bounds.get(number)
            if held is None or not held.start_offset <= reader.position(number) <= held.next_offset:
                lost.append(number)
        logger.warning("the log does not hold the next record of partitions %s: %s", lost, error, extra={"collection": self._record.name})
        for number in lost:
            self._hold(reader, number, self._engines.settings.query_poll_seconds)
            self._on_notice(number, 0)
        if not lost:  # truncated and refilled between the two looks: positions are read anew
            for number in set(self._partitions) - self._still:
                reader.seek(number, self._partitions[number].vectors_offset)
