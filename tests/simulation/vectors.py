"""The vectors of the simulation: each text points one of two ways; and a generation, trained once a process, in whose codes it still does."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord
from contracts.encoder import EmbeddingSpace
from contracts.generation import Generation
from contracts.segment import FieldPart, read_field_part
from vectors.inverted_lists import StoredLists
from vectors.quantizer import Quantizer
from vectors.train import train, use_threads

DIMENSION = 2
CODEC = "ivf_pq2x8+sq8"
SPACE = EmbeddingSpace("small", "", "length of the text", DIMENSION, "cosine")
_SAMPLE_ROWS = 320


def way_of(text: str | None) -> int:
    """The dimension in which a text's vector is 1."""
    return 0 if len(text or "") % 2 else 1


def vector_of(text: str) -> list[float]:
    """A text's vector."""
    return [1.0, 0.0] if way_of(text) == 0 else [0.0, 1.0]


def ways_of(matrix: NDArray[Any]) -> list[int]:
    """Which way each row of a matrix, shape (n, 2), points; -1 where it is not the vector of any text."""
    near = np.abs(matrix - np.eye(DIMENSION)[matrix.argmax(axis=1)]).max(axis=1) < 0.05 if len(matrix) else np.zeros(0, np.bool_)
    ways: list[int] = np.where(near, matrix.argmax(axis=1), -1).tolist() if len(matrix) else []
    return ways


def small_field() -> FieldRecord:
    """The only field."""
    return FieldRecord(name="text", source="text", encoder="small", space_id=SPACE.space_id, dimension=DIMENSION, dtype="float32")


@cache
def small_generation() -> Generation:
    """What a builder of another partition would have trained: two lists."""
    use_threads(1)
    angles = np.concatenate([np.zeros(10), np.full(10, np.pi / 2), np.random.default_rng(1).random(_SAMPLE_ROWS - 20) * np.pi / 2])
    return train(small_field(), np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), 2, CODEC, 1, 1)


@cache
def small_quantizer() -> Quantizer:
    """The generation's, for whoever judges."""
    return Quantizer.open(small_generation())


def stored_ways(data: bytes, key: str) -> tuple[int | None, dict[int, int]]:
    """The generation of a stored field part, None for a flat one; and which way the vector of each row points."""
    part = read_field_part(data, small_field(), key)
    if isinstance(part, FieldPart):
        return None, dict(zip(part.rows.tolist(), ways_of(part.matrix), strict=True))
    StoredLists(part.lists, small_quantizer(), part.rows.astype(np.int64), key)  # every row is in a list once, or CorruptError
    return part.generation, dict(zip(part.rows.tolist(), ways_of(small_quantizer().decode(part.refine)), strict=True))
