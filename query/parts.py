"""A part: rows that are searched together, be they a segment's or the tail's; immutable once made.

Takes: Arrow rows, vectors, the mask of live rows. Gives: `Part`, one shape for search, filters, scroll and payload.
Owns: the meaning of live. Never: changes an array that a query may hold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts.item import VersionOrder, version_order
from query.filter_index import FilterIndex

TAIL = "tail"
"""Name of the part that no segment holds yet."""
NEVER_US = np.iinfo(np.int64).max
"""Event time of a row without one: it does not expire."""


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """Vectors of one field of a part.

    `matrix` has shape (m, d), float32. Either `rows`, shape (m,), names the part's row of each vector, or m is the number of rows and
    `present`, shape (m,), says which of them have a vector. Both None: every row has one.
    """

    matrix: NDArray[np.float32]
    rows: NDArray[np.uint32] | None = None
    present: NDArray[np.bool_] | None = None

    def allowed(self, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mask over `matrix`, shape (m,), of the vectors whose part row is eligible, shape (n,)."""
        if self.rows is not None:
            chosen: NDArray[np.bool_] = eligible[self.rows]
            return chosen
        return eligible if self.present is None else eligible & self.present

    def part_row(self, row: int) -> int:
        """Part row of a row of `matrix`."""
        return row if self.rows is None else int(self.rows[row])

    def vector(self, part_row: int) -> NDArray[np.float32] | None:
        """The vector of a part row, shape (d,), or None."""
        if self.rows is not None:
            at = int(np.searchsorted(self.rows, part_row))  # rows ascend: segments store vectors in row order
            found: NDArray[np.float32] | None = self.matrix[at] if at < len(self.rows) and self.rows[at] == part_row else None
            return found
        if self.present is not None and not self.present[part_row]:
            return None
        vector: NDArray[np.float32] = self.matrix[part_row]
        return vector


@dataclass(frozen=True, slots=True)
class RowColumns:
    """The columns that every query reads, as arrays of n rows: media offsets and items, event times in microseconds (`NEVER_US` for none)."""

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    event_time_us: NDArray[np.int64]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> RowColumns:
        """Columns of an Arrow batch of stored rows."""
        times = pc.fill_null(batch.column("event_time").cast(pa.int64()), pa.scalar(NEVER_US, pa.int64()))
        return cls(batch.column("offset").to_numpy(), batch.column("item").to_numpy(), times.to_numpy())


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one segment, or of the tail, with their vectors.

    Parameters
    ----------
    name : str
        Segment id, or `TAIL`.
    batches : tuple of pyarrow.RecordBatch
        Stored rows (`contracts.segment.rows_schema`), together n.
    starts : tuple of int
        Part row at which each batch begins.
    columns : RowColumns
        Of n rows.
    vectors : Mapping of str to VectorColumn
        By field.
    live : NDArray[np.bool_]
        shape (n,); False for a row that a newer version or a delete took away.
    newest_row : callable, optional
        The tail's look-up of an id: None where it never came; the row of its newest version, which may lie behind this part's rows.
    filter_index : FilterIndex, optional
        A segment's.
    """

    name: str
    batches: tuple[pa.RecordBatch, ...]
    starts: tuple[int, ...]
    columns: RowColumns
    vectors: Mapping[str, VectorColumn]
    live: NDArray[np.bool_]
    newest_row: Callable[[str], int | None] | None = None
    filter_index: FilterIndex | None = None

    @property
    def rows(self) -> int:
        """Rows of the part, live or not."""
        return len(self.live)

    def eligible(self, expired_before_us: int | None) -> NDArray[np.bool_]:
        """Live rows, shape (n,), without those whose event time is at or before `expired_before_us`."""
        if expired_before_us is None:
            return self.live
        return self.live & (self.columns.event_time_us > expired_before_us)

    def is_eligible(self, row: int, expired_before_us: int | None) -> bool:
        """Whether `eligible` has a row, without looking at the others."""
        return bool(self.live[row]) and (expired_before_us is None or bool(self.columns.event_time_us[row] > expired_before_us))

    def locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds a row, and the row's number in it."""
        at = bisect_right(self.starts, row) - 1
        return self.batches[at], row - self.starts[at]

    def value(self, row: int, column: str) -> Any:
        """One stored value as Python's own."""
        batch, at = self.locate(row)
        return batch.column(column)[at].as_py()

    def time_us(self, row: int, column: str) -> int | None:
        """One stored time in microseconds since 1970, or None."""
        batch, at = self.locate(row)
        found: int | None = batch.column(column).slice(at, 1).cast(pa.int64())[0].as_py()
        return found

    def media_place(self, row: int) -> tuple[int, int]:
        """Media offset and item of the record that holds a row's media: not the row's own where a patch made the row."""
        offset, item = self.value(row, "media_offset"), self.value(row, "media_item")
        return (int(self.columns.offsets[row]), int(self.columns.items[row])) if offset is None else (offset, item)

    def order(self, row: int) -> VersionOrder:
        """Place of a row among the versions of its id."""
        batch, at = self.locate(row)
        return version_order(*(batch.column(name)[at].as_py() for name in ("offset", "item", "origin_offset", "origin_item")))

    def find_id(self, item_id: str) -> int | None:
        """Live row of that id, or None; asks the tail's look-up, else compares whole ids, batch by batch."""
        if self.newest_row is not None:
            newest = self.newest_row(item_id)
            if newest is None:
                return None
            if 0 <= newest < self.rows:
                return newest if self.live[newest] else None
            # superseded or deleted after this part was published: the row that this part shows is found the slow way
        for batch, start in zip(self.batches, self.starts, strict=True):
            rows = np.flatnonzero(np.asarray(pc.equal(batch.column("id"), item_id).fill_null(False))) + start
            rows = rows[self.live[rows]]
            if len(rows):
                return int(rows[-1])
        return None
