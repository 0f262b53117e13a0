"""Small trained quantizers that several tests share."""

from __future__ import annotations

from functools import cache

import numpy as np

from contracts.generation import Generation
from tests.contracts.format_samples import field
from vectors.quantizer import Quantizer
from vectors.train import train, use_threads

METRICS = ("cosine", "dot", "euclid")


def sample(count: int, dimension: int, metric: str, seed: int = 0) -> np.ndarray:
    """Vectors around 20 centres, of length 1 for cosine, of many lengths else."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dimension))
    rows = centres[random.integers(0, 20, count)] + 0.4 * random.standard_normal((count, dimension))
    scale = 1 / np.linalg.norm(rows, axis=1) if metric == "cosine" else random.uniform(0.5, 3, count)
    return (rows * scale[:, None]).astype(np.float32)


@cache
def trained(metric: str = "cosine", dimension: int = 16, dtype: str = "float16", codec: str = "auto", nlist: int = 12, rows: int = 800) -> Generation:
    use_threads(1)
    record = field("vec", dimension, dtype, metric)
    return train(record, sample(rows, dimension, metric).astype(dtype).astype(np.float32), nlist, codec, seed=5, number=1)


@cache
def opened(metric: str = "cosine", dimension: int = 16, dtype: str = "float16", codec: str = "auto", nlist: int = 12) -> Quantizer:
    return Quantizer.open(trained(metric, dimension, dtype, codec, nlist))
