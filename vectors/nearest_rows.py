"""Exact nearest rows of a few queries among many rows that come block by block: the truth that recall is measured against.

Takes: queries, shape (q, d), blocks of rows, shape (n, d), in any order. Gives: the closest rows of each query. Owns: the best of each block.
Never: holds a block; its cost is one matrix product a block.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.encoder import Metric


class NearestRows:
    """The `limit` closest rows of each query so far; `add` may be called by several threads.

    Parameters
    ----------
    queries : NDArray[np.float32]
        shape (q, d).
    limit : int
        Rows to keep for each.
    metric : {"cosine", "dot", "euclid"}
        What close means.
    """

    def __init__(self, queries: NDArray[np.float32], limit: int, metric: Metric) -> None:
        self._queries, self._limit, self._is_euclid = np.ascontiguousarray(queries), limit, metric == "euclid"
        self._found: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def add(self, start: int, block: NDArray[np.float32]) -> None:
        """Look at rows `start` and following, shape (n, d)."""
        metric = faiss.METRIC_L2 if self._is_euclid else faiss.METRIC_INNER_PRODUCT
        scores, rows = faiss.knn(self._queries, block, min(self._limit, len(block)), metric)
        self._found.append(
            (scores if self._is_euclid else -scores, np.where(rows < 0, -1, rows + start))
        )  # a score that is not comparable finds nothing

    def rows(self) -> NDArray[np.int64]:
        """Closest rows of each query, best first, shape (q, limit); at least `limit` rows were seen. Of equally close ones the first."""
        costs, rows = (np.concatenate(found, axis=1) for found in zip(*self._found, strict=True))
        order = np.lexsort((rows, costs))[:, : self._limit]
        return np.take_along_axis(rows, order, axis=1)
