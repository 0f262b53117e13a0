"""Record by record: how a worker goes on where its earlier lives ended (`indexer.attempts`).

    read one record -> write down that it is alone -> decode -> embed -> publish -> wait until it is acknowledged -> the next

While a partition is walked, the worker begins no other: when it ends, it is known with which record. Before its first record
a picture of zeros and a word are encoded: a machine that does not survive those rejects nobody's records.

Takes: a partition and where it goes on. Gives: batches of one record, one of them perhaps a rejection. Owns: its producer.
Never: works on a record that is not written down yet, or goes on before it is acknowledged.
"""

from __future__ import annotations

import logging

import numpy as np

from contracts.collection import CollectionRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.log import GroupReader, LogRecord
from contracts.media_origin import rejected_unread
from indexer.attempts import REJECT_AFTER, AttemptBook
from indexer.decode import Decoder
from indexer.embed import embed_slices
from indexer.publish import ACKNOWLEDGE_SECONDS, Publisher
from indexer.slices import DecodedItem, DecodedSlice, FetchedSlice, Rejection, rejected_row

logger = logging.getLogger(__name__)
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
        self._is_proven = False
        logger.warning("partition %d of %s: earlier lives ended here; offsets %d to %d go one by one", partition, collection.name, start, end)

    @property
    def is_done(self) -> bool:
        """Whether all records are acknowledged."""
        return self.offset >= self.end

    def step(self, reader: GroupReader) -> None:
        """Work on the next record.

        Raises
        ------
        UnavailableError
            It was not, or perhaps not, stored, or retention took it: find the chain's end and walk from there.
        """
        if not self._is_proven:
            self._prove_machine()
        record = self._engines.log.read_at(self._collection.source_topic, self.partition, self.offset)
        if record is None and self.offset < self._engines.log.bounds(self._collection.source_topic)[self.partition].start_offset:
            raise UnavailableError(f"the record at media offset {self.offset} is gone")  # at the chain's end it turns out whether it is lost
        fetched = FetchedSlice(self.partition, 0, self.offset, self.offset + 1, [] if record is None else [record])
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
        self.offset += 1

    def close(self) -> None:
        """Let go of the producer."""
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
        """Work on one record of the first walk; gives the walk where that ended it, `is_done` or to be begun again."""
        for partition, walk in list(self._walks.items())[:1]:
            is_over = False
            try:
                if not walk.is_done:
                    walk.step(reader)
                is_over = walk.is_done
            except UnavailableError as error:
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
