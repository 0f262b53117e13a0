"""What a segment knows of itself: quantization error, imbalance, and recall per nprobe, measured when it is sealed.

Takes: a segment's vectors and their codes. Gives: the `statistics` of its part. Owns: how much is measured; it stays a few per cent of the encoding.
Never: compares with other segments; a query over many merged ones does better or worse by how alike they are.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from vectors.balance import imbalance
from vectors.flat import as_float32, higher_is_better
from vectors.inverted_lists import holding
from vectors.quantizer import BLOCK_ROWS, EncodedRows, Quantizer

NEIGHBOURS = 10
REFINE_FACTOR = 10
"""Candidates per wanted hit that go through the refine store."""
MOST_QUERIES, LEAST_QUERIES = 200, 32
COMPARISONS = 4_000_000
"""Pairs of vectors that are compared exactly: 40 queries for 100,000 rows, 200 for 20,000 and fewer."""
MOST_PROBES = 64
ERROR_ROWS = 2048


def segment_statistics(
    quantizer: Quantizer, matrix: NDArray[Any], encoded: EncodedRows, lists: faiss.InvertedLists, ids: NDArray[np.int64]
) -> dict[str, Any]:
    """Statistics of a segment's field.

    Parameters
    ----------
    quantizer : Quantizer
        That encoded it.
    matrix : NDArray
        shape (m, d): the vectors as stored.
    encoded : EncodedRows
        What they became, m rows.
    lists : faiss.InvertedLists
        The same codes in lists.
    ids : NDArray[np.int64]
        shape (m,), ascending: the id of each vector in the lists.

    Returns
    -------
    dict
        ``quantization_error_ratio``: mean squared error of list and code over that of the vectors held out at training; ``imbalance``;
        ``recall``: recall@10 among the segment's own rows by nprobe, each row left out of its own answer; ``recall_queries``, ``refine_factor``.
    """
    if len(matrix) == 0:
        return {}
    error = squared_error(quantizer, matrix, encoded, _spread(len(matrix), ERROR_ROWS))
    trained = float(quantizer.statistics.get("quantization_error", 0.0))
    statistics: dict[str, Any] = {
        "quantization_error_ratio": error / trained if trained > 0 else 1.0,
        "imbalance": imbalance(np.bincount(encoded.list_numbers, minlength=quantizer.nlist)),
    }
    return statistics | _recall(quantizer, matrix, encoded, lists, ids)


def squared_error(quantizer: Quantizer, matrix: NDArray[Any], encoded: EncodedRows, sample: NDArray[np.int64]) -> float:
    """Mean squared distance of vectors, shape (m, d), to what list and code stand for, over some of them, shape (k,), k >= 1."""
    difference = as_float32(matrix[sample]) - quantizer.reconstruct(encoded.list_numbers[sample], encoded.codes[sample])
    return float(np.einsum("ij,ij->i", difference, difference, dtype=np.float64).mean())


def _recall(quantizer: Quantizer, matrix: NDArray[Any], encoded: EncodedRows, lists: faiss.InvertedLists, ids: NDArray[np.int64]) -> dict[str, Any]:
    count = len(matrix)
    rows = _spread(count, max(LEAST_QUERIES, min(MOST_QUERIES, COMPARISONS // count)))
    wanted = min(NEIGHBOURS, count - 1)
    if wanted == 0:
        return {}
    queries = as_float32(matrix[rows])
    exact = _without_self(_exact(quantizer, matrix, queries, wanted + 1), rows)[:, :wanted]
    index = holding(quantizer, lists, count, owns=False)
    found: dict[str, float] = {}
    nprobe = 1
    while True:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)  # type: ignore[call-arg]  # faiss's stub lacks it
        _, found_ids = index.search(queries, min(count, REFINE_FACTOR * (wanted + 1)), params=parameters)
        candidates = np.where(found_ids < 0, -1, np.searchsorted(ids, found_ids))
        answer = _without_self(_refined(quantizer, queries, candidates, encoded.refine), rows)[:, :wanted]
        found[str(nprobe)] = round(float(np.mean([np.isin(truth, hits).mean() for truth, hits in zip(exact, answer, strict=True)])), 4)
        if nprobe >= min(quantizer.nlist, MOST_PROBES):
            break
        nprobe = min(2 * nprobe, quantizer.nlist)
    return {"recall": found, "recall_queries": len(rows), "refine_factor": REFINE_FACTOR}


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Up to `most` places, evenly over `count`, shape (k,): what a segment holds changes with its order."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _exact(quantizer: Quantizer, matrix: NDArray[Any], queries: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Closest rows of each query, shape (q, limit), block by block."""
    metric = faiss.METRIC_L2 if quantizer.metric == "euclid" else faiss.METRIC_INNER_PRODUCT
    heap = faiss.ResultHeap(len(queries), limit, keep_max=higher_is_better(quantizer.metric))
    for start in range(0, len(matrix), BLOCK_ROWS):
        block = as_float32(matrix[start : start + BLOCK_ROWS])
        scores, rows = faiss.knn(queries, block, min(limit, len(block)), metric)
        heap.add_result(scores, rows + start)
    heap.finalize()
    exact: NDArray[np.int64] = heap.I
    return exact


def _refined(quantizer: Quantizer, queries: NDArray[np.float32], candidates: NDArray[np.int64], refine: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Candidates, shape (q, c), in the order of their exact scores; -1 (nothing found) last."""
    scores = quantizer.refine_scores(queries, refine[np.maximum(candidates, 0)])
    costs = -scores if higher_is_better(quantizer.metric) else scores
    order = np.argsort(np.where(candidates < 0, np.inf, costs), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


def _without_self(found: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Answers, shape (q, k), with each query's own row moved to the end."""
    order = np.argsort(found == rows[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
