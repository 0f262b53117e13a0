"""A small real encoder for tests: colours for pictures, hashed words for text; no model, no torch, honest vectors."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord
from contracts.encoder import EmbeddingSpace, PictureRecipe
from embedding.pictures import PictureLimits
from embedding.prepare import prepared_array

DIMENSION = 64
SIDE = 16


class ColourEncoder:
    """Pictures become 4x4x4 colour histograms, texts hashed bags of words, both of length 1."""

    space = EmbeddingSpace("colour", "", f"letterbox {SIDE}, 4x4x4 histogram", DIMENSION, "cosine")
    picture_recipe = PictureRecipe(SIDE, SIDE, "letterbox")

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        return prepared_array(data, self.picture_recipe, PictureLimits(1 << 24, 1 << 26))

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        bins = (pictures // 64).astype(np.int64).reshape(len(pictures), -1, 3) @ np.array([16, 4, 1])
        counts = np.stack([np.bincount(row, minlength=DIMENSION) for row in bins]).astype(np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        out = np.zeros((len(texts), DIMENSION), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split() or ["?"]:
                out[row, hashlib.sha256(word.encode()).digest()[0] % DIMENSION] += 1
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def colour_fields() -> list[FieldRecord]:
    """Fields `image`, `text` and `fused` in the colour space."""
    space = ColourEncoder.space
    return [
        FieldRecord(name=name, source=name, encoder="colour", space_id=space.space_id, dimension=DIMENSION, dtype="float32")  # type: ignore[arg-type]
        for name in ("image", "text", "fused")
    ]
