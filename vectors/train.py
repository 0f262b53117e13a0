"""Training: a sample of a field's vectors -> a generation.

Takes: vectors, shape (n, d), as they are stored. Gives: centroids, codebook and refine ranges, and how well they fit vectors that they were not
trained on. Owns: what is trained how. Never: reads or writes a store; draws a random number that the seed does not determine.

On one machine, with one number of threads, equal arguments give equal bytes; elsewhere sums are rounded otherwise, and a race of two trainers is
decided by put-if-absent.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.codec import Codec, parse_codec
from contracts.collection import FieldRecord
from contracts.encoder import Metric
from contracts.generation import Generation
from vectors.quantizer import Quantizer, coarse_index
from vectors.quantizer_bytes import CODEBOOK_SIZE, QuantizerParts, write_quantizer
from vectors.recall import encode_measured, squared_error
from vectors.refine import sq8_ranges

LEAST_ROWS = 300
"""Fewer vectors cannot train 256 codewords and leave some to test them on."""
HELD_OUT_ROWS = 2048
COARSE_ITERATIONS, CODE_ITERATIONS = 10, 25


class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
    """The caller asked for an end."""


def use_threads(count: int) -> None:
    """Let faiss use that many threads in the calling thread, 0 for half of the machine's: for work beside something more urgent."""
    faiss.omp_set_num_threads(count or max(1, (os.cpu_count() or 1) // 2))


def train(
    field: FieldRecord, matrix: NDArray[np.float32], nlist: int, codec: str, seed: int, number: int, stop: threading.Event | None = None
) -> Generation:
    """Train the quantizers of one field.

    Parameters
    ----------
    field : FieldRecord
        Whose vectors these are: metric, dtype, space.
    matrix : NDArray[np.float32]
        shape (n, d), n >= `LEAST_ROWS`; of length 1 for cosine. A tenth of it, at most `HELD_OUT_ROWS`, is held out to measure the errors on.
    nlist : int
        Inverted lists, at most the rows that are left to train on.
    codec : str
        Name of an index's codec (`contracts.codec`); not ``flat``.
    seed : int
        Determines the split and every start of k-means.
    number : int
        Number of the generation.
    stop : threading.Event, optional
        Looked at between the steps, each of which takes a second or so.

    Raises
    ------
    ValueError
        Too few rows, more lists than rows, or a codec that is none or does not fit the dimension.
    TrainingStopped
        `stop` was set.
    """
    chosen = parse_codec(codec, field.dimension)
    held_rows = min(len(matrix) // 10, HELD_OUT_ROWS)
    if chosen is None or matrix.shape[1:] != (field.dimension,):
        raise ValueError(f"field {field.name}: codec {codec} and vectors of shape {matrix.shape} for dimension {field.dimension} train nothing")
    if len(matrix) < LEAST_ROWS or not 1 <= nlist <= len(matrix) - held_rows:
        raise ValueError(f"field {field.name}: {len(matrix)} vectors cannot train {nlist} lists; at least {LEAST_ROWS} are needed")
    order = np.random.default_rng(seed).permutation(len(matrix))
    held = np.ascontiguousarray(matrix[order[:held_rows]], dtype=np.float32)
    rows = np.ascontiguousarray(matrix[order[held_rows:]], dtype=np.float32)
    centroids = _kmeans(rows, nlist, COARSE_ITERATIONS, seed, stop or threading.Event(), spherical=field.metric == "cosine")
    if field.metric == "cosine":  # of length 1: rounded, they are as good, and half as large in the store
        centroids = centroids.astype(np.float16).astype(np.float32)
    ranges = sq8_ranges(matrix, field.dtype) if chosen.refine == "sq8" else None
    parts = QuantizerParts(_codebook(rows, centroids, field.metric, chosen, seed, stop or threading.Event()), ranges)
    made = Generation(field.name, number, field.space_id, field.metric, chosen.name, centroids, write_quantizer(parts), len(rows))
    return Generation(**{name: getattr(made, name) for name in made.__slots__} | {"statistics": _statistics(Quantizer.open(made), rows, held)})


def _kmeans(
    rows: NDArray[np.float32], count: int, iterations: int, seed: int, stop: threading.Event, *, spherical: bool = False
) -> NDArray[np.float32]:
    """Centroids, shape (count, d), of rows, shape (n, d): of length 1 and by inner product where `spherical`, else by L2.

    One iteration a call, each from the centroids of the one before: faiss cannot be stopped inside one.
    """
    parameters = faiss.ClusteringParameters()
    parameters.niter, parameters.seed, parameters.spherical = 1, seed, spherical
    parameters.min_points_per_centroid = 1  # the policy of `vectors.nlist` decides; a warning on stderr helps no one
    clustering = faiss.Clustering(rows.shape[1], count, parameters)
    for _ in range(iterations):
        if stop.is_set():
            raise TrainingStopped
        clustering.train(rows, faiss.IndexFlatIP(rows.shape[1]) if spherical else faiss.IndexFlatL2(rows.shape[1]))
    centroids: NDArray[np.float32] = faiss.vector_to_array(clustering.centroids).reshape(count, rows.shape[1])
    return centroids


def _codebook(
    rows: NDArray[np.float32], centroids: NDArray[np.float32], metric: Metric, codec: Codec, seed: int, stop: threading.Event
) -> NDArray[np.float32]:
    """Codebook, shape (M, 256, d / M), of the residuals of the rows."""
    if metric == "cosine":
        _, lists = coarse_index(centroids, metric).search(rows, 1)
    else:
        _, lists = faiss.knn(rows, centroids, 1, faiss.METRIC_L2)
    residuals = rows - centroids[np.maximum(lists[:, 0], 0)]
    pieces = np.split(residuals, codec.subquantizers, axis=1)
    return np.stack([_kmeans(np.ascontiguousarray(piece), CODEBOOK_SIZE, CODE_ITERATIONS, seed, stop) for piece in pieces])


def _statistics(quantizer: Quantizer, rows: NDArray[np.float32], held: NDArray[np.float32]) -> dict[str, Any]:
    """What later segments are compared with: the held-out rows' error, and balance and recall of the rows that were trained on, as one segment."""
    error = squared_error(quantizer, held, quantizer.encode(held), np.arange(len(held)))
    measured = encode_measured(quantizer, rows, np.arange(len(rows))).statistics
    return measured | {"quantization_error": error, "quantization_error_ratio": 1.0}
