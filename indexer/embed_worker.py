"""The embed worker of one index: media records in, vectors batches out. Read `run` first: one line per arrow.

    fetch (own thread) -> decode (pool) -> embed + publish (own thread)          watchdog (own thread)

The stages overlap; queues are bounded in bytes, and a full queue pauses fetching instead of growing.

Takes: partitions from the consumer group, positions from the chain. Gives: batches that continue the chain. Owns: runs.
Never: trusts the group for a position, or goes on after a produce error without re-reading the chain's end.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from contracts.collection import CollectionRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.engines import Engines
from contracts.errors import CorruptError, HeadwaterError, SettingsError, SnapshotError, UnavailableError
from contracts.head_lag import HeadLag
from contracts.log import CommittedOffset, GroupReader, LogRecord
from indexer.decode import Decoder
from indexer.embed import check_spaces, embed_slices
from indexer.partition_source import ChainScan, PartitionSource
from indexer.publish import Publisher
from indexer.slices import DecodedSlice, FetchedSlice, fetched_slices

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
ADVISORY_COMMIT_SECONDS = 5.0

_Queued = tuple[FetchedSlice, "Future[DecodedSlice]"]


@dataclass(slots=True)
class _Run:
    """A stretch of work on one partition since it was last sought. Slices of an older run are dropped.

    ``fetched_next``: media offset behind what was fetched; ``sent_next``: behind what was handed to the producer;
    ``checked_next``: `sent_next` as the watchdog saw it last time; ``committed_next``: what the group was told last.
    """

    number: int
    scan: ChainScan
    fetched_next: int
    sent_next: int
    checked_next: int
    committed_next: int


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
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, index: IndexRecord, encoder: Encoder | None) -> None:
        check_spaces(index, encoder)
        self.engines, self.collection, self.index, self.encoder = engines, collection, index, encoder
        self.decoder = Decoder(collection, index, encoder, engines.settings, engines.store)
        self.runs: dict[int, _Run] = {}
        self._run_numbers = 0
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._arrived = threading.Condition()  # of the two above
        self._restarts: dict[int, float] = {}  # partition -> when to try (again)
        self._stop = threading.Event()
        self._renew_producer = threading.Event()
        self._lag = HeadLag()
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
        reader = self.engines.log.group_reader(self.collection.source_topic, self.collection.group(self.index.name, "embed"))
        publisher = Publisher(self.engines, self.collection, self.index, self._produce_failed)
        pool = ThreadPoolExecutor(settings.embed_decode_threads, thread_name_prefix="decode")
        threads = [
            threading.Thread(target=self._guarded, args=(self._embed_loop, publisher), name=f"embed-{self.collection.name}"),
            threading.Thread(target=self._guarded, args=(self._watchdog_loop,), name=f"watchdog-{self.collection.name}"),
        ]
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
            self._close(reader, publisher)
        if self._failure is not None:
            raise self._failure

    def _guarded(self, target: object, *args: object) -> None:
        try:
            target(*args)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - handed to `run`, which raises it
            self._failure = error

    def _close(self, reader: GroupReader, publisher: Publisher) -> None:
        for closable in (reader, publisher):
            try:
                closable.close()
            except HeadwaterError as error:
                logger.warning("closing failed: %s", error)

    # ---- fetch -------------------------------------------------------------------------------------------------------

    def _fetch_once(self, reader: GroupReader, pool: ThreadPoolExecutor) -> None:
        try:
            records = reader.poll(POLL_SECONDS, max_records=4 * self.engines.settings.embed_batch_items)
            self._follow_assignment(reader)
            self._restart_partitions(reader)
            self._submit(records, reader, pool)
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
        now = self.engines.clock.monotonic_seconds()
        self._restarts.update(dict.fromkeys(change.assigned, now))

    def _restart_partitions(self, reader: GroupReader) -> None:
        """Begin a new run on every partition that was assigned, failed, or found behind by the watchdog."""
        now = self.engines.clock.monotonic_seconds()
        for partition in [p for p, due in list(self._restarts.items()) if due <= now]:
            self._restarts.pop(partition, None)
            self.runs.pop(partition, None)
            source = PartitionSource(self.engines, self.collection, self.index, partition)
            try:
                scan = source.chain_scan()
                start = scan.advance()
                scan.close()  # the watchdog goes on with it, in its own thread
                source.check_media_bounds(start)
            except (UnavailableError, SnapshotError) as error:
                logger.warning("partition %d cannot start yet: %s", partition, error)
                self._restarts[partition] = now + RETRY_SECONDS
                continue
            except CorruptError as error:
                logger.error("partition %d is stopped, the others go on: %s", partition, error)
                self.engines.metrics.records.labels(self.collection.name, "embed", "stopped").inc()
                continue
            self._run_numbers += 1
            self.runs[partition] = _Run(self._run_numbers, scan, start, start, start, start)
            reader.seek(partition, start)
            logger.info("partition %d of %s goes on at media offset %d", partition, self.collection.name, start)

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
            run.fetched_next = end
            for fetched in slices:
                decoding = pool.submit(self.decoder.decode, fetched) if self.decoder.is_slow(fetched) else _done(self.decoder.decode(fetched))
                with self._arrived:
                    self._queue.append((fetched, decoding))
                    self._queued_bytes += fetched.size_bytes
                    self._arrived.notify()

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
                    embed_slices(slices, self.index, self.encoder, self.engines.settings.embed_batch_items, self.collection.on_partial)
                return True
            except UnavailableError as error:
                logger.warning("the encoder does not answer, trying again: %s", error)
                self._stop.wait(RETRY_SECONDS)
        return False

    def _take_slices(self) -> list[DecodedSlice]:
        """The first slice, waited for, and those behind it that are decoded by now: batches grow by themselves under load."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._queue, POLL_SECONDS):
                return []
            taken = [self._queue.popleft()]
            items = len(taken[0][0].records)
            while self._queue and self._queue[0][1].done() and items < self.engines.settings.embed_batch_items:
                taken.append(self._queue.popleft())
                items += len(taken[-1][0].records)
        slices: list[DecodedSlice] = []
        for fetched, decoding in taken:
            if not self._is_current(fetched):
                decoding.cancel()
                continue
            try:
                slices.append(decoding.result())
            except (UnavailableError, CancelledError) as error:  # a payload's store is away, or the pool stops: the records are fetched again
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

    # ---- watchdog ----------------------------------------------------------------------------------------------------

    def _watchdog_loop(self) -> None:
        """Read back what was written: an acknowledged batch may still be lost or dropped by the chain rule."""
        watched: dict[int, ChainScan] = {}
        while not self._stop.wait(self.engines.settings.embed_watchdog_seconds):
            runs = dict(self.runs)
            current = {run.number: run.scan for run in runs.values()}
            for number in watched.keys() - current.keys():
                watched[number].close()
            watched = current
            for partition, run in runs.items():
                try:
                    self._check_run(partition, run)
                except (UnavailableError, SnapshotError) as error:
                    logger.warning("the watchdog cannot read partition %d: %s", partition, error)
                    if isinstance(error, SnapshotError):
                        self._go_back(partition, run.number, error)
            self._measure_lag(runs)
        for scan in watched.values():
            scan.close()

    def _measure_lag(self, runs: Mapping[int, _Run]) -> None:
        try:
            heads = {p: b.next_offset for p, b in self.engines.log.bounds(self.collection.source_topic).items() if p in runs}
        except UnavailableError:
            return  # the fetch loop tells
        now = self.engines.clock.monotonic_seconds()
        done = {partition: run.sent_next for partition, run in runs.items()}
        self._lag.observe(heads, now)
        self._lag.forget(done)
        self.engines.metrics.set_lag(self.collection.name, "embed", self._lag.records(done), self._lag.seconds(done, now))

    def _check_run(self, partition: int, run: _Run) -> None:
        sent = run.sent_next
        behind, ahead = False, False
        if run.scan.chain.expected < sent or sent == run.checked_next:
            end = run.scan.advance()
            behind = end < run.checked_next  # two looks in a row: what was sent a whole interval ago must be in the chain
            ahead = end > run.fetched_next
        if behind or ahead:
            what = "behind" if behind else "ahead of"
            self._go_back(partition, run.number, UnavailableError(f"the chain stands at {run.scan.chain.expected}, {what} what this worker wrote"))
        run.checked_next = sent


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
