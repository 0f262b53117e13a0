"""Exact nearest rows of a few queries among many rows that come block by block: the truth that recall is measured against.

Takes: queries, shape (q, d), blocks of rows, shape (n, d). Gives: the closest rows of each query. Owns: the running best.
Never: holds a block; its cost is one matrix product a block, since after the first block few rows are better than what is there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.encoder import Metric


class NearestRows:
    """The `limit` closest rows of each query so far.

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
        self._queries, self._limit, self._is_euclid = np.ascontiguousarray(queries.T), limit, metric == "euclid"
        self._costs = [np.zeros(0, np.float32) for _ in queries]
        self._rows = [np.zeros(0, np.int64) for _ in queries]
        self._worst = np.full(len(queries), np.inf, np.float32)

    def add(self, start: int, block: NDArray[np.float32]) -> None:
        """Look at rows `start` and following, shape (n, d)."""
        costs = block @ self._queries
        costs *= -2 if self._is_euclid else -1
        if self._is_euclid:
            costs += np.einsum("ij,ij->i", block, block)[:, None]
        better_rows, better_queries = np.nonzero(costs < self._worst)
        for query in np.unique(better_queries):
            rows = better_rows[better_queries == query]
            self._keep(int(query), costs[rows, query], rows + start)

    def _keep(self, query: int, costs: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        costs, rows = np.concatenate([self._costs[query], costs]), np.concatenate([self._rows[query], rows])
        if len(costs) > self._limit:
            kept = np.argpartition(costs, self._limit - 1)[: self._limit]
            costs, rows = costs[kept], rows[kept]
            self._worst[query] = costs.max()
        self._costs[query], self._rows[query] = costs, rows

    def rows(self) -> NDArray[np.int64]:
        """Closest rows of each query, best first, shape (q, limit); at least `limit` rows were seen."""
        return np.stack([rows[np.argsort(costs, kind="stable")] for costs, rows in zip(self._costs, self._rows, strict=True)])
