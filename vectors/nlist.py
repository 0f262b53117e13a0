"""How many inverted lists an index gets (pure).

Takes: rows, and rows to train on. Gives: nlist. Owns: the rule. Never: looks at vectors.
"""

from __future__ import annotations

import math

ROWS_PER_CENTROID = 39
"""Fewer rows per centroid make k-means fit the sample, not the field (faiss warns below it)."""
LARGEST = 65_536
"""A flat coarse search of one query takes as long as the lists that it finds from here on."""


def choose_nlist(rows: int, train_rows: int) -> int:
    """Lists for an index of `rows` rows that is trained on `train_rows` of them.

    Eight times the square root of the rows: the usual four for an index four times as large, since an index that trains is an index that grows. Never
    more than the sample can place, `ROWS_PER_CENTROID` rows for each; at least one.
    """
    wanted = 8 * math.isqrt(max(rows, 0))
    return max(1, min(wanted, train_rows // ROWS_PER_CENTROID, LARGEST))
