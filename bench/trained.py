"""A generation for workloads in which training is not measured: trained like the indexer's, once in a process, and shared.

Takes: rows. Gives: a generation. Owns: how many rows an index is made for. Never: is what a workload measures.
"""

from __future__ import annotations

import os
from functools import cache

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.feeds import VECTOR_FIELD_WORDS
from bench.generated_rows import rows_of
from contracts.codec import AUTO
from contracts.collection import FieldRecord
from contracts.generation import Generation
from headwater.wiring import vector_field
from vectors.nlist import choose_nlist
from vectors.train import train

FIRST_GENERATION = 1
INDEX_ROWS = 1_000_000
"""Rows of the index that a generation is trained for: its number of lists follows from it, and most of the cost of a row from that."""


THREADED_ROWS = 16_384
"""Rows from which several threads train faster. Below, each product is so small that they mostly wait for one another: as long as one thread on
two idle cores, and on busy ones nine times as long (1,000 rows, 1.5 s of CPU with one, 9.4 s with two)."""


def field_record() -> FieldRecord:
    """The field of all workloads on own vectors."""
    return vector_field(VECTOR_FIELD_WORDS)


def generation_of(sample: NDArray[np.float32], seed: int = 0) -> Generation:
    """A generation of `field_record` for an index of `INDEX_ROWS`, trained on a sample, shape (n, d); with all cores where it is large."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads((os.cpu_count() or 1) if len(sample) >= THREADED_ROWS else 1)
    try:
        return train(field_record(), sample, choose_nlist(INDEX_ROWS, len(sample)), AUTO, seed, FIRST_GENERATION)
    finally:
        faiss.omp_set_num_threads(before)  # a searching thread has one, and would not set it again


@cache
def generation(rows: int, seed: int) -> Generation:
    """The generation that is trained on the first `rows` shared rows; kept for other workloads."""
    return generation_of(rows_of(rows, seed).astype(np.float32), seed)
