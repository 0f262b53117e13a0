"""Parity: whether a faster way of running a network still gives its vectors.

Takes: what a network should give, and what it gives. Gives: the centred cosine; the fixed pictures that it is measured on.
Owns: the bar. Never: decides what runs (`embedding.open_network` does).

Vectors of one network share most of their direction, so that their plain cosine is near 1 even where all that tells two pictures
apart is lost. Therefore the mean of the true vectors is taken away first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_COSINE = 0.99
PROBES = 8


def centred_cosine(true: NDArray[np.float32], given: NDArray[np.float32]) -> float:
    """Lowest cosine, over the rows, between true and given vectors after the mean of the true ones is taken from both.

    Parameters
    ----------
    true, given : NDArray[np.float32]
        shape (n, dimension), n at least 2.

    Returns
    -------
    float
        -1 to 1; -1 where shapes differ, or a given value is not a number.
    """
    if true.shape != given.shape or not np.isfinite(given).all():
        return -1.0
    centre = true.mean(axis=0, dtype=np.float64)
    ours, theirs = true - centre, given - centre
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(np.min(np.sum(ours * theirs, axis=1) / np.maximum(lengths, 1e-30)))


def probe_pictures(height: int, width: int) -> NDArray[np.uint8]:
    """Fixed pictures that are unlike each other: plain colours with stripes, blocks and noise; shape (`PROBES`, height, width, 3)."""
    random = np.random.default_rng(20261123)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    pictures = np.empty((PROBES, height, width, 3))
    for number in range(PROBES):
        colours = random.uniform(0, 255, (2, 3))
        angle, period = np.pi * number / PROBES, min(height, width) / (2.0 + number)
        stripes = 0.5 + 0.5 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
        side = 1 << (number % 4 + 2)
        blocks = random.uniform(-60, 60, (-(-height // side), -(-width // side), 3)).repeat(side, axis=0).repeat(side, axis=1)
        pictures[number] = colours[0] + stripes[..., None] * (colours[1] - colours[0]) + blocks[:height, :width]
    return np.clip(pictures, 0, 255).astype(np.uint8)
