"""What a segment knows of itself: quantization error, imbalance, and recall per nprobe, measured when it is sealed or compacted.

Takes: a segment's vectors. Gives: their codes in lists, and the `statistics` of its part.
Owns: how much is measured; it stays a few per cent of the encoding.
Never: compares with other segments; a query over many merged ones does better or worse by how alike they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from vectors.balance import imbalance
from vectors.flat import as_float32, higher_is_better
from vectors.inverted_lists import build_lists, holding
from vectors.nearest_rows import NearestRows
from vectors.quantizer import BLOCK_ROWS, EncodedRows, Quantizer

NEIGHBOURS = 10
REFINE_FACTOR = 10
"""Candidates per wanted hit that go through the refine store."""
MOST_QUERIES, LEAST_QUERIES = 200, 32
COMPARISONS = 3_200_000
"""Pairs of vectors that are compared exactly: 32 queries for 100,000 rows, 200 for 16,000 and fewer."""
MOST_PROBES = 64
ERROR_ROWS = 2048


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """What vectors became, and what it is worth: `encoded` and `lists` hold m rows, `statistics` stands in the part's meta."""

    encoded: EncodedRows
    lists: faiss.ArrayInvertedLists
    statistics: dict[str, Any]


def encode_measured(quantizer: Quantizer, matrix: NDArray[Any], ids: NDArray[np.int64]) -> MeasuredRows:
    """Encode a segment's vectors into lists, and measure them on the way.

    Parameters
    ----------
    quantizer : Quantizer
        Of the field's generation.
    matrix : NDArray
        shape (m, d): the vectors as stored.
    ids : NDArray[np.int64]
        shape (m,), ascending: the id of each vector in the lists.

    Returns
    -------
    MeasuredRows
        Its statistics, empty without vectors: ``quantization_error_ratio``: mean squared error of list and code over that of the vectors held out at
        training; ``imbalance``; ``recall``: recall@10 among the segment's own rows by nprobe, each row left out of its own answer;
        ``recall_queries``, ``refine_factor``.
    """
    rows, wanted = _asked_rows(len(matrix))
    queries = as_float32(matrix[rows])
    truth = NearestRows(queries, wanted + 1, quantizer.metric)
    encoded = quantizer.encode(matrix, truth.add if wanted > 0 else None)
    return _measured(quantizer, encoded, _Asked(rows, ids, queries, truth, wanted), lambda sample: as_float32(matrix[sample]))


def measure_encoded(quantizer: Quantizer, encoded: EncodedRows, ids: NDArray[np.int64]) -> MeasuredRows:
    """Put rows that are coded already into lists, and measure them as `encode_measured` does; the truth is what their refine codes stand for.

    Parameters
    ----------
    quantizer : Quantizer
        Of the generation that they are coded in.
    encoded : EncodedRows
        m rows.
    ids : NDArray[np.int64]
        shape (m,), ascending.
    """
    count = len(encoded.refine)
    rows, wanted = _asked_rows(count)
    queries = quantizer.decode(encoded.refine[rows])
    truth = NearestRows(queries, wanted + 1, quantizer.metric)
    if wanted > 0:
        for start in range(0, count, BLOCK_ROWS):
            truth.add(start, quantizer.decode(encoded.refine[start : start + BLOCK_ROWS]))
    return _measured(quantizer, encoded, _Asked(rows, ids, queries, truth, wanted), lambda sample: quantizer.decode(encoded.refine[sample]))


def _asked_rows(count: int) -> tuple[NDArray[np.int64], int]:
    """Rows that are asked for their neighbours, shape (q,), and for how many: none where there are no two rows."""
    wanted = min(NEIGHBOURS, count - 1)
    return (_spread(count, max(LEAST_QUERIES, min(MOST_QUERIES, COMPARISONS // max(count, 1)))) if wanted > 0 else np.zeros(0, np.int64)), wanted


@dataclass(frozen=True, slots=True)
class _Asked:
    """The queries, shape (q, d), their own rows, shape (q,), the ids of all m rows, shape (m,), and the truth for so many wanted."""

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    queries: NDArray[np.float32]
    truth: NearestRows
    wanted: int


def _measured(
    quantizer: Quantizer, encoded: EncodedRows, asked: _Asked, vectors_at: Callable[[NDArray[np.int64]], NDArray[np.float32]]
) -> MeasuredRows:
    """Lists and statistics of coded rows whose vectors `vectors_at` gives by row, shape (k, d)."""
    count = len(asked.ids)
    lists = build_lists(quantizer.nlist, encoded.list_numbers, encoded.codes, asked.ids)
    if count == 0:
        return MeasuredRows(encoded, lists, {})
    trained = float(quantizer.statistics.get("quantization_error", 0.0))
    sample = _spread(count, ERROR_ROWS)
    error = _squared_error(quantizer, vectors_at(sample), encoded, sample)
    statistics: dict[str, Any] = {
        "quantization_error_ratio": error / trained if trained > 0 else 1.0,
        "imbalance": imbalance(np.bincount(encoded.list_numbers, minlength=quantizer.nlist)),
    }
    if asked.wanted > 0:
        index = holding(quantizer, lists, count, owns=False)
        statistics["recall"] = _recall(quantizer, index, asked, encoded.refine)
        statistics |= {"recall_queries": len(asked.rows), "refine_factor": REFINE_FACTOR}
    return MeasuredRows(encoded, lists, statistics)


def squared_error(quantizer: Quantizer, matrix: NDArray[Any], encoded: EncodedRows, sample: NDArray[np.int64]) -> float:
    """Mean squared distance of vectors, shape (m, d), to what list and code stand for, over some of them, shape (k,), k >= 1."""
    return _squared_error(quantizer, as_float32(matrix[sample]), encoded, sample)


def _squared_error(quantizer: Quantizer, vectors: NDArray[np.float32], encoded: EncodedRows, sample: NDArray[np.int64]) -> float:
    difference = vectors - quantizer.reconstruct(encoded.list_numbers[sample], encoded.codes[sample])
    return float(np.einsum("ij,ij->i", difference, difference, dtype=np.float64).mean())


def _recall(quantizer: Quantizer, index: faiss.IndexIVFPQ, asked: _Asked, refine: NDArray[np.uint8]) -> dict[str, float]:
    wanted, queries = asked.wanted, asked.queries
    exact = _without_self(asked.truth.rows(), asked.rows)[:, :wanted]
    found: dict[str, float] = {}
    nprobe = 1
    while True:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)  # type: ignore[call-arg]  # faiss's stub lacks it
        _, found_ids = index.search(queries, min(len(asked.ids), REFINE_FACTOR * (wanted + 1)), params=parameters)
        candidates = np.where(found_ids < 0, -1, np.searchsorted(asked.ids, found_ids))
        answer = _without_self(_refined(quantizer, queries, candidates, refine), asked.rows)[:, :wanted]
        found[str(nprobe)] = round(float((exact[:, :, None] == answer[:, None, :]).any(axis=2).mean()), 4)
        if nprobe >= min(quantizer.nlist, MOST_PROBES):
            return found
        nprobe = min(2 * nprobe, quantizer.nlist)


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Up to `most` places, evenly over `count`, shape (k,): what a segment holds changes with its order."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


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
