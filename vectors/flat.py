"""Exact search over a matrix of vectors, and the merge of several searches.

Takes: one query vector, float32 matrices, masks of allowed rows. Gives: rows and scores, best first. Owns: what a score means per metric.
Never: knows ids, payloads or where a matrix came from.

Scores follow Qdrant's convention (https://qdrant.tech/documentation/concepts/search/): cosine and dot are similarities, larger is better;
euclid is the distance itself, smaller is better. Vectors of a cosine field have length 1 when they are stored, so cosine is an inner product.
faiss releases the interpreter's lock while it searches, so threads of one process search at the same time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.encoder import Metric

LARGEST = np.finfo(np.float32).max
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
    norm = math.sqrt(wide @ wide)
    if norm == 0.0:
        raise ValueError("a vector of length zero has no direction")
    return (wide / norm).astype(np.float32)


def search(query: NDArray[np.float32], matrix: NDArray[np.float32], metric: Metric, limit: int, allowed: NDArray[np.bool_] | None = None) -> FlatHits:
    """Find the `limit` closest rows of a matrix for one query, shape (d,), exactly; the rest as `search_batch`."""
    return search_batch(query[None], matrix, metric, limit, allowed)[0]


def search_batch(
    queries: NDArray[np.float32], matrix: NDArray[np.float32], metric: Metric, limit: int, allowed: NDArray[np.bool_] | None = None
) -> list[FlatHits]:
    """Find the `limit` closest rows of a matrix for each query, exactly.

    Parameters
    ----------
    queries : NDArray[np.float32]
        shape (q, d); of length 1 for cosine.
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
    list of FlatHits
        One for each query; fewer than `limit` rows where fewer are allowed.
    """
    if queries.shape[1:] != matrix.shape[1:]:
        raise ValueError(f"a query has shape {queries.shape[1:]}, the matrix {matrix.shape}")
    found = len(matrix) if allowed is None else int(np.count_nonzero(allowed))
    if found == 0 or limit < 1:
        return [FlatHits(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    limit = min(limit, found)
    if allowed is None or found == len(matrix):
        return _knn(queries, matrix, metric, limit, None)
    if found < GATHER_BELOW * len(matrix):
        rows = np.flatnonzero(allowed)
        return [FlatHits(rows[hits.rows], hits.scores) for hits in _knn(queries, matrix[rows], metric, limit, None)]
    return _knn(queries, matrix, metric, limit, allowed)


def _knn(queries: NDArray[np.float32], matrix: NDArray[np.float32], metric: Metric, limit: int, allowed: NDArray[np.bool_] | None) -> list[FlatHits]:
    one_thread()
    scores, rows = np.empty((len(queries), limit), np.float32), np.empty((len(queries), limit), np.int64)
    bits = None if allowed is None else np.packbits(allowed, bitorder="little")  # kept in a name: faiss holds only its address
    selector = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    shape = (matrix.shape[1], len(queries), len(matrix), limit)
    place = (faiss.swig_ptr(queries), faiss.swig_ptr(matrix), *shape, faiss.swig_ptr(scores), faiss.swig_ptr(rows))
    if metric == "euclid":
        faiss.knn_L2sqr(*place, None, selector)
    else:
        faiss.knn_inner_product(*place, selector)
    scores = scores_of(scores, metric)
    kept = rows >= 0  # a score that is not comparable (NaN) is never kept by faiss, so a place can stay empty
    return [FlatHits(rows[at][kept[at]], scores[at][kept[at]]) for at in range(len(queries))]


def one_thread() -> None:
    """One OpenMP thread per searching thread: faiss splits a batch of queries, never one query, so more of them only wait."""
    if not getattr(_threads, "set", False):
        faiss.omp_set_num_threads(1)  # the setting is the calling thread's own
        _threads.set = True


def scores_of(distances: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Scores, of the same shape (n, k), of what faiss calls distances: inner products, or squares of L2 for euclid."""
    if metric == "euclid":
        return np.sqrt(np.maximum(distances, 0.0))
    return np.minimum(distances, LARGEST)  # a product beyond float32 is still the largest


def best_of(one: FlatHits, other: FlatHits, metric: Metric, limit: int) -> FlatHits:
    """Best `limit` hits of two searches of different rows, best first; of equal scores those of the first one come first."""
    scores = np.concatenate([one.scores, other.scores])
    best = np.argsort(-scores if higher_is_better(metric) else scores, kind="stable")[:limit]
    return FlatHits(np.concatenate([one.rows, other.rows])[best], scores[best])


def merge(parts: Sequence[FlatHits], metric: Metric, limit: int) -> list[MergedHit]:
    """Best `limit` hits of several searches, best first; of equal scores the earlier part and row comes first."""
    if not parts:
        return []
    scores = np.concatenate([hits.scores for hits in parts])
    rows = np.concatenate([hits.rows for hits in parts])
    owners = np.repeat(np.arange(len(parts)), [len(hits.rows) for hits in parts])
    order = np.lexsort((rows, owners, -scores if higher_is_better(metric) else scores))[:limit]
    return [MergedHit(int(owners[at]), int(rows[at]), float(scores[at])) for at in order]
