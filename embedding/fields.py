"""The fused field: picture and text of one item as one direction.

Takes: unit vectors of both sides. Gives: unit vectors. Owns: what `fused` means. Never: imports a framework.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fuse(image: NDArray[np.float32] | None, text: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Normalised sum of two fields, row by row; what has only one side takes that side.

    Parameters
    ----------
    image, text : NDArray[np.float32] or None
        Unit vectors, shape (n, dimension); a row of zeros means that the item lacks this side, None that all do.

    Returns
    -------
    NDArray[np.float32]
        shape (n, dimension); a row of zeros only where both sides are missing. Opposite sides have no sum: the
        picture's side is taken.

    Raises
    ------
    ValueError
        Both are None, or their shapes differ.
    """
    if image is None or text is None:
        only = text if image is None else image
        if only is None:
            raise ValueError("fuse needs at least one side")
        return only.astype(np.float32, copy=True)
    if image.shape != text.shape:
        raise ValueError(f"sides differ in shape: {image.shape} and {text.shape}")
    total = image.astype(np.float32) + text.astype(np.float32)
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    has_sum = norms > 1e-6
    return np.where(has_sum, total / np.where(has_sum, norms, 1.0), image).astype(np.float32)
