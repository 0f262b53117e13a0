"""Exact search over a matrix of vectors, and the merge of several searches.

Takes: one query vector, float32 matrices, masks of allowed rows. Gives: rows and scores, best first. Owns: what a score means per metric.
Never: knows ids, payloads or where a matrix came from.

Scores follow Qdrant's convention (https://qdrant.tech/documentation/concepts/search/): cosine and dot are similarities, larger is better;
euclid is the distance itself, smaller is better. Vectors of a cosine field have length 1 when they are stored, so cosine is an inner product.
faiss releases the interpreter's lock while it searches, so threads of one process search at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.encoder import Metric

GATHER_BELOW = 0.1
"""Share of allowed rows below which they are copied together first: a selector that says no to most rows costs more than the copy."""

_threads = threading.local()


@dataclass(frozen=True, slots=True)
class FlatHits:
    """Rows of one matrix, best first: `rows` int64 and `scores` float32, both of shape (k',) with k' <= k."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MergedHit:
    """One hit of several merged searches: which of them, its row there, its score."""

    part: int
    row: int
    score: float


def higher_is_better(metric: Metric) -> bool:
    """Tell whether a larger score means a closer vector."""
    return metric != "euclid"


def as_float32(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """Matrix, shape (n, d), in the form that `search` reads: float32, C order; converted once, when it is loaded."""
    if matrix.dtype == np.float16 and matrix.size:  # exact like numpy's conversion, and several times as fast
        half = np.ascontiguousarray(matrix, dtype="<f2").view(np.uint8)
        wide: NDArray[np.float32] = faiss.ScalarQuantizer(matrix.shape[1], faiss.ScalarQuantizer.QT_fp16).decode(half)
        return wide
    return np.ascontiguousarray(matrix, dtype=np.float32)


def normalise(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vector of the same direction and length 1, shape (d,).

    Raises
    ------
    ValueError
        It has length zero, hence no direction.
    """
    wide = vector.astype(np.float64)  # in which no finite float32 overflows when squared
    norm = float(np.linalg.norm(wide))
    if norm == 0.0:
        raise ValueError("a vector of length zero has no direction")
    return (wide / norm).astype(np.float32)


def search(query: NDArray[np.float32], matrix: NDArray[np.float32], metric: Metric, limit: int, allowed: NDArray[np.bool_] | None = None) -> FlatHits:
    """Find the `limit` closest rows of a matrix, exactly.

    Parameters
    ----------
    query : NDArray[np.float32]
        shape (d,); of length 1 for cosine.
    matrix : NDArray[np.float32]
        shape (n, d), C order; rows of length 1 for cosine.
    metric : {"cosine", "dot", "euclid"}
        What a score is.
    limit : int
        Most hits, at least 1.
    allowed : NDArray[np.bool_], optional
        shape (n,); rows that may be found. All of them where it is None.

    Returns
    -------
    FlatHits
        Fewer than `limit` where fewer rows are allowed.
    """
    if query.shape != matrix.shape[1:]:
        raise ValueError(f"query has shape {query.shape}, the matrix {matrix.shape}")
    found = len(matrix) if allowed is None else int(np.count_nonzero(allowed))
    if found == 0 or limit < 1:
        return FlatHits(np.zeros(0, np.int64), np.zeros(0, np.float32))
    limit = min(limit, found)
    if allowed is None or found == len(matrix):
        return _knn(query, matrix, metric, limit, None)
    if found < GATHER_BELOW * len(matrix):
        rows = np.flatnonzero(allowed)
        hits = _knn(query, matrix[rows], metric, limit, None)
        return FlatHits(rows[hits.rows], hits.scores)
    return _knn(query, matrix, metric, limit, allowed)


def _knn(query: NDArray[np.float32], matrix: NDArray[np.float32], metric: Metric, limit: int, allowed: NDArray[np.bool_] | None) -> FlatHits:
    _one_thread()
    scores, rows = np.empty((1, limit), np.float32), np.empty((1, limit), np.int64)
    bits = None if allowed is None else np.packbits(allowed, bitorder="little")  # kept in a name: faiss holds only its address
    selector = None if bits is None else faiss.IDSelectorBitmap(len(matrix), faiss.swig_ptr(bits))
    query = np.ascontiguousarray(query, dtype=np.float32)
    place = (faiss.swig_ptr(query), faiss.swig_ptr(matrix), matrix.shape[1], 1, len(matrix), limit, faiss.swig_ptr(scores), faiss.swig_ptr(rows))
    if metric == "euclid":
        faiss.knn_L2sqr(*place, None, selector)
        np.sqrt(np.maximum(scores, 0.0), out=scores)
    else:
        faiss.knn_inner_product(*place, selector)
        np.minimum(scores, np.finfo(np.float32).max, out=scores)  # a product beyond float32 is still the largest
    kept = rows[0] >= 0  # a score that is not comparable (NaN) is never kept by faiss, so a place can stay empty
    return FlatHits(rows[0][kept], scores[0][kept])


def _one_thread() -> None:
    """One OpenMP thread per searching thread: faiss splits a batch of queries, never one query, so more of them only wait."""
    if not getattr(_threads, "set", False):
        faiss.omp_set_num_threads(1)  # the setting is the calling thread's own
        _threads.set = True


def merge(parts: Sequence[FlatHits], metric: Metric, limit: int) -> list[MergedHit]:
    """Best `limit` hits of several searches, best first; of equal scores the earlier part and row comes first."""
    if not parts:
        return []
    scores = np.concatenate([hits.scores for hits in parts])
    rows = np.concatenate([hits.rows for hits in parts])
    owners = np.repeat(np.arange(len(parts)), [len(hits.rows) for hits in parts])
    order = np.lexsort((rows, owners, -scores if higher_is_better(metric) else scores))[:limit]
    return [MergedHit(int(owners[at]), int(rows[at]), float(scores[at])) for at in order]
