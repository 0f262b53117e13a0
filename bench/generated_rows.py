"""Rows of the generator, made once in a process and shared by all workloads: each takes the first ones, as many as it wants.

Blocks are the same whoever asks, so that the first n rows are the same for everybody. Memory is taken page by page, for what was asked for.

Takes: a seed. Gives: rows, their clusters, queries. Owns: the arrays. Never: makes a row twice, or lets one be changed.
"""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bench.clip_like import ClipLike

FIRST_BLOCK_ROWS, BLOCK_ROWS = 5_000, 50_000
"""A small block first: tests want few rows, and a block takes half a second however small it is."""
MOST_ROWS = 1_200_000
"""Of one seed: address space, which is not memory until it is written."""
QUERIES_SEED = 1_000_000


class GeneratedRows:
    """The rows of one seed; thread-safe. `generated_rows` gives the one of a process.

    Parameters
    ----------
    seed : int
        Of the generator.
    """

    def __init__(self, seed: int) -> None:
        self._source, self._seed = ClipLike(seed), seed
        self._vectors = np.empty((MOST_ROWS + BLOCK_ROWS, self._source.shape.dimension), np.float32)
        self._clusters = np.empty(MOST_ROWS + BLOCK_ROWS, np.int64)
        self._made = 0
        self._lock = threading.Lock()

    def first(self, rows: int) -> NDArray[np.float32]:
        """The first rows, shape (rows, d), of length 1; a view that cannot be written."""
        self._make(rows)
        view = self._vectors[:rows]
        view.flags.writeable = False
        return view

    def first_clusters(self, rows: int) -> NDArray[np.int64]:
        """The cluster of each of the first rows, shape (rows,)."""
        self._make(rows)
        return self._clusters[:rows].copy()

    def queries(self, count: int) -> NDArray[np.float32]:
        """Rows like the others that are none of them, shape (count, d)."""
        return self._source.sample(np.linspace(0, 1, count), self._seed + QUERIES_SEED)

    def _make(self, rows: int) -> None:
        if rows > MOST_ROWS:
            raise ValueError(f"{rows} rows are more than {MOST_ROWS}")
        with self._lock:
            while self._made < rows:
                stop = self._made + BLOCK_ROWS if self._made else FIRST_BLOCK_ROWS
                vectors, clusters = self._source.sample_with_clusters(np.zeros(stop - self._made), self._seed + stop // BLOCK_ROWS)
                self._vectors[self._made : stop], self._clusters[self._made : stop] = vectors, clusters
                self._made = stop


@cache
def generated_rows(seed: int) -> GeneratedRows:
    """The rows of a seed in this process."""
    return GeneratedRows(seed)


def rows_of(rows: int, seed: int) -> NDArray[np.float16]:
    """The first rows as they are stored, shape (rows, d)."""
    return generated_rows(seed).first(rows).astype(np.float16)
