"""Texts of one column by row, without a library's object for each: hits show their ids, and making those costs as much as finding a row.

Takes: an Arrow column. Gives: strings. Owns: nothing; the column's memory stays alive with it. Never: copies the column.
"""

from __future__ import annotations

import pyarrow as pa


class Texts:
    """The strings of a column.

    Parameters
    ----------
    column : pyarrow.StringArray
        utf8, no nulls.
    """

    __slots__ = ("_data", "_ends")

    def __init__(self, column: pa.StringArray) -> None:
        _, offsets, data = column.buffers()
        ends = memoryview(offsets).cast("B").cast("i") if offsets is not None else memoryview(bytes(4)).cast("i")
        self._ends = ends[column.offset : column.offset + len(column) + 1]
        self._data = memoryview(data).cast("B") if data is not None else memoryview(b"")

    def __getitem__(self, row: int) -> str:
        """The string of a row."""
        return str(self._data[self._ends[row] : self._ends[row + 1]], "utf-8")
