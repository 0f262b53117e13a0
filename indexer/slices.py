"""What moves through the embed worker, named by what was done to it.

    FetchedSlice -> DecodedSlice -> EmbeddedSlice

Takes: records of one partition, in order. Gives: the interval of media offsets that they cover. Owns: gaps between records.
Never: mixes partitions; never splits a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contracts.log import LogRecord
from contracts.media_item import RejectedItem
from contracts.vectors_batch import BatchItem

LEAST_RECORD_BYTES = 64 * 1024
"""What a record counts at least while it waits, decoded or not: some pictures are prepared at 224 x 224 x 3 bytes."""


KEEPING_REASONS = ("wrong_partition", "bad_origin", "bad_id")


@dataclass(frozen=True, slots=True)
class FetchedSlice:
    """Consecutive records of one partition: they cover the media offsets ``[start_offset, next_offset)``.

    `run` names the stretch of work since the partition was last sought; slices of an older run are dropped unseen.
    """

    partition: int
    run: int
    start_offset: int
    next_offset: int
    records: Sequence[LogRecord]

    @property
    def size_bytes(self) -> int:
        """Bytes of all records, for bounding what waits: a record that only names its payload grows to a picture once it is decoded."""
        return sum(max(record.size_bytes, LEAST_RECORD_BYTES) for record in self.records)


@dataclass(slots=True)
class Rejection:
    """A record of which an item (or, with `partial`, a part of an item) is rejected; it gets a dead letter."""

    record: LogRecord
    item: int
    reason: str
    message: str
    partial: bool = False


@dataclass(slots=True)
class DecodedItem:
    """A row in the making: its batch row, and what the encoder still has to do for it.

    `picture` has shape (height, width, 3), dtype uint8; `text` is normalised.
    """

    row: BatchItem
    picture: NDArray[np.uint8] | None = None
    text: str | None = None


@dataclass(slots=True)
class DecodedSlice:
    """A slice whose records are read and whose pictures are decoded."""

    fetched: FetchedSlice
    items: list[DecodedItem] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


def rejected_row(item: RejectedItem | BatchItem, reason: str, on_reject: str) -> BatchItem:
    """Row of a rejected item: ``reject``; or, where the collection removes what a rejected update meant, a ``delete`` with a reason.

    An id that belongs elsewhere, or a replay that claims a false origin, never removes anything.
    """
    removes = on_reject == "remove" and item.id is not None and reason not in KEEPING_REASONS
    origin = item.origin_offset, item.origin_item
    return BatchItem(item.offset, item.item, "delete" if removes else "reject", item.id, *origin, reason=reason, produced_at_us=item.produced_at_us)


def is_rejection(row: BatchItem) -> bool:
    """Whether the row is one that `rejected_row` makes."""
    return row.op == "reject" or (row.op == "delete" and row.reason is not None)


def fetched_slices(records: Sequence[LogRecord], run: int, start_offset: int, most_records: int) -> list[FetchedSlice]:
    """Cut one partition's records, in offset order, into slices that tile from `start_offset` to behind the last record.

    Offsets that the log skips (transaction markers, compacted records) fall into the slice of the record that follows them.
    """
    slices: list[FetchedSlice] = []
    for at in range(0, len(records), most_records):
        part = records[at : at + most_records]
        next_offset = part[-1].offset + 1
        slices.append(FetchedSlice(part[0].partition, run, start_offset, next_offset, part))
        start_offset = next_offset
    return slices


def gap_rows(start_offset: int, records: Sequence[LogRecord], next_offset: int) -> list[BatchItem]:
    """Rows with op ``gap`` for the offsets of ``[start_offset, next_offset)`` at which no record lies."""
    rows: list[BatchItem] = []
    expected = start_offset
    for offset in [*(record.offset for record in records), next_offset]:
        if offset > expected:
            rows.append(BatchItem(expected, offset - expected, "gap"))
        expected = max(expected, offset + 1)
    return rows
