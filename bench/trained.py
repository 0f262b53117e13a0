"""A generation for workloads in which training is not measured: trained like the indexer's, once for a run.

Takes: a field, rows. Gives: a generation. Owns: how long training may take. Never: is what a workload measures.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from bench.clip_like import ClipLike
from bench.feeds import VECTOR_FIELD_WORDS
from contracts.codec import AUTO
from contracts.collection import FieldRecord
from contracts.generation import Generation
from headwater.wiring import vector_field
from vectors.nlist import choose_nlist
from vectors.train import train

FIRST_GENERATION = 1
SAMPLE_SEED = 1


def field_record() -> FieldRecord:
    """The field of all workloads on own vectors."""
    return vector_field(VECTOR_FIELD_WORDS)


@cache
def generation(rows: int, index_rows: int, seed: int) -> Generation:
    """A generation of `field_record`, trained on `rows` rows of the generator for an index of `index_rows`; kept for other workloads."""
    sample = ClipLike(seed).sample(np.zeros(rows), SAMPLE_SEED).astype(np.float16).astype(np.float32)
    return train(field_record(), sample, choose_nlist(index_rows, rows), AUTO, seed, FIRST_GENERATION)
