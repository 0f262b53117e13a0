"""Texts of one column by row, without a library's object for each: hits show their ids, and making those costs as much as finding a row.

Takes: Arrow columns. Gives: strings. Owns: nothing; the columns' memory stays alive with it. Never: copies a column.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import pyarrow as pa


class Texts:
    """The strings of a column.

    Parameters
    ----------
    column : pyarrow.StringArray
        utf8, no nulls. The string of row r is ``data[ends[r]:ends[r + 1]]``.
    """

    __slots__ = ("data", "ends")

    def __init__(self, column: pa.StringArray) -> None:
        _, offsets, data = column.buffers()
        ends = memoryview(offsets).cast("B").cast("i") if offsets is not None else memoryview(bytes(4)).cast("i")
        self.ends = ends[column.offset : column.offset + len(column) + 1]
        self.data = memoryview(data).cast("B") if data is not None else memoryview(b"")

    def __getitem__(self, row: int) -> str:
        """The string of a row."""
        return str(self.data[self.ends[row] : self.ends[row + 1]], "utf-8")


class JoinedTexts:
    """The strings of several columns, one behind the other.

    Parameters
    ----------
    texts : sequence of Texts
        At least one.
    starts : sequence of int
        Row at which each begins.
    """

    __slots__ = ("_starts", "_texts")

    def __init__(self, texts: Sequence[Texts], starts: Sequence[int]) -> None:
        self._texts, self._starts = texts, starts

    def __getitem__(self, row: int) -> str:
        """The string of a row."""
        at = bisect_right(self._starts, row) - 1
        return self._texts[at][row - self._starts[at]]
