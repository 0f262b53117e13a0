"""The manifest follower: one thread that loads what commits announce, and swaps it in.

Takes: notices, a poll as the net. Gives: newer views, seeks for the tail reader. Owns: when a partition is looked at.
Never: cuts a tail before the new segments are loaded, or stops serving an old view because a new one cannot be loaded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf

from backends.catalog.manifests import NEWEST
from contracts.attributes import parse_time
from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, HeadwaterError, UnavailableError
from query.hot_load import PartitionLoader
from query.load_pool import LoadPool
from query.memory_budget import MemoryFullError
from query.partition import Partition
from query.partition_view import LoadedManifest
from query.segments import SegmentLoader

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 64
"""Partitions that are looked at together; their segments are loaded by the node's threads."""
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
    segments, pool
        Opens segments, on these threads.
    start_partition : callable
        Tells the tail reader to read a partition from its `vectors_offset`.
    on_swap : callable
        Told that a partition serves something new.
    """

    def __init__(
        self,
        engines: Engines,
        record: CollectionRecord,
        index: IndexRecord,
        partitions: Mapping[int, Partition],
        segments: SegmentLoader,
        pool: LoadPool,
        start_partition: Callable[[int], None],
        on_swap: Callable[[], None],
    ) -> None:
        self._engines, self._record, self._index = engines, record, index
        self._partitions, self._start_partition, self._on_swap = partitions, start_partition, on_swap
        self._loaders = {number: PartitionLoader(engines.store, record, index, number, segments, pool) for number in partitions}
        self._wanted = dict.fromkeys(partitions, NEWEST)
        """Partitions to be looked at, and up to which version: behind a commit that was told of nothing is looked for, it would be told of too."""
        self._retry_at: dict[int, float] = {}
        self._busy: set[int] = set()
        self._errors: dict[int, str] = {}
        self._wake = threading.Condition()
        self._may_serve = threading.Event()
        self._stopping = False
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"follow-{record.name}", daemon=True)

    @property
    def errors(self) -> Mapping[int, str]:
        """What stands in the way of partitions whose last load failed."""
        return dict(self._errors)

    @property
    def starting(self) -> bool:
        """Whether a partition is being loaded that does not serve all of a manifest yet."""
        with self._wake:
            views = [self._partitions[number].view for number in self._busy]
        return any(view is None or not view.loaded.complete for view in views)

    def start(self) -> None:
        """Start the thread; it loads every partition at once, and serves none before `serve`."""
        self._thread.start()

    def serve(self) -> None:
        """Serve what is loaded from now on: the collection is what its record says."""
        self._may_serve.set()

    def stop(self, timeout_seconds: float) -> None:
        """End the thread after the load that it is in."""
        with self._wake:
            self._stopping = True
            self._may_serve.set()
            self._wake.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def notice(self, partition: int, version: int) -> None:
        """Look at a partition now, unless its view has that version already (0: whatever it has)."""
        view = self._partitions[partition].view
        if version and view is not None and view.loaded.version >= version:
            return
        with self._wake:
            self._want((partition,), version or NEWEST)
            self._wake.notify_all()

    def _want(self, partitions: Iterable[int], version: int) -> None:
        for number in partitions:
            self._wanted[number] = max(version, self._wanted.get(number, 0))

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - a mistake of ours; the role ends with it rather than serving ever older answers
            self.failure = error

    def _follow(self) -> None:
        next_poll = self._engines.clock.monotonic_seconds() + self._engines.settings.query_poll_seconds
        with ThreadPoolExecutor(min(MOST_AT_ONCE, len(self._partitions)), thread_name_prefix="hot-load") as pool:
            while True:
                now = self._engines.clock.monotonic_seconds()
                polled = now >= next_poll
                if polled:
                    next_poll = now + self._engines.settings.query_poll_seconds
                work = self._next_work(next_poll - now, polled)
                if work is None:
                    return
                for number, version in sorted(work.items()):
                    pool.submit(self._look, number, version)

    def _next_work(self, seconds: float, everything: bool) -> dict[int, int] | None:
        """Partitions to look at and up to which version, waiting for some until the next poll or retry; None at the end."""
        with self._wake:
            if everything:
                self._want(self._partitions, NEWEST)
            elif not self._wanted.keys() - self._busy and not self._stopping:
                until_retry = min(self._retry_at.values(), default=inf) - self._engines.clock.monotonic_seconds()
                self._wake.wait(max(0.0, min(seconds, until_retry)))
            now = self._engines.clock.monotonic_seconds()
            self._want((number for number, due in self._retry_at.items() if due <= now), NEWEST)
            due_now = self._wanted.keys() - self._busy  # a partition that is being loaded is looked at again afterwards
            work = {number: self._wanted.pop(number) for number in due_now}
            self._busy |= due_now
            for number in work:
                self._retry_at.pop(number, None)
            return None if self._stopping else work

    def _look(self, number: int, version: int) -> None:
        try:
            self._load(number, version)
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self.failure = error
        finally:
            with self._wake:
                self._busy.discard(number)
                self._wake.notify_all()

    def _load(self, number: int, version: int) -> None:
        partition, name = self._partitions[number], self._record.name
        current = None if partition.view is None else partition.view.loaded
        whole = current is not None and current.complete  # then an answer that is whole but old is better than one that is new and has holes
        try:
            loaded = self._loaders[number].load(current, None if whole else partial(self._progress, number), version)
        except CorruptError as error:
            logger.error("a manifest or segment is damaged; the old view is kept: %s", error, extra={"collection": name, "partition": number})
            self._engines.metrics.records.labels(name, "hot_load", "corrupt").inc()
            self._errors[number] = str(error)
            return  # only the poll tries again: the same bytes would be downloaded over and over
        except HeadwaterError as error:
            if self._stopping:
                return
            logger.warning("a manifest cannot be loaded now: %s", error, extra={"collection": name, "partition": number})
            self._errors[number] = str(error)
            if isinstance(error, MemoryFullError) and not whole and partition.view is not None:
                self._serve(number, partition.view.loaded, reads_tail=True)  # no more will come: at least it stays fresh
            with self._wake:
                self._retry_at[number] = self._engines.clock.monotonic_seconds() + RETRY_SECONDS
            return
        if loaded is not None:
            self._serve(number, loaded, reads_tail=True)
            if whole:
                self._observe(loaded.read.manifest.committed_at)
        self._errors.pop(number, None)

    def _progress(self, number: int, loaded: LoadedManifest) -> None:
        self._serve(number, loaded, reads_tail=False)
        if self._stopping:
            raise UnavailableError("the collection is not served any more", hint="ask another node")  # nobody needs the rest

    def _serve(self, number: int, loaded: LoadedManifest, reads_tail: bool) -> None:
        self._may_serve.wait()
        if self._stopping:
            return
        if self._partitions[number].swap(loaded, reads_tail) is not None:
            self._start_partition(number)
        self._on_swap()

    def _observe(self, committed_at: str) -> None:
        try:
            committed_us = parse_time(committed_at)
        except ValueError:  # a clock that stood wrong must not stop the loading
            return
        self._engines.metrics.hot_load.labels(self._record.name).observe(max(0.0, self._engines.clock.now_seconds() - committed_us / 1e6))
