"""Small trained generations for tests."""

from __future__ import annotations

import numpy as np

from contracts.collection import FieldRecord, own_vector_space
from contracts.generation import Generation
from vectors.quantizer import Quantizer
from vectors.train import train


def own(name: str = "own", dimension: int = 16, metric: str = "cosine", dtype: str = "float32") -> FieldRecord:
    """A field of producers' own vectors."""
    space = own_vector_space(name, dimension, metric)
    return FieldRecord(name=name, source="vector", encoder=None, space_id=space, dimension=dimension, metric=metric, dtype=dtype)  # type: ignore[arg-type]


def generation(field: FieldRecord, sample: np.ndarray, nlist: int = 16, number: int = 1) -> Generation:
    """A generation trained on a sample, shape (n, d)."""
    return train(field, sample, nlist, "auto", 0, number)


def trained(field: FieldRecord, sample: np.ndarray, nlist: int = 16) -> Quantizer:
    """The quantizer of such a generation."""
    return Quantizer.open(generation(field, sample, nlist))
