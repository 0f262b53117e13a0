"""The encoder: media in, unit vectors out, in one named space.

Takes: decoded pictures and normalised text. Gives: float32 vectors. Owns: what makes two vectors comparable.
Never: knows a framework; torch lives in `embedding` only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Metric = Literal["cosine", "dot", "euclid"]


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Identity of a vector space: vectors of two spaces are never compared.

    Parameters
    ----------
    encoder : str
        Name as in settings, for example ``lite`` or ``open_clip:ViT-B-32/laion2b_s34b_b79k``.
    weights_sha256 : str
        Hex sha256 over the sha256 of every weights file, in the encoder's own order; empty for own vectors.
    preprocessing : str
        Canonical description of what happens to pixels and text before the network.
    dimension : int
        Length of a vector.
    metric : {"cosine", "dot", "euclid"}
        How two vectors are compared.
    """

    encoder: str
    weights_sha256: str
    preprocessing: str
    dimension: int
    metric: Metric

    @property
    def space_id(self) -> str:
        """Short stable name, ``<encoder>@<16 hex>``, stored with every vector field."""
        body = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        return f"{self.encoder}@{hashlib.sha256(body).hexdigest()[:16]}"


class Encoder(Protocol):
    """Turns pictures and text into vectors of one space. Thread-safe; calls may run at the same time."""

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector this encoder gives."""
        ...

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of a prepared picture."""
        ...

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode and resize one picture, within limits; runs off the embedding thread.

        Returns
        -------
        NDArray[np.uint8]
            shape `picture_shape`, RGB.

        Raises
        ------
        RecordError
            ``decode_failed``, ``too_many_pixels``, ``too_large``, ``unsupported_content_type``.
        """
        ...

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode prepared pictures, shape (n, height, width, 3), to unit vectors, shape (n, dimension)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n normalised texts to unit vectors, shape (n, dimension)."""
        ...
