"""A picture prepared in this process: the same pixels as the decoding processes give.

Takes: encoded bytes, a recipe, limits. Gives: an array. Owns: nothing.
Never: used on strangers' pictures in a service: `embedding.decode_pool` does that where a crash costs no service.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.encoder import PictureRecipe
from embedding.pictures import PictureLimits, prepare_picture


def prepared_array(data: bytes, recipe: PictureRecipe, limits: PictureLimits) -> NDArray[np.uint8]:
    """Decode one picture by a recipe.

    Returns
    -------
    NDArray[np.uint8]
        shape ``recipe.shape``, RGB, read-only.

    Raises
    ------
    RecordError
        ``decode_failed``, ``too_many_pixels``, ``too_large``, ``unsupported_content_type``.
    """
    return np.frombuffer(prepare_picture(data, recipe, limits).tobytes(), np.uint8).reshape(recipe.shape)


def check_prepared(pictures: NDArray[np.uint8], recipe: PictureRecipe) -> None:
    """Raise ValueError unless the pictures have shape (n, *recipe.shape)."""
    if pictures.shape[1:] != recipe.shape:
        raise ValueError(f"pictures have shape {pictures.shape}, not (n, {', '.join(map(str, recipe.shape))})")
