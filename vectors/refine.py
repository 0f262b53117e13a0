"""The refine store: what a vector's finer distance is computed from, `sq8` (a byte a dimension) or `float16` (two).

Takes: vectors, shape (n, d). Gives: refine codes, the vectors that they stand for, scores. Owns: the ranges of `sq8`.
Never: loses by repetition: the code of a decoded vector is the code that it was decoded from, also after it was stored in the field's dtype.

`sq8` is faiss's QT_8bit: dimension i of code c stands for ``low[i] + (c + 0.5) / 255 * width[i]``.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.encoder import Metric

MARGIN = 0.1
"""Share of a dimension's range in the sample that is added at both ends, for rows that come later."""
_ROUNDINGS = {"float16": 512, "float32": 4096}
"""Least width of a range in units of the field dtype's rounding: half a step must hide the rounding of a decoded vector that is stored."""
_LARGEST = {"float16": 0.99 * 65504.0, "float32": float(np.finfo(np.float32).max) / 8}
"""No code stands for a number that the field's dtype cannot hold."""


class RefineCodec(Protocol):
    """Turns vectors into refine codes of `code_bytes` bytes and back."""

    code_bytes: int

    def encode(self, matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Codes, shape (n, code_bytes), of vectors, shape (n, d)."""
        ...

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Vectors, shape (n, d), that codes, shape (n, code_bytes), stand for."""
        ...

    def scores(self, query: NDArray[np.float32], codes: NDArray[np.uint8], metric: Metric) -> NDArray[np.float32]:
        """Score, shape (c,), of one query, shape (d,), with each decoded code, shape (c, code_bytes); Qdrant's sense, as in `vectors.flat`."""
        ...


class Float16Refine:
    """Refine codes that are the vectors in float16."""

    def __init__(self, dimension: int) -> None:
        self.code_bytes = 2 * dimension

    def encode(self, matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Codes, shape (n, 2 d), of vectors, shape (n, d); what float16 cannot hold becomes its largest number."""
        return np.ascontiguousarray(np.clip(matrix, -65504, 65504).astype("<f2")).view(np.uint8)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Vectors, shape (n, d), of codes, shape (n, 2 d)."""
        return np.ascontiguousarray(codes).view("<f2").astype(np.float32)

    def scores(self, query: NDArray[np.float32], codes: NDArray[np.uint8], metric: Metric) -> NDArray[np.float32]:
        """Scores, shape (c,), of a query, shape (d,), with codes, shape (c, 2 d)."""
        return _scores(query, self.decode(codes), metric)


class Sq8Refine:
    """Refine codes of one byte a dimension.

    Parameters
    ----------
    ranges : NDArray[np.float32]
        shape (2, d): lowest value and width of each dimension's range.
    """

    def __init__(self, ranges: NDArray[np.float32]) -> None:
        dimension = ranges.shape[1]
        self.code_bytes = dimension
        self.quantizer = faiss.ScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit)
        faiss.copy_array_to_vector(np.ascontiguousarray(ranges, np.float32).ravel(), self.quantizer.trained)
        self._step = ranges[1] / np.float32(255)
        self._middle = ranges[0] + np.float32(0.5) * self._step

    def encode(self, matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Codes, shape (n, d), of vectors, shape (n, d); what lies outside a range becomes its end."""
        codes: NDArray[np.uint8] = self.quantizer.compute_codes(np.ascontiguousarray(matrix, np.float32))
        return codes

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Vectors, shape (n, d), of codes, shape (n, d)."""
        vectors: NDArray[np.float32] = self.quantizer.decode(np.ascontiguousarray(codes))
        return vectors

    def scores(self, query: NDArray[np.float32], codes: NDArray[np.uint8], metric: Metric) -> NDArray[np.float32]:
        """Scores, shape (c,), of a query, shape (d,), with codes, shape (c, d), without decoding them: the ranges are folded into the query."""
        numbers = codes.astype(np.float32)
        if metric != "euclid":
            products: NDArray[np.float32] = numbers @ (query * self._step) + query @ self._middle
            return products
        numbers *= self._step
        numbers -= query - self._middle
        return _norms(numbers)


def sq8_ranges(sample: NDArray[np.float32], dtype: Literal["float16", "float32"]) -> NDArray[np.float32]:
    """Ranges of `Sq8Refine`, shape (2, d), for vectors like those of a sample, shape (n, d), stored in `dtype`.

    A range is never so narrow that storing a decoded vector in the field's dtype could move it into the next step.
    """
    low, high = sample.min(axis=0).astype(np.float64), sample.max(axis=0).astype(np.float64)
    margin = MARGIN * (high - low)
    kind = np.finfo(dtype)
    largest = np.maximum(np.abs(low), np.abs(high))
    least = _ROUNDINGS[dtype] * np.maximum(float(kind.eps) * largest, float(kind.tiny if dtype == "float32" else kind.smallest_subnormal))
    grown = np.maximum(margin, (least - (high - low)) / 2)
    limit = _LARGEST[dtype]
    low, high = np.clip(low - grown, -limit, limit), np.clip(high + grown, -limit, limit)
    return np.stack([low, high - low]).astype(np.float32)


def _scores(query: NDArray[np.float32], vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    if metric == "euclid":
        return _norms(vectors - query)
    products: NDArray[np.float32] = vectors @ query
    return products


def _norms(differences: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[Any] = np.sqrt(np.einsum("ij,ij->i", differences, differences))
    return norms.astype(np.float32, copy=False)
