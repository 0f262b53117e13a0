"""Record by record: how a worker goes on where its earlier lives ended (`indexer.attempts`).

    read one record -> write down that it is alone -> decode -> embed -> publish -> wait until it is acknowledged -> the next

Two round trips a record, since both must be stored before the next one: the note, so that the record is known with which a life ends,
and the batch, so that the next life begins there. What earlier lives left is asked once, and a reader of the walk's own reads ahead.

While a partition is walked, the worker begins no other: when it ends, it is known with which record. Before its first record
a picture of zeros and a word are encoded: a machine that does not survive those rejects nobody's records.

Takes: a partition and where it goes on. Gives: batches of one record, one of them perhaps a rejection. Owns: its producer and its reader.
Never: works on a record that is not written down yet, or goes on before it is acknowledged.
"""

from __future__ import annotations

import logging

import numpy as np

from contracts.collection import CollectionRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.engines import Engines
from contracts.errors import DataLossError, UnavailableError
from contracts.log import GroupReader, LogReader, LogRecord
from contracts.media_origin import rejected_unread
from indexer.attempts import REJECT_AFTER, AttemptBook
from indexer.decode import Decoder
from indexer.embed import embed_slices
from indexer.media_history import HistoryReader, MediaHistory
from indexer.publish import ACKNOWLEDGE_SECONDS, Publisher
from indexer.slices import DecodedItem, DecodedSlice, FetchedSlice, Rejection, rejected_row

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.1
STEP_SECONDS = 0.1
"""How long the walk of a partition keeps the worker's thread, at least one record: then it asks its group again."""
REASON = "embed_crashed"


class CarefulWalk:
    """Walks one partition from `start` to `end`; used by the worker's fetch thread alone.

    Parameters
    ----------
    engines, collection, index, encoder
        As the worker's.
    decoder : Decoder
        The worker's.
    book : AttemptBook
        Where attempts are written down.
    partition, start, end : int
        Half-open interval of media offsets.
    """

    def __init__(
        self,
        engines: Engines,
        collection: CollectionRecord,
        index: IndexRecord,
        encoder: Encoder | None,
        decoder: Decoder,
        book: AttemptBook,
        partition: int,
        start: int,
        end: int,
    ) -> None:
        self._engines, self._collection, self._index, self._encoder = engines, collection, index, encoder
        self._decoder, self._book = decoder, book
        self.partition, self.offset, self.end = partition, start, end
        self._errors: list[BaseException] = []
        self._publisher = Publisher(engines, collection, index, self._errors.append)
        self._reader: LogReader | None = None
        self._is_proven = False
        logger.warning("partition %d of %s: earlier lives ended here; offsets %d to %d go one by one", partition, collection.name, start, end)

    @property
    def is_done(self) -> bool:
        """Whether all records are acknowledged."""
        return self.offset >= self.end

    def step(self, reader: GroupReader) -> bool:
        """Work on the next record; False where none has come yet.

        Raises
        ------
        UnavailableError
            It was not, or perhaps not, stored: find the chain's end and walk from there.
        DataLossError
            Retention took the record.
        """
        if not self._is_proven:
            self._prove_machine()
        record, next_offset = self._read()
        if next_offset == self.offset:  # nothing came yet
            return False
        fetched = FetchedSlice(self.partition, 0, self.offset, next_offset, [] if record is None else [record])
        if record is not None and self._book.earlier(reader, self.partition, self.offset).alone >= REJECT_AFTER:
            decoded = _rejected(fetched, record, self._collection)
            logger.error("partition %d of %s: the record at %d is rejected: %s", self.partition, self._collection.name, self.offset, REASON)
        else:
            self._book.begin_alone(reader, self.partition, self.offset, self.end)
            decoded = self._decoder.decode(fetched)
            embed_slices([decoded], self._index, self._encoder, 1, self._collection.on_partial, self._collection.on_reject)
        self._publisher.publish(decoded)
        self._publisher.producer.flush(ACKNOWLEDGE_SECONDS)
        if self._errors:
            raise UnavailableError(f"the batch at media offset {self.offset} was not stored: {self._errors[0]}")
        self.offset = next_offset
        return True

    def _read(self) -> tuple[LogRecord | None, int]:
        """The next record of the walk and the offset behind it; offsets that the log skips belong to the record that follows them."""
        if self._reader is None:
            log_reader = self._engines.log.reader(self._collection.source_topic, {self.partition: self.offset})
            self._reader = HistoryReader(log_reader, MediaHistory(self._engines, self._collection))
            self._reader.seek(self.partition, self.offset)
        for record in self._reader.poll(POLL_SECONDS, max_records=1):
            return (record, record.offset + 1) if record.offset < self.end else (None, self.end)
        return None, max(self.offset, min(self.end, self._reader.position(self.partition)))

    def close(self) -> None:
        """Let go of reader and producer."""
        try:
            if self._reader is not None:
                self._reader.close()
        finally:
            self._publisher.close()

    def _prove_machine(self) -> None:
        if self._encoder is not None:
            self._encoder.encode_pictures(np.zeros((1, *self._encoder.picture_recipe.shape), np.uint8))
            self._encoder.encode_texts(["a word"])
        self._is_proven = True


class Walks:
    """The walks of one worker, by partition; used by its fetch thread alone.

    Parameters
    ----------
    engines, collection, index, encoder, decoder, book
        As of `CarefulWalk`.
    """

    def __init__(
        self,
        engines: Engines,
        collection: CollectionRecord,
        index: IndexRecord,
        encoder: Encoder | None,
        decoder: Decoder,
        book: AttemptBook,
    ) -> None:
        self._engines, self._collection, self._index, self._encoder = engines, collection, index, encoder
        self._decoder, self._book = decoder, book
        self._walks: dict[int, CarefulWalk] = {}

    def __bool__(self) -> bool:
        return bool(self._walks)

    @property
    def offsets(self) -> dict[int, int]:
        """Where each walk stands."""
        return {partition: walk.offset for partition, walk in self._walks.items()}

    def begin(self, partition: int, start: int, end: int) -> None:
        """Begin to walk a partition, to `end` or the log's."""
        end = min(end, self._engines.log.bounds(self._collection.source_topic)[partition].next_offset)
        self._walks[partition] = CarefulWalk(
            self._engines, self._collection, self._index, self._encoder, self._decoder, self._book, partition, start, end
        )

    def step(self, reader: GroupReader) -> CarefulWalk | None:
        """Work on the first walk for a moment; gives the walk where that ended it, `is_done` or to be begun again."""
        pause_at = self._engines.clock.monotonic_seconds() + STEP_SECONDS
        for partition, walk in list(self._walks.items())[:1]:
            is_over = False
            try:
                while not walk.is_done and walk.step(reader) and self._engines.clock.monotonic_seconds() < pause_at:
                    pass
                is_over = walk.is_done
            except (UnavailableError, DataLossError) as error:  # where records are gone, the new beginning finds out whether they were its own
                logger.warning("the walk of partition %d begins again: %s", partition, error)
                is_over = True
            if is_over:
                self.end(partition)
                return walk
        return None

    def end(self, partition: int) -> None:
        """Let go of a partition's walk, if there is one."""
        walk = self._walks.pop(partition, None)
        if walk is not None:
            walk.close()

    def close(self) -> None:
        """Let go of all walks."""
        for partition in list(self._walks):
            self.end(partition)


def _rejected(fetched: FetchedSlice, record: LogRecord, collection: CollectionRecord) -> DecodedSlice:
    """The verdict on a whole record, its value unread: even reading it may be what ends a worker."""
    message = f"the worker ended {REJECT_AFTER} times while it worked on this record alone"
    row = rejected_row(rejected_unread(record, collection, REASON, message), REASON, collection.on_reject)
    return DecodedSlice(fetched, [DecodedItem(row)], [Rejection(record, 0, REASON, message)])
