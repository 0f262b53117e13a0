"""Known inputs: what a server is asked to find out whether it, or a record, is to blame, and whether its model is still the same.

Takes: vectors. Gives: a text, a picture, fingerprints. Owns: how unlike two fingerprints of one model may be.
Never: says that two models are the same: it can only tell that they differ.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from contracts.encoder import PictureRecipe

PROBE_TEXT = "a red bicycle leans against a white wall"
_BITS = 64
MOST_OTHER_BITS = 12
"""Bits that two fingerprints of one model may differ in. Bits differ in proportion to the angle: 1 of 64 at a cosine of 0.999 (another
precision), 3 at 0.99, 32 on average for another model, of which fewer than 13 happen once in a million."""


def probe_picture(recipe: PictureRecipe) -> NDArray[np.uint8]:
    """A picture that every server can read, shape `recipe.shape`: red, green and blue slopes."""
    height, width, _ = recipe.shape
    down, right = np.linspace(0, 255, height), np.linspace(0, 255, width)
    return np.stack(np.broadcast_arrays(down[:, None], right[None, :], 255 - down[:, None]), axis=2).astype(np.uint8)


def fingerprint(vector: NDArray[np.float32]) -> str:
    """Signs of 64 fixed projections of a vector, shape (d,), as 16 hex digits (random hyperplanes: Charikar 2002, STOC, section 3)."""
    noise = hashlib.shake_256(b"headwater probe").digest(_BITS * len(vector) // 8 + 1)
    signs = np.unpackbits(np.frombuffer(noise, np.uint8))[: _BITS * len(vector)].reshape(_BITS, len(vector)).astype(np.float64) * 2 - 1
    return np.packbits(signs @ vector.astype(np.float64) > 0).tobytes().hex()


def is_other_model(stored: str, found: str) -> bool:
    """Tell whether two fingerprints cannot be of one model."""
    return (int(stored, 16) ^ int(found, 16)).bit_count() > MOST_OTHER_BITS
