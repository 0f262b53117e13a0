"""Vectors that are like CLIP's, made from a seed, with drift where asked: what the workloads on own vectors search.

Unit vectors with a common direction (CLIP's cone), in clusters whose sizes follow a power law; each cluster spreads over a random subspace of its own
with a decaying spectrum, and everything has a little noise in all directions. Every row has a time in ``[0, 1]``: with `drift` the clusters' means
move with it, and the share `born` of the clusters appears only after 0.

Takes: a seed, times. Gives: rows, float32. Owns: the distribution, and that the same seeds give the same rows.
Never: is a model of quality on real pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

BASIS_KEY = 7
"""Tells the random numbers of the clusters' subspaces from those of samples."""
BLOCK_ROWS = 200_000
BIRTH_STEPS = 50
"""Moments at which clusters appear, where some do."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The distribution: lengths are those before the rows get length 1.

    `cone` is the common direction's length, `radius` that of a row's part in its cluster's subspace, `noise` that of the part in all directions;
    `decay` the exponent of the clusters' sizes.
    """

    dimension: int = 512
    clusters: int = 2000
    cluster_dimensions: int = 64
    mean_dimensions: int = 128
    decay: float = 0.8
    cone: float = 0.9
    radius: float = 1.4
    noise: float = 0.35
    drift: float = 0.0
    born: float = 0.0


class ClipLike:
    """One distribution, from which any number of samples are drawn.

    Parameters
    ----------
    seed : int
        Of the clusters; the same seed gives the same ones.
    shape : Shape
        The distribution.
    """

    def __init__(self, seed: int = 0, shape: Shape | None = None) -> None:
        self.shape = shape = shape or Shape()
        self._seed = seed
        random = np.random.default_rng(seed)
        means = np.linalg.qr(random.standard_normal((shape.dimension, shape.mean_dimensions)))[0].T.astype(np.float32)
        spectrum = (1 + np.arange(shape.mean_dimensions)) ** -0.35
        self._cone = _unit(random.standard_normal(shape.dimension).astype(np.float32)) * np.float32(shape.cone)
        among = (shape.clusters, shape.mean_dimensions)
        self._means = _unit((random.standard_normal(among) * spectrum).astype(np.float32) @ means)
        self._directions = _unit((random.standard_normal(among) * spectrum).astype(np.float32) @ means)
        sizes = (1 + random.permutation(shape.clusters)) ** -shape.decay
        self._shares = sizes / sizes.sum()
        births = random.random(shape.clusters)
        self._births = np.where(random.random(shape.clusters) < shape.born, births, -1.0)
        spread = ((1 + np.arange(shape.cluster_dimensions)) ** -0.5).astype(np.float32)
        self._spread = spread / np.sqrt((spread**2).sum())

    def sample(self, times: NDArray[np.float64], seed: int) -> NDArray[np.float32]:
        """Rows, shape (n, d), of length 1.

        Parameters
        ----------
        times : NDArray[np.float64]
            shape (n,), of each row, in ``[0, 1]``.
        seed : int
            Of this sample; samples of two seeds are independent.
        """
        return self.sample_with_clusters(times, seed)[0]

    def sample_with_clusters(self, times: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The rows of `sample`, and each one's cluster, shape (n,)."""
        random = np.random.default_rng((self._seed, seed))
        clusters = self._clusters(times, random)
        rows = np.empty((len(times), self.shape.dimension), np.float32)
        order = np.argsort(clusters, kind="stable")
        bounds = np.searchsorted(clusters[order], np.arange(self.shape.clusters + 1))
        with threadpool_limits(1, "blas"):  # two thousand small products: threads that wait for each other take three times as long
            for cluster in np.flatnonzero(np.diff(bounds)):
                chosen = order[bounds[cluster] : bounds[cluster + 1]]
                rows[chosen] = self._around(int(cluster), times[chosen], random)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows, clusters

    def _clusters(self, times: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
        steps = BIRTH_STEPS if (self._births >= 0).any() else 1
        edges = np.linspace(0, 1, steps + 1)
        step_of = np.clip(np.digitize(times, edges) - 1, 0, steps - 1)
        clusters = np.empty(len(times), np.int64)
        for step in range(steps):
            chosen = np.flatnonzero(step_of == step)
            if len(chosen):
                shares = np.where(self._births <= edges[step], self._shares, 0)
                clusters[chosen] = random.choice(self.shape.clusters, len(chosen), p=shares / shares.sum())
        return clusters

    def _around(self, cluster: int, times: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float32]:
        shape = self.shape
        # Normal directions are nearly orthogonal in as many dimensions. The cluster's own generator: its subspace is the same in every sample.
        own = np.random.default_rng((self._seed, BASIS_KEY, cluster))
        basis = own.standard_normal((shape.cluster_dimensions, shape.dimension), dtype=np.float32) / np.sqrt(shape.dimension)
        inside = random.standard_normal((len(times), shape.cluster_dimensions), dtype=np.float32) * self._spread
        rows: NDArray[np.float32] = inside @ basis * shape.radius
        rows += random.standard_normal((len(times), shape.dimension), dtype=np.float32) * (shape.noise / np.sqrt(shape.dimension))
        rows += self._cone
        if shape.drift:
            rows += _unit(self._means[cluster] + (shape.drift * times)[:, None].astype(np.float32) * self._directions[cluster])
        else:
            rows += self._means[cluster]
        return rows


def blocks(source: ClipLike, rows: int, seed: int, block_rows: int = BLOCK_ROWS) -> Iterator[NDArray[np.float32]]:
    """`rows` rows in blocks of `block_rows`, the last one smaller; row i of n has the time i / n, so that a prefix is the past."""
    for vectors, _ in blocks_with_clusters(source, rows, seed, block_rows):
        yield vectors


def blocks_with_clusters(
    source: ClipLike, rows: int, seed: int, block_rows: int = BLOCK_ROWS
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """The blocks of `blocks` with each row's cluster, shape (m,)."""
    for number, start in enumerate(range(0, rows, block_rows)):
        yield source.sample_with_clusters(np.arange(start, min(rows, start + block_rows)) / rows, seed + number)


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return found
