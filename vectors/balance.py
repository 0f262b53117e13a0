"""How unequal inverted lists are (pure).

Takes: sizes of lists. Gives: one number. Owns: nothing. Never: sees a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def imbalance(sizes: NDArray[np.int64]) -> float:
    """Imbalance of lists by their sizes, shape (nlist,): 1 where all are equal, nlist where one holds everything (faiss's imbalance factor)."""
    total = float(sizes.sum())
    return float(len(sizes) * (sizes.astype(np.float64) ** 2).sum() / total**2) if total else 1.0
