"""The embed worker of one index: media records in, vectors batches out. Read `run` first: one line per arrow.

    fetch (own thread) -> decode (threads, child processes) -> embed + publish (own thread)          watchdog (own thread)

The stages overlap; queues are bounded in bytes, and a full queue pauses fetching instead of growing. Where earlier lives of the
worker ended again and again, the fetch thread first walks record by record (`indexer.careful`).

Takes: partitions from the consumer group, positions from the chain. Gives: batches that continue the chain. Owns: runs.
Never: trusts the group for a position, or goes on after a produce error without re-reading the chain's end.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from contracts.collection import CollectionRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.engines import Engines
from contracts.errors import CorruptError, HeadwaterError, SettingsError, SnapshotError, UnavailableError
from contracts.log import CommittedOffset, GroupReader, LogRecord
from embedding.decode_pool import DecodePool
from indexer.attempts import AttemptBook, is_careful
from indexer.batching import next_is_decoded
from indexer.careful import CarefulWalk
from indexer.decode import Decoder
from indexer.embed import check_spaces, embed_slices
from indexer.partition_run import PartitionRun
from indexer.partition_source import ChainScan, PartitionSource
from indexer.publish import Publisher
from indexer.slices import DecodedSlice, FetchedSlice, fetched_slices
from indexer.watchdog import Watchdog

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
ADVISORY_COMMIT_SECONDS = 5.0
DECODE_THREADS = 2
"""They read records and wait for the children that decode pictures."""
POLL_BATCHES = 4
"""Batches of records that one poll may bring."""

_Queued = tuple[FetchedSlice, "Future[DecodedSlice]"]


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
        self.book = AttemptBook()
        self._walks: dict[int, CarefulWalk] = {}
        self._run_numbers = 0
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._arrived = threading.Condition()  # of the two above
        self._restarts: dict[int, float] = {}  # partition -> when to try (again)
        self._stop = threading.Event()
        self._renew_producer = threading.Event()
        self._commit_due = 0.0
        self._failure: BaseException | None = None

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set.

        Raises
        ------
        HeadwaterError
            What cannot be mended by trying again.
        """
        settings = self.engines.settings
        publisher = Publisher(self.engines, self.collection, self.index, self._produce_failed)
        try:
            reader = self.engines.log.group_reader(self.collection.source_topic, self.collection.group(self.index.name, "embed"))
        except BaseException:
            publisher.close()
            raise
        pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        watchdog = Watchdog(self.engines, self.collection.name, self.collection.source_topic, self.runs, self._go_back)
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
                thread.join(settings.stop_seconds)
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
        self._forget_attempts(reader)
        closing: list[Callable[[], None]] = [reader.close, publisher.close, *(walk.close for walk in self._walks.values())]
        for close in closing:
            try:
                close()
            except HeadwaterError as error:
                logger.warning("closing failed: %s", error)

    def _forget_attempts(self, reader: GroupReader) -> None:
        """The worker ends in order: no record is to blame."""
        begun = {partition: run.start for partition, run in self.runs.items() if run.is_counted and run.committed_next == run.start}
        try:
            for partition, offset in (begun | {partition: walk.offset for partition, walk in self._walks.items()}).items():
                self.book.forget(reader, partition, offset)
        except HeadwaterError as error:
            logger.warning("an attempt stays counted: %s", error)

    # ---- fetch -------------------------------------------------------------------------------------------------------

    def _fetch_once(self, reader: GroupReader, pool: ThreadPoolExecutor) -> None:
        try:
            self._restart_partitions(reader)  # before the poll: what was polled before a seek is not what a new run begins with
            records = reader.poll(0.0 if self._walks else POLL_SECONDS, max_records=POLL_BATCHES * self.engines.settings.embed_batch_items)
            self._follow_assignment(reader)
            self._submit(records, reader, pool)
            self._walk_one(reader)
            self._balance(reader)
            self._commit_advisory(reader)
        except UnavailableError as error:
            logger.warning("the log or store does not answer, trying again: %s", error)
            self._stop.wait(RETRY_SECONDS)

    def _follow_assignment(self, reader: GroupReader) -> None:
        change = reader.take_assignment()
        if change is None:
            return
        for partition in change.revoked:
            self.runs.pop(partition, None)
            self._restarts.pop(partition, None)
            self._end_walk(partition)
        now = self.engines.clock.monotonic_seconds()
        self._restarts.update(dict.fromkeys(change.assigned, now))

    def _restart_partitions(self, reader: GroupReader) -> None:
        """Begin a new run on every partition that was assigned, failed, or found behind by the watchdog; walks come first."""
        now = self.engines.clock.monotonic_seconds()
        ready: list[tuple[int, ChainScan, int]] = []
        for partition in [p for p, due in list(self._restarts.items()) if due <= now]:
            self._restarts.pop(partition, None)
            self.runs.pop(partition, None)
            try:
                scan, start = self._chain_end(partition)
                earlier = self.book.earlier(reader, partition, start)
                if is_careful(earlier, start):
                    self._begin_walk(partition, start, earlier.careful_next)
                else:
                    ready.append((partition, scan, start))
            except (UnavailableError, SnapshotError) as error:
                logger.warning("partition %d cannot start yet: %s", partition, error)
                self._restarts[partition] = now + RETRY_SECONDS
            except CorruptError as error:
                logger.error("partition %d is stopped, the others go on: %s", partition, error)
                self.engines.metrics.records.labels(self.collection.name, "embed", "stopped").inc()
        for partition, scan, start in ready:
            if self._walks:  # begun when they are over
                self._restarts[partition] = now + POLL_SECONDS
                continue
            self._run_numbers += 1
            self.runs[partition] = PartitionRun.at(self._run_numbers, scan, start)
            reader.seek(partition, start)
            logger.info("partition %d of %s goes on at media offset %d", partition, self.collection.name, start)

    def _chain_end(self, partition: int) -> tuple[ChainScan, int]:
        source = PartitionSource(self.engines, self.collection, self.index, partition)
        scan = source.chain_scan()
        start = scan.advance()
        scan.close()  # the watchdog goes on with it, in its own thread
        source.check_media_bounds(start)
        return scan, start

    # ---- careful walks -----------------------------------------------------------------------------------------------

    def _begin_walk(self, partition: int, start: int, careful_next: int) -> None:
        head = self.engines.log.bounds(self.collection.source_topic)[partition].next_offset
        end = min(head, max(careful_next, start + POLL_BATCHES * self.engines.settings.embed_batch_items))
        self._walks[partition] = CarefulWalk(self.engines, self.collection, self.index, self.encoder, self.decoder, self.book, partition, start, end)

    def _walk_one(self, reader: GroupReader) -> None:
        """Work on one record of the first walk; polling goes on between two, so that the group keeps this member."""
        for partition, walk in list(self._walks.items())[:1]:
            try:
                if not walk.is_done:
                    walk.step(reader)
                over, pause_seconds = walk.is_done, 0.0
            except UnavailableError as error:
                logger.warning("the walk of partition %d begins again: %s", partition, error)
                over, pause_seconds = True, RETRY_SECONDS
            if over:
                self._end_walk(partition)
                self._restarts[partition] = self.engines.clock.monotonic_seconds() + pause_seconds

    def _end_walk(self, partition: int) -> None:
        walk = self._walks.pop(partition, None)
        if walk is not None:
            walk.close()

    # ---- fetch, continued --------------------------------------------------------------------------------------------

    def _submit(self, records: Sequence[LogRecord], reader: GroupReader, pool: ThreadPoolExecutor) -> None:
        by_partition: dict[int, list[LogRecord]] = defaultdict(list)
        for record in records:
            by_partition[record.partition].append(record)
        for partition, run in list(self.runs.items()):
            found = [record for record in by_partition.get(partition, ()) if record.offset >= run.fetched_next]
            slices = fetched_slices(found, run.number, run.fetched_next, self.engines.settings.embed_batch_items)
            end = slices[-1].next_offset if slices else run.fetched_next
            if not records and (position := _position(reader, partition)) > end:  # offsets without records at the log's end
                slices, end = [FetchedSlice(partition, run.number, end, position, [])], position
            if found and not run.is_counted and not self._count_attempt(partition, run, reader):
                continue
            run.fetched_next = end
            for fetched in slices:
                decoding = pool.submit(self.decoder.decode, fetched) if self.decoder.is_slow(fetched) else _done(self.decoder.decode(fetched))
                with self._arrived:
                    self._queue.append((fetched, decoding))
                    self._queued_bytes += fetched.size_bytes
                    self._arrived.notify()

    def _count_attempt(self, partition: int, run: PartitionRun, reader: GroupReader) -> bool:
        """Write down where this life begins, before its first record: nobody can do so after a crash."""
        try:
            self.book.begin(reader, partition, run.start)
        except UnavailableError as error:
            self._go_back(partition, run.number, error)  # the polled records are sought again
            return False
        run.is_counted = True
        return True

    def _balance(self, reader: GroupReader) -> None:
        """Pause fetching while the queue is full; polling goes on, so that the group keeps this member."""
        limit = self.engines.settings.embed_queue_bytes
        if self._queued_bytes > limit:
            reader.pause(self.runs)
            self._stop.wait(0.01)
        elif self._queued_bytes < limit // 2:
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
        while not self._stop.is_set():
            try:
                with self.engines.metrics.stage.labels("embed").time():
                    embed_slices(
                        slices,
                        self.index,
                        self.encoder,
                        self.engines.settings.embed_batch_items,
                        self.collection.on_partial,
                        self.collection.on_reject,
                    )
                return True
            except UnavailableError as error:
                logger.warning("the encoder does not answer, trying again: %s", error)
                self._stop.wait(RETRY_SECONDS)
        return False

    def _take_slices(self) -> list[DecodedSlice]:
        """The first slice, waited for, and those behind it that are decoded by now, or within `embed_batch_seconds`."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._queue, POLL_SECONDS):
                return []
            taken = [self._queue.popleft()]
            items = len(taken[0][0].records)
            settings, now = self.engines.settings, self.engines.clock.monotonic_seconds
            due = now() + settings.embed_batch_seconds
            while items < settings.embed_batch_items and next_is_decoded(self._queue, self._arrived, due, now):
                taken.append(self._queue.popleft())
                items += len(taken[-1][0].records)
        slices: list[DecodedSlice] = []
        for fetched, decoding in taken:
            if not self._is_current(fetched):
                decoding.cancel()
                continue
            try:
                slices.append(decoding.result())
            except (UnavailableError, CancelledError) as error:  # a payload's store is away, no child starts, or the pool stops: fetched again
                self._go_back(fetched.partition, fetched.run, error)
        with self._arrived:
            self._queued_bytes -= sum(fetched.size_bytes for fetched, _ in taken)
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
            publisher.publish(decoded)
            run.sent_next = fetched.next_offset
        except (UnavailableError, TimeoutError) as error:
            self._produce_failed(error)

    def _produce_failed(self, error: BaseException) -> None:
        """Take a new producer, and all partitions back to their chain's end: two producers keep no order between them (any thread)."""
        self._renew_producer.set()
        for partition, run in list(self.runs.items()):
            self._go_back(partition, run.number, error)

    def _go_back(self, partition: int, run_number: int, error: BaseException) -> None:
        """Drop what is in flight for the partition and have it start again at the chain's end (any thread)."""
        run = self.runs.get(partition)
        if run is None or run.number != run_number:
            return
        self.runs.pop(partition, None)
        self._restarts[partition] = self.engines.clock.monotonic_seconds() + RETRY_SECONDS
        logger.warning("partition %d of %s goes back to the chain's end: %s", partition, self.collection.name, error)


def _done(decoded: DecodedSlice) -> Future[DecodedSlice]:
    """What needs no pool: reading records and texts takes less time than handing them to another thread."""
    future: Future[DecodedSlice] = Future()
    future.set_result(decoded)
    return future


def _position(reader: GroupReader, partition: int) -> int:
    try:
        return reader.position(partition)
    except SettingsError:  # revoked a moment ago; take_assignment tells in the next turn
        return -1
