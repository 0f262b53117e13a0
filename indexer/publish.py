"""Embedded slices -> the log: dead letters first, acknowledged, then the batch (DESIGN section 4, Verdicts).

Takes: decoded and embedded slices. Gives: records in the dead-letter and the vectors topic. Owns: the byte cap of a batch.
Never: waits for a batch's acknowledgement; a failed one makes its partition go back to the chain's end.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from operator import attrgetter

from contracts.chain import BatchSpan
from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import SettingsError, UnavailableError
from contracts.log import LogProducer, RecordPosition
from contracts.vectors_batch import BatchItem, batch_headers, batch_schema, build_batch, encode_batch
from indexer.dead_letter import DeadLetterRecord, dead_letter_record
from indexer.partition_run import PartitionRun
from indexer.partition_source import OwnBatch
from indexer.slices import DecodedSlice, Rejection, is_rejection, rejected_row

DEAD_LETTER_SECONDS = 30.0
ACKNOWLEDGE_SECONDS = 60.0
HEADERS_BYTES = 4096
_CHANGES = ("upsert", "delete", "patch")


class Publisher:
    """Writes the batches of one index.

    Parameters
    ----------
    engines, collection, index
        Where the batches go and what they are called.
    on_error : callable
        Called, on the producer's thread, with the error of a batch that was not, or perhaps not, stored.
    """

    def __init__(
        self,
        engines: Engines,
        collection: CollectionRecord,
        index: IndexRecord,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.engines, self.collection, self.index, self.on_error = engines, collection, index, on_error
        self.producer: LogProducer = engines.log.producer()
        self._in_flight_bytes = 0
        self._landed = threading.Condition()
        self.schema = batch_schema(index, collection.attributes)
        self.most_bytes = engines.settings.max_record_bytes - HEADERS_BYTES

    def publish(self, decoded: DecodedSlice, run: PartitionRun | None = None) -> None:
        """Send one slice as one batch, or as several where it is too large; returns before they are acknowledged.

        Parameters
        ----------
        decoded : DecodedSlice
            What to send.
        run : PartitionRun, optional
            Notes which batches were acknowledged, and where.

        Raises
        ------
        UnavailableError
            The dead-letter topic does not take the slice's rejected records, or nothing was acknowledged for too long.
        """
        fetched = decoded.fetched
        batches = list(self._batches(decoded, fetched.start_offset, fetched.next_offset))  # this may reject more
        self._send_dead_letters(decoded.rejections)
        leader_epoch = -1 if run is None else run.scan.leader_epoch  # before anything is sent
        for span, value in batches:
            self._wait_for_room(len(value))
            try:
                future = self.producer.send(self.index.vectors_topic, partition=fetched.partition, value=value, headers=batch_headers(span, value))
            except BaseException:  # never sent, so never settled: it must not count as in flight for ever
                self._make_room(len(value))
                raise
            if run is not None:
                future.add_done_callback(functools.partial(_note, run, span, leader_epoch))
            future.add_done_callback(functools.partial(self._settled, len(value)))
        self._count(decoded)

    def renew(self) -> None:
        """Replace the producer after an error: what it still had in flight may land later, and the chain rule drops it."""
        old, self.producer = self.producer, self.engines.log.producer()
        old.close()

    def close(self) -> None:
        """Let go of the producer, after a short flush."""
        self.producer.close()

    def _wait_for_room(self, size_bytes: int) -> None:
        """Hold back while too much is unacknowledged: no producer limits that by itself."""
        limit = self.engines.settings.embed_queue_bytes
        with self._landed:
            if not self._landed.wait_for(lambda: self._in_flight_bytes == 0 or self._in_flight_bytes + size_bytes <= limit, ACKNOWLEDGE_SECONDS):
                raise UnavailableError(f"nothing was acknowledged for {ACKNOWLEDGE_SECONDS:.0f} s", hint="check the brokers")
            self._in_flight_bytes += size_bytes

    def _batches(self, decoded: DecodedSlice, start_offset: int, next_offset: int) -> Iterator[tuple[BatchSpan, bytes]]:
        rows = [item.row for item in decoded.items if start_offset <= item.row.offset < next_offset]
        value = encode_batch(build_batch(rows, self.schema))
        offsets = sorted({row.offset for row in rows})
        if len(value) > self.most_bytes and len(offsets) > 1:  # batches never split a record: cut between two
            middle = offsets[len(offsets) // 2]
            yield from self._batches(decoded, start_offset, middle)
            yield from self._batches(decoded, middle, next_offset)
            return
        if len(value) > self.most_bytes:
            value = encode_batch(build_batch(self._reject_oversized(decoded, offsets[0]), self.schema))
        yield BatchSpan(self.collection.incarnation, self.collection.source_topic_id, start_offset, next_offset), value

    def _reject_oversized(self, decoded: DecodedSlice, offset: int) -> list[BatchItem]:
        """Reject every item of a record that asked for a change; what is rejected already keeps its reason."""
        record = next(record for record in decoded.fetched.records if record.offset == offset)
        message = f"its rows and vectors do not fit into one batch of {self.most_bytes} bytes"
        rejections = [rejection for rejection in decoded.rejections if rejection.record.offset != offset or not rejection.partial]
        for item in decoded.items:
            row = item.row
            if row.offset == offset and row.op in _CHANGES and not is_rejection(row):
                item.row = rejected_row(row, "too_large", self.collection.on_reject)
                rejections.append(Rejection(record, row.item, "too_large", message))
        decoded.rejections = sorted(rejections, key=lambda rejection: (rejection.record.offset, rejection.item))
        return [item.row for item in decoded.items if item.row.offset == offset]

    def _send_dead_letters(self, rejections: Sequence[Rejection]) -> None:
        sent: list[tuple[DeadLetterRecord, Future[RecordPosition]]] = []
        for _, group in itertools.groupby(rejections, key=attrgetter("record.offset")):
            same = list(group)
            letter = dead_letter_record(self.collection, self.index.name, same)
            try:
                sent.append((letter, self._send_dead_letter(letter)))
            except SettingsError:  # larger than the topic takes; without its bytes it is small, and the stream goes on
                letter = dead_letter_record(self.collection, self.index.name, same, leave_out=True)
                sent.append((letter, self._send_dead_letter(letter)))
        for letter, future in sent:
            future.result(DEAD_LETTER_SECONDS)
            for reason in letter.reasons:
                self.engines.metrics.dead_letters.labels(self.collection.name, reason).inc()

    def _send_dead_letter(self, letter: DeadLetterRecord) -> Future[RecordPosition]:
        topic = self.collection.dead_letter_topic
        return self.producer.send(topic, partition=letter.partition, key=letter.key, value=letter.value, headers=letter.headers)

    def _make_room(self, size_bytes: int) -> None:
        with self._landed:
            self._in_flight_bytes -= size_bytes
            self._landed.notify_all()

    def _settled(self, size_bytes: int, future: Future[RecordPosition]) -> None:
        self._make_room(size_bytes)
        error = future.exception()
        if error is not None:
            self.on_error(error)

    def _count(self, decoded: DecodedSlice) -> None:
        outcomes = itertools.groupby(sorted(item.row.op for item in decoded.items))
        for op, rows in outcomes:
            self.engines.metrics.records.labels(self.collection.name, "embed", op).inc(len(list(rows)))


def _note(run: PartitionRun, span: BatchSpan, leader_epoch: int, future: Future[RecordPosition]) -> None:
    if future.exception() is None:
        run.own.append(OwnBatch(future.result().offset, span, leader_epoch))
