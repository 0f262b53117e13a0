"""The manifest follower: one thread that loads what commits announce, and swaps it in.

Takes: notices, a poll as the net. Gives: newer views, seeks for the tail reader. Owns: when a partition is looked at.
Never: cuts a tail before the new segments are loaded, or stops serving an old view because a new one cannot be loaded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from contracts.attributes import parse_time
from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, HeadwaterError
from query.hot_load import PartitionLoader, check_manifest
from query.partition import Partition

logger = logging.getLogger(__name__)

LOAD_THREADS = 4
RETRY_SECONDS = 1.0


class ManifestFollower:
    """Keeps the partitions of one index at their newest manifest.

    Parameters
    ----------
    engines : Engines
        Store, settings, metrics, clock.
    record, index
        The collection and its served index.
    partitions : Mapping of int to Partition
        What is kept up to date.
    start_partition : callable
        Tells the tail reader to read a partition from its `vectors_offset`.
    """

    def __init__(
        self,
        engines: Engines,
        record: CollectionRecord,
        index: IndexRecord,
        partitions: Mapping[int, Partition],
        start_partition: Callable[[int], None],
    ) -> None:
        self._engines, self._record, self._index = engines, record, index
        self._partitions, self._start_partition = partitions, start_partition
        self._loaders = {number: PartitionLoader(engines.store, record, index, number) for number in partitions}
        self._wanted: set[int] = set(partitions)
        self._retry: set[int] = set()
        self._errors: dict[int, str] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"follow-{record.name}", daemon=True)

    @property
    def errors(self) -> Mapping[int, str]:
        """What stands in the way of partitions whose last load failed."""
        return dict(self._errors)

    def start(self) -> None:
        """Start the thread; it loads every partition at once."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End the thread after the load that it is in."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def notice(self, partition: int, version: int) -> None:
        """Look at a partition now, unless its view has that version already (0: whatever it has)."""
        view = self._partitions[partition].view
        if version and view is not None and view.loaded.version >= version:
            return
        with self._wake:
            self._wanted.add(partition)
            self._wake.notify_all()

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - a mistake of ours; the role ends with it rather than serving ever older answers
            self.failure = error

    def _follow(self) -> None:
        next_poll = self._engines.clock.monotonic_seconds() + self._engines.settings.query_poll_seconds
        with ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="hot-load") as pool:
            while True:
                now = self._engines.clock.monotonic_seconds()
                polled = now >= next_poll
                if polled:
                    next_poll = now + self._engines.settings.query_poll_seconds
                work = self._next_work(next_poll - now, polled)
                if work is None:
                    return
                list(pool.map(self._load, sorted(work)))

    def _next_work(self, seconds: float, everything: bool) -> set[int] | None:
        """Partitions to look at, waiting for some until the next poll or retry; None at the end."""
        with self._wake:
            if everything:
                self._wanted |= set(self._partitions)
            elif not self._wanted and not self._stopping:
                self._wake.wait(max(0.0, min(seconds, RETRY_SECONDS) if self._retry else seconds))
                if not self._wanted:
                    self._wanted |= self._retry
            work, self._wanted = self._wanted, set()
            self._retry -= work
            return None if self._stopping else work

    def _load(self, number: int) -> None:
        partition, name = self._partitions[number], self._record.name
        current = None if partition.view is None else partition.view.loaded
        try:
            loaded = self._loaders[number].load(current)
            if loaded is None:
                self._errors.pop(number, None)
                return
            check_manifest(loaded.read.manifest, self._record, self._index)
        except CorruptError as error:
            logger.error("a manifest or segment is damaged; the old view is kept: %s", error, extra={"collection": name, "partition": number})
            self._engines.metrics.records.labels(name, "hot_load", "corrupt").inc()
            self._errors[number] = str(error)
            return  # only the poll tries again: the same bytes would be downloaded over and over
        except HeadwaterError as error:
            logger.warning("a manifest cannot be loaded now: %s", error, extra={"collection": name, "partition": number})
            self._errors[number] = str(error)
            with self._wake:
                self._retry.add(number)
            return
        if partition.swap(loaded) is not None:
            self._start_partition(number)
        self._errors.pop(number, None)
        if current is not None:
            self._observe(loaded.read.manifest.committed_at)

    def _observe(self, committed_at: str) -> None:
        try:
            committed_us = parse_time(committed_at)
        except ValueError:  # a clock that stood wrong must not stop the loading
            return
        self._engines.metrics.hot_load.labels(self._record.name).observe(max(0.0, self._engines.clock.now_seconds() - committed_us / 1e6))
