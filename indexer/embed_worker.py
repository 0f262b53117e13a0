"""The embed worker of one index: media records in, vectors batches out. Read `run` first: one line per arrow.

    fetch (own thread) -> decode (threads, child processes) -> embed + publish (own thread)          watchdog (own thread)

The stages overlap; queues are bounded in bytes, and a full queue pauses fetching instead of growing. Where earlier lives of the
worker ended again and again, the fetch thread first walks record by record (`indexer.careful`).

Takes: partitions from the consumer group, positions from the chain, pauses from the collection's record. Gives: batches that
continue the chain. Owns: runs.
Never: trusts the group for a position, or goes on after a produce error without re-reading the chain's end.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing

from contracts.collection import CollectionRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, HeadwaterError, SnapshotError, UnavailableError
from contracts.log import CommittedOffset, GroupReader, LogRecord
from embedding.decode_pool import DecodePool
from indexer.attempts import AttemptBook, is_careful
from indexer.careful import Walks
from indexer.decode import Decoder
from indexer.embed import check_spaces, embed_slices
from indexer.media_history import HistoryGroupReader, MediaHistory
from indexer.partition_run import PartitionRun
from indexer.partition_source import ChainScan, PartitionSource
from indexer.publish import Publisher
from indexer.reader_position import position_of
from indexer.slice_queue import SliceQueue, decoded_now
from indexer.slices import DecodedSlice, FetchedSlice, fetched_slices
from indexer.watchdog import Watchdog

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
STOPPED_SECONDS = 10.0
"""Until a partition whose records are gone is looked at again: an operator's `skip` mends it."""
ADVISORY_COMMIT_SECONDS = 5.0
DECODE_THREADS = 2
"""They read records and wait for the children that decode pictures."""
POLL_BATCHES = 4
"""Batches of records that one poll may bring."""


class EmbedWorker:
    """Embeds one index of one collection.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics.
    collection, index
        What to embed.
    encoder : Encoder or None
        None for an index of own vectors only.
    pool : DecodePool, optional
        Processes that decode pictures, shared with other workers; the worker has its own where none is given.
    """

    def __init__(
        self, engines: Engines, collection: CollectionRecord, index: IndexRecord, encoder: Encoder | None, pool: DecodePool | None = None
    ) -> None:
        check_spaces(index, encoder)
        self.engines, self.collection, self.index, self.encoder = engines, collection, index, encoder
        self._pool, self._owns_pool = pool or DecodePool(engines.settings), pool is None
        self.decoder = Decoder(collection, index, encoder, engines.settings, engines.store, self._pool)
        self.runs: dict[int, PartitionRun] = {}
        self.held: dict[int, PartitionRun] = {}  # paused ones, and where their chain stands
        self.owned: set[int] = set()
        self._stopped: dict[int, str] = {}  # partition -> why
        self.take(collection)
        self.book = AttemptBook()
        self._walks = Walks(engines, collection, index, encoder, self.decoder, self.book)
        self._run_numbers = 0
        self.queue = SliceQueue()
        self._restarts: dict[int, float] = {}  # partition -> when to try (again)
        self._stop = threading.Event()
        self._renew_producer = threading.Event()
        self._commit_due = 0.0
        self._failure: BaseException | None = None

    def take(self, record: CollectionRecord) -> None:
        """Follow the newest version of the collection's record: what is paused, and whether this index is the one that answers (any thread)."""
        self.paused = frozenset(record.paused_partitions)
        self.is_active = record.active_index == self.index.name

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set.

        Raises
        ------
        HeadwaterError
            What cannot be mended by trying again.
        """
        publisher = Publisher(self.engines, self.collection, self.index, self._produce_failed)
        try:
            group = self.engines.log.group_reader(self.collection.source_topic, self.collection.group(self.index.name, "embed"))
            reader = HistoryGroupReader(group, MediaHistory(self.engines, self.collection))
        except BaseException:
            publisher.close()
            raise
        pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        watchdog = Watchdog(self)
        threads = [
            threading.Thread(target=self._guarded, args=(self._embed_loop, publisher), name=f"embed-{self.collection.name}"),
            threading.Thread(target=self._guarded, args=(watchdog.run, self._stop), name=f"watchdog-{self.collection.name}"),
        ]
        if self.decoder.wants_pictures:
            threads.append(threading.Thread(target=self._guarded, args=(self._pool.warm,), name="warm"))
        try:
            for thread in threads:
                thread.start()
            while not stop.is_set() and self._failure is None:
                self._fetch_once(reader, pool)
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for thread in threads:
                thread.join(self.engines.settings.stop_seconds)
            if self._owns_pool:
                self._pool.close()
            self._close(reader, publisher)
        if self._failure is not None:
            raise self._failure

    def _guarded(self, target: object, *args: object) -> None:
        try:
            target(*args)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - handed to `run`, which raises it
            self._failure = error

    def _close(self, reader: GroupReader, publisher: Publisher) -> None:
        if isinstance(self._failure or sys.exc_info()[1], HeadwaterError | None):  # any other error may be a record's, as a crash may
            self._forget_attempts(reader)
        for close in (reader.close, publisher.close, self._walks.close):
            try:
                close()
            except HeadwaterError as error:
                logger.warning("closing failed: %s", error)

    def _forget_attempts(self, reader: GroupReader, partitions: Collection[int] | None = None) -> None:
        """The work on these partitions (all, where it is None) ends in order: no record is to blame."""
        begun = {partition: run.start for partition, run in self.runs.items() if run.is_counted and run.committed_next == run.start}
        try:
            for partition, offset in (begun | self._walks.offsets).items():
                if partitions is None or partition in partitions:
                    self.book.forget(reader, partition, offset)
        except HeadwaterError as error:
            logger.warning("an attempt stays counted: %s", error)

    # ---- fetch -------------------------------------------------------------------------------------------------------

    def _fetch_once(self, reader: GroupReader, pool: ThreadPoolExecutor) -> None:
        try:
            self._restart_partitions(reader)  # before the poll: what was polled before a seek is not what a new run begins with
            records = reader.poll(0.0 if self._walks else POLL_SECONDS, max_records=POLL_BATCHES * self.engines.settings.embed_batch_items)
            self._follow_assignment(reader)
            self._follow_pauses(reader)
            self._submit(records, reader, pool)
            self._walk_one(reader)
            self._balance(reader)
            self._commit_advisory(reader)
        except UnavailableError as error:
            logger.warning("the log or store does not answer, trying again: %s", error)
            self._stop.wait(RETRY_SECONDS)
        except DataLossError as error:  # retention took records under the reader: each partition finds out whether they were its own
            for partition, run in list(self.runs.items()):
                self.go_back(partition, run.number, error)

    def _follow_assignment(self, reader: GroupReader) -> None:
        change = reader.take_assignment()
        if change is None:
            return
        self.owned = self.owned - change.revoked | change.assigned
        for partition in change.revoked:
            self.runs.pop(partition, None)
            self.held.pop(partition, None)
            self._restarts.pop(partition, None)
            self._walks.end(partition)
        now = self.engines.clock.monotonic_seconds()
        self._restarts.update(dict.fromkeys(change.assigned, now))

    def _follow_pauses(self, reader: GroupReader) -> None:
        """Drop what is in flight of a partition that was paused; it, and what was resumed, begins at its chain's end."""
        now = self.engines.clock.monotonic_seconds()
        paused = [partition for partition in (*self.runs, *self._walks.offsets) if partition in self.paused]
        self._forget_attempts(reader, paused)
        for partition in paused:
            self.runs.pop(partition, None)
            self._walks.end(partition)
        resumed = [partition for partition in self.held if partition not in self.paused]
        for partition in resumed:
            self.held.pop(partition)
        self._restarts.update(dict.fromkeys((*paused, *resumed), now))

    def _hold(self, reader: GroupReader, partition: int, scan: ChainScan, start: int) -> None:
        reader.pause([partition])
        self._run_numbers += 1
        self.held[partition] = PartitionRun.at(self._run_numbers, scan, start)
        logger.info("partition %d of %s is paused at media offset %d", partition, self.collection.name, start)

    def _restart_partitions(self, reader: GroupReader) -> None:
        """Begin a new run on every partition that was assigned, failed, or found behind by the watchdog; walks come first."""
        now = self.engines.clock.monotonic_seconds()
        ready: list[tuple[int, ChainScan, int]] = []
        for partition in [p for p, due in list(self._restarts.items()) if due <= now]:
            self._restarts.pop(partition, None)
            self.runs.pop(partition, None)
            try:
                scan, start = self._chain_end(partition)
                self._stopped.pop(partition, None)
                if partition in self.paused:
                    self._hold(reader, partition, scan, start)
                    continue
                earlier = self.book.start(reader, partition, start)
                if is_careful(earlier, start):
                    self._begin_walk(partition, start, earlier.careful_next)
                else:
                    ready.append((partition, scan, start))
            except (UnavailableError, SnapshotError) as error:
                logger.warning("partition %d cannot start yet: %s", partition, error)
                self._restarts[partition] = now + RETRY_SECONDS
            except CorruptError as error:
                self._stop_partition(reader, partition, error)
        for partition, scan, start in ready:
            if self._walks:  # begun when they are over
                self._restarts[partition] = now + POLL_SECONDS
                continue
            self._run_numbers += 1
            self.runs[partition] = PartitionRun.at(self._run_numbers, scan, start)
            reader.seek(partition, start)
            reader.resume([partition])
            logger.info("partition %d of %s goes on at media offset %d", partition, self.collection.name, start)

    def _stop_partition(self, reader: GroupReader, partition: int, error: CorruptError) -> None:
        reader.pause([partition])
        if self._stopped.get(partition) != error.message:
            self._stopped[partition] = error.message
            logger.error("partition %d is stopped, the others go on: %s", partition, error)
            self.engines.metrics.records.labels(self.collection.name, "embed", "stopped").inc()
        if isinstance(error, DataLossError):
            self._restarts[partition] = self.engines.clock.monotonic_seconds() + STOPPED_SECONDS

    def _chain_end(self, partition: int) -> tuple[ChainScan, int]:
        source = PartitionSource(self.engines, self.collection, self.index, partition)
        with closing(source.chain_scan()) as scan:  # the watchdog goes on with it, in its own thread
            scan.advance()
            return scan, source.check_media_bounds(scan)

    # ---- careful walks -----------------------------------------------------------------------------------------------

    def _begin_walk(self, partition: int, start: int, careful_next: int) -> None:
        least = POLL_BATCHES * self.engines.settings.embed_batch_items
        self._walks.begin(partition, start, max(careful_next, start + least))

    def _walk_one(self, reader: GroupReader) -> None:
        """Work on the first walk for a moment; polling goes on in between, so that the group keeps this member."""
        ended = self._walks.step(reader)
        if ended is not None:
            self._restarts[ended.partition] = self.engines.clock.monotonic_seconds() + (0.0 if ended.is_done else RETRY_SECONDS)

    def _submit(self, records: Sequence[LogRecord], reader: GroupReader, pool: ThreadPoolExecutor) -> None:
        by_partition: dict[int, list[LogRecord]] = defaultdict(list)
        for record in records:
            by_partition[record.partition].append(record)
        for partition, run in list(self.runs.items()):
            found = [record for record in by_partition.get(partition, ()) if record.offset >= run.fetched_next]
            slices = fetched_slices(found, run.number, run.fetched_next, self.engines.settings.embed_batch_items)
            end = slices[-1].next_offset if slices else run.fetched_next
            if not records and (position := position_of(reader, partition)) > end:  # offsets without records at the log's end
                slices, end = [FetchedSlice(partition, run.number, end, position, [])], position
            if found and not run.is_counted and not self._count_attempt(partition, run, reader):
                continue
            run.fetched_next = end
            for fetched in slices:
                decoding = pool.submit(self.decoder.decode, fetched) if self.decoder.is_slow(fetched) else decoded_now(self.decoder.decode(fetched))
                self.queue.put(fetched, decoding)

    def _count_attempt(self, partition: int, run: PartitionRun, reader: GroupReader) -> bool:
        """Write down where this life begins, before its first record: nobody can do so after a crash."""
        try:
            self.book.begin(reader, partition, run.start)
        except UnavailableError as error:
            self.go_back(partition, run.number, error)  # the polled records are sought again
            return False
        run.is_counted = True
        return True

    def _balance(self, reader: GroupReader) -> None:
        """Pause fetching while the queue is full; polling goes on, so that the group keeps this member."""
        limit = self.engines.settings.embed_queue_bytes
        if self.queue.size_bytes > limit:
            reader.pause(self.runs)
            self._stop.wait(0.01)
        elif self.queue.size_bytes < limit // 2:
            reader.resume(self.runs)

    def _commit_advisory(self, reader: GroupReader) -> None:
        """Tell the group, every few seconds, how far the chain was seen to reach; nobody starts from it."""
        now = self.engines.clock.monotonic_seconds()
        if now < self._commit_due:
            return
        self._commit_due = now + ADVISORY_COMMIT_SECONDS
        for partition, run in list(self.runs.items()):
            reached = run.scan.chain.expected
            if reached > run.committed_next:
                reader.commit(partition, CommittedOffset(reached))
                run.committed_next = reached

    # ---- embed and publish -------------------------------------------------------------------------------------------

    def _embed_loop(self, publisher: Publisher) -> None:
        while not self._stop.is_set():
            slices = self._take_slices()
            if self._renew_producer.is_set():
                self._renew_producer.clear()
                publisher.renew()
            if not slices:
                continue
            if not self._embed(slices):
                continue
            self.engines.metrics.embed_batch_items.labels(self.collection.name).observe(sum(len(decoded.items) for decoded in slices))
            for decoded in slices:
                self._publish(publisher, decoded)

    def _embed(self, slices: Sequence[DecodedSlice]) -> bool:
        """Embed slices, again and again while a remote encoder is away: that rejects nothing; False when the worker stops meanwhile."""
        most_items = self.engines.settings.embed_batch_items
        while not self._stop.is_set():
            try:
                with self.engines.metrics.stage.labels("embed").time():
                    embed_slices(slices, self.index, self.encoder, most_items, self.collection.on_partial, self.collection.on_reject)
                return True
            except UnavailableError as error:
                logger.warning("the encoder does not answer, trying again: %s", error)
                self._stop.wait(RETRY_SECONDS)
        return False

    def _take_slices(self) -> list[DecodedSlice]:
        settings = self.engines.settings
        taken = self.queue.take(POLL_SECONDS, settings.embed_batch_items, settings.embed_batch_seconds, self.engines.clock.monotonic_seconds)
        slices: list[DecodedSlice] = []
        for fetched, decoding in taken:
            if not self._is_current(fetched):
                decoding.cancel()
                continue
            try:
                slices.append(decoding.result())
            except (UnavailableError, CancelledError) as error:  # a payload's store is away, no child starts, or the pool stops: fetched again
                self.go_back(fetched.partition, fetched.run, error)
        self.queue.taken(taken)
        return slices

    def _is_current(self, fetched: FetchedSlice) -> bool:
        run = self.runs.get(fetched.partition)
        return run is not None and run.number == fetched.run

    def _publish(self, publisher: Publisher, decoded: DecodedSlice) -> None:
        fetched = decoded.fetched
        run = self.runs.get(fetched.partition)
        if run is None or run.number != fetched.run:
            return
        try:
            publisher.publish(decoded, run)
            run.sent_next = fetched.next_offset
        except (UnavailableError, TimeoutError) as error:
            self._produce_failed(error)

    def _produce_failed(self, error: BaseException) -> None:
        """Take a new producer, and all partitions back to their chain's end: two producers keep no order between them (any thread)."""
        self._renew_producer.set()
        for partition, run in list(self.runs.items()):
            self.go_back(partition, run.number, error)

    def go_back(self, partition: int, run_number: int, error: BaseException) -> None:
        """Drop what is in flight for the partition and have it start again at the chain's end (any thread)."""
        run = self.runs.get(partition) or self.held.get(partition)
        if run is None or run.number != run_number:
            return
        self.runs.pop(partition, None)
        self.held.pop(partition, None)
        self._restarts[partition] = self.engines.clock.monotonic_seconds() + RETRY_SECONDS
        logger.warning("partition %d of %s goes back to the chain's end: %s", partition, self.collection.name, error)
