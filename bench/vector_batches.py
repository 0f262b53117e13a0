"""A vectors topic filled by hand: batches in our own format (contracts/vectors_batch.py), as the embed worker would write them.

Takes: an open log, a collection, rows of vectors. Gives: a filled partition. Owns: which ids and offsets the rows get.
Never: writes to a media topic: what is measured on such a topic begins at the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bench.feeds import VECTOR_FIELD
from contracts.chain import BatchSpan
from contracts.collection import CollectionRecord
from contracts.log import Headers, LogProducer
from contracts.vectors_batch import BatchItem, batch_headers, batch_schema, build_batch, encode_batch

BATCH_ROWS = 1000
_FIRST_TIME_US = 1_764_115_200_000_000


def batches(collection: CollectionRecord, matrix: NDArray[np.float16], rows: int) -> Iterator[tuple[Headers, bytes]]:
    """Headers and values of batches of `BATCH_ROWS` rows, one media record each.

    Parameters
    ----------
    collection : CollectionRecord
        Of `bench.feeds.VECTOR_FIELD`.
    matrix : NDArray[np.float16]
        shape (n, d): its rows are taken again and again, under new ids.
    rows : int
        Rows in all.
    """
    schema = batch_schema(collection.index(), collection.attributes)
    for offset, start in enumerate(range(0, rows, BATCH_ROWS)):
        items = [
            BatchItem(
                offset,
                row - start,
                "upsert",
                f"item-{row:08d}",
                vectors={VECTOR_FIELD: matrix[row % len(matrix)]},
                event_time_us=_FIRST_TIME_US + row,
                produced_at_us=_FIRST_TIME_US + row,
            )
            for row in range(start, min(rows, start + BATCH_ROWS))
        ]
        value = encode_batch(build_batch(items, schema))
        span = BatchSpan(collection.incarnation, collection.source_topic_id, offset, offset + 1)
        yield batch_headers(span, value), value


def fill(producer: LogProducer, collection: CollectionRecord, matrix: NDArray[np.float16], rows: int) -> None:
    """Write `batches` to partition 0 of the collection's vectors topic, and wait until they are stored."""
    for headers, value in batches(collection, matrix, rows):
        producer.send(collection.index().vectors_topic, partition=0, value=value, headers=headers)
    producer.flush(120.0)
