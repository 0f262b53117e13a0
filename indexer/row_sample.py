"""A uniform sample of vectors that come part by part, whose number is not known before the last one (pure).

Takes: matrices, shape (n, d). Gives: up to a wanted number of their rows, each as likely as any other. Owns: the thinning.
Never: holds more than twice the wanted rows and the part that came last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vectors.flat import as_float32


class RowSample:
    """Collects a sample.

    Parameters
    ----------
    wanted : int
        Rows of the finished sample.
    seed : int
        Determines which.
    """

    def __init__(self, wanted: int, seed: int) -> None:
        self.seen = 0
        self._wanted = wanted
        self._random = np.random.default_rng(seed)
        self._kept: list[NDArray[np.float32]] = []
        self._share = 1.0

    def add(self, matrix: NDArray[Any]) -> None:
        """Look at more rows, shape (n, d)."""
        self.seen += len(matrix)
        chosen = np.arange(len(matrix)) if self._share == 1.0 else np.flatnonzero(self._random.random(len(matrix)) < self._share)
        self._kept.append(as_float32(matrix[chosen]))
        kept = sum(map(len, self._kept))
        if kept > 2 * self._wanted:
            share = self._wanted * 1.5 / kept
            self._share *= share
            self._kept = [rows[self._random.random(len(rows)) < share] for rows in self._kept]

    def rows(self) -> NDArray[np.float32]:
        """The sample, shape (k, d), float32; k is `wanted`, or all that was seen where that is less."""
        rows = np.concatenate(self._kept) if self._kept else np.zeros((0, 0), np.float32)
        if len(rows) <= self._wanted:
            return rows
        return rows[np.sort(self._random.choice(len(rows), self._wanted, replace=False))]
