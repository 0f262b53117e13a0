"""Postings: the rows of each value of one attribute, for one part.

    values   v0 < v1 < v2 ...           sorted, each once
    offsets  o0 <= o1 <= o2 ...         rows of value i are rows[offsets[i]:offsets[i + 1]], ascending
    rows     part rows by value         a range of values is one slice
    bitmaps  value i -> bits            of values that more than one row in `BITMAP_SHARE` has

Takes: a column of values. Gives: masks, and counts without masks. Owns: the arrays; they never change. Never: knows where the column came from.

Bitmaps are plain bits, not Roaring ones: what reads them wants a mask over all rows, and to turn a Roaring bitmap of half a million rows into
one takes 1.6 ms where plain bits take 0.04.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from query.arrow_masks import Mask, is_text, numbers, parents, unpacked, valid
from query.filter_tree import Within

BITMAP_SHARE = 32
"""A value of more than one row in so many has a bitmap, which then takes less than the rows as four-byte numbers."""
HASH_SHARE = 64
"""Distinct strings for each one that is looked for, up to which hashing them all takes less than a binary search for each."""


@dataclass(frozen=True, slots=True)
class Postings:
    """The rows of each value.

    Parameters
    ----------
    rows_in_part : int
        Length n of a mask.
    values : pyarrow.Array or NDArray
        shape (m,): distinct values in order; NaN, which equals nothing, stands at the end as often as it came.
    offsets : NDArray[np.uint32]
        shape (m + 1,).
    rows : NDArray[np.uint32]
        shape (p,), where p counts each value of a row once.
    has_value : NDArray[np.uint8] or None
        Bits of the rows with a value, where some have none.
    is_array : bool
        Whether a row may have several values.
    """

    rows_in_part: int
    values: Any
    offsets: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    has_value: NDArray[np.uint8] | None
    is_array: bool
    bitmaps: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        bits = sum(each.nbytes for each in self.bitmaps.values()) + (0 if self.has_value is None else self.has_value.nbytes)
        return int(self.values.nbytes + self.offsets.nbytes + self.rows.nbytes + bits)

    # ---- where values stand -------------------------------------------------------------------------------------
    def place(self, value: Any) -> int | None:
        """Place of a value among the distinct ones, or None."""
        if isinstance(self.values, np.ndarray):
            at = int(np.searchsorted(self.values, self.values.dtype.type(value)))
            return at if at < len(self.values) and self.values[at] == value else None
        at = bisect_left(self.values, value, key=_python_value)
        return at if at < len(self.values) and self.values[at].as_py() == value else None

    def places(self, wanted: Sequence[Any]) -> list[int]:
        """Places of those of the values that are here, each once, ascending."""
        if isinstance(self.values, np.ndarray) or len(self.values) > HASH_SHARE * len(wanted):
            return sorted({at for value in wanted if (at := self.place(value)) is not None})
        found = pc.index_in(pa.array(wanted, self.values.type), value_set=self.values)
        return sorted(set(found.drop_null().to_pylist()))

    def span(self, test: Within) -> tuple[int, int]:
        """Half-open interval of the places whose value lies within; only of numbers."""
        first = 0 if test.low is None else int(np.searchsorted(self.values, test.low, "left" if test.includes_low else "right"))
        end = np.nan if test.high is None and self.values.dtype.kind == "f" else test.high
        if end is None:
            return first, len(self.values)
        side: Any = "left" if test.high is None or not test.includes_high else "right"
        return first, max(first, int(np.searchsorted(self.values, end, side)))

    def count(self, first: int, end: int) -> int:
        """Rows of the values at places from `first` to below `end`; of arrays, a row counts once for each value."""
        return int(self.offsets[end]) - int(self.offsets[first])

    # ---- masks --------------------------------------------------------------------------------------------------
    def mask(self, places: Sequence[int]) -> Mask:
        """Rows that have one of the values, shape (n,)."""
        out: Mask | None = None
        for at in places:
            if at in self.bitmaps:
                bits = unpacked(self.bitmaps[at], self.rows_in_part)
                out = bits if out is None else np.bitwise_or(out, bits, out=out)
        out = np.zeros(self.rows_in_part, np.bool_) if out is None else out
        for at in places:
            if at not in self.bitmaps:
                out[self.rows[self.offsets[at] : self.offsets[at + 1]]] = True
        return out

    def span_mask(self, first: int, end: int) -> Mask:
        """Rows that have a value at a place from `first` to below `end`, shape (n,)."""
        out = np.zeros(self.rows_in_part, np.bool_)
        out[self.rows[self.offsets[first] : self.offsets[end]].astype(np.intp)] = True  # numpy converts other indices one by one
        return out

    def without_mask(self, places: Sequence[int]) -> Mask:
        """Rows that have a value beside these, shape (n,)."""
        if not self.is_array:
            others = ~self.mask(places)
            return others if self.has_value is None else others & unpacked(self.has_value, self.rows_in_part)
        out = np.zeros(self.rows_in_part, np.bool_)
        for first, end in zip([0, *(at + 1 for at in places)], [*places, len(self.values)], strict=True):
            out[self.rows[self.offsets[first] : self.offsets[end]].astype(np.intp)] = True
        return out


def _python_value(scalar: pa.Scalar) -> Any:
    return scalar.as_py()


def build_postings(column: pa.Array) -> Postings:
    """Sort a column, shape (n,), of strings, numbers, bools or times, or of arrays of them; null has no posting."""
    is_array = bool(pa.types.is_list(column.type))
    values = pc.list_flatten(column) if is_array else column
    owners = parents(column) if is_array else None
    known = valid(values)
    if known is not None:
        values = values.filter(pa.array(known))
        owners = np.flatnonzero(known) if owners is None else owners[known]
    table, codes = _coded_text(values) if is_text(values) else _coded_numbers(numbers(values))
    order = np.argsort(codes, kind="stable")  # stable: rows of one value stay in order; short codes are sorted by their digits
    codes = codes[order]
    rows = (order if owners is None else owners[order]).astype(np.uint32)
    if is_array and len(rows):
        first = np.concatenate(([True], (codes[1:] != codes[:-1]) | (rows[1:] != rows[:-1])))
        codes, rows = codes[first], rows[first]  # an array that holds a value twice
    offsets = np.concatenate(([0], np.cumsum(np.bincount(codes, minlength=len(table))))).astype(np.uint32)
    has_value = None if owners is None else _bits_of(owners, len(column))
    return Postings(len(column), table, offsets, rows, has_value, is_array, _bitmaps(offsets, rows, len(column)))


def _short(codes: NDArray[Any], count: int) -> NDArray[Any]:
    return codes.astype(np.uint8 if count <= 1 << 8 else np.uint16 if count <= 1 << 16 else np.int64)


def _coded_text(values: pa.Array) -> tuple[pa.Array, NDArray[Any]]:
    coded = values.dictionary_encode()
    order = pc.array_sort_indices(coded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    codes = rank[coded.indices.to_numpy()] if len(values) else np.zeros(0, np.int64)
    return coded.dictionary.take(pa.array(order)), _short(codes, len(order))


def _coded_numbers(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    table, codes = np.unique(values, return_inverse=True, equal_nan=False)
    return table, _short(codes, len(table))


def _bits_of(rows: NDArray[Any], count: int) -> NDArray[np.uint8]:
    mask = np.zeros(count, np.bool_)
    mask[rows] = True
    return np.packbits(mask, bitorder="little")


def _bitmaps(offsets: NDArray[np.uint32], rows: NDArray[np.uint32], count: int) -> dict[int, NDArray[np.uint8]]:
    frequent = np.flatnonzero(np.diff(offsets.astype(np.int64)) * BITMAP_SHARE > count)
    return {int(at): _bits_of(rows[offsets[at] : offsets[at + 1]], count) for at in frequent}
