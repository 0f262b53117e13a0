"""A part: rows that are searched together, be they a segment's or the tail's; immutable once made.

Takes: Arrow rows, vectors, the mask of live rows. Gives: `Part`, one shape for search, filters, scroll and payload.
Owns: the meaning of live. Never: changes an array that a query may hold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts.item import VersionOrder, version_order
from query.filter_index import FilterIndex
from query.texts import JoinedTexts, Texts
from vectors.absent_refine import Lease
from vectors.logical_index import LogicalIndex

TAIL = "tail"
"""Name of the part that no segment holds yet."""
NEVER_US = np.iinfo(np.int64).max
"""Event time of a row without one: it does not expire."""


@dataclass(frozen=True, slots=True)
class CodedSpan:
    """Consecutive row numbers that stand for consecutive rows of a part.

    Number ``lease.numbers.start + i`` is part row ``first_row + i`` (none where that is negative or at or above ``stop_row``).
    """

    lease: Lease
    first_row: int
    stop_row: int


@dataclass(frozen=True, slots=True)
class Coding:
    """Where a part's rows lie in a logical index. `recall` is what its writer measured: recall@10 by number of lists probed."""

    index: LogicalIndex
    spans: tuple[CodedSpan, ...]
    recall: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """Vectors of one field of a part, as they came.

    `matrix` has shape (m, d), float32. Either `rows`, shape (m,), names the part's row of each vector, or m is the number of rows and
    `present`, shape (m,), says which of them have a vector. Both None: every row has one. With a `coding` the rows are searched by their codes.
    """

    matrix: NDArray[np.float32]
    rows: NDArray[np.uint32] | None = None
    present: NDArray[np.bool_] | None = None
    coding: Coding | None = None

    @property
    def vectors(self) -> int:
        """How many rows have a vector."""
        return len(self.matrix) if self.present is None else int(np.count_nonzero(self.present))

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        return int(self.matrix.nbytes)

    @property
    def mapped_bytes(self) -> int:
        """None are in a mapped file."""
        return 0

    def allowed(self, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mask over `matrix`, shape (m,), of the vectors whose part row is eligible, shape (n,)."""
        if self.rows is not None:
            chosen: NDArray[np.bool_] = eligible[self.rows]
            return chosen
        return eligible if self.present is None else eligible & self.present

    def having(self, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Part rows, shape (n,), that are eligible, shape (n,), and have a vector."""
        return _having(self.rows, eligible) if self.present is None else eligible & self.present

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
class CodedColumn:
    """Vectors of one field of a segment as codes, in the logical index.

    `rows`, shape (m,), ascending, are the part rows that have a vector; all of them where it is None.
    """

    coding: Coding
    rows: NDArray[np.uint32] | None = None

    @property
    def vectors(self) -> int:
        """How many rows have a vector."""
        span = self.coding.spans[0]
        return span.stop_row - span.first_row if self.rows is None else len(self.rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of refine codes that only this process's memory holds."""
        span = self.coding.spans[0]
        return 0 if span.lease.mapped else span.lease.numbers.capacity * self.coding.index.quantizer.refine_bytes

    @property
    def mapped_bytes(self) -> int:
        """Bytes of refine codes in a mapped file, which can be read again."""
        return self.vectors * self.coding.index.quantizer.refine_bytes if self.coding.spans[0].lease.mapped else 0

    def having(self, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Part rows, shape (n,), that are eligible, shape (n,), and have a vector."""
        return _having(self.rows, eligible)

    def vector(self, part_row: int) -> NDArray[np.float32] | None:
        """The vector of a part row, shape (d,), as its refine code says it, or None."""
        if self.rows is not None:
            at = int(np.searchsorted(self.rows, part_row))
            if at == len(self.rows) or self.rows[at] != part_row:
                return None
        return self.coding.index.vector(self.coding.spans[0].lease.numbers.start + part_row)


Column = VectorColumn | CodedColumn


def _having(rows: NDArray[np.uint32] | None, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if rows is None:
        return eligible
    out = np.zeros(len(eligible), np.bool_)
    out[rows] = eligible[rows]
    return out


@dataclass(frozen=True, slots=True)
class RowColumns:
    """The columns that every query reads, as arrays of n rows: media offsets and items, event times in microseconds (`NEVER_US` for none)."""

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    event_time_us: NDArray[np.int64]
    version_of: Callable[[int], int] = field(init=False, repr=False)
    """A row's offset as Python's own number."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "version_of", _value_of(self.offsets))

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> RowColumns:
        """Columns of an Arrow batch of stored rows."""
        stored = batch.column("event_time")
        if stored.null_count == len(stored):  # one number for all, in no memory of its own
            times = np.broadcast_to(np.int64(NEVER_US), len(stored))
        else:
            times = pc.fill_null(stored.cast(pa.int64()), pa.scalar(NEVER_US, pa.int64())).to_numpy()
        return cls(batch.column("offset").to_numpy(), batch.column("item").to_numpy(), times)


def _value_of(values: NDArray[np.int64]) -> Callable[[int], int]:
    """From a place to the value there; values that count up one by one need no look into memory that no cache holds."""
    if len(values) and int(values[-1]) - int(values[0]) == len(values) - 1 and bool((values[1:] > values[:-1]).all()):
        return int(values[0]).__add__
    return memoryview(values.data).__getitem__


@dataclass(frozen=True, slots=True, eq=False)
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
    vectors : Mapping of str to Column
        By field.
    live : NDArray[np.bool_]
        shape (n,); False for a row that a newer version or a delete took away.
    newest_row : callable, optional
        The tail's look-up of an id: None where it never came; the row of its newest version, which may lie behind this part's rows.
    ids : Texts or JoinedTexts, optional
        The ids by row, where they are ready to be shown.
    filter_index : FilterIndex, optional
        A segment's.
    """

    name: str
    batches: tuple[pa.RecordBatch, ...]
    starts: tuple[int, ...]
    columns: RowColumns
    vectors: Mapping[str, Column]
    live: NDArray[np.bool_]
    newest_row: Callable[[str], int | None] | None = None
    ids: Texts | JoinedTexts | None = None
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

    def id(self, row: int) -> str:
        """The id of a row."""
        found: str = self.value(row, "id") if self.ids is None else self.ids[row]
        return found

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
