"""Codes of a tail: its rows in a logical index, coded as they arrive.

Takes: vectors of new rows. Gives: the tail's `Coding`. Owns: in which chunk each row lies. Never: codes a row twice in one generation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from query.parts import CodedSpan, Coding
from vectors.logical_index import Chunk, LogicalIndex
from vectors.quantizer import EncodedRows

FIRST_CHUNK_ROWS, LARGEST_CHUNK_ROWS = 1024, 65_536


class TailCodes:
    """Rows 0 to `rows` of a tail in one logical index; one writer, the partition.

    Parameters
    ----------
    index : LogicalIndex
        Where they are found.
    chunks : sequence of (Chunk, int), optional
        What is coded already, each with the tail row of its first row, which is negative where the tail was cut inside a chunk.
    """

    def __init__(self, index: LogicalIndex, chunks: Sequence[tuple[Chunk, int]] = ()) -> None:
        self.index = index
        self._chunks = list(chunks)

    @property
    def rows(self) -> int:
        """How many of the tail's rows are coded."""
        return 0 if not self._chunks else self._chunks[-1][1] + self._chunks[-1][0].rows

    def append(self, matrix: NDArray[np.float32], present: NDArray[np.bool_]) -> None:
        """Code the next rows: vectors of shape (n, d), and which rows have one, shape (n,)."""
        encoded = self._encode(matrix, present)
        done, rows = 0, self.rows
        while done < len(matrix):
            if not self._chunks or not self._chunks[-1][0].room:
                capacity = min(LARGEST_CHUNK_ROWS, max(FIRST_CHUNK_ROWS, rows))
                self._chunks.append((self.index.open_chunk(capacity), rows + done))
            chunk = self._chunks[-1][0]
            stop = min(len(matrix), done + chunk.room)
            chunk.append(EncodedRows(encoded.list_numbers[done:stop], encoded.codes[done:stop], encoded.refine[done:stop]))
            done = stop

    def _encode(self, matrix: NDArray[np.float32], present: NDArray[np.bool_]) -> EncodedRows:
        quantizer = self.index.quantizer
        if present.all():
            return quantizer.encode(np.ascontiguousarray(matrix, dtype=np.float32))
        some = quantizer.encode(np.ascontiguousarray(matrix[present], dtype=np.float32))
        whole = EncodedRows(
            np.full(len(matrix), -1, some.list_numbers.dtype),
            np.zeros((len(matrix), some.codes.shape[1]), np.uint8),
            np.zeros((len(matrix), some.refine.shape[1]), np.uint8),
        )
        whole.list_numbers[present], whole.codes[present], whole.refine[present] = some.list_numbers, some.codes, some.refine
        return whole

    def coding(self, rows: int) -> Coding:
        """How the first `rows` rows of the tail are found."""
        spans = (CodedSpan(chunk.lease, first, min(rows, first + chunk.rows)) for chunk, first in self._chunks if first < rows)
        return Coding(self.index, tuple(spans))

    def trimmed(self, cut: int) -> TailCodes:
        """Codes of the tail without its first `cut` rows."""
        return TailCodes(self.index, [(chunk, first - cut) for chunk, first in self._chunks if first + chunk.rows > cut])
